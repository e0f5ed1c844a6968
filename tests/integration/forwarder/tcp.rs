//! TCP connections.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use harbor::model::{
    Protocol, Transport, announcement::AnnouncedState, balance::Balance, desired::ForwarderLimits, parameters::Settings,
};

use super::node::Node;
use crate::support::{
    eventually::eventually,
    peer::{Nobody, TcpPeer, V4, V6, connect, is_reset, is_turned_away, ping, read},
};

/// What each side sends in the tests of bulk.
const BULK: usize = 16 << 20;

/// Bytes that no shift or swap leaves unchanged.
fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}

#[test]
fn sixteen_mebibytes_each_way_arrive_whole_and_the_client_may_say_its_last_first() {
    for (address, port) in [(V4, 21000), (V6, 21001)] {
        let (up, down) = (pattern(BULK, 1), Arc::new(pattern(BULK, 2)));
        let (sent, received) = mpsc::sync_channel(1);
        let backend = TcpPeer::serving(address, {
            let down = Arc::clone(&down);
            move |mut stream| {
                let mut writer = stream.try_clone()?;
                std::thread::scope(|scope| {
                    scope.spawn(|| writer.write_all(&down));
                    let mut bytes = Vec::new();
                    stream.read_to_end(&mut bytes)?;
                    sent.send(bytes).map_err(io::Error::other)
                })?;
                // Only now, after the client's end.
                stream.write_all(b"bye")?;
                stream.shutdown(Shutdown::Write)
            }
        });
        let node = Node::start();
        node.tcp(port, backend.address);
        let mut client = connect(address, port);
        let mut writer = client.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                writer.write_all(&up).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            let mut bytes = Vec::new();
            client.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len(), BULK + 3);
            assert!(bytes[..BULK] == **down && &bytes[BULK..] == b"bye");
        });
        assert!(received.recv().unwrap() == up, "what the backend got is what the client sent");
        node.wait_for_flows(0);
        let bytes = |direction| {
            let labels = format!("{{transport=\"tcp\",direction=\"{direction}\"}}");
            usize::try_from(node.sample(&format!("harbor_carried_bytes_total{labels}"))).unwrap()
        };
        assert_eq!((bytes("to_backend"), bytes("to_client")), (BULK, BULK + 3));
        assert_eq!(node.sample("harbor_connections_closed_total{reason=\"finished\"}"), 1);
    }
}

#[test]
fn the_backend_may_say_its_last_first_and_the_client_goes_on() {
    let (sent, received) = mpsc::sync_channel(1);
    let backend = TcpPeer::serving(V4, move |mut stream| {
        stream.write_all(b"no more from me")?;
        stream.shutdown(Shutdown::Write)?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        sent.send(bytes).map_err(io::Error::other)
    });
    let node = Node::start();
    node.tcp(21010, backend.address);
    let mut client = connect(V4, 21010);
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"no more from me");
    let up = pattern(BULK, 3);
    client.write_all(&up).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert!(received.recv().unwrap() == up);
    node.wait_for_flows(0);
}

#[test]
fn five_hundred_connections_are_served_at_once() {
    let backend = TcpPeer::echo(V4);
    let node = Node::start();
    node.tcp(21020, backend.address);
    let mut clients = (0..500).map(|_| connect(V4, 21020)).collect::<Vec<_>>();
    for round in 0..3 {
        for (number, client) in clients.iter_mut().enumerate() {
            client.write_all(format!("{number:04} {round}").as_bytes()).unwrap();
        }
        for (number, client) in clients.iter_mut().enumerate() {
            assert_eq!(read(client, 6), format!("{number:04} {round}").as_bytes());
        }
    }
    assert_eq!((node.forwarder.open_flows(), backend.accepted()), (500, 500));
    drop(clients);
    node.wait_for_flows(0);
}

