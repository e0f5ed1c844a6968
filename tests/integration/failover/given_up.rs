//! What is passed on to a node that gave the address up, and what is not.

use std::{
    net::{SocketAddr, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{
    apps::{PORT, ask, connect},
    pair::{ADDRESS, ADDRESS_V6, Pair},
};
use crate::support::{
    eventually::{PATIENCE, eventually},
    namespaces::Machine,
};

/// Counts on a machine what is said to it: that the other node gives the address up.
const LISTEN: &str = "table ip heard { chain heard { type filter hook prerouting priority raw; \
                      ip protocol vrrp @th,16,8 0 counter; }; }";

/// Has a machine say nothing to the other node.
const BE_SILENT: &str = "table ip silent { chain silent { type filter hook output priority raw; \
                         ip protocol vrrp drop; }; }";

/// What a node says when it gives the address up, but for the checksum, by which keepalived tells that it is not its peer's:
/// VRRP's version and kind, the router's number, the priority, and so on.
const GOODBYE: [u8; 12] = [0x31, 51, 0, 1, 0, 20, 0, 0, 10, 77, 0, 100];
/// The number of VRRP, which goes over IP itself.
const VRRP: i32 = 112;

fn nft(machine: &Machine, arguments: &[&str]) -> String {
    let output = machine.inside(Command::new("nft").args(arguments)).output().expect("nft is installed");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// A node that listens on an address takes nobody else's connections for those of the other node.
const EVERYWHERE: (&str, &str) = ("harbor_node.listen", "::");
/// How long a client goes on after the address has moved.
const AFTERWARDS: Duration = Duration::from_millis(500);

/// Whether a connection has ended, and its client is told.
fn is_reset(open: &mut TcpStream) -> bool {
    let asked = Instant::now();
    ask(open).is_none() && asked.elapsed() < PATIENCE
}

/// Whether `machine` passes on what it does not know.
fn passes_on(machine: &Machine) -> bool {
    nft(machine, &["list", "set", "inet", "harbor", "given_up"]).contains("elements")
}

#[test]
fn nothing_is_passed_on_to_a_node_that_lost_the_address_by_its_cable() {
    let test = "nothing_is_passed_on_to_a_node_that_lost_the_address_by_its_cable";
    let Some(pair) = Pair::start_with(test, &[EVERYWHERE]) else { return };
    let client = &pair.around.client;
    let (active, standby) = pair.roles();
    let [from, to] = [active, standby].map(|node| &pair.nodes[node].machine);
    nft(to, &[LISTEN]);
    let mut open = client.run(|| connect(client.address(), (ADDRESS, PORT).into())).expect("a node has the address");
    assert!(ask(&mut open).is_some());
    from.cut();
    eventually("the address moves", || to.has(ADDRESS).then_some(()));
    from.mend();
    // keepalived may say so by itself, if its words were kept for as long as the cable was out.
    from.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(VRRP))).expect("we are root");
        socket.set_ttl_v4(255).expect("it is a number");
        socket.send_to(&GOODBYE, &SocketAddr::new(to.address(), 0).into()).expect("the cable is back");
    });
    eventually("the node says late that it gives the address up", || {
        (!nft(to, &["list", "table", "ip", "heard"]).contains("packets 0 ")).then_some(())
    });
    assert_eq!(pair.roles(), (standby, active));
    assert!(!passes_on(to));
    assert!(is_reset(&mut open), "though the other node would still have it");
}

