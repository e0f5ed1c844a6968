//! `/admin/v1/suspensions` and `/admin/v1/blocked`: what operators hold back, on all nodes. This API is none of it: nobody
//! can lock themselves out of here.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use ipnet::IpNet;

use super::{
    Sources,
    request::{Operator, read_if_any},
    wire::{self, rfc3339},
};
use crate::{
    control::{Failure, RestrainRefusal, Restrained},
    http::{refusal, sentence},
    model::{ServiceInstanceId, restraint::Restraint},
};

pub(super) async fn suspensions(State(sources): State<Arc<Sources>>) -> Response {
    let restraints = sources.control.restraints();
    let suspended = restraints.suspended.iter().map(|(id, restraint)| suspension(id, restraint)).collect();
    Json(wire::Suspensions { suspended }).into_response()
}

pub(super) async fn suspend(
    State(sources): State<Arc<Sources>>,
    Path(id): Path<String>,
    Operator(who): Operator,
    body: Body,
) -> Response {
    let wire::Reason { reason } = match read_if_any(body).await {
        Ok(reason) => reason,
        Err(refused) => return refused,
    };
    let Ok(id) = ServiceInstanceId::new(id) else { return no_id() };
    answer(sources.control.suspend(&id, reason, &who).await)
}

pub(super) async fn resume(
    State(sources): State<Arc<Sources>>,
    Path(id): Path<String>,
    Operator(who): Operator,
) -> Response {
    let Ok(id) = ServiceInstanceId::new(id) else { return no_id() };
    answer(sources.control.resume(&id, &who).await)
}

pub(super) async fn blocked(State(sources): State<Arc<Sources>>) -> Response {
    let restraints = sources.control.restraints();
    let blocked = restraints.blocked.iter().map(|(network, restraint)| block_of(network, restraint)).collect();
    Json(wire::Blocked { blocked }).into_response()
}

pub(super) async fn block(
    State(sources): State<Arc<Sources>>,
    Path(network): Path<String>,
    Operator(who): Operator,
    body: Body,
) -> Response {
    match read_if_any(body).await {
        Ok(wire::Reason { reason }) => answer(sources.control.block(&network, reason, &who).await),
        Err(refused) => refused,
    }
}

pub(super) async fn unblock(
    State(sources): State<Arc<Sources>>,
    Path(network): Path<String>,
    Operator(who): Operator,
) -> Response {
    answer(sources.control.unblock(&network, &who).await)
}

fn suspension(id: &ServiceInstanceId, restraint: &Restraint) -> wire::Suspension {
    wire::Suspension { service_instance: id.to_string(), restraint: told(restraint) }
}

fn block_of(network: &IpNet, restraint: &Restraint) -> wire::Block {
    wire::Block { network: network.to_string(), restraint: told(restraint) }
}

pub(super) fn told(restraint: &Restraint) -> wire::Restraint {
    let Restraint { why, by, at } = restraint;
    wire::Restraint { since: rfc3339(*at), by: by.clone(), reason: why.clone() }
}

fn answer(outcome: Result<Restrained, Failure<RestrainRefusal>>) -> Response {
    let (status, words) = match outcome {
        Ok(Restrained { changed, restraint, lagging }) => {
            let lagging = lagging.iter().map(ToString::to_string).collect();
            let restraint = restraint.as_ref().map(told);
            return Json(wire::Restrained { changed, restraint, lagging }).into_response();
        }
        Err(Failure::Refused(refused @ RestrainRefusal::NoServiceInstance(_))) => {
            (StatusCode::NOT_FOUND, refused.to_string())
        }
        Err(Failure::Refused(
            refused @ (RestrainRefusal::TooManyBlocked
            | RestrainRefusal::TooManySettings
            | RestrainRefusal::WithinBlocked(..)),
        )) => (StatusCode::CONFLICT, refused.to_string()),
        Err(Failure::Refused(refused @ (RestrainRefusal::Network(_) | RestrainRefusal::Reason))) => {
            (StatusCode::BAD_REQUEST, refused.to_string())
        }
        Err(Failure::Busy) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "something else is being changed at the same time: try again in a few seconds".into(),
        ),
        Err(Failure::Fault(fault)) => {
            tracing::warn!(error = %fault, "a restraint could not be changed");
            (StatusCode::SERVICE_UNAVAILABLE, "the store is away: try again in a few seconds".into())
        }
    };
    refusal(status, None, sentence(&words))
}

fn no_id() -> Response {
    refusal(StatusCode::NOT_FOUND, None, "That is no id of a service instance.")
}
