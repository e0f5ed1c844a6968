//! `GET /v2/service_instances/{instance_id}/service_bindings/{binding_id}`

use std::sync::Arc;

use axum::{Json, extract::State};
use serde_json::{Value, json};

use super::{
    Broker, credentials, errors,
    request::{InstanceAndBinding, Refused},
};

pub(super) async fn handle(
    State(broker): State<Arc<Broker>>,
    InstanceAndBinding(instance, id): InstanceAndBinding,
) -> Result<Json<Value>, Refused> {
    let fetched = broker.control.fetch_binding(&instance, &id).await.map_err(errors::answer)?;
    let mut answer = credentials::answer(&fetched.credentials);
    answer["parameters"] = json!({ "announce": fetched.binding.announce });
    Ok(Json(answer))
}
