//! Two nodes behind one address that a real keepalived moves: what clients see of it.

mod apps;
mod away;
mod backends;
mod callers;
mod given_up;
mod load;
mod pair;
mod rolling;

use std::{
    fmt, fs,
    io::Write as _,
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use self::{
    apps::{PORT, ask, connect},
    callers::Callers,
    pair::{ADDRESS, ADDRESS_V6, Pair},
};
use crate::support::{
    eventually::{PATIENCE, eventually},
    harbor::Site,
    keepalived::{configuration, objections},
    namespaces::{INTERFACE, Network},
};

/// Rounds of each kind.
const ROUNDS: usize = 10;
/// How many kinds, of all, may be done once more: a machine that stalls for seconds is not what is measured.
const REPEATS: usize = 1;
/// How often a client opens a connection.
const EVERY: Duration = Duration::from_millis(5);

/// How the address comes to move.
#[derive(Debug, Clone, Copy)]
enum Cause {
    /// The active node's cable is pulled out.
    Cut,
    /// Its Harbor is killed.
    Kill,
    /// An operator drains it; it goes on until the address has moved.
    Drain,
}

/// The longest times in which no new connection succeeded, of all rounds of a cause.
struct Outages(Vec<Duration>);

impl Outages {
    fn median(&self) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2
    }

    fn longest(&self) -> Duration {
        *self.0.iter().max().expect("there are rounds")
    }
}

impl fmt::Display for Outages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.0.iter().map(|outage| outage.as_millis().to_string()).collect::<Vec<_>>().join(" ");
        write!(f, "median {:.0?}, longest {:.0?} ({rounds} ms)", self.median(), self.longest())
    }
}

/// Moves the address from one node to the other, and puts all back but the address. Returns the outage.
fn round(pair: &mut Pair, callers: &Callers, cause: Cause) -> Duration {
    let (active, standby) = pair.roles();
    let client = pair.around.client.address();
    let mut open = pair.around.client.run(|| connect(client, (ADDRESS, PORT).into())).expect("a node has the address");
    assert!(ask(&mut open).is_some());
    let begun = Instant::now();
    match cause {
        Cause::Cut => pair.nodes[active].machine.cut(),
        Cause::Kill => pair.nodes[active].take_harbor().kill(),
        Cause::Drain => pair.nodes[active].command(&["node", "drain"]),
    }
    eventually("the address moves", || pair.nodes[standby].machine.has(ADDRESS).then_some(()));
    callers.wait_for_answer_after(Instant::now());
    let told = Instant::now();
    // A node that drains goes on with it for as long as it may.
    eventually("what was open ends", || ask(&mut open).is_none().then_some(()));
    assert!(told.elapsed() < PATIENCE, "{cause:?}: the client of an open connection heard nothing of its end");
    let node = &mut pair.nodes[active];
    match cause {
        Cause::Cut => node.machine.mend(),
        Cause::Kill => node.start_again(),
        Cause::Drain => node.command(&["node", "resume"]),
    }
    // One of them is to be ready to take the address again.
    pair.roles();
    callers.wait_for_answer_after(Instant::now());
    callers.longest_outage_since(begun)
}

#[test]
fn a_virtual_address_moves_to_the_other_node_within_its_bounds() {
    let Some(mut pair) = Pair::start("a_virtual_address_moves_to_the_other_node_within_its_bounds") else { return };
    let callers = Callers::start(&pair.around.client, (ADDRESS, PORT).into(), EVERY);
    let callers_v6 = Callers::start(&pair.around.client, (ADDRESS_V6, PORT).into(), EVERY * 4);
    let mut repeated = 0;
    for (cause, most) in [(Cause::Cut, 1000), (Cause::Kill, 1200), (Cause::Drain, 200)] {
        let mut fine = || {
            let (mut outages, mut outages_v6) = (Outages(Vec::new()), Outages(Vec::new()));
            for _ in 0..ROUNDS {
                let begun = Instant::now();
                outages.0.push(round(&mut pair, &callers, cause));
                callers_v6.wait_for_answer_after(Instant::now());
                outages_v6.0.push(callers_v6.longest_outage_since(begun));
            }
            // Not captured as a print would be: the figures are what one runs this for.
            writeln!(std::io::stderr(), "failover, {cause:?}, IPv4: {outages}; IPv6: {outages_v6}").unwrap();
            outages.median().max(outages_v6.median()) <= Duration::from_millis(most)
                && outages.longest().max(outages_v6.longest()) <= Duration::from_millis(2500)
        };
        while !fine() {
            assert!(repeated < REPEATS, "{cause:?} takes longer than it may: see the figures");
            repeated += 1;
        }
    }
}

/// What `harbor-ready` says of the node whose `admin.listen` is there.
fn is_ready(admin: SocketAddr) -> bool {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/keepalived/harbor-ready");
    let (address, port) = (admin.ip().to_string(), admin.port().to_string());
    let output = Command::new(script).args([address, port]).output().expect("there is bash");
    assert_eq!([output.stdout, output.stderr].concat(), b"", "keepalived would log it, once a second");
    output.status.success()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_check_for_keepalived_tells_ready_nodes_from_those_that_drain_hang_or_are_gone() {
    let harbor = Site::new("31910-31911", "").with("forwarder.drain_wait", "1m").serve().await;
    let admin = harbor.address("admin");
    let is_ready_soon = || eventually("the node is found ready", || is_ready(admin).then_some(()));
    is_ready_soon();
    harbor.signal(Signal::STOP);
    assert!(!is_ready(admin), "it hangs");
    harbor.signal(Signal::CONT);
    is_ready_soon();
    harbor.signal(Signal::TERM);
    harbor.logged("draining");
    assert!(!is_ready(admin), "it drains");
    harbor.kill();
    assert!(!is_ready(admin), "nobody is there");
}

#[test]
fn keepalived_takes_every_configuration_that_comes_with_harbor() {
    let Some(mut network) = Network::new("keepalived_takes_every_configuration_that_comes_with_harbor") else { return };
    let machine = network.machine("node");
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/keepalived");
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names = names.filter(|name| name.ends_with(".conf")).collect::<Vec<_>>();
    assert!(names.len() >= 2, "{names:?}");
    for name in names {
        // What stands there is of nodes with names of their own.
        let place = [("OWN", "10.0.0.11"), ("PEER", "10.0.0.12"), ("PRIORITY", "200"), ("INTERFACE", INTERFACE)];
        let text = configuration(&name, &place);
        assert_eq!(objections(&machine, &text), "", "{name}");
        assert_ne!(objections(&machine, &text.replace("advert_int", "advert_intt")), "", "{name}: a mistake is found");
    }
}
