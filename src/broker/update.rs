//! `PATCH /v2/service_instances/{instance_id}`

use std::sync::Arc;

use axum::{Extension, Json, body::Body, extract::State, http::StatusCode};
use serde_json::{Value, json};

use super::{
    Broker, errors, parameters,
    request::{Instance, Object, Refused, bad_id, check_service},
    schemas::Use,
};
use crate::{
    control::{Failure, UpdateRefusal, UpdateSpec},
    http,
    model::{PlanId, ServiceInstanceId, requester::Requester},
};

pub(super) async fn handle(
    State(broker): State<Arc<Broker>>,
    Instance(id): Instance,
    Extension(by): Extension<Requester>,
    body: Body,
) -> Result<Json<Value>, Refused> {
    let spec = read(&broker, id, by, Object::read(body).await?).await?;
    broker.control.update(spec).await.map_err(errors::answer)?;
    Ok(Json(json!({})))
}

async fn read(broker: &Broker, id: ServiceInstanceId, by: Requester, mut body: Object) -> Result<UpdateSpec, Refused> {
    check_service(body.text("service_id")?)?;
    let plan_id = body.text("plan_id")?.map(PlanId::new).transpose().map_err(bad_id)?;
    body.no_maintenance_info()?;
    let name = body.instance_name()?;
    let given = body.parameters()?;
    let judged_by = match &plan_id {
        Some(plan_id) => plan_id.clone(),
        None => present_plan(broker, &id).await?,
    };
    broker.offer().schemas.check(&judged_by, Use::Update, &given).map_err(unprocessable)?;
    let settings = parameters::of_update(&given).map_err(unprocessable)?;
    Ok(UpdateSpec { id, plan_id, settings, name, by })
}

/// The plan whose schema holds when the request names none.
async fn present_plan(broker: &Broker, id: &ServiceInstanceId) -> Result<PlanId, Refused> {
    let failure = match broker.control.fetch(id).await {
        Ok(instance) => return Ok(instance.plan_id),
        Err(Failure::Refused(_)) => Failure::Refused(UpdateRefusal::NotFound(id.clone())),
        Err(Failure::Busy) => Failure::Busy,
        Err(Failure::Fault(fault)) => Failure::Fault(fault),
    };
    Err(errors::answer(failure))
}

fn unprocessable(description: String) -> Refused {
    http::refusal(StatusCode::UNPROCESSABLE_ENTITY, None, description).into()
}
