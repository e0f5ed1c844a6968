//! `PUT /v2/service_instances/{instance_id}`

use std::sync::Arc;

use axum::{
    Extension, Json,
    body::Body,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde_json::json;

use super::{
    Broker, errors, parameters,
    request::{AcceptsIncomplete, Instance, Object, Refused, bad_id, bad_request, check_service},
    schemas::Use,
};
use crate::{
    control::{ProvisionSpec, Provisioned},
    model::{OrganizationId, PlanId, ServiceInstanceId, SpaceId, requester::Requester},
};

/// What the platform repeats when it asks for what has become of a provision. There is one at most on a service instance.
const OPERATION: &str = "provision";

pub(super) async fn handle(
    State(broker): State<Arc<Broker>>,
    Instance(id): Instance,
    later: AcceptsIncomplete,
    Extension(by): Extension<Requester>,
    body: Body,
) -> Result<Response, Refused> {
    let spec = read(&broker, id, later, by, Object::read(body).await?)?;
    let (status, answer) = match broker.control.provision(spec).await.map_err(errors::answer)? {
        Provisioned::Created(_) => (StatusCode::CREATED, json!({})),
        Provisioned::Existing(_) => (StatusCode::OK, json!({})),
        Provisioned::Begun(_) => (StatusCode::ACCEPTED, json!({ "operation": OPERATION })),
    };
    Ok((status, Json(answer)).into_response())
}

fn read(
    broker: &Broker,
    id: ServiceInstanceId,
    AcceptsIncomplete(later): AcceptsIncomplete,
    by: Requester,
    mut body: Object,
) -> Result<ProvisionSpec, Refused> {
    check_service(body.text("service_id")?)?;
    let plan_id = PlanId::new(body.required("plan_id")?).map_err(bad_id)?;
    let organization_id = OrganizationId::new(body.required("organization_guid")?).map_err(bad_id)?;
    let space_id = SpaceId::new(body.required("space_guid")?).map_err(bad_id)?;
    body.no_maintenance_info()?;
    let name = body.instance_name()?;
    let given = body.parameters()?;
    broker.offer().schemas.check(&plan_id, Use::Create, &given).map_err(bad_request)?;
    let parameters = parameters::of_provision(&given).map_err(bad_request)?;
    Ok(ProvisionSpec { id, plan_id, organization_id, space_id, name, parameters, later, by })
}
