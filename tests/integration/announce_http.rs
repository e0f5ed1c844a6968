//! Announcements over HTTP, through a real listener.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use harbor::{
    discovery::{
        announce_router,
        source::{Action, Source},
        wire::{HARBOR_REGISTER, HARBOR_UNREGISTER},
    },
    http::{Limits, serve},
    model::{
        BindingId, ServiceInstanceId,
        announcement::{AnnouncementRefusal, Authority},
    },
};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use crate::{
    discovery::{Node, directory, next, onlooker, publish, settings},
    support::{eventually::eventually_async, http::Client, nats::NatsServer},
};

/// A node with `announce.listen`.
pub struct Listening {
    pub node: Node,
    address: SocketAddr,
    server: JoinSet<()>,
}

impl Listening {
    async fn with(node: Node) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        let router = announce_router(Arc::clone(&node.discovery));
        let mut server = JoinSet::new();
        server.spawn(serve(listener, None, router, Limits::default(), node.shutdown.clone()));
        Self { node, address, server }
    }

    pub async fn alone() -> Self {
        Self::with(Node::new()).await
    }

    /// A client that shows the token of `binding`.
    pub fn client(&self, binding: &str) -> Client {
        let token = directory().announce_secret.token(&BindingId::new(binding).unwrap());
        self.bearing(&format!("Bearer {}", token.expose()))
    }

    fn bearing(&self, authorization: &str) -> Client {
        Client::new(self.address).with("authorization", authorization)
    }

    pub async fn stop(mut self) {
        self.node.stop().await;
        while let Some(ended) = self.server.join_next().await {
            ended.expect("the listener does not panic");
        }
    }
}

pub const TCP_ONE: &str = "/announce/v1/instances/tcp-one";
pub const BOTH_ONE: &str = "/announce/v1/instances/both-one";

fn error(reason: &str, description: &str) -> Value {
    json!({"error": reason, "description": description})
}

#[tokio::test]
async fn an_app_announces_shows_and_withdraws_itself() {
    let listening = Listening::alone().await;
    let app = listening.client("of-app");
    let body = json!({"binding_id": "of-app", "port": 61_012, "stale_threshold_in_seconds": 60});
    assert_eq!(app.put(TCP_ONE, &body).await.parts(), (200, json!({"expires_in_seconds": 60})));
    assert_eq!(listening.node.shown("tcp-one"), ["tcp 127.0.0.1:61012"]);
    let states = listening.node.backends.list(&ServiceInstanceId::new("tcp-one").unwrap());
    assert!(matches!(&states[0].backend.authority, Authority::App(app) if app.as_str() == "app"));

    listening.node.clock.advance(Duration::from_secs(20));
    let backend = |state: &str, state_since: &str, expires: u64| {
        json!({"protocol": "tcp", "host": "127.0.0.1", "port": 61_012, "state": state, "state_since": state_since,
               "since": "2023-11-14T22:13:20Z", "expires_in_seconds": expires, "open": 0, "put_aside": false,
               "health": "unchecked", "health_since": "2023-11-14T22:13:20Z"})
    };
    let shown = |backends: Value| json!({"service_instance_id": "tcp-one", "backends": backends, "refusals": []});
    let path = format!("{TCP_ONE}?binding_id=of-app");
    assert_eq!(app.get(&path).await.parts(), (200, shown(json!([backend("up", "2023-11-14T22:13:20Z", 40)]))));

    let draining = json!({"binding_id": "of-app", "port": 61_012, "state": "draining"});
    assert_eq!(app.put(TCP_ONE, &draining).await.parts(), (200, json!({"expires_in_seconds": 120})));
    assert_eq!(listening.node.shown("tcp-one"), [""; 0]);
    assert_eq!(app.get(&path).await.parts(), (200, shown(json!([backend("draining", "2023-11-14T22:13:40Z", 120)]))));

    let gone = format!("{TCP_ONE}?binding_id=of-app&port=61012");
    assert_eq!(app.delete(&gone).await.parts(), (200, json!({})));
    let unknown = error("unknown_backend", "There is no such backend: there is nothing to do.");
    assert_eq!(app.delete(&gone).await.parts(), (404, unknown));
    listening.stop().await;
}

