//! Which backend is the primary, on nodes that did not hear announcers at the same time.

use std::time::Duration;

use harbor::{
    discovery::{
        source::{Action, Source},
        wire::{HARBOR_REGISTER, MAX_MESSAGE_BYTES},
    },
    model::{
        AppId, BindingId, PoolName, Protocol, Revision, ServiceInstanceId, Timestamp,
        binding::Binding,
        directory::DirectoryEntry,
        id::MAX_ID_BYTES,
        token::{AnnounceSecret, SECRET_BYTES},
    },
};
use serde_json::{Value, json};

use super::{Arc, NatsServer, Node, directory, of_app, onlooker, publish};

const SECOND: Duration = Duration::from_secs(1);
const ELDER: &str = "tcp 10.0.1.7:61002";
const YOUNGER: &str = "tcp 10.0.1.7:61001";

/// A node that has heard these so much later than it might have, one second after the other.
fn having_heard(late: Duration, ports: &[u16]) -> Node {
    let node = Node::new();
    node.discovery.nats_is_back();
    node.clock.advance(late);
    for port in ports {
        node.clock.advance(SECOND);
        node.discovery.receive(Source::Harbor, Action::Register, of_app(*port).to_string().as_bytes());
    }
    node
}

/// What it says to other nodes.
fn words(node: &Node) -> Vec<Value> {
    node.discovery.seniority().iter().map(|word| serde_json::from_slice(word).unwrap()).collect()
}

