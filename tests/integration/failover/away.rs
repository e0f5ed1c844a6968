//! A node that reaches neither PostgreSQL nor NATS, while clients and apps reach it.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::json;

use super::{
    apps::{PORT, provision_one_more},
    load::Load,
    pair::{Node, Surroundings},
};
use crate::support::{
    eventually::{PATIENCE, eventually, eventually_within},
    http::Answer,
};

/// After so long NATS counts as lost that says nothing any more: it is asked every 10 s, and may miss that twice.
const SILENCE: Duration = Duration::from_secs(30);

/// What `/readyz` says once it has this status.
fn ready(node: &Node, status: u16) -> Answer {
    let (admin, what) = (node.harbor.as_ref().expect("it runs").admin(), format!("/readyz says {status}"));
    node.machine.block_on(|| {
        eventually_within(SILENCE + PATIENCE, &what, async || {
            Some(admin.get("/readyz").await).filter(|answer| answer.status == status)
        })
    })
}

/// Whether somebody listens. A port without backends resets a connection as soon as it is made.
fn listens(to: SocketAddr) -> bool {
    match TcpStream::connect_timeout(&to, PATIENCE) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn a_node_that_is_cut_off_from_both_servers_serves_what_it_knows_and_is_not_ready() {
    let test = "a_node_that_is_cut_off_from_both_servers_serves_what_it_knows_and_is_not_ready";
    let Some(mut around) = Surroundings::start(test) else { return };
    let machines = ["node-1", "node-2"].map(|name| around.network.machine(name));
    let (client, from) = (&around.client, around.client.address());
    let settings = [("harbor_node.cut_off_after", "1s"), ("log.level", "info")];
    let nodes = around.nodes(machines.each_ref().map(|machine| (machine, &settings[..])), &from.to_string());
    let [cut, other] = &nodes;
    let load = Load::start(client, SocketAddr::new(cut.machine.address(), PORT));

    for server in &around.servers {
        server.ignore(cut.machine.address());
    }
    let reasons = ready(cut, 503).json()["reasons"].clone();
    assert_eq!(reasons, json!(["neither the store nor NATS has been reached for a while"]));
    load.wait_for_answers();
    // The other one goes on without it.
    ready(other, 200);
    let port = other.machine.block_on(|| provision_one_more(other.harbor.as_ref().expect("it runs")));
    let listens = |node: &Node| client.run(|| listens(SocketAddr::new(node.machine.address(), port)));
    assert!(listens(other) && !listens(cut));

    for server in &around.servers {
        server.notice(cut.machine.address());
    }
    ready(cut, 200);
    eventually("it catches up", || listens(cut).then_some(()));
    load.wait_for_answers();
    let seen = load.stop();
    assert!(seen.is_full(), "clients stood still: {seen}");
    assert!(seen.failed().is_empty() && seen.broken_streams().is_empty(), "{seen}: {:#?}", seen.failed());
    assert!(seen.flows.iter().all(|flow| flow.unanswered.is_empty()), "{:#?}", seen.flows);
}
