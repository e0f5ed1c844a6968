//! Deprovision and unbind.

use std::{
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

use harbor::{
    model::{Clock as _, PlanId, PoolName, ServiceInstanceId, plan::SERVICE_ID, service_instance::ServiceInstance},
    store::{self, PortRow, PortState, Store as _},
};
use serde_json::{Value, json};

use super::fixture::{INSTANCES, QUERY, bind_app, plan, refused, request, site, site_with};

const GONE: &str = "There is nothing to delete: it is gone, or never was.";

#[tokio::test]
async fn the_port_is_closed_when_the_answer_comes_and_then_rests() {
    let site = site_with("25200-25200", "25201-25201").await;
    let path = format!("{INSTANCES}/a?{QUERY}");
    site.provision("a", &request("tcp")).await;
    TcpStream::connect((Ipv4Addr::LOCALHOST, 25_200)).expect("it listens");
    site.answers("DELETE", &path, Value::Null, 200, json!({})).await;
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, 25_200)).is_err());
    site.answers("DELETE", &path, Value::Null, 410, refused(GONE)).await;

    let exhausted = "The pool default has no free port left: deprovision a service instance that is no longer needed, or \
                     ask the operator for a larger range.";
    site.clock.advance(Duration::from_secs(899));
    site.answers("PUT", &format!("{INSTANCES}/b"), request("tcp"), 400, refused(exhausted)).await;
    site.clock.advance(Duration::from_secs(1));
    site.provision("b", &request("tcp")).await;
}

#[tokio::test]
async fn bindings_go_with_their_service_instance() {
    let site = site(25_210).await;
    site.provision("a", &request("tcp")).await;
    for binding in ["b", "c"] {
        let answer = site.client.put(&format!("{INSTANCES}/a/service_bindings/{binding}"), &bind_app(binding)).await;
        assert_eq!(answer.status, 201);
    }
    let directory = site.control.directory();
    assert!(directory.borrow().binding("b").is_some());
    site.answers("DELETE", &format!("{INSTANCES}/a?{QUERY}"), Value::Null, 200, json!({})).await;
    assert!(directory.borrow().binding("b").is_none() && directory.borrow().binding("c").is_none());
    let path = format!("{INSTANCES}/a/service_bindings/b?{QUERY}");
    site.answers("DELETE", &path, Value::Null, 410, refused(GONE)).await;
    assert_eq!(site.everything().await.bindings, []);
}

#[tokio::test]
async fn an_unbound_binding_counts_no_more_when_the_answer_comes() {
    let site = site(25_240).await;
    site.provision("a", &request("tcp")).await;
    let path = format!("{INSTANCES}/a/service_bindings/b");
    assert_eq!(site.client.put(&path, &bind_app("app")).await.status, 201);
    let directory = site.control.directory();
    assert!(directory.borrow().instance("a").unwrap().bound_app("app").is_some());
    site.answers("DELETE", &format!("{path}?{QUERY}"), Value::Null, 200, json!({})).await;
    assert!(directory.borrow().binding("b").is_none());
    assert!(directory.borrow().instance("a").unwrap().bound_app("app").is_none());
    site.answers("DELETE", &format!("{path}?{QUERY}"), Value::Null, 410, refused(GONE)).await;
}

#[tokio::test]
async fn service_and_plan_must_be_of_the_catalog() {
    let site = site(25_270).await;
    site.provision("a", &request("tcp")).await;
    assert_eq!(site.client.put(&format!("{INSTANCES}/a/service_bindings/b"), &bind_app("app")).await.status, 201);
    let before = site.everything().await;
    let tcp = plan("tcp");
    for path in [format!("{INSTANCES}/a/service_bindings/b"), format!("{INSTANCES}/a"), format!("{INSTANCES}/never")] {
        for (query, description) in [
            (String::new(), "Send `service_id`: that of harbor is 7c1e4a52-8f2b-5d38-9a36-0f1d52c6b0e1."),
            (
                format!("service_id=other&plan_id={tcp}"),
                "There is no such service: `service_id` of harbor is 7c1e4a52-8f2b-5d38-9a36-0f1d52c6b0e1.",
            ),
            (format!("service_id={SERVICE_ID}"), "Send `plan_id` in the query."),
            (format!("service_id={SERVICE_ID}&plan_id="), "Send a plan id of 1 to 255 bytes, not 0."),
            (format!("{QUERY}&plan_id={tcp}"), "The query must be name=value pairs, each name once."),
        ] {
            site.answers("DELETE", &format!("{path}?{query}"), Value::Null, 400, refused(description)).await;
        }
    }
    let no_plan = "There is no plan \"gone\": give the one of the service instance.";
    for path in [format!("{INSTANCES}/a/service_bindings/b"), format!("{INSTANCES}/a")] {
        let path = format!("{path}?service_id={SERVICE_ID}&plan_id=gone");
        site.answers("DELETE", &path, Value::Null, 400, refused(no_plan)).await;
    }
    assert_eq!(site.everything().await, before);
}