#[tokio::test]
async fn a_node_that_comes_later_has_the_same_primary() {
    let server = NatsServer::start();
    let client = onlooker(&server).await;
    let mut first = Node::on(&server);
    first.up().await;
    publish(&client, HARBOR_REGISTER, &of_app(61_002)).await;
    first.shows("tcp-one", &[ELDER]).await;
    first.clock.advance(SECOND);
    publish(&client, HARBOR_REGISTER, &of_app(61_001)).await;
    first.shows("tcp-one", &[ELDER, YOUNGER]).await;

    // It hears the younger one before the elder.
    let mut second = Node::new();
    second.clock.advance(60 * SECOND);
    second.connect(super::nats_settings(&server));
    second.up().await;
    publish(&client, HARBOR_REGISTER, &of_app(61_001)).await;
    second.shows("tcp-one", &[YOUNGER]).await;
    second.clock.advance(SECOND);
    publish(&client, HARBOR_REGISTER, &of_app(61_002)).await;
    second.shows("tcp-one", &[ELDER, YOUNGER]).await;
    assert_eq!(first.shown("tcp-one"), [ELDER, YOUNGER]);
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn what_a_node_says_is_what_another_takes_over_where_it_is_earlier() {
    let (first, second) =
        (having_heard(Duration::ZERO, &[61_002, 61_001]), having_heard(60 * SECOND, &[61_001, 61_003, 61_002]));
    let (said, heard) = (first.discovery.seniority(), second.discovery.seniority());
    assert_eq!((said.len(), heard.len()), (1, 1));
    second.discovery.hear_seniority(&said[0]).unwrap();
    assert_eq!(second.shown("tcp-one"), [ELDER, YOUNGER, "tcp 10.0.1.7:61003"]);
    assert!(words(&second).is_empty(), "it knows nothing better");
    first.discovery.hear_seniority(&heard[0]).unwrap();
    assert_eq!(first.shown("tcp-one"), [ELDER, YOUNGER]);
    let [answer] = &words(&first)[..] else { panic!("it knows better, and says so once") };
    let backends = answer["backends"].as_array().unwrap();
    let told = backends.iter().map(|backend| backend.as_object().unwrap().values().cloned().collect::<Vec<_>>());
    let told = told.collect::<Vec<_>>();
    let at = |seconds: i64| Timestamp::from_seconds(1_700_000_000 + seconds).0;
    let of = |port: u16, seconds| json!([format!("10.0.1.7:{port}"), "tcp-one", at(seconds), "tcp"]);
    assert_eq!(json!(told), json!([of(61_002, 1), of(61_001, 2)]));
    assert!(words(&first).is_empty());
}

#[tokio::test]
async fn one_alone_is_not_spoken_of_and_nothing_while_nobody_hears() {
    let node = having_heard(Duration::ZERO, &[61_001]);
    assert!(words(&node).is_empty());
    node.discovery.nats_is_away();
    node.discovery.receive(Source::Harbor, Action::Register, of_app(61_002).to_string().as_bytes());
    assert!(words(&node).is_empty());
    node.discovery.nats_is_back();
    assert_eq!(words(&node).len(), 1, "who was away says everything");
}

#[tokio::test]
async fn only_who_has_the_announce_secret_is_believed() {
    let node = having_heard(Duration::ZERO, &[61_002, 61_001]);
    let secret = AnnounceSecret::new([1; SECRET_BYTES]);
    let other = AnnounceSecret::new([2; SECRET_BYTES]);
    let backends = |instance: &str, transport: &str| {
        json!([{"instance_id": instance, "transport": transport, "address": "10.0.1.7:61001", "since": 1}]).to_string()
    };
    let message = |backends: &str, proof: &str| format!(r#"{{"new":0,"backends": {backends},"proof":"{proof}"}}"#);
    let hear = |backends: &str, proof: &str| node.discovery.hear_seniority(message(backends, proof).as_bytes());
    let wanted = backends("tcp-one", "tcp");
    for proof in [other.vouch(&wanted), secret.vouch(&wanted).to_uppercase(), secret.vouch("[]"), String::new()] {
        hear(&wanted, &proof).unwrap();
    }
    // No token is worth as much, whoever its binding is of.
    let binding = BindingId::new("of-app").unwrap();
    hear(&wanted, secret.token(&binding).expose()).unwrap();
    // Of what this node does not know, nothing comes to be.
    for unknown in [backends("nobody", "tcp"), backends("tcp-one", "sctp"), backends("both-one", "tcp")] {
        hear(&unknown, &secret.vouch(&unknown)).unwrap();
    }
    assert_eq!(node.shown("tcp-one"), [ELDER, YOUNGER]);
    assert_eq!(node.backends.ids(), [ServiceInstanceId::new("tcp-one").unwrap()]);

    for malformed in ["", "{}", r#"{"backends":[]}"#, r#"{"backends":[],"proof":1}"#] {
        node.discovery.hear_seniority(malformed.as_bytes()).unwrap_err();
    }
    hear(r#"[{"instance_id":"tcp-one"}]"#, &secret.vouch(r#"[{"instance_id":"tcp-one"}]"#)).unwrap_err();
    let long = wanted.clone() + &" ".repeat(MAX_MESSAGE_BYTES);
    hear(&long, &secret.vouch(&wanted)).unwrap_err();

    hear(&wanted, &secret.vouch(&wanted)).unwrap();
    assert_eq!(node.shown("tcp-one"), [YOUNGER, ELDER]);
}

#[tokio::test]
async fn whatever_the_ids_each_message_can_be_read_and_all_is_said() {
    let node = Node::new();
    let id = ServiceInstanceId::new("\u{1}".repeat(MAX_ID_BYTES)).unwrap();
    let mut known = directory();
    known.put_instance(DirectoryEntry {
        id: id.clone(),
        pool: PoolName::new("default").unwrap(),
        port: 23_050,
        protocol: Protocol::Tcp,
        int_port: 4100,
        match_app: false,
        bindings: [].into(),
        apps: Default::default(),
    });
    known.put_binding(&Arc::new(Binding {
        id: BindingId::new("long").unwrap(),
        service_instance_id: id.clone(),
        app_id: Some(AppId::new("app").unwrap()),
        space_id: None,
        announce: true,
        predecessor_id: None,
        created_at: Timestamp::default(),
        revision: Revision(1),
    }));
    node.directory.send_replace(Arc::new(known));
    node.discovery.nats_is_back();
    for port in 50_000..50_200_u16 {
        let mut message = of_app(port);
        message["tags"]["harbor_instance"] = json!(id.as_str());
        node.discovery.receive(Source::Harbor, Action::Register, message.to_string().as_bytes());
    }
    let said = node.discovery.seniority();
    assert!(said.len() > 1 && said.iter().all(|message| message.len() <= MAX_MESSAGE_BYTES));
    let of = |message| serde_json::from_slice::<Value>(message).unwrap()["backends"].as_array().unwrap().len();
    assert_eq!(said.iter().map(|message| of(message)).sum::<usize>(), 200);
    said.iter().for_each(|message| node.discovery.hear_seniority(message).unwrap());
}
