//! Announcements over a real nats-server.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use async_nats::Client;
use futures_util::StreamExt as _;
use harbor::{
    backends::{Backends, Phase},
    discovery::{
        Discovery, Relays, Settings,
        address::AddressRules,
        judge::Rules,
        nats::{self, Login, Tls},
        source::{Action, Source},
        upkeep,
        wire::{HARBOR_REGISTER, HARBOR_START, HARBOR_UNREGISTER, ROUTER_REGISTER, ROUTER_UNREGISTER},
    },
    model::{
        AppId, BindingId, Clock, PoolName, Protocol, Revision, ServiceInstanceId, Timestamp,
        announcement::Authority,
        binding::Binding,
        directory::{Directory, DirectoryEntry},
        observed::Link,
        token::{AnnounceSecret, SECRET_BYTES},
    },
    telemetry::metrics::Metrics,
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::support::{
    eventually::{PATIENCE, eventually_async},
    mutate,
    nats::NatsServer,
};

pub mod logins;
mod seniority;
mod sources;

/// A clock that stands still until it is told to move.
#[derive(Debug)]
pub struct ManualClock {
    start: Instant,
    now: Mutex<Instant>,
}

impl ManualClock {
    fn new() -> Self {
        let start = Instant::now();
        Self { start, now: Mutex::new(start) }
    }

    pub fn advance(&self, by: Duration) {
        *self.now.lock().unwrap() += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        *self.now.lock().unwrap()
    }

    fn wall(&self) -> Timestamp {
        Timestamp::from_seconds(1_700_000_000).plus(self.now() - self.start)
    }
}

/// One node's discovery with everything but ports.
pub struct Node {
    pub discovery: Arc<Discovery>,
    pub backends: Backends,
    pub directory: watch::Sender<Arc<Directory>>,
    pub link: watch::Receiver<Link>,
    pub metrics: Metrics,
    pub clock: Arc<ManualClock>,
    pub shutdown: CancellationToken,
    relays: Option<Relays>,
    link_sender: watch::Sender<Link>,
    tasks: JoinSet<()>,
}

impl Node {
    /// One that knows [`directory`] and is not connected.
    pub fn new() -> Self {
        let (directory, receiver) = watch::channel(Arc::new(directory()));
        let (link_sender, link) = watch::channel(Link::Absent);
        let (backends, metrics) = (Backends::new(256), Metrics::new());
        let clock = Arc::new(ManualClock::new());
        let (discovery, relays) = Discovery::new(
            settings(),
            backends.clone(),
            receiver,
            Arc::clone(&clock) as Arc<dyn Clock>,
            Arc::clone(&metrics.discovery),
        );
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(upkeep::run(Arc::clone(&discovery), shutdown.clone()));
        Self {
            discovery,
            backends,
            directory,
            link,
            metrics,
            clock,
            shutdown,
            relays: Some(relays),
            link_sender,
            tasks,
        }
    }

    /// One that is connected, or tries to be.
    pub fn on(server: &NatsServer) -> Self {
        let mut node = Self::new();
        node.connect(nats_settings(server));
        node
    }

    pub fn connect(&mut self, settings: nats::Settings) {
        let relays = self.relays.take().expect("a node connects once");
        let (discovery, link, shutdown) =
            (Arc::clone(&self.discovery), self.link_sender.clone(), self.shutdown.clone());
        self.tasks.spawn(nats::run(discovery, relays, settings, link, shutdown));
    }

    pub async fn up(&mut self) {
        self.reaches("NATS is connected", |link| matches!(link, Link::Up(_))).await;
    }

    pub async fn down(&mut self) {
        self.reaches("NATS is away", |link| matches!(link, Link::Down(..))).await;
    }

    pub async fn reaches(&mut self, what: &str, wanted: impl FnMut(&Link) -> bool) {
        let reached = tokio::time::timeout(PATIENCE, self.link.wait_for(wanted)).await;
        drop(reached.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}")).expect("the node is there"));
    }

    /// `<protocol> <address>` of each backend that new flows may go to.
    pub fn shown(&self, id: &str) -> Vec<String> {
        let set = self.backends.slot(&ServiceInstanceId::new(id).unwrap()).load_full();
        let each = set.tcp.iter().chain(&set.udp);
        each.map(|backend| format!("{} {}", backend.endpoint.transport, backend.endpoint.address)).collect()
    }

    pub async fn shows(&self, id: &str, expect: &[&str]) {
        eventually_async(&format!("{id} has the backends {expect:?}"), || async {
            (self.shown(id) == expect).then_some(())
        })
        .await;
    }

    /// How many messages came from `source`.
    fn received(&self, source: &'static str) -> u64 {
        let outcomes = ["added", "altered", "renewed", "removed", "refused"];
        outcomes.into_iter().map(|outcome| self.metrics.discovery.announcements(source, outcome).get()).sum()
    }

    fn refused(&self, source: &'static str, reason: &'static str) -> u64 {
        self.metrics.discovery.refusals(source, reason).get()
    }

    async fn has_received(&self, source: &'static str, count: u64) {
        eventually_async(&format!("{count} messages from {source} are in"), || async {
            (self.received(source) >= count).then_some(())
        })
        .await;
        assert_eq!(self.received(source), count);
    }

    /// Ends it; all of its tasks are joined.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("no task panics");
        }
    }
}