#[test]
fn a_writer_to_a_backend_that_never_reads_is_held_back() {
    let listener = TcpListener::bind((V4, 0)).unwrap();
    let node = Node::start();
    node.tcp(21030, listener.local_addr().unwrap());
    let mut client = connect(V4, 21030);
    let (silent, _) = listener.accept().unwrap();
    let taken = fill(&node, &mut client);
    // Four socket buffers and one remainder; nothing else may keep bytes.
    assert!(taken < 24 << 20, "{taken} bytes were taken for a backend that reads none");
    let mut other = connect(V4, 21030);
    let (mut served, _) = listener.accept().unwrap();
    other.write_all(b"not stuck").unwrap();
    assert_eq!(read(&mut served, 9), b"not stuck");
    // It all arrives once the backend reads.
    client.shutdown(Shutdown::Write).unwrap();
    let mut silent = silent;
    assert_eq!(io::copy(&mut silent, &mut io::sink()).unwrap(), taken as u64);
}

/// Bytes that were carried to backends.
fn carried(node: &Node) -> u64 {
    node.sample("harbor_carried_bytes_total{transport=\"tcp\",direction=\"to_backend\"}")
}

/// Writes to a backend that reads nothing until all that can be full is. Returns how many bytes were taken.
fn fill(node: &Node, client: &mut TcpStream) -> usize {
    client.set_nonblocking(true).unwrap();
    let (chunk, mut taken) = (pattern(64 * 1024, 4), 0);
    // Full is when the socket takes nothing and the forwarder has stopped carrying.
    let mut before = u64::MAX;
    eventually("the writer is held back", || match client.write(&chunk) {
        Ok(written) => {
            taken += written;
            None
        }
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            (std::mem::replace(&mut before, carried(node)) == carried(node)).then_some(())
        }
    });
    client.set_nonblocking(false).unwrap();
    taken
}

#[test]
fn what_stalls_for_the_idle_time_out_is_cut_off_not_ended() {
    let listener = TcpListener::bind((V4, 0)).unwrap();
    let node = Node::start();
    node.tcp(21035, listener.local_addr().unwrap());
    node.limit(|limits| limits.idle_timeout_tcp = Duration::from_secs(100));
    let mut client = connect(V4, 21035);
    let (mut silent, _) = listener.accept().unwrap();
    let taken = fill(&node, &mut client);
    node.advance(Duration::from_secs(101));
    node.wait_for_flows(0);
    assert_eq!(node.sample("harbor_connections_closed_total{reason=\"idle\"}"), 1);
    // The backend reads on too late: what it gets is not whole, and does not look so.
    let mut got = Vec::new();
    let end = silent.read_to_end(&mut got).map_err(|error| error.kind());
    assert!(got.len() < taken, "{} of {taken} bytes", got.len());
    assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
    assert!(is_reset(&mut client));
}

#[test]
fn one_stream_does_not_starve_the_others_of_its_worker() {
    let backend = TcpPeer::serving(V4, |mut stream| {
        let mut kind = [0];
        stream.read_exact(&mut kind)?;
        match kind[0] {
            b'b' => io::copy(&mut stream, &mut io::sink()).map(drop),
            _ => io::copy(&mut stream.try_clone()?, &mut stream).map(drop),
        }
    });
    let node = Node::with(1, ForwarderLimits::default());
    node.tcp(21040, backend.address);
    let mut bulk = connect(V4, 21040);
    bulk.write_all(b"b").unwrap();
    let mut small = connect(V4, 21040);
    small.write_all(b"s").unwrap();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let chunk = pattern(1 << 20, 5);
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                bulk.write_all(&chunk).unwrap();
            }
        });
        let meanwhile = (0..200).map(|_| {
            let before = carried(&node);
            ping(&mut small, b"still here");
            carried(&node) - before
        });
        let mut meanwhile = meanwhile.collect::<Vec<_>>();
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        // A few slices of half a MiB, whatever the stream would have had to say; it may have more while this thread has
        // no core.
        meanwhile.sort_unstable();
        assert!(meanwhile[100] < 8 << 20, "{meanwhile:?}");
    });
}

