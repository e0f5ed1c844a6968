//! `openapi.yaml` against the routes and against live answers: what is answered is described, and what is described is
//! answered.

use std::{collections::BTreeSet, sync::Arc};

use harbor::{
    admin::{self, RestartError, SettingsError, wire},
    broker::ROUTES,
    discovery::source::{Action, Source},
    model::{
        AppId, BindingId, Revision, ServiceInstanceId, Timestamp,
        observed::{Link, ListenerObservation, ListenerState, Mode},
        plan::SERVICE_ID,
    },
};
use hyper::Method;
use serde_json::{Value, json};

use super::admin::Node;
use super::announce_http::{BOTH_ONE, Listening, TCP_ONE};
use super::broker::fixture::{QUERY, Site, bind_app, bind_key, plan, request, request_with, site, site_with};
use crate::support::http::{Answer, Client};

fn document() -> Value {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.yaml")).unwrap();
    serde_saphyr::from_str(&text).unwrap()
}

/// Follows a reference within the document.
fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value.get("$ref").and_then(Value::as_str) {
        Some(path) => {
            document.pointer(path.strip_prefix('#').unwrap()).unwrap_or_else(|| panic!("{path} is not there"))
        }
        None => value,
    }
}

/// Whether `value` is what `schema` describes; if not, why.
fn judge(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let mut root = schema.clone();
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["components"] = document["components"].clone();
    let validator = jsonschema::options().should_validate_formats(true).build(&root).unwrap();
    validator.validate(value).map_err(|error| format!("{}: {error}", error.instance_path()))
}

/// Whether it is a status, as `GET /admin/v1/status` is described; `harbor status --json` prints the same.
#[track_caller]
pub fn is_a_status(value: &Value) {
    let document = document();
    judge(&document, &document["components"]["schemas"]["Status"], value).unwrap();
}

/// Whether it is what `harbor config … --json` prints, as one of these schemas describes it.
#[track_caller]
pub fn is_of_the_configuration(schema: &str, value: &Value) {
    assert!(CONFIGURATION.contains(&schema), "{schema}");
    let document = document();
    judge(&document, &document["components"]["schemas"][schema], value).unwrap();
}

const CONFIGURATION: [&str; 4] = ["Configuration", "ConfigurationKey", "ConfigurationChanged", "SettingsHistory"];

#[test]
fn what_operators_are_shown_can_hold_nothing_that_it_does_not_describe() {
    let document = document();
    let operations = described_of_operators(&document).into_iter();
    let mut left = operations
        .map(|(method, path)| format!("/paths/{}/{}", path.replace('/', "~1"), method.to_lowercase()))
        .collect::<Vec<_>>();
    let mut seen = BTreeSet::new();
    while let Some(path) = left.pop() {
        if !seen.insert(path.clone()) {
            continue;
        }
        let mut schemas = vec![document.pointer(&path).unwrap_or_else(|| panic!("{path} is not there"))];
        while let Some(schema) = schemas.pop() {
            match schema {
                Value::Object(map) => {
                    if map.contains_key("properties") {
                        assert_eq!(map.get("additionalProperties"), Some(&json!(false)), "{path}: {schema}");
                    }
                    left.extend(
                        map.get("$ref").and_then(Value::as_str).map(|to| to.trim_start_matches('#').to_owned()),
                    );
                    schemas.extend(map.values());
                }
                Value::Array(values) => schemas.extend(values),
                _ => {}
            }
        }
    }
    assert!(seen.len() > 10, "{seen:?}");
}

/// Live answers, held against the document as they come.
struct Checked<'a> {
    document: Value,
    site: &'a Site,
    seen: BTreeSet<(&'static str, u16)>,
}

impl<'a> Checked<'a> {
    fn new(site: &'a Site) -> Self {
        Self { document: document(), site, seen: BTreeSet::new() }
    }

    async fn send(&mut self, operation: &'static str, parameters: [&str; 2], query: &str, body: Value, status: u16) {
        let client = self.site.client.clone();
        self.send_by(&client, operation, parameters, query, body, status).await;
    }

    /// Sends what `operation` describes, and expects `status`.
    async fn send_by(
        &mut self,
        client: &Client,
        operation: &'static str,
        [instance, binding]: [&str; 2],
        query: &str,
        body: Value,
        status: u16,
    ) {
        let route = ROUTES.iter().find(|route| route.operation.as_str() == operation).unwrap();
        let path = route.path.replace("{instance_id}", instance).replace("{binding_id}", binding);
        let body = (!body.is_null()).then_some(body);
        let client = client.clone().with("x-broker-api-request-identity", "id-1");
        let answer = client.send(route.method.parse().unwrap(), &format!("{path}?{query}"), body.as_ref()).await;
        assert_eq!(answer.status.as_u16(), status, "{operation}: {:?}", answer.json());
        let described = &self.document["paths"][route.path][route.method.to_lowercase()];
        self.check_answer(described, &answer);
        if let (true, Some(body)) = (answer.status.is_success(), &body) {
            let schema = &described["requestBody"]["content"]["application/json"]["schema"];
            judge(&self.document, schema, body).unwrap_or_else(|error| panic!("request of {operation}: {error}"));
        }
        self.seen.insert((operation, status));
    }

