//! A UDP port that outgrows one thread.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use harbor::{
    forwarder::{Binder, SystemBinder},
    model::{Protocol, Transport, announcement::AnnouncedState, desired::ForwarderLimits, parameters::Settings},
    telemetry::metrics::Direction,
};
use rustix::net::{SendAncillaryBuffer, SendFlags, SocketAddrAny};

use super::node::{Node, id};
use crate::support::{
    eventually::{PATIENCE, eventually},
    peer::{UdpPeer, V4, ask, udp_client},
};

/// Datagrams of one burst: fewer than a receive buffer of default size has room for.
const BURST: usize = 400;

/// A node that lets 127.0.0.1 in, and nobody else.
fn node(workers: usize, port: u16, binder: Arc<dyn Binder>) -> Node {
    let hour = Duration::from_secs(3600);
    let node = Node::with_binder(workers, ForwarderLimits { idle_timeout_udp: hour, ..Default::default() }, binder);
    let allow = vec!["127.0.0.1/32".parse().unwrap()];
    node.open(port, Protocol::Udp, Settings { allow, ..Settings::default() });
    node
}

/// Sends bursts that are turned away, and puts the clock forward meanwhile, until it is `over`.
fn outgrow(node: &Node, port: u16, over: impl Fn() -> bool) {
    let stranger = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).unwrap();
    let destination = SocketAddrAny::from(SocketAddr::from((V4, port)));
    let turned_away = || node.sample("harbor_datagrams_dropped_total{reason=\"not_allowed\"}");
    let (done, started) = (AtomicBool::new(false), Instant::now());
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                node.advance(Duration::from_millis(50));
            }
        });
        let _done = SetOnDrop(&done);
        let mut sent = turned_away();
        while !over() {
            assert!(started.elapsed() < PATIENCE, "the port is not spread");
            let parts = [io::IoSlice::new(b"let me in")];
            let mut extras = (0..BURST).map(|_| SendAncillaryBuffer::default()).collect::<Vec<_>>();
            let messages =
                extras.iter_mut().map(|extra| rustix::net::MMsgHdr::new_with_addr(&destination, &parts, extra));
            let mut messages = messages.collect::<Vec<_>>();
            let went = rustix::net::sendmmsg(&stranger, &mut messages, SendFlags::empty()).unwrap();
            sent += went as u64;
            eventually("the burst has arrived", || (turned_away() >= sent).then_some(()));
        }
    });
}

/// Tells a thread to end, also when an assertion fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// How many sockets have a port.
fn sockets_on(port: u16) -> usize {
    let table = fs::read_to_string("/proc/self/net/udp6").unwrap();
    let wanted = format!(":{port:04X}");
    table.lines().filter(|line| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&wanted))).count()
}

/// Datagrams that each thread has carried to backends.
fn carried(node: &Node) -> Vec<u64> {
    node.metrics.forwarder.by_thread(|tally| tally.datagrams.of(Direction::ToBackend).get())
}

