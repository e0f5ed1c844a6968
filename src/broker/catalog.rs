//! `GET /v2/catalog`: what there is to choose from.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    Broker,
    schemas::{Schemas, Use},
};
use crate::model::plan::{Plan, SERVICE_ID, SERVICE_NAME};

pub(super) async fn handle(State(broker): State<Arc<Broker>>) -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], broker.offer().catalog.clone()).into_response()
}

/// The answer.
pub(super) fn body(plans: &[Plan], schemas: &Schemas) -> Bytes {
    let service = json!({
        "id": SERVICE_ID,
        "name": SERVICE_NAME,
        "description": "A port for TCP or UDP, open to clients outside and to apps inside",
        "tags": ["tcp", "udp", "port"],
        "bindable": true,
        "plan_updateable": true,
        "instances_retrievable": true,
        "bindings_retrievable": true,
        "allow_context_updates": true,
        "metadata": {
            "displayName": "Harbor",
            "longDescription": "A service instance is a port of a pool. Clients connect to it, and Harbor forwards their \
                connections and datagrams to the instances of the bound app, or to whoever else may announce itself.",
            "shareable": true,
        },
        "plans": plans.iter().map(|plan| entry(plan, schemas)).collect::<Vec<_>>(),
    });
    Bytes::from(json!({ "services": [service] }).to_string())
}

fn entry(plan: &Plan, schemas: &Schemas) -> Value {
    let parameters = |usage| json!({ "parameters": schemas.json(&plan.id, usage) });
    json!({
        "id": plan.id.as_str(),
        "name": plan.name,
        "description": plan.description,
        "free": true,
        "bindable": true,
        "plan_updateable": true,
        "binding_rotatable": true,
        "schemas": {
            "service_instance": { "create": parameters(Use::Create), "update": parameters(Use::Update) },
            "service_binding": { "create": parameters(Use::Bind) },
        },
    })
}