    fn check_answer(&self, described: &Value, answer: &Answer) {
        let (operation, status) = (&described["operationId"], answer.status.as_str());
        let response = &described["responses"][status];
        assert!(response.is_object(), "{operation} answers {status}, and the document does not say so");
        let response = resolve(&self.document, response);
        assert_eq!(answer.headers["content-type"], "application/json");
        assert_eq!(answer.headers["x-broker-api-request-identity"], "id-1");
        if let Some(headers) = response["headers"].as_object() {
            for name in headers.keys() {
                assert!(answer.headers.contains_key(name.to_lowercase()), "{operation} {status} lacks {name}");
            }
        }
        let schema = &response["content"]["application/json"]["schema"];
        judge(&self.document, schema, &answer.json())
            .unwrap_or_else(|error| panic!("{operation} {status}: {error}: {}", answer.json()));
    }
}

#[test]
fn it_describes_every_route_of_the_broker_and_no_other() {
    let document = document();
    let mut described = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            if operation.get("tags") == Some(&json!(["broker"])) {
                described.insert((method.to_uppercase(), path.clone(), operation["operationId"].to_string()));
            }
        }
    }
    let routes = ROUTES
        .iter()
        .map(|route| (route.method.into(), route.path.into(), json!(route.operation.as_str()).to_string()));
    assert_eq!(described, routes.collect());
}

/// The methods and paths that operators have, as they are described.
fn described_of_operators(document: &Value) -> BTreeSet<(String, String)> {
    let mut described = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            if operation["tags"].as_array().is_some_and(|tags| tags.contains(&json!("admin"))) {
                described.insert((method.to_uppercase(), path.clone()));
            }
        }
    }
    described
}

#[test]
fn it_describes_every_route_of_operators_and_no_other() {
    let routes = admin::routes().into_iter().map(|(method, path)| (method.to_string(), path));
    assert_eq!(described_of_operators(&document()), routes.collect());
}

#[test]
fn every_reference_leads_somewhere_and_every_component_is_used() {
    fn references(value: &Value, into: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                if let Some(path) = map.get("$ref").and_then(Value::as_str) {
                    into.insert(path.to_owned());
                }
                map.values().for_each(|value| references(value, into));
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, into)),
            _ => {}
        }
    }
    let document = document();
    let mut used = BTreeSet::new();
    references(&document, &mut used);
    for path in &used {
        assert!(document.pointer(path.strip_prefix('#').unwrap()).is_some(), "{path}");
    }
    for (kind, components) in document["components"].as_object().unwrap() {
        for name in components.as_object().unwrap().keys().filter(|_| kind != "securitySchemes") {
            assert!(used.contains(&format!("#/components/{kind}/{name}")), "{kind}/{name} is not used");
        }
    }
}

