//! What can change while the node runs.

use std::{sync::Arc, time::Duration};

use harbor::{
    control::ReloadRefusal,
    model::{
        PoolName,
        desired::ForwarderLimits,
        pool::{Pool, PoolNames},
    },
};
use serde_json::json;

use super::fixture::{INSTANCES, QUERY, bind_key, refused, request, request_with, site_with};

fn pool(name: &str, ports: &str, host: &str) -> Pool {
    Pool {
        name: PoolName::new(name).unwrap(),
        ports: ports.parse().unwrap(),
        names: PoolNames { host: Some(host.into()), ..PoolNames::default() },
        int_port: 4200,
        quarantine: Duration::from_secs(60),
        retired: false,
    }
}

#[tokio::test]
async fn names_ranges_and_limits_are_taken_over_live() {
    let site = site_with("25750-25752", "25756-25757").await;
    site.provision("a", &request_with("tcp", json!({ "port": 25_752 }))).await;
    let before = Arc::clone(&site.control.desired().borrow().listeners["a"]);
    let limits = ForwarderLimits { max_connections_per_port: 7, ..ForwarderLimits::default() };
    let pools = vec![pool("default", "25750-25751", "10.0.0.9"), pool("games", "25756-25757", "10.0.0.9")];
    site.control.reload(pools, limits.clone()).await.unwrap();

    let desired = site.control.desired().borrow().clone();
    assert_eq!(*desired.limits, limits);
    assert!(Arc::ptr_eq(&desired.listeners["a"], &before), "shrinking a range evicts nobody");
    assert_eq!(site.control.directory().borrow().instance("a").unwrap().int_port, 4200);
    let key = site.client.put(&format!("{INSTANCES}/a/service_bindings/k"), &bind_key()).await.json();
    assert_eq!((&key["credentials"]["host"], &key["credentials"]["int_port"]), (&json!("10.0.0.9"), &json!(4200)));
    site.provision("b", &request("tcp")).await;
    site.provision("c", &request("tcp")).await;
    let exhausted = refused(
        "The pool default has no free port left: deprovision a service instance that is no longer needed, or ask the \
         operator for a larger range.",
    );
    site.answers("PUT", &format!("{INSTANCES}/d"), request("tcp"), 400, exhausted).await;
}

#[tokio::test]
async fn what_wants_a_restart_is_refused_and_changes_nothing() {
    let site = site_with("25760-25762", "25763-25764").await;
    let before = site.control.desired().borrow().clone();
    let name = |name: &str| PoolName::new(name).unwrap();
    for (pools, refusal) in [
        (vec![pool("default", "25760-25762", "h")], ReloadRefusal::OtherPools(name("games"))),
        (
            vec![pool("default", "25760", "h"), pool("games", "25761", "h"), pool("more", "25762", "h")],
            ReloadRefusal::OtherPools(name("more")),
        ),
    ] {
        assert_eq!(site.control.reload(pools, ForwarderLimits::default()).await, Err(refusal));
    }
    assert!(Arc::ptr_eq(&before, &site.control.desired().borrow()));
}

#[tokio::test]
async fn without_a_quarantine_a_freed_port_is_given_out_at_once() {
    let site = site_with("25770-25770", "25771-25771").await;
    let restless = |pool: Pool| Pool { quarantine: Duration::ZERO, ..pool };
    let pools = vec![restless(pool("default", "25770", "h")), restless(pool("games", "25771", "h"))];
    site.control.reload(pools, ForwarderLimits::default()).await.unwrap();
    for id in ["a", "b", "a"] {
        site.provision(id, &request("tcp")).await;
        site.answers("DELETE", &format!("{INSTANCES}/{id}?{QUERY}"), json!(null), 200, json!({})).await;
    }
}
