//! Clients that may not come in, and may not stay: blocked networks, a suspended service instance.

use std::{
    io::Write as _,
    net::{IpAddr, TcpStream, UdpSocket},
    sync::Arc,
    time::Instant,
};

use harbor::{
    forwarder::proxy_protocol::Ends,
    model::{
        Protocol, Timestamp, Transport,
        desired::ForwarderLimits,
        networks,
        parameters::Settings,
        restraint::{Restraint, Restraints},
    },
};

use super::node::{Node, id};
use crate::support::{
    eventually::eventually,
    peer::{TcpPeer, UdpPeer, V4, V6, ask, connect, is_reset, is_turned_away, ping, udp_client},
};

/// A port for both transports, with an echo behind each.
fn open(node: &Node, port: u16, settings: Settings) -> (TcpPeer, UdpPeer) {
    let backends = (TcpPeer::echo(V4), UdpPeer::echo(V4));
    node.open(port, Protocol::Both, settings);
    node.announce(port, Transport::Tcp, backends.0.address);
    node.announce(port, Transport::Udp, backends.1.address);
    backends
}

/// A flow of each transport that has carried something.
fn flows(address: IpAddr, port: u16) -> (TcpStream, UdpSocket) {
    let (mut stream, socket) = (connect(address, port), udp_client(address, port));
    ping(&mut stream, b"hello");
    assert_eq!(ask(&socket, b"hello"), b"hello");
    (stream, socket)
}

fn block(node: &Node, blocked: &[&str]) {
    let blocked = blocked.iter().map(|network| networks::parse(network).unwrap()).collect();
    node.limit(|limits| limits.blocked = Arc::new(blocked));
}

fn count(node: &Node, what: &str, reason: &str) -> u64 {
    node.sample(&format!("harbor_{what}_total{{reason=\"{reason}\"}}"))
}

#[test]
fn clients_of_a_blocked_network_are_put_out_and_turned_away_and_others_notice_nothing() {
    let node = Node::start();
    let (tcp, udp) = open(&node, 21760, Settings::default());
    let (mut blocked, silenced) = flows(V4, 21760);
    let (mut other, other_socket) = flows(V6, 21760);
    block(&node, &["10.0.0.0/8", "127.0.0.0/8"]);
    assert!(is_reset(&mut blocked));
    eventually("the session has ended", || (count(&node, "sessions_closed", "blocked") == 1).then_some(()));
    assert_eq!(count(&node, "connections_closed", "blocked"), 1);

    let (accepted, received) = (tcp.accepted(), udp.received().len());
    assert!(is_turned_away(V4, 21760));
    silenced.send(b"again").unwrap();
    eventually("it is dropped", || (count(&node, "datagrams_dropped", "blocked") == 1).then_some(()));
    assert_eq!(count(&node, "connections_refused", "blocked"), 1);
    assert_eq!((tcp.accepted(), udp.received().len()), (accepted, received), "nothing was spent on them");

    ping(&mut other, b"still here");
    assert_eq!(ask(&other_socket, b"still here"), b"still here");
    assert_eq!(node.forwarder.open_flows(), 2);
    block(&node, &["10.0.0.0/8"]);
    flows(V4, 21760);
    assert_eq!(ask(&silenced, b"back"), b"back");
}

#[test]
fn a_thousand_networks_are_looked_through_in_no_time() {
    let node = Node::start();
    let _backends = open(&node, 21761, Settings::default());
    let blocked = (0..1_024_u32).map(|number| format!("10.{}.{}.0/24", number / 256, number % 256));
    block(&node, &blocked.collect::<Vec<_>>().iter().map(String::as_str).collect::<Vec<_>>());
    let limits = node.desired().limits;
    let began = Instant::now();
    let found =
        (0..1_000_000_u32).filter(|number| limits.blocked.contains(IpAddr::from((10 << 24 | number).to_be_bytes())));
    assert_eq!(found.count(), 1_024 * 256);
    assert!(began.elapsed().as_secs() < 2, "{:?} for a million, unoptimised", began.elapsed());
    flows(V4, 21761);
}

#[test]
fn behind_a_balancer_it_counts_whom_the_header_names() {
    let proxy_from = vec!["127.0.0.1/32".parse().unwrap()];
    let node = Node::with(2, ForwarderLimits { proxy_from, ..ForwarderLimits::default() });
    let _backends = open(&node, 21763, Settings::default());
    let ends =
        |source: &str| Ends { source: source.parse().unwrap(), destination: "[2001:db8::1]:443".parse().unwrap() };
    let v4 = |source: &str| Ends { destination: "198.51.100.1:443".parse().unwrap(), ..ends(source) };
    let begin = |ends: Ends| {
        let (mut stream, socket) = (connect(V4, 21763), udp_client(V4, 21763));
        stream.write_all(&ends.v2(Transport::Tcp)).unwrap();
        ping(&mut stream, b"hello");
        assert_eq!(ask(&socket, &[ends.v2(Transport::Udp).as_slice(), b"hello"].concat()), b"hello");
        (stream, socket)
    };
    let (mut blocked, _socket) = begin(v4("192.0.2.7:4000"));
    let (mut blocked_v6, _socket_v6) = begin(ends("[2001:db8:7::7]:4000"));
    let (mut other, other_socket) = begin(v4("203.0.113.7:4000"));
    let mut unnamed = connect(V4, 21763);
    node.wait_for_flows(7);
    // The balancer's own address is nobody's.
    block(&node, &["127.0.0.1", "192.0.2.0/24", "2001:db8:7::7"]);
    assert!(is_reset(&mut blocked) && is_reset(&mut blocked_v6));
    eventually("the sessions have ended", || (count(&node, "sessions_closed", "blocked") == 2).then_some(()));
    ping(&mut other, b"still here");
    assert_eq!(ask(&other_socket, b"still here"), b"still here");
    unnamed.write_all(&v4("203.0.113.8:4000").v1()).unwrap();
    ping(&mut unnamed, b"hello");

    let mut named = connect(V4, 21763);
    named.write_all(&v4("192.0.2.8:4000").v1()).unwrap();
    assert!(is_reset(&mut named));
    assert_eq!(count(&node, "connections_closed", "blocked"), 3);
    udp_client(V4, 21763).send(&v4("192.0.2.8:4000").v2(Transport::Udp)).unwrap();
    eventually("it is dropped", || (count(&node, "datagrams_dropped", "blocked") == 1).then_some(()));
}

#[test]
fn a_suspended_port_closes_with_what_is_open_and_opens_again() {
    let node = Node::start();
    let _backends = open(&node, 21764, Settings::default());
    let (mut stream, _socket) = flows(V4, 21764);
    node.change(|desired| {
        let restraint = Restraint { why: String::new(), by: "root".into(), at: Timestamp(1) };
        let suspended = Arc::new([(id(21764), restraint)].into());
        desired.restraints = Arc::new(Restraints { suspended, ..Restraints::default() });
        desired.listeners.remove_mut(&id(21764));
    });
    assert!(is_reset(&mut stream));
    eventually("the session has ended", || (count(&node, "sessions_closed", "suspended") == 1).then_some(()));
    assert_eq!(count(&node, "connections_closed", "suspended"), 1);
    assert!(TcpStream::connect((V4, 21764)).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused));
    node.change(|desired| desired.restraints = Arc::default());
    node.open(21764, Protocol::Both, Settings::default());
    flows(V4, 21764);
    node.remove(21764);
    eventually("the session has ended", || (count(&node, "sessions_closed", "removed") == 1).then_some(()));
}