#[test]
fn without_a_backend_and_outside_allow_a_connection_is_reset_at_once() {
    let backend = TcpPeer::echo(V4);
    let node = Node::start();
    node.open(21050, Protocol::Tcp, Settings::default());
    assert!(is_turned_away(V4, 21050));
    assert_eq!(node.sample("harbor_connections_closed_total{reason=\"no_backend\"}"), 1);

    let allow = vec!["127.0.0.2/32".parse().unwrap(), "::1/128".parse().unwrap()];
    node.open(21050, Protocol::Tcp, Settings { allow, ..Settings::default() });
    node.announce(21050, Transport::Tcp, backend.address);
    assert!(is_turned_away(V4, 21050));
    assert_eq!(node.sample("harbor_connections_refused_total{reason=\"not_allowed\"}"), 1);
    assert_eq!(backend.accepted(), 0);
    ping(&mut connect(V6, 21050), b"let in");
    node.wait_for_flows(0);
}

#[test]
fn a_port_has_no_more_connections_than_it_may_and_gets_new_ones_when_others_end() {
    let backend = TcpPeer::echo(V4);
    let node = Node::start();
    node.open(21060, Protocol::Tcp, Settings { max_connections: Some(2), ..Settings::default() });
    node.announce(21060, Transport::Tcp, backend.address);
    let (mut first, mut second) = (connect(V4, 21060), connect(V4, 21060));
    ping(&mut first, b"1");
    ping(&mut second, b"2");
    assert!(is_turned_away(V4, 21060));
    assert_eq!(node.sample("harbor_connections_refused_total{reason=\"port_limit\"}"), 1);
    drop(first);
    node.wait_for_flows(1);
    ping(&mut connect(V4, 21060), b"3");
    ping(&mut second, b"2");
}

#[test]
fn the_node_has_no_more_sockets_than_it_may_and_a_greedy_port_leaves_room() {
    let backend = TcpPeer::echo(V4);
    let node = Node::with(2, ForwarderLimits { max_sockets: 16, ..ForwarderLimits::default() });
    node.tcp(21070, backend.address);
    node.tcp(21071, backend.address);
    let open = |port| -> io::Result<TcpStream> {
        let mut client = TcpStream::connect((V4, port))?;
        client.write_all(b"x")?;
        client.read_exact(&mut [0])?;
        Ok(client)
    };
    // Of 8 connections 6 until sockets are scarce; half of them would be its share then.
    let greedy = (0..8).map_while(|_| open(21070).ok()).collect::<Vec<_>>();
    assert_eq!(greedy.len(), 6);
    let other = (0..8).map_while(|_| open(21071).ok()).collect::<Vec<_>>();
    assert_eq!(other.len(), 2);
    assert_eq!(node.sample("harbor_connections_refused_total{reason=\"node_limit\"}"), 2);
    drop((greedy, other));
    node.wait_for_flows(0);
}

#[test]
fn an_idle_connection_ends_and_a_busy_one_does_not() {
    let backend = TcpPeer::echo(V4);
    let node = Node::start();
    let settings = Settings { idle_timeout: Some(Duration::from_secs(100)), ..Settings::default() };
    node.open(21080, Protocol::Tcp, settings);
    node.announce(21080, Transport::Tcp, backend.address);
    let (mut idle, mut busy) = (connect(V4, 21080), connect(V4, 21080));
    ping(&mut idle, b"1");
    ping(&mut busy, b"2");
    node.advance(Duration::from_secs(60));
    ping(&mut busy, b"2");
    node.advance(Duration::from_secs(60));
    node.wait_for_flows(1);
    assert!(!is_reset(&mut idle), "it ends like one that is done");
    ping(&mut busy, b"2");
    assert_eq!(node.sample("harbor_connections_closed_total{reason=\"idle\"}"), 1);
    // A time-out that is shortened holds for what is open.
    let settings = Settings { idle_timeout: Some(Duration::from_secs(5)), ..Settings::default() };
    node.open(21080, Protocol::Tcp, settings);
    node.advance(Duration::from_secs(6));
    node.wait_for_flows(0);
}