#[tokio::test]
async fn live_answers_are_what_it_describes() {
    let site = site(25_900).await;
    let mut checked = Checked::new(&site);
    let (a, ab, none) = (["a", ""], ["a", "b"], Value::Null);
    let patch = |parameters: Value| json!({ "service_id": SERVICE_ID, "parameters": parameters });
    let large = json!({ "x": "x".repeat(300_000) });
    let maintained = |mut body: Value| {
        body["maintenance_info"] = json!({ "version": "1.0.0" });
        body
    };

    checked.send("catalog", a, "", none.clone(), 200).await;

    let all = json!({
        "protocol": "both", "port": 25_905, "int_port": 5000, "balance": "failover", "match_app": true,
        "idle_timeout": "90s", "max_connections": 5, "allow": ["10.0.0.0/8"], "proxy_protocol": "v2",
    });
    let wish = request_with("free", all);
    checked.send("provision", a, "", json!([]), 400).await;
    checked.send("provision", a, "", large.clone(), 413).await;
    checked.send("provision", a, "", maintained(request("tcp")), 422).await;
    checked.send("provision", a, "accepts_incomplete=true", wish.clone(), 201).await;
    checked.send("provision", a, "", wish, 200).await;
    checked.send("provision", a, "", request("tcp"), 409).await;
    site.store.share();
    checked.send("provision", ["later", ""], "accepts_incomplete=true", request("tcp"), 202).await;
    checked.send("last_operation", ["later", ""], "operation=provision", none.clone(), 200).await;

    checked.send("fetch", ["never", ""], "", none.clone(), 404).await;
    checked.send("fetch", ["%FF", ""], "", none.clone(), 400).await;
    checked.send("fetch", a, "", none.clone(), 200).await;
    checked.send("last_operation", a, "", none.clone(), 200).await;
    checked.send("last_operation", ["%FF", ""], "", none.clone(), 400).await;
    checked.send("last_operation", ["never", ""], "", none.clone(), 410).await;

    checked.send("update", a, "", json!([]), 400).await;
    checked.send("update", ["never", ""], "", patch(json!({})), 404).await;
    checked.send("update", a, "", large.clone(), 413).await;
    checked.send("update", a, "", patch(json!({ "port": 25_906 })), 422).await;
    checked.send("update", a, "", patch(json!({ "int_port": null, "balance": null, "idle_timeout": "1h" })), 200).await;
    let to_both = json!({ "service_id": SERVICE_ID, "plan_id": plan("both"), "context": { "instance_name": "x" } });
    checked.send("update", a, "", to_both, 200).await;

    checked.send("bind", ab, "", json!([]), 400).await;
    checked.send("bind", ["never", "b"], "", bind_app("app"), 404).await;
    checked.send("bind", ab, "", large, 413).await;
    checked.send("bind", ab, "", bind_app("app"), 201).await;
    checked.send("bind", ab, "", bind_app("app"), 200).await;
    checked.send("bind", ab, "", bind_key(), 409).await;
    checked.send("bind", ["a", "c"], "", json!({ "predecessor_binding_id": "b" }), 201).await;
    checked.send("fetch_binding", ab, "", none.clone(), 200).await;
    checked.send("fetch_binding", ["a", "%FF"], "", none.clone(), 400).await;
    checked.send("fetch_binding", ["a", "never"], "", none.clone(), 404).await;
    checked.send("binding_last_operation", ab, "", none.clone(), 200).await;
    checked.send("binding_last_operation", ["a", "%FF"], "", none.clone(), 400).await;
    checked.send("binding_last_operation", ["a", "never"], "", none.clone(), 410).await;

    for operation in ["provision", "fetch", "update", "deprovision", "last_operation"].into_iter().chain([
        "bind",
        "fetch_binding",
        "unbind",
        "binding_last_operation",
    ]) {
        site.store.break_down(Some("instance"));
        let body = match operation {
            "provision" => request("tcp"),
            "update" => patch(json!({})),
            "bind" => bind_key(),
            _ => none.clone(),
        };
        checked.send(operation, ab, QUERY, body, 503).await;
        site.store.break_down(None);
    }

    checked.send("unbind", ab, "", none.clone(), 400).await;
    checked.send("unbind", ab, QUERY, none.clone(), 200).await;
    checked.send("unbind", ab, QUERY, none.clone(), 410).await;
    checked.send("deprovision", a, "", none.clone(), 400).await;
    checked.send("deprovision", a, QUERY, none.clone(), 200).await;
    checked.send("deprovision", a, QUERY, none.clone(), 410).await;

    let anonymous = Client::new(site.address);
    let versionless = anonymous.clone().with("authorization", crate::support::harbor::AUTHORIZATION);
    for route in ROUTES {
        let operation = route.operation.as_str();
        checked.send_by(&anonymous, operation, ab, "", none.clone(), 401).await;
        checked.send_by(&versionless, operation, ab, "", none.clone(), 412).await;
    }

    // What a test cannot bring about here: a panic, a body that never ends, a turn that does not come. 405 is no route's.
    let unseen = ["405", "408", "500"];
    for route in ROUTES {
        let operation = route.operation.as_str();
        let described = &checked.document["paths"][route.path][route.method.to_lowercase()]["responses"];
        for status in described.as_object().unwrap().keys().filter(|status| !unseen.contains(&status.as_str())) {
            let concurrency = status == "422" && !["provision", "update"].contains(&operation);
            let seen = checked.seen.contains(&(operation, status.parse().unwrap()));
            assert!(seen || concurrency, "{operation} {status} is described and never seen");
        }
    }
}

#[tokio::test]
async fn a_pool_without_public_names_is_described_too() {
    let site = site_with("25930-25934", "25935-25939").await;
    let mut checked = Checked::new(&site);
    checked.send("provision", ["a", ""], "", request("games"), 201).await;
    let key = json!({ "service_id": SERVICE_ID, "plan_id": plan("games"), "parameters": { "announce": true } });
    checked.send("bind", ["a", "k"], "", key, 201).await;
}

