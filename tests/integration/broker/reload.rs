//! What can change while the node runs.

use std::{sync::Arc, time::Duration};

use harbor::model::{
    PlanId, PoolName,
    desired::ForwarderLimits,
    plan::{Plan, SERVICE_ID},
    pool::{Pool, PoolNames},
};
use serde_json::json;

use super::fixture::{INSTANCES, QUERY, bind_key, plans, refused, request, request_with, site_with};

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
    site.control.reload(pools, plans(), limits.clone()).await.unwrap();

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
async fn a_pool_comes_live_and_goes_when_nobody_has_a_port_of_it() {
    let site = site_with("25760-25762", "25763-25764").await;
    let limits = ForwarderLimits::default;
    let (default, games) = (pool("default", "25760-25762", "h"), pool("games", "25763-25764", "h"));
    let more = pool("more", "25765-25766", "h");
    let more_plan =
        Plan { pool: more.name.clone(), id: PlanId::new("more").unwrap(), name: "more".into(), ..plans().remove(1) };
    let with_more = [plans(), vec![more_plan]].concat();
    site.control.reload(vec![default.clone(), games.clone(), more.clone()], with_more.clone(), limits()).await.unwrap();
    let catalog = site.client.get("/v2/catalog").await.json();
    assert!(catalog["services"][0]["plans"].as_array().unwrap().iter().any(|plan| plan["id"] == "more"));
    let mut wish = request("tcp");
    wish["plan_id"] = json!("more");
    site.provision("a", &wish).await;
    assert!((25_765..=25_766).contains(&site.stored("a").await.unwrap().port));

    let refusal = site.control.reload(vec![default.clone(), games.clone()], plans(), limits()).await.unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "1 service instances have ports of the pool more, and no other node serves it: retire it by retired = true, and \
         take it out when they are gone"
    );
    assert!(site.control.desired().borrow().listeners.contains_key("a"));

    let retired = Pool { retired: true, ..more };
    site.control.reload(vec![default.clone(), games.clone(), retired], with_more, limits()).await.unwrap();
    assert!(site.control.desired().borrow().listeners.contains_key("a"), "who has a port keeps it");
    let no_more = refused("The pool more is retired and gives out no more ports: choose another plan.");
    site.answers("PUT", &format!("{INSTANCES}/b"), wish, 400, no_more).await;
    site.answers("DELETE", &format!("{INSTANCES}/a?service_id={SERVICE_ID}&plan_id=more"), json!(null), 200, json!({}))
        .await;
    site.control.reload(vec![default, games], plans(), limits()).await.unwrap();
}

#[tokio::test]
async fn without_a_quarantine_a_freed_port_is_given_out_at_once() {
    let site = site_with("25770-25770", "25771-25771").await;
    let restless = |pool: Pool| Pool { quarantine: Duration::ZERO, ..pool };
    let pools = vec![restless(pool("default", "25770", "h")), restless(pool("games", "25771", "h"))];
    site.control.reload(pools, plans(), ForwarderLimits::default()).await.unwrap();
    for id in ["a", "b", "a"] {
        site.provision(id, &request("tcp")).await;
        site.answers("DELETE", &format!("{INSTANCES}/{id}?{QUERY}"), json!(null), 200, json!({})).await;
    }
}
