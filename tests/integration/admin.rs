//! The operators' API over HTTP, on real parts with their states set from outside.

use std::{collections::HashMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use harbor::{
    admin::{self, RestartError, wire},
    app::clock::SystemClock,
    backends::Backends,
    control::{self, Control},
    http,
    model::{
        AppId, Clock as _, NodeId, OrganizationId, PoolName, Protocol, Revision, ServiceInstanceId, SpaceId, Timestamp,
        Transport,
        announcement::{
            AnnouncedState, AnnouncementRefusal, Authority, Endpoint, Origin, Refusal, Registration, Sketch, Source,
        },
        desired::ForwarderLimits,
        member::{Known, Member, Members, Report},
        observed::{Link, ListenerObservation, ListenerState, Mode, Observations},
        parameters::Settings,
        plan::Plan,
        pool::{Pool, PoolNames},
        service_instance::ServiceInstance,
        setting::{By, MAX_SETTINGS, SettingChange},
    },
    store::{AnyStore, Provision, Store as _, memory::MemoryStore},
    telemetry::metrics::Metrics,
};
use hyper::Method;
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpSocket,
    sync::{mpsc, watch},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::support::http::Client;

/// A moment, for states that came to be at one.
const THEN: Timestamp = Timestamp::from_seconds(1_795_252_518);

/// Beside the token of operators.
const METRICS_TOKEN: &str = "metrics.token";

/// How that is told.
const THEN_TOLD: &str = "2026-11-21T09:15:18Z";

/// The operators' API of a node with ports 26000 to 26009, service instances `first` on 26000 and `second` on 26001,
/// both open, and a backend for the first.
pub struct Node {
    pub address: SocketAddr,
    pub token_file: PathBuf,
    pub mode: watch::Sender<Mode>,
    pub observations: watch::Sender<Arc<Observations>>,
    pub nats: watch::Sender<Link>,
    pub store: watch::Sender<Link>,
    members: watch::Sender<Arc<Members>>,
    durable: Arc<MemoryStore>,
    /// Restarts that were asked for.
    pub restarts: mpsc::Receiver<admin::RestartRequest>,
    /// Changes of live settings that were asked for.
    pub settings: mpsc::Receiver<admin::SettingsRequest>,
    pub configuration: watch::Sender<Arc<[wire::ConfigurationKey]>>,
    directory: tempfile::TempDir,
    _shutdown: DropGuard,
}

impl Node {
    /// Sets as many live settings as there can be.
    pub async fn fill_settings(&self) {
        let (read_at, settings) = self.durable.settings().await.unwrap();
        let change = |number: usize| SettingChange {
            scope: "forwarder".into(),
            key: format!("key-{number}"),
            value: Some("1".into()),
        };
        let changes = (settings.len()..MAX_SETTINGS).map(change).collect::<Vec<_>>();
        let by = By { who: "root".into(), at: THEN };
        assert!(self.durable.change_settings(&changes, &by, read_at).await.unwrap().is_some());
    }

    pub async fn new(metrics_public: bool) -> Self {
        let pool = PoolName::new("default").unwrap();
        let plans = Plan::built_in(&pool);
        let durable = Arc::new(MemoryStore::new());
        for (id, port) in [("first", 26000), ("second", 26001)] {
            let stored = durable.provision(&instance(id, port, &plans[1]), false, THEN).await.unwrap();
            assert!(matches!(stored, Provision::Created(_)));
        }
        let (observations, observations_receiver) = watch::channel(Arc::new(observed(&["first", "second"], &[])));
        let settings = control::Settings {
            node: NodeId::new("harbor_node_1").unwrap(),
            pools: vec![Pool {
                name: pool,
                ports: "26000-26009".parse().unwrap(),
                names: PoolNames::default(),
                int_port: 4100,
                quarantine: Duration::ZERO,
                retired: false,
            }],
            plans,
            limits: ForwarderLimits { proxy_from: vec!["10.0.0.31/32".parse().unwrap()], ..ForwarderLimits::default() },
            announce_url: None,
        };
        let clock = Arc::new(SystemClock);
        let metrics = Arc::new(Metrics::new());
        let seen = observations_receiver.clone();
        let members = watch::Sender::default();
        let any: AnyStore = durable.clone();
        let control = Control::open(
            settings,
            any,
            clock.clone(),
            seen,
            members.subscribe(),
            Arc::clone(&metrics.control),
            async || Ok(()),
        )
        .await
        .unwrap();
        let backends = Backends::new(256);
        let registration = Registration {
            service_instance_id: ServiceInstanceId::new("first").unwrap(),
            endpoints: vec![Endpoint { transport: Transport::Tcp, address: "10.0.1.7:61012".parse().unwrap() }],
            authority: Authority::App(AppId::new("app-1").unwrap()),
            origin: Origin::default(),
            time_to_live: Duration::from_secs(3600),
            state: AnnouncedState::Up,
            since: Some(THEN),
            heard_at: clock.wall(),
        };
        backends.apply(&registration, clock.now()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let token_file = directory.path().join("admin.token");
        let (mode, mode_receiver) = watch::channel(Mode::Serving);
        let (nats, nats_receiver) = watch::channel(Link::Absent);
        let (store, store_receiver) = watch::channel(Link::Up(THEN));
        let (restart, restarts) = mpsc::channel(1);
        let (change_settings, settings) = mpsc::channel(1);
        let configuration = watch::Sender::new(Arc::from([]));
        let router = admin::router(admin::Sources {
            node: NodeId::new("harbor_node_1").unwrap(),
            started_at: THEN,
            clock,
            mode: mode_receiver,
            control,
            observations: observations_receiver,
            members: members.subscribe(),
            cut_off_after: Duration::from_secs(60),
            backends,
            refusals: Box::new(refusals),
            store: store_receiver,
            nats: nats_receiver,
            restart,
            settings_behind: watch::channel(None).1,
            configuration: configuration.subscribe(),
            change_settings,
            metrics,
            port_counts: Box::new(HashMap::new),
            token: admin::Token::load_or_make(&token_file).unwrap(),
            metrics_token: Some(admin::Token::load_or_make(&directory.path().join(METRICS_TOKEN)).unwrap()),
            log_lines_lost: Box::new(|| 7),
            metrics_public,
            metrics_instances: false,
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let serve = http::serve(listener, None, router, http::Limits::default(), shutdown.clone());
        TaskTracker::new().spawn(serve);
        let _shutdown = shutdown.drop_guard();
        Self {
            address,
            token_file,
            mode,
            observations,
            nats,
            store,
            restarts,
            settings,
            configuration,
            members,
            durable,
            directory,
            _shutdown,
        }
    }

    /// The token, as operators read it.
    pub fn token(&self) -> String {
        std::fs::read_to_string(&self.token_file).unwrap().trim().to_owned()
    }

    /// A directory for whatever else a test needs.
    pub fn path(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// Says of these service instances that their ports are open, and of those that they are not.
    pub fn observe(&self, bound: &[&str], failed: &[&str]) {
        self.observations.send_replace(Arc::new(observed(bound, failed)));
    }

    /// Has another node joined, that lives or has died by now.
    pub async fn join(&self, id: &str, alive: bool) {
        let member = Member {
            id: NodeId::new(id).unwrap(),
            incarnation: "1".into(),
            version: "0.1.0".into(),
            pools: vec![PoolName::new("default").unwrap()],
            report: Report { applied: Revision(3), ..Report::default() },
            drain: false,
            joined_at: THEN,
            seen_at: THEN,
        };
        self.durable.join(&member).await.unwrap();
        let known = Known { member, alive, behind_since: None };
        self.members.send_replace(Arc::new(Members { all: vec![known], ..Members::default() }));
    }

    /// Ends the store.
    pub async fn close_store(&self) {
        self.durable.close().await;
    }

    /// Somebody without the token.
    pub fn anonymous(&self) -> Client {
        Client::new(self.address)
    }

    /// Somebody with it.
    pub fn operator(&self) -> Client {
        self.anonymous().with("authorization", &format!("Bearer {}", self.token()))
    }
}

/// What was refused: of `second`, and of nobody.
fn refusals() -> HashMap<Option<ServiceInstanceId>, Vec<Refusal>> {
    let of = Sketch { named: Some("typo".into()), host: "10.0.1.9".into(), port: Some(61_013), ..Sketch::default() };
    let refusal = |source, reason| Refusal { first_at: THEN, at: THEN, count: 3, source, reason, of: of.clone() };
    [
        (ServiceInstanceId::new("second").ok(), vec![refusal(Source::Router, AnnouncementRefusal::AppNotBound)]),
        (None, vec![refusal(Source::Harbor, AnnouncementRefusal::UnknownServiceInstance)]),
    ]
    .into()
}

fn instance(id: &str, port: u16, plan: &Plan) -> ServiceInstance {
    ServiceInstance {
        id: ServiceInstanceId::new(id).unwrap(),
        plan_id: plan.id.clone(),
        pool: plan.pool.clone(),
        port,
        protocol: Protocol::Tcp,
        requested_port: None,
        settings: Settings::default(),
        organization_id: OrganizationId::new("organization").unwrap(),
        space_id: SpaceId::new("space").unwrap(),
        name: None,
        node_id: NodeId::new("harbor_node_1").unwrap(),
        created_at: THEN,
        revision: Revision::default(),
    }
}

fn observed(bound: &[&str], failed: &[&str]) -> Observations {
    let mut observations = Observations::default();
    observations.applied = Some(Revision(3));
    let failure = ListenerState::Failed { held: true, reason: "held by process 7 (nginx), which listens on it".into() };
    let states = bound.iter().map(|id| (id, ListenerState::Bound)).chain(failed.iter().map(|id| (id, failure.clone())));
    for (id, state) in states {
        let observation = ListenerObservation { version: 1, state, since: THEN };
        observations.insert(ServiceInstanceId::new(id).unwrap(), observation);
    }
    observations
}

#[tokio::test]
async fn a_process_that_lives_says_so_to_anybody() {
    let node = Node::new(true).await;
    assert_eq!(node.anonymous().get("/healthz").await.parts(), (200, json!({"status": "ok"})));
}

#[tokio::test]
async fn a_node_is_ready_once_it_serves_until_it_drains() {
    let node = Node::new(true).await;
    let check = async |status: u16, reasons: Value| {
        let expect = (status, json!({"ready": status == 200, "reasons": reasons}));
        assert_eq!(node.anonymous().get("/readyz").await.parts(), expect);
    };
    check(200, json!([])).await;
    node.observe(&["first"], &["second"]);
    check(200, json!([])).await;
    node.mode.send_replace(Mode::Draining);
    check(503, json!(["the node is draining"])).await;
    node.mode.send_replace(Mode::Starting);
    node.observations.send_replace(Arc::default());
    check(503, json!(["not all ports have been tried yet", "the node is starting"])).await;
}

#[tokio::test]
async fn whoever_holds_connections_without_asking_keeps_no_check_of_readiness_out() {
    let node = Node::new(true).await;
    node.mode.send_replace(Mode::Serving);
    // More than all that there may be, from one address and from many, as anybody on the machine can have them.
    let mut half_asked = Vec::new();
    for number in 0..1_100_u32 {
        let socket = TcpSocket::new_v4().unwrap();
        let last = if number < 300 { 1 } else { number % 5 + 2 };
        socket.bind(format!("127.0.0.{last}:0").parse().unwrap()).unwrap();
        let mut stream = socket.connect(node.address).await.unwrap();
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost:").await.unwrap();
        half_asked.push(stream);
        if number % 100 == 99 {
            assert_eq!(Client::new(node.address).get("/readyz").await.status, 200, "{number}");
        }
    }
}

#[tokio::test]
async fn the_status_tells_node_pools_links_listeners_and_backends() {
    let node = Node::new(true).await;
    let answer = node.operator().get("/admin/v1/status").await;
    let (status, mut body) = answer.parts();
    let backend = body["service_instances"][0]["backends"][0].as_object_mut().unwrap();
    let expires = backend.remove("expires_in_seconds").unwrap().as_u64().unwrap();
    assert!((3000..=3600).contains(&expires), "{expires}");
    for since in ["health_since", "state_since"] {
        let since = backend.remove(since).unwrap();
        assert!(since.as_str().unwrap().ends_with('Z'), "{since}");
    }
    assert_eq!(
        (status, body),
        (
            200,
            json!({
                "degraded": [],
                "node": "harbor_node_1",
                "version": env!("CARGO_PKG_VERSION"),
                "process": std::process::id(),
                "mode": "serving",
                "started_at": THEN_TOLD,
                "revision_desired": 3,
                "revision_applied": 3,
                "store": {"state": "up", "since": THEN_TOLD},
                "nats": {"state": "absent"},
                "nodes": [],
                "pools": [{
                    "name": "default", "ports": "26000-26009", "size": 10, "free": 8, "allocated": 2,
                    "quarantined": 0, "reserved": 0, "in_conflict": 0, "retired": false,
                }],
                "listeners": {"bound": 2, "failed": 0, "closed": 0, "suspended": 0, "pending": 0},
                "networks_blocked": 0,
                "backends": {
                    "tcp": 1, "udp": 0, "service_instances_without": 1,
                    "states": {
                        "up": {"count": 1, "longest_seconds": 0}, "aside": {"count": 0, "longest_seconds": 0},
                        "down": {"count": 0, "longest_seconds": 0}, "draining": {"count": 0, "longest_seconds": 0},
                    },
                },
                "refusals": [{
                    "at": THEN_TOLD, "first_at": THEN_TOLD, "count": 3, "source": "harbor",
                    "reason": "unknown_service_instance", "named": "typo", "host": "10.0.1.9", "port": 61013,
                }],
                "service_instances": [
                    {
                        "id": "first", "pool": "default", "port": 26000, "protocol": "tcp",
                        "listener": {"state": "bound", "since": THEN_TOLD},
                        "backends": [{
                            "transport": "tcp", "address": "10.0.1.7:61012", "authority": "app app-1", "state": "up",
                            "open": 0, "since": THEN_TOLD, "aside": false, "aside_since": null, "health": "unchecked",
                        }],
                        "refusals": [],
                    },
                    {
                        "id": "second", "pool": "default", "port": 26001, "protocol": "tcp",
                        "listener": {"state": "bound", "since": THEN_TOLD}, "backends": [],
                        "refusals": [{
                            "at": THEN_TOLD, "first_at": THEN_TOLD, "count": 3, "source": "router",
                            "reason": "app_not_bound", "named": "typo", "host": "10.0.1.9", "port": 61013,
                        }],
                    },
                ],
            })
        )
    );
}

#[tokio::test]
async fn what_is_wrong_is_told_first() {
    let node = Node::new(true).await;
    node.observe(&["first"], &["second"]);
    node.nats.send_replace(Link::Down(THEN, "connection refused".into()));
    node.store.send_replace(Link::Down(THEN, "disk full".into()));
    let (_, body) = node.operator().get("/admin/v1/status").await.parts();
    assert_eq!(
        body["degraded"],
        json!([
            "the store is away since 2026-11-21T09:15:18Z (disk full): ports go on, but nothing can be provisioned or \
             bound",
            "NATS is away since 2026-11-21T09:15:18Z (connection refused): known backends go on, new ones are not \
             learned from it",
            "port 26001 is not open since 2026-11-21T09:15:18Z: held by process 7 (nginx), which listens on it; \
             service instance second",
        ])
    );
    assert_eq!(body["listeners"], json!({"bound": 1, "failed": 1, "closed": 0, "suspended": 0, "pending": 0}));
    assert_eq!(body["service_instances"][0]["id"], "second", "what failed comes first");
    node.observe(&["first"], &[]);
    let (_, body) = node.operator().get("/admin/v1/status").await.parts();
    assert_eq!(body["service_instances"][1]["listener"], json!({"state": "pending"}));
}

#[tokio::test]
async fn the_status_wants_the_token() {
    let node = Node::new(true).await;
    let refused = json!({
        "description": "This wants the header Authorization: Bearer with the token of admin.token_file."
    });
    let token = node.token();
    let wrong =
        ["", "Bearer", "Bearer ", "Bearer x", "Basic aGFyYm9yOnNlY3JldA==", &token, &format!("Bearer {token}x")]
            .map(str::to_owned);
    for authorization in wrong {
        let answer = node.anonymous().with("authorization", &authorization).get("/admin/v1/status").await;
        assert_eq!(answer.headers["www-authenticate"], "Bearer", "{authorization}");
        assert_eq!(answer.parts(), (401, refused.clone()), "{authorization}");
    }
    assert_eq!(node.anonymous().get("/admin/v1/status").await.parts(), (401, refused));
    let lower_case = node.anonymous().with("authorization", &format!("bearer {token}"));
    assert_eq!(lower_case.get("/admin/v1/status").await.status, 200);
}

#[tokio::test]
async fn metrics_are_public_or_want_the_token() {
    let public = Node::new(true).await;
    public.observe(&["first"], &["second"]);
    let answer = public.anonymous().get("/metrics").await;
    assert_eq!(answer.headers["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    for line in [
        r#"harbor_pool_ports{pool="default",state="free"} 8"#,
        r#"harbor_pool_ports{pool="default",state="allocated"} 2"#,
        r#"harbor_listeners{state="failed"} 1"#,
        "harbor_serving 1",
        "harbor_store_up 1",
        "harbor_degraded_reasons 1",
        "harbor_log_lines_lost_total 7",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert_eq!(text.matches("# EOF").count(), 1);
    assert!(text.ends_with("# EOF\n"));

    let answer = public.anonymous().get("/metrics/instances").await;
    assert_eq!(answer.headers["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");

    let private = Node::new(false).await;
    let token = std::fs::read_to_string(private.token_file.with_file_name(METRICS_TOKEN)).unwrap();
    let scraper = private.anonymous().with("authorization", &format!("Bearer {}", token.trim()));
    for path in ["/metrics", "/metrics/instances"] {
        assert_eq!(private.anonymous().get(path).await.status, 401);
        assert_eq!(private.operator().get(path).await.status, 200);
        assert_eq!(scraper.get(path).await.status, 200);
    }
    assert_eq!(scraper.get("/admin/v1/status").await.status, 401, "it shows metrics and nothing else");
}

#[tokio::test]
async fn what_is_not_there_is_refused_as_json() {
    let node = Node::new(true).await;
    let nothing = json!({"description": "There is nothing at this path."});
    assert_eq!(node.operator().get("/admin/v1/nothing").await.parts(), (404, nothing));
    assert_eq!(node.operator().delete("/admin/v1/status").await.status, 405);
}

#[tokio::test]
async fn ports_are_told_and_held_back_with_the_token_while_the_store_is_there() {
    let node = Node::new(true).await;
    let operator = node.operator().with("x-harbor-operator", "ana@desk");
    let reserve = "/admin/v1/ports/reservations/default/sip";
    assert_eq!(node.anonymous().get("/admin/v1/ports").await.status, 401);
    assert_eq!(node.anonymous().put(reserve, &json!({})).await.status, 401);
    let held = json!({ "port": 26_005, "last_port": 26_006, "protocol": "udp" });
    let wanted = json!({ "port": "26005-26006", "protocol": "udp" });
    let step = |change: &str, before: &Value, after: &Value| json!({ "pool": "default", "name": "sip", "change": change, "before": before, "after": after });
    assert_eq!(operator.put(reserve, &wanted).await.parts(), (200, step("add", &Value::Null, &held)));
    assert_eq!(operator.put(reserve, &wanted).await.parts(), (200, step("keep", &held, &held)));

    let mut listed = operator.get("/admin/v1/ports?free=true").await.json();
    let since = listed["ports"][2].as_object_mut().unwrap().remove("since").unwrap();
    assert!(since.as_str().unwrap().ends_with('Z'), "{since}");
    let instance = |id: &str, port: u16, listener: Value, backends: usize| {
        json!({
            "pool": "default", "port": port, "last_port": port, "state": "allocated", "service_instance": id, "name": null,
            "protocol": "tcp", "organization": "organization", "space": "space",
            "plan": "e1f6b1f0-57f3-5c0e-8a0b-6d3a6f0c1a02", "since": THEN_TOLD, "allow": [], "listener": listener,
            "backends_up": backends, "backends": backends, "flows": 0,
        })
    };
    let bound = json!({ "state": "bound", "since": THEN_TOLD });
    let expected = json!({
        "pools": [{
            "name": "default", "ports": "26000-26009", "size": 10, "free": 6, "allocated": 2, "quarantined": 0,
            "reserved": 2, "in_conflict": 0, "retired": false, "served": true, "free_ports": "26002-26004, 26007-26009",
        }],
        "ports": [
            instance("first", 26_000, bound.clone(), 1),
            instance("second", 26_001, bound, 0),
            {
                "pool": "default", "port": 26_005, "last_port": 26_006, "state": "reserved", "name": "sip",
                "protocol": "udp", "by": "ana@desk",
            },
        ],
        "proxy_from": ["10.0.0.31/32"],
        "next": null,
    });
    assert_eq!(listed, expected);

    // What is refused, and how.
    for (path, body, status) in [
        (reserve, json!({ "port": "26007" }), 409),
        ("/admin/v1/ports/reservations/default/No", json!({}), 400),
        ("/admin/v1/ports/reservations/default/a", json!({ "port": "26000" }), 409),
        ("/admin/v1/ports/reservations/default/a", json!({ "port": "26010" }), 400),
        ("/admin/v1/ports/reservations/default/a", json!({ "port": "26002, 26004" }), 400),
        ("/admin/v1/ports/reservations/default/a", json!({ "port": "26002", "count": 1 }), 400),
        ("/admin/v1/ports/reservations/default/a", json!({ "protocol": "sctp" }), 400),
        ("/admin/v1/ports/reservations/default/a", json!({ "prot": "tcp" }), 400),
        ("/admin/v1/ports/reservations/games/a", json!({}), 404),
    ] {
        let answer = operator.put(path, &body).await;
        assert_eq!(answer.status, status, "{path} {body}: {answer:?}");
        assert!(answer.json()["description"].as_str().unwrap().ends_with('.'), "{answer:?}");
    }
    assert_eq!(operator.delete(reserve).await.parts(), (200, step("remove", &held, &Value::Null)));
    assert_eq!(operator.delete(reserve).await.status, 404);

    node.close_store().await;
    let apply = json!({ "pools": [{ "name": "default", "names": [] }] });
    assert_eq!(operator.get("/admin/v1/ports").await.status, 503);
    assert_eq!(operator.put(reserve, &wanted).await.status, 503);
    assert_eq!(operator.delete(reserve).await.status, 503);
    let applied = operator.send(Method::POST, "/admin/v1/ports/apply", Some(&apply)).await;
    assert_eq!(applied.parts(), (503, json!({ "description": "The store is away: try again in a few seconds." })));
}

#[tokio::test]
async fn a_restart_is_asked_for_with_the_token_and_answered_when_it_is_done_or_has_failed() {
    let mut node = Node::new(true).await;
    let path = wire::RESTART_PATH;
    assert_eq!(node.anonymous().try_send(Method::POST, path, None).await.unwrap().status, 401);
    let operator = node.operator();
    let restarted =
        wire::Restarted { old_process: 7, old_version: "0.1.0".into(), process: 8, version: "0.2.0".into() };
    let told = json!({ "old_process": 7, "old_version": "0.1.0", "process": 8, "version": "0.2.0" });
    let failed = RestartError::Failed("the new process ended (exit status: 2): its log says why".into());
    for (outcome, expect) in [
        (Ok(restarted), (200, told)),
        (Err(failed.clone()), (500, json!({ "description": failed.to_string() }))),
        (Err(RestartError::UnderWay), (409, json!({ "description": "a restart is under way" }))),
    ] {
        let asking = operator.try_send(Method::POST, path, None);
        let answering = async { node.restarts.recv().await.expect("it was asked for").send(outcome).unwrap() };
        let (answer, ()) = tokio::join!(asking, answering);
        assert_eq!(answer.unwrap().parts(), expect);
    }
    assert_eq!(operator.get(path).await.status, 405);
}
