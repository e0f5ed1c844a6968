//! What a node cannot judge, what it cannot take over, and what it does not read again.

use std::{fs, time::Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::{config, fine, json_of, key, refused};
use crate::{
    cluster::trio::Trio,
    support::{
        eventually::{eventually_async, eventually_within},
        harbor::{Harbor, Site},
        postgres::Postgres,
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn what_this_node_does_not_have_is_not_set_for_others() {
    let games = "[pools.games]\nport_range = \"29675-29679\"\nhost = \"10.0.0.5\"\n";
    let site = Site::named("node", "29670-29674", &format!("pools = [\"default\"]\n{games}"));
    let node = site.serve().await;
    let lacks = "This node has no [pools.typo] in its configuration: ask a node that has.";
    refused(&site, &node, &["set", "pools.typo", "port_range", "banana"], 1, lacks);
    let lacks = "This node has no [plans.nope] in its configuration: ask a node that has.";
    refused(&site, &node, &["set", "plans.nope.protocol", "sctp"], 1, lacks);
    let elsewhere = "This node does not serve the pool games: ask a node that does.";
    refused(&site, &node, &["set", "pools.games", "port_range", "29670-29679"], 1, elsewhere);
    assert_eq!(json_of(&site, &node, &["history", "--json"]), json!({ "changes": [] }));
    fine(&site, &node, &["set", "harbor_node", "int_port", "4200"]);
    assert!(!node.log().contains("taken over in part"), "nothing waits: {}", node.log());
}

/// Why a node is degraded by live settings.
async fn behind(node: &Harbor) -> Option<String> {
    let status = node.admin().get("/admin/v1/status").await.json();
    let reasons = status["degraded"].as_array().expect("a list").iter().filter_map(Value::as_str);
    reasons.filter(|reason| reason.starts_with("live settings are not in force")).map(str::to_owned).next()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_take_settings_over_says_so_until_it_can() {
    let mut trio = Trio::start(Postgres::shared(), 1, "29680-29684").await;
    let site = trio.site(1, "29680-29684", "");
    let fits = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), fits.replace("[discovery]\n", "[discovery]\nsources = [\"harbor\"]\n")).unwrap();
    let node = site.start();
    node.ready().await;
    trio.sites.push(site);
    trio.nodes.push(node);
    trio.meet().await;
    let on_the_first = |arguments: &[&str]| fine(&trio.sites[0], &trio.nodes[0], arguments);
    on_the_first(&["set", "discovery.cell_networks", "10.9.0.0/16"]);
    let other = &trio.nodes[1];
    let reason = eventually_async("the other node says so", || behind(other)).await;
    assert!(reason.contains("add \"router\" to sources"), "{reason}");
    on_the_first(&["set", "forwarder.idle_timeout_udp", "7s"]);
    assert_eq!(key(other, "forwarder", "idle_timeout_udp").await["source"], "default");

    let caught_up = async |idle: &str| {
        eventually_async("it has caught up", || async {
            let known = key(other, "forwarder", "idle_timeout_udp").await;
            (behind(other).await.is_none() && known["value"] == idle).then_some(())
        })
        .await;
    };
    // What was in the way is taken back, or goes from the node's own file.
    on_the_first(&["unset", "discovery.cell_networks"]);
    caught_up("7s").await;
    on_the_first(&["set", "discovery.cell_networks", "10.9.0.0/16"]);
    on_the_first(&["set", "forwarder.idle_timeout_udp", "8s"]);
    eventually_async("the other node says so again", || behind(other)).await;
    fs::write(trio.sites[1].config(), fits).unwrap();
    other.signal(Signal::HUP);
    caught_up("8s").await;
    let errors = other.log().lines().filter(|line| line.contains("live settings were not taken over")).count();
    assert_eq!(errors, 2, "it is told once each time: {}", other.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_being_edited_is_not_read_for_a_live_setting() {
    let site = Site::new("29690-29694", "");
    let node = site.serve().await;
    let before = fs::read_to_string(site.config()).unwrap();
    let edited = before.replace("password = \"secret\"", "password = \"another\"");
    assert_ne!(edited, before);
    let catalog = async || node.broker().get("/v2/catalog").await.status.as_u16();
    for text in [edited.as_str(), "half a line"] {
        fs::write(site.config(), text).unwrap();
        // The command line would not read half a file.
        let change = json!({ "changes": [{ "section": "harbor_node", "key": "int_port", "value": "4200" }] });
        let answer = node.admin().patch("/admin/v1/config", &change).await;
        assert_eq!((answer.status.as_u16(), catalog().await), (200, 200), "{answer:?}");
    }
    fs::write(site.config(), edited).unwrap();
    node.signal(Signal::HUP);
    eventually_async("the password is another", || async { (catalog().await == 401).then_some(()) }).await;
    assert_eq!(key(&node, "harbor_node", "int_port").await["value"], "4200");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_drains_for_its_end_refuses_changes_at_once() {
    let site = Site::new("29695-29699", "[forwarder]\ndrain_wait = \"20s\"\n");
    let node = site.serve().await;
    node.signal(Signal::TERM);
    let change = json!({ "changes": [{ "section": "harbor_node", "key": "int_port", "value": "4200" }] });
    let began = Instant::now();
    let answer = eventually_within(std::time::Duration::from_secs(10), "it is told", || async {
        let answer = node.admin().patch("/admin/v1/config", &change).await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert!(format!("{answer:?}").contains("This process is about to end"), "{answer:?}");
    assert!(began.elapsed().as_secs() < 20, "not only when it has ended");
    drop(node);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machine_is_held_against_the_range_that_holds() {
    let site = Site::new("29700-29704", "");
    let node = site.serve().await;
    // Outgoing connections of any machine are given these.
    fine(&site, &node, &["set", "harbor_node", "port_range", "27017, 45000-45009"]);
    node.logged("ephemeral_overlap");
    let checked = || {
        let output = site.command(&["ports", "check", "--json"]).output().expect("it is built");
        let answer = serde_json::from_slice::<Value>(&output.stdout).expect("JSON");
        let overlap =
            answer["findings"].as_array().expect("a list").iter().find(|one| one["code"] == "ephemeral_overlap");
        overlap.map(|overlap| overlap["message"].as_str().expect("text").to_owned())
    };
    let said = site.command(&["ports", "check"]).output().expect("it is built");
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    // A port that MongoDB is known by is better left out; a line of the file would not hold.
    assert!(said.contains("harbor config set harbor_node port_range \"45000-45009\"\n"), "{said}");
    assert!(checked().expect("it is seen").contains("45000-45009"), "while a node runs");
    assert!(node.terminate().success());
    assert!(checked().expect("it is seen").contains("45000-45009"), "and while none does");
    let (code, _, stderr) = config(&site, &site.serve().await, &["unset", "harbor_node.port_range"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(checked(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_live_settings_keep_from_starting_names_them() {
    let site = Site::new("29710-29714", "");
    let node = site.serve().await;
    fine(&site, &node, &["set", "harbor_node", "port_range", "29710-29719"]);
    let games = "[pools.games]\nport_range = \"29715-29719\"\nhost = \"10.0.0.5\"\n";
    let text = fs::read_to_string(site.config()).unwrap() + games;
    fs::write(site.config(), text).unwrap();
    let live = "harbor_node.port_range = \\\"29710-29719\\\"";
    node.signal(Signal::HUP);
    let told = node.logged("the configuration was not taken over");
    assert!(told.contains(live) && told.contains("port 29715"), "{told}");
    assert!(node.terminate().success());
    let output = site.command(&["serve"]).output().expect("it is built");
    let told = String::from_utf8(output.stderr).expect("text");
    assert!(!output.status.success() && told.contains("port 29715"), "{told}");
    assert!(told.contains("harbor_node.port_range = \"29710-29719\""), "{told}");
}
