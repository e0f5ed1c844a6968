//! What the platform asks of a node, and how long it waits for the answer.

use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::json;

use crate::http::Client;

/// The plan `tcp`.
pub const PLAN_TCP: &str = "e1f6b1f0-57f3-5c0e-8a0b-6d3a6f0c1a02";

/// The plan `both`.
#[allow(dead_code, reason = "not each benchmark has it")]
pub const PLAN_BOTH: &str = "e1f6b1f0-57f3-5c0e-8a0b-6d3a6f0c1a04";

/// Provisions a TCP port; the id is as it stands in a path.
pub async fn provision(client: &Client, id: &str) -> Duration {
    provision_by(client, id, PLAN_TCP).await
}

/// Provisions by a plan.
pub async fn provision_by(client: &Client, id: &str, plan: &str) -> Duration {
    let body = json!({
        "service_id": harbor::model::plan::SERVICE_ID,
        "plan_id": plan,
        "organization_guid": "org",
        "space_guid": "space",
    });
    let start = Instant::now();
    let answer = client.put(&format!("/v2/service_instances/{id}"), &body).await;
    assert_eq!(answer.status, 201, "{id}: {answer:?}");
    start.elapsed()
}

/// Deprovisions.
#[allow(dead_code, reason = "not each benchmark does it")]
pub async fn deprovision(client: &Client, id: &str) -> Duration {
    let query = format!("service_id={}&plan_id={PLAN_TCP}", harbor::model::plan::SERVICE_ID);
    let start = Instant::now();
    let answer = client.send(Method::DELETE, &format!("/v2/service_instances/{id}?{query}"), None).await;
    assert_eq!(answer.status, 200, "{id}: {answer:?}");
    start.elapsed()
}
