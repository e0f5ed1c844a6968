//! `PUT /v2/service_instances/{instance_id}/service_bindings/{binding_id}`

use std::sync::Arc;

use axum::{
    Extension, Json,
    body::Body,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};

use super::{
    Broker, credentials, errors, parameters,
    request::{InstanceAndBinding, Object, Refused, bad_id, bad_request, check_service},
    schemas::Use,
};
use crate::{
    control::{BindSpec, Bound},
    model::{AppId, BindingId, PlanId, ServiceInstanceId, SpaceId, requester::Requester},
};

pub(super) async fn handle(
    State(broker): State<Arc<Broker>>,
    InstanceAndBinding(instance, id): InstanceAndBinding,
    Extension(by): Extension<Requester>,
    body: Body,
) -> Result<Response, Refused> {
    let spec = read(&broker, instance, id, by, Object::read(body).await?)?;
    let (status, credentials) = match broker.control.bind(spec).await.map_err(errors::answer)? {
        Bound::Created(credentials) => (StatusCode::CREATED, credentials),
        Bound::Existing(credentials) => (StatusCode::OK, credentials),
    };
    Ok((status, Json(credentials::answer(&credentials))).into_response())
}

fn read(
    broker: &Broker,
    service_instance_id: ServiceInstanceId,
    id: BindingId,
    by: Requester,
    mut body: Object,
) -> Result<BindSpec, Refused> {
    let predecessor_id = body.text("predecessor_binding_id")?.map(BindingId::new).transpose().map_err(bad_id)?;
    if predecessor_id.is_some() {
        // A rotation says nothing else: all the rest is the predecessor's.
        return Ok(BindSpec {
            id,
            service_instance_id,
            plan_id: None,
            app_id: None,
            space_id: None,
            announce: None,
            predecessor_id,
            by,
        });
    }
    check_service(body.text("service_id")?)?;
    let plan_id = PlanId::new(body.required("plan_id")?).map_err(bad_id)?;
    let resource = body.object("bind_resource")?;
    let of_resource = |field| resource.as_ref().map_or(Ok(None), |resource| resource.text(field));
    let app_id = match of_resource("app_guid")? {
        Some(app) => Some(app),
        // Where it stood before there was a `bind_resource`.
        None => body.text("app_guid")?,
    };
    let app_id = app_id.map(AppId::new).transpose().map_err(bad_id)?;
    let space_id = of_resource("space_guid")?.map(SpaceId::new).transpose().map_err(bad_id)?;
    let given = body.parameters()?;
    broker.offer().schemas.check(&plan_id, Use::Bind, &given).map_err(bad_request)?;
    let announce = parameters::of_bind(&given).map_err(bad_request)?;
    Ok(BindSpec { id, service_instance_id, plan_id: Some(plan_id), app_id, space_id, announce, predecessor_id, by })
}