#[test]
fn a_backend_that_cannot_be_reached_is_skipped_and_put_aside() {
    let gone = Nobody::tcp();
    let alive = TcpPeer::named("alive");
    let node = Node::start();
    node.open(21090, Protocol::Tcp, Settings { balance: Some(Balance::Failover), ..Settings::default() });
    node.announce(21090, Transport::Tcp, gone.address);
    node.announce(21090, Transport::Tcp, alive.address);
    for _ in 0..3 {
        assert_eq!(read(&mut connect(V4, 21090), 5), b"alive");
    }
    assert_eq!(node.sample("harbor_connects_failed_total"), 1, "once, then it is passed over");
    node.advance(Duration::from_secs(31));
    assert_eq!(read(&mut connect(V4, 21090), 5), b"alive");
    assert_eq!(node.sample("harbor_connects_failed_total"), 2, "then it is tried again");
}

#[test]
fn each_backend_is_tried_once_and_then_the_client_is_reset() {
    let gone = [(); 3].map(|()| Nobody::tcp());
    for (port, balance) in (21100..).zip(Balance::ALL) {
        let node = Node::start();
        node.open(port, Protocol::Tcp, Settings { balance: Some(balance), ..Settings::default() });
        gone.iter().for_each(|backend| node.announce(port, Transport::Tcp, backend.address));
        assert!(is_turned_away(V4, port), "{balance:?}");
        assert_eq!(node.sample("harbor_connects_failed_total"), 3, "{balance:?}");
    }
}

#[test]
fn a_connect_that_hangs_is_given_up_for_the_next_backend() {
    // A listener whose queue is full answers no more connects.
    let full = TcpListener::bind((V4, 0)).unwrap();
    rustix::net::listen(&full, 0).unwrap();
    let hanging = full.local_addr().unwrap();
    let queued = [(); 2].map(|()| TcpStream::connect_timeout(&hanging, Duration::from_millis(100)));
    let alive = TcpPeer::named("alive");
    let limits = ForwarderLimits { connect_timeout: Duration::from_millis(50), ..ForwarderLimits::default() };
    let node = Node::with(2, limits);
    node.open(21110, Protocol::Tcp, Settings { balance: Some(Balance::Failover), ..Settings::default() });
    node.announce(21110, Transport::Tcp, hanging);
    node.announce(21110, Transport::Tcp, alive.address);
    assert_eq!(read(&mut connect(V4, 21110), 5), b"alive");
    assert_eq!(node.sample("harbor_connects_failed_total"), 1);
    drop(queued);
}

#[test]
fn round_robin_is_exact_over_all_workers() {
    let backends = [(); 3].map(|()| TcpPeer::echo(V4));
    let node = Node::with(4, ForwarderLimits::default());
    node.open(21120, Protocol::Tcp, Settings::default());
    backends.iter().for_each(|backend| node.announce(21120, Transport::Tcp, backend.address));
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| (0..20).for_each(|_| ping(&mut connect(V4, 21120), b"one of 120")));
        }
    });
    assert_eq!(backends.each_ref().map(TcpPeer::accepted), [40, 40, 40]);
}

#[test]
fn least_connections_and_source_hash_do_what_they_say() {
    let backends = [(); 3].map(|()| TcpPeer::echo(V4));
    let node = Node::start();
    let open = |port, balance| {
        node.open(port, Protocol::Tcp, Settings { balance: Some(balance), ..Settings::default() });
        backends.iter().for_each(|backend| node.announce(port, Transport::Tcp, backend.address));
    };
    open(21130, Balance::LeastConnections);
    let mut clients = (0..6).map(|_| connect(V4, 21130)).collect::<Vec<_>>();
    clients.iter_mut().for_each(|client| ping(client, b"x"));
    assert_eq!(backends.each_ref().map(TcpPeer::accepted), [2, 2, 2]);

    open(21131, Balance::SourceHash);
    let before = backends.each_ref().map(TcpPeer::accepted);
    for _ in 0..5 {
        ping(&mut connect(V4, 21131), b"x");
    }
    let mut growth = backends.each_ref().map(TcpPeer::accepted);
    growth.iter_mut().zip(before).for_each(|(after, before)| *after -= before);
    growth.sort_unstable();
    assert_eq!(growth, [0, 0, 5], "one client, one backend");
}

