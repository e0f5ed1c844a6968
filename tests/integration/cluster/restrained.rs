//! A service instance that is suspended and a network that is blocked: on all nodes at once, after restarts too, and back.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream, UdpSocket},
    time::timeout,
};

use super::trio::{Trio, address, told};
use crate::{
    end_to_end::{PLAN_BOTH, bind, delete, provision, status},
    support::{
        echo::Echo,
        eventually::{PATIENCE, eventually_async},
        harbor::{Harbor, Site},
        http::Client,
        postgres::Postgres,
    },
};

/// Where clients are that get blocked, and others.
const HOSTILE: Ipv4Addr = Ipv4Addr::new(127, 0, 99, 7);
const OTHER: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Within that everything has to be so on every node, also on a machine that does a lot besides.
const AT_ONCE: Duration = Duration::from_secs(1);

/// A service instance whose app serves both transports.
struct Service {
    id: &'static str,
    port: u16,
    token: String,
}

impl Service {
    async fn new(node: &Harbor, id: &'static str) -> Self {
        provision(node, id, PLAN_BOTH).await;
        let credentials = bind(node, id, &format!("binding-of-{id}"), PLAN_BOTH).await;
        let port = credentials["port"].as_u64().and_then(|port| port.try_into().ok()).expect("a port");
        Self { id, port, token: credentials["announce"]["token"].as_str().expect("a text").into() }
    }

