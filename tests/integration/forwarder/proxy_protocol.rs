//! The PROXY protocol, to backends and from balancers.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Shutdown},
    sync::mpsc,
    time::Duration,
};

use harbor::{
    forwarder::proxy_protocol::{Ends, Header, Parsed, parse},
    model::{
        Protocol, Transport,
        balance::Balance,
        desired::ForwarderLimits,
        parameters::{ProxyProtocol, Settings},
    },
};

use super::node::Node;
use crate::support::{
    eventually::eventually,
    peer::{TcpPeer, UdpPeer, V4, V6, ask, connect, is_reset, ping, udp_client},
};

/// A backend that hands over all that it was sent.
fn collector() -> (TcpPeer, mpsc::Receiver<Vec<u8>>) {
    let (sent, received) = mpsc::sync_channel(8);
    let peer = TcpPeer::serving(V4, move |mut stream| {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        sent.send(bytes).map_err(std::io::Error::other)
    });
    (peer, received)
}

#[test]
fn the_header_comes_before_the_first_byte_of_a_stream() {
    fn check(node: &Node, received: &mpsc::Receiver<Vec<u8>>, address: IpAddr, port: u16) {
        let mut client = connect(address, port);
        let ends = Ends { source: client.local_addr().unwrap(), destination: client.peer_addr().unwrap() };
        client.write_all(b"payload").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let bytes = received.recv_timeout(Duration::from_secs(20)).unwrap();
        let Parsed::Whole(Header::Proxied(told), length) = parse(&bytes, Transport::Tcp) else {
            panic!("no header in {bytes:?}");
        };
        assert_eq!((told, &bytes[length..]), (ends, &b"payload"[..]));
        node.wait_for_flows(0);
    }
    let (backend, received) = collector();
    let node = Node::start();
    for (port, proxy_protocol) in [(21700, ProxyProtocol::V1), (21701, ProxyProtocol::V2)] {
        let settings = Settings { proxy_protocol: Some(proxy_protocol), ..Settings::default() };
        node.open(port, Protocol::Tcp, settings);
        node.announce(port, Transport::Tcp, backend.address);
        check(&node, &received, V4, port);
        check(&node, &received, V6, port);
    }
}

#[test]
fn the_header_comes_with_the_first_datagram_of_a_session_and_with_no_other() {
    let backend = UdpPeer::echo(V4);
    let node = Node::start();
    node.open(21710, Protocol::Udp, Settings { proxy_protocol: Some(ProxyProtocol::V2), ..Settings::default() });
    node.announce(21710, Transport::Udp, backend.address);
    for address in [V4, V6] {
        let client = udp_client(address, 21710);
        let ends = Ends { source: client.local_addr().unwrap(), destination: client.peer_addr().unwrap() };
        let first = ask(&client, b"first");
        assert_eq!(first, [ends.v2(Transport::Udp).as_slice(), b"first"].concat());
        assert_eq!(ask(&client, b"second"), b"second");
    }
}

#[test]
fn a_session_whose_first_datagram_cannot_be_sent_leaves_no_room_for_a_forged_header() {
    let backend = UdpPeer::echo(V4);
    let node = Node::start();
    node.open(21711, Protocol::Udp, Settings { proxy_protocol: Some(ProxyProtocol::V2), ..Settings::default() });
    node.announce(21711, Transport::Udp, backend.address);
    let client = udp_client(V4, 21711);
    let ends = Ends { source: client.local_addr().unwrap(), destination: client.peer_addr().unwrap() };
    // With the header before it, it is too large to be sent.
    client.send(&[0; 65_507]).unwrap();
    let forged = Ends { source: "6.6.6.6:6".parse().unwrap(), ..ends }.v2(Transport::Udp);
    assert_eq!(ask(&client, &forged), [ends.v2(Transport::Udp), forged].concat());
    assert_eq!(node.sample("harbor_sessions_closed_total{reason=\"not_begun\"}"), 1);
}

fn behind_a_balancer() -> ForwarderLimits {
    ForwarderLimits { proxy_from: vec!["127.0.0.1/32".parse().unwrap()], ..ForwarderLimits::default() }
}

