//! Update: live, whole or not at all.

use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use harbor::{
    model::{
        Protocol, Revision, Timestamp,
        balance::Balance,
        parameters::{ProxyProtocol, Settings},
        plan::SERVICE_ID,
        service_instance::ServiceInstance,
    },
    store::{Change, Ending, Store as _},
};
use serde_json::{Value, json};

use super::fixture::{INSTANCES, Site, plan, refused, request, request_with, site};
use crate::support::eventually::eventually_async;

fn patch(parameters: Value) -> Value {
    json!({ "service_id": SERVICE_ID, "parameters": parameters })
}

fn to_plan(name: &str) -> Value {
    json!({ "service_id": SERVICE_ID, "plan_id": plan(name), "previous_values": { "plan_id": "ignored" } })
}

#[tokio::test]
async fn keys_given_replace_absent_ones_stay_and_null_goes_back_to_the_default() {
    let site = site(24_800).await;
    let path = format!("{INSTANCES}/a");
    site.provision(
        "a",
        &request_with("tcp", json!({ "int_port": 5000, "allow": ["10.0.0.0/8"], "balance": "random" })),
    )
    .await;
    let before = site.stored("a").await.unwrap();

    site.answers("PATCH", &path, patch(json!({ "idle_timeout": "90s", "balance": "fifo" })), 200, json!({})).await;
    let changed = site.stored("a").await.unwrap();
    assert_eq!(changed.settings.int_port, Some(5000));
    assert_eq!(changed.settings.balance, Some(Balance::Failover));
    assert_eq!(changed.settings.idle_timeout, Some(Duration::from_secs(90)));
    assert_eq!(changed.settings.allow, before.settings.allow);
    assert_eq!((changed.port, changed.plan_id), (before.port, before.plan_id));

    site.answers(
        "PATCH",
        &path,
        patch(json!({ "int_port": null, "allow": null, "idle_timeout": null })),
        200,
        json!({}),
    )
    .await;
    let changed = site.stored("a").await.unwrap();
    assert_eq!((changed.settings.int_port, changed.settings.idle_timeout), (None, None));
    assert_eq!(changed.settings.allow, []);

    site.answers("PATCH", &path, patch(json!({ "allow": ["fc00::/7"] })), 200, json!({})).await;
    site.answers("PATCH", &path, patch(json!({ "allow": [] })), 200, json!({})).await;
    assert_eq!(site.stored("a").await.unwrap().settings.allow, []);
}

#[tokio::test]
async fn the_listener_has_the_change_when_it_is_answered() {
    let site = site(24_830).await;
    site.provision("a", &request("tcp")).await;
    let before = Arc::clone(&site.control.desired().borrow().listeners["a"]);
    site.answers("PATCH", &format!("{INSTANCES}/a"), patch(json!({ "max_connections": 7 })), 200, json!({})).await;
    let after = Arc::clone(&site.control.desired().borrow().listeners["a"]);
    assert_eq!(after.settings.max_connections, Some(7));
    assert_eq!(after.port, before.port);
    assert!(after.version > before.version);
}

#[tokio::test]
async fn a_change_that_changes_nothing_is_not_stored() {
    let site = site(24_860).await;
    site.provision("a", &request("tcp")).await;
    let before = site.everything().await;
    let path = format!("{INSTANCES}/a");
    site.answers("PATCH", &path, json!({ "service_id": SERVICE_ID }), 200, json!({})).await;
    site.answers("PATCH", &path, to_plan("tcp"), 200, json!({})).await;
    assert_eq!(site.everything().await, before);
}

#[tokio::test]
async fn the_name_can_be_changed_and_decides_nothing_any_more() {
    let site = site(24_890).await;
    site.provision("a", &request("free")).await;
    let body = json!({ "service_id": SERVICE_ID, "context": { "instance_name": "udp-port" } });
    site.answers("PATCH", &format!("{INSTANCES}/a"), body, 200, json!({})).await;
    let renamed = site.stored("a").await.unwrap();
    assert_eq!((renamed.name.as_deref(), renamed.protocol), (Some("udp-port"), Protocol::Tcp));
}

#[tokio::test]
async fn another_plan_of_the_pool_binds_first_and_then_commits() {
    let site = site(24_920).await;
    let path = format!("{INSTANCES}/a");
    site.provision("a", &request("tcp")).await;
    let port = site.stored("a").await.unwrap().port;
    for (name, protocol) in
        [("both", Protocol::Both), ("udp", Protocol::Udp), ("tcp", Protocol::Tcp), ("free", Protocol::Tcp)]
    {
        site.answers("PATCH", &path, to_plan(name), 200, json!({})).await;
        assert_eq!(site.bound("a"), Some((port, protocol)), "{name}");
        let stored = site.stored("a").await.unwrap();
        assert_eq!((stored.plan_id.as_str(), stored.protocol), (plan(name).as_str(), protocol));
    }
}