/// `tcp-one` on port 23001 with the app `app`, `both-one` on 23002 with the key `key`, `matched` on 23003 with the app
/// `matched-app` and `match_app`.
pub fn directory() -> Directory {
    let mut directory = Directory::new(AnnounceSecret::new([1; SECRET_BYTES]));
    for (id, port, protocol, binding, app) in [
        ("tcp-one", 23_001, Protocol::Tcp, "of-app", Some("app")),
        ("both-one", 23_002, Protocol::Both, "key", None),
        ("matched", 23_003, Protocol::Tcp, "of-matched", Some("matched-app")),
    ] {
        let id = ServiceInstanceId::new(id).unwrap();
        directory.put_instance(DirectoryEntry {
            id: id.clone(),
            pool: PoolName::new("default").unwrap(),
            port,
            protocol,
            int_port: 4100,
            match_app: app == Some("matched-app"),
            bindings: BTreeSet::new(),
            apps: Default::default(),
        });
        directory.put_binding(&Arc::new(Binding {
            id: BindingId::new(binding).unwrap(),
            service_instance_id: id,
            app_id: app.map(|app| AppId::new(app).unwrap()),
            space_id: None,
            announce: true,
            predecessor_id: None,
            created_at: Timestamp::default(),
            revision: Revision(1),
        }));
    }
    directory
}

pub fn settings() -> Settings {
    let networks = ["10.0.0.0/8", "127.0.0.0/8"].map(|network| network.parse().unwrap());
    Settings {
        rules: Rules {
            domain: Some("harbor.example.com".into()),
            stale_after: Duration::from_secs(120),
            trusted: Vec::new(),
            addresses: AddressRules {
                backend_networks: networks.into(),
                pool_ports: "23000-23099".parse().unwrap(),
                ..AddressRules::default()
            },
        },
        prune_every: Duration::from_millis(20),
        prune_suspend_max: Duration::from_secs(600),
        token_networks: vec!["10.0.1.0/24".parse().unwrap()],
    }
}

pub fn nats_settings(server: &NatsServer) -> nats::Settings {
    nats::Settings {
        servers: vec![server.url()],
        login: Login::Anonymous,
        tls: Tls::default(),
        harbor_subjects: true,
        router_subjects: true,
        service_discovery_subjects: true,
        id: "harbor_node_1-run".into(),
        hosts: vec!["10.0.0.5".into()],
    }
}

/// A client as an announcer or an onlooker has one.
pub async fn onlooker(server: &NatsServer) -> Client {
    async_nats::connect(server.url()).await.expect("the server is up")
}

pub async fn publish(client: &Client, subject: &'static str, message: &Value) {
    client.publish(subject, message.to_string().into()).await.expect("the message is queued");
    client.flush().await.expect("the server is up");
}

/// The next message of a subscription, as JSON.
pub async fn next(subscriber: &mut async_nats::Subscriber) -> Value {
    let message = tokio::time::timeout(PATIENCE, subscriber.next()).await.expect("a message comes in time");
    serde_json::from_slice(&message.expect("the subscription stands").payload).expect("JSON")
}

