//! `GET …/last_operation`: what has become of a provision that was answered early. Everything else is done when it is
//! answered, so what is there has succeeded, and what is not there is gone: that ends the polling of a delete, and is no
//! success of anything else.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};

use super::{
    Broker, errors,
    request::{Instance, InstanceAndBinding, Refused},
};
use crate::{
    control::{Failure, NotFound, Progress},
    http,
};

/// When to ask again, in seconds: what has not ended by then waits for a node that does not answer.
const ASK_AGAIN: HeaderValue = HeaderValue::from_static("1");

pub(super) async fn handle(State(broker): State<Arc<Broker>>, Instance(id): Instance) -> Result<Response, Refused> {
    Ok(match broker.control.operation(&id).await.map_err(gone)? {
        Progress::Succeeded => succeeded().into_response(),
        Progress::InProgress => {
            ([(header::RETRY_AFTER, ASK_AGAIN)], Json(json!({ "state": "in progress" }))).into_response()
        }
        Progress::Failed(reason) => {
            Json(json!({ "state": "failed", "description": http::sentence(&reason) })).into_response()
        }
    })
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
