//! UDP sessions.

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    time::Duration,
};

use harbor::model::{
    Protocol, Transport,
    announcement::AnnouncedState,
    balance::Balance,
    desired::{ForwarderLimits, UNANSWERED_SESSION_TIMEOUT},
    parameters::Settings,
};

use quinn_udp::{Transmit, UdpSockRef, UdpSocketState};

use super::node::{Node, id};
use crate::support::{
    eventually::eventually,
    peer::{Nobody, UdpPeer, V4, V6, ask, hear, udp_client},
};

#[test]
fn datagrams_of_every_size_go_both_ways_whole() {
    for (address, port) in [(V4, 21500), (V6, 21501)] {
        let backend = UdpPeer::echo(address);
        let node = Node::start();
        node.udp(port, backend.address);
        let client = udp_client(address, port);
        // The largest that IPv4 has; IPv6 would take 20 more.
        for length in [0, 1, 2, 511, 1200, 1472, 1473, 8192, 9000, 32768, 65506, 65507] {
            let datagram = (0..length).map(|at| (at % 251) as u8).collect::<Vec<_>>();
            assert!(ask(&client, &datagram) == datagram, "{address} {length}");
        }
        assert_eq!(node.sample("harbor_sessions_opened_total"), 1);
        // It counts an answer after it has sent it.
        eventually("twelve answers are counted", || {
            (node.sample("harbor_datagrams_total{direction=\"to_client\"}") == 12).then_some(())
        });
    }
}

#[test]
fn a_burst_of_datagrams_keeps_its_boundaries() {
    let backend = UdpPeer::echo(V4);
    let node = Node::start();
    node.udp(21510, backend.address);
    let client = udp_client(V4, 21510);
    assert_eq!(ask(&client, b"first"), b"first");
    for number in 0..100_u8 {
        client.send(&vec![number; 100 + usize::from(number)]).unwrap();
    }
    for number in 0..100_u8 {
        assert_eq!(hear(&client), vec![number; 100 + usize::from(number)]);
    }
}

#[test]
fn datagrams_that_the_kernel_has_joined_are_taken_apart() {
    let backend = UdpPeer::echo(V4);
    let node = Node::start();
    node.udp(21515, backend.address);
    let client = udp_client(V4, 21515);
    assert_eq!(ask(&client, b"first"), b"first");
    // Of another socket, since it lets the kernel join what that one receives.
    let state = UdpSocketState::new(UdpSockRef::from(&UdpSocket::bind((V4, 0)).unwrap())).unwrap();
    let contents = (0..=250_u8).cycle().take(4321).collect::<Vec<_>>();
    let destination = client.peer_addr().unwrap();
    let train = Transmit { destination, ecn: None, contents: &contents, segment_size: Some(1000), src_ip: None };
    state.try_send(UdpSockRef::from(&client), &train).unwrap();
    for part in contents.chunks(1000) {
        assert_eq!(hear(&client), part);
    }
    let received = backend.received().into_iter().map(|(_, datagram)| datagram.len()).collect::<Vec<_>>();
    assert_eq!(received, [5, 1000, 1000, 1000, 1000, 321]);
}

#[test]
fn answers_come_from_the_address_that_was_asked() {
    let backend = UdpPeer::echo(V4);
    let node = Node::start();
    node.udp(21520, backend.address);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    for last in [1, 2, 77] {
        let asked = (IpAddr::from(Ipv4Addr::new(127, 0, 0, last)), 21520).into();
        client.send_to(b"who are you", asked).unwrap();
        let (_, from) = client.recv_from(&mut [0; 64]).unwrap();
        assert_eq!(from, asked);
    }
    assert_eq!(node.forwarder.open_flows(), 3, "one for each address that the client talks to");
}

#[test]
fn each_client_has_its_session_and_the_first_announced_backend_has_them_all() {
    let (primary, standby) = (UdpPeer::named("primary"), UdpPeer::named("standby"));
    let node = Node::start();
    node.udp(21530, primary.address);
    node.announce(21530, Transport::Udp, standby.address);
    let clients = (0..20).map(|_| udp_client(V4, 21530)).collect::<Vec<_>>();
    for _ in 0..3 {
        clients.iter().for_each(|client| assert_eq!(ask(client, b"?"), b"primary"));
    }
    assert_eq!((node.forwarder.open_flows(), node.sample("harbor_sessions_opened_total")), (20, 20));
    let mut sources = primary.received().into_iter().map(|(source, _)| source).collect::<Vec<_>>();
    sources.sort_unstable();
    sources.dedup();
    assert_eq!(sources.len(), 20, "the backend tells clients apart");

    // The primary leaves: the next datagram goes to the one that stood by.
    node.withdraw(21530, Transport::Udp, primary.address);
    node.wait_for_flows(0);
    assert_eq!(ask(&clients[0], b"?"), b"standby");
    assert_eq!(node.sample("harbor_sessions_closed_total{reason=\"backend_left\"}"), 20);
}

