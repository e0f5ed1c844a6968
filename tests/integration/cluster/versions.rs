//! Nodes of this version on a database that a newer one has changed under them.

use super::trio::{Trio, listens, port_of, put};
use crate::{
    store::versions::{ADDED, NEWER_ON_POSTGRES},
    support::{eventually::eventually_async, postgres::Postgres},
};

const PORTS: &str = "27520-27529";

#[tokio::test(flavor = "multi_thread")]
async fn a_node_goes_on_when_a_newer_one_adds_to_the_schema_and_another_of_its_version_can_still_join() {
    let postgres = Postgres::shared();
    let mut trio = Trio::start(postgres, 1, PORTS).await;
    let mut ports = Vec::new();
    for id in ["old", "new"] {
        assert_eq!(put(&trio.nodes[0], id, "").await.status, 201);
        ports.push(port_of(&trio.nodes[0], id).await);
    }

    let step = format!("BEGIN; {NEWER_ON_POSTGRES}; {}; NOTIFY harbor, 'tint'; COMMIT", ADDED.join(";"));
    postgres.sql_at(&trio.url, &step);
    trio.nodes[0].logged("a row of the store is left alone, as it cannot be understood: is another node newer?");
    // Both are served as they were. What is not understood is neither told nor given away.
    assert!(listens(0, ports[0]).await && listens(0, ports[1]).await);
    let broker = trio.nodes[0].broker();
    assert_eq!(broker.get("/v2/service_instances/old").await.status, 200);
    assert_eq!(broker.get("/v2/service_instances/new").await.status, 503);

    trio.add(1, PORTS, "").await;
    trio.nodes[1].logged("a newer Harbor has changed the database, so that this version can still work on it");
    trio.meet().await;
    assert!(listens(1, ports[0]).await && !listens(1, ports[1]).await);
    for number in 0..2 {
        let id = format!("next-{number}");
        assert_eq!(put(&trio.nodes[number], &id, "").await.status, 201);
        let port = port_of(&trio.nodes[1 - number], &id).await;
        assert!(!ports.contains(&port) && listens(0, port).await && listens(1, port).await);
        ports.push(port);
    }

    // A newer node takes the word back that these do not know.
    let understood = r#"BEGIN; UPDATE revision_counter SET revision = revision + 1;
        UPDATE service_instances SET settings = '{}', revision = (SELECT revision FROM revision_counter) WHERE id = 'new';
        NOTIFY harbor, 'desired'; COMMIT"#;
    postgres.sql_at(&trio.url, understood);
    eventually_async("it is served", || async { listens(1, ports[1]).await.then_some(()) }).await;
    assert_eq!(broker.get("/v2/service_instances/new").await.status, 200);
}
