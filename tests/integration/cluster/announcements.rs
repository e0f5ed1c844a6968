//! What an app announces over HTTP to one node is every node's.

use serde_json::json;

use super::trio::{Trio, address, put};
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
