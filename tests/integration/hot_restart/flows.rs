//! Nothing that clients do is disturbed by hot restarts.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use harbor::{
    model::{
        NodeId, OrganizationId, PlanId, PoolName, Protocol, ServiceInstanceId, SpaceId, Timestamp,
        parameters::Settings, service_instance::ServiceInstance,
    },
    store::{self, Provision},
    telemetry::metrics::Metrics,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::task::block_in_place;

use super::steady::{AT_A_TIME, Backends, Clients, SOCKETS};
use crate::{
    end_to_end::{PLAN_TCP, status, with_nats},
    support::{
        echo::Echo,
        eventually::{PATIENCE, eventually_async},
        harbor::{Harbor, Site},
        nats::NatsServer,
    },
};

const FIRST_PORT: u16 = 16_000;
const PORTS: u16 = 2_000;
const RESTARTS: usize = 20;
const CONNECTORS: usize = 3;
const UDP_FLOWS: u16 = 20;
/// Datagrams that one flow sends at a time.
const WINDOW: u64 = 8;
/// Datagrams that are sent at least while nobody serves, at all restarts: those of 5 ms each. Else they show nothing.
const QUEUED: usize = RESTARTS * 5 * AT_A_TIME;
/// How long nothing may come before more is said: whoever speaks all the time measures the machine.
const BREATH: Duration = Duration::from_millis(5);

/// Believes what is announced for addresses of loopback, for long.
const TRUSTING: &str = "
[forwarder]
drain_timeout = \"10m\"
[[discovery.trusted]]
networks = [\"127.0.0.0/8\"]
service_instances = [\"*\"]
";

fn name(port: u16) -> String {
    format!("port-{port}")
}

/// Service instances for TCP and UDP, stored before the node starts.
async fn store_ports(site: &Site) {
    std::fs::create_dir_all(site.data()).unwrap();
    let settings = store::Settings {
        url: "sqlite:harbor.db".into(),
        password: None,
        data_dir: site.data(),
        answer_within: store::ANSWER_WITHIN,
        migrate_within: store::MIGRATE_WITHIN,
    };
    let store = store::open(&settings, Metrics::new().store.clone(), None).await.unwrap();
    for port in FIRST_PORT..FIRST_PORT + PORTS {
        let instance = ServiceInstance {
            id: ServiceInstanceId::new(name(port)).unwrap(),
            name: None,
            organization_id: OrganizationId::new("org").unwrap(),
            space_id: SpaceId::new("space").unwrap(),
            plan_id: PlanId::new(PLAN_TCP).unwrap(),
            requested_port: None,
            node_id: NodeId::new("harbor_node_1").unwrap(),
            pool: PoolName::new("default").unwrap(),
            port,
            protocol: Protocol::Both,
            settings: Settings::default(),
            created_at: Timestamp::default(),
            revision: Default::default(),
        };
        let stored = store.provision(&instance, false, Timestamp::default()).await.unwrap();
        assert!(matches!(stored, Provision::Created(_)));
    }
    store.close().await;
}

/// A backend for UDP that sends back what comes, and notes where each flow comes from.
struct Recorder {
    address: SocketAddr,
    sources: Arc<Mutex<BTreeMap<u16, BTreeSet<SocketAddr>>>>,
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Recorder {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let (address, sources, stop) = (socket.local_addr().unwrap(), Arc::default(), Arc::default());
        let (noted, stopped) = (Arc::clone(&sources), Arc::<AtomicBool>::clone(&stop));
        let thread = thread::spawn(move || {
            let mut bytes = [0; 64];
            while !stopped.load(Ordering::SeqCst) {
                let Ok((length, from)) = socket.recv_from(&mut bytes) else { continue };
                let flow = u16::from_be_bytes([bytes[0], bytes[1]]);
                let noted: &Mutex<BTreeMap<u16, BTreeSet<SocketAddr>>> = &noted;
                noted.lock().unwrap().entry(flow).or_default().insert(from);
                socket.send_to(&bytes[..length], from).unwrap();
            }
        });
        Self { address, sources, stop, thread }
    }

    fn finish(self) -> BTreeMap<u16, BTreeSet<SocketAddr>> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
        Arc::try_unwrap(self.sources).unwrap().into_inner().unwrap()
    }
}

/// What clients have seen.
#[derive(Debug, Default)]
struct Tally {
    connections: AtomicU64,
    datagrams: AtomicU64,
    /// The longest that a new connection took to be answered, in microseconds.
    slowest: AtomicU64,
    troubles: Mutex<Vec<String>>,
}

impl Tally {
    fn trouble(&self, what: String) {
        self.troubles.lock().unwrap().push(what);
    }
}

/// Opens connections to all ports in turn until it is told to stop; each says something and hears it.
fn connect(tally: &Tally, stop: &AtomicBool, offset: u16) {
    let mut port = offset;
    while !stop.load(Ordering::SeqCst) {
        port = (port + 7) % PORTS;
        let started = Instant::now();
        let converse = || -> std::io::Result<()> {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST_PORT + port));
            let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"short")?;
            let mut answer = [0; 8];
            stream.read_exact(&mut answer)?;
            assert_eq!(&answer, b"a: short");
            Ok(())
        };
        match converse() {
            Ok(()) => drop(tally.connections.fetch_add(1, Ordering::SeqCst)),
            Err(error) => tally.trouble(format!("a connection to {}: {error}", FIRST_PORT + port)),
        }
        let took = u64::try_from(started.elapsed().as_micros()).unwrap();
        tally.slowest.fetch_max(took, Ordering::SeqCst);
    }
}

