//! A node that lives and does not keep up: its reports go on coming, and what it has applied stays behind.

use std::time::Instant;

use harbor::{control::NODES_WAIT, model::plan::SERVICE_ID};
use serde_json::{Value, json};

use super::trio::{Trio, listens, name, node, port_of, put, reach, told};
use crate::{
    end_to_end::{PLAN_BOTH, PLAN_TCP},
    support::{eventually::eventually_async, http::Answer, postgres::Postgres},
};

const PORTS: &str = "27500-27509";

/// Starts one more node, which logs in as a user of its own: the database can keep from it what has changed, and nothing
/// else.
async fn add_laggard(postgres: &Postgres, trio: &mut Trio) {
    let grants = "CREATE ROLE laggard LOGIN; GRANT CREATE ON SCHEMA public TO laggard; \
        GRANT ALL ON ALL TABLES IN SCHEMA public TO laggard";
    postgres.sql_at(&trio.url, grants);
    let site = trio.site(1, PORTS, "").with("store.url", &trio.url.replace("harbor@", "laggard@"));
    trio.nodes.push(site.serve().await);
    trio.sites.push(site);
    trio.meet().await;
}

/// What is answered, and that nobody hurried.
async fn waited_for(answer: impl Future<Output = Answer>) -> Answer {
    let start = Instant::now();
    let answer = answer.await;
    assert!(start.elapsed() >= NODES_WAIT, "{:?}: {answer:?}", start.elapsed());
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lives_and_lags_is_waited_for_a_bounded_time_and_named_in_the_log_and_in_the_status() {
    let postgres = Postgres::shared();
    let mut trio = Trio::start(postgres, 1, PORTS).await;
    add_laggard(postgres, &mut trio).await;
    let [asked, lagging] = [0, 1].map(|number| &trio.nodes[number]);
    for id in ["changed", "deleted"] {
        assert_eq!(put(asked, id, "").await.parts(), (201, json!({})));
    }
    let deleted = port_of(asked, "deleted").await;

    postgres.sql_at(&trio.url, "REVOKE SELECT ON tombstones FROM laggard");
    let broker = asked.broker();
    let patch = json!({ "service_id": SERVICE_ID, "plan_id": PLAN_BOTH });
    let path = format!("/v2/service_instances/deleted?service_id={SERVICE_ID}&plan_id={PLAN_TCP}");
    let setting = json!({ "changes": [{ "section": "forwarder", "key": "idle_timeout_udp", "value": "7s" }] });
    let admin = asked.admin();
    let (made, changed, gone, set) = tokio::join!(
        waited_for(put(asked, "made", "")),
        waited_for(broker.patch("/v2/service_instances/changed", &patch)),
        waited_for(broker.delete(&path)),
        waited_for(admin.patch("/admin/v1/config", &setting)),
    );
    assert_eq!((set.status.as_u16(), &set.json()["lagging"]), (200, &json!([name(1)])), "{set:?}");
    assert_eq!(made.parts(), (201, json!({})));
    assert_eq!(changed.parts(), (200, json!({})));
    assert_eq!(gone.parts(), (200, json!({})));
    let made = port_of(asked, "made").await;
    assert!(listens(0, made).await && !listens(1, made).await);
    assert!(!listens(0, deleted).await && listens(1, deleted).await);

    for (id, what) in [("made", "listen on"), ("changed", "listen on"), ("deleted", "have closed")] {
        let log = asked.log();
        let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut warnings = events.filter(|event| event["level"] == "WARN" && event["fields"]["service_instance"] == id);
        let warning = warnings.next().unwrap_or_else(|| panic!("{id}: the log says nothing"));
        let (message, named) = (warning["fields"]["message"].as_str().unwrap(), &warning["fields"]["lagging"]);
        let expected = format!("have not said in time that they {what} the port: going on without them");
        assert!(message.ends_with(&expected) && *named == json!(name(1)), "{warning}");
    }
    let behind = format!("the node {} has been at revision ", name(1));
    let degraded = async || asked.admin().get("/admin/v1/status").await.json()["degraded"].to_string();
    eventually_async("the status names it", || async { degraded().await.contains(&behind).then_some(()) }).await;
    let (code, list) = told(&trio.sites[0], &["list", "--admin", &reach(asked)]);
    assert_eq!((code, &list["nodes"][1]["alive"]), (1, &json!(true)), "{list}");
    assert!(list["nodes"][1]["problems"][0].as_str().unwrap().starts_with(&behind), "{list}");

    postgres.sql_at(&trio.url, "GRANT SELECT ON tombstones TO laggard");
    eventually_async("it catches up", || async {
        let is_level = node(asked, 1).await["revision_applied"] == node(lagging, 0).await["revision_applied"];
        (is_level && listens(1, made).await && !listens(1, deleted).await).then_some(())
    })
    .await;
    eventually_async("nothing is told of it", || async { (degraded().await == "[]").then_some(()) }).await;
}