#[test]
fn round_robin_gives_sessions_to_backends_in_turn() {
    let backends = [(); 3].map(|()| UdpPeer::echo(V4));
    let node = Node::start();
    node.open(21540, Protocol::Udp, Settings { balance: Some(Balance::RoundRobin), ..Settings::default() });
    backends.iter().for_each(|backend| node.announce(21540, Transport::Udp, backend.address));
    let clients = (0..9).map(|_| udp_client(V4, 21540)).collect::<Vec<_>>();
    clients.iter().for_each(|client| assert_eq!(ask(client, b"x"), b"x"));
    clients.iter().for_each(|client| assert_eq!(ask(client, b"x"), b"x"));
    assert_eq!(backends.each_ref().map(|backend| backend.received().len()), [6, 6, 6]);
}

#[test]
fn sessions_end_when_idle_and_sooner_when_never_answered() {
    let (mute, echo) = (UdpPeer::mute(), UdpPeer::echo(V4));
    let node = Node::start();
    node.udp(21550, echo.address);
    node.udp(21551, mute.address);
    let (answered, unanswered) = (udp_client(V4, 21550), udp_client(V4, 21551));
    assert_eq!(ask(&answered, b"x"), b"x");
    unanswered.send(b"x").unwrap();
    node.wait_for_flows(2);
    node.advance(UNANSWERED_SESSION_TIMEOUT);
    node.wait_for_flows(1);
    assert_eq!(node.sample("harbor_sessions_closed_total{reason=\"unanswered\"}"), 1);
    node.advance(Duration::from_secs(40));
    assert_eq!(ask(&answered, b"x"), b"x");
    node.advance(Duration::from_secs(40));
    assert_eq!(node.forwarder.open_flows(), 1);
    node.limit(|limits| limits.idle_timeout_udp = Duration::from_secs(10));
    node.advance(Duration::ZERO);
    node.wait_for_flows(0);
    assert_eq!(node.sample("harbor_sessions_closed_total{reason=\"idle\"}"), 1);
    assert_eq!(ask(&answered, b"a new one"), b"a new one");
}

#[test]
fn a_full_port_gives_up_unanswered_sessions_first_and_drops_the_rest() {
    let backend = UdpPeer::answering(V4, |datagram| (datagram != b"quiet").then(|| datagram.to_vec()));
    let node = Node::start();
    node.open(21560, Protocol::Udp, Settings { max_connections: Some(3), ..Settings::default() });
    node.announce(21560, Transport::Udp, backend.address);
    let clients = (0..5).map(|_| udp_client(V4, 21560)).collect::<Vec<_>>();
    assert_eq!(ask(&clients[0], b"x"), b"x");
    clients[1].send(b"quiet").unwrap();
    clients[2].send(b"quiet").unwrap();
    node.wait_for_flows(3);
    // The oldest without an answer makes room, then the other one.
    assert_eq!(ask(&clients[3], b"x"), b"x");
    assert_eq!(ask(&clients[4], b"x"), b"x");
    assert_eq!(node.sample("harbor_sessions_closed_total{reason=\"displaced\"}"), 2);
    // Now all have answers: nobody makes room.
    clients[1].send(b"too many").unwrap();
    eventually("the datagram is dropped", || {
        (node.sample("harbor_datagrams_dropped_total{reason=\"port_limit\"}") == 1).then_some(())
    });
    assert_eq!(node.forwarder.open_flows(), 3);
    for client in [&clients[0], &clients[3], &clients[4]] {
        assert_eq!(ask(client, b"still"), b"still");
    }
}

#[test]
fn one_source_gets_no_more_sessions_than_it_leaves_to_others() {
    let backend = UdpPeer::echo(V4);
    let node = Node::with(2, ForwarderLimits { max_udp_sessions_per_port: 200, ..ForwarderLimits::default() });
    node.udp(21565, backend.address);
    let open = |last: u8| {
        let client = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, last), 0)).unwrap();
        client.connect((V4, 21565)).unwrap();
        client.send(b"x").unwrap();
        client
    };
    let turned_away = || node.sample("harbor_datagrams_dropped_total{reason=\"source_limit\"}");
    let check = |last: u8, tries: u64, sessions: u64| {
        let before = (node.forwarder.open_flows(), turned_away());
        let clients = (0..tries).map(|_| open(last)).collect::<Vec<_>>();
        eventually("all datagrams are looked at", || {
            (node.forwarder.open_flows() - before.0 + turned_away() - before.1 == tries).then_some(())
        });
        assert_eq!(node.forwarder.open_flows() - before.0, sessions, "sessions of 127.0.0.{last}");
        clients
    };
    // The first leaves as much as it takes, the second half of that; then each may have a few.
    let first = check(1, 120, 100);
    let _second = check(2, 60, 50);
    let _third = check(3, 40, 32);
    assert_eq!(turned_away(), 20 + 10 + 8);
    // Its first answer waits there.
    assert_eq!((hear(&first[0]), ask(&first[0], b"on")), (b"x".to_vec(), b"on".to_vec()));
}

