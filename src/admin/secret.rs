//! `/admin/v1/announce-secret`: how it stands with the secret that tokens are derived from, never the secret itself.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};

use super::{
    Sources,
    request::Operator,
    wire::{self, rfc3339},
};
use crate::{
    control::{Control, SecretRefusal},
    http::{refusal, sentence},
    model::NodeId,
};

pub(super) async fn show(State(sources): State<Arc<Sources>>) -> Response {
    answer(&sources, Ok(Vec::new()))
}

pub(super) async fn rotate(State(sources): State<Arc<Sources>>, Operator(who): Operator) -> Response {
    answer(&sources, sources.control.rotate_secret(&who).await)
}

pub(super) async fn finish(State(sources): State<Arc<Sources>>, Operator(who): Operator) -> Response {
    answer(&sources, sources.control.finish_rotation(&who).await)
}

pub(super) fn rotation(control: &Control) -> Option<wire::Rotation> {
    control.rotation().map(|rotation| wire::Rotation {
        since: rotation.began.as_ref().map(|by| rfc3339(by.at)),
        by: rotation.began.map(|by| by.who),
    })
}

fn answer(sources: &Sources, outcome: Result<Vec<NodeId>, SecretRefusal>) -> Response {
    let refused = match outcome {
        Ok(lagging) => {
            let lagging = lagging.iter().map(ToString::to_string).collect();
            return Json(wire::AnnounceSecret { rotation: rotation(&sources.control), lagging }).into_response();
        }
        Err(refused) => refused,
    };
    let status = match refused {
        SecretRefusal::UnderWay | SecretRefusal::NoneUnderWay => StatusCode::CONFLICT,
        SecretRefusal::Fault(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    refusal(status, None, sentence(&refused.to_string()))
}