#[tokio::test]
async fn another_plan_of_the_catalog_is_taken_as_after_a_change_that_the_platform_lost() {
    let site = site(25_300).await;
    site.provision("a", &request("tcp")).await;
    assert_eq!(site.client.put(&format!("{INSTANCES}/a/service_bindings/b"), &bind_app("app")).await.status, 201);
    let query = format!("service_id={SERVICE_ID}&plan_id={}&accepts_incomplete=true", plan("both"));
    site.answers("DELETE", &format!("{INSTANCES}/a/service_bindings/b?{query}"), Value::Null, 200, json!({})).await;
    site.answers("DELETE", &format!("{INSTANCES}/a?{query}"), Value::Null, 200, json!({})).await;
}

#[tokio::test]
async fn a_plan_that_the_operator_took_out_can_still_be_bound_renamed_and_deleted() {
    let site = site(25_360).await;
    site.provision("made-before", &request("tcp")).await;
    let mut retired = site.stored("made-before").await.unwrap();
    retired.plan_id = PlanId::new("retired").unwrap();
    assert!(matches!(site.store.update(&retired).await.unwrap(), store::Change::Done(_)));
    site.control.refresh().await.unwrap();
    let (instance, binding) =
        (format!("{INSTANCES}/made-before"), format!("{INSTANCES}/made-before/service_bindings/b"));
    let mut bind = bind_app("app");
    bind["plan_id"] = json!("retired");
    assert_eq!(site.client.put(&binding, &bind).await.status, 201);
    let rename = json!({ "service_id": SERVICE_ID, "context": { "instance_name": "new" } });
    site.answers("PATCH", &instance, rename, 200, json!({})).await;
    let change = json!({ "service_id": SERVICE_ID, "parameters": { "allow": ["10.0.0.0/8"] } });
    let choose = "There is no plan \"retired\": choose one of the catalog.";
    site.answers("PATCH", &instance, change, 400, refused(choose)).await;
    let query = format!("service_id={SERVICE_ID}&plan_id=retired");
    for path in [&binding, &instance] {
        site.answers("DELETE", &format!("{path}?{query}"), Value::Null, 200, json!({})).await;
    }
    // The platform asks again when it lost the answer, and can name no other plan.
    for path in [&binding, &instance] {
        site.answers("DELETE", &format!("{path}?{query}"), Value::Null, 410, refused(GONE)).await;
    }
}

#[tokio::test]
async fn a_service_instance_of_a_pool_that_is_gone_can_be_shown_and_deleted_but_not_bound() {
    let site = site(25_830).await;
    site.provision("a", &request("tcp")).await;
    let elsewhere = ServiceInstance {
        id: ServiceInstanceId::new("stray").unwrap(),
        pool: PoolName::new("sold").unwrap(),
        port: 25_859,
        ..site.stored("a").await.unwrap()
    };
    let now = site.clock.wall();
    assert!(matches!(site.store.provision(&elsewhere, false, now).await.unwrap(), store::Provision::Created(_)));
    site.control.refresh().await.unwrap();
    let path = format!("{INSTANCES}/stray");
    assert_eq!(site.client.get(&path).await.status, 200);
    let not_here = refused("No node knows the pool sold: add [pools.sold] to a configuration.");
    site.answers("PUT", &format!("{path}/service_bindings/b"), bind_app("app"), 500, not_here).await;
    assert_eq!(site.everything().await.bindings, [], "what is not answered is not bound");
    site.answers("DELETE", &format!("{path}?{QUERY}"), Value::Null, 200, json!({})).await;
    let until = now.plus(Duration::from_secs(15 * 60));
    let ports = site.store.ports(&elsewhere.pool).await.unwrap();
    assert!(
        matches!(&ports[..], [PortRow { port: 25_859, state: PortState::Released(last) }] if last.quarantined_until == until),
        "its port rests all the same: {ports:?}"
    );
}

#[tokio::test]
async fn a_delete_of_which_nobody_knows_whether_it_was_committed_loses_no_port() {
    let site = site_with("25395-25396", "25397-25398").await;
    site.provision("a", &request("tcp")).await;
    site.store.break_down(Some("after deprovision"));
    let away = refused("The store is away: try again in a few seconds.");
    let path = format!("{INSTANCES}/a?{QUERY}");
    site.answers("DELETE", &path, Value::Null, 503, away).await;
    site.store.break_down(None);
    site.answers("DELETE", &path, Value::Null, 410, refused(GONE)).await;
    site.provision("b", &request("tcp")).await;
    site.clock.advance(Duration::from_secs(900));
    site.provision("c", &request("tcp")).await;
    let usage = site.control.overview().await[0].counts;
    assert_eq!((usage.allocated, usage.free), (2, 0));
}

#[tokio::test]
async fn a_delete_that_a_fault_cut_short_is_finished_by_the_next() {
    let site = site(25_330).await;
    site.provision("a", &request("tcp")).await;
    let binding = format!("{INSTANCES}/a/service_bindings/b");
    assert_eq!(site.client.put(&binding, &bind_app("app")).await.status, 201);
    let away = refused("The store is away: try again in a few seconds.");
    let directory = site.control.directory();
    for path in [&binding, &format!("{INSTANCES}/a")] {
        let path = format!("{path}?{QUERY}");
        // Committed, and then not published.
        site.store.break_down(Some("changes_since"));
        site.answers("DELETE", &path, Value::Null, 503, away.clone()).await;
        site.store.break_down(None);
        site.answers("DELETE", &path, Value::Null, 410, refused(GONE)).await;
    }
    assert!(directory.borrow().binding("b").is_none());
    assert_eq!(site.bound("a"), None);
}
