//! `/admin/v1/config`: what each key of the configuration is, and live settings.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use tokio::sync::{mpsc::error::TrySendError, oneshot};

use super::{
    Sources,
    request::{self, Operator},
    wire::{self, rfc3339},
};
use crate::{
    http::{refusal, sentence},
    model::setting::{HISTORY_KEPT, Setting, SettingChange},
};

/// Most changes of one request.
const MAX_CHANGES: usize = 100;

/// How many changes the history tells where nobody says how many.
const DEFAULT_LIMIT: usize = 100;

/// Live settings that an operator wants changed, all or none, and where what has come of it is heard.
#[derive(Debug)]
pub struct SettingsRequest {
    /// What to change.
    pub changes: Vec<SettingChange>,
    /// Who asks.
    pub who: String,
    /// What the keys are then; which nodes lag is not known yet.
    pub reply: oneshot::Sender<Result<wire::ConfigurationChanged, SettingsError>>,
}

/// Why live settings were not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The value is not right, or the key is none that can be changed so.
    #[error("{0}")]
    Refused(String),
    /// What this node or the nodes have, or somebody else changes at the same time, stands in the way.
    #[error("{0}")]
    Conflict(String),
    /// The store is away, or the process is busy.
    #[error("{0}")]
    Unavailable(String),
}

/// `GET`
pub(super) async fn list(State(sources): State<Arc<Sources>>) -> Response {
    Json(wire::Configuration { keys: sources.configuration.borrow().to_vec() }).into_response()
}

/// `PATCH`
pub(super) async fn change(State(sources): State<Arc<Sources>>, operator: Operator, body: Body) -> Response {
    let wire::ConfigurationChange { changes } = match request::read(body).await {
        Ok(change) => change,
        Err(refused) => return refused,
    };
    if changes.is_empty() || changes.len() > MAX_CHANGES {
        let said = format!("The list of changes is empty, or has more than {MAX_CHANGES}.");
        return refusal(StatusCode::BAD_REQUEST, None, said);
    }
    let changes =
        changes.into_iter().map(|change| SettingChange { scope: change.section, key: change.key, value: change.value });
    let (reply, answer) = oneshot::channel();
    let asked = SettingsRequest { changes: changes.collect(), who: operator.0, reply };
    let ends = || SettingsError::Unavailable("this process is about to end: try again".into());
    let outcome = match sources.change_settings.try_send(asked) {
        Ok(()) => answer.await.unwrap_or_else(|_| Err(ends())),
        Err(TrySendError::Full(_)) => {
            Err(SettingsError::Unavailable("too many changes wait already: try again in a moment".into()))
        }
        Err(TrySendError::Closed(_)) => Err(ends()),
    };
    let refused = match outcome {
        Ok(changed) => {
            let lagging = sources.control.heard_everywhere().await.iter().map(ToString::to_string).collect();
            return Json(wire::ConfigurationChanged { lagging, ..changed }).into_response();
        }
        Err(refused) => refused,
    };
    let status = match &refused {
        SettingsError::Refused(_) => StatusCode::UNPROCESSABLE_ENTITY,
        SettingsError::Conflict(_) => StatusCode::CONFLICT,
        SettingsError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    refusal(status, None, sentence(&refused.to_string()))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HistoryQuery {
    limit: Option<usize>,
}

/// `GET …/history`
pub(super) async fn history(
    State(sources): State<Arc<Sources>>,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> Response {
    let limit = match query {
        Ok(Query(HistoryQuery { limit })) if limit != Some(0) => limit.unwrap_or(DEFAULT_LIMIT).min(HISTORY_KEPT),
        _ => {
            let said = "The query may say limit, a number from 1 on, and nothing else.";
            return refusal(StatusCode::BAD_REQUEST, None, said);
        }
    };
    match sources.control.settings_history(limit).await {
        Ok(changes) => {
            let changes = changes.into_iter().map(change_of).collect();
            Json(wire::SettingsHistory { changes }).into_response()
        }
        Err(_) => refusal(StatusCode::SERVICE_UNAVAILABLE, None, "The store is away: try again in a few seconds."),
    }
}

fn change_of(change: Setting) -> wire::SettingChanged {
    let Setting { scope, key, value, changed_by, changed_at, revision } = change;
    wire::SettingChanged { section: scope, key, value, by: changed_by, at: rfc3339(changed_at), revision: revision.0 }
}
