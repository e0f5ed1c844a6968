//! A node that has run out of descriptors. In a process of its own: the limit is that of the whole process.

use std::{
    fs::File,
    net::{SocketAddr, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use fastrand::Rng;
use harbor::model::desired::ForwarderLimits;
use rustix::{
    io::Errno,
    net::{self, AddressFamily, SocketType},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use super::node::Node;
use crate::support::{
    eventually::eventually,
    life::{Hear, Life, Part, Say, Stage, Until},
    peer::{TcpPeer, V4, connect, is_reset, is_turned_away, ping},
};

/// Set in the process that has few.
const FEW_DESCRIPTORS: &str = "HARBOR_TEST_FEW_DESCRIPTORS";

/// Whether this is the process that has few descriptors; if not, runs the test in one that has.
fn has_few_descriptors(test: &str) -> bool {
    if std::env::var_os(FEW_DESCRIPTORS).is_some() {
        setrlimit(Resource::Nofile, Rlimit { current: Some(200), ..getrlimit(Resource::Nofile) }).unwrap();
        return true;
    }
    let mut process = Command::new(std::env::current_exe().expect("this is a program"));
    let name = format!("forwarder::descriptors::{test}");
    let output = process.args(["--exact", &name, "--nocapture"]).env(FEW_DESCRIPTORS, "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    false
}

/// Takes all descriptors that are left.
fn take_all() -> Vec<File> {
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

#[test]
fn without_descriptors_traffic_goes_on_nothing_spins_and_accepting_resumes() {
    if !has_few_descriptors("without_descriptors_traffic_goes_on_nothing_spins_and_accepting_resumes") {
        return;
    }
    let backend = TcpPeer::echo(V4);
    let node = Node::with(2, ForwarderLimits { max_sockets: 10_000, ..ForwarderLimits::default() });
    node.tcp(22200, backend.address);
    let mut before = connect(V4, 22200);
    ping(&mut before, b"x");

    let mut wasted = take_all();
    // One for the client: none for the accepted socket.
    wasted.pop();
    let mut waiting = connect(V4, 22200);
    let failures = || node.sample("harbor_connections_refused_total{reason=\"exhausted\"}");
    let start = Instant::now();
    eventually("accepting has failed several times", || (failures() >= 6).then_some(()));
    // Each of two workers pauses for 100 ms each time.
    assert!(start.elapsed() >= Duration::from_millis(150), "it spins: 6 failures in {:?}", start.elapsed());
    ping(&mut before, b"x");

    drop(wasted);
    ping(&mut waiting, b"y");
    ping(&mut before, b"x");
}

#[test]
fn without_a_descriptor_for_the_backends_socket_no_backend_is_blamed() {
    if !has_few_descriptors("without_a_descriptor_for_the_backends_socket_no_backend_is_blamed") {
        return;
    }
    let backend = TcpPeer::echo(V4);
    let node = Node::with(1, ForwarderLimits { max_sockets: 10_000, ..ForwarderLimits::default() });
    node.tcp(22205, backend.address);
    let mut wasted = take_all();
    // One for the client, and one for its accepted socket.
    wasted.truncate(wasted.len() - 2);
    assert!(is_turned_away(V4, 22205));
    let closed = |reason| node.sample(&format!("harbor_connections_closed_total{{reason=\"{reason}\"}}"));
    assert_eq!([closed("exhausted"), closed("no_backend")], [1, 0]);
    assert_eq!(node.sample("harbor_connects_failed_total"), 0);
    drop(wasted);
    ping(&mut connect(V4, 22205), b"x");
}

#[test]
fn of_clients_that_wait_while_backends_get_no_socket_one_is_reset_per_pause() {
    if !has_few_descriptors("of_clients_that_wait_while_backends_get_no_socket_one_is_reset_per_pause") {
        return;
    }
    const CLIENTS: usize = 8;
    let backend = TcpPeer::echo(V4);
    let node = Node::with(1, ForwarderLimits { max_sockets: 10_000, ..ForwarderLimits::default() });
    node.tcp(22215, backend.address);
    let clients = [(); CLIENTS].map(|()| net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap());
    let mut wasted = take_all();
    // For one accepted socket.
    wasted.pop();
    let start = Instant::now();
    // All stay until the last is reset: each that ends would leave its descriptor to the node.
    let mut clients = clients.map(|client| match net::connect(&client, &SocketAddr::new(V4, 22215)) {
        Ok(()) => (TcpStream::from(client), false),
        // Before this one has noticed that it was connected.
        Err(Errno::CONNRESET) => (TcpStream::from(client), true),
        Err(error) => panic!("somebody listens: {error}"),
    });
    assert!(clients.iter_mut().all(|(client, reset)| *reset || is_reset(client)));
    // Without a pause between them, one more would be reset after each pause: 1 + 2 + 3 + 2 in three pauses.
    assert!(start.elapsed() > Duration::from_millis(500), "{:?}", start.elapsed());
    assert_eq!(node.sample("harbor_connections_closed_total{reason=\"exhausted\"}"), CLIENTS as u64);
}

#[test]
fn bulk_goes_on_while_no_descriptor_is_left_for_a_pipe_and_after_there_are_some_again() {
    if !has_few_descriptors("bulk_goes_on_while_no_descriptor_is_left_for_a_pipe_and_after_there_are_some_again") {
        return;
    }
    const MIB: usize = 1 << 20;
    let node = Node::with(2, ForwarderLimits { max_sockets: 10_000, ..ForwarderLimits::default() });
    // Small segments: the kernel would have room for all that stands still otherwise.
    let stage = Stage::with_small_segments(SocketAddr::new(V4, 22210));
    node.tcp(22210, stage.backend.local_addr().unwrap());
    let write = |bytes| Say::Write { bytes, at_once: MIB };
    let rest = Say::Wait(Until::Quiet);
    // With descriptors, without, and with them again; some are bulk at first, some are not.
    let in_stages =
        |first| Part { says: vec![write(first), rest, write(4 * MIB), rest, write(MIB)], ..Part::default() };
    let stalls = |part| {
        let hears = [Hear::Read { bytes: MIB + 1, at_once: MIB }, Hear::Wait(Until::Quiet)].repeat(4);
        Part { hears, ..part }
    };
    let lives = [1, MIB, 3 * MIB, 100_000].map(|first| {
        [
            Life { client: in_stages(first), backend: Part::default() },
            Life { client: Part::default(), backend: in_stages(first) },
            Life { client: in_stages(first), backend: stalls(in_stages(first + 1)) },
        ]
    });
    let mut wasted = None;
    let mut rests = 0;
    stage.play_watched(&lives.concat(), &mut Rng::with_seed(1), &mut || {
        rests += 1;
        wasted = (rests == 1).then(take_all);
    });
    assert!(rests >= 2, "{rests}");
    drop(wasted);
    node.wait_for_flows(0);
    // New ones come and go as before.
    stage.play(&[Life { client: in_stages(MIB), backend: in_stages(MIB) }], &mut Rng::with_seed(2));
    node.wait_for_flows(0);
}