#[test]
fn a_balancers_header_is_required_and_believed_and_another_clients_is_data() {
    let (backend, received) = collector();
    let node = Node::with(2, behind_a_balancer());
    let allow = vec!["192.0.2.0/24".parse().unwrap(), "::1/128".parse().unwrap()];
    let settings = Settings { proxy_protocol: Some(ProxyProtocol::V1), allow, ..Settings::default() };
    node.open(21720, Protocol::Tcp, settings);
    node.announce(21720, Transport::Tcp, backend.address);
    let ends = Ends { source: "192.0.2.7:4000".parse().unwrap(), destination: "198.51.100.1:443".parse().unwrap() };
    let other = Ends { source: "203.0.113.7:4000".parse().unwrap(), ..ends };
    let told = || String::from_utf8(received.recv_timeout(Duration::from_secs(20)).unwrap()).unwrap();

    for header in [ends.v1(), ends.v2(Transport::Tcp)] {
        let mut balancer = connect(V4, 21720);
        // In pieces, as a slow network would bring it.
        for byte in &header {
            balancer.write_all(&[*byte]).unwrap();
        }
        balancer.write_all(b"data").unwrap();
        balancer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(told(), "PROXY TCP4 192.0.2.7 198.51.100.1 4000 443\r\ndata");
    }

    let mut direct = connect(V6, 21720);
    let from = direct.local_addr().unwrap().port();
    direct.write_all(&ends.v1()).unwrap();
    direct.shutdown(Shutdown::Write).unwrap();
    let expected = format!("PROXY TCP6 ::1 ::1 {from} 21720\r\nPROXY TCP4 192.0.2.7 198.51.100.1 4000 443\r\n");
    assert_eq!(told(), expected);

    let mut not_allowed = connect(V4, 21720);
    not_allowed.write_all(&other.v1()).unwrap();
    assert!(is_reset(&mut not_allowed));
    let mut none = connect(V4, 21720);
    none.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(is_reset(&mut none));
    let mut cut_off = connect(V4, 21720);
    cut_off.write_all(b"PROXY TCP4 192.0.2.7").unwrap();
    cut_off.shutdown(Shutdown::Write).unwrap();
    assert!(is_reset(&mut cut_off));
    assert_eq!(node.sample("harbor_connections_closed_total{reason=\"not_allowed\"}"), 1);
    assert_eq!(node.sample("harbor_connections_closed_total{reason=\"bad_header\"}"), 2);
    assert_eq!(backend.accepted(), 3);
}

#[test]
fn a_balancer_that_sends_no_header_in_time_is_reset() {
    let backend = TcpPeer::echo(V4);
    let node = Node::with(2, behind_a_balancer());
    node.tcp(21730, backend.address);
    let mut silent = connect(V4, 21730);
    node.wait_for_flows(1);
    node.advance(Duration::from_secs(6));
    assert!(is_reset(&mut silent));
    assert_eq!((node.forwarder.open_flows(), backend.accepted()), (0, 0));
}

#[test]
fn clients_behind_a_balancer_are_told_apart_by_source_hash() {
    let backends = [(); 4].map(|()| TcpPeer::echo(V4));
    let node = Node::with(2, behind_a_balancer());
    node.open(21740, Protocol::Tcp, Settings { balance: Some(Balance::SourceHash), ..Settings::default() });
    backends.iter().for_each(|backend| node.announce(21740, Transport::Tcp, backend.address));
    for client in 0..32 {
        let source = (IpAddr::from([192, 0, 2, client]), 4000).into();
        let ends = Ends { source, destination: "198.51.100.1:443".parse().unwrap() };
        let mut balancer = connect(V4, 21740);
        balancer.write_all(&ends.v2(Transport::Tcp)).unwrap();
        ping(&mut balancer, b"x");
    }
    let busy = backends.iter().filter(|backend| backend.accepted() > 0).count();
    assert!(busy > 1, "not all clients are one");
}

#[test]
fn a_balancers_header_opens_a_session_and_is_taken_off() {
    let backend = UdpPeer::echo(V4);
    let node = Node::with(2, behind_a_balancer());
    let settings = Settings { allow: vec!["192.0.2.0/24".parse().unwrap()], ..Settings::default() };
    node.open(21750, Protocol::Udp, settings);
    node.announce(21750, Transport::Udp, backend.address);
    let ends = Ends { source: "192.0.2.7:4000".parse().unwrap(), destination: "198.51.100.1:53".parse().unwrap() };
    let balancer = udp_client(V4, 21750);
    balancer.send(b"no header").unwrap();
    eventually("it is dropped", || {
        (node.sample("harbor_datagrams_dropped_total{reason=\"bad_header\"}") == 1).then_some(())
    });
    assert_eq!(ask(&balancer, &[ends.v2(Transport::Udp).as_slice(), b"question"].concat()), b"question");
    assert_eq!(ask(&balancer, b"another"), b"another");
}
