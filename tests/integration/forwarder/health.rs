//! Backends that fail: what connections and datagrams run into, and what checks find.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use harbor::{
    backends::Health,
    health::checks,
    model::{
        Clock, Protocol, Transport,
        balance::Balance,
        desired::{DesiredState, ForwarderLimits},
        parameters::{HealthCheck, Settings, TcpCheck},
    },
};
use socket2::{Domain, Socket, Type};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::node::{Node, id};
use crate::support::{
    eventually::eventually,
    peer::{Nobody, TcpPeer, UdpPeer, V4, ask, connect, is_turned_away, read, udp_client},
};

const CHECK: TcpCheck =
    TcpCheck { interval: Duration::from_millis(20), timeout: Duration::from_millis(500), rise: 2, fall: 3 };

fn in_order() -> Settings {
    Settings { balance: Some(Balance::Failover), ..Settings::default() }
}

fn checked() -> Settings {
    Settings { health_check: Some(HealthCheck::Tcp(CHECK)), ..in_order() }
}

/// An app at one address that can be switched off and on.
struct Switched {
    address: SocketAddr,
    socket: Socket,
}

impl Switched {
    fn off_at(port: u16) -> Self {
        let address = SocketAddr::new(V4, port);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("descriptors are left");
        socket.set_reuse_address(true).unwrap();
        // A port that was asked for stays the socket's while it does not listen.
        socket.bind(&address.into()).expect("nobody else has this port");
        Self { address, socket }
    }

    fn on(&self) {
        self.socket.listen(128).unwrap();
    }

    fn off(&self) {
        self.socket.shutdown(Shutdown::Both).unwrap();
    }
}

/// Checks that run beside a node, until they are dropped.
struct Checks {
    desired: watch::Sender<Arc<DesiredState>>,
    shutdown: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Checks {
    fn beside(node: &Node) -> Self {
        let (desired, receiver) = watch::channel(Arc::new(node.desired()));
        let shutdown = CancellationToken::new();
        let (backends, metrics) = (node.backends.clone(), Arc::clone(&node.metrics.health));
        let clock: Arc<dyn Clock> = node.clock();
        let forwarder = Arc::clone(&node.forwarder);
        let connect = Arc::new(move |backend| forwarder.connect(backend));
        let run = checks::run(backends, receiver, connect, clock, metrics, shutdown.clone());
        let thread = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("descriptors are left").block_on(run);
        });
        Self { desired, shutdown, thread: Some(thread) }
    }

    fn follow(&self, node: &Node) {
        self.desired.send_replace(Arc::new(node.desired()));
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.thread.take().expect("dropped once").join().expect("checks do not panic");
    }
}

#[track_caller]
fn becomes(node: &Node, port: u16, backend: SocketAddr, health: Health) {
    eventually(&format!("{backend} is {health:?}"), || {
        let states = node.backends.list(&id(port));
        let state = states.iter().find(|state| state.backend.endpoint.address == backend).expect("it is announced");
        (state.backend.health().0 == health).then_some(())
    });
}

#[test]
fn a_backend_that_keeps_failing_is_passed_over_for_longer_each_time() {
    let (gone, alive) = (Nobody::tcp(), TcpPeer::named("alive"));
    let node = Node::start();
    node.open(22_800, Protocol::Tcp, in_order());
    node.announce(22_800, Transport::Tcp, gone.address);
    node.announce(22_800, Transport::Tcp, alive.address);
    let mut failures = 0;
    for aside in [30, 60, 120, 240, 300, 300] {
        failures += 1;
        for _ in 0..2 {
            assert_eq!(read(&mut connect(V4, 22_800), 5), b"alive", "the client notices nothing");
            assert_eq!(node.sample("harbor_connects_failed_total"), failures, "after the first failure it is left out");
        }
        node.advance(Duration::from_secs(aside - 1));
        assert_eq!(read(&mut connect(V4, 22_800), 5), b"alive");
        assert_eq!(node.sample("harbor_connects_failed_total"), failures, "for {aside} s");
        node.advance(Duration::from_secs(2));
    }
}

#[test]
fn the_last_backend_left_is_tried_though_it_has_failed() {
    let backend = Switched::off_at(22_901);
    let node = Node::start();
    node.tcp(22_801, backend.address);
    for failures in 1..=3 {
        assert!(is_turned_away(V4, 22_801));
        assert_eq!(node.sample("harbor_connects_failed_total"), failures);
    }
    backend.on();
    let client = connect(V4, 22_801);
    let (_served, _) = backend.socket.accept().unwrap();
    drop(client);
    let state = &node.backends.list(&id(22_801))[0];
    assert_eq!(state.backend.aside(node.now()), None, "it works again");
}