fn of_app(port: u16) -> Value {
    json!({"host": "10.0.1.7", "port": port, "app": "app", "private_instance_id": "i",
           "tags": {"harbor_instance": "tcp-one"}})
}

#[tokio::test]
async fn what_is_announced_becomes_a_backend_and_what_is_withdrawn_is_none() {
    let server = NatsServer::start();
    let mut node = Node::on(&server);
    node.up().await;
    let client = onlooker(&server).await;

    publish(&client, HARBOR_REGISTER, &of_app(61_012)).await;
    node.shows("tcp-one", &["tcp 10.0.1.7:61012"]).await;
    publish(
        &client,
        ROUTER_REGISTER,
        &json!({"uris": ["p23001.harbor.example.com"], "host": "10.0.1.8", "port": 61_013,
        "app": "app", "tags": null, "private_instance_index": "0"}),
    )
    .await;
    node.shows("tcp-one", &["tcp 10.0.1.7:61012", "tcp 10.0.1.8:61013"]).await;
    publish(
        &client,
        ROUTER_REGISTER,
        &json!({"uris": ["www.example.com"], "host": "10.0.1.9", "port": 61_014, "app": "matched-app"}),
    )
    .await;
    node.shows("matched", &["tcp 10.0.1.9:61014"]).await;

    publish(&client, HARBOR_UNREGISTER, &of_app(61_012)).await;
    node.shows("tcp-one", &["tcp 10.0.1.8:61013"]).await;
    publish(
        &client,
        ROUTER_UNREGISTER,
        &json!({"uris": ["www.example.com"], "host": "10.0.1.9", "port": 61_014, "app": "matched-app"}),
    )
    .await;
    node.shows("matched", &[]).await;
    assert_eq!(node.received("harbor") + node.received("router"), 5);
    let text = node.metrics.encode();
    for line in [
        "harbor_announcements_total{source=\"harbor\",outcome=\"added\"} 1",
        "harbor_announcements_total{source=\"router\",outcome=\"removed\"} 1",
        "harbor_announcement_to_set_seconds_count 5",
        "harbor_backends{transport=\"tcp\"} 1",
        "harbor_nats_connected 1",
    ] {
        assert!(text.lines().any(|other| other == line), "{line} in\n{text}");
    }
    node.stop().await;
}

#[tokio::test]
async fn a_backend_ends_with_its_binding() {
    let server = NatsServer::start();
    let mut node = Node::on(&server);
    node.up().await;
    publish(&onlooker(&server).await, HARBOR_REGISTER, &of_app(61_012)).await;
    node.shows("tcp-one", &["tcp 10.0.1.7:61012"]).await;
    let backend = Arc::clone(&node.backends.slot(&ServiceInstanceId::new("tcp-one").unwrap()).load().tcp[0]);
    node.directory.send_modify(|directory| {
        Arc::make_mut(directory).remove_binding(&BindingId::new("of-app").unwrap());
    });
    node.shows("tcp-one", &[]).await;
    assert_eq!(backend.phase(), Phase::Revoked);
    node.stop().await;
}

#[tokio::test]
async fn announcers_are_asked_to_speak_and_answered_when_they_greet() {
    let server = NatsServer::start();
    let client = onlooker(&server).await;
    let mut starts = client.subscribe(HARBOR_START).await.unwrap();
    let mut others = client.subscribe("router.>").await.unwrap();
    client.flush().await.unwrap();
    let mut node = Node::on(&server);
    node.up().await;
    let expect = json!({"id": "harbor_node_1-run", "hosts": ["10.0.0.5"], "minimumRegisterIntervalInSeconds": 20,
                        "pruneThresholdInSeconds": 120});
    assert_eq!(next(&mut starts).await, expect);

    // Nobody answers these: the second asks for an answer that route-emitters would obey.
    client.publish_with_reply("router.greet", "inbox.router", "".into()).await.unwrap();
    client.publish_with_reply("harbor.greet", "router.start", "".into()).await.unwrap();
    client.publish("harbor.greet", "".into()).await.unwrap();
    let answer = client.request("harbor.greet", "".into()).await.expect("a greeting is answered");
    assert_eq!(serde_json::from_slice::<Value>(&answer.payload).unwrap(), expect);
    node.stop().await;
    client.publish("router.end", "{}".into()).await.unwrap();
    let subjects = [others.next().await.unwrap().subject, others.next().await.unwrap().subject];
    assert_eq!(subjects.map(|subject| subject.to_string()), ["router.greet", "router.end"]);
}