#[tokio::test]
async fn what_operators_are_shown_is_what_it_describes() {
    let document = document();
    let mut seen = BTreeSet::new();
    let (mut node, private) = (Node::new(true).await, Node::new(false).await);
    let at = || Timestamp::from_seconds(1_795_252_518);
    let mut ask =
        async |method: Method, path: &'static str, id: &str, body: Option<Value>, client: Client, status: u16| {
            let asked = ["{node_id}", "{suspended_id}", "{network}"]
                .iter()
                .fold(path.to_owned(), |at, name| at.replace(name, id));
            let answer = client.send(method.clone(), &asked, body.as_ref()).await;
            assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
            let operation = &document["paths"][path][method.as_str().to_lowercase()];
            let described = resolve(&document, &operation["responses"][answer.status.as_str()]);
            let (kind, content) = described["content"].as_object().unwrap().iter().next().unwrap();
            let found = answer.headers["content-type"].to_str().unwrap();
            assert_eq!(found.split(';').next(), Some(kind.as_str()), "{path} {status}");
            let body = match kind.as_str() {
                "application/json" => answer.json(),
                _ => String::from_utf8(answer.body.to_vec()).unwrap().into(),
            };
            judge(&document, &content["schema"], &body)
                .unwrap_or_else(|error| panic!("{path} {status}: {error}: {body}"));
            seen.insert((format!("{method} {path}"), status.to_string()));
        };
    let (put, delete) = (Method::PUT, Method::DELETE);
    let (suspension, network) = ("/admin/v1/suspensions/{suspended_id}", "/admin/v1/blocked/{network}");
    let restraints = [
        (&put, suspension, "first"),
        (&delete, suspension, "first"),
        (&put, network, "10.0.0.0%2F8"),
        (&delete, network, "10.0.0.0%2F8"),
    ];
    let lists = [wire::SUSPENSIONS_PATH, wire::BLOCKED_PATH, wire::ANNOUNCE_SECRET_PATH];
    let rotations = ["/admin/v1/announce-secret/rotate", "/admin/v1/announce-secret/finish"];
    node.observations.send_modify(|seen| Arc::make_mut(seen).applied = Some(Revision(1_000)));
    for (method, path, id) in restraints {
        ask(method.clone(), path, id, None, node.anonymous(), 401).await;
        ask(method.clone(), path, id, None, node.operator(), 200).await;
        if *method == put {
            if path == network {
                ask(delete.clone(), network, "10.1.0.0%2F16", None, node.operator(), 409).await;
            }
            let reason = json!({ "reason": "x".repeat(501) });
            ask(method.clone(), path, id, Some(reason), node.operator(), 400).await;
        }
    }
    for method in [&put, &delete] {
        ask(method.clone(), suspension, "nobody", None, node.operator(), 404).await;
        ask(method.clone(), network, "0.0.0.0%2F0", None, node.operator(), 400).await;
        ask(put.clone(), suspension, "second", Some(json!({ "reason": "abused" })), node.operator(), 200).await;
        ask(put.clone(), network, "::1", None, node.operator(), 200).await;
    }
    for path in rotations {
        ask(Method::POST, path, "", None, node.anonymous(), 401).await;
        ask(Method::POST, path, "", None, node.operator(), 200).await;
        for path in lists {
            ask(Method::GET, path, "", None, node.operator(), 200).await;
        }
        ask(Method::GET, wire::STATUS_PATH, "", None, node.operator(), 200).await;
        // One rotation at a time, and the end of none.
        if path == rotations[0] {
            ask(Method::POST, path, "", None, node.operator(), 409).await;
        }
    }
    ask(Method::POST, rotations[1], "", None, node.operator(), 409).await;
    for path in lists {
        ask(Method::GET, path, "", None, node.anonymous(), 401).await;
    }
    node.fill_settings().await;
    for (path, id) in [(suspension, "first"), (network, "10.0.0.0%2F8")] {
        ask(put.clone(), path, id, None, node.operator(), 409).await;
    }
    ask(delete.clone(), suspension, "second", None, node.operator(), 200).await;

    let mut tell = async |method: Method, path: &'static str, client: Client, status: u16| {
        ask(method, path, "harbor_node_2", None, client, status).await;
    };
    let node_paths = [
        (Method::DELETE, "/admin/v1/nodes/{node_id}"),
        (Method::POST, "/admin/v1/nodes/{node_id}/drain"),
        (Method::POST, "/admin/v1/nodes/{node_id}/resume"),
    ];
    for (method, path) in node_paths.clone() {
        tell(method.clone(), path, node.anonymous(), 401).await;
        tell(method, path, node.operator(), 404).await;
    }
    node.join("harbor_node_2", true).await;
    for (method, path) in node_paths.clone() {
        tell(method.clone(), path, node.operator(), if method == Method::DELETE { 409 } else { 200 }).await;
    }
    node.join("harbor_node_2", false).await;
    tell(Method::GET, wire::NODES_PATH, node.anonymous(), 401).await;
    tell(Method::GET, wire::NODES_PATH, node.operator(), 200).await;
    tell(Method::DELETE, "/admin/v1/nodes/{node_id}", node.operator(), 200).await;
    let mut check = async |path: &'static str, client: Client, status: u16| {
        tell(Method::GET, path, client, status).await;
    };
    check("/healthz", node.anonymous(), 200).await;
    check("/readyz", node.anonymous(), 200).await;
    for path in ["/metrics", "/metrics/instances"] {
        check(path, node.anonymous(), 200).await;
        check(path, private.anonymous(), 401).await;
    }
    check(wire::STATUS_PATH, node.anonymous(), 401).await;
    check(wire::STATUS_PATH, node.operator(), 200).await;

    // One port that failed, one that is closed, then none that was tried, links that are away, and a node that drains.
    node.observe(&["second"], &["first"]);
    node.observations.send_modify(|seen| {
        let second = ServiceInstanceId::new("second").unwrap();
        let observation = ListenerObservation { version: 1, state: ListenerState::Closed, since: at() };
        Arc::make_mut(seen).insert(second, observation);
    });
    node.mode.send_replace(Mode::Draining);
    node.store.send_replace(Link::Down(at(), "disk full".into()));
    node.nats.send_replace(Link::Up(at()));
    check("/readyz", node.anonymous(), 503).await;
    check(wire::STATUS_PATH, node.operator(), 200).await;
    node.observations.send_replace(Arc::default());
    node.mode.send_replace(Mode::Starting);
    check(wire::STATUS_PATH, node.operator(), 200).await;
    node.join("harbor_node_2", false).await;
    node.close_store().await;
    for (method, path) in node_paths {
        tell(method, path, node.operator(), 503).await;
    }

    tell(Method::POST, wire::RESTART_PATH, node.anonymous(), 401).await;
    let restarted = wire::Restarted { old_process: 7, old_version: "0.1".into(), process: 8, version: "0.2".into() };
    for (outcome, status) in [
        (Ok(restarted), 200),
        (Err(RestartError::UnderWay), 409),
        (Err(RestartError::Failed("the new process ended".into())), 500),
    ] {
        let operator = node.operator();
        let answer = async { node.restarts.recv().await.expect("it was asked for").send(outcome).unwrap() };
        tokio::join!(tell(Method::POST, wire::RESTART_PATH, operator, status), answer);
    }
    for (method, path, id) in restraints {
        ask(method.clone(), path, id, None, node.operator(), 503).await;
    }
    for path in rotations {
        ask(Method::POST, path, "", None, node.operator(), 503).await;
    }

    let mut described = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            if operation["tags"] == json!(["admin"]) {
                let statuses = operation["responses"].as_object().unwrap().keys();
                described.extend(statuses.map(|status| (format!("{} {path}", method.to_uppercase()), status.clone())));
            }
        }
    }
    assert_eq!(seen, described);
}

