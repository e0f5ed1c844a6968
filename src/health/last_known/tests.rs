use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    sync::Mutex,
    time::Instant,
};

use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

use super::*;
use crate::model::{
    AppId, BindingId, PoolName, Protocol, Revision, Timestamp,
    announcement::{AnnouncedState, Authority, Origin, Registration},
    binding::Binding,
    directory::DirectoryEntry,
    token::{AnnounceSecret, SECRET_BYTES},
};

fn connect() -> Arc<Connect> {
    Arc::new(|backend| {
        let socket = Socket::new(Domain::for_address(backend), Type::STREAM.nonblocking(), None)?;
        match socket.connect(&backend.into()) {
            Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => Err(error),
            _ => Ok(socket.into()),
        }
    })
}

/// A clock whose two times the test moves apart from one another, as a restart does.
struct TestClock(Mutex<(Instant, Timestamp)>);

impl TestClock {
    fn new() -> Self {
        Self(Mutex::new((Instant::now(), Timestamp::from_seconds(1_700_000_000))))
    }

    /// The wall moves on; the other time begins anew.
    fn restart_after(&self, duration: Duration) {
        let mut times = self.0.lock().unwrap();
        *times = (Instant::now(), times.1.plus(duration));
    }
}

impl Clock for TestClock {
    fn now(&self) -> Instant {
        self.0.lock().unwrap().0
    }

    fn wall(&self) -> Timestamp {
        self.0.lock().unwrap().1
    }
}

/// When the first backend of a test was announced; the others come a second later for each that is there.
const HEARD_AT: Timestamp = Timestamp::from_seconds(1_699_999_000);

const TTL: Duration = Duration::from_secs(120);

fn id() -> ServiceInstanceId {
    ServiceInstanceId::new("one").unwrap()
}

fn directory(apps: &[&str]) -> Directory {
    let mut directory = Directory::new(AnnounceSecret::new([1; SECRET_BYTES]));
    directory.put_instance(DirectoryEntry {
        id: id(),
        pool: PoolName::new("default").unwrap(),
        port: 23_001,
        protocol: Protocol::Both,
        int_port: 4100,
        match_app: false,
        bindings: BTreeSet::new(),
        apps: Default::default(),
    });
    for app in apps {
        directory.put_binding(&Arc::new(Binding {
            id: BindingId::new(*app).unwrap(),
            service_instance_id: id(),
            app_id: AppId::new(*app).ok(),
            space_id: None,
            announce: true,
            predecessor_id: None,
            created_at: Timestamp::default(),
            revision: Revision(1),
        }));
    }
    directory
}

fn register(backends: &Backends, authority: Authority, transport: Transport, address: SocketAddr, now: Instant) {
    let registration = Registration {
        service_instance_id: id(),
        endpoints: vec![Endpoint { transport, address }],
        authority,
        origin: Origin {
            app_id: AppId::new("app").ok(),
            private_instance_id: Some("i".into()),
            updated_at_ns: Some(7),
        },
        time_to_live: TTL,
        state: AnnouncedState::Up,
        since: None,
        heard_at: HEARD_AT.plus(Duration::from_secs(backends.counts().udp as u64)),
    };
    backends.apply(&registration, now).unwrap();
}

fn app(name: &str) -> Authority {
    Authority::App(AppId::new(name).unwrap())
}

async fn written(path: &Path, backends: &Backends, clock: &Arc<TestClock>) {
    save(path.to_owned(), backends.clone(), clock.clone()).await.unwrap();
}

#[tokio::test]
async fn backends_come_back_with_the_deadlines_they_had() {
    let directory_of_files = tempfile::tempdir().unwrap();
    let path = directory_of_files.path().join(FILE_NAME);
    let (clock, backends) = (Arc::new(TestClock::new()), Backends::new(8));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    register(&backends, app("app"), Transport::Udp, "127.0.0.2:9".parse().unwrap(), clock.now());
    register(&backends, app("app"), Transport::Tcp, address, clock.now());
    written(&path, &backends, &clock).await;
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    clock.restart_after(Duration::from_secs(50));
    let restarted = Backends::new(8);
    let outcome = restore(&path, &restarted, &directory(&["app"]), |_, _| true, Some(connect()), &*clock).await;
    assert_eq!(outcome, Restored { restored: 2, ..Restored::default() });
    let states = restarted.list(&id());
    assert_eq!(states.iter().map(|state| state.backend.endpoint.address).collect::<Vec<_>>()[1], address);
    assert_eq!(states[0].origin, backends.list(&id())[0].origin);
    assert_eq!(states[1].expires_at, clock.now() + TTL - Duration::from_secs(50));
    assert_eq!(states.iter().map(|state| state.since.seconds()).collect::<Vec<_>>(), [1_699_999_000, 1_699_999_001]);
    assert_eq!(restarted.slot(&id()).load().tcp.len(), 1);
}

