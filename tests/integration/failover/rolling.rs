//! Every node is restarted, one after the other, while clients go on.

use std::{
    io::Write as _,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    apps::PORT,
    load::{Ledger, Load, STREAMS},
    pair::{ADDRESS, ADDRESS_V6, DRAIN_WAIT, Pair},
};

/// How long what is open on a node that is drained may go on.
const DRAIN_TIMEOUT: &str = "3s";
/// Longer than any test.
const NEVER: &str = "1h";

/// Two nodes whose open connections may go on for so long, and clients of both kinds of their address.
fn start(test: &str, drain_timeout: &str) -> Option<(Pair, [Load; 2])> {
    // Connections of the other node are told from one's own where listeners have no address.
    let settings = [("forwarder.drain_timeout", drain_timeout), ("harbor_node.listen", "::")];
    let pair = Pair::start_with(test, &settings)?;
    let loads = [ADDRESS, ADDRESS_V6].map(|to| Load::start(&pair.around.client, SocketAddr::new(to, PORT)));
    Some((pair, loads))
}

/// Has all clients finish, and shows what they have seen.
fn stop(what: &str, loads: [Load; 2]) -> [Ledger; 2] {
    let ledgers = loads.map(Load::stop);
    for (kind, ledger) in ["IPv4", "IPv6"].into_iter().zip(&ledgers) {
        // Not captured as a print would be: the figures are what one runs this for.
        writeln!(std::io::stderr(), "{what}, {kind}: {ledger}").expect("there is an output");
    }
    ledgers
}

/// What is promised of every restart.
fn assert_nothing_failed(seen: &Ledger) {
    assert!(seen.is_full(), "clients stood still: {seen}");
    assert!(seen.failed().is_empty(), "{:#?}", seen.failed());
    for flow in &seen.flows {
        let goes_on = !flow.unanswered.contains(&flow.sent);
        assert!(goes_on && flow.backends.len() == 1, "{flow:?}");
    }
}

#[test]
fn no_connection_fails_while_every_node_is_drained_and_restarted() {
    let test = "no_connection_fails_while_every_node_is_drained_and_restarted";
    let Some((mut pair, loads)) = start(test, DRAIN_TIMEOUT) else { return };
    // The one with the address first, so that it moves twice.
    let (active, standby) = pair.roles();
    let drains = [active, standby].map(|node| {
        let begun = Instant::now();
        pair.nodes[node].command(&["node", "drain"]);
        let harbor = pair.nodes[node].take_harbor();
        harbor.logged("drained:");
        assert!(harbor.terminate().success());
        pair.nodes[node].start_again();
        pair.nodes[node].command(&["node", "resume"]);
        assert_eq!(pair.roles().1, node, "it waits for the address now");
        loads.iter().for_each(Load::wait_for_answers);
        (begun, Instant::now())
    });
    for seen in stop("drained and restarted", loads) {
        assert_nothing_failed(&seen);
        // Those on the node that is drained go on until its deadline, whereto the address may be; others are let alone.
        let [wait, timeout] = [DRAIN_WAIT, DRAIN_TIMEOUT].map(|time| humantime::parse_duration(time).unwrap());
        let cut = |(begun, ended): (Instant, Instant)| {
            let cut = seen.broken_streams().into_iter().filter(|stream| (begun..ended).contains(&stream.ended));
            cut.map(|stream| stream.ended - begun).collect::<Vec<Duration>>()
        };
        for cut in drains.map(cut) {
            assert_eq!(cut.len(), STREAMS, "{cut:?}");
            assert!(cut.iter().all(|after| *after >= wait + timeout), "{cut:?}");
        }
        assert_eq!(seen.broken_streams().len(), 2 * STREAMS);
    }
}

#[test]
fn nothing_breaks_while_every_node_is_restarted_hot() {
    let Some((pair, loads)) = start("nothing_breaks_while_every_node_is_restarted_hot", NEVER) else { return };
    let (active, standby) = pair.roles();
    for node in [active, standby] {
        pair.nodes[node].harbor.as_ref().expect("it runs").restart();
        loads.iter().for_each(Load::wait_for_answers);
        assert_eq!(pair.roles(), (active, standby), "the address stays");
    }
    for seen in stop("restarted hot", loads) {
        assert_nothing_failed(&seen);
        assert!(seen.broken_streams().is_empty(), "{:#?}", seen.broken_streams());
        assert!(seen.flows.iter().all(|flow| flow.unanswered.is_empty()), "{:#?}", seen.flows);
    }
}