#[tokio::test]
async fn a_server_that_is_absent_at_start_is_waited_for() {
    let mut server = NatsServer::stopped();
    let mut node = Node::on(&server);
    node.down().await;
    assert!(node.metrics.encode().contains("harbor_nats_connected 0"));
    server.restart();
    node.up().await;
    publish(&onlooker(&server).await, HARBOR_REGISTER, &of_app(61_012)).await;
    node.shows("tcp-one", &["tcp 10.0.1.7:61012"]).await;
    node.stop().await;
}

#[tokio::test]
async fn a_server_that_is_there_at_start_prolongs_nothing() {
    let server = NatsServer::start();
    let mut node = Node::new();
    node.discovery.receive(Source::Harbor, Action::Register, of_app(61_012).to_string().as_bytes());
    node.clock.advance(Duration::from_secs(60));
    node.connect(nats_settings(&server));
    node.up().await;
    let states = node.backends.list(&ServiceInstanceId::new("tcp-one").unwrap());
    assert_eq!(states[0].expires_at, node.clock.now() + Duration::from_secs(60));
    node.stop().await;
}

#[tokio::test]
async fn a_node_stops_at_once_while_its_server_is_away() {
    let server = NatsServer::stopped();
    let mut node = Node::on(&server);
    node.down().await;
    tokio::time::timeout(PATIENCE, node.stop()).await.expect("it ends");
}

#[tokio::test]
async fn after_each_of_five_crashes_of_the_server_announcements_come_in_again() {
    let mut server = NatsServer::start();
    let mut node = Node::on(&server);
    node.up().await;
    for round in 1..=5 {
        server.kill();
        node.down().await;
        server.restart();
        node.up().await;
        assert_eq!(node.metrics.discovery.nats_connects.get(), round + 1);
        let port = 61_000 + u16::try_from(round).unwrap();
        publish(&onlooker(&server).await, HARBOR_REGISTER, &of_app(port)).await;
        eventually_async("the announcement is in", || async {
            (node.shown("tcp-one").len() == usize::try_from(round).unwrap()).then_some(())
        })
        .await;
    }
    node.stop().await;
}

#[tokio::test]
async fn every_return_of_the_server_asks_announcers_to_speak_again() {
    // The server's own trace is the only onlooker that is there before the node.
    let mut server = NatsServer::start_with("trace: true");
    let mut node = Node::on(&server);
    for starts in 1..=3 {
        node.up().await;
        let asked = || server.log().matches("[PUB harbor.start ").count();
        eventually_async("announcers are asked again", || async { (asked() == starts).then_some(()) }).await;
        server.kill();
        node.down().await;
        server.restart();
    }
    node.stop().await;
}

/// More messages than wait for a node that does not read.
const FLOOD: usize = 100_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn messages_that_came_faster_than_they_were_read_are_asked_for_again() {
    let server = NatsServer::start();
    let client = onlooker(&server).await;
    let mut starts = client.subscribe(HARBOR_START).await.unwrap();
    client.flush().await.unwrap();
    let mut node = Node::on(&server);
    node.up().await;
    next(&mut starts).await;
    // Whoever brings a change into the table is held there until it is let go, and reads nothing meanwhile.
    let (go, wait) = mpsc::sync_channel(1);
    let wait = Mutex::new(wait);
    node.backends.on_change(Box::new(move |_| {
        // Without the sender nobody is held any more.
        let _ = tokio::task::block_in_place(|| wait.lock().unwrap().recv());
    }));
    let dropped = || node.metrics.discovery.nats_slow_consumer.get() > 0;
    // How much of the flood has come when the node is let go is for the system to say: mostly all.
    for round in 1..=10 {
        publish(&client, HARBOR_REGISTER, &of_app(61_000 + round)).await;
        for _ in 0..FLOOD {
            client.publish(HARBOR_REGISTER, "{}".into()).await.unwrap();
        }
        client.flush().await.unwrap();
        go.send(()).unwrap();
        let sent = u64::from(round) * (u64::try_from(FLOOD).unwrap() + 1);
        eventually_async("the flood has been read, or some of it dropped", || async {
            (dropped() || node.received("harbor") == sent).then_some(())
        })
        .await;
        if dropped() {
            break;
        }
    }
    assert!(dropped(), "no flood was too much");
    drop(go);
    assert_eq!(next(&mut starts).await["id"], "harbor_node_1-run");
    node.stop().await;
}