fn check_that_sessions_survive(workers: usize, port: u16) {
    let backend = UdpPeer::echo(V4);
    let node = node(workers, port, Arc::new(SystemBinder));
    node.announce(port, Transport::Udp, backend.address);
    let clients = (0..60).map(|_| udp_client(V4, port)).collect::<Vec<_>>();
    let ask_all = |round: &str| {
        for (number, client) in clients.iter().enumerate() {
            let question = format!("{round} {number}").into_bytes();
            assert_eq!(ask(client, &question), question);
        }
    };
    ask_all("before");
    assert_eq!(carried(&node).iter().filter(|carried| **carried > 0).count(), 1, "one thread has the port");

    // Meanwhile a client asks on and on, and misses no answer.
    let done = AtomicBool::new(false);
    let asked = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let steady = udp_client(V4, port);
            while !done.load(Ordering::SeqCst) {
                let question = format!("steady {}", asked.fetch_add(1, Ordering::SeqCst)).into_bytes();
                assert_eq!(ask(&steady, &question), question);
            }
        });
        let _done = SetOnDrop(&done);
        outgrow(&node, port, || sockets_on(port) == workers);
    });

    let before = carried(&node);
    ask_all("after");
    let after = carried(&node);
    let busy = before.iter().zip(&after).filter(|(before, after)| before < after).count();
    assert_eq!(busy, workers, "every thread has a part of the clients: {before:?}, {after:?}");
    assert_eq!((node.forwarder.open_flows(), node.sample("harbor_sessions_opened_total")), (61, 61));
    assert_eq!(node.forwarder.export_sessions().len(), 61);
    let (of_the_port, of_all) = (node.forwarder.port_counts()[&id(port)], &node.metrics.forwarder);
    assert_eq!((of_the_port.sessions_opened, of_the_port.sessions_open()), (61, 61));
    assert_eq!(of_the_port.datagrams[0], of_all.total(|tally| tally.datagrams.of(Direction::ToBackend).get()));
    assert_eq!(of_the_port.udp_bytes[1], of_all.total(|tally| tally.udp_bytes.of(Direction::ToClient).get()));
    assert_eq!(of_the_port.datagrams_dropped, node.sample("harbor_datagrams_dropped_total{reason=\"not_allowed\"}"));

    // What the backend sees of a client has not changed.
    let mut seen = HashMap::<String, Vec<SocketAddr>>::new();
    for (source, question) in backend.received() {
        let question = String::from_utf8(question).unwrap();
        let (round, number) = question.split_once(' ').unwrap();
        let client = if round == "steady" { round } else { number };
        seen.entry(client.to_owned()).or_default().push(source);
    }
    assert_eq!(seen.len(), 61);
    assert_eq!(seen["steady"].len(), asked.load(Ordering::SeqCst));
    assert!(seen.values().all(|sources| sources.len() >= 2 && sources.iter().all(|source| *source == sources[0])));

    // Nobody else gets the port, and what is removed is gone at all threads.
    assert_eq!(UdpSocket::bind(("::", port)).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    node.remove(port);
    assert_eq!((node.forwarder.open_flows(), sockets_on(port)), (0, 0));
    assert_eq!(node.forwarder.port_counts(), HashMap::new());
    UdpSocket::bind(("::", port)).unwrap();
}

#[test]
fn sessions_survive_that_their_port_is_spread_over_two_threads() {
    check_that_sessions_survive(2, 22700);
}

#[test]
fn sessions_survive_that_their_port_is_spread_over_four_threads() {
    check_that_sessions_survive(4, 22701);
}

#[test]
fn backends_and_settings_are_followed_on_all_threads_of_a_spread_port() {
    let backend = UdpPeer::echo(V4);
    let node = node(3, 22710, Arc::new(SystemBinder));
    node.announce(22710, Transport::Udp, backend.address);
    outgrow(&node, 22710, || sockets_on(22710) == 3);
    let clients = (0..30).map(|_| udp_client(V4, 22710)).collect::<Vec<_>>();
    let ask_all = || clients.iter().for_each(|client| assert_eq!(ask(client, b"x"), b"x"));
    ask_all();
    node.announce_state(22710, Transport::Udp, backend.address, AnnouncedState::Draining);
    node.advance(Duration::from_secs(31));
    node.wait_for_flows(0);
    node.announce(22710, Transport::Udp, backend.address);
    ask_all();
    node.limit(|limits| limits.idle_timeout_udp = Duration::from_secs(10));
    node.advance(Duration::from_secs(11));
    node.wait_for_flows(0);
    ask_all();
    node.revoke_all();
    node.wait_for_flows(0);
    let closed = |reason: &str| node.sample(&format!("harbor_sessions_closed_total{{reason=\"{reason}\"}}"));
    assert_eq!([closed("drained"), closed("idle"), closed("revoked")], [30, 30, 30]);
}

/// Binds ports, and nothing beside them.
struct NothingBeside(AtomicUsize);

impl Binder for NothingBeside {
    fn bind(&self, address: IpAddr, port: u16, transport: Transport) -> io::Result<OwnedFd> {
        SystemBinder.bind(address, port, transport)
    }

    fn bind_beside(&self, _: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

#[test]
fn a_port_that_gets_no_more_sockets_stays_on_one_thread() {
    let backend = UdpPeer::echo(V4);
    let binder = Arc::new(NothingBeside(AtomicUsize::new(0)));
    let node = node(2, 22720, Arc::<NothingBeside>::clone(&binder));
    node.announce(22720, Transport::Udp, backend.address);
    let clients = (0..20).map(|_| udp_client(V4, 22720)).collect::<Vec<_>>();
    let ask_all = || clients.iter().for_each(|client| assert_eq!(ask(client, b"x"), b"x"));
    ask_all();
    outgrow(&node, 22720, || binder.0.load(Ordering::SeqCst) > 0);
    ask_all();
    assert_eq!(carried(&node).into_iter().filter(|carried| *carried > 0).collect::<Vec<_>>(), [40]);
    assert_eq!(node.sample("harbor_sessions_opened_total"), 20);
}
