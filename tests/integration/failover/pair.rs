//! Nodes that share a store, with a client, an app, PostgreSQL and NATS, each on machines of its own; and two of them
//! that share an address.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::PermissionsExt as _,
};

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
        postgres::{PASSWORD, Postgres},
    },
};

/// The virtual address, of either kind.
pub const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 100));
pub const ADDRESS_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 100));

/// How long a node that drains goes on: longer than an address takes to move.
pub const DRAIN_WAIT: &str = "600ms";

/// What nodes need and serve; ends from the first field to the last.
pub struct Surroundings {
    /// Where clients are.
    pub client: Machine,
    /// Where NATS and PostgreSQL are.
    pub servers: [Machine; 2],
    _apps: Apps,
    nats: NatsServer,
    _postgres: Postgres,
    /// The URL of the nodes' store.
    database: String,
    pub network: Network,
}

/// Two nodes of one store that share an address.
pub struct Pair {
    pub keepalived: [Keepalived; 2],
    pub nodes: [Node; 2],
    pub around: Surroundings,
}

/// One node.
pub struct Node {
    pub machine: Machine,
    pub harbor: Option<Harbor>,
    site: Site,
}

impl Surroundings {
    /// Starts all of it. None where `test` is skipped.
    pub fn start(test: &str) -> Option<Self> {
        let mut network = Network::new(test)?;
        let [client, bus, store] = ["client", "nats", "postgres"].map(|name| network.machine(name));
        let (nats, postgres) = (NatsServer::start_on(&bus), Postgres::start_at(store.address(), store.words().into()));
        let database = postgres.database_over_tcp();
        let apps = Apps::start(&mut network, &nats);
        Some(Self { client, servers: [bus, store], _apps: apps, nats, _postgres: postgres, database, network })
    }

    /// Starts one node on each of the machines, with these settings, and waits until both know the service instances
    /// and all their backends. `allow` is the network of clients that the private one is for.
    pub fn nodes(&self, settings: [(&Machine, &[(&str, &str)]); 2], allow: &str) -> [Node; 2] {
        let nodes = settings.map(|(machine, settings)| Node::start(machine, self, settings));
        // One store: what one node provisions is on both.
        let harbor = nodes[0].harbor.as_ref().expect("it runs");
        nodes[0].machine.block_on(|| provision(harbor, allow));
        nodes.iter().for_each(Node::wait_for_backends);
        nodes
    }
}

impl Pair {
    /// Starts all of it, and waits until both nodes know all backends and one of them has the address. None where
    /// `test` is skipped.
    pub fn start(test: &str) -> Option<Self> {
        Self::start_with(test, &[])
    }

    /// The same with more settings.
    pub fn start_with(test: &str, more: &[(&str, &str)]) -> Option<Self> {
        let mut around = Surroundings::start(test)?;
        let [one, two] = ["node-1", "node-2"].map(|name| around.network.machine(name));
        let (host, virtual_ones) = (ADDRESS.to_string(), format!("{ADDRESS}, {ADDRESS_V6}"));
        // The one takes the ports of every address that it has, the other those of one that it does not have yet.
        let settings = ["::", &virtual_ones].map(|listen| {
            [&[("harbor_node.listen", listen), ("harbor_node.host", &*host), ("log.level", "info")], more].concat()
        });
        let nodes = around.nodes([(&one, &settings[0]), (&two, &settings[1])], &around.client.address().to_string());
        let keepalived = [(&one, &two, 200), (&two, &one, 150)].map(|(machine, peer, priority)| {
            let (own, peer, peer_v6) = (machine.address(), peer.address(), peer.address_v6());
            let place = Place { own, peer, peer_v6, priority, admin: "127.0.0.1 8081" };
            Keepalived::start(machine, place, ADDRESS, ADDRESS_V6)
        });
        let pair = Self { keepalived, nodes, around };
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
    fn start(machine: &Machine, around: &Surroundings, settings: &[(&str, &str)]) -> Self {
        let site = Site::new(PORTS, &with_nats(&around.nats));
        let (token_file, password_file) = (site.data().join("admin.token"), site.path().join("password"));
        fs::write(&password_file, PASSWORD).expect("the site is ours");
        fs::set_permissions(&password_file, fs::Permissions::from_mode(0o600)).expect("the site is ours");
        let site = site
            .with("harbor_node.id", &format!("node-{}", machine.address()))
            .with("store.url", &around.database)
            .with("store.password_file", password_file.to_str().expect("a plain path"))
            .with("admin.listen", "0.0.0.0:8081")
            .with("admin.token_file", token_file.to_str().expect("a plain path"))
            .with("discovery.backend_networks", "10.77.0.0/24")
            .with("forwarder.drain_wait", DRAIN_WAIT)
            .with("forwarder.drain_timeout", "0s");
        let site = settings.iter().fold(site, |site, (key, value)| site.with(key, value));
        let harbor = machine.serve(&site);
        Self { machine: machine.clone(), harbor: Some(harbor), site }
    }

    /// Does what an operator does with `harbor`.
    pub fn command(&self, arguments: &[&str]) {
        let output = self.machine.inside(&self.site.command(arguments)).output().expect("the binary is there");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
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