#[tokio::test]
async fn what_operators_are_told_of_settings_is_what_it_describes() {
    let document = document();
    let mut seen = BTreeSet::new();
    let mut node = Node::new(true).await;
    let (config, history) = ("/admin/v1/config", "/admin/v1/config/history");
    let mut tell = async |client: Client, method: Method, path: &'static str, query: &str, body: Value, status: u16| {
        let operation = &document["paths"][path][method.as_str().to_lowercase()];
        let body = (!body.is_null()).then_some(body);
        if let Some(body) = &body {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            let judged = judge(&document, schema, body);
            assert_eq!(judged.is_err(), status == 400, "{judged:?}: {body}");
        }
        let answer = client.send(method.clone(), &format!("{path}{query}"), body.as_ref()).await;
        assert_eq!(answer.status, status, "{method} {path}{query}: {answer:?}");
        let described = resolve(&document, &operation["responses"][answer.status.as_str()]);
        let (schema, body) = (&described["content"]["application/json"]["schema"], answer.json());
        judge(&document, schema, &body).unwrap_or_else(|error| panic!("{path} {status}: {error}: {body}"));
        seen.insert((method.to_string(), path, status.to_string()));
        body
    };
    let (get, patch) = (Method::GET, Method::PATCH);
    for (method, path) in [(&get, config), (&patch, config), (&get, history)] {
        tell(node.anonymous(), method.clone(), path, "", Value::Null, 401).await;
    }

    let key = |source: &str, place: Option<&str>, live: Option<&str>, change: &str| wire::ConfigurationKey {
        section: "forwarder".into(),
        key: "workers".into(),
        value: place.map(str::to_owned),
        source: source.into(),
        place: place.map(str::to_owned),
        beneath: live.map(|_| wire::Beneath { value: Some("2".into()), place: "harbor.toml:3:1".into() }),
        default: live.map(str::to_owned),
        change: change.into(),
        after_restart: live.map(str::to_owned),
        changed_by: live.map(str::to_owned),
        changed_at: live.map(|_| "2026-11-21T09:15:18Z".to_owned()),
    };
    let keys = vec![
        key("default", None, None, "restart"),
        key("file", Some("harbor.toml:3:1"), None, "reload"),
        key("environment", Some("HARBOR_FORWARDER__WORKERS"), None, "live"),
        key("live", None, Some("root@one"), "live"),
    ];
    node.configuration.send_replace(keys.clone().into());
    let told = tell(node.operator(), get.clone(), config, "", Value::Null, 200).await;
    assert_eq!(told["keys"].as_array().map(Vec::len), Some(keys.len()));

    let wish = |value: Value| json!({ "changes": [{ "section": "log", "key": "level", "value": value }] });
    let words = || "why not".to_owned();
    node.observations.send_modify(|seen| Arc::make_mut(seen).applied = Some(Revision(1_000)));
    for (outcome, status) in [
        (Ok(wire::ConfigurationChanged { keys, lagging: Vec::new(), warnings: vec!["one".into()] }), 200),
        (Err(SettingsError::Refused(words())), 422),
        (Err(SettingsError::Conflict(words())), 409),
        (Err(SettingsError::Unavailable(words())), 503),
    ] {
        let operator = node.operator();
        let answer = async {
            let asked = node.settings.recv().await.expect("it was asked for");
            asked.reply.send(outcome).unwrap();
        };
        tokio::join!(tell(operator, patch.clone(), config, "", wish("debug".into()), status), answer);
    }
    for wrong in [json!({}), json!({ "changes": [] }), json!({ "changes": [{ "section": "log" }] })] {
        tell(node.operator(), patch.clone(), config, "", wrong, 400).await;
    }
    tell(node.operator(), patch, config, "", wish("x".repeat(1024 * 1024).into()), 413).await;

    node.fill_settings().await;
    let told = tell(node.operator(), get.clone(), history, "?limit=2", Value::Null, 200).await;
    assert_eq!(told["changes"].as_array().map(Vec::len), Some(2));
    for wrong in ["?limit=0", "?limit=-1", "?key=level"] {
        tell(node.operator(), get.clone(), history, wrong, Value::Null, 400).await;
    }
    node.close_store().await;
    tell(node.operator(), get, history, "", Value::Null, 503).await;

    let mut described = BTreeSet::new();
    for path in [config, history] {
        for (method, operation) in document["paths"][path].as_object().unwrap() {
            let statuses = operation["responses"].as_object().into_iter().flat_map(|responses| responses.keys());
            described.extend(statuses.map(|status| (method.to_uppercase(), path, status.clone())));
        }
    }
    assert_eq!(seen, described);
}