#[tokio::test]
async fn while_the_server_is_away_nothing_expires_and_afterwards_all_have_their_whole_time() {
    let mut server = NatsServer::start();
    let mut node = Node::on(&server);
    node.up().await;
    publish(&onlooker(&server).await, HARBOR_REGISTER, &of_app(61_012)).await;
    node.shows("tcp-one", &["tcp 10.0.1.7:61012"]).await;
    server.kill();
    node.down().await;
    node.clock.advance(Duration::from_secs(599));
    node.backends.sweep(node.clock.now());
    assert_eq!(node.shown("tcp-one"), ["tcp 10.0.1.7:61012"]);
    server.restart();
    node.up().await;
    node.clock.advance(Duration::from_secs(119));
    node.backends.sweep(node.clock.now());
    assert_eq!(node.shown("tcp-one"), ["tcp 10.0.1.7:61012"]);
    node.clock.advance(Duration::from_secs(1));
    node.shows("tcp-one", &[]).await;

    publish(&onlooker(&server).await, HARBOR_REGISTER, &of_app(61_012)).await;
    node.shows("tcp-one", &["tcp 10.0.1.7:61012"]).await;
    server.kill();
    node.down().await;
    node.clock.advance(Duration::from_secs(600));
    node.shows("tcp-one", &[]).await;
    node.stop().await;
}

#[tokio::test]
async fn nobody_takes_over_anothers_port() {
    let server = NatsServer::start();
    let mut node = Node::on(&server);
    node.up().await;
    let client = onlooker(&server).await;
    publish(&client, HARBOR_REGISTER, &of_app(61_012)).await;
    node.shows("tcp-one", &["tcp 10.0.1.7:61012"]).await;

    let hijack = |changes: Value| {
        let mut message =
            json!({"uris": ["p23001.harbor.example.com"], "host": "10.0.1.66", "port": 61_000, "app": "stranger"});
        message.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        message
    };
    for message in [
        hijack(json!({})),
        hijack(json!({"app": null})),
        hijack(json!({"tags": {"harbor_instance": "tcp-one"}})),
        hijack(
            json!({"harbor": {"instance_id": "tcp-one", "binding_id": "of-app", "timestamp": 1_700_000_000, "proof": "00"}}),
        ),
        hijack(json!({"app": "app", "host": "169.254.169.254", "port": 80})),
        hijack(json!({"app": "app", "host": "127.0.0.1", "port": 23_002})),
    ] {
        publish(&client, ROUTER_REGISTER, &message).await;
    }
    node.has_received("router", 6).await;
    for (reason, count) in
        [("app_not_bound", 2), ("no_authority", 1), ("bad_proof", 1), ("address_forbidden", 1), ("loop", 1)]
    {
        assert_eq!(node.refused("router", reason), count, "{reason}");
    }
    // Nor may a stranger withdraw, or another instance of the same app.
    let mut other_instance = of_app(61_012);
    other_instance["private_instance_id"] = "j".into();
    let mut stranger = of_app(61_012);
    stranger["app"] = "stranger".into();
    publish(&client, HARBOR_UNREGISTER, &other_instance).await;
    publish(&client, HARBOR_UNREGISTER, &stranger).await;
    node.has_received("harbor", 3).await;
    assert_eq!(node.shown("tcp-one"), ["tcp 10.0.1.7:61012"]);
    assert_eq!(node.discovery.refusals(&ServiceInstanceId::new("tcp-one").ok()).len(), 8);
    node.stop().await;
}

