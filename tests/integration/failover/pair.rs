//! Two nodes that share an address, with a client, an app's two instances and NATS, each on a machine of its own.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use serde_json::json;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use crate::{
    end_to_end::{PLAN_BOTH, bind, provision_with, with_nats},
    support::{
        echo::Echo,
        harbor::{Harbor, Site},
        keepalived::{Keepalived, Place},
        namespaces::{Machine, Network, Resident},
        nats::NatsServer,
    },
};

/// The virtual address, of either kind.
pub const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 100));
pub const ADDRESS_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 100));
/// The port of the service instance.
pub const PORT: u16 = 31_005;

/// Where instances of the app serve, each on its own machine.
const APP_PORT: u16 = 4100;
const ANNOUNCE_EVERY: Duration = Duration::from_millis(200);
/// `admin.listen` on each node.
const ADMIN: &str = "127.0.0.1:8081";
/// How long a node that drains goes on: longer than an address takes to move.
const DRAIN_WAIT: &str = "600ms";

/// All of it; ends from the first field to the last.
pub struct Pair {
    pub nodes: [Node; 2],
    pub client: Machine,
    _apps: Vec<Resident>,
    _nats: NatsServer,
    _network: Network,
}

/// One of the two nodes.
pub struct Node {
    pub machine: Machine,
    pub keepalived: Keepalived,
    pub harbor: Option<Harbor>,
    site: Site,
}

impl Pair {
    /// Starts all of it, and waits until the port serves and one of the nodes has the address. None where `test` is
    /// skipped.
    pub fn start(test: &str) -> Option<Self> {
        let mut network = Network::new(test)?;
        let [client, one, two, bus, app_one, app_two] =
            ["client", "node-1", "node-2", "nats", "app-1", "app-2"].map(|name| network.machine(name));
        let nats = NatsServer::start_on(&bus);
        let apps = [(&app_one, "one"), (&app_two, "two")].map(|(machine, name)| serve(machine, name));
        // The one takes the ports of every address that it has, the other those of one that it does not have yet.
        let virtual_ones = format!("{ADDRESS}, {ADDRESS_V6}");
        let nodes = [(one.clone(), &two, 210, "::"), (two.clone(), &one, 200, &virtual_ones)];
        let nodes = nodes.map(|(machine, peer, priority, listen)| Node::start(machine, peer, priority, listen, &nats));
        for node in &nodes {
            node.provision();
        }
        let url = nats.url();
        let announced = [app_one.address(), app_two.address()];
        let announcer = bus.keep(move |stop| announce(url, announced, stop));
        nodes[0].keepalived.wait_for("MASTER");
        nodes[1].keepalived.wait_for("BACKUP");
        let apps = apps.into_iter().chain([announcer]).collect();
        Some(Self { nodes, client, _apps: apps, _nats: nats, _network: network })
    }

    /// Which node has the address, and which one waits for it.
    pub fn roles(&self) -> (usize, usize) {
        let has = self.nodes.each_ref().map(|node| node.machine.has(ADDRESS));
        match has {
            [true, false] => (0, 1),
            [false, true] => (1, 0),
            _ => panic!("one node has the address, not {has:?}"),
        }
    }
}

impl Node {
    fn start(machine: Machine, peer: &Machine, priority: u8, listen: &str, nats: &NatsServer) -> Self {
        let site = Site::new("31000-31009", &with_nats(nats))
            .with("harbor_node.id", &format!("node_{priority}"))
            .with("harbor_node.listen", listen)
            .with("harbor_node.host", &ADDRESS.to_string())
            .with("admin.listen", ADMIN)
            .with("discovery.backend_networks", "10.77.0.0/24")
            .with("forwarder.drain_wait", DRAIN_WAIT)
            .with("forwarder.drain_timeout", "0s")
            .with("log.level", "info");
        let harbor = machine.serve(&site);
        let place = Place { own: machine.address(), peer: peer.address(), priority, admin: &ADMIN.replace(':', " ") };
        let keepalived = Keepalived::start(&machine, place, &format!("{ADDRESS}/24"), &format!("{ADDRESS_V6}/64"));
        Self { machine, keepalived, harbor: Some(harbor), site }
    }

    /// Makes the service instance known: each node has a store of its own.
    fn provision(&self) {
        let harbor = self.harbor.as_ref().expect("it runs");
        self.machine.block_on(|| async {
            provision_with(harbor, "game", PLAN_BOTH, json!({ "port": PORT })).await;
            bind(harbor, "game", "binding", PLAN_BOTH).await;
        });
    }

    /// Takes its process away.
    pub fn harbor(&mut self) -> Harbor {
        self.harbor.take().expect("it runs")
    }

    /// Starts it again.
    pub fn start_again(&mut self) {
        self.harbor = Some(self.machine.serve(&self.site));
    }
}

/// An instance of the app.
fn serve(machine: &Machine, name: &'static str) -> Resident {
    let address = SocketAddr::new(machine.address(), APP_PORT);
    machine.keep(move |stop| async move {
        let app = Echo::start_at(address, name).await;
        stop.cancelled().await;
        app.stop().await;
    })
}

/// Says where the instances are, again and again, as a platform does.
async fn announce(nats: String, instances: [IpAddr; 2], stop: CancellationToken) {
    let nats = async_nats::connect(nats).await.expect("the server is up");
    let mut ticks = interval(ANNOUNCE_EVERY);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        for host in instances {
            let message = json!({ "host": host, "port": APP_PORT, "app": "app", "harbor": { "instance_id": "game" } });
            // What cannot be said now is said the next time.
            let _ = nats.publish("harbor.register", message.to_string().into()).await;
        }
    }
}