/// A connection that says something all the time and hears it.
fn stream(tally: &Tally, stop: &AtomicBool, port: u16) {
    let converse = || -> std::io::Result<()> {
        let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST_PORT + port)))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut number = 0_u64;
        while !stop.load(Ordering::SeqCst) {
            let said = format!("{number:020}");
            stream.write_all(said.as_bytes())?;
            let mut answer = [0; 23];
            stream.read_exact(&mut answer)?;
            assert_eq!(std::str::from_utf8(&answer[3..]).unwrap(), said);
            number += 1;
            stream.set_read_timeout(Some(BREATH))?;
            match stream.peek(&mut answer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                unasked => return Err(std::io::Error::other(format!("{unasked:?} without being asked"))),
            }
            stream.set_read_timeout(Some(PATIENCE))?;
        }
        Ok(())
    };
    if let Err(error) = converse() {
        tally.trouble(format!("a long stream through {}: {error}", FIRST_PORT + port));
    }
}

/// A UDP flow of numbered datagrams; each must come back once, and nothing else.
fn flow(tally: &Tally, stop: &AtomicBool, flow: u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = FIRST_PORT + flow * (PORTS / UDP_FLOWS);
    socket.connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let (mut sent, mut next, mut heard) = (0_u64, WINDOW, BTreeSet::new());
    let mut bytes = [0; 64];
    loop {
        while sent < next {
            let datagram = [&flow.to_be_bytes()[..], &sent.to_be_bytes()].concat();
            if let Err(error) = socket.send(&datagram) {
                tally.trouble(format!("flow {flow} cannot send {sent}: {error}"));
            }
            sent += 1;
        }
        let all = heard.len() as u64 == sent;
        if all && stop.load(Ordering::SeqCst) {
            break;
        }
        socket.set_read_timeout(Some(if all { BREATH } else { PATIENCE })).unwrap();
        match socket.recv(&mut bytes) {
            Err(error) if all && error.kind() == ErrorKind::WouldBlock => next = sent + WINDOW,
            Ok(length) => {
                let number = u64::from_be_bytes(bytes[2..length].try_into().unwrap());
                if !heard.insert(number) {
                    tally.trouble(format!("flow {flow} hears {number} twice"));
                }
            }
            Err(error) => {
                let lost = (0..sent).filter(|number| !heard.contains(number)).collect::<Vec<_>>();
                tally.trouble(format!("flow {flow}: {error}, lost {lost:?}"));
                break;
            }
        }
    }
    tally.datagrams.fetch_add(heard.len() as u64, Ordering::SeqCst);
}

/// When nobody served, at each restart, by what the log says at the end of it.
fn held(harbor: &Harbor) -> Vec<Range<OffsetDateTime>> {
    let log = harbor.log();
    let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let held = events.filter_map(|event| {
        let held = event["fields"]["held_ms"].as_f64()?;
        let end = OffsetDateTime::parse(event["timestamp"].as_str()?, &Rfc3339).expect("a moment");
        Some(end - Duration::from_secs_f64(held / 1e3)..end)
    });
    held.collect()
}

/// The port of a client that does not wait for answers; none of those that do has it.
fn steady_port(number: usize) -> u16 {
    FIRST_PORT + 1 + 30 * u16::try_from(number).expect("there are few")
}

