//! Listeners: what is bound, and what becomes of it.

use std::{
    io,
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use harbor::{
    forwarder::Binder,
    model::{
        PoolName, Protocol, Transport,
        balance::Balance,
        desired::{DesiredState, ForwarderLimits, ListenerSpec},
        observed::ListenerState,
        parameters::{ProxyProtocol, Settings},
    },
};

use super::node::{FailingBinder, Node, id};
use crate::support::eventually::eventually;
use crate::support::peer::{TcpPeer, UdpPeer, V4, V6, ask, connect, is_reset, is_turned_away, ping, read, udp_client};

fn is_open(port: u16, transport: Transport) -> bool {
    match transport {
        Transport::Tcp => TcpStream::connect((V4, port)).is_ok(),
        Transport::Udp => UdpSocket::bind((V4, port)).is_err(),
    }
}

#[test]
fn changed_settings_hold_for_new_connections_and_keep_open_ones() {
    let (backend, other) = (TcpPeer::echo(V4), TcpPeer::named("other"));
    let node = Node::start();
    node.tcp(22000, backend.address);
    let mut before = connect(V4, 22000);
    ping(&mut before, b"x");
    let settings = Settings {
        allow: vec!["::1/128".parse().unwrap()],
        balance: Some(Balance::Failover),
        max_connections: Some(2),
        ..Settings::default()
    };
    node.open(22000, Protocol::Tcp, settings);
    node.announce(22000, Transport::Tcp, other.address);
    assert!(is_turned_away(V4, 22000));
    let mut after = connect(V6, 22000);
    ping(&mut after, b"y");
    assert!(is_turned_away(V6, 22000));
    ping(&mut before, b"x");
    assert_eq!((backend.accepted(), other.accepted()), (2, 0));
    assert_eq!(node.observation(22000).unwrap().version, 2);
}

#[test]
fn a_protocol_that_grows_keeps_what_there_is_and_one_that_shrinks_ends_the_rest() {
    let (tcp, udp) = (TcpPeer::echo(V4), UdpPeer::echo(V4));
    let node = Node::start();
    node.tcp(22010, tcp.address);
    node.announce(22010, Transport::Udp, udp.address);
    let mut connection = connect(V4, 22010);
    ping(&mut connection, b"tcp");
    node.open(22010, Protocol::Both, Settings::default());
    let session = udp_client(V4, 22010);
    assert_eq!(ask(&session, b"udp"), b"udp");
    ping(&mut connection, b"tcp");
    node.open(22010, Protocol::Udp, Settings::default());
    assert!(is_reset(&mut connection));
    assert!(!is_open(22010, Transport::Tcp));
    assert_eq!(ask(&session, b"udp"), b"udp");
    assert_eq!(node.forwarder.open_flows(), 1);
    node.open(22010, Protocol::Tcp, Settings::default());
    assert!(!is_open(22010, Transport::Udp));
    node.wait_for_flows(0);
    ping(&mut connect(V4, 22010), b"tcp");
}

#[test]
fn a_removed_listener_and_its_flows_are_gone_when_it_is_applied() {
    let (tcp, udp) = (TcpPeer::echo(V4), UdpPeer::echo(V4));
    let node = Node::with(3, ForwarderLimits::default());
    node.open(22020, Protocol::Both, Settings::default());
    node.announce(22020, Transport::Tcp, tcp.address);
    node.announce(22020, Transport::Udp, udp.address);
    let mut connections = (0..10).map(|_| connect(V4, 22020)).collect::<Vec<_>>();
    connections.iter_mut().for_each(|connection| ping(connection, b"x"));
    let session = udp_client(V4, 22020);
    assert_eq!(ask(&session, b"x"), b"x");
    node.remove(22020);
    assert_eq!((node.forwarder.open_flows(), node.observation(22020)), (0, None));
    assert!(!is_open(22020, Transport::Tcp) && !is_open(22020, Transport::Udp));
    connections.iter_mut().for_each(|connection| assert!(is_reset(connection)));
    // The port can be had at once, by another service instance too.
    drop(TcpListener::bind((V6, 22020)).unwrap());
    node.tcp(22020, tcp.address);
    ping(&mut connect(V4, 22020), b"again");
}

#[test]
fn a_port_that_moves_is_closed_before_another_takes_it() {
    let (one, two) = (TcpPeer::named("one"), TcpPeer::named("two"));
    let node = Node::start();
    node.tcp(22030, one.address);
    node.tcp(22031, two.address);
    // The two service instances trade their ports, in one revision.
    node.change(|desired| {
        for (instance, port) in [(22030, 22031), (22031, 22030)] {
            let mut spec = desired.listeners.get(&id(instance)).unwrap().as_ref().clone();
            spec.port = port;
            spec.version += 1;
            desired.listeners.insert_mut(id(instance), Arc::new(spec));
        }
    });
    assert_eq!(node.state(22030), ListenerState::Bound);
    assert_eq!(read(&mut connect(V4, 22030), 3), b"two");
    assert_eq!(read(&mut connect(V4, 22031), 3), b"one");
}

#[test]
fn a_port_held_by_a_stranger_fails_alone_and_is_taken_when_it_is_free() {
    let backend = TcpPeer::echo(V4);
    let node = Node::start();
    let stranger = TcpListener::bind((V4, 22040)).unwrap();
    node.want(22040, Protocol::Tcp, Settings::default());
    assert!(is_held_by(&node.state(22040), std::process::id()), "{:?}", node.state(22040));
    node.tcp(22041, backend.address);
    ping(&mut connect(V4, 22041), b"x");
    assert_eq!(node.state(22041), ListenerState::Bound);

    node.announce(22040, Transport::Tcp, backend.address);
    drop(stranger);
    let freed = Instant::now();
    node.wait_for("the port is taken", |seen| {
        seen.get(&id(22040)).is_some_and(|observation| observation.state == ListenerState::Bound)
    });
    assert!(freed.elapsed() < Duration::from_secs(1), "it took {:?}", freed.elapsed());
    ping(&mut connect(V4, 22040), b"x");
}

/// Whether a port of TCP is held, and said to be by this process.
fn is_held_by(state: &ListenerState, process: u32) -> bool {
    let ListenerState::Failed { held: true, reason } = state else { return false };
    reason.contains(&format!(" of :: is held by process {process} ("))
        && reason.ends_with("it is taken as soon as it is free")
}

#[test]
fn who_holds_a_port_is_named_anew_when_it_is_another() {
    let node = Node::start();
    // Both have one socket, so that the port is never free in between.
    let stranger = TcpListener::bind((V4, 22045)).unwrap();
    let mut strangers = [(); 2].map(|()| {
        let mut tail = Command::new("tail");
        let socket = OwnedFd::from(stranger.try_clone().unwrap());
        tail.args(["-f", "/dev/null"]).stdin(socket).spawn().expect("there is tail")
    });
    drop(stranger);
    node.want(22045, Protocol::Tcp, Settings::default());
    let before = node.observation(22045).unwrap();
    let named = strangers.iter().position(|stranger| is_held_by(&before.state, stranger.id())).expect("it is named");
    strangers[named].kill().unwrap();
    strangers[named].wait().unwrap();
    node.advance(Duration::from_secs(10));
    let other = strangers[1 - named].id();
    node.wait_for("the other one is named", |seen| {
        seen.get(&id(22045)).is_some_and(|seen| seen.since == before.since && is_held_by(&seen.state, other))
    });
    strangers[1 - named].kill().unwrap();
    strangers[1 - named].wait().unwrap();
    node.wait_for("the port is taken", |seen| {
        seen.get(&id(22045)).is_some_and(|seen| seen.state == ListenerState::Bound)
    });
}

#[test]
fn of_a_port_for_both_neither_is_open_when_one_is_held() {
    let node = Node::start();
    let stranger = UdpSocket::bind((V4, 22050)).unwrap();
    node.want(22050, Protocol::Both, Settings::default());
    assert!(matches!(node.state(22050), ListenerState::Failed { held: true, .. }));
    assert!(!is_open(22050, Transport::Tcp));
    // A TCP port that was there before stays, whatever becomes of its UDP half.
    let backend = TcpPeer::echo(V4);
    node.tcp(22050, backend.address);
    let mut connection = connect(V4, 22050);
    ping(&mut connection, b"x");
    node.want(22050, Protocol::Both, Settings::default());
    assert!(matches!(node.state(22050), ListenerState::Failed { held: true, .. }));
    ping(&mut connection, b"x");
    ping(&mut connect(V4, 22050), b"x");
    drop(stranger);
    node.wait_for("UDP is taken", |seen| {
        seen.get(&id(22050)).is_some_and(|observation| observation.state == ListenerState::Bound)
    });
    ping(&mut connection, b"x");
}

#[test]
fn a_machine_without_room_is_not_a_held_port() {
    let full = Arc::new(AtomicBool::new(true));
    let binder = FailingBinder({
        let full = Arc::clone(&full);
        move |_, _| full.load(Ordering::SeqCst).then(|| io::Error::from_raw_os_error(24))
    });
    let node = Node::with_binder(2, ForwarderLimits::default(), Arc::new(binder));
    node.want(22060, Protocol::Udp, Settings::default());
    let reason = "UDP port 22060 of :: cannot be bound (Too many open files (os error 24)): trying again";
    assert_eq!(node.state(22060), ListenerState::Failed { held: false, reason: reason.into() });
    full.store(false, Ordering::SeqCst);
    node.wait_for("it is bound", |seen| {
        seen.get(&id(22060)).is_some_and(|observation| observation.state == ListenerState::Bound)
    });
}

#[test]
fn closed_listeners_take_nothing_new_and_what_is_open_goes_on() {
    let (tcp, udp) = (TcpPeer::echo(V4), UdpPeer::echo(V4));
    let node = Node::start();
    node.open(22070, Protocol::Both, Settings::default());
    node.announce(22070, Transport::Tcp, tcp.address);
    node.announce(22070, Transport::Udp, udp.address);
    let mut connection = connect(V4, 22070);
    ping(&mut connection, b"x");
    let session = udp_client(V4, 22070);
    assert_eq!(ask(&session, b"x"), b"x");
    node.forwarder.close_listeners();
    node.change(|_| {});
    assert_eq!(node.state(22070), ListenerState::Closed);
    // A process that is being made beside this test may have the socket a moment longer.
    eventually("nobody accepts", || TcpStream::connect((V4, 22070)).err());
    udp_client(V4, 22070).send(b"late").unwrap();
    ping(&mut connection, b"x");
    assert_eq!(ask(&session, b"x"), b"x");
    assert_eq!(udp.received().len(), 2);
    drop(connection);
    node.wait_for_flows(1);
    node.forwarder.stop();
    assert_eq!(node.forwarder.open_flows(), 0);
    assert_eq!(node.sample("harbor_sessions_closed_total{reason=\"stopped\"}"), 1);
}

/// Waits until so many datagrams have found no session, and none has begun with them.
#[track_caller]
fn dropped_while_draining(node: &Node, datagrams: u64) {
    let dropped = || node.sample("harbor_datagrams_dropped_total{reason=\"draining\"}") == datagrams;
    eventually("a datagram is dropped", || dropped().then_some(()));
}

#[test]
fn listeners_that_are_open_again_have_what_was_changed_meanwhile() {
    let (tcp, udp) = (TcpPeer::echo(V4), UdpPeer::echo(V4));
    let node = Node::start();
    for port in [22071, 22072, 22073] {
        node.open(port, Protocol::Both, Settings::default());
        node.announce(port, Transport::Tcp, tcp.address);
        node.announce(port, Transport::Udp, udp.address);
    }
    let mut connections = [22071, 22072, 22073].map(|port| connect(V4, port));
    connections.iter_mut().for_each(|connection| ping(connection, b"x"));
    let session = udp_client(V4, 22071);
    assert_eq!(ask(&session, b"x"), b"x");

    // However often it is said, the latest holds.
    node.forwarder.close_listeners();
    node.forwarder.reopen_listeners();
    node.forwarder.close_listeners();
    node.forwarder.close_listeners();
    node.remove(22072);
    node.want(22073, Protocol::Udp, Settings::default());
    node.want(22074, Protocol::Tcp, Settings::default());
    node.announce(22074, Transport::Tcp, tcp.address);
    for port in [22071, 22073, 22074] {
        assert_eq!(node.state(port), ListenerState::Closed, "port {port}");
        assert!(!is_open(port, Transport::Tcp), "port {port}");
    }
    let [kept, removed, narrowed] = &mut connections;
    ping(kept, b"goes on");
    assert!(is_reset(removed) && is_reset(narrowed), "what is taken away ends, listeners or not");
    let late = udp_client(V4, 22073);
    late.send(b"late").unwrap();
    dropped_while_draining(&node, 1);
    assert_eq!(ask(&session, b"goes on"), b"goes on");

    node.forwarder.reopen_listeners();
    node.forwarder.reopen_listeners();
    node.wait_for("all listen again", |seen| seen.iter().all(|(_, seen)| seen.state == ListenerState::Bound));
    ping(kept, b"goes on");
    assert_eq!(ask(&session, b"goes on"), b"goes on");
    for port in [22071, 22074] {
        (0..20).for_each(|_| ping(&mut connect(V4, port), b"again"));
    }
    assert_eq!(ask(&late, b"again"), b"again");
    assert_eq!(ask(&udp_client(V4, 22071), b"again"), b"again");
    assert!(!is_open(22072, Transport::Tcp) && !is_open(22073, Transport::Tcp));
    assert!(udp.received().iter().all(|(_, datagram)| datagram != b"late"), "no session began");
}

#[test]
fn flows_can_be_ended_without_an_end_of_the_forwarder() {
    let (tcp, udp) = (TcpPeer::echo(V4), UdpPeer::echo(V4));
    let node = Node::with(3, ForwarderLimits::default());
    node.open(22075, Protocol::Both, Settings::default());
    node.announce(22075, Transport::Tcp, tcp.address);
    node.announce(22075, Transport::Udp, udp.address);
    let mut connections = (0..10).map(|_| connect(V4, 22075)).collect::<Vec<_>>();
    connections.iter_mut().for_each(|connection| ping(connection, b"x"));
    let session = udp_client(V4, 22075);
    assert_eq!(ask(&session, b"x"), b"x");

    node.forwarder.close_listeners();
    node.forwarder.end_flows();
    node.wait_for_flows(0);
    connections.iter_mut().for_each(|connection| assert!(is_reset(connection)));
    assert_eq!(node.sample("harbor_connections_closed_total{reason=\"drained\"}"), 10);
    assert_eq!(node.sample("harbor_sessions_closed_total{reason=\"drained\"}"), 1);
    session.send(b"late").unwrap();
    dropped_while_draining(&node, 1);

    node.forwarder.end_flows();
    node.forwarder.reopen_listeners();
    node.wait_for("it listens again", |seen| seen.iter().all(|(_, seen)| seen.state == ListenerState::Bound));
    ping(&mut connect(V4, 22075), b"again");
    assert_eq!(ask(&session, b"again"), b"again");
}

#[test]
fn stopping_ends_every_connection_and_closes_every_port() {
    let backend = TcpPeer::echo(V4);
    let node = Node::start();
    node.tcp(22080, backend.address);
    let mut connection = connect(V4, 22080);
    ping(&mut connection, b"x");
    node.forwarder.stop();
    node.forwarder.stop();
    assert!(is_reset(&mut connection));
    assert!(!is_open(22080, Transport::Tcp));
    assert!(node.forwarder.export_sessions().is_empty());
}

/// A bug, for [`a_thread_that_fails_is_noticed`].
struct BrokenBinder;

impl Binder for BrokenBinder {
    fn bind(&self, _: IpAddr, _: u16, _: Transport) -> io::Result<OwnedFd> {
        panic!("a bug that a test has put here")
    }
}

#[test]
fn a_thread_that_fails_is_noticed() {
    let node = Node::with_binder(1, ForwarderLimits::default(), Arc::new(BrokenBinder));
    assert!(!node.forwarder.has_failed());
    let spec = ListenerSpec {
        service_instance_id: id(22095),
        pool: PoolName::new("default").unwrap(),
        port: 22095,
        protocol: Protocol::Tcp,
        settings: Settings::default(),
        version: 1,
    };
    let mut desired = DesiredState::default();
    desired.listeners.insert_mut(id(22095), Arc::new(spec));
    node.forwarder.apply(Arc::new(desired));
    eventually("the failure is noticed", || node.forwarder.has_failed().then_some(()));
    assert!(catch_unwind(AssertUnwindSafe(|| node.forwarder.stop())).is_err(), "whoever stops it is told");

    let node = Node::start();
    node.open(22096, Protocol::Tcp, Settings::default());
    node.break_clock();
    eventually("a worker's failure is noticed", || node.forwarder.has_failed().then_some(()));
    assert!(catch_unwind(AssertUnwindSafe(|| node.forwarder.stop())).is_err(), "whoever stops it is told");
    assert!(!is_open(22096, Transport::Tcp), "what it had is let go");
}

#[test]
fn the_latest_desired_state_wins_however_many_came_before() {
    let backend = TcpPeer::echo(V4);
    let node = Node::start();
    for round in 0..50 {
        let proxy_protocol = (round % 2 == 0).then_some(ProxyProtocol::V1);
        node.want(22090, Protocol::Tcp, Settings { proxy_protocol, ..Settings::default() });
    }
    node.announce(22090, Transport::Tcp, backend.address);
    ping(&mut connect(V4, 22090), b"no header");
    assert_eq!(node.observation(22090).unwrap().version, 50);
}
