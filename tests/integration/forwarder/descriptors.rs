//! A node that has run out of descriptors. In a process of its own: the limit is that of the whole process.

use std::{
    fs::File,
    process::Command,
    time::{Duration, Instant},
};

use harbor::model::desired::ForwarderLimits;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::node::Node;
use crate::support::{
    eventually::eventually,
    peer::{TcpPeer, V4, connect, ping},
};

/// Set in the process that has few.
const FEW_DESCRIPTORS: &str = "HARBOR_TEST_FEW_DESCRIPTORS";

#[test]
fn without_descriptors_traffic_goes_on_nothing_spins_and_accepting_resumes() {
    if std::env::var_os(FEW_DESCRIPTORS).is_none() {
        let name = "forwarder::descriptors::without_descriptors_traffic_goes_on_nothing_spins_and_accepting_resumes";
        let mut process = Command::new(std::env::current_exe().expect("this is a program"));
        let output = process.args(["--exact", name, "--nocapture"]).env(FEW_DESCRIPTORS, "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(200), ..getrlimit(Resource::Nofile) }).unwrap();
    let backend = TcpPeer::echo(V4);
    let node = Node::with(2, ForwarderLimits { max_sockets: 10_000, ..ForwarderLimits::default() });
    node.tcp(22200, backend.address);
    let mut before = connect(V4, 22200);
    ping(&mut before, b"x");

    let mut wasted = std::iter::from_fn(|| File::open("/dev/null").ok()).collect::<Vec<_>>();
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
