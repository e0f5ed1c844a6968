//! Two nodes that share an address, with a client, an app and NATS, each on machines of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use super::apps::{Apps, BACKENDS, PORTS, provision};
use crate::{
    end_to_end::{status, with_nats},
    support::{
        eventually::{eventually, eventually_async},
        harbor::{Harbor, Site},
        keepalived::{Keepalived, Place},
        namespaces::{Machine, Network},
        nats::NatsServer,
    },
};

/// The virtual address, of either kind.
pub const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 100));
pub const ADDRESS_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 100));

/// How long a node that drains goes on: longer than an address takes to move.
const DRAIN_WAIT: &str = "600ms";

/// All of it; ends from the first field to the last.
pub struct Pair {
    pub keepalived: [Keepalived; 2],
    pub nodes: [Node; 2],
    pub client: Machine,
    _apps: Apps,
    _nats: NatsServer,
    _network: Network,
}

/// One node. With a store of its own: what both are to have is provisioned on both.
pub struct Node {
    pub machine: Machine,
    pub harbor: Option<Harbor>,
    site: Site,
}

impl Pair {
    /// Starts all of it, and waits until both nodes know all backends and one of them has the address. None where
    /// `test` is skipped.
    pub fn start(test: &str) -> Option<Self> {
        let mut network = Network::new(test)?;
        let [client, bus, one, two] = ["client", "nats", "node-1", "node-2"].map(|name| network.machine(name));
        let nats = NatsServer::start_on(&bus);
        let apps = Apps::start(&mut network, &nats);
        // The one takes the ports of every address that it has, the other those of one that it does not have yet.
        let virtual_ones = format!("{ADDRESS}, {ADDRESS_V6}");
        let nodes = [(&one, "::"), (&two, &virtual_ones)].map(|(machine, listen)| {
            let host = ADDRESS.to_string();
            let more = [("harbor_node.listen", listen), ("harbor_node.host", &host), ("log.level", "info")];
            Node::start(machine, &nats, &more, &client.address().to_string())
        });
        let keepalived = [(&one, &two, 200), (&two, &one, 150)].map(|(machine, peer, priority)| {
            let place = Place { own: machine.address(), peer: peer.address(), priority, admin: "127.0.0.1 8081" };
            Keepalived::start(machine, place, &format!("{ADDRESS}/24"), &format!("{ADDRESS_V6}/64"))
        });
        let pair = Self { keepalived, nodes, client, _apps: apps, _nats: nats, _network: network };
        pair.roles();
        Some(pair)
    }

    /// Which node has the address, and which one waits for it; once that is so.
    pub fn roles(&self) -> (usize, usize) {
        let role = |node: usize| {
            let machine = &self.nodes[node].machine;
            (self.keepalived[node].state(), machine.has(ADDRESS), machine.has(ADDRESS_V6))
        };
        eventually("one node has the address, and the other waits", || {
            let roles = [role(0), role(1)];
            let is = |node: usize, state: &str, has: bool| roles[node] == (state.into(), has, has);
            [(0, 1), (1, 0)]
                .into_iter()
                .find(|(active, standby)| is(*active, "MASTER", true) && is(*standby, "BACKUP", false))
        })
    }
}

impl Node {
    /// Starts one with these settings, and waits until it knows the service instances and all their backends. `allow`
    /// is the network of clients that the private one is for.
    pub fn start(machine: &Machine, nats: &NatsServer, settings: &[(&str, &str)], allow: &str) -> Self {
        let site = Site::new(PORTS, &with_nats(nats));
        let token_file = site.data().join("admin.token");
        let site = site
            .with("harbor_node.id", &format!("node-{}", machine.address()))
            .with("admin.listen", "0.0.0.0:8081")
            .with("admin.token_file", token_file.to_str().expect("a plain path"))
            .with("discovery.backend_networks", "10.77.0.0/24")
            .with("forwarder.drain_wait", DRAIN_WAIT)
            .with("forwarder.drain_timeout", "0s");
        let site = settings.iter().fold(site, |site, (key, value)| site.with(key, value));
        let harbor = machine.serve(&site);
        machine.block_on(|| provision(&harbor, allow));
        let node = Self { machine: machine.clone(), harbor: Some(harbor), site };
        node.wait_for_backends();
        node
    }

    /// Takes its process away.
    pub fn take_harbor(&mut self) -> Harbor {
        self.harbor.take().expect("it runs")
    }

    /// Starts it again, and waits until it knows all backends.
    pub fn start_again(&mut self) {
        self.harbor = Some(self.machine.serve(&self.site));
        self.wait_for_backends();
    }

    fn wait_for_backends(&self) {
        let harbor = self.harbor.as_ref().expect("it runs");
        self.machine.block_on(|| {
            eventually_async("the node knows all backends", async || {
                let instances = status(harbor).await["service_instances"].take();
                let complete = |instance: &Value| instance["backends"].as_array().map(Vec::len) == Some(2 * BACKENDS);
                instances.as_array()?.iter().all(complete).then_some(())
            })
        });
    }
}