#[tokio::test]
async fn what_operators_are_told_of_ports_is_what_it_describes() {
    let document = document();
    let mut seen = BTreeSet::new();
    let node = Node::new(true).await;
    let reservation = "/admin/v1/ports/reservations/{pool}/{name}";
    let (ports, apply) = ("/admin/v1/ports", "/admin/v1/ports/apply");
    let mut tell =
        async |client: Client, (method, path): (Method, &'static str), place: &str, body: Value, status: u16| {
            let sent =
                if path == reservation { path.replace("{pool}/{name}", place) } else { format!("{path}{place}") };
            let operation = &document["paths"][path][method.as_str().to_lowercase()];
            let body = (!body.is_null()).then_some(body);
            if let Some(body) = body.as_ref().filter(|_| status != 400) {
                let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
                judge(&document, schema, body).unwrap_or_else(|error| panic!("{sent}: {error}: {body}"));
            }
            let answer = client.send(method.clone(), &sent, body.as_ref()).await;
            assert_eq!(answer.status, status, "{sent}: {answer:?}");
            let described = resolve(&document, &operation["responses"][answer.status.as_str()]);
            let (schema, body) = (&described["content"]["application/json"]["schema"], answer.json());
            judge(&document, schema, &body).unwrap_or_else(|error| panic!("{sent} {status}: {error}: {body}"));
            seen.insert((format!("{method} {path}"), status.to_string()));
        };
    let (list, put, delete, post) =
        ((Method::GET, ports), (Method::PUT, reservation), (Method::DELETE, reservation), (Method::POST, apply));
    for call in [&list, &put, &delete, &post] {
        let place = if call.1 == reservation { "default/a" } else { "" };
        tell(node.anonymous(), call.clone(), place, Value::Null, 401).await;
    }
    let whole =
        |name: &str, port: &str| json!({ "pools": [{ "name": name, "names": [{ "name": "b", "port": port }] }] });
    let operator = || node.operator();
    tell(operator(), put.clone(), "default/a", json!({ "port": "26004-26005", "protocol": "tcp" }), 200).await;
    tell(operator(), put.clone(), "default/later", json!({ "port": "26000", "when_free": true }), 200).await;
    tell(operator(), put.clone(), "default/No", json!({}), 400).await;
    tell(operator(), put.clone(), "games/a", json!({}), 404).await;
    tell(operator(), put.clone(), "default/c", json!({ "port": "26005" }), 409).await;
    tell(operator(), post.clone(), "", whole("default", "26007"), 200).await;
    tell(operator(), put.clone(), "default/chosen", json!({}), 200).await;
    tell(operator(), post.clone(), "", whole("default", "26099"), 400).await;
    tell(operator(), post.clone(), "", whole("games", "26007"), 404).await;
    tell(operator(), post.clone(), "", whole("default", "26005"), 409).await;
    let block = json!({ "dry_run": true, "pools": [{ "name": "rack", "range": "25000-25009", "names": [] }] });
    tell(operator(), post.clone(), "", block, 200).await;
    tell(operator(), list.clone(), "?free=true&limit=2", Value::Null, 200).await;
    tell(operator(), list.clone(), "?limit=5000", Value::Null, 200).await;
    tell(operator(), list.clone(), "?limit=0", Value::Null, 400).await;
    tell(operator(), list.clone(), "?pool=games", Value::Null, 404).await;
    tell(operator(), delete.clone(), "default/a", Value::Null, 200).await;
    tell(operator(), delete.clone(), "default/a", Value::Null, 404).await;
    node.close_store().await;
    tell(operator(), list, "", Value::Null, 503).await;
    tell(operator(), put, "default/a", json!({}), 503).await;
    tell(operator(), delete, "default/a", Value::Null, 503).await;
    tell(operator(), post, "", whole("default", "26007"), 503).await;

    let mut described = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            if operation["tags"] == json!(["admin", "ports"]) {
                let statuses = operation["responses"].as_object().unwrap().keys();
                described.extend(statuses.map(|status| (format!("{} {path}", method.to_uppercase()), status.clone())));
            }
        }
    }
    // Only while others go on releasing the same.
    described.remove(&(format!("DELETE {reservation}"), "409".to_owned()));
    assert_eq!(seen, described);
}

