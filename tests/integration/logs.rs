//! Lines that operators and their programs read: what `docs/logs.md` lists is what a node writes, and no secret is in any.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    time::Instant,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use harbor::{
    control::audit::{self, Change},
    model::{
        AppId, BindingId, NodeId, OrganizationId, PlanId, PoolName, Protocol, Revision, ServiceInstanceId, SpaceId,
        Timestamp,
        binding::Binding,
        parameters::Settings,
        plan::SERVICE_ID,
        pool::{Pool, PoolNames},
        requester::{Identity, Requester, Said},
        service_instance::ServiceInstance,
        setting::{BLOCKED, SUSPENDED, SettingChange},
    },
};
use hyper::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::{
    docs::{rows, words},
    end_to_end::{PLAN_BOTH, PLAN_TCP, at, bind, delete, provision, provision_with, with_nats},
};
use crate::support::{
    echo::{Echo, over_tcp},
    eventually::eventually_async,
    harbor::{Harbor, Site},
    http::Client,
    nats::NatsServer,
};

const PAGE: &str = "docs/logs.md";

/// The words that the first cells of the tables under a heading are.
fn listed(heading: &str) -> Vec<String> {
    rows(PAGE, heading).iter().flat_map(|row| words(&row[0])).collect()
}

/// The actions of the audit log, and the fields of its lines.
fn listed_of_audit() -> (BTreeSet<String>, BTreeSet<String>) {
    let listed = rows(PAGE, "## Audit").iter().map(|row| row[0].trim_matches('`').to_owned()).collect::<Vec<_>>();
    let (actions, fields) = listed.split_at(listed.iter().position(|word| word == "action").expect("the first field"));
    (actions.iter().cloned().collect(), fields.iter().cloned().collect())
}

fn events(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn of_target(events: &[Value], target: &str, message: &str) -> Vec<Value> {
    let of = events.iter().filter(|event| event["target"] == target && event["fields"]["message"] == message);
    of.map(|event| event["fields"].clone()).collect()
}

fn flows(events: &[Value]) -> Vec<Value> {
    of_target(events, "harbor::forwarder::flow", "flow ended")
}

fn changes(events: &[Value]) -> Vec<Value> {
    of_target(events, "harbor::audit", "durable change")
}

/// The names of the fields of these lines, but for the message.
fn fields<'a>(lines: impl IntoIterator<Item = &'a Value>) -> BTreeSet<String> {
    let names = lines.into_iter().flat_map(|line| line.as_object().expect("fields are an object").keys().cloned());
    names.filter(|name| name != "message").collect()
}

