//! The whole of Harbor as an operator runs it: a process, a SQLite file, a real nats-server, apps on sockets.

use std::{
    fs,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use async_nats::Client as Nats;
use harbor::model::plan::SERVICE_ID;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

use crate::support::{
    echo::{Echo, over_tcp, tell},
    eventually::{PATIENCE, eventually_async},
    harbor::{Harbor, Site},
    http::Client,
    nats::NatsServer,
};

pub const PLAN_TCP: &str = "e1f6b1f0-57f3-5c0e-8a0b-6d3a6f0c1a02";
pub const PLAN_BOTH: &str = "e1f6b1f0-57f3-5c0e-8a0b-6d3a6f0c1a04";

pub async fn provision(harbor: &Harbor, id: &str, plan: &str) {
    provision_with(harbor, id, plan, json!({})).await;
}

pub async fn provision_with(harbor: &Harbor, id: &str, plan: &str, parameters: Value) {
    let mut body = json!({ "service_id": SERVICE_ID, "plan_id": plan, "organization_guid": "o", "space_guid": "s" });
    body["parameters"] = parameters;
    let answer = harbor.broker().put(&format!("/v2/service_instances/{id}"), &body).await;
    assert_eq!(answer.parts(), (201, json!({})));
}

/// Binds an app, and returns the credentials.
pub async fn bind(harbor: &Harbor, id: &str, binding: &str, plan: &str) -> Value {
    let body = json!({ "service_id": SERVICE_ID, "plan_id": plan, "bind_resource": { "app_guid": "app" } });
    let answer = harbor.broker().put(&format!("/v2/service_instances/{id}/service_bindings/{binding}"), &body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json()["credentials"].clone()
}

pub async fn delete(harbor: &Harbor, path: &str, plan: &str) {
    let query = format!("service_id={SERVICE_ID}&plan_id={plan}");
    let answer = harbor.broker().delete(&format!("/v2/service_instances/{path}?{query}")).await;
    assert_eq!(answer.parts(), (200, json!({})), "{path}");
}

pub fn at(credentials: &Value) -> SocketAddr {
    let port = credentials["port"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port");
    (Ipv4Addr::LOCALHOST, port).into()
}

pub async fn announce(nats: &Nats, id: &str, app: &Echo) {
    let message = json!({
        "host": "127.0.0.1",
        "port": app.tcp.port(),
        "app": "app",
        "harbor": { "instance_id": id, "udp_port": app.udp.port() },
    });
    nats.publish("harbor.register", message.to_string().into()).await.unwrap();
    nats.flush().await.unwrap();
}

/// Waits until somebody answers at a port.
pub async fn served(to: SocketAddr) -> String {
    eventually_async(&format!("an answer at {to}"), || over_tcp(to, "hello")).await
}

pub async fn unserved(to: SocketAddr) {
    eventually_async(&format!("no answer at {to}"), || async { over_tcp(to, "hello").await.is_none().then_some(()) })
        .await;
}

/// Whether somebody listens. A port without backends resets a connection as soon as it is made.
async fn listens(to: SocketAddr) -> bool {
    match TcpStream::connect(to).await {
        Ok(_) => true,
        Err(error) => error.kind() != ErrorKind::ConnectionRefused,
    }
}

async fn closed(to: SocketAddr) {
    eventually_async(&format!("{to} is closed"), || async { (!listens(to).await).then_some(()) }).await;
}

pub async fn status(harbor: &Harbor) -> Value {
    harbor.admin().get("/admin/v1/status").await.json()
}

pub fn with_nats(server: &NatsServer) -> String {
    format!("[nats]\nservers = [{:?}]\n", server.url())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_carries_tcp_and_udp_to_the_bound_app_and_closes_with_its_service_instance() {
    let server = NatsServer::start();
    let nats = async_nats::connect(server.url()).await.unwrap();
    let harbor = Site::new("28000-28009", &with_nats(&server)).serve().await;
    provision(&harbor, "game", PLAN_BOTH).await;
    let port = at(&bind(&harbor, "game", "binding", PLAN_BOTH).await);
    assert_eq!(over_tcp(port, "hello").await, None, "there is no backend yet");

    let (one, two) = (Echo::start("one").await, Echo::start("two").await);
    announce(&nats, "game", &one).await;
    served(port).await;
    announce(&nats, "game", &two).await;
    eventually_async("both instances take turns over TCP", || async {
        let answers = [over_tcp(port, "hello").await?, over_tcp(port, "hello").await?];
        (answers.contains(&"one: hello".into()) && answers.contains(&"two: hello".into())).then_some(())
    })
    .await;

    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(port).await.unwrap();
    let mut buffer = [0; 64];
    for text in ["ping", "pong"] {
        client.send(text.as_bytes()).await.unwrap();
        let size = client.recv(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..size], format!("one: {text}").as_bytes(), "the first announced is the primary");
    }

    let mut open = TcpStream::connect(port).await.unwrap();
    assert!(tell(&mut open, "still there").await.is_some());
    delete(&harbor, "game/service_bindings/binding", PLAN_BOTH).await;
    unserved(port).await;
    // Each thread ends its own: this one may be a moment after that which refused the new connection.
    let end = timeout(PATIENCE, open.read(&mut buffer)).await.expect("flows end with the authority of their backend");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");

    delete(&harbor, "game", PLAN_BOTH).await;
    closed(port).await;
    assert!(harbor.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_without_nats_announces_itself_with_the_token_of_its_binding() {
    let harbor = Site::new("28010-28019", "").serve().await;
    provision(&harbor, "chat", PLAN_TCP).await;
    let credentials = bind(&harbor, "chat", "binding", PLAN_TCP).await;
    let url = "http://harbor-announce.example.com/announce/v1/instances/chat";
    assert_eq!(credentials["announce"]["url"], url);
    let token = credentials["announce"]["token"].as_str().unwrap();
    let announcer = Client::new(harbor.address("announce")).with("authorization", &format!("Bearer {token}"));
    let app = Echo::start("app").await;
    let body = json!({ "binding_id": "binding", "port": app.tcp.port() });
    let path = "/announce/v1/instances/chat";
    assert!(announcer.put(path, &body).await.status.is_success());
    assert_eq!(served(at(&credentials)).await, "app: hello");

    let query = format!("{path}?binding_id=binding");
    assert_eq!(announcer.get(&query).await.json()["backends"].as_array().map(Vec::len), Some(1));
    let gone = announcer.delete(&format!("{query}&host=127.0.0.1&port={}", app.tcp.port())).await;
    assert!(gone.status.is_success(), "{gone:?}");
    unserved(at(&credentials)).await;

    delete(&harbor, "chat/service_bindings/binding", PLAN_TCP).await;
    assert_eq!(announcer.put(path, &body).await.status, 401, "unbinding revokes the token");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_opens_every_port_and_takes_back_the_backends_that_live() {
    let mut server = NatsServer::start();
    let nats = async_nats::connect(server.url()).await.unwrap();
    let site = Site::new("28020-28029", &with_nats(&server));
    let harbor = site.serve().await;
    let mut ports = Vec::new();
    for id in ["a", "b", "idle"] {
        provision(&harbor, id, PLAN_BOTH).await;
        ports.push(at(&bind(&harbor, id, &format!("binding-{id}"), PLAN_BOTH).await));
    }
    let (lives, dies) = (Echo::start("lives").await, Echo::start("dies").await);
    announce(&nats, "a", &lives).await;
    announce(&nats, "a", &dies).await;
    announce(&nats, "b", &lives).await;
    served(ports[1]).await;
    assert!(harbor.terminate().success());
    dies.stop().await;
    server.kill();

    let harbor = site.serve().await;
    assert_eq!(over_tcp(ports[0], "hello").await.as_deref(), Some("lives: hello"), "before NATS is back");
    assert_eq!(over_tcp(ports[1], "hello").await.as_deref(), Some("lives: hello"));
    assert!(listens(ports[2]).await);
    let shown = status(&harbor).await;
    assert_eq!(shown["listeners"], json!({ "bound": 3, "failed": 0, "closed": 0, "suspended": 0, "pending": 0 }));
    // Of the instance that died only UDP is left: nothing tells whether a datagram would arrive.
    assert_eq!((&shown["backends"]["tcp"], &shown["backends"]["udp"]), (&json!(2), &json!(3)));
    harbor.kill();

    server.restart();
    let harbor = site.serve().await;
    served(ports[0]).await;
    assert!(harbor.terminate().success());
}

/// A node that drains while a connection to `app` is open. Without NATS or its app the connection would end.
struct Draining {
    harbor: Harbor,
    open: TcpStream,
    _server: NatsServer,
    _app: Echo,
}

async fn draining(ports: &str) -> Draining {
    let server = NatsServer::start();
    let nats = async_nats::connect(server.url()).await.unwrap();
    let harbor = Site::new(ports, &with_nats(&server)).serve().await;
    provision(&harbor, "a", PLAN_TCP).await;
    let port = at(&bind(&harbor, "a", "binding", PLAN_TCP).await);
    let app = Echo::start("app").await;
    announce(&nats, "a", &app).await;
    served(port).await;
    let mut open = TcpStream::connect(port).await.unwrap();
    assert_eq!(tell(&mut open, "one").await.as_deref(), Some("app: one"));
    harbor.signal(Signal::TERM);
    closed(port).await;
    Draining { harbor, open, _server: server, _app: app }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_takes_no_new_connections_and_lets_the_open_ones_finish() {
    let Draining { harbor, mut open, _server, _app } = draining("28030-28039").await;
    let ready = harbor.admin().get("/readyz").await;
    assert_eq!((ready.status.as_u16(), &ready.json()["ready"]), (503, &json!(false)), "the admin API still answers");
    assert_eq!(tell(&mut open, "two").await.as_deref(), Some("app: two"), "what is open goes on");
    drop(open);
    harbor.logged("every connection has finished");
    assert!(harbor.wait().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_waits_for_nobody() {
    let Draining { harbor, mut open, _server, _app } = draining("28040-28049").await;
    assert!(harbor.terminate().success());
    assert_eq!(tell(&mut open, "two").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_never_ended_holds_no_port_open() {
    let harbor = Site::new("28110-28119", "").serve().await;
    provision(&harbor, "a", PLAN_TCP).await;
    let port = at(&bind(&harbor, "a", "binding", PLAN_TCP).await);
    let mut half = TcpStream::connect(harbor.address("announce")).await.unwrap();
    half.write_all(b"GET /announce/v1/instances/a HTTP/1.1\r\nHost: x").await.unwrap();
    harbor.signal(Signal::TERM);
    let told = Instant::now();
    closed(port).await;
    assert!(told.elapsed() < Duration::from_secs(5), "the port stayed open for {:?}", told.elapsed());
    assert!(harbor.terminate().success());
    assert!(told.elapsed() < Duration::from_secs(9), "a second SIGTERM is heard meanwhile");
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_takes_over_what_is_right_and_nothing_of_what_is_not() {
    let site = Site::new("28050-28054", "");
    let harbor = site.serve().await;
    provision(&harbor, "a", PLAN_TCP).await;
    bind(&harbor, "a", "binding", PLAN_TCP).await;
    let binding = "/v2/service_instances/a/service_bindings/binding";
    let config = fs::read_to_string(site.config()).unwrap();

    fs::write(site.config(), config.replace("192.0.43.10", "192.0.43.11").replace("28054", "nonsense")).unwrap();
    harbor.signal(Signal::HUP);
    let line = harbor.logged("the configuration was not taken over");
    assert!(line.contains("harbor.toml:") && line.contains("nonsense"), "{line}");
    assert_eq!(harbor.broker().get(binding).await.json()["credentials"]["ext_host"], "192.0.43.10");

    let changed = config.replace("192.0.43.10", "192.0.43.11").replace("password = \"secret\"", "password = \"other\"");
    fs::write(site.config(), changed).unwrap();
    harbor.signal(Signal::HUP);
    harbor.logged("the configuration was taken over");
    assert_eq!(harbor.broker().get(binding).await.status, 401, "the old password no longer holds");
    let client = Client::broker(harbor.address("broker"), "Basic aGFyYm9yOm90aGVy");
    assert_eq!(client.get(binding).await.json()["credentials"]["ext_host"], "192.0.43.11");
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_that_a_pool_gets_while_the_node_runs_are_no_backends_either() {
    let site = Site::new("28055-28056", "");
    let harbor = site.serve().await;
    provision(&harbor, "a", PLAN_TCP).await;
    let credentials = bind(&harbor, "a", "binding", PLAN_TCP).await;
    let token = credentials["announce"]["token"].as_str().unwrap();
    let app = Client::new(harbor.address("announce")).with("authorization", &format!("Bearer {token}"));
    let announcement = json!({"binding_id": "binding", "port": 28_059});
    assert_eq!(app.put("/announce/v1/instances/a", &announcement).await.status, 200);
    let config = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), config.replace("28056", "28059")).unwrap();
    harbor.signal(Signal::HUP);
    harbor.logged("the configuration was taken over");
    let refused = app.put("/announce/v1/instances/a", &announcement).await;
    assert_eq!((refused.status.as_u16(), &refused.json()["error"]), (403, &json!("loop")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_somebody_else_holds_fails_alone_is_shown_and_heals() {
    let site = Site::new("28060-28069", "");
    let harbor = site.serve().await;
    provision(&harbor, "a", PLAN_TCP).await;
    provision(&harbor, "b", PLAN_TCP).await;
    let ports =
        [at(&bind(&harbor, "a", "binding-a", PLAN_TCP).await), at(&bind(&harbor, "b", "binding-b", PLAN_TCP).await)];
    harbor.kill();
    let stranger = TcpListener::bind(ports[0]).await.unwrap();
    let harbor = site.serve().await;
    assert!(listens(ports[1]).await);
    let shown = status(&harbor).await;
    assert_eq!(shown["listeners"], json!({ "bound": 1, "failed": 1, "closed": 0, "suspended": 0, "pending": 0 }));
    let reason = shown["service_instances"][0]["listener"]["reason"].as_str().unwrap();
    assert!(reason.contains(&format!("process {}", std::process::id())), "it names the holder: {reason}");
    let admin = format!("http://{}", harbor.address("admin"));
    let output = tokio::task::spawn_blocking({
        let mut command = site.command(&["status", "--admin", &admin]);
        move || command.output()
    })
    .await
    .unwrap();
    assert_eq!(output.unwrap().status.code(), Some(1), "a node with a failed port is degraded");

    let line = harbor.logged("port not open");
    assert!(line.contains(&format!("process {}", std::process::id())) && line.contains("\"ERROR\""), "{line}");
    let metric = async |name: &str| {
        let text = String::from_utf8(harbor.admin().get("/metrics").await.body.to_vec()).unwrap();
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok()).expect(name)
    };
    assert_eq!(metric("harbor_listeners{state=\"failed\"}").await, 1);

    drop(stranger);
    let freed = Instant::now();
    harbor.logged(r#""message":"port open","service_instance":"a""#);
    let took = freed.elapsed();
    assert!(took < Duration::from_secs(1), "a port that is free was taken after {took:?}");
    eventually_async("the status shows it", || async {
        (status(&harbor).await["listeners"]["bound"] == 2).then_some(())
    })
    .await;
    assert_eq!(metric("harbor_listeners{state=\"failed\"}").await, 0);
    assert!(listens(ports[0]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_service_instance_does_not_get_a_port_that_somebody_else_holds() {
    let stranger = TcpListener::bind("127.0.0.1:28070").await.unwrap();
    let harbor = Site::new("28070-28071", "").serve().await;
    provision(&harbor, "a", PLAN_TCP).await;
    assert_eq!(at(&bind(&harbor, "a", "binding", PLAN_TCP).await).port(), 28071);
    drop(stranger);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_the_same_data_refuses_to_start() {
    let site = Site::new("28080-28089", "");
    let harbor = site.serve().await;
    let second = site.start();
    second.logged("in use");
    assert_eq!(second.wait().code(), Some(1));
    assert_eq!(harbor.admin().get("/readyz").await.status, 200, "the first goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_may_be_absent_at_the_start_and_be_lost_and_come_back() {
    let mut server = NatsServer::stopped();
    let harbor = Site::new("28090-28099", &with_nats(&server)).serve().await;
    provision(&harbor, "a", PLAN_TCP).await;
    let port = at(&bind(&harbor, "a", "binding", PLAN_TCP).await);
    let shown = status(&harbor).await;
    assert_eq!(shown["nats"]["state"], "down");
    assert!(shown["degraded"][0].as_str().unwrap().starts_with("NATS is away"), "{shown}");

    server.restart();
    let app = Echo::start("app").await;
    let up = || async { (status(&harbor).await["nats"]["state"] == "up").then_some(()) };
    eventually_async("NATS is there", up).await;
    announce(&async_nats::connect(server.url()).await.unwrap(), "a", &app).await;
    served(port).await;

    server.kill();
    eventually_async("NATS is away", || async { (status(&harbor).await["nats"]["state"] == "down").then_some(()) })
        .await;
    assert_eq!(over_tcp(port, "hello").await.as_deref(), Some("app: hello"), "traffic does not wait for NATS");
    server.restart();
    eventually_async("NATS is back", up).await;
    assert_eq!(over_tcp(port, "hello").await.as_deref(), Some("app: hello"));
}
