//! Pools that several nodes agree on.

use rustix::process::Signal;
use serde_json::json;

use super::trio::{Trio, listens, port_of, put, wish};
use crate::{
    end_to_end::PLAN_TCP,
    support::{
        eventually::eventually_async,
        harbor::{Harbor, Site},
        postgres::Postgres,
    },
};

fn rewrite(site: &Site, from: &str, to: &str) {
    let text = std::fs::read_to_string(site.config()).unwrap();
    assert!(text.contains(from), "{from} in {text}");
    std::fs::write(site.config(), text.replace(from, to)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_file_differs_is_refused_with_both_values() {
    let trio = Trio::start(Postgres::shared(), 1, "27200-27209").await;
    let site = trio.site(1, "27200-27210", "");
    let refused = site.start();
    let line = refused.logged("differs");
    assert!(line.contains(r#"port_range is \"27200-27210\" here and \"27200-27209\" there"#), "{line}");
    assert_eq!(refused.wait().code(), Some(1));
    rewrite(&site, "27200-27210", "27200-27209");
    site.serve().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_file_differs_is_refused_whatever_the_clocks_say() {
    let trio = Trio::start(Postgres::shared(), 1, "27460-27469").await;
    let database = trio.url.split(['/', '?']).nth(3).unwrap();
    // The node that serves lives an hour ago.
    let late = "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS \
                $$ BEGIN NEW.seen_at := NEW.seen_at - 3600000000; RETURN NEW; END $$; \
                CREATE TRIGGER late BEFORE UPDATE ON nodes FOR EACH ROW WHEN (NEW.id = 'node-0') \
                EXECUTE FUNCTION late(); UPDATE nodes SET drain = 0";
    Postgres::shared().sql(database, late);
    let refused = trio.site(1, "27460-27470", "").start();
    refused.logged("differs");
    assert_eq!(refused.wait().code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_start_at_once_with_different_files_one_is_refused() {
    for _ in 0..5 {
        let trio = Trio::start(Postgres::shared(), 0, "").await;
        let nodes =
            [(0, "27470-27478"), (1, "27470-27479")].map(|(number, ports)| trio.site(number, ports, "").start());
        let came_up = nodes.each_ref().map(Harbor::comes_up);
        let refused = nodes.iter().zip(came_up).filter(|(_, came_up)| !came_up).map(|(node, _)| node);
        let refused = refused.collect::<Vec<_>>();
        assert_eq!(refused.len(), 1, "{came_up:?}");
        assert!(refused[0].log().contains("differs"), "{}", refused[0].log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_one_node_changes_changes_on_all_of_them() {
    let trio = Trio::start(Postgres::shared(), 2, "27210-27210").await;
    assert_eq!(put(&trio.nodes[0], "a", "").await.status, 201);
    assert_eq!(put(&trio.nodes[1], "b", "").await.status, 400, "the pool is exhausted");
    rewrite(&trio.sites[0], "27210-27210", "27211-27212");
    trio.nodes[0].signal(Signal::HUP);
    trio.nodes[0].logged("the configuration was taken over");
    for id in ["b", "c"] {
        eventually_async("the other node has taken it over", || async {
            [200, 201].contains(&put(&trio.nodes[1], id, "").await.status.as_u16()).then_some(())
        })
        .await;
        assert!((27_211..=27_212).contains(&port_of(&trio.nodes[0], id).await));
    }
    assert!(listens(0, 27_210).await && listens(1, 27_210).await, "moving a range evicts nobody");
    // A file that was forgotten changes nothing back.
    trio.nodes[1].signal(Signal::HUP);
    let warning = trio.nodes[1].logged("this node's file is not what the nodes have agreed on");
    assert!(warning.contains("27210") && warning.contains("27211-27212"), "{warning}");
    let pools = trio.nodes[1].admin().get("/admin/v1/status").await.json()["pools"].clone();
    assert_eq!(pools[0]["ports"], "27211-27212");
    let degraded =
        async |number: usize| trio.nodes[number].admin().get("/admin/v1/status").await.json()["degraded"].clone();
    let told = "this node's file is not what the nodes have agreed on: port_range is \"27210\" here and \
                \"27211-27212\" there, of the pool default; make the files the same";
    let reasons = degraded(1).await;
    assert!(reasons.as_array().unwrap().contains(&json!(told)), "{reasons}");
    rewrite(&trio.sites[1], "27210-27210", "27211-27212");
    trio.nodes[1].signal(Signal::HUP);
    for number in 0..2 {
        eventually_async("no file differs", || async {
            let reasons = degraded(number).await.to_string();
            (!reasons.contains("agreed on")).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_provisions_for_pools_that_others_serve() {
    let more = "pools = [\"default\"]\n[pools.games]\nport_range = \"27230-27239\"\nhost = \"10.0.0.7\"\n\
                [plans.play]\npool = \"games\"\nprotocol = \"tcp\"\n";
    let mut trio = Trio::start_with(Postgres::shared(), 1, "27220-27229", more).await;
    let served = more.replace("pools = [\"default\"]", "pools = [\"games\"]");
    trio.add(1, "27220-27229", &served).await;
    trio.meet().await;
    let catalog = trio.nodes[0].broker().get("/v2/catalog").await.json();
    let plans = catalog["services"][0]["plans"].as_array().unwrap().clone();
    let play = plans.iter().find(|plan| plan["name"] == "play").expect("it is in the catalog")["id"].clone();
    let answer = trio.nodes[0].broker().put("/v2/service_instances/a", &wish(play.as_str().unwrap(), json!({}))).await;
    assert_eq!(answer.parts(), (201, json!({})));
    let key = json!({ "service_id": wish(PLAN_TCP, json!({}))["service_id"], "plan_id": play });
    let bound = trio.nodes[0].broker().put("/v2/service_instances/a/service_bindings/k", &key).await.json();
    assert_eq!(bound["credentials"]["host"], "10.0.0.7");
    let port = u16::try_from(bound["credentials"]["port"].as_u64().unwrap()).unwrap();
    assert!(listens(1, port).await && !listens(0, port).await);
    trio.nodes.remove(1).kill();
    eventually_async("nobody serves the pool", || async {
        let wish = wish(play.as_str().unwrap(), json!({}));
        (trio.nodes[0].broker().put("/v2/service_instances/b", &wish).await.status == 503).then_some(())
    })
    .await;
}
