//! A service instance that one node provisions is every node's.

use std::net::TcpListener;

use harbor::model::plan::SERVICE_ID;
use rustix::process::Signal;
use serde_json::json;

use super::trio::{Trio, address, listens, name, node, nodes, port_of, put, reach, told, wish};
use crate::{
    end_to_end::{PLAN_BOTH, PLAN_TCP},
    support::{eventually::eventually_async, postgres::Postgres},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_port_listens_on_every_node_when_it_is_answered_and_on_none_when_it_is_gone() {
    let trio = Trio::start(Postgres::shared(), 3, "27100-27119").await;
    for (number, node) in trio.nodes.iter().enumerate() {
        let id = format!("i{number}");
        assert_eq!(put(node, &id, "").await.parts(), (201, json!({})));
        let port = port_of(&trio.nodes[2 - number], &id).await;
        for listener in 0..3 {
            assert!(listens(listener, port).await, "{id} on node {listener}");
        }
        let path = format!("/v2/service_instances/{id}?service_id={SERVICE_ID}&plan_id={PLAN_TCP}");
        let other = &trio.nodes[(number + 1) % 3];
        assert_eq!(other.broker().delete(&path).await.parts(), (200, json!({})));
        for listener in 0..3 {
            assert!(!listens(listener, port).await, "{id} on node {listener}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_a_stranger_holds_on_any_node_is_not_given_out() {
    let trio = Trio::start(Postgres::shared(), 2, "27120-27123").await;
    let strangers = [27_120, 27_121, 27_123].map(|port| TcpListener::bind((address(1), port)).unwrap());
    for id in ["a"] {
        assert_eq!(put(&trio.nodes[0], id, "").await.parts(), (201, json!({})));
        assert_eq!(port_of(&trio.nodes[1], id).await, 27_122);
    }
    let chosen = wish("e1f6b1f0-57f3-5c0e-8a0b-6d3a6f0c1a01", json!({ "port": 27_123 }));
    let answer = trio.nodes[0].broker().put("/v2/service_instances/b", &chosen).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    drop(strangers);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_a_stranger_holds_on_a_node_that_starts_is_told_by_every_node_until_the_stranger_goes() {
    let mut trio = Trio::start(Postgres::shared(), 2, "27510-27519").await;
    assert_eq!(put(&trio.nodes[0], "a", "").await.parts(), (201, json!({})));
    let port = port_of(&trio.nodes[0], "a").await;
    trio.nodes.remove(1).kill();
    let stranger = TcpListener::bind((address(1), port)).unwrap();
    trio.nodes.push(trio.sites[1].start());
    let problem = format!("port {port} is not open on {} since ", name(1));
    let asked = &trio.nodes[0];
    let list = || told(&trio.sites[0], &["list", "--admin", &reach(asked)]);
    let degraded = async || asked.admin().get("/admin/v1/status").await.json()["degraded"].clone();
    let seen = eventually_async("it says that it cannot open the port", || async {
        let seen = node(asked, 1).await;
        (seen["alive"] == true && seen["ports_failed"] == 1).then_some(seen)
    });
    let seen = seen.await;
    let problems = seen["problems"].as_array().unwrap();
    assert!(problems.len() == 1 && problems[0].as_str().unwrap().starts_with(&problem), "{seen}");
    assert_eq!(degraded().await, seen["problems"]);
    let (code, listed) = list();
    assert_eq!((code, &listed["nodes"][1]["ports_failed"]), (1, &json!(1)), "{listed}");
    assert_eq!(listed["nodes"][1]["problems"], seen["problems"]);
    // What this node has is not touched by it.
    assert!(listed["nodes"][0]["problems"] == json!([]) && listens(0, port).await, "{listed}");

    drop(stranger);
    eventually_async("it has the port", || async { (list().0 == 0 && listens(1, port).await).then_some(()) }).await;
    assert_eq!((node(asked, 1).await["ports_failed"].clone(), degraded().await), (json!(0), json!([])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protocol_that_another_node_cannot_add_changes_nothing() {
    let trio = Trio::start(Postgres::shared(), 2, "27124-27127").await;
    assert_eq!(put(&trio.nodes[0], "a", "").await.parts(), (201, json!({})));
    let port = port_of(&trio.nodes[0], "a").await;
    let stranger = std::net::UdpSocket::bind((address(1), port)).unwrap();
    let patch = json!({ "service_id": SERVICE_ID, "plan_id": PLAN_BOTH });
    let answer = trio.nodes[0].broker().patch("/v2/service_instances/a", &patch).await;
    assert_eq!(answer.status, 422, "{answer:?}");
    let fetched = trio.nodes[1].broker().get("/v2/service_instances/a").await.json();
    assert_eq!(fetched["plan_id"], PLAN_TCP);
    drop(stranger);
    let answer = trio.nodes[0].broker().patch("/v2/service_instances/a", &patch).await;
    assert_eq!(answer.parts(), (200, json!({})));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_hangs_is_named_and_waited_for_no_longer_than_it_counts_as_live() {
    let trio = Trio::start(Postgres::shared(), 2, "27130-27139").await;
    trio.nodes[1].signal(Signal::STOP);
    assert_eq!(put(&trio.nodes[0], "a", "").await.parts(), (201, json!({})));
    let status = eventually_async("the status names it", || async {
        let status = trio.nodes[0].admin().get("/admin/v1/status").await.json();
        status["degraded"].to_string().contains(&format!("the node {} has not been heard", name(1))).then_some(status)
    });
    status.await;
    assert_eq!(put(&trio.nodes[0], "b", "").await.parts(), (201, json!({})));
    trio.nodes[1].signal(Signal::CONT);
    let port = port_of(&trio.nodes[0], "b").await;
    eventually_async("it catches up", || async { listens(1, port).await.then_some(()) }).await;
    trio.meet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_is_told_by_any_node_and_finished_when_the_one_that_began_it_has_died() {
    let mut trio = Trio::start(Postgres::shared(), 3, "27140-27149").await;
    // One that does not answer keeps the operation under way.
    trio.nodes[2].signal(Signal::STOP);
    let answer = put(&trio.nodes[0], "a", "?accepts_incomplete=true").await;
    assert_eq!(answer.parts(), (202, json!({ "operation": "provision" })));
    let again = put(&trio.nodes[1], "a", "?accepts_incomplete=true").await;
    assert_eq!(again.parts(), (202, json!({ "operation": "provision" })));
    trio.nodes.remove(0).kill();
    let asked = &trio.nodes[0];
    let path = "/v2/service_instances/a/last_operation?operation=provision";
    let first = asked.broker().get(path).await;
    assert_eq!(first.parts(), (200, json!({ "state": "in progress" })));
    assert_eq!(first.headers["retry-after"], "1");
    let key = json!({ "service_id": SERVICE_ID, "plan_id": PLAN_TCP });
    let early = asked.broker().put("/v2/service_instances/a/service_bindings/k", &key).await;
    assert_eq!((early.status.as_u16(), early.json()["error"].as_str()), (422, Some("ConcurrencyError")));
    assert_eq!(asked.broker().get("/v2/service_instances/a").await.status, 404);
    eventually_async("it is finished", || async {
        let answer = asked.broker().get(path).await.json();
        assert_ne!(answer["state"], "failed", "{answer}");
        (answer["state"] == "succeeded").then_some(())
    })
    .await;
    assert!(listens(1, port_of(asked, "a").await).await);
    trio.nodes[1].signal(Signal::CONT);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_fails_says_why_on_any_node() {
    let trio = Trio::start(Postgres::shared(), 2, "27150-27151").await;
    let strangers = [27_150, 27_151].map(|port| TcpListener::bind((address(1), port)).unwrap());
    let answer = put(&trio.nodes[0], "a", "?accepts_incomplete=true").await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let path = "/v2/service_instances/a/last_operation";
    let told = eventually_async("it has failed", || async {
        let answer = trio.nodes[1].broker().get(path).await.json();
        (answer["state"] == "failed").then_some(answer)
    });
    let told = told.await;
    assert!(told["description"].as_str().unwrap().contains("no free port"), "{told}");
    assert_eq!(trio.nodes[1].broker().get("/v2/service_instances/a").await.status, 404);
    eventually_async("it is counted", || async {
        let metrics = trio.nodes[0].admin().get("/metrics").await;
        let metrics = std::str::from_utf8(&metrics.body).unwrap();
        metrics.contains("\nharbor_provisions_undone_total 1\n").then_some(())
    })
    .await;
    drop(strangers);
    eventually_async("nothing is left of it", || async {
        nodes(&trio.nodes[0]).await.iter().all(|node| node["ports_failed"] == 0).then_some(())
    })
    .await;
}
