//! What requests are made of: ids in the path, plan and service in the query, a JSON object in the body.

use axum::{
    body::Body,
    extract::{FromRequestParts, Path, Query},
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::MAX_BODY_BYTES;
use crate::{
    http,
    model::{
        BindingId, PlanId, ServiceInstanceId,
        id::BadId,
        plan::{SERVICE_ID, SERVICE_NAME},
    },
};

/// The answer that ends a request early.
#[derive(Debug)]
pub(super) struct Refused(Box<Response>);

impl From<Response> for Refused {
    fn from(answer: Response) -> Self {
        Self(Box::new(answer))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        *self.0
    }
}

/// A request that says something wrong.
pub(super) fn bad_request(description: impl Into<String>) -> Refused {
    http::refusal(StatusCode::BAD_REQUEST, None, description).into()
}

pub(super) fn bad_id(bad: BadId) -> Refused {
    let BadId { kind, bytes } = bad;
    bad_request(format!("Send {kind} of 1 to {} bytes, not {bytes}.", crate::model::id::MAX_ID_BYTES))
}

/// The service instance that the path names.
#[derive(Debug)]
pub(super) struct Instance(pub ServiceInstanceId);

impl<S: Send + Sync> FromRequestParts<S> for Instance {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let Path(id) = Path::<String>::from_request_parts(parts, state).await.map_err(|_| bad_path())?;
        ServiceInstanceId::new(id).map(Self).map_err(bad_id)
    }
}

/// The service instance and the binding that the path names.
#[derive(Debug)]
pub(super) struct InstanceAndBinding(pub ServiceInstanceId, pub BindingId);

impl<S: Send + Sync> FromRequestParts<S> for InstanceAndBinding {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let Path((instance, binding)) =
            Path::<(String, String)>::from_request_parts(parts, state).await.map_err(|_| bad_path())?;
        Ok(Self(ServiceInstanceId::new(instance).map_err(bad_id)?, BindingId::new(binding).map_err(bad_id)?))
    }
}

fn bad_path() -> Refused {
    bad_request("The ids in the path must be UTF-8, percent-encoded.")
}

/// Whether the platform takes an answer that comes before the work is done.
#[derive(Debug)]
pub(super) struct AcceptsIncomplete(pub bool);

#[derive(Debug, Deserialize)]
struct IncompleteQuery {
    accepts_incomplete: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for AcceptsIncomplete {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        // A query that says something else says nothing of this.
        let query = Query::<IncompleteQuery>::from_request_parts(parts, state).await;
        let said = query.ok().and_then(|Query(query)| query.accepts_incomplete);
        Ok(Self(said.as_deref() == Some("true")))
    }
}

/// The plan that a delete names, beside the service.
#[derive(Debug)]
pub(super) struct Deleted(pub PlanId);

#[derive(Debug, Deserialize)]
struct DeleteQuery {
    service_id: Option<String>,
    plan_id: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Deleted {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let Query(query) = Query::<DeleteQuery>::from_request_parts(parts, state)
            .await
            .map_err(|_| bad_request("The query must be name=value pairs, each name once."))?;
        check_service(query.service_id.as_deref())?;
        let plan = query.plan_id.ok_or_else(|| bad_request("Send `plan_id` in the query."))?;
        PlanId::new(plan).map(Self).map_err(bad_id)
    }
}

/// Whether a request names this service.
pub(super) fn check_service(id: Option<&str>) -> Result<(), Refused> {
    match id {
        Some(SERVICE_ID) => Ok(()),
        Some(_) => {
            Err(bad_request(format!("There is no such service: `service_id` of {SERVICE_NAME} is {SERVICE_ID}.")))
        }
        None => Err(bad_request(format!("Send `service_id`: that of {SERVICE_NAME} is {SERVICE_ID}."))),
    }
}

/// A body's JSON object. What is asked for is taken out of it, unknown fields are left alone.
#[derive(Debug)]
pub(super) struct Object(Map<String, Value>);

impl Object {
    /// Reads a body.
    pub(super) async fn read(body: Body) -> Result<Self, Refused> {
        let bytes = http::read_body(body, MAX_BODY_BYTES).await?;
        if bytes.is_empty() {
            return Err(bad_request("Send a JSON object in the body."));
        }
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(map)) => Ok(Self(map)),
            Ok(_) => Err(bad_request("The body must be a JSON object.")),
            Err(error) => Err(bad_request(format!("The body is not JSON: {error}."))),
        }
    }

    /// A text; `null` counts as absent.
    pub(super) fn text(&self, field: &str) -> Result<Option<&str>, Refused> {
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(bad_request(format!("`{field}` must be a string."))),
        }
    }

    /// A text that must be there.
    pub(super) fn required(&self, field: &str) -> Result<&str, Refused> {
        self.text(field)?.ok_or_else(|| bad_request(format!("Send `{field}`.")))
    }

    /// An object; `null` counts as absent.
    pub(super) fn object(&mut self, field: &str) -> Result<Option<Self>, Refused> {
        match self.0.remove(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self(map))),
            Some(_) => Err(bad_request(format!("`{field}` must be an object."))),
        }
    }

    /// What the user calls the service instance.
    pub(super) fn instance_name(&mut self) -> Result<Option<String>, Refused> {
        match self.object("context")? {
            Some(context) => Ok(context.text("instance_name")?.map(Into::into)),
            None => Ok(None),
        }
    }

    /// The user's parameters, none of them given when there are none.
    pub(super) fn parameters(&mut self) -> Result<Value, Refused> {
        Ok(Value::Object(self.object("parameters")?.map(|Self(map)| map).unwrap_or_default()))
    }

    /// Refuses a request that expects a version of the plan: plans have none.
    pub(super) fn no_maintenance_info(&self) -> Result<(), Refused> {
        match self.0.get("maintenance_info") {
            None | Some(Value::Null) => Ok(()),
            Some(_) => Err(http::refusal(
                StatusCode::UNPROCESSABLE_ENTITY,
                Some("MaintenanceInfoConflict"),
                "No plan has maintenance information: read the catalog again.",
            )
            .into()),
        }
    }
}