/// Announces a backend for each port, and waits until the node knows all. Over UDP it is `others` in their ports, in order,
/// and `udp` elsewhere.
async fn announce_all(server: &NatsServer, harbor: &Harbor, tcp: SocketAddr, udp: SocketAddr, others: &[SocketAddr]) {
    eventually_async("the node hears announcements", || async {
        (status(harbor).await["nats"]["state"] == "up").then_some(())
    })
    .await;
    let nats = async_nats::connect(server.url()).await.unwrap();
    let others =
        others.iter().enumerate().map(|(number, other)| (steady_port(number), other)).collect::<BTreeMap<_, _>>();
    for port in FIRST_PORT..FIRST_PORT + PORTS {
        let message = json!({
            "host": "127.0.0.1",
            "port": tcp.port(),
            "stale_threshold_in_seconds": 120,
            "harbor": { "instance_id": name(port), "udp_port": others.get(&port).unwrap_or(&&udp).port() },
        });
        nats.publish("harbor.register", message.to_string().into()).await.unwrap();
    }
    nats.flush().await.unwrap();
    eventually_async("every port has its backends", || async {
        let backends = &status(harbor).await["backends"];
        (backends["tcp"] == PORTS && backends["udp"] == PORTS).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_hot_restarts_of_two_thousand_ports_lose_no_connection_no_stream_and_no_datagram() {
    let server = NatsServer::start();
    let last = FIRST_PORT + PORTS - 1;
    let site = Site::new(&format!("{FIRST_PORT}-{last}"), &[TRUSTING, &with_nats(&server)].concat());
    store_ports(&site).await;
    let mut serve = site.command(&["serve"]);
    // A line for each flow would keep the test from its work.
    serve.env("HARBOR_LOG__LEVEL", "info");
    let harbor = site.start_with(serve);
    harbor.ready().await;
    let (app, recorder) = (Echo::start("a").await, Recorder::start());
    let backends = Backends::start();
    announce_all(&server, &harbor, app.tcp, recorder.address, &backends.addresses).await;

    let (tally, stop) = (Arc::new(Tally::default()), Arc::new(AtomicBool::new(false)));
    let mut clients = Vec::new();
    let mut spawn = |client: fn(&Tally, &AtomicBool, u16), number: u16| {
        let (tally, stop) = (Arc::clone(&tally), Arc::clone(&stop));
        clients.push(thread::spawn(move || client(&tally, &stop, number)));
    };
    (0..CONNECTORS).for_each(|number| spawn(connect, 1 + number as u16));
    (0..UDP_FLOWS).for_each(|number| spawn(flow, number));
    let steady = Clients::start((0..SOCKETS).map(steady_port));
    let mut processes = BTreeSet::from([harbor.pid()]);
    for round in 0..RESTARTS {
        // One for each generation; they stay where they began.
        spawn(stream, round as u16);
        let before = tally.connections.load(Ordering::SeqCst);
        let process = block_in_place(|| harbor.restart());
        assert!(processes.insert(process), "a new process");
        eventually_async("clients go on", || async {
            (tally.connections.load(Ordering::SeqCst) > before + 20).then_some(())
        })
        .await;
        eventually_async("the new process answers operators", || async {
            (status(&harbor).await["process"] == process).then_some(())
        })
        .await;
        let known = harbor.broker().get(&format!("/v2/service_instances/{}", name(FIRST_PORT))).await;
        assert_eq!(known.status, 200, "{known:?}");
    }
    let listeners = status(&harbor).await["listeners"].clone();
    stop.store(true, Ordering::SeqCst);
    block_in_place(|| clients.into_iter().for_each(|client| client.join().expect("a client does not panic")));
    let troubles = tally.troubles.lock().unwrap();
    assert!(troubles.is_empty(), "{} troubles: {:#?}", troubles.len(), &troubles[..troubles.len().min(10)]);
    assert_eq!(listeners, json!({ "bound": PORTS, "failed": 0, "closed": 0, "suspended": 0, "pending": 0 }));
    let sources = recorder.finish();
    assert_eq!(sources.len(), usize::from(UDP_FLOWS));
    assert!(sources.values().all(|sources| sources.len() == 1), "a backend has seen its client move: {sources:?}");
    let record = block_in_place(|| steady.stop());
    let held = held(&harbor);
    assert_eq!(held.len(), RESTARTS);
    let in_silence = record.sent_in_silence(&held);
    let mut times = held.iter().map(|span| (span.end - span.start).as_seconds_f64()).collect::<Vec<_>>();
    times.sort_by(f64::total_cmp);
    // Not captured as a print would be: the figures are what one runs this for.
    writeln!(
        std::io::stderr(),
        "{RESTARTS} restarts: {} connections, {} datagrams in turns, the slowest connection took {} ms; nobody served for \
         {:.0} ms (median), {:.0} ms (most)\n{record}; sent while nobody served: {in_silence:?}",
        tally.connections.load(Ordering::SeqCst),
        tally.datagrams.load(Ordering::SeqCst),
        tally.slowest.load(Ordering::SeqCst) / 1000,
        times[RESTARTS / 2] * 1e3,
        times[RESTARTS - 1] * 1e3,
    )
    .unwrap();
    assert_eq!((record.lost(), record.repeated), (Vec::new(), 0));
    assert!(in_silence.iter().sum::<usize>() >= QUEUED, "{in_silence:?}");
    harbor.signal(Signal::TERM);
}