/// The platform's client, asking for a user of its.
fn platform(harbor: &Harbor) -> Client {
    let identity = STANDARD.encode(r#"{"user_id":"683ea748","email":"duke@example.com"}"#);
    let client = harbor.broker().with("x-broker-api-originating-identity", &format!("cloudfoundry {identity}"));
    client.with("x-broker-api-request-identity", "e26cee84")
}

fn announcer(harbor: &Harbor, credentials: &Value) -> Client {
    let token = credentials["announce"]["token"].as_str().expect("an app may announce");
    Client::new(harbor.address("announce")).with("authorization", &format!("Bearer {token}"))
}

async fn audited(harbor: &Harbor, action: &str, by: &str) -> Value {
    let line = harbor.logged(&format!(r#""action":"{action}","by":"{by}""#));
    let event = serde_json::from_str::<Value>(&line).unwrap();
    event["fields"].clone()
}

/// One of each change there is. A new one is missed here by the compiler.
fn each_change(write: impl Fn(Change<'_>)) {
    let text = |text: &str| text.to_owned();
    let (node, other) = (NodeId::new(text("one")).unwrap(), NodeId::new(text("two")).unwrap());
    let instance = ServiceInstance {
        id: ServiceInstanceId::new("i").unwrap(),
        plan_id: PlanId::new("p").unwrap(),
        pool: PoolName::new("default").unwrap(),
        port: 1,
        protocol: Protocol::Tcp,
        requested_port: None,
        settings: Settings::default(),
        organization_id: OrganizationId::new("o").unwrap(),
        space_id: SpaceId::new("s").unwrap(),
        name: None,
        node_id: node.clone(),
        created_at: Timestamp::from_seconds(0),
        revision: Revision(7),
    };
    let binding = Binding {
        id: BindingId::new("b").unwrap(),
        service_instance_id: instance.id.clone(),
        app_id: Some(AppId::new("a").unwrap()),
        space_id: None,
        announce: true,
        predecessor_id: None,
        created_at: Timestamp::from_seconds(0),
        revision: Revision(8),
    };
    let pool = Pool {
        name: instance.pool.clone(),
        ports: "25000-25001".parse().unwrap(),
        names: PoolNames::default(),
        int_port: 1,
        quarantine: std::time::Duration::ZERO,
        retired: false,
    };
    let set = SettingChange { scope: "log".into(), key: "level".into(), value: Some("info".into()) };
    let unset = SettingChange { value: None, ..set.clone() };
    let of = |scope: &str, one: &SettingChange| SettingChange { scope: scope.into(), ..one.clone() };
    let sets = ["log", SUSPENDED, BLOCKED].map(|scope| [of(scope, &set), of(scope, &unset)]).concat();
    let mut change = Some(Change::Provisioned(&instance));
    while let Some(this) = change {
        write(this);
        change = match this {
            Change::Provisioned(_) => Some(Change::Moved { instance: &instance, from_port: 2, why: "held" }),
            Change::Moved { .. } => Some(Change::TakenUp { id: &instance.id, node: &node, from_node: &other }),
            Change::TakenUp { .. } => Some(Change::Updated(&instance)),
            Change::Updated(_) => Some(Change::TakenBack(&instance)),
            Change::TakenBack(_) => Some(Change::Deprovisioned(&instance)),
            Change::Deprovisioned(_) => Some(Change::Undone { instance: &instance, why: "held" }),
            Change::Undone { .. } => Some(Change::Bound(&instance, &binding)),
            Change::Bound(..) => Some(Change::Unbound(&binding)),
            Change::Unbound(_) => Some(Change::PoolDefined { pool: &pool, node: &node, revision: Revision(9) }),
            Change::PoolDefined { .. } => Some(Change::PoolDropped { pool: &pool, revision: Revision(12) }),
            Change::PoolDropped { .. } => Some(Change::Set { setting: &sets[0], revision: Revision(10) }),
            Change::Set { setting, revision } => Some(match sets.iter().skip_while(|one| *one != setting).nth(1) {
                Some(setting) => Change::Set { setting, revision },
                None => Change::Reservation(&set),
            }),
            Change::Reservation(SettingChange { value: Some(_), .. }) => Some(Change::Reservation(&unset)),
            Change::Reservation(_) => Some(Change::SecretRotated),
            Change::SecretRotated => Some(Change::RotationFinished),
            Change::RotationFinished => Some(Change::Drained(&node)),
            Change::Drained(_) => Some(Change::Resumed(&node)),
            Change::Resumed(_) => Some(Change::Removed(&node)),
            Change::Removed(_) => Some(Change::Restarted { node: &node, process: 7 }),
            Change::Restarted { .. } => None,
        };
    }
}

#[test]
fn the_page_lists_every_action_and_field_of_the_audit_log() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let file = fs::File::create(&path).unwrap();
    let subscriber = tracing_subscriber::fmt().json().with_writer(std::sync::Mutex::new(file)).finish();
    let request_id = Some(Said::new("e26cee84"));
    let user = Some(Said::new("683ea748"));
    let requesters = [
        Requester::Platform { identity: Identity::Of { platform: Said::new("cloudfoundry"), user }, request_id },
        Requester::Platform { identity: Identity::Malformed, request_id: None },
        Requester::Operator { name: Said::new("root@one") },
        Requester::Signal,
        Requester::Harbor,
    ];
    tracing::subscriber::with_default(subscriber, || {
        requesters.iter().for_each(|by| each_change(|change| audit::note(by, change)));
    });
    let lines = changes(&events(&fs::read_to_string(path).unwrap()));
    let of = |field: &str| lines.iter().map(|line| line[field].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>();
    let (listed_actions, listed_fields) = listed_of_audit();
    assert_eq!(of("action"), listed_actions);
    assert_eq!(fields(&lines), listed_fields);
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/logs.md")).unwrap();
    for by in of("by") {
        assert!(text.contains(&format!("`{by}`")), "{by}");
    }
}

#[test]
fn the_page_names_messages_that_there_are() {
    fn sources(folder: &std::path::Path, into: &mut String) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            match entry.path() {
                path if path.is_dir() => sources(&path, into),
                path => into.push_str(&fs::read_to_string(path).unwrap()),
            }
        }
    }
    let mut text = String::new();
    sources(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut text);
    for row in rows(PAGE, "## What to be woken by") {
        let message = words(&row[1]).pop_first().expect("a message");
        assert!(text.contains(&message), "nothing says {message:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_writes_who_has_changed_what_and_how_each_flow_ended() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::new("28120-28125", "");
    let config = fs::read_to_string(site.config()).unwrap();
    let log = format!("[log]\ndirectory = {:?}", directory.path());
    fs::write(site.config(), config.replace("[log]", &log)).unwrap();
    let harbor = site.serve().await;
    let defined = audited(&harbor, "define_pool", "harbor").await;
    assert_eq!((&defined["pool"], &defined["ports"]), (&json!("default"), &json!("28120-28125")));
    assert_eq!(defined["revision"], 1);

    let wish = json!({
        "service_id": SERVICE_ID, "plan_id": PLAN_BOTH, "organization_guid": "o", "space_guid": "s",
        "parameters": { "port": 28120 },
    });
    let path = "/v2/service_instances/game";
    assert_eq!(platform(&harbor).put(path, &wish).await.status, 201);
    let by_platform = |action: &str, more: Value| {
        let mut line = json!({
            "message": "durable change", "action": action, "by": "platform", "platform": "cloudfoundry",
            "user": "683ea748", "request_id": "e26cee84", "service_instance": "game",
        });
        line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        line
    };
    let of_instance = |revision: Option<u64>| {
        let mut fields = json!({
            "organization": "o", "space": "s", "plan": PLAN_BOTH, "pool": "default", "port": 28120, "protocol": "both",
        });
        if let Some(revision) = revision {
            fields["revision"] = json!(revision);
        }
        fields
    };
    assert_eq!(audited(&harbor, "provision", "platform").await, by_platform("provision", of_instance(Some(2))));
    // A repeat changes nothing.
    assert_eq!(platform(&harbor).put(path, &wish).await.status, 200);

    let patch = json!({ "service_id": SERVICE_ID, "parameters": { "idle_timeout": "1h" } });
    assert_eq!(platform(&harbor).patch(path, &patch).await.status, 200);
    assert_eq!(audited(&harbor, "update", "platform").await, by_platform("update", of_instance(Some(3))));

    let binding = format!("{path}/service_bindings/binding");
    let wanted = json!({ "service_id": SERVICE_ID, "plan_id": PLAN_BOTH, "bind_resource": { "app_guid": "app" } });
    let bound = platform(&harbor).put(&binding, &wanted).await;
    assert_eq!(bound.status, 201);
    let mut expect = by_platform("bind", of_instance(Some(4)));
    (expect["binding"], expect["app"]) = (json!("binding"), json!("app"));
    assert_eq!(audited(&harbor, "bind", "platform").await, expect);

    let credentials = bound.json()["credentials"].clone();
    let app = Echo::start("app").await;
    let announcement = json!({ "binding_id": "binding", "port": app.tcp.port(), "udp_port": app.udp.port() });
    let announced = announcer(&harbor, &credentials).put("/announce/v1/instances/game", &announcement).await;
    assert_eq!(announced.status, 200, "{announced:?}");
    let port = at(&credentials);
    assert_eq!(over_tcp(port, "hello").await.as_deref(), Some("app: hello"));
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(port).await.unwrap();
    let mut buffer = [0; 64];
    for text in ["ping", "pong!"] {
        client.send(text.as_bytes()).await.unwrap();
        client.recv(&mut buffer).await.unwrap();
    }

    let query = format!("service_id={SERVICE_ID}&plan_id={PLAN_BOTH}");
    assert_eq!(platform(&harbor).delete(&format!("{binding}?{query}")).await.status, 200);
    let unbound = by_platform("unbind", json!({ "binding": "binding", "app": "app" }));
    assert_eq!(audited(&harbor, "unbind", "platform").await, unbound);
    harbor.logged(r#""reason":"revoked""#);
    assert_eq!(platform(&harbor).delete(&format!("{path}?{query}")).await.status, 200);
    assert_eq!(audited(&harbor, "deprovision", "platform").await, by_platform("deprovision", of_instance(None)));

    let lines = flows(&events(&harbor.log()));
    let [tcp, udp] = &lines[..] else { panic!("two flows, two lines: {lines:?}") };
    let flow = |transport: &str, line: &Value, more: Value| {
        let mut expect = json!({
            "message": "flow ended", "service_instance": "game", "pool": "default", "port": 28120,
            "transport": transport, "client": line["client"], "duration_ms": line["duration_ms"],
        });
        expect.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        expect
    };
    let carried = json!({
        "backend": app.tcp.to_string(), "to_backend_bytes": 5, "to_client_bytes": 10, "reason": tcp["reason"],
    });
    assert_eq!(*tcp, flow("tcp", tcp, carried));
    let carried = json!({
        "backend": app.udp.to_string(), "to_backend_bytes": 9, "to_client_bytes": 19, "to_backend_datagrams": 2,
        "to_client_datagrams": 2, "reason": "revoked",
    });
    assert_eq!(*udp, flow("udp", udp, carried));
    assert_eq!(udp["client"], client.local_addr().unwrap().to_string());
    assert!(udp["duration_ms"].as_u64().unwrap() < 60_000, "{udp}");
    assert_eq!(fields([tcp, udp]), listed("## Flows").into_iter().collect());

    ports_that_others_hold(&harbor).await;
    let nodes = "/admin/v1/nodes/harbor_node_1";
    let operator = harbor.admin().with("x-harbor-operator", "duke@one");
    for (wish, action) in [("rotate", "rotate_secret"), ("finish", "finish_rotation")] {
        let path = format!("/admin/v1/announce-secret/{wish}");
        assert_eq!(operator.send(Method::POST, &path, None).await.status, 200);
        // Another time it is refused, and changes nothing.
        assert_eq!(operator.send(Method::POST, &path, None).await.status, 409);
        let line = json!({ "message": "durable change", "action": action, "by": "admin token", "user": "duke@one" });
        assert_eq!(audited(&harbor, action, "admin token").await, line);
    }
    for (wish, action) in [("drain", "drain_node"), ("resume", "resume_node")] {
        assert_eq!(operator.send(Method::POST, &format!("{nodes}/{wish}"), None).await.status, 200);
        let line = json!({
            "message": "durable change", "action": action, "by": "admin token", "user": "duke@one",
            "node": "harbor_node_1",
        });
        assert_eq!(audited(&harbor, action, "admin token").await, line);
    }
    harbor.ready().await;
    let network = "/admin/v1/blocked/203.0.113.0%2F24";
    for (method, action) in [(Method::PUT, "block"), (Method::DELETE, "unblock")] {
        assert_eq!(operator.send(method, network, None).await.status, 200);
        let line = audited(&harbor, action, "admin token").await;
        assert_eq!((&line["user"], &line["setting"]), (&json!("duke@one"), &json!("blocked.203.0.113.0/24")));
    }
    let process = harbor.restart();
    let restarted = audited(&harbor, "restart", "signal").await;
    assert_eq!((&restarted["process"], &restarted["node"]), (&json!(process), &json!("harbor_node_1")));

    harbor.ready().await;
    let all = events(&harbor.log());
    assert!(harbor.terminate().success());
    let (actions, audit_fields) = listed_of_audit();
    let seen = changes(&all);
    assert!(fields(&seen).is_subset(&audit_fields), "{:?}", fields(&seen));
    let of = |action: &str| seen.iter().filter(|line| line["action"] == action).count();
    for action in ["update", "bind", "unbind", "define_pool", "rotate_secret", "finish_rotation"] {
        assert_eq!(of(action), 1, "{action}: {seen:?}");
    }
    assert!(seen.iter().all(|line| actions.contains(line["action"].as_str().unwrap())), "{seen:?}");
    frames_are_as_listed(&all);
    examples_are_as_written(&all);
    files_are_as_listed(directory.path());
}

/// Brings about what Harbor does by itself when something else has a port.
async fn ports_that_others_hold(harbor: &Harbor) {
    let _stranger = TcpListener::bind("0.0.0.0:28125").await.unwrap();
    let wish = json!({
        "service_id": SERVICE_ID, "plan_id": PLAN_TCP, "organization_guid": "o", "space_guid": "s",
        "parameters": { "port": 28125 },
    });
    let refused = harbor.broker().put("/v2/service_instances/undone", &wish).await;
    assert_eq!(refused.status, 400, "{refused:?}");
    let undone = audited(harbor, "undo", "harbor").await;
    assert_eq!((&undone["service_instance"], &undone["port"]), (&json!("undone"), &json!(28125)));
    assert_eq!(undone["why"], "port 28125 is in use outside of Harbor: choose another one, or leave `port` out");

    let _strangers =
        [TcpListener::bind("0.0.0.0:28123").await.unwrap(), TcpListener::bind("0.0.0.0:28124").await.unwrap()];
    // Ports are chosen by chance: sooner or later it is one of these.
    let moved = eventually_async("a port that is held is chosen", || async {
        provision(harbor, "moved", PLAN_TCP).await;
        delete(harbor, "moved", PLAN_TCP).await;
        let lines = changes(&events(&harbor.log()));
        lines.into_iter().find(|line| line["action"] == "move_port")
    })
    .await;
    let (from, to) = (moved["from_port"].as_u64().unwrap(), moved["port"].as_u64().unwrap());
    assert!([28123, 28124].contains(&from) && from != to, "{moved}");
    let why = moved["why"].as_str().unwrap();
    assert!(why.contains(&format!("is held by process {}", std::process::id())), "{why}");
}

/// Whether each line has the frame of the page, and all of it is used.
fn frames_are_as_listed(all: &[Value]) {
    let frame = listed("## A line");
    let frame =
        frame.iter().filter(|word| !["message", "name", "request", "operation", "request_id"].contains(&word.as_str()));
    let seen = fields(all);
    assert_eq!(seen, frame.cloned().collect());
    let spans = all.iter().filter_map(|event| event.get("span"));
    assert_eq!(fields(spans), ["name", "operation", "request_id"].map(str::to_owned).into());
}

/// Whether each example of the page has the fields of a line that was written.
fn examples_are_as_written(all: &[Value]) {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/logs.md")).unwrap();
    let examples = text.split("```json\n").skip(1).map(|rest| rest.split("```").next().expect("there is a first"));
    let mut count = 0;
    for example in examples {
        count += 1;
        let example: Value = serde_json::from_str(example).unwrap_or_else(|error| panic!("{error}: {example}"));
        let names = |event: &Value| {
            let part = |name: &str| event.get(name).map(|part| fields([part]));
            (fields([event]), part("fields"), part("span"))
        };
        let told = |event: &Value| {
            let fields = &event["fields"];
            ["message", "action", "by", "transport"].map(|field| fields[field].clone())
        };
        let written = all.iter().find(|event| event["target"] == example["target"] && told(event) == told(&example));
        let written = written.unwrap_or_else(|| panic!("nothing like it was written: {example}"));
        assert_eq!(names(&example), names(written));
        assert_eq!(example["level"], written["level"]);
    }
    assert_eq!(count, 4, "examples of {PAGE}");
}

/// Whether each line is in the file that the page names.
fn files_are_as_listed(directory: &std::path::Path) {
    let rows = rows(PAGE, "## Files");
    let files = rows.iter().map(|row| (words(&row[0]).pop_first().expect("a file"), words(&row[1])));
    let files = files.collect::<BTreeMap<_, _>>();
    let file_of = |target: &str| {
        let is_of = |prefix: &String| target == prefix || target.starts_with(&format!("{prefix}::"));
        let named = files.iter().find(|(_, targets)| targets.iter().any(is_of));
        named.map_or("harbor_node.log", |(file, _)| file).to_owned()
    };
    let there = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(there.collect::<BTreeSet<_>>(), files.keys().cloned().collect());
    for file in files.keys() {
        let events = events(&fs::read_to_string(directory.join(file)).unwrap());
        assert!(!events.is_empty(), "{file}");
        for event in events {
            assert_eq!(file_of(event["target"].as_str().unwrap()), *file, "{event}");
        }
    }
}

async fn connect_and_go(port: SocketAddr) {
    // As there is no backend the connection is reset, perhaps before it is known to have been made.
    if let Ok(stream) = TcpStream::connect(port).await {
        let _ = stream.readable().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_a_flood_are_left_out_and_counted_and_can_be_turned_off() {
    const FLOOD: u64 = 1000;
    let site = Site::new("28130-28131", "");
    let harbor = site.serve().await;
    provision(&harbor, "a", PLAN_TCP).await;
    let port = at(&bind(&harbor, "a", "binding", PLAN_TCP).await);
    let began = Instant::now();
    for _ in 0..FLOOD {
        connect_and_go(port).await;
    }
    let (written, left_out) = eventually_async("each flow is a line, or told to be left out", || async {
        let all = events(&harbor.log());
        let told = of_target(&all, "harbor::forwarder::flow", "lines of flows that ended were left out");
        let left_out = told.iter().map(|line| line["left_out"].as_u64().unwrap()).sum::<u64>();
        let written = flows(&all).len() as u64;
        (written + left_out == FLOOD).then_some((written, left_out))
    })
    .await;
    let most = 200 + 100 * (began.elapsed().as_secs() + 1);
    assert!((200..=most).contains(&written), "{written} lines, {most} at most");
    let metrics = String::from_utf8(harbor.admin().get("/metrics").await.body.to_vec()).unwrap();
    assert!(metrics.contains(&format!("\nharbor_flow_lines_left_out_total {left_out}\n")), "{left_out} of {metrics}");
    let lines = flows(&events(&harbor.log()));
    assert_eq!((&lines[0]["reason"], lines[0].get("backend")), (&json!("no_backend"), None));

    let config = fs::read_to_string(site.config()).unwrap();
    let turn = async |level: &str, times: usize| {
        fs::write(site.config(), config.replace(r#"level = "debug""#, &format!("level = {level:?}"))).unwrap();
        harbor.signal(Signal::HUP);
        eventually_async("it is taken over", || async {
            let taken = harbor.log().matches("the configuration was taken over").count();
            (taken >= times).then_some(())
        })
        .await;
    };
    turn("info,harbor::forwarder::flow=warn", 1).await;
    connect_and_go(port).await;
    let ended = || async {
        let text = String::from_utf8(harbor.admin().get("/metrics").await.body.to_vec()).unwrap();
        text.contains(&format!("harbor_connections_closed_total{{reason=\"no_backend\"}} {}", FLOOD + 1)).then_some(())
    };
    eventually_async("the connection has ended", ended).await;
    turn("info", 2).await;
    connect_and_go(port).await;
    eventually_async("lines are written again", || async {
        (flows(&events(&harbor.log())).len() as u64 > written).then_some(())
    })
    .await;
    assert_eq!(flows(&events(&harbor.log())).len() as u64, written + 1, "the one between has none");
    assert!(harbor.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_line_at_any_level_has_a_secret() {
    let directory = tempfile::tempdir().unwrap();
    let server = NatsServer::start_with("authorization { user: harbor, password: hunter-nats }");
    let nats = with_nats(&server) + "user = \"harbor\"\npassword = \"hunter-nats\"\n";
    let site = Site::new("28140-28149", &nats);
    let log = format!("[log]\ndirectory = {:?}", directory.path());
    let config = fs::read_to_string(site.config()).unwrap().replace("[log]", &log).replace("\"debug\"", "\"trace\"");
    let config = config.replace(r#"password = "secret""#, r#"password = ["secret", "hunter-second"]"#);
    fs::write(site.config(), &config).unwrap();
    let harbor = site.serve().await;
    provision(&harbor, "a", PLAN_TCP).await;
    let credentials = bind(&harbor, "a", "binding", PLAN_TCP).await;
    let token = credentials["announce"]["token"].as_str().unwrap().to_owned();

    // What goes well, and what does not, each with something that nobody may read.
    let announcer = announcer(&harbor, &credentials);
    let path = "/announce/v1/instances/a";
    assert_eq!(announcer.put(path, &json!({ "binding_id": "binding", "port": 9 })).await.status, 200);
    assert_eq!(
        announcer.put(path, &json!({ "binding_id": "binding", "port": 9, "state": [&token] })).await.status,
        400
    );
    let stranger = Client::new(harbor.address("announce")).with("authorization", "Bearer hunter-token");
    assert_eq!(stranger.put(path, &json!({ "binding_id": "binding", "port": 9 })).await.status, 401);
    let basic = |login: &str| format!("Basic {}", STANDARD.encode(login));
    let (wrong, second) = (basic("harbor:hunter-wrong"), basic("harbor:hunter-second"));
    assert_eq!(harbor.broker().with("authorization", &wrong).get("/v2/catalog").await.status, 401);
    assert_eq!(harbor.broker().with("authorization", &second).get("/v2/catalog").await.status, 200);
    let said = STANDARD.encode(r#"{"user_id":"683ea748","access_token":"hunter-access"}"#);
    let client = harbor.broker().with("x-broker-api-originating-identity", &format!("cloudfoundry {said}"));
    let query = format!("service_id={SERVICE_ID}&plan_id={PLAN_TCP}");
    assert_eq!(client.delete(&format!("/v2/service_instances/a/service_bindings/binding?{query}")).await.status, 200);
    let operator = Client::new(harbor.address("admin")).with("authorization", "Bearer hunter-operator");
    assert_eq!(operator.get("/admin/v1/status").await.status, 401);
    let publisher = async_nats::ConnectOptions::with_user_and_password("harbor".into(), "hunter-nats".into());
    let publisher = publisher.connect(server.url()).await.unwrap();
    let refused =
        json!({ "host": "127.0.0.1", "port": 9, "harbor": { "instance_id": "a", "token": "hunter-message" } });
    publisher.publish("harbor.register", refused.to_string().into()).await.unwrap();
    publisher.flush().await.unwrap();
    for wrong in [
        config.replace(r#""hunter-second"]"#, r#""hunter-second", "hunter-open]"#),
        config.replace(r#""hunter-second"]"#, r#""hunter-second", 5]"#),
        config.replace(r#"password = "hunter-nats""#, r#"password = ["hunter-typed"]"#),
    ] {
        assert_ne!(wrong, config);
        let before = harbor.log().matches("the configuration was not taken over").count();
        fs::write(site.config(), wrong).unwrap();
        harbor.signal(Signal::HUP);
        eventually_async("it is refused", || async {
            (harbor.log().matches("the configuration was not taken over").count() > before).then_some(())
        })
        .await;
    }
    fs::write(site.config(), &config).unwrap();
    harbor.restart();
    harbor.ready().await;
    // On a port of which nothing else is, for what the forwarder says.
    provision_with(&harbor, "b", PLAN_TCP, json!({})).await;
    let admin_token = fs::read_to_string(site.data().join("admin.token")).unwrap();
    let metrics = String::from_utf8(harbor.admin().get("/metrics").await.body.to_vec()).unwrap();
    let mut texts = vec![harbor.log(), metrics];
    assert!(harbor.terminate().success());
    let export = site.command(&["data", "export", "--with-secrets"]).output().unwrap();
    let export = String::from_utf8(export.stdout).unwrap();
    let secret = announce_secret(&export);
    texts.extend(listed("## Files").iter().map(|file| {
        let text = fs::read_to_string(directory.path().join(file)).unwrap();
        assert!(!text.is_empty(), "{file}");
        text
    }));
    let encoded = [&basic("harbor:secret"), &wrong, &second].map(|login| login.trim_start_matches("Basic ").to_owned());
    let secrets = ["\"secret\"", "hunter-", &token, admin_token.trim(), &secret].map(str::to_owned);
    for secret in secrets.iter().chain(&encoded).chain([&said]) {
        assert!(secret.len() >= 7, "{secret} would be found by chance");
        let shown = texts.iter().flat_map(|text| text.lines()).find(|line| line.contains(secret.as_str()));
        assert_eq!(shown, None, "{secret} is shown");
    }
}

/// The secret that tokens are derived from, in hexadecimal, as a backup has it.
fn announce_secret(backup: &str) -> String {
    let records = events(backup);
    let found = records.iter().find_map(|record| record["announce_secret"].as_str());
    found.unwrap_or_else(|| panic!("no announce secret in {backup}")).to_owned()
}