#[tokio::test]
async fn who_holds_no_token_learns_nothing() {
    let listening = Listening::alone().await;
    let expect = json!({"description": "No such service instance and binding, or not its token: use what the \
                                        credentials have under announce."});
    let right = directory().announce_secret.token(&BindingId::new("of-app").unwrap()).expose().to_owned();
    let bearer = |token: &str| format!("Bearer {token}");
    for (path, binding, authorization) in [
        (TCP_ONE, "of-app", bearer("wrong")),
        (TCP_ONE, "of-app", bearer(&right.to_uppercase())),
        (TCP_ONE, "of-app", bearer(&right[1..])),
        (TCP_ONE, "of-app", bearer("")),
        (TCP_ONE, "of-app", format!("Basic {right}")),
        (TCP_ONE, "of-app", right.clone()),
        (TCP_ONE, "key", bearer(&right)),
        (TCP_ONE, "gone", bearer(&right)),
        (TCP_ONE, "", bearer(&right)),
        (TCP_ONE, &"x".repeat(300), bearer(&right)),
        (BOTH_ONE, "of-app", bearer(&right)),
        ("/announce/v1/instances/gone", "of-app", bearer(&right)),
        ("/announce/v1/instances/%FF", "of-app", bearer(&right)),
    ] {
        let client = listening.bearing(&authorization);
        let body = json!({"binding_id": binding, "port": "not looked at"});
        let query = format!("{path}?binding_id={binding}&port=1");
        for answer in [client.put(path, &body).await, client.delete(&query).await, client.get(&query).await] {
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
            assert_eq!(answer.parts(), (401, expect.clone()), "{path} {binding} {authorization}");
        }
    }
    let nobody = Client::new(listening.address);
    assert_eq!(nobody.get(TCP_ONE).await.parts(), (401, expect.clone()));
    // A token ends with its binding.
    listening.node.directory.send_modify(|directory| {
        Arc::make_mut(directory).remove_binding(&BindingId::new("of-app").unwrap());
    });
    let late = listening.client("of-app").get(&format!("{TCP_ONE}?binding_id=of-app")).await;
    assert_eq!(late.parts(), (401, expect));
    assert_eq!(listening.node.backends.export().len(), 0);
    listening.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_an_announcement_is_said() {
    let listening = Listening::alone().await;
    let app = listening.client("of-app");
    for (changes, status, reason, description) in [
        (json!({}), 400, "no_port", "There is no port: give one."),
        (
            json!({"port": 0}),
            400,
            "tls_only",
            "There is no plain port: announce one, since TLS to backends is not there yet.",
        ),
        (
            json!({"udp_port": 1}),
            400,
            "protocol_mismatch",
            "The service instance does not carry that protocol: announce the one it has.",
        ),
        (
            json!({"port": 1, "host": "name"}),
            400,
            "host_not_an_address",
            "The host is not an IP address: give an address, not a name.",
        ),
        (
            json!({"port": 1, "state": "gone"}),
            400,
            "malformed",
            "The announcement is not of the documented form: compare it with docs/announcements.md.",
        ),
        (json!({"port": 23_001}), 403, "loop", "The address is Harbor's own: announce that of the app."),
        (
            json!({"port": 1, "host": "10.0.2.7"}),
            403,
            "address_forbidden",
            "A token announces its caller, 127.0.0.1, or a host in discovery.token_networks: leave host out.",
        ),
        (
            json!({"port": 65_536}),
            400,
            "malformed",
            "The body is not of the documented form: invalid value: integer `65536`, expected u16.",
        ),
    ] {
        let mut body = json!({"binding_id": "of-app"});
        body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        assert_eq!(app.put(TCP_ONE, &body).await.parts(), (status, error(reason, description)), "{body}");
    }
    let not_an_object = error("malformed", "The body must be a JSON object.");
    assert_eq!(app.put(TCP_ONE, &json!([])).await.parts(), (400, not_an_object));
    let without_binding = error("malformed", "The body is not of the documented form: missing field `binding_id`.");
    assert_eq!(app.put(TCP_ONE, &json!({"port": 1})).await.parts(), (400, without_binding));
    let mut large = json!({"binding_id": "of-app", "port": 1});
    large["padding"] = "x".repeat(16 * 1024).into();
    let too_large = json!({"description": "The body has more than 16384 bytes: send a smaller one."});
    assert_eq!(app.put(TCP_ONE, &large).await.parts(), (413, too_large));
    let elsewhere = app.get("/announce/v1/elsewhere").await;
    assert_eq!(elsewhere.parts(), (404, json!({"description": "There is nothing at this path."})));
    let posted = app.send(Method::POST, TCP_ONE, Some(&json!({}))).await;
    assert_eq!(posted.status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(posted.json()["description"].is_string());

    // The holder can look up what was refused, the latest first.
    let shown = app.get(&format!("{TCP_ONE}?binding_id=of-app")).await.json();
    let reasons =
        shown["refusals"].as_array().unwrap().iter().map(|refusal| refusal["reason"].clone()).collect::<Vec<_>>();
    assert_eq!(
        reasons,
        [
            "malformed",
            "address_forbidden",
            "loop",
            "malformed",
            "host_not_an_address",
            "protocol_mismatch",
            "tls_only",
            "no_port"
        ]
    );
    let then = "2023-11-14T22:13:20Z";
    assert_eq!(
        shown["refusals"][2],
        json!({"at": then, "first_at": then, "count": 1, "source": "http", "reason": "loop", "named": "tcp-one",
               "app": "app", "host": "127.0.0.1", "port": 23_001,
               "description": "The address is Harbor's own: announce that of the app."})
    );
    assert_eq!(shown["refusals"][1]["host"], "10.0.2.7");
    // Who shows no right token is told nothing, and the operator of it.
    assert_eq!(listening.bearing("Bearer wrong").get(TCP_ONE).await.status, StatusCode::BAD_REQUEST);
    let wrong = listening.bearing("Bearer wrong").get(&format!("{TCP_ONE}?binding_id=of-app")).await;
    assert_eq!(wrong.status, StatusCode::UNAUTHORIZED);
    let strange = listening.node.discovery.refusals(&None);
    assert_eq!((strange[0].reason, strange[0].of.host.as_str()), (AnnouncementRefusal::BadProof, "127.0.0.1"));
    assert_eq!(shown["backends"], json!([]));
    listening.stop().await;
}

#[tokio::test]
async fn another_host_is_announced_where_the_operator_lets_tokens_do_so() {
    let listening = Listening::alone().await;
    let key = listening.client("key");
    let body = json!({"binding_id": "key", "host": "10.0.1.7", "port": 61_012, "udp_port": 61_013});
    assert_eq!(key.put(BOTH_ONE, &body).await.status, StatusCode::OK);
    assert_eq!(listening.node.shown("both-one"), ["tcp 10.0.1.7:61012", "udp 10.0.1.7:61013"]);
    let query = format!("{BOTH_ONE}?binding_id=key&host=10.0.1.7&port=61012&udp_port=61013");
    assert_eq!(key.delete(&query).await.status, StatusCode::OK);
    assert_eq!(listening.node.backends.export().len(), 0);
    listening.stop().await;
}

#[tokio::test]
async fn on_a_cell_a_token_announces_what_the_platform_has_given_to_its_app() {
    let listening = Listening::alone().await;
    let mut settings = settings();
    settings.rules.addresses.cell_networks = vec!["127.0.0.0/8".parse().unwrap()];
    listening.node.discovery.set_settings(settings);
    let given = |port: u16, app: &str| {
        let message = json!({"uris": ["www.example.com"], "host": "127.0.0.1", "port": port, "app": app});
        listening.node.discovery.receive(Source::Router, Action::Register, message.to_string().as_bytes());
    };
    given(61_012, "app");
    given(61_020, "neighbour");
    let app = listening.client("of-app");
    let announce = |port: u16| json!({"binding_id": "of-app", "port": port});
    assert_eq!(app.put(TCP_ONE, &announce(61_012)).await.status, 200);
    for port in [61_020, 61_099] {
        let answer = app.put(TCP_ONE, &announce(port)).await;
        assert_eq!(
            (answer.status, &answer.json()["error"]),
            (StatusCode::FORBIDDEN, &json!("not_attributed")),
            "{port}"
        );
    }
    let shown = app.get(&format!("{TCP_ONE}?binding_id=of-app")).await.json();
    let last = &shown["refusals"][0];
    assert_eq!(
        [&last["reason"], &last["source"], &last["port"]],
        [&json!("not_attributed"), &json!("http"), &json!(61_099)]
    );
    assert_eq!(listening.node.shown("tcp-one"), ["tcp 127.0.0.1:61012"]);
    // A key is no app's, so nothing there is its own.
    let answer = listening.client("key").put(BOTH_ONE, &json!({"binding_id": "key", "port": 61_012})).await;
    assert_eq!((answer.status, &answer.json()["error"]), (StatusCode::FORBIDDEN, &json!("not_attributed")));
    // What goes to the neighbour is no longer the app's.
    given(61_012, "neighbour");
    assert_eq!(listening.node.shown("tcp-one"), [""; 0]);
    listening.stop().await;
}

#[tokio::test]
async fn of_both_protocols_one_may_be_served_at_another_place() {
    let listening = Listening::alone().await;
    let key = listening.client("key");
    for (protocol, port) in [("tcp", 61_012), ("udp", 61_013)] {
        let body = json!({"binding_id": "key", "port": port, "protocol": protocol});
        assert_eq!(key.put(BOTH_ONE, &body).await.status, StatusCode::OK);
    }
    assert_eq!(listening.node.shown("both-one"), ["tcp 127.0.0.1:61012", "udp 127.0.0.1:61013"]);
    let unknown = json!({"binding_id": "key", "port": 61_012, "protocol": "sctp"});
    assert_eq!(key.put(BOTH_ONE, &unknown).await.parts().1["error"], "malformed");
    let query = format!("{BOTH_ONE}?binding_id=key&port=61012&protocol=tcp");
    assert_eq!(key.delete(&query).await.status, StatusCode::OK);
    assert_eq!(listening.node.shown("both-one"), ["udp 127.0.0.1:61013"]);
    listening.stop().await;
}

#[tokio::test]
async fn a_token_makes_ten_requests_a_second_after_a_burst_of_fifty() {
    let listening = Listening::alone().await;
    let (key, app) = (listening.client("key"), listening.client("of-app"));
    let path = format!("{BOTH_ONE}?binding_id=key");
    for _ in 0..50 {
        assert_eq!(key.get(&path).await.status, StatusCode::OK);
    }
    let refused = key.get(&path).await;
    assert_eq!(refused.headers["retry-after"], "1");
    let too_many = error("rate_limited", "Too many requests: wait as long as Retry-After says.");
    assert_eq!(refused.parts(), (429, too_many));
    assert_eq!(app.get(&format!("{TCP_ONE}?binding_id=of-app")).await.status, StatusCode::OK);
    listening.node.clock.advance(Duration::from_secs(1));
    for _ in 0..10 {
        assert_eq!(key.get(&path).await.status, StatusCode::OK);
    }
    assert_eq!(key.get(&path).await.status, StatusCode::TOO_MANY_REQUESTS);
    listening.stop().await;
}

#[tokio::test]
async fn who_shows_no_right_token_is_answered_so_often_and_keeps_no_neighbour_out() {
    let listening = Listening::alone().await;
    let (stranger, app) = (listening.bearing("Bearer wrong"), listening.client("of-app"));
    let path = format!("{TCP_ONE}?binding_id=of-app");
    let mut told = 0;
    for wrong in 0..1000 {
        // Whatever it is that is wrong.
        let answer = match wrong % 4 {
            0 => stranger.get(&path).await,
            1 => Client::new(listening.address).get(&path).await,
            2 => stranger.put(TCP_ONE, &json!([])).await,
            _ => stranger.delete(TCP_ONE).await,
        };
        told += usize::from(answer.status == StatusCode::UNAUTHORIZED || answer.status == StatusCode::BAD_REQUEST);
    }
    assert_eq!(told, 1000);
    assert_eq!(stranger.get(&path).await.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(app.get(&path).await.status, StatusCode::OK, "an app behind the same address");
    listening.node.clock.advance(Duration::from_secs(1));
    for _ in 0..100 {
        assert_eq!(stranger.get(&path).await.status, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(stranger.get(&path).await.status, StatusCode::TOO_MANY_REQUESTS);
    listening.stop().await;
}

#[tokio::test]
async fn what_waited_for_nats_until_it_was_no_longer_true_is_not_told() {
    let mut server = NatsServer::stopped();
    let listening = Listening::with(Node::on(&server)).await;
    let app = listening.client("of-app");
    let announce = |port: u16| json!({"binding_id": "of-app", "port": port, "stale_threshold_in_seconds": 5});
    assert_eq!(app.put(TCP_ONE, &announce(61_012)).await.status, StatusCode::OK);
    listening.node.clock.advance(Duration::from_secs(6));
    assert_eq!(app.put(TCP_ONE, &announce(61_013)).await.status, StatusCode::OK);
    server.restart();
    let client = onlooker(&server).await;
    let mut registers = client.subscribe(HARBOR_REGISTER).await.unwrap();
    client.flush().await.unwrap();
    let dropped = &listening.node.metrics.discovery.relays_dropped;
    eventually_async("the older one is dropped", || async { (dropped.get() == 1).then_some(()) }).await;
    // Whether the onlooker is there in time for the other is chance. Once it has heard itself it hears all.
    publish(&client, HARBOR_REGISTER, &json!({"now": true})).await;
    while next(&mut registers).await["now"] != true {}
    assert_eq!(app.put(TCP_ONE, &announce(61_014)).await.status, StatusCode::OK);
    let mut told = next(&mut registers).await;
    if told["port"] == 61_013 {
        told = next(&mut registers).await;
    }
    assert_eq!(told["port"], 61_014);
    listening.stop().await;
}

#[tokio::test]
async fn what_one_node_accepts_every_node_learns() {
    let server = NatsServer::start();
    let client = onlooker(&server).await;
    let mut registers = client.subscribe(HARBOR_REGISTER).await.unwrap();
    let mut unregisters = client.subscribe(HARBOR_UNREGISTER).await.unwrap();
    client.flush().await.unwrap();
    let (mut first, mut second) = (Node::on(&server), Node::on(&server));
    first.up().await;
    second.up().await;
    let listening = Listening::with(first).await;

    let of_app = json!({"binding_id": "of-app", "host": "10.0.1.7", "port": 61_012, "stale_threshold_in_seconds": 60});
    assert_eq!(listening.client("of-app").put(TCP_ONE, &of_app).await.status, StatusCode::OK);
    second.shows("tcp-one", &["tcp 10.0.1.7:61012"]).await;
    assert_eq!(
        next(&mut registers).await,
        json!({"host": "10.0.1.7", "port": 61_012, "app": "app", "stale_threshold_in_seconds": 60,
               "harbor": {"instance_id": "tcp-one", "since": 1_700_000_000_000_000_u64}}),
        "the app's binding is what speaks for it"
    );

    let of_key = json!({"binding_id": "key", "host": "10.0.1.8", "port": 61_013, "state": "up"});
    assert_eq!(listening.client("key").put(BOTH_ONE, &of_key).await.status, StatusCode::OK);
    second.shows("both-one", &["tcp 10.0.1.8:61013", "udp 10.0.1.8:61013"]).await;
    let relayed = next(&mut registers).await;
    assert_eq!(relayed["harbor"]["binding_id"], "key");
    assert_eq!(relayed["harbor"]["timestamp"], 1_700_000_000);
    let token = directory().announce_secret.token(&BindingId::new("key").unwrap());
    assert!(!relayed.to_string().contains(token.expose()), "a proof, never the token");

    let gone = format!("{BOTH_ONE}?binding_id=key&host=10.0.1.8&port=61013");
    assert_eq!(listening.client("key").delete(&gone).await.status, StatusCode::OK);
    second.shows("both-one", &[]).await;
    assert_eq!(next(&mut unregisters).await["harbor"]["instance_id"], "both-one");

    // One message each: the second node has not relayed what it heard.
    listening.stop().await;
    second.stop().await;
    client.publish(HARBOR_REGISTER, r#"{"end":true}"#.into()).await.unwrap();
    assert_eq!(next(&mut registers).await, json!({"end": true}));
}
