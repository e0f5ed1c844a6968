//! What a service manager is told, and what it keeps for the next process when one dies.

use std::{
    io::{IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixDatagram,
    },
    process::Command,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use rustix::{
    cmsg_space,
    io::FdFlags,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
};
use serde_json::json;
use tokio::task::block_in_place;

use crate::{
    end_to_end::{PLAN_BOTH, at, bind, delete, provision, status, with_nats},
    support::{
        eventually::{PATIENCE, eventually, eventually_async},
        harbor::{AUTHORIZATION, Harbor, Site},
        nats::NatsServer,
        peer::{TcpPeer, UdpPeer, V4, connect, hear, ping, read, udp_client},
    },
};

/// Where descriptors stand before a shell puts them where they belong.
const ASIDE: i32 = 500;

/// A service manager, as far as a service sees one.
struct Manager {
    socket: Arc<UnixDatagram>,
    path: std::path::PathBuf,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    told: Vec<String>,
    kept: Vec<(String, OwnedFd)>,
}

impl Manager {
    fn new(site: &Site) -> Self {
        let path = site.path().join("notify");
        let socket = Arc::new(UnixDatagram::bind(&path).unwrap());
        let state = Arc::<Mutex<State>>::default();
        let (listening, noted) = (Arc::downgrade(&socket), Arc::clone(&state));
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        thread::spawn(move || {
            while let Some(socket) = listening.upgrade() {
                if let Some((text, sockets)) = next(&socket) {
                    noted.lock().unwrap().hear(text, sockets);
                }
            }
        });
        Self { socket, path, state }
    }

    /// Starts a service, with what was kept of the one before.
    fn start(&self, site: &Site) -> Harbor {
        let kept = std::mem::take(&mut self.state.lock().unwrap().kept);
        let names = kept.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(":");
        // A shell puts them where the service looks for them.
        let mut script = String::new();
        let mut aside = Vec::new();
        for (number, (_, socket)) in (3..).zip(&kept) {
            let copy = rustix::io::fcntl_dupfd_cloexec(socket, ASIDE).unwrap();
            rustix::io::fcntl_setfd(&copy, FdFlags::empty()).unwrap();
            script += &format!("exec {number}<&{0} {0}<&-\n", copy.as_raw_fd());
            aside.push(copy);
        }
        script += "LISTEN_PID=$$ exec \"$0\" serve";
        let mut command = Command::new("bash");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_harbor")]);
        command.env("HARBOR_CONFIG", site.config()).env("NOTIFY_SOCKET", &self.path);
        if !kept.is_empty() {
            command.env("LISTEN_FDS", kept.len().to_string()).env("LISTEN_FDNAMES", names);
        }
        let harbor = site.start_with(command);
        // It goes on keeping them.
        self.state.lock().unwrap().kept.extend(kept);
        harbor
    }

    #[track_caller]
    fn hears(&self, what: &str) {
        eventually(&format!("{what:?} is told"), || {
            self.state.lock().unwrap().told.iter().any(|told| told.contains(what)).then_some(())
        });
    }

    fn keeps(&self) -> Vec<String> {
        let mut names = self.state.lock().unwrap().kept.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        names.sort();
        names
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // Its thread ends when the socket does.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

impl State {
    fn hear(&mut self, text: String, sockets: Vec<OwnedFd>) {
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or_default();
        if text.contains("FDSTOREREMOVE=1") {
            self.kept.retain(|(kept, _)| kept != name);
        }
        self.kept.extend(sockets.into_iter().map(|socket| (name.to_owned(), socket)));
        self.told.push(text);
    }
}

/// The next message with its descriptors, if one comes soon.
fn next(socket: &UnixDatagram) -> Option<(String, Vec<OwnedFd>)> {
    let (mut bytes, mut space) = ([0; 4096], [MaybeUninit::uninit(); cmsg_space!(ScmRights(250))]);
    let mut extras = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut extras, RecvFlags::CMSG_CLOEXEC).ok()?;
    let sockets = extras.drain().flat_map(|extra| match extra {
        RecvAncillaryMessage::ScmRights(sockets) => sockets.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let sockets = sockets.collect();
    Some((String::from_utf8_lossy(&bytes[..received.bytes]).into_owned(), sockets))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_at_a_port_survives_kill_9_when_the_service_manager_keeps_sockets() {
    let server = NatsServer::start();
    let site = Site::new("18050-18059", &with_nats(&server));
    let manager = Manager::new(&site);
    let harbor = manager.start(&site);
    harbor.ready().await;
    manager.hears("READY=1");
    provision(&harbor, "first", PLAN_BOTH).await;
    let port = at(&bind(&harbor, "first", "binding", PLAN_BOTH).await).port();
    let names = [format!("tcp-{port}"), format!("udp-{port}")];
    let expected = ["admin", "announce", "broker", &names[0], &names[1]];
    eventually("all sockets are kept", || (manager.keeps() == expected).then_some(()));
    let (tcp, udp) = (TcpPeer::echo(V4), UdpPeer::echo(V4));
    let message = json!({
        "host": "127.0.0.1",
        "port": tcp.address.port(),
        "app": "app",
        "harbor": { "instance_id": "first", "udp_port": udp.address.port() },
    });
    let nats = async_nats::connect(server.url()).await.unwrap();
    eventually_async("the backends are known, and noted for the next process", || async {
        nats.publish("harbor.register", message.to_string().into()).await.unwrap();
        nats.flush().await.unwrap();
        let noted = std::fs::read_to_string(site.data().join("backends.json")).unwrap_or_default();
        noted.contains(&udp.address.to_string()).then_some(())
    })
    .await;
    let broker = harbor.address("broker");
    harbor.kill();

    // Nobody serves. A socket that nobody wants any more is kept too.
    let mut queued = (0..10).map(|_| connect(V4, port)).collect::<Vec<_>>();
    queued.iter_mut().for_each(|stream| stream.write_all(b"queued").unwrap());
    let client = udp_client(V4, port);
    client.send(b"queued").unwrap();
    let mut request = TcpStream::connect(broker).unwrap();
    request.set_read_timeout(Some(PATIENCE)).unwrap();
    let asked = "GET /v2/catalog HTTP/1.1\r\nhost: harbor\r\nx-broker-api-version: 2.17\r\nconnection: close\r\n";
    write!(request, "{asked}authorization: {AUTHORIZATION}\r\n\r\n").unwrap();
    let unwanted = TcpListener::bind((V4, 0)).unwrap();
    let unwanted_name = format!("tcp-{}", unwanted.local_addr().unwrap().port());
    manager.state.lock().unwrap().kept.push((unwanted_name.clone(), unwanted.into()));

    // The configuration leaves the ports of the APIs open: the kept ones have the names.
    let harbor = manager.start(&site);
    harbor.ready().await;
    assert_eq!(harbor.address("broker"), broker);
    block_in_place(|| {
        queued.iter_mut().for_each(|stream| assert_eq!(read(stream, 6), b"queued"));
        assert_eq!(hear(&client), b"queued");
        let mut answer = String::new();
        request.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        manager.hears(&format!("FDSTOREREMOVE=1\nFDNAME={unwanted_name}"));
    });

    // A hot restart leaves what is kept where it is, and says who is the service now.
    let stored =
        |manager: &Manager| manager.state.lock().unwrap().told.iter().filter(|t| t.contains("FDSTORE=1")).count();
    let before = stored(&manager);
    let process = block_in_place(|| harbor.restart());
    manager.hears("RELOADING=1");
    manager.hears(&format!("MAINPID={process}\nREADY=1"));
    eventually_async("the new process answers operators", || async {
        (status(&harbor).await["process"] == process).then_some(())
    })
    .await;
    block_in_place(|| ping(&mut connect(V4, port), b"after"));
    assert_eq!((stored(&manager), manager.keeps()), (before, expected.map(String::from).to_vec()));

    // What is closed is not kept.
    delete(&harbor, "first", PLAN_BOTH).await;
    eventually("the port is let go of", || (manager.keeps() == ["admin", "announce", "broker"]).then_some(()));
    harbor.signal(rustix::process::Signal::TERM);
    manager.hears("STOPPING=1");
}