#[test]
fn what_checks_find_down_gets_nothing_until_it_is_up_again() {
    let (first, second) = (Switched::off_at(22_902), TcpPeer::named("second"));
    first.on();
    let node = Node::start();
    node.open(22_802, Protocol::Tcp, checked());
    node.announce(22_802, Transport::Tcp, first.address);
    node.announce(22_802, Transport::Tcp, second.address);
    let checks = Checks::beside(&node);
    becomes(&node, 22_802, first.address, Health::Up);
    first.off();
    becomes(&node, 22_802, first.address, Health::Down);
    assert_eq!(read(&mut connect(V4, 22_802), 6), b"second");
    assert_eq!(node.sample("harbor_connects_failed_total"), 0, "no client had to find that out");
    assert!(node.sample("harbor_health_checks_total{outcome=\"failed\"}") >= u64::from(CHECK.fall));

    first.on();
    becomes(&node, 22_802, first.address, Health::Up);
    let mut client = connect(V4, 22_802);
    client.write_all(b"for the first").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    // Checks have been there before, and had nothing to say.
    let mut said = String::new();
    while said.is_empty() {
        TcpStream::from(first.socket.accept().unwrap().0).read_to_string(&mut said).unwrap();
    }
    assert_eq!(said, "for the first");
    drop(client);

    first.off();
    becomes(&node, 22_802, first.address, Health::Down);
    node.open(22_802, Protocol::Tcp, in_order());
    checks.follow(&node);
    becomes(&node, 22_802, first.address, Health::Unchecked);
}

#[test]
fn the_last_backend_left_is_tried_though_checks_find_it_down() {
    let backend = Switched::off_at(22_903);
    let node = Node::start();
    node.open(22_803, Protocol::Tcp, checked());
    node.announce(22_803, Transport::Tcp, backend.address);
    let checks = Checks::beside(&node);
    becomes(&node, 22_803, backend.address, Health::Down);
    drop(checks);
    backend.on();
    let client = connect(V4, 22_803);
    backend.socket.accept().unwrap();
    drop(client);
}

/// Connections to `port` that have had no answer yet, by the third byte of where they go.
fn connecting_to(port: u16) -> Vec<u8> {
    let remote = format!(":{port:04X}");
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let connecting = fields.filter(|fields| fields[2].ends_with(&remote) && fields[3] == "02");
    // The table is read in pieces, and may show a connection twice.
    let ends = connecting.map(|fields| (fields[1].to_owned(), fields[2].to_owned())).collect::<BTreeSet<_>>();
    // An address is written as the number that its bytes make on this machine, the first one last.
    ends.into_iter().map(|(_, to)| u8::from_str_radix(&to[2..4], 16).unwrap()).collect()
}

#[test]
fn no_more_checks_run_at_a_time_than_may() {
    // A listener whose queue is full answers no more connects, at any address of loopback.
    let full = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    rustix::net::listen(&full, 0).unwrap();
    let port = full.local_addr().unwrap().port();
    let queued = [(); 2].map(|()| TcpStream::connect_timeout(&SocketAddr::new(V4, port), Duration::from_millis(100)));
    let node = Node::start();
    let patient = TcpCheck { timeout: Duration::from_secs(20), ..CHECK };
    let third = |listener: u16| u8::try_from(listener - 22_800).unwrap();
    let listeners = 22_820..22_838;
    for listener in listeners.clone() {
        let settings = Settings { health_check: Some(HealthCheck::Tcp(patient)), ..Settings::default() };
        node.open(listener, Protocol::Tcp, settings);
        for last in 1..=10 {
            let host = IpAddr::V4(Ipv4Addr::new(127, 0, third(listener), last));
            node.announce(listener, Transport::Tcp, SocketAddr::new(host, port));
        }
    }
    let checks = Checks::beside(&node);
    let checking = || connecting_to(port).into_iter().filter(|third| *third != 0).collect::<Vec<_>>();
    eventually("all that may run do", || (checking().len() == checks::MAX_CHECKS).then_some(()));
    for _ in 0..50 {
        let checking = checking();
        assert!(checking.len() <= checks::MAX_CHECKS);
        for listener in listeners.clone() {
            let of_one = checking.iter().filter(|of| **of == third(listener)).count();
            assert!(of_one <= checks::MAX_CHECKS_EACH, "{of_one} of {listener}");
        }
    }
    drop((checks, queued));
}

#[test]
fn a_standby_takes_over_with_one_withdrawal() {
    let (primary, standby) = (UdpPeer::named("primary"), UdpPeer::named("standby"));
    let node = Node::with(2, ForwarderLimits::default());
    node.udp(22_809, primary.address);
    node.announce(22_809, Transport::Udp, standby.address);
    let clients = [(); 3].map(|()| udp_client(V4, 22_809));
    for client in &clients {
        assert_eq!(ask(client, b"?"), b"primary");
    }
    node.withdraw(22_809, Transport::Udp, primary.address);
    for client in &clients {
        assert_eq!(ask(client, b"?"), b"standby", "no datagram is lost");
    }
    node.announce(22_809, Transport::Udp, primary.address);
    assert_eq!(ask(&clients[0], b"?"), b"standby", "who was announced later stands by, the former primary too");
}