#[test]
fn a_backend_that_speaks_first_waits_for_nobody() {
    const CONNECTIONS: u32 = 30;
    let backend = TcpPeer::serving(V4, |mut stream| stream.write_all(b"220 ready"));
    // One client is a balancer, whose header is all that it sends.
    let balanced = ForwarderLimits { proxy_from: vec!["::1/128".parse().unwrap()], ..ForwarderLimits::default() };
    let node = Node::with(1, balanced);
    node.tcp(21022, backend.address);
    for address in [V4, V6] {
        let started = Instant::now();
        for _ in 0..CONNECTIONS {
            let mut client = connect(address, 21022);
            if address == V6 {
                client.write_all(b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n").unwrap();
            }
            assert_eq!(read(&mut client, 9), b"220 ready");
        }
        // The kernel would hold an acknowledgement back for 40 ms at least.
        let lasted = started.elapsed();
        assert!(lasted < CONNECTIONS * Duration::from_millis(40), "{lasted:?} for {CONNECTIONS} over {address}");
    }
}

#[test]
fn a_reset_passes_through() {
    let backend = TcpPeer::serving(V4, |mut stream| {
        stream.read_exact(&mut [0])?;
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
        // Both descriptors have to go: the peer keeps a copy.
        rustix::net::connect_unspec(&stream).map_err(Into::into)
    });
    let node = Node::start();
    node.tcp(21140, backend.address);
    let mut client = connect(V4, 21140);
    client.write_all(b"x").unwrap();
    assert!(is_reset(&mut client));
    assert_eq!(node.sample("harbor_connections_closed_total{reason=\"backend_gone\"}"), 1);

    let listener = TcpListener::bind((V4, 0)).unwrap();
    node.tcp(21141, listener.local_addr().unwrap());
    let client = connect(V4, 21141);
    let (mut accepted, _) = listener.accept().unwrap();
    accepted.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    drop(client);
    assert!(is_reset(&mut accepted));
}

#[test]
fn an_answer_that_was_cut_off_does_not_look_whole_to_a_client_that_wrote_before_it_read() {
    let listener = TcpListener::bind((V4, 0)).unwrap();
    let node = Node::start();
    node.tcp(21145, listener.local_addr().unwrap());
    let mut client = connect(V4, 21145);
    let (mut backend, _) = listener.accept().unwrap();
    backend.set_nonblocking(true).unwrap();
    let carried = || node.sample("harbor_carried_bytes_total{transport=\"tcp\",direction=\"to_client\"}");
    let mut before = u64::MAX;
    eventually("the backend is held back", || match backend.write(&[0; 64 * 1024]) {
        Ok(_) => None,
        Err(_) => (std::mem::replace(&mut before, carried()) == carried()).then_some(()),
    });
    rustix::net::sockopt::set_socket_linger(&backend, Some(Duration::ZERO)).unwrap();
    drop(backend);
    // The forwarder learns of the reset by writing to the backend, since it cannot read from it now.
    client.write_all(b"x").unwrap();
    node.advance(Duration::ZERO);
    let mut answer = Vec::new();
    let error = client.read_to_end(&mut answer).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    node.wait_for_flows(0);
    assert_eq!(node.sample("harbor_connections_closed_total{reason=\"backend_gone\"}"), 1);
}

#[test]
fn urgent_bytes_are_bytes_and_what_comes_after_them_is_not_forgotten() {
    // While a first connect hangs all that the client says arrives, so that one read could take it.
    let full = TcpListener::bind((V4, 0)).unwrap();
    rustix::net::listen(&full, 0).unwrap();
    let hanging = full.local_addr().unwrap();
    let queued = [(); 2].map(|()| TcpStream::connect_timeout(&hanging, Duration::from_millis(100)));
    let alive = TcpPeer::echo(V4);
    let node = Node::start();
    node.open(21146, Protocol::Tcp, Settings { balance: Some(Balance::Failover), ..Settings::default() });
    node.announce(21146, Transport::Tcp, hanging);
    node.announce(21146, Transport::Tcp, alive.address);
    let mut client = connect(V4, 21146);
    client.write_all(b"before").unwrap();
    rustix::net::send(&client, b"!", rustix::net::SendFlags::OOB).unwrap();
    client.write_all(b"after").unwrap();
    node.wait_for_flows(1);
    node.advance(ForwarderLimits::default().connect_timeout);
    assert_eq!(read(&mut client, 12), b"before!after");
    drop(queued);
}

#[test]
fn what_becomes_of_a_backend_becomes_of_its_connections() {
    let backend = TcpPeer::echo(V4);
    let node = Node::start();
    node.tcp(21150, backend.address);
    let mut first = connect(V4, 21150);
    ping(&mut first, b"1");

    // It leaves: no new ones, open ones go on.
    node.withdraw(21150, Transport::Tcp, backend.address);
    assert!(is_turned_away(V4, 21150));
    node.advance(Duration::from_secs(120));
    ping(&mut first, b"1");

    // It drains: open ones have a while.
    node.announce(21150, Transport::Tcp, backend.address);
    let mut second = connect(V4, 21150);
    ping(&mut second, b"2");
    node.announce_state(21150, Transport::Tcp, backend.address, AnnouncedState::Draining);
    assert!(is_turned_away(V4, 21150));
    node.advance(Duration::from_secs(29));
    ping(&mut second, b"2");
    node.advance(Duration::from_secs(2));
    node.wait_for_flows(1);
    assert!(is_reset(&mut second));
    let drained = "harbor_connections_closed_total{reason=\"drained\"}";
    assert_eq!(node.sample(drained), 1);

    // It drains and then leaves: they have no more time than before.
    node.announce(21150, Transport::Tcp, backend.address);
    let mut leaving = connect(V4, 21150);
    ping(&mut leaving, b"4");
    node.announce_state(21150, Transport::Tcp, backend.address, AnnouncedState::Draining);
    node.withdraw(21150, Transport::Tcp, backend.address);
    node.advance(Duration::from_secs(29));
    ping(&mut leaving, b"4");
    node.advance(Duration::from_secs(2));
    assert!(is_reset(&mut leaving));
    assert_eq!(node.sample(drained), 2);

    // It comes back, and its authority ends: so do its connections, at once.
    node.announce(21150, Transport::Tcp, backend.address);
    let mut third = connect(V4, 21150);
    ping(&mut third, b"3");
    node.revoke_all();
    assert!(is_reset(&mut third));
    assert!(is_reset(&mut first), "also those that it had before it left");
    node.wait_for_flows(0);
}

#[test]
fn outgoing_connections_stay_out_of_the_ports_of_pools() {
    let (sent, sources) = mpsc::sync_channel::<SocketAddr>(64);
    let backend = TcpPeer::serving(V4, move |stream| sent.send(stream.peer_addr()?).map_err(io::Error::other));
    let pool = "30000-60899".parse().unwrap();
    let node = Node::with_pool_ports(pool);
    node.tcp(21160, backend.address);
    for _ in 0..40 {
        let _client = connect(V4, 21160);
        let source = sources.recv().unwrap();
        assert!((60900..=60999).contains(&source.port()), "{source}");
    }
    node.forwarder.set_pool_ports(&"33000-60999".parse().unwrap());
    let _client = connect(V4, 21160);
    let source = sources.recv().unwrap();
    assert!((32768..33000).contains(&source.port()), "{source}");
}
