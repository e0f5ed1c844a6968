//! `DELETE /v2/service_instances/{instance_id}`

use std::sync::Arc;

use axum::{Extension, Json, extract::State};
use serde_json::{Value, json};

use super::{
    Broker, errors,
    request::{Deleted, Instance, Refused},
};
use crate::model::requester::Requester;

pub(super) async fn handle(
    State(broker): State<Arc<Broker>>,
    Instance(id): Instance,
    Deleted(plan_id): Deleted,
    Extension(by): Extension<Requester>,
) -> Result<Json<Value>, Refused> {
    broker.control.deprovision(&id, &plan_id, by).await.map_err(errors::answer)?;
    Ok(Json(json!({})))
}
