//! What is passed on to a node that gave the address up, and what is not.

use std::process::Command;

use super::{
    apps::{PORT, ask, connect},
    pair::{ADDRESS, Pair},
};
use crate::support::{eventually::eventually, namespaces::Machine};

/// Counts on a machine what is said to it: that the other node gives the address up.
const LISTEN: &str = "table ip heard { chain heard { type filter hook prerouting priority raw; \
                      ip protocol vrrp @th,16,8 0 counter; }; }";

/// Has a machine say nothing to the other node.
const BE_SILENT: &str = "table ip silent { chain silent { type filter hook output priority raw; \
                         ip protocol vrrp drop; }; }";

fn nft(machine: &Machine, arguments: &[&str]) -> String {
    let output = machine.inside(Command::new("nft").args(arguments)).output().expect("nft is installed");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Whether `machine` passes on what it does not know.
fn passes_on(machine: &Machine) -> bool {
    nft(machine, &["list", "set", "inet", "harbor", "given_up"]).contains("elements")
}

#[test]
fn nothing_is_passed_on_to_a_node_that_lost_the_address_by_its_cable() {
    let Some(pair) = Pair::start("nothing_is_passed_on_to_a_node_that_lost_the_address_by_its_cable") else { return };
    let client = &pair.around.client;
    let (active, standby) = pair.roles();
    let [from, to] = [active, standby].map(|node| &pair.nodes[node].machine);
    nft(to, &[LISTEN]);
    let mut open = client.run(|| connect(client.address(), (ADDRESS, PORT).into())).expect("a node has the address");
    assert!(ask(&mut open).is_some());
    from.cut();
    eventually("the address moves", || to.has(ADDRESS).then_some(()));
    from.mend();
    eventually("the node says late that it gives the address up", || {
        (!nft(to, &["list", "table", "ip", "heard"]).contains("packets 0 ")).then_some(())
    });
    assert_eq!(pair.roles(), (standby, active));
    assert!(!passes_on(to));
    assert_eq!(ask(&mut open), None, "it is reset, though the other node would still have it");
}

#[test]
fn a_node_that_gave_the_address_up_again_passes_nothing_on_when_it_comes_back() {
    let test = "a_node_that_gave_the_address_up_again_passes_nothing_on_when_it_comes_back";
    let Some(pair) = Pair::start(test) else { return };
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
    assert_eq!(ask(&mut open), None, "it is reset");
}