    async fn announce(&self, node: &Harbor, app: &Echo) {
        let client = Client::new(node.address("announce")).with("authorization", &format!("Bearer {}", self.token));
        let body = json!({
            "binding_id": format!("binding-of-{}", self.id), "port": app.tcp.port(), "udp_port": app.udp.port(),
        });
        let answer = client.put(&format!("/announce/v1/instances/{}", self.id), &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

/// A connection and a session of a client.
struct Flows {
    stream: TcpStream,
    socket: UdpSocket,
}

impl Flows {
    /// None when the client gets nowhere.
    async fn begin(from: Ipv4Addr, to: SocketAddr) -> Option<Self> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        let stream = timeout(PATIENCE, socket.connect(to)).await.expect("it is answered").ok()?;
        let socket = UdpSocket::bind((from, 0)).await.unwrap();
        socket.connect(to).await.unwrap();
        let mut flows = Self { stream, socket };
        flows.go_on().await.then_some(flows)
    }

    /// The same, once it can.
    async fn eventually(from: Ipv4Addr, to: SocketAddr) -> Self {
        eventually_async(&format!("{from} is answered by {to}"), || Self::begin(from, to)).await
    }

    /// Whether both carry something to and fro.
    async fn go_on(&mut self) -> bool {
        let mut buffer = [0; 64];
        if self.stream.write_all(b"hello").await.is_err()
            || !matches!(timeout(PATIENCE, self.stream.read(&mut buffer)).await, Ok(Ok(1..)))
        {
            return false;
        }
        self.socket.send(b"hello").await.is_ok()
            && matches!(timeout(AT_ONCE, self.socket.recv(&mut buffer)).await, Ok(Ok(1..)))
    }

    /// Waits until the connection has been cut, and tells whether a datagram is answered by then.
    async fn ends(mut self) -> bool {
        let cut = timeout(PATIENCE, self.stream.read(&mut [0; 1])).await.expect("it is cut");
        assert!(cut.is_err() || cut.is_ok_and(|length| length == 0), "it said something");
        let answered = self.socket.send(b"hello").await.is_ok()
            && matches!(timeout(Duration::from_millis(200), self.socket.recv(&mut [0; 64])).await, Ok(Ok(1..)));
        !answered
    }
}

/// Nodes, where each binds its ports, and a site whose commands ask the first.
struct Nodes<'a> {
    all: Vec<(&'a Harbor, Ipv4Addr)>,
    site: &'a Site,
}

impl Nodes<'_> {
    /// Flows of a client to a service by every node.
    async fn flows(&self, from: Ipv4Addr, service: &Service) -> Vec<Flows> {
        let mut flows = Vec::new();
        for (_, address) in &self.all {
            flows.push(Flows::eventually(from, (*address, service.port).into()).await);
        }
        flows
    }

    async fn get_nowhere(&self, from: Ipv4Addr, service: &Service) {
        for (_, address) in &self.all {
            assert!(Flows::begin(from, (*address, service.port).into()).await.is_none(), "{from} by {address}");
        }
    }

    fn told(&self, arguments: &[&str]) -> Value {
        let admin = format!("http://{}", self.all[0].0.address("admin"));
        let (code, said) = told(self.site, &[arguments, &["--admin", &admin]].concat());
        assert_eq!(code, 0, "{arguments:?}: {said}");
        said
    }

    /// What each node says of a service instance.
    async fn listeners(&self, id: &str) -> Vec<Value> {
        let mut listeners = Vec::new();
        for (node, _) in &self.all {
            let status = status(node).await;
            assert_eq!(status["degraded"], json!([]));
            let all = status["service_instances"].as_array().unwrap().clone();
            listeners.push(all.into_iter().find(|of| of["id"] == id).expect("it is told")["listener"].clone());
        }
        listeners
    }
}

async fn all_cut(flows: Vec<Flows>, since: Instant) {
    for flow in flows {
        assert!(flow.ends().await);
    }
    assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
}

async fn all_go_on(flows: &mut [Flows]) {
    for flow in flows {
        assert!(flow.go_on().await);
    }
}

async fn suspend_and_block(nodes: &Nodes<'_>, [service, other]: [&Service; 2]) {
    let node = nodes.all[0].0;
    let suspended = nodes.flows(OTHER, service).await;
    let mut untouched = nodes.flows(OTHER, other).await;
    let hostile = nodes.flows(HOSTILE, other).await;

    let began = Instant::now();
    let said = nodes.told(&["suspend", "--service-instance", service.id, "--reason", "sends spam"]);
    all_cut(suspended, began).await;
    assert_eq!((&said["changed"], &said["lagging"]), (&json!(true), &json!([])));
    nodes.get_nowhere(OTHER, service).await;
    for listener in nodes.listeners(service.id).await {
        assert_eq!((&listener["state"], &listener["reason"]), (&json!("suspended"), &json!("sends spam")));
        assert_eq!((&listener["since"], &listener["by"]), (&said["restraint"]["since"], &said["restraint"]["by"]));
    }
    // Once more, in other words, is another reason; without words, it is the same.
    let again = nodes.told(&["suspend", "--service-instance", service.id]);
    assert_eq!((&again["changed"], &again["restraint"]), (&json!(false), &said["restraint"]));

    let began = Instant::now();
    assert_eq!(nodes.told(&["block", "127.0.99.1/24"])["changed"], true);
    all_cut(hostile, began).await;
    nodes.get_nowhere(HOSTILE, other).await;
    all_go_on(&mut untouched).await;

    let held = nodes.told(&["blocked"]);
    assert_eq!(held["suspended"][0]["service_instance"], service.id);
    assert_eq!(held["blocked"][0]["network"], "127.0.99.0/24");
    for (node, _) in &nodes.all {
        let metrics = String::from_utf8(node.admin().get("/metrics").await.body.to_vec()).unwrap();
        for sample in [
            "harbor_listeners{state=\"suspended\"} 1",
            "harbor_networks_blocked 1",
            "harbor_connections_closed_total{reason=\"suspended\"} 1",
            "harbor_connections_closed_total{reason=\"blocked\"} 1",
            "harbor_sessions_closed_total{reason=\"suspended\"} 1",
            "harbor_sessions_closed_total{reason=\"blocked\"} 1",
        ] {
            assert!(metrics.lines().any(|line| line == sample), "{sample} in\n{metrics}");
        }
    }
    // The platform goes on with it, and waits for nothing.
    let began = Instant::now();
    let key = json!({ "service_id": harbor::model::plan::SERVICE_ID, "plan_id": PLAN_BOTH });
    let path = format!("/v2/service_instances/{}", service.id);
    assert_eq!(node.broker().put(&format!("{path}/service_bindings/key-of-{}", service.id), &key).await.status, 201);
    let update = json!({ "service_id": harbor::model::plan::SERVICE_ID, "parameters": { "max_connections": 7 } });
    assert_eq!(node.broker().patch(&path, &update).await.status, 200);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

async fn still_so_and_back(nodes: &Nodes<'_>, [service, other]: [&Service; 2]) {
    let node = nodes.all[0].0;
    nodes.get_nowhere(OTHER, service).await;
    nodes.get_nowhere(HOSTILE, other).await;
    let mut untouched = nodes.flows(OTHER, other).await;
    assert!(nodes.listeners(service.id).await.iter().all(|listener| listener["state"] == "suspended"));
    assert_eq!(nodes.told(&["resume", "--service-instance", service.id])["restraint"], Value::Null);
    let admin = format!("http://{}", node.address("admin"));
    assert_eq!(told(nodes.site, &["unblock", "127.0.99.7", "--admin", &admin]).0, 1, "all around it is blocked");
    assert_eq!(nodes.told(&["unblock", "127.0.99.0/24"])["changed"], true);
    assert_eq!(nodes.told(&["unblock", "127.0.99.0/24"])["changed"], false);
    nodes.flows(OTHER, service).await;
    nodes.flows(HOSTILE, other).await;
    all_go_on(&mut untouched).await;
    assert_eq!(nodes.told(&["blocked"]), json!({ "suspended": [], "blocked": [] }));

    // What is deprovisioned is not suspended any more.
    nodes.told(&["suspend", "--service-instance", service.id]);
    delete(node, service.id, PLAN_BOTH).await;
    assert_eq!(nodes.told(&["blocked"])["suspended"], json!([]));
    let output = nodes.site.command(&["data", "export", "--format", "json"]).output().unwrap();
    let history = serde_json::from_slice::<Value>(&output.stdout).unwrap()["settings_history"].clone();
    let of = |scope: &str| history.as_array().unwrap().iter().filter(|change| change["scope"] == scope).count();
    assert_eq!((of("suspended"), of("blocked")), (4, 2), "{history}");
    assert!(history.as_array().unwrap().iter().all(|change| change["changed_by"] != ""), "{history}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_suspended_or_blocked_is_so_on_all_nodes_at_once_and_after_restarts() {
    let mut trio = Trio::start(Postgres::shared(), 2, "27700-27709").await;
    let app = Echo::start("app").await;
    let services = [Service::new(&trio.nodes[0], "abused").await, Service::new(&trio.nodes[1], "quiet").await];
    let [service, other] = &services;
    for service in &services {
        service.announce(&trio.nodes[0], &app).await;
    }
    let of = |trio: &Trio| trio.nodes.iter().zip((0..).map(address)).map(|(node, _)| node.pid()).collect::<Vec<_>>();
    let before = of(&trio);
    suspend_and_block(&nodes_of(&trio), [service, other]).await;

    // One is killed and starts anew, the other hands over to a successor.
    trio.nodes.remove(1).kill();
    let node = trio.sites[1].serve().await;
    trio.nodes.push(node);
    trio.nodes[0].restart();
    trio.meet().await;
    assert!(of(&trio).iter().zip(&before).all(|(now, before)| now != before));
    other.announce(&trio.nodes[0], &app).await;
    service.announce(&trio.nodes[1], &app).await;
    still_so_and_back(&nodes_of(&trio), [service, other]).await;
    app.stop().await;
}

fn nodes_of(trio: &Trio) -> Nodes<'_> {
    Nodes { all: trio.nodes.iter().zip((0..).map(address)).collect(), site: &trio.sites[0] }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_of_one_node_on_sqlite() {
    let site = Site::new("27710-27719", "");
    let node = site.serve().await;
    let app = Echo::start("app").await;
    let services = [Service::new(&node, "abused").await, Service::new(&node, "quiet").await];
    let [service, other] = &services;
    for service in &services {
        service.announce(&node, &app).await;
    }
    suspend_and_block(&Nodes { all: vec![(&node, Ipv4Addr::LOCALHOST)], site: &site }, [service, other]).await;
    assert!(node.terminate().success());
    let node = site.serve().await;
    for service in &services {
        service.announce(&node, &app).await;
    }
    still_so_and_back(&Nodes { all: vec![(&node, Ipv4Addr::LOCALHOST)], site: &site }, [service, other]).await;
    app.stop().await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_what_to_do() {
    let site = Site::new("27720-27729", "");
    let node = site.serve().await;
    let admin = format!("http://{}", node.address("admin"));
    for (arguments, code, expected) in [
        (&["suspend", "--service-instance", "nobody"][..], 1, "There is no service instance \"nobody\""),
        (&["resume", "--service-instance", "nobody"], 1, "There is no service instance \"nobody\""),
        (&["block", "0.0.0.0/0"], 2, "The network 0.0.0.0/0 has every client there is"),
        (&["block", "::/0"], 2, "The network ::/0 has every client there is"),
        (&["block", "example.com"], 2, "Not a network: \"example.com\""),
        (&["block", "10.0.0.0/8", "--reason", "one\ntwo"], 2, "A reason has at most 500 characters"),
        (&["suspend"], 2, "--service-instance <ID>"),
        (&["resume", "a-node", "--service-instance", "a"], 2, "cannot be used with"),
    ] {
        let output = site.command(&[&["node"], arguments, &["--admin", &admin]].concat()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    for (method, path, expected) in [
        (hyper::Method::PUT, "/admin/v1/suspensions/nobody", 404),
        (hyper::Method::DELETE, "/admin/v1/suspensions/nobody", 404),
        (hyper::Method::PUT, "/admin/v1/blocked/10.0.0.0%2F8", 200),
        (hyper::Method::PUT, "/admin/v1/blocked/10.0.0.0%2F8", 200),
        (hyper::Method::DELETE, "/admin/v1/blocked/10.0.0.0%2F8", 200),
        (hyper::Method::DELETE, "/admin/v1/blocked/10.0.0.0%2F8", 200),
        (hyper::Method::PUT, "/admin/v1/blocked/0.0.0.0%2F0", 400),
    ] {
        let answer = node.admin().send(method.clone(), path, None).await;
        assert_eq!(answer.status, expected, "{method} {path}: {answer:?}");
    }
}
