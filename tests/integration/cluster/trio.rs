//! Nodes that share a database and a NATS server.

use std::net::{Ipv4Addr, SocketAddr};

use harbor::model::plan::SERVICE_ID;
use serde_json::{Value, json};

use crate::{
    end_to_end::PLAN_TCP,
    support::{
        eventually::eventually_async,
        harbor::{Harbor, Site},
        http::Answer,
        nats::NatsServer,
        postgres::Postgres,
    },
};

/// The nodes and what they share; ends from the first field to the last.
pub struct Trio {
    pub nodes: Vec<Harbor>,
    pub sites: Vec<Site>,
    pub nats: NatsServer,
    pub url: String,
}

impl Trio {
    /// So many nodes on a database of their own of `postgres`, with a pool of these ports.
    pub async fn start(postgres: &Postgres, count: u8, ports: &str) -> Self {
        Self::start_with(postgres, count, ports, "").await
    }

    /// The same with more settings: of the node, then of sections.
    pub async fn start_with(postgres: &Postgres, count: u8, ports: &str, more: &str) -> Self {
        let (nats, url) = (NatsServer::start(), postgres.database());
        let mut trio = Self { nodes: Vec::new(), sites: Vec::new(), nats, url };
        for number in 0..count {
            trio.add(number, ports, more).await;
        }
        trio.meet().await;
        trio
    }

    /// Starts one more, and waits until it is ready.
    pub async fn add(&mut self, number: u8, ports: &str, more: &str) {
        let site = self.site(number, ports, more);
        let node = site.start();
        node.ready().await;
        self.sites.push(site);
        self.nodes.push(node);
    }

    /// The site of one more node.
    pub fn site(&self, number: u8, ports: &str, more: &str) -> Site {
        let listen = format!("listen = [\"{}\"]\n", address(number));
        let shared = format!("[store]\nurl = {:?}\n[nats]\nservers = [{:?}]\n", self.url, self.nats.url());
        Site::named(&name(number), ports, &format!("{listen}{more}\n{shared}"))
    }

    /// Waits until every node knows that all live.
    pub async fn meet(&self) {
        let count = self.nodes.len();
        for node in &self.nodes {
            eventually_async("all nodes live", || async {
                let nodes = nodes(node).await;
                (nodes.iter().filter(|node| node["alive"] == true).count() == count).then_some(())
            })
            .await;
        }
    }
}

/// The name of a node.
pub fn name(number: u8) -> String {
    format!("node-{number}")
}

/// Where a node binds its ports.
pub fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, 11 + number)
}

/// What a node says of all.
pub async fn nodes(asked: &Harbor) -> Vec<Value> {
    asked.admin().get("/admin/v1/nodes").await.json()["nodes"].as_array().expect("a list").clone()
}

/// What a node says of one.
pub async fn node(asked: &Harbor, number: u8) -> Value {
    let all = nodes(asked).await;
    all.into_iter().find(|node| node["id"] == name(number)).expect("it has joined")
}

/// A request for a service instance.
pub fn wish(plan: &str, parameters: Value) -> Value {
    json!({
        "service_id": SERVICE_ID, "plan_id": plan, "organization_guid": "o", "space_guid": "s", "parameters": parameters,
    })
}

/// Asks a node for a service instance.
pub async fn put(node: &Harbor, id: &str, query: &str) -> Answer {
    node.broker().put(&format!("/v2/service_instances/{id}{query}"), &wish(PLAN_TCP, json!({}))).await
}

/// The port of a service instance, from the credentials of a key.
pub async fn port_of(node: &Harbor, id: &str) -> u16 {
    let body = json!({ "service_id": SERVICE_ID, "plan_id": PLAN_TCP });
    let answer = node.broker().put(&format!("/v2/service_instances/{id}/service_bindings/key-{id}"), &body).await;
    assert!(answer.status.is_success(), "{answer:?}");
    u16::try_from(answer.json()["credentials"]["port"].as_u64().expect("a port")).expect("a port")
}

/// Whether a node listens there.
pub async fn listens(number: u8, port: u16) -> bool {
    let to = SocketAddr::from((address(number), port));
    match tokio::net::TcpStream::connect(to).await {
        Ok(_) => true,
        // A port without backends resets a connection as soon as it is made.
        Err(error) => error.kind() != std::io::ErrorKind::ConnectionRefused,
    }
}

/// What `harbor node …` says of a node, as JSON, and with which exit code it ends.
pub fn told(site: &Site, arguments: &[&str]) -> (i32, Value) {
    let output = site.command(&[&["node"], arguments, &["--json"]].concat()).output().expect("it is built");
    let text = String::from_utf8(output.stdout).expect("text");
    (output.status.code().expect("it ends"), serde_json::from_str(&text).unwrap_or(Value::Null))
}

/// The environment that says where a node is asked.
pub fn reach(node: &Harbor) -> String {
    format!("http://{}", node.address("admin"))
}
