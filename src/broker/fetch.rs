//! `GET /v2/service_instances/{instance_id}`

use std::sync::Arc;

use axum::{Json, extract::State};
use serde_json::{Value, json};

use super::{
    Broker, errors, parameters,
    request::{Instance, Refused},
};
use crate::model::plan::SERVICE_ID;

pub(super) async fn handle(State(broker): State<Arc<Broker>>, Instance(id): Instance) -> Result<Json<Value>, Refused> {
    let instance = broker.control.fetch(&id).await.map_err(errors::answer)?;
    let catalog = broker.control.catalog();
    let plan = catalog.iter().find(|plan| plan.id == instance.plan_id);
    Ok(Json(json!({
        "service_id": SERVICE_ID,
        "plan_id": instance.plan_id.as_str(),
        "parameters": parameters::of_instance(&instance, plan),
    })))
}
