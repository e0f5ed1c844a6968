//! What an app announces over HTTP to one node is every node's.

use std::time::Duration;

use serde_json::json;

use super::trio::{Trio, address, put, reach};
use crate::{
    end_to_end::{PLAN_TCP, bind},
    support::{
        echo::{Echo, over_tcp},
        eventually::eventually_async,
        harbor::Harbor,
        http::{Answer, Client},
        postgres::Postgres,
    },
};

/// The holder of a binding's token.
struct Holder {
    path: String,
    binding_id: String,
    token: String,
    port: u16,
}

impl Holder {
    /// Makes a service instance by one node, and binds it by another.
    async fn new(id: &str, provisioned_by: &Harbor, bound_by: &Harbor) -> Self {
        assert_eq!(put(provisioned_by, id, "").await.status, 201);
        let binding_id = format!("binding-of-{id}");
        let credentials = bind(bound_by, id, &binding_id, PLAN_TCP).await;
        Self {
            path: format!("/announce/v1/instances/{id}"),
            binding_id,
            token: credentials["announce"]["token"].as_str().expect("a text").into(),
            port: credentials["port"].as_u64().and_then(|port| port.try_into().ok()).expect("a port"),
        }
    }

    fn client(&self, node: &Harbor) -> Client {
        Client::new(node.address("announce")).with("authorization", &format!("Bearer {}", self.token))
    }

    async fn announce(&self, node: &Harbor, app: &Echo) -> Answer {
        let body = json!({ "binding_id": self.binding_id, "port": app.tcp.port() });
        self.client(node).put(&self.path, &body).await
    }

    async fn withdraw(&self, node: &Harbor, app: &Echo) -> Answer {
        let query = format!("binding_id={}&port={}", self.binding_id, app.tcp.port());
        self.client(node).delete(&format!("{}?{query}", self.path)).await
    }