#[tokio::test]
async fn a_change_whose_port_is_held_changes_nothing() {
    let site = site(24_950).await;
    site.provision("a", &request_with("tcp", json!({ "port": 24_955 }))).await;
    let stranger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 24_955)).unwrap();
    let before = site.everything().await;
    let mut body = to_plan("both");
    body["parameters"] = json!({ "int_port": 5000 });
    let held = "Port 24955 is in use outside of Harbor for the protocol that the plan adds: provision a new service \
                instance.";
    site.answers("PATCH", &format!("{INSTANCES}/a"), body.clone(), 422, refused(held)).await;
    assert_eq!(site.everything().await, before);
    assert_eq!(site.bound("a"), Some((24_955, Protocol::Tcp)));
    let desired = site.control.desired();
    assert_eq!(desired.borrow().listeners["a"].protocol, Protocol::Tcp);
    drop(stranger);
    site.answers("PATCH", &format!("{INSTANCES}/a"), body, 200, json!({})).await;
    assert_eq!(site.bound("a"), Some((24_955, Protocol::Both)));
}

#[tokio::test]
async fn a_change_that_the_store_fails_changes_nothing() {
    let site = site(24_980).await;
    site.provision("a", &request("tcp")).await;
    let (before, port) = (site.everything().await, site.stored("a").await.unwrap().port);
    site.store.break_down(Some("update"));
    for body in [to_plan("both"), patch(json!({ "int_port": 5000 }))] {
        let away = refused("The store is away: try again in a few seconds.");
        site.answers("PATCH", &format!("{INSTANCES}/a"), body, 503, away).await;
        let desired = site.control.desired();
        let spec = desired.borrow().listeners["a"].clone();
        assert_eq!((spec.protocol, spec.settings.int_port), (Protocol::Tcp, None));
    }
    assert_eq!(site.everything().await, before);
    // The trial is over once the opener has seen that it is.
    eventually_async("the trial to end", || async { (site.bound("a") == Some((port, Protocol::Tcp))).then_some(()) })
        .await;
}

/// Asks for a protocol that another node is to add, and does something once that is stored. Then the node says that it
/// cannot. Returns the answer.
async fn change_that_another_node_cannot_make(site: &Site, meanwhile: impl AsyncFnOnce()) -> (u16, Value) {
    let before = site.stored("a").await.unwrap();
    site.another_node_says(before.revision, &[]);
    let mut body = to_plan("both");
    body["parameters"] = json!({ "int_port": 5000 });
    let path = format!("{INSTANCES}/a");
    let refusal = async {
        let stored = async || site.stored("a").await.filter(|stored| stored.protocol == Protocol::Both);
        let stored = eventually_async("the change to be stored", stored).await;
        meanwhile().await;
        site.another_node_says(Revision(stored.revision.0 + 9), &[&stored]);
    };
    let (answer, ()) = tokio::join!(site.client.patch(&path, &body), refusal);
    answer.parts()
}

const HELD: &str = "is in use outside of Harbor for the protocol that the plan adds: provision a new service instance.";

#[tokio::test]
async fn a_change_that_another_node_cannot_make_is_taken_back_and_what_others_changed_meanwhile_stays() {
    let site = site(25_610).await;
    site.provision("a", &request("tcp")).await;
    let before = site.stored("a").await.unwrap();
    let answer = change_that_another_node_cannot_make(&site, async || {
        let mut theirs = site.stored("a").await.unwrap();
        theirs.settings.balance = Some(Balance::Random);
        theirs.name = Some("theirs".into());
        assert!(matches!(site.store.update(&theirs).await.unwrap(), Change::Done(_)));
    })
    .await;
    assert_eq!(answer, (422, refused(&format!("Port {} {HELD}", before.port))));
    let after = site.stored("a").await.unwrap();
    let settings = Settings { balance: Some(Balance::Random), ..before.settings.clone() };
    let expected = ServiceInstance { settings, name: Some("theirs".into()), revision: after.revision, ..before };
    assert_eq!(after, expected);
    assert_eq!(site.control.desired().borrow().listeners["a"].protocol, Protocol::Tcp, "it is published");
}

#[tokio::test]
async fn a_change_that_another_node_cannot_make_is_gone_with_its_service_instance() {
    let site = site(25_940).await;
    site.provision("a", &request("tcp")).await;
    let before = site.stored("a").await.unwrap();
    let answer = change_that_another_node_cannot_make(&site, async || {
        site.store.deprovision(&before.id, Timestamp(0), Ending::Unused).await.unwrap().unwrap();
    })
    .await;
    assert_eq!(answer, (422, refused(&format!("Port {} {HELD}", before.port))));
    assert_eq!(site.stored("a").await, None);
}

#[tokio::test]
async fn a_change_that_cannot_be_taken_back_is_no_refusal() {
    let site = site(25_970).await;
    site.provision("a", &request("tcp")).await;
    let answer = change_that_another_node_cannot_make(&site, async || site.store.break_down(Some("update"))).await;
    let unknown = "The change could not be taken back, so it is not known whether it holds: send the request again.";
    assert_eq!(answer, (503, refused(unknown)));
    site.store.break_down(None);
    let stored = site.stored("a").await.unwrap();
    assert_eq!(stored.protocol, Protocol::Both);
    site.store.share();
    // A repeat has nothing to change, and is not carried out either: not until the other node says so.
    let path = format!("{INSTANCES}/a");
    let held = format!("Port {} could not be opened: on another: Address already in use.", stored.port);
    site.answers("PATCH", &path, to_plan("both"), 503, refused(&held)).await;
    site.answers("PATCH", &path, patch(json!({ "int_port": 5000 })), 200, json!({})).await;
    assert_eq!(site.stored("a").await.as_ref(), Some(&stored));
    site.another_node_says(Revision(stored.revision.0 + 10), &[]);
    site.answers("PATCH", &path, to_plan("both"), 200, json!({})).await;
    assert_eq!(site.stored("a").await, Some(stored));
}