/// Live answers of the announce API, held against the document as they come.
struct Announcing {
    document: Value,
    seen: BTreeSet<(String, String)>,
}

impl Announcing {
    /// Sends `method` to `path`, and expects `status` and `error`.
    async fn send(&mut self, client: &Client, method: Method, path: &str, body: Value, expect: (u16, &str)) {
        let body = (!body.is_null()).then_some(body);
        let answer = client.send(method.clone(), path, body.as_ref()).await;
        let error = answer.json()["error"].as_str().unwrap_or_default().to_owned();
        assert_eq!((answer.status.as_u16(), error.as_str()), expect, "{method} {path}: {}", answer.json());
        let operation = &self.document["paths"][ANNOUNCE_PATH][method.as_str().to_lowercase()];
        let response = resolve(&self.document, &operation["responses"][answer.status.as_str()]);
        assert!(response.is_object(), "{method} answers {}, and the document does not say so", answer.status);
        assert_eq!(answer.headers["content-type"], "application/json");
        for name in response["headers"].as_object().into_iter().flat_map(|headers| headers.keys()) {
            assert!(answer.headers.contains_key(name.to_lowercase()), "{method} {} lacks {name}", answer.status);
        }
        let schema = &response["content"]["application/json"]["schema"];
        judge(&self.document, schema, &answer.json())
            .unwrap_or_else(|error| panic!("{method} {}: {error}: {}", answer.status, answer.json()));
        if let (true, Some(body)) = (answer.status.is_success(), &body) {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            judge(&self.document, schema, body).unwrap_or_else(|error| panic!("request {body}: {error}"));
        }
        self.seen.insert((method.to_string().to_lowercase(), answer.status.as_str().to_owned()));
    }
}

const ANNOUNCE_PATH: &str = "/announce/v1/instances/{instance_id}";

