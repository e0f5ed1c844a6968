//! `DELETE /v2/service_instances/{instance_id}/service_bindings/{binding_id}`

use std::sync::Arc;

use axum::{Extension, Json, extract::State};
use serde_json::{Value, json};

use super::{
    Broker, errors,
    request::{Deleted, InstanceAndBinding, Refused},
};
use crate::model::requester::Requester;

pub(super) async fn handle(
    State(broker): State<Arc<Broker>>,
    InstanceAndBinding(instance, id): InstanceAndBinding,
    Deleted(plan_id): Deleted,
    Extension(by): Extension<Requester>,
) -> Result<Json<Value>, Refused> {
    broker.control.unbind(&instance, &id, &plan_id, by).await.map_err(errors::answer)?;
    Ok(Json(json!({})))
}