#[tokio::test]
async fn what_may_not_be_believed_any_more_stays_away() {
    let directory_of_files = tempfile::tempdir().unwrap();
    let path = directory_of_files.path().join(FILE_NAME);
    let (clock, backends) = (Arc::new(TestClock::new()), Backends::new(8));
    // Nothing listens on a TCP port of this address: the socket that holds it never does.
    let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    silent.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    let silent_address = silent.local_addr().unwrap().as_socket().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    register(&backends, app("app"), Transport::Tcp, silent_address, clock.now());
    register(&backends, app("unbound"), Transport::Udp, udp, clock.now());
    register(&backends, app("app"), Transport::Udp, "127.0.0.9:9".parse().unwrap(), clock.now());
    register(&backends, Authority::Trusted, Transport::Udp, "127.0.0.8:9".parse().unwrap(), clock.now());
    written(&path, &backends, &clock).await;

    let restarted = Backends::new(8);
    let admits = |_: &ServiceInstanceId, backend: &Backend| backend.endpoint.address.ip().to_string() != "127.0.0.9";
    let outcome = restore(&path, &restarted, &directory(&["app"]), admits, Some(connect()), &*clock).await;
    assert_eq!(outcome, Restored { restored: 1, expired: 0, unauthorised: 2, unreachable: 1 });
    assert_eq!(restarted.list(&id())[0].backend.authority, Authority::Trusted);

    clock.restart_after(TTL);
    let late = restore(&path, &Backends::new(8), &directory(&["app"]), admits, Some(connect()), &*clock).await;
    assert_eq!(late, Restored { expired: 4, ..Restored::default() });
}

#[tokio::test]
async fn a_clock_that_was_set_back_gives_nobody_more_than_one_life() {
    let directory_of_files = tempfile::tempdir().unwrap();
    let path = directory_of_files.path().join(FILE_NAME);
    let (clock, backends) = (Arc::new(TestClock::new()), Backends::new(8));
    register(&backends, Authority::Trusted, Transport::Udp, "127.0.0.8:9".parse().unwrap(), clock.now());
    written(&path, &backends, &clock).await;
    clock.0.lock().unwrap().1 = Timestamp::from_seconds(1_600_000_000);
    let restarted = Backends::new(8);
    restore(&path, &restarted, &directory(&[]), |_, _| true, Some(connect()), &*clock).await;
    assert_eq!(restarted.list(&id())[0].expires_at, clock.now() + TTL);
}

#[tokio::test]
async fn a_file_that_cannot_be_understood_is_kept_aside_and_costs_nothing_else() {
    let directory_of_files = tempfile::tempdir().unwrap();
    let path = directory_of_files.path().join(FILE_NAME);
    let clock = TestClock::new();
    for (contents, kept) in [
        (&b""[..], true),
        (b"{\"version\":1,\"backends\":[{\"serv", true),
        (b"{\"version\":2,\"backends\":[]}", true),
        (b"\xff\xfe", true),
        (b"{\"version\":1,\"backends\":[]}", false),
    ] {
        fs::write(&path, contents).unwrap();
        let aside = directory_of_files.path().join("backends.json.corrupt");
        let outcome = restore(&path, &Backends::new(8), &directory(&[]), |_, _| true, Some(connect()), &clock).await;
        assert_eq!(outcome, Restored::default());
        assert_eq!((aside.exists(), path.exists()), (kept, !kept), "{:?}", String::from_utf8_lossy(contents));
        let _ = fs::remove_file(aside);
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(
        restore(&path, &Backends::new(8), &directory(&[]), |_, _| true, Some(connect()), &clock).await,
        Restored::default()
    );
}

#[tokio::test]
async fn the_file_is_written_a_last_time_at_shutdown() {
    let directory_of_files = tempfile::tempdir().unwrap();
    let path = directory_of_files.path().join(FILE_NAME);
    // One that a crash has left behind does not stand in the way.
    fs::write(path.with_extension("json.new"), "torn").unwrap();
    let (clock, backends, shutdown) = (Arc::new(TestClock::new()), Backends::new(8), CancellationToken::new());
    register(&backends, Authority::Trusted, Transport::Udp, "127.0.0.8:9".parse().unwrap(), clock.now());
    shutdown.cancel();
    keep(path.clone(), backends, clock, shutdown).await;
    assert_eq!(Contents::parse(&fs::read(&path).unwrap()).unwrap().backends.len(), 1);
    assert_eq!(fs::read_dir(directory_of_files.path()).unwrap().count(), 1);
}
