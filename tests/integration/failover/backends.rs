//! Which backend clients get, when the address moves and behind a balancer.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use super::{
    Cause,
    apps::{BACKENDS, HASHED_PORT, PORT, PORTS, PRIVATE_PORT, over_tcp, over_udp, udp_client},
    callers::Callers,
    pair::{ADDRESS, ADDRESS_V6, Pair, Surroundings},
    round,
};
use crate::support::{
    eventually::eventually,
    namespaces::{Machine, address, address_v6},
};

/// Clients, by the last numbers of their addresses.
const CLIENTS: std::ops::Range<u8> = 120..140;

/// Gives a machine the addresses of all clients, and returns them.
fn addresses_of_clients(machine: &Machine, of: impl Fn(u8) -> IpAddr) -> Vec<IpAddr> {
    let addresses = CLIENTS.map(of).collect::<Vec<_>>();
    addresses.iter().for_each(|address| machine.add_address(*address, if address.is_ipv4() { 24 } else { 64 }));
    addresses
}

#[test]
fn a_client_keeps_its_backend_when_the_address_moves() {
    let Some(mut pair) = Pair::start("a_client_keeps_its_backend_when_the_address_moves") else { return };
    let client = pair.around.client.clone();
    let mut clients = Vec::new();
    for (of, to) in [(address as fn(u8) -> IpAddr, ADDRESS), (address_v6, ADDRESS_V6)] {
        clients.extend(addresses_of_clients(&client, of).into_iter().map(|from| (from, to)));
    }
    let sockets = |port| {
        let sockets = clients.iter().map(|(from, to)| udp_client(*from, SocketAddr::new(*to, port)));
        client.run(|| sockets.collect::<Vec<_>>())
    };
    // Open all the time: they know nothing of what moves.
    let (hashed, standing_by) = (sockets(HASHED_PORT), sockets(PORT));
    let ask = || {
        let tcp =
            clients.iter().map(|(from, to)| over_tcp(*from, SocketAddr::new(*to, HASHED_PORT)).expect("an answer"));
        let tcp = client.run(|| tcp.collect::<Vec<_>>());
        [tcp, hashed.iter().map(over_udp).collect(), standing_by.iter().map(over_udp).collect()]
    };
    let before = ask();
    let [tcp, udp, primary] = before.each_ref().map(|names| names.iter().collect::<BTreeSet<_>>());
    assert_eq!([tcp.len(), udp.len(), primary.len()], [BACKENDS, BACKENDS, 1], "{before:?}");
    assert_eq!(before[0], before[1], "TCP and UDP of a client go to one backend");

    let callers = Callers::start(&client, (ADDRESS, PORT).into(), Duration::from_millis(20));
    // To the other node, then to the first one, which has learned all anew by then.
    for _ in 0..2 {
        round(&mut pair, &callers, Cause::Kill);
        assert_eq!(ask(), before);
    }
}

/// A real HAProxy with the configuration that operators get; ended when dropped.
struct Balancer {
    child: Child,
    _directory: TempDir,
}

impl Balancer {
    fn start(machine: &Machine, nodes: [IpAddr; 2]) -> Self {
        let text = include_str!("../../../manifests/haproxy/haproxy.cfg");
        let [first, second] = nodes.map(|node| node.to_string());
        let mut text = text.to_owned();
        for (example, ours) in [("35000-40000", PORTS), ("10.0.0.11", &first), ("10.0.0.12", &second)] {
            assert!(text.contains(example), "the example has no {example}");
            text = text.replace(example, ours);
        }
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("haproxy.cfg");
        fs::write(&file, text).expect("the directory is ours");
        let mut command = Command::new("haproxy");
        command.args(["-db", "-q", "-f"]).arg(file);
        let mut command = machine.inside(&command);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Self { child: child.expect("haproxy is installed and on the PATH"), _directory: directory }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn behind_a_balancer_nodes_see_the_client() {
    let Some(mut around) = Surroundings::start("behind_a_balancer_nodes_see_the_client") else { return };
    let [balancer, one, two] = ["balancer", "node-1", "node-2"].map(|name| around.network.machine(name));
    let client = &around.client;
    let clients = addresses_of_clients(client, address);
    let settings = [("forwarder.proxy_from", &*balancer.address().to_string())];
    let mut nodes = around.nodes([(&one, &settings), (&two, &settings)], &clients[0].to_string());
    let _balancer = Balancer::start(&balancer, [one.address(), two.address()]);
    let ask = |from: IpAddr, of: &Machine, port| client.run(|| over_tcp(from, SocketAddr::new(of.address(), port)));
    eventually("the balancer finds the nodes ready", || ask(clients[1], &balancer, PORT));

    // `allow` is of the client.
    assert!(ask(clients[0], &balancer, PRIVATE_PORT).is_some());
    assert_eq!(ask(clients[1], &balancer, PRIVATE_PORT), None);
    // So is `source_hash`: as it is without a balancer, whichever node it is.
    let through = clients.iter().map(|from| ask(*from, &balancer, HASHED_PORT).unwrap()).collect::<Vec<_>>();
    assert_eq!(through.iter().collect::<BTreeSet<_>>().len(), BACKENDS, "{through:?}");
    for node in [&one, &two] {
        let straight = clients.iter().map(|from| ask(*from, node, HASHED_PORT).unwrap()).collect::<Vec<_>>();
        assert_eq!(straight, through);
    }
    // And so is the log.
    let log = || nodes.iter().map(|node| node.harbor.as_ref().expect("it runs").log()).collect::<String>();
    for from in &clients {
        eventually("the log names each client", || log().contains(&format!("\"client\":\"{from}:")).then_some(()));
    }
    assert!(!log().contains(&format!("\"client\":\"{}:", balancer.address())));

    // The clients of a node that goes are on the other one, with the same backends.
    nodes[0].take_harbor().kill();
    eventually("the balancer has given it up", || {
        let now = clients.iter().map(|from| ask(*from, &balancer, HASHED_PORT)).collect::<Option<Vec<_>>>()?;
        assert_eq!(now, through);
        Some(())
    });
}