    /// Waits until clients of both nodes are answered, or those of none.
    async fn is_served(&self, served: bool) {
        for number in 0..2 {
            eventually_async(&format!("{} is served by node {number}: {served}", self.path), || async {
                let answer = over_tcp((address(number), self.port).into(), "hello").await;
                (answer.is_some() == served).then_some(())
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announcement_over_http_reaches_every_node_and_so_does_its_end() {
    let trio = Trio::start(Postgres::shared(), 2, "27400-27439").await;
    let [first, second] = [&trio.nodes[0], &trio.nodes[1]];
    let app = Echo::start("app").await;
    // Said once, in the very moment of the binding: to the node that has made it, whose word comes to the other before
    // it knows of the binding, and to the other.
    for round in 0..8 {
        for (asked, name) in [(first, "same"), (second, "other")] {
            let holder = Holder::new(&format!("{name}-{round}"), second, first).await;
            let answer = holder.announce(asked, &app).await;
            assert_eq!(answer.parts(), (200, json!({ "expires_in_seconds": 120 })), "{name} {round}");
            holder.is_served(true).await;
            let told = if round % 2 == 0 { first } else { second };
            assert_eq!(holder.withdraw(told, &app).await.parts(), (200, json!({})));
            holder.is_served(false).await;
        }
    }
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_ends_with_its_binding_on_every_node() {
    let trio = Trio::start(Postgres::shared(), 2, "27440-27449").await;
    let [first, second] = [&trio.nodes[0], &trio.nodes[1]];
    let app = Echo::start("app").await;
    let holder = Holder::new("a", first, first).await;
    assert_eq!(holder.announce(second, &app).await.status, 200);
    holder.is_served(true).await;
    crate::end_to_end::delete(first, &format!("a/service_bindings/{}", holder.binding_id), PLAN_TCP).await;
    holder.is_served(false).await;
    for node in [first, second] {
        assert_eq!(holder.announce(node, &app).await.status, 401);
    }
    app.stop().await;
}

/// What a command that asks the first node says.
async fn ask(trio: &Trio, arguments: &[&str]) -> String {
    let command = trio.sites[0].command(&[arguments, &["--admin", &reach(&trio.nodes[0])]].concat());
    let output = tokio::process::Command::from(command).output().await.expect("it is built");
    let said = String::from_utf8([output.stdout, output.stderr].concat()).expect("text");
    format!("{:?}: {said}", output.status.code().expect("it ends"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_secret_is_rotated_while_an_app_announces_and_nothing_is_refused_or_gone() {
    let trio = Trio::start(Postgres::shared(), 2, "27730-27739").await;
    let [first, second] = [&trio.nodes[0], &trio.nodes[1]];
    let app = Echo::start("app").await;
    let holder = Holder::new("a", first, first).await;
    assert_eq!(holder.announce(first, &app).await.status, 200);
    holder.is_served(true).await;

    // Its app announces all the while, now to one node and now to the other, and clients of both are answered.
    let (rotated, mut announced) = (tokio_util::sync::CancellationToken::new(), 0);
    let rotation = async {
        let said = ask(&trio, &["data", "rotate-secret"]).await;
        assert!(said.starts_with("0: There is a new secret, and tokens of both count"), "{said}");
        rotated.cancel();
    };
    // As often as a token may be shown.
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    let announcing = async {
        while !rotated.is_cancelled() || announced < 20 {
            ticks.tick().await;
            for (number, node) in (0..).zip([first, second]) {
                assert_eq!(holder.announce(node, &app).await.status, 200, "after {announced}");
                assert!(over_tcp((address(number), holder.port).into(), "hello").await.is_some());
                announced += 1;
            }
        }
    };
    tokio::join!(rotation, announcing);
    for node in [first, second] {
        let status = crate::end_to_end::status(node).await;
        assert!(status["secret_rotation"]["since"].is_string() && status["degraded"] == json!([]), "{status}");
        let metrics = String::from_utf8(node.admin().get("/metrics").await.body.to_vec()).unwrap();
        let refused = metrics.lines().filter(|line| line.starts_with("harbor_announcements_refused_total"));
        assert!(refused.clone().all(|line| line.ends_with(" 0")), "{:?}", refused.collect::<Vec<_>>());
    }
    assert!(ask(&trio, &["data", "rotate-secret"]).await.starts_with("1: "), "one at a time");

    // Bound anew, an app has a token of the new secret, whichever node it asks; and each node believes both.
    let mut bound_anew = Vec::new();
    for (name, node) in [("b", second), ("c", first)] {
        let credentials = bind(node, "a", name, PLAN_TCP).await;
        let token = credentials["announce"]["token"].as_str().expect("a text").to_owned();
        bound_anew.push(Holder { binding_id: name.into(), token, path: holder.path.clone(), port: holder.port });
    }
    let fetched = bind_again(second, "a", &holder.binding_id).await;
    assert_ne!(fetched, holder.token, "a binding that is asked for again has the new token too");
    for node in [first, second] {
        for holder in bound_anew.iter().chain([&holder]) {
            assert_eq!(holder.announce(node, &app).await.status, 200);
        }
    }
    let said = ask(&trio, &["data", "rotate-secret", "--finish"]).await;
    assert!(said.starts_with("0: The rotation is over"), "{said}");
    assert!(ask(&trio, &["data", "rotate-secret", "--finish"]).await.starts_with("1: "));
    let renewed = holder_with(&holder, &fetched);
    for node in [first, second] {
        assert_eq!(holder_with(&renewed, &holder.token).announce(node, &app).await.status, 401);
        for holder in bound_anew.iter().chain([&renewed]) {
            assert_eq!(holder.announce(node, &app).await.status, 200);
        }
        assert!(crate::end_to_end::status(node).await.get("secret_rotation").is_none());
    }
    renewed.is_served(true).await;
    app.stop().await;
}

fn holder_with(like: &Holder, token: &str) -> Holder {
    Holder { token: token.into(), binding_id: like.binding_id.clone(), path: like.path.clone(), port: like.port }
}

/// The token of a binding that is there.
async fn bind_again(node: &Harbor, id: &str, binding: &str) -> String {
    let body = json!({
        "service_id": harbor::model::plan::SERVICE_ID, "plan_id": PLAN_TCP, "bind_resource": { "app_guid": "app" },
    });
    let answer = node.broker().put(&format!("/v2/service_instances/{id}/service_bindings/{binding}"), &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["credentials"]["announce"]["token"].as_str().expect("a text").into()
}