#[tokio::test]
async fn live_answers_to_announcements_are_what_it_describes() {
    let listening = Listening::alone().await;
    let mut announcing = Announcing { document: document(), seen: BTreeSet::new() };
    let (put, get, delete) = (Method::PUT, Method::GET, Method::DELETE);
    let app = listening.client("of-app");
    let of_app = |more: Value| {
        let mut body = json!({"binding_id": "of-app"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let shown = format!("{TCP_ONE}?binding_id=of-app");
    let at = |port: u16| format!("{shown}&port={port}");

    for (more, expect) in [
        (json!({"port": 61_012, "state": "up", "stale_threshold_in_seconds": 60}), (200, "")),
        (json!({"port": 61_012, "host": "127.0.0.1", "state": "draining"}), (200, "")),
        (json!({"port": 61_012}), (200, "")),
        (json!({"port": "61012"}), (400, "malformed")),
        (json!({"port": 1, "state": "gone"}), (400, "malformed")),
        (json!({}), (400, "no_port")),
        (json!({"port": 0}), (400, "tls_only")),
        (json!({"udp_port": 1}), (400, "protocol_mismatch")),
        (json!({"port": 1, "protocol": "udp"}), (400, "protocol_mismatch")),
        (json!({"port": 1, "host": "name"}), (400, "host_not_an_address")),
        (json!({"port": 1, "host": "10.0.2.7"}), (403, "address_forbidden")),
        (json!({"port": 23_001}), (403, "loop")),
        (json!({"port": 1, "padding": "x".repeat(16 * 1024)}), (413, "")),
    ] {
        announcing.send(&app, put.clone(), TCP_ONE, of_app(more), expect).await;
    }
    announcing.send(&app, put.clone(), TCP_ONE, json!([]), (400, "malformed")).await;
    announcing.send(&app, put.clone(), TCP_ONE, json!({"binding_id": "gone"}), (401, "")).await;
    announcing.send(&app, get.clone(), &shown, Value::Null, (200, "")).await;
    announcing.send(&app, get.clone(), TCP_ONE, Value::Null, (400, "malformed")).await;
    announcing.send(&app, get.clone(), &format!("{BOTH_ONE}?binding_id=of-app"), Value::Null, (401, "")).await;

    // Another app of the same service instance does not withdraw what the first has announced.
    listening.node.directory.send_modify(|directory| {
        let directory = Arc::make_mut(directory);
        let mut other = (**directory.binding("of-app").unwrap()).clone();
        other.id = BindingId::new("of-other").unwrap();
        other.app_id = Some(AppId::new("other").unwrap());
        directory.put_binding(&Arc::new(other));
    });
    let others = format!("{TCP_ONE}?binding_id=of-other&port=61012");
    let other = listening.client("of-other");
    announcing.send(&other, delete.clone(), &others, Value::Null, (409, "other_origin")).await;
    for (query, expect) in [
        (at(61_012), (200, "")),
        (at(61_012), (404, "unknown_backend")),
        (shown.clone(), (400, "no_port")),
        (format!("{shown}&port=x"), (400, "malformed")),
        (format!("{}&host=10.0.2.7", at(1)), (403, "address_forbidden")),
        (format!("{TCP_ONE}?binding_id=gone&port=1"), (401, "")),
    ] {
        announcing.send(&app, delete.clone(), &query, Value::Null, expect).await;
    }

    for port in 1..=256 {
        let message = json!({"host": "10.0.1.7", "port": port, "app": "app", "harbor": {"instance_id": "tcp-one"}});
        listening.node.discovery.receive(Source::Harbor, Action::Register, message.to_string().as_bytes());
    }
    announcing.send(&app, put.clone(), TCP_ONE, of_app(json!({"port": 61_012})), (409, "too_many_backends")).await;
    announcing.send(&app, get.clone(), &shown, Value::Null, (200, "")).await;

    // One token's haste: its burst is soon used up.
    while app.get(&shown).await.status == 200 {}
    for (method, path, body) in [(put, TCP_ONE, of_app(json!({"port": 1}))), (get, &*shown, Value::Null)] {
        announcing.send(&app, method, path, body, (429, "rate_limited")).await;
    }
    announcing.send(&app, delete, &at(1), Value::Null, (429, "rate_limited")).await;
    listening.stop().await;

    // What a test cannot bring about here: a body that never ends, and an end between two looks at the directory.
    let unseen = [("put", "408"), ("put", "404")];
    let methods = announcing.document["paths"][ANNOUNCE_PATH].as_object().unwrap();
    for (method, operation) in methods.iter().filter(|(_, operation)| operation.get("operationId").is_some()) {
        for status in operation["responses"].as_object().unwrap().keys() {
            let seen = announcing.seen.contains(&(method.clone(), status.clone()));
            assert!(seen || unseen.contains(&(method, status)), "{method} {status} is described and never seen");
        }
    }
}