#[tokio::test]
async fn settings_that_need_the_plan_that_is_taken_back_go_with_it() {
    let site = site(26_120).await;
    site.provision("a", &request("udp")).await;
    let before = site.stored("a").await.unwrap();
    site.another_node_says(before.revision, &[]);
    let path = format!("{INSTANCES}/a");
    let meanwhile = async {
        let stored = async || site.stored("a").await.filter(|stored| stored.protocol == Protocol::Tcp);
        let mut theirs = eventually_async("the change to be stored", stored).await;
        theirs.settings.proxy_protocol = Some(ProxyProtocol::V1);
        assert!(matches!(site.store.update(&theirs).await.unwrap(), Change::Done(_)));
        site.another_node_says(Revision(theirs.revision.0 + 9), &[&theirs]);
    };
    let body = to_plan("tcp");
    let (answer, ()) = tokio::join!(site.client.patch(&path, &body), meanwhile);
    assert_eq!(answer.parts(), (422, refused(&format!("Port {} {HELD}", before.port))));
    let after = site.stored("a").await.unwrap();
    assert_eq!(after, ServiceInstance { revision: after.revision, ..before });
}

#[tokio::test]
async fn a_change_that_is_stored_is_made_also_when_it_is_published_late() {
    let site = site(25_070).await;
    site.provision("a", &request("tcp")).await;
    let port = site.stored("a").await.unwrap().port;
    site.store.break_down(Some("changes_since"));
    let path = format!("{INSTANCES}/a");
    for body in [patch(json!({ "int_port": 5000 })), to_plan("both")] {
        site.answers("PATCH", &path, body, 200, json!({})).await;
    }
    let stored = site.stored("a").await.unwrap();
    assert_eq!((stored.settings.int_port, stored.protocol), (Some(5000), Protocol::Both));
    site.store.break_down(None);
    site.control.refresh().await.unwrap();
    eventually_async("the change to be carried out", || async {
        (site.bound("a") == Some((port, Protocol::Both))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_changed_is_unprocessable() {
    let site = site(25_010).await;
    let path = format!("{INSTANCES}/a");
    site.provision("a", &request_with("free", json!({ "max_connections": 50 }))).await;
    let before = site.everything().await;
    let lets = "lets `int_port`, `balance`, `match_app`, `idle_timeout`, `max_connections`, `allow`, `proxy_protocol`, \
         `health_check` be";
    for (body, status, description) in [
        (
            patch(json!({ "port": 25_015 })),
            422,
            format!("The parameter `port` cannot be changed: the plan free {lets}."),
        ),
        (
            patch(json!({ "protocol": "udp" })),
            422,
            format!("The parameter `protocol` cannot be changed: the plan free {lets}."),
        ),
        (
            patch(json!({ "unheard_of": 1 })),
            422,
            format!("The parameter `unheard_of` cannot be changed: the plan free {lets}."),
        ),
        (
            patch(json!({ "int_port": 0 })),
            422,
            "`int_port` takes the port that the app listens on, 1 to 65535; not 0.".into(),
        ),
        (
            patch(json!({ "idle_timeout": "31d" })),
            422,
            "`idle_timeout` must be from 1s to 2592000s, not 2678400s.".into(),
        ),
        (to_plan("strict"), 422, "`max_connections` must be from 1 to 10, not 50.".into()),
        (
            to_plan("games"),
            422,
            "This plan takes its ports from the pool games, and the port is of the pool default: provision a new \
             service instance."
                .into(),
        ),
        (
            json!({ "service_id": SERVICE_ID, "plan_id": plan("udp"), "parameters": { "proxy_protocol": "v1" } }),
            422,
            "`proxy_protocol` v1 is for TCP alone, and this port carries udp: choose v2 or none.".into(),
        ),
        (
            json!({ "service_id": SERVICE_ID, "plan_id": "gone" }),
            400,
            "There is no plan \"gone\": choose one of the catalog.".into(),
        ),
        (json!({}), 400, "Send `service_id`: that of harbor is 7c1e4a52-8f2b-5d38-9a36-0f1d52c6b0e1.".into()),
    ] {
        site.answers("PATCH", &path, body, status, refused(&description)).await;
    }
    assert_eq!(site.everything().await, before);
    let missing = refused("There is no service instance \"b\".");
    site.answers("PATCH", &format!("{INSTANCES}/b"), patch(json!({})), 404, missing.clone()).await;
    site.answers("PATCH", &format!("{INSTANCES}/b"), to_plan("tcp"), 404, missing).await;
}