#[test]
fn datagrams_without_a_backend_or_from_clients_outside_allow_cost_nothing() {
    let node = Node::start();
    node.open(21570, Protocol::Udp, Settings::default());
    let client = udp_client(V4, 21570);
    client.send(b"x").unwrap();
    let dropped = |reason| {
        let sample = format!("harbor_datagrams_dropped_total{{reason=\"{reason}\"}}");
        eventually(&sample, || (node.sample(&sample) > 0).then_some(()));
    };
    dropped("no_backend");
    let backend = UdpPeer::echo(V4);
    node.announce(21570, Transport::Udp, backend.address);
    let allow = vec!["::1/128".parse().unwrap()];
    node.open(21570, Protocol::Udp, Settings { allow, ..Settings::default() });
    client.send(b"x").unwrap();
    dropped("not_allowed");
    assert_eq!(ask(&udp_client(V6, 21570), b"let in"), b"let in");
    assert_eq!(backend.received().len(), 1);
    assert_eq!(node.sample("harbor_sessions_opened_total"), 1);
}

#[test]
fn a_refusing_backend_is_put_aside_and_its_clients_move() {
    let gone = Nobody::udp();
    let alive = UdpPeer::named("alive");
    let node = Node::start();
    node.udp(21580, gone.address);
    node.announce(21580, Transport::Udp, alive.address);
    let client = udp_client(V4, 21580);
    client.send(b"lost").unwrap();
    eventually("the refusal is seen", || {
        (node.sample("harbor_sessions_closed_total{reason=\"backend_gone\"}") == 1).then_some(())
    });
    assert_eq!(ask(&client, b"?"), b"alive");
    assert_eq!(ask(&udp_client(V4, 21580), b"?"), b"alive", "nobody else runs into it");
}

#[test]
fn one_failed_datagram_moves_all_sessions_of_the_backend() {
    let (alive, dying) = (UdpPeer::named("alive"), UdpPeer::named("dying"));
    let node = Node::with(4, ForwarderLimits::default());
    node.udp(21585, dying.address);
    node.announce(21585, Transport::Udp, alive.address);
    let clients = [(); 8].map(|()| udp_client(V4, 21585));
    for client in &clients {
        assert_eq!(ask(client, b"?"), b"dying");
    }
    let gone = dying.into_nobody();
    clients[0].send(b"lost").unwrap();
    eventually("the refusal is seen", || {
        (node.sample("harbor_sessions_closed_total{reason=\"backend_gone\"}") == 1).then_some(())
    });
    for client in &clients {
        assert_eq!(ask(client, b"?"), b"alive", "no other client loses any");
    }
    assert_eq!(node.sample("harbor_sessions_closed_total{reason=\"backend_gone\"}"), 8);
    // The last one left is tried again and again.
    node.withdraw(21585, Transport::Udp, alive.address);
    for refused in 9..=10 {
        clients[0].send(b"?").unwrap();
        eventually("the last one left has refused again", || {
            clients[0].send(b"?").unwrap();
            (node.sample("harbor_sessions_closed_total{reason=\"backend_gone\"}") >= refused).then_some(())
        });
    }
    drop(gone);
}

#[test]
fn what_becomes_of_a_backend_becomes_of_its_sessions() {
    let backend = UdpPeer::echo(V4);
    let node = Node::start();
    node.udp(21590, backend.address);
    let client = udp_client(V4, 21590);
    assert_eq!(ask(&client, b"x"), b"x");
    node.announce_state(21590, Transport::Udp, backend.address, AnnouncedState::Draining);
    node.advance(Duration::from_secs(29));
    assert_eq!(ask(&client, b"x"), b"x");
    node.advance(Duration::from_secs(2));
    node.wait_for_flows(0);
    assert_eq!(node.sample("harbor_sessions_closed_total{reason=\"drained\"}"), 1);
    node.announce(21590, Transport::Udp, backend.address);
    assert_eq!(ask(&client, b"x"), b"x");
    node.revoke_all();
    node.wait_for_flows(0);
    assert_eq!(node.sample("harbor_sessions_closed_total{reason=\"revoked\"}"), 1);
}

#[test]
fn sessions_can_be_exported_with_their_sockets() {
    let backend = UdpPeer::named("answer");
    let node = Node::with(3, ForwarderLimits::default());
    for port in 21600..21606 {
        node.udp(port, backend.address);
        assert_eq!(ask(&udp_client(V4, port), b"?"), b"answer");
    }
    let mut exported = node.forwarder.export_sessions();
    exported.sort_by(|a, b| a.service_instance_id.cmp(&b.service_instance_id));
    assert_eq!(exported.len(), 6);
    for (session, port) in exported.into_iter().zip(21600..) {
        assert_eq!((session.service_instance_id, session.backend), (id(port), backend.address));
        assert_eq!(session.local.map(|local| local.to_canonical()), Some(V4));
        // The descriptor is the very socket: what the backend says to it arrives here.
        let upstream = UdpSocket::from(session.upstream);
        assert_eq!(upstream.peer_addr().unwrap(), backend.address);
    }
}