#[tokio::test]
async fn an_address_that_the_platform_gives_to_another_app_is_no_backend_any_more() {
    let server = NatsServer::start();
    let mut node = Node::on(&server);
    node.up().await;
    let client = onlooker(&server).await;
    publish(&client, HARBOR_REGISTER, &of_app(61_012)).await;
    node.shows("tcp-one", &["tcp 10.0.1.7:61012"]).await;
    let route = |app: &str| json!({"uris": ["www.example.com"], "host": "10.0.1.7", "port": 61_012, "app": app});
    publish(&client, ROUTER_REGISTER, &route("app")).await;
    node.has_received("router", 1).await;
    assert_eq!(node.shown("tcp-one"), ["tcp 10.0.1.7:61012"]);
    publish(&client, ROUTER_REGISTER, &route("newcomer")).await;
    node.shows("tcp-one", &[]).await;
    node.stop().await;
}

#[tokio::test]
async fn sources_can_be_switched_off() {
    let server = NatsServer::start();
    let (mut router_only, mut harbor_only, mut none) = (Node::new(), Node::new(), Node::new());
    router_only.connect(nats::Settings { harbor_subjects: false, ..nats_settings(&server) });
    harbor_only.connect(nats::Settings { router_subjects: false, ..nats_settings(&server) });
    none.connect(nats::Settings { harbor_subjects: false, router_subjects: false, ..nats_settings(&server) });
    for node in [&mut router_only, &mut harbor_only, &mut none] {
        node.up().await;
    }
    let client = onlooker(&server).await;
    publish(&client, HARBOR_REGISTER, &of_app(61_012)).await;
    publish(&client, ROUTER_REGISTER, &of_app(61_013)).await;
    router_only.shows("tcp-one", &["tcp 10.0.1.7:61013"]).await;
    harbor_only.shows("tcp-one", &["tcp 10.0.1.7:61012"]).await;
    assert_eq!((router_only.received("harbor"), harbor_only.received("router")), (0, 0));
    assert!(matches!(*none.link.borrow(), Link::Up(_)));
    for node in [router_only, harbor_only, none] {
        node.stop().await;
    }
}

#[tokio::test]
async fn ten_thousand_mutated_announcements_change_nothing() {
    let server = NatsServer::start();
    let mut node = Node::on(&server);
    node.up().await;
    let client = onlooker(&server).await;
    publish(&client, HARBOR_REGISTER, &of_app(61_012)).await;
    node.shows("tcp-one", &["tcp 10.0.1.7:61012"]).await;
    let before = node.backends.slot(&ServiceInstanceId::new("tcp-one").unwrap()).load_full();

    // None of these has an authority, and no mutation gives it one.
    let corpus: [&[u8]; 4] = [
        br#"{"uris":["p23001.harbor.example.com"],"host":"10.9.1.66","port":61000,"app":"stranger","tags":{"harbor_protocol":"tcp"}}"#,
        br#"{"host":"10.9.1.67","port":61000,"tags":{"harbor_instance":"both-one","harbor_protocol":"both"},"stale_threshold_in_seconds":5}"#,
        br#"{"host":"10.9.1.68","port":0,"tls_port":61014,"app":"nobody","harbor":{"instance_id":"matched","state":"draining"}}"#,
        br#"{"host":"10.9.1.69","port":9,"harbor":{"instance_id":"both-one","binding_id":"key","timestamp":1700000000,"proof":"00ff"}}"#,
    ];
    let mut mutants = Vec::new();
    mutate::run(&corpus, |bytes| mutants.push(bytes.to_vec()));
    let (mut harbor, mut router) = (1, 0);
    for (index, mutant) in mutants.into_iter().enumerate() {
        let subject = [HARBOR_REGISTER, ROUTER_REGISTER, HARBOR_UNREGISTER, ROUTER_UNREGISTER][index % 4];
        *(if index % 2 == 0 { &mut harbor } else { &mut router }) += 1;
        client.publish(subject, mutant.into()).await.unwrap();
    }
    client.flush().await.unwrap();
    node.has_received("harbor", harbor).await;
    node.has_received("router", router).await;
    assert!(Arc::ptr_eq(&before, &node.backends.slot(&ServiceInstanceId::new("tcp-one").unwrap()).load_full()));
    assert_eq!(node.backends.export().len(), 1);
    publish(&client, HARBOR_UNREGISTER, &of_app(61_012)).await;
    node.shows("tcp-one", &[]).await;
    node.stop().await;
}

