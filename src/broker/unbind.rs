//! `DELETE /v2/service_instances/{instance_id}/service_bindings/{binding_id}`

use std::sync::Arc;

use axum::{Json, extract::State};
use serde_json::{Value, json};

use super::{
    Broker, errors,
    request::{Deleted, InstanceAndBinding, Refused},
};

pub(super) async fn handle(
    State(broker): State<Arc<Broker>>,
    InstanceAndBinding(instance, id): InstanceAndBinding,
    Deleted(plan_id): Deleted,
) -> Result<Json<Value>, Refused> {
    broker.control.unbind(&instance, &id, &plan_id).await.map_err(errors::answer)?;
    Ok(Json(json!({})))
}
