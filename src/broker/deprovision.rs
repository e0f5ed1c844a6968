//! `DELETE /v2/service_instances/{instance_id}`

use std::sync::Arc;

use axum::{Json, extract::State};
use serde_json::{Value, json};

use super::{
    Broker, errors,
    request::{Deleted, Instance, Refused},
};

pub(super) async fn handle(
    State(broker): State<Arc<Broker>>,
    Instance(id): Instance,
    Deleted(plan_id): Deleted,
) -> Result<Json<Value>, Refused> {
    broker.control.deprovision(&id, &plan_id).await.map_err(errors::answer)?;
    Ok(Json(json!({})))
}