#[tokio::test]
async fn a_message_larger_than_any_announcement_is_malformed() {
    let server = NatsServer::start();
    let mut node = Node::on(&server);
    node.up().await;
    let mut large = of_app(61_012);
    large["padding"] = "x".repeat(64 * 1024).into();
    publish(&onlooker(&server).await, HARBOR_REGISTER, &large).await;
    node.has_received("harbor", 1).await;
    assert_eq!(node.refused("harbor", "malformed"), 1);
    node.stop().await;
}

#[tokio::test]
async fn primaries_have_the_same_order_on_every_node() {
    let server = NatsServer::start();
    let client = onlooker(&server).await;
    let mut early = Node::on(&server);
    early.up().await;
    let of = |port: u16, time: Value| {
        let mut message = json!({"host": "10.0.1.7", "port": port, "app": "app", "harbor": {"instance_id": "tcp-one"}});
        let object = message.as_object_mut().unwrap();
        match time {
            Value::Null => {}
            Value::Object(harbor) => object.get_mut("harbor").unwrap().as_object_mut().unwrap().extend(harbor),
            at => drop(object.insert("endpoint_updated_at_ns".into(), at)),
        }
        message
    };
    // The clock of all nodes stands at 1,700,000,000 s. One says when it began, one what a node knows, two say nothing, and
    // one is from the future: that is now.
    let began = of(61_001, json!(1_699_999_000_000_000_000_i64));
    let known = of(61_002, json!({"since": 1_699_998_000_000_000_i64}));
    let (silent, silent_too) = (of(61_003, Value::Null), of(61_004, Value::Null));
    let ahead = of(61_005, json!(1_700_000_004_000_000_000_i64));
    let order = [61_002, 61_001, 61_003, 61_004, 61_005].map(|port| format!("tcp 10.0.1.7:{port}"));
    let order = order.each_ref().map(String::as_str);
    for message in [&silent_too, &ahead, &began, &silent, &known] {
        publish(&client, HARBOR_REGISTER, message).await;
    }
    early.shows("tcp-one", &order).await;
    let mut late = Node::on(&server);
    late.up().await;
    for message in [&known, &silent, &ahead, &began, &silent_too] {
        publish(&client, HARBOR_REGISTER, message).await;
    }
    late.shows("tcp-one", &order).await;
    early.shows("tcp-one", &order).await;
    early.stop().await;
    late.stop().await;
}

#[tokio::test]
async fn a_proof_is_believed_over_nats() {
    let server = NatsServer::start();
    let mut node = Node::on(&server);
    node.up().await;
    let token = directory().announce_secret.token(&BindingId::new("key").unwrap());
    let statement = harbor::model::token::Statement {
        action: "register",
        instance_id: "both-one",
        binding_id: "key",
        host: "10.0.1.7",
        port: Some(61_012),
        udp_port: Some(61_013),
        timestamp: Some(1_700_000_000),
        ..Default::default()
    };
    let message = json!({"host": "10.0.1.7", "port": 61_012, "harbor": {"instance_id": "both-one", "binding_id": "key",
        "udp_port": 61_013, "timestamp": 1_700_000_000, "proof": token.prove(&statement)}});
    publish(&onlooker(&server).await, HARBOR_REGISTER, &message).await;
    node.shows("both-one", &["tcp 10.0.1.7:61012", "udp 10.0.1.7:61013"]).await;
    let states = node.backends.list(&ServiceInstanceId::new("both-one").unwrap());
    assert_eq!(states[0].backend.authority, Authority::Binding(BindingId::new("key").unwrap()));
    node.stop().await;
}

/// A path in a folder of the server's, for TOML and TLS files.
pub fn file(server: &NatsServer, name: &str, contents: &str) -> PathBuf {
    let path = server.directory().join(name);
    std::fs::write(&path, contents).expect("the folder is ours");
    path
}
