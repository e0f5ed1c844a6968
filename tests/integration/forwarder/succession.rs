//! A forwarder that goes on where another one stopped, both in one process.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::Arc,
};

use harbor::{
    forwarder::{InheritedSockets, PortSockets, Spread},
    model::{Protocol, Transport, desired::ForwarderLimits, parameters::Settings},
};

use super::node::Node;
use crate::support::{
    eventually::{PATIENCE, eventually},
    peer::{TcpPeer, UdpPeer, V4, ask, connect, hear, ping, read, udp_client},
};

/// TCP and UDP on one port, with a backend each.
fn both(node: &Node, port: u16, tcp: SocketAddr, udp: SocketAddr) {
    node.open(port, Protocol::Both, Settings::default());
    node.announce(port, Transport::Tcp, tcp);
    node.announce(port, Transport::Udp, udp);
}

/// Where the backend has seen datagrams come from.
fn sources(backend: &UdpPeer) -> Vec<SocketAddr> {
    let mut sources = backend.received().into_iter().map(|(source, _)| source).collect::<Vec<_>>();
    sources.sort();
    sources.dedup();
    sources
}

/// Puts a node with the sockets and sessions of `old` in its place.
fn succeed(old: &Node, open: impl Fn(&Node)) -> Node {
    let new = Node::successor(2, old.forwarder.export_sockets());
    open(&new);
    old.forwarder.hold();
    new.forwarder.import_sessions(old.forwarder.export_sessions());
    new.forwarder.go_on();
    old.forwarder.let_go();
    new
}

#[test]
fn what_waits_in_the_kernel_and_every_session_goes_on_in_the_successor() {
    let port = 21700;
    let (tcp, udp) = (TcpPeer::echo(V4), UdpPeer::echo(V4));
    let old = Node::start();
    both(&old, port, tcp.address, udp.address);
    let mut long = connect(V4, port);
    ping(&mut long, b"before");
    let session = udp_client(V4, port);
    assert_eq!(ask(&session, b"before"), b"before");

    let new = Node::successor(2, old.forwarder.export_sockets());
    both(&new, port, tcp.address, udp.address);
    old.forwarder.hold();
    // Nobody serves: all of this waits in the kernel, also what the backend says.
    let mut queued = (0..20).map(|_| connect(V4, port)).collect::<Vec<_>>();
    queued.iter_mut().for_each(|stream| stream.write_all(b"queued").unwrap());
    let strangers = (0..20).map(|_| udp_client(V4, port)).collect::<Vec<_>>();
    strangers.iter().for_each(|client| assert_eq!(client.send(b"first").unwrap(), 5));
    (0..20_u8).for_each(|number| assert_eq!(session.send(&[number]).unwrap(), 1));
    UdpSocket::from(old.forwarder.export_sessions().remove(0).upstream).send(b"heard late").unwrap();
    eventually("the backend has answered", || (udp.received().len() == 2).then_some(()));

    let sessions = old.forwarder.export_sessions();
    assert_eq!(sessions.len(), 1);
    new.forwarder.import_sessions(sessions);
    assert_eq!((new.forwarder.open_flows(), tcp.accepted()), (1, 1));
    new.forwarder.go_on();
    old.forwarder.let_go();

    assert_eq!(hear(&session), b"heard late");
    (0..20_u8).for_each(|number| assert_eq!(hear(&session), [number]));
    strangers.iter().for_each(|client| assert_eq!(hear(client), b"first"));
    queued.iter_mut().for_each(|stream| assert_eq!(read(stream, 6), b"queued"));
    // One source for the session, one for each stranger; and the long connection ends where it began.
    assert_eq!((sources(&udp).len(), tcp.accepted()), (21, 21));
    ping(&mut long, b"after");
    assert_eq!((old.forwarder.open_flows(), new.forwarder.open_flows()), (1, 41));
    assert_eq!(old.sample("harbor_sessions_closed_total{reason=\"handed_over\"}"), 1);
    assert_eq!(new.sample("harbor_sessions_opened_total"), 21);

    // The predecessor has nothing of the port any more: it is free as soon as the successor closes it.
    new.remove(port);
    drop(new);
    UdpSocket::bind(("::", port)).expect("nobody has the port");
}

