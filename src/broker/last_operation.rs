//! `GET …/last_operation`: everything is done when it is answered, so what is there has succeeded, and what is not there
//! is gone: that ends the polling of a delete, and is no success of anything else.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};
use serde_json::{Value, json};

use super::{
    Broker, errors,
    request::{Instance, InstanceAndBinding, Refused},
};
use crate::{
    control::{Failure, NotFound},
    http,
};

pub(super) async fn handle(State(broker): State<Arc<Broker>>, Instance(id): Instance) -> Result<Json<Value>, Refused> {
    broker.control.fetch(&id).await.map_err(gone)?;
    Ok(succeeded())
}

pub(super) async fn handle_binding(
    State(broker): State<Arc<Broker>>,
    InstanceAndBinding(instance, id): InstanceAndBinding,
) -> Result<Json<Value>, Refused> {
    broker.control.fetch_binding(&instance, &id).await.map_err(gone)?;
    Ok(succeeded())
}

fn succeeded() -> Json<Value> {
    Json(json!({ "state": "succeeded" }))
}

fn gone(failure: Failure<NotFound>) -> Refused {
    match failure {
        Failure::Refused(NotFound) => http::refusal(StatusCode::GONE, None, "It is gone, or never was.").into(),
        failure => errors::answer(failure),
    }
}