#[test]
fn a_node_that_gave_the_address_up_again_passes_nothing_on_when_it_comes_back() {
    let test = "a_node_that_gave_the_address_up_again_passes_nothing_on_when_it_comes_back";
    let Some(pair) = Pair::start_with(test, &[EVERYWHERE]) else { return };
    let client = &pair.around.client;
    let (first, second) = pair.roles();
    let (node, machines) = (&pair.nodes[first], [first, second].map(|node| &pair.nodes[node].machine));
    node.command(&["node", "drain"]);
    eventually("the address moves", || machines[1].has(ADDRESS).then_some(()));
    assert!(passes_on(machines[1]), "the first one may have open connections");
    node.command(&["node", "resume"]);
    assert_eq!(pair.roles(), (second, first));

    machines[1].cut();
    eventually("the address moves back", || machines[0].has(ADDRESS).then_some(()));
    let mut open = client.run(|| connect(client.address(), (ADDRESS, PORT).into())).expect("a node has the address");
    assert!(ask(&mut open).is_some());
    // The other one comes back, and hears nothing of this one: for it, this one has died.
    nft(machines[0], &[BE_SILENT]);
    machines[1].mend();
    eventually("the address moves again", || machines[1].has(ADDRESS).then_some(()));
    assert!(!passes_on(machines[1]));
    machines[0].cut();
    assert!(is_reset(&mut open));
}

#[test]
fn what_is_open_goes_on_when_the_address_moves_there_and_back() {
    let test = "what_is_open_goes_on_when_the_address_moves_there_and_back";
    let Some(pair) = Pair::start_with(test, &[EVERYWHERE, ("forwarder.drain_timeout", "1m")]) else { return };
    let client = &pair.around.client;
    let (first, second) = pair.roles();
    let mut open = client.run(|| connect(client.address(), (ADDRESS, PORT).into())).expect("a node has the address");
    for (from, to) in [(first, second), (second, first)] {
        pair.nodes[from].command(&["node", "drain"]);
        let mut moved_at = None;
        // Also of the last packets that come to where the address was.
        while moved_at.is_none_or(|at: Instant| at.elapsed() < AFTERWARDS) {
            assert!(ask(&mut open).is_some(), "it was cut on the way from {from} to {to}, moved at {moved_at:?}");
            moved_at = moved_at.or_else(|| pair.nodes[to].machine.has(ADDRESS).then(Instant::now));
        }
        pair.nodes[from].command(&["node", "resume"]);
        assert_eq!(pair.roles(), (to, from));
    }
}

#[test]
fn what_was_passed_on_is_passed_on_no_further() {
    let Some(pair) = Pair::start_with("what_was_passed_on_is_passed_on_no_further", &[EVERYWHERE]) else { return };
    let client = &pair.around.client;
    let (active, standby) = pair.roles();
    let machines = [active, standby].map(|node| &pair.nodes[node].machine);
    // As for a moment while the address moves back.
    for machine in machines {
        nft(machine, &["add", "element", "inet", "harbor", "given_up", "{ eth0 timeout 1m }"]);
    }
    let passed_on = |table: &str| {
        machines.map(|machine| {
            let rules = nft(machine, &["list", "table", table, "harbor"]);
            let count = rules.split_once("counter packets ").and_then(|(_, rest)| rest.split_once(' '));
            count.expect("a counter").0.parse::<u64>().expect("a number")
        })
    };
    for (table, domain, to) in [("ip", Domain::IPV4, ADDRESS), ("ip6", Domain::IPV6, ADDRESS_V6)] {
        let before = passed_on(table);
        // Of a connection that nobody has: ports, numbers, and that it is an ACK.
        let [from, to_port] = [40_000_u16, PORT].map(u16::to_be_bytes);
        let packet = [&from[..], &to_port, &[0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0, 0, 0, 0, 0, 0]].concat();
        client.run(|| {
            let socket = Socket::new(domain, Type::RAW, Some(Protocol::TCP)).expect("we are root");
            socket.send_to(&packet, &SocketAddr::new(to, 0).into()).expect("there is a route");
        });
        eventually("it is passed on", || (passed_on(table)[0] > before[0]).then_some(()));
        // Behind it on the same way there and back.
        let mut open =
            client.run(|| connect(client.address(), (ADDRESS, PORT).into())).expect("a node has the address");
        assert!(ask(&mut open).is_some());
        let after = passed_on(table);
        assert_eq!([after[0] - before[0], after[1] - before[1]], [1, 0], "{table}");
    }
}