#[test]
fn whoever_held_its_ports_goes_on_when_nobody_took_them_over() {
    let port = 21701;
    let (tcp, udp) = (TcpPeer::echo(V4), UdpPeer::echo(V4));
    let old = Node::start();
    both(&old, port, tcp.address, udp.address);
    let session = udp_client(V4, port);
    assert_eq!(ask(&session, b"before"), b"before");
    for round in 0..5_u8 {
        let copies = old.forwarder.export_sockets();
        if round == 0 {
            // It was not held by then: nothing has changed.
            old.forwarder.go_on();
            assert_eq!(ask(&session, b"unheld"), b"unheld");
        }
        old.forwarder.hold();
        let mut queued = connect(V4, port);
        queued.write_all(&[round]).unwrap();
        session.send(&[round]).unwrap();
        drop((copies, old.forwarder.export_sessions()));
        old.forwarder.go_on();
        assert_eq!(hear(&session), [round]);
        assert_eq!(read(&mut queued, 1), [round]);
    }
    assert_eq!((sources(&udp).len(), old.sample("harbor_sessions_opened_total")), (1, 1));
    // What was asked for meanwhile is done afterwards.
    old.open(port + 1, Protocol::Tcp, Settings::default());
}

#[test]
fn a_spread_port_stays_spread_and_its_sessions_stay_where_their_datagrams_arrive() {
    let port = 21705;
    let udp = UdpPeer::echo(V4);
    let spreads = vec![(port, Spread::new(2, 0x1234_5678))];
    let binder = InheritedSockets::new(PortSockets { sockets: Vec::new(), spreads });
    let mut old = Node::with_binder(2, ForwarderLimits::default(), Arc::new(binder));
    old.udp(port, udp.address);
    let clients = (0..40).map(|_| udp_client(V4, port)).collect::<Vec<_>>();
    let ask_all = |text: &[u8]| clients.iter().for_each(|client| assert_eq!(ask(client, text), text));
    ask_all(b"before");
    for _ in 0..3 {
        old = succeed(&old, |new| new.udp(port, udp.address));
        ask_all(b"after");
        assert_eq!((sources(&udp).len(), old.forwarder.open_flows()), (40, 40));
    }
}

#[test]
fn a_session_whose_backend_the_successor_does_not_know_ends_and_the_client_gets_another() {
    let port = 21706;
    let (gone, there) = (UdpPeer::named("gone"), UdpPeer::named("there"));
    let old = Node::start();
    old.udp(port, gone.address);
    let client = udp_client(V4, port);
    assert_eq!(ask(&client, b"?"), b"gone");
    let new = succeed(&old, |new| new.udp(port, there.address));
    assert_eq!(new.forwarder.open_flows(), 0);
    assert_eq!(ask(&client, b"?"), b"there");
}

#[test]
fn sockets_of_ports_that_the_successor_does_not_want_are_closed_when_it_says_so() {
    let old = Node::start();
    old.open(21710, Protocol::Both, Settings::default());
    let sockets = InheritedSockets::new(old.forwarder.export_sockets());
    old.forwarder.let_go();
    // Still bound, by nobody who would answer: a connection waits.
    let mut queued = TcpStream::connect((V4, 21710)).unwrap();
    queued.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rest = sockets.close_rest().into_iter().map(|(transport, address)| (transport, address.port()));
    let first = rest.next().expect("two are left");
    assert_eq!([first, rest.next().expect("one is left")].map(|(_, port)| port), [21710, 21710]);
    assert!(queued.read(&mut [0]).is_err(), "it was reset");
}
