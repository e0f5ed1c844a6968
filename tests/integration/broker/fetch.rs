//! Fetch, and last_operation.

use harbor::model::plan::SERVICE_ID;
use serde_json::{Value, json};

use super::fixture::{INSTANCES, QUERY, bind_app, bind_key, plan, refused, request, request_with, site};

const MISSING: &str = "There is no such service instance or binding.";

#[tokio::test]
async fn a_service_instance_is_shown_as_it_was_asked_for() {
    let site = site(25_100).await;
    let path = format!("{INSTANCES}/a");
    site.answers("GET", &path, Value::Null, 404, refused(MISSING)).await;
    let parameters = json!({
        "protocol": "both", "port": 25_105, "int_port": 5000, "balance": "failover", "match_app": true,
        "idle_timeout": "90s", "max_connections": 5, "allow": ["10.0.0.0/8"], "proxy_protocol": "v2",
    });
    site.provision("a", &request_with("free", parameters.clone())).await;
    let shown = |plan_name: &str, parameters: Value| json!({ "service_id": SERVICE_ID, "plan_id": plan(plan_name), "parameters": parameters });
    site.answers("GET", &format!("{path}?service_id=hint&plan_id=hint"), Value::Null, 200, shown("free", parameters))
        .await;
    site.provision("b", &request("tcp")).await;
    site.answers("GET", &format!("{INSTANCES}/b"), Value::Null, 200, shown("tcp", json!({}))).await;
    let patch = json!({ "service_id": SERVICE_ID, "parameters": { "max_connections": 9 } });
    site.answers("PATCH", &format!("{INSTANCES}/b"), patch, 200, json!({})).await;
    site.answers("GET", &format!("{INSTANCES}/b"), Value::Null, 200, shown("tcp", json!({ "max_connections": 9 })))
        .await;
}

#[tokio::test]
async fn a_binding_is_shown_with_the_credentials_that_it_was_given() {
    let site = site(25_130).await;
    site.provision("a", &request("tcp")).await;
    let path = format!("{INSTANCES}/a/service_bindings/b");
    site.answers("GET", &path, Value::Null, 404, refused(MISSING)).await;
    for (path, body, announce) in
        [(path, bind_app("app"), true), (format!("{INSTANCES}/a/service_bindings/k"), bind_key(), false)]
    {
        let mut expected = site.client.put(&path, &body).await.json();
        expected["parameters"] = json!({ "announce": announce });
        site.answers("GET", &path, Value::Null, 200, expected).await;
    }
    let elsewhere = format!("{INSTANCES}/other/service_bindings/b");
    site.answers("GET", &elsewhere, Value::Null, 404, refused(MISSING)).await;
}

#[tokio::test]
async fn what_is_there_has_succeeded_and_what_is_not_is_gone() {
    let site = site(25_160).await;
    let (instance, binding) = (format!("{INSTANCES}/a"), format!("{INSTANCES}/a/service_bindings/b"));
    let (succeeded, gone) = (json!({ "state": "succeeded" }), refused("It is gone, or never was."));
    for path in [&instance, &binding] {
        site.answers("GET", &format!("{path}/last_operation"), Value::Null, 410, gone.clone()).await;
    }
    site.provision("a", &request("tcp")).await;
    assert_eq!(site.client.put(&binding, &bind_app("app")).await.status, 201);
    for path in [&binding, &instance] {
        site.answers("GET", &format!("{path}/last_operation?operation=x&{QUERY}"), Value::Null, 200, succeeded.clone())
            .await;
        site.answers("DELETE", &format!("{path}?{QUERY}"), Value::Null, 200, json!({})).await;
        site.answers("GET", &format!("{path}/last_operation"), Value::Null, 410, gone.clone()).await;
    }
}
