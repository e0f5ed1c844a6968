//! The one table of errors: what went wrong → status, code, text.
//!
//! A status decides what the Cloud Controller does next. After a 5xx, or a 422 with a code that it does not know, to a
//! provision or bind it sends deletes; so a request that cannot be granted is a 400 there, and a 422 only on PATCH.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::Response,
};

use super::request::Refused;
use crate::{
    control::{BindRefusal, DeleteRefusal, Failure, Fault, NotFound, ProvisionRefusal, UpdateRefusal},
    http,
};

/// When to try again after a fault, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

/// A refusal's line in the table.
pub(super) trait Line: std::error::Error {
    /// Its status; its text is what it says of itself.
    fn status(&self) -> StatusCode;
}

impl Line for ProvisionRefusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::UnknownPlan(_)
            | Self::Parameters(_)
            | Self::Port(_)
            | Self::PortHeld(_)
            | Self::Retired(_)
            | Self::Exhausted(_) => StatusCode::BAD_REQUEST,
        }
    }
}

impl Line for UpdateRefusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::UnknownPlan(_) => StatusCode::BAD_REQUEST,
            Self::OtherPool { .. } | Self::Parameters(_) | Self::PortHeld(_) => StatusCode::UNPROCESSABLE_ENTITY,
        }
    }
}

impl Line for DeleteRefusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Gone => StatusCode::GONE,
            Self::UnknownPlan(_) => StatusCode::BAD_REQUEST,
        }
    }
}

impl Line for BindRefusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::NoServiceInstance(_) => StatusCode::NOT_FOUND,
            Self::Conflict => StatusCode::CONFLICT,
            Self::UnknownPlan(_) | Self::TooMany | Self::NoPredecessor(_) => StatusCode::BAD_REQUEST,
        }
    }
}

impl Line for NotFound {
    fn status(&self) -> StatusCode {
        StatusCode::NOT_FOUND
    }
}

/// The answer to a use case that did not do what was asked.
pub(super) fn answer<R: Line>(failure: Failure<R>) -> Refused {
    let answer = match failure {
        Failure::Refused(refusal) => http::refusal(refusal.status(), None, http::sentence(&refusal.to_string())),
        Failure::Busy => http::refusal(
            StatusCode::UNPROCESSABLE_ENTITY,
            Some("ConcurrencyError"),
            "Another operation on this service instance is in progress: try again when it has ended.",
        ),
        Failure::Fault(fault) => self::fault(&fault),
    };
    answer.into()
}

fn fault(fault: &Fault) -> Response {
    tracing::error!(error = %fault, "a request could not be served");
    let (status, text) = match fault {
        // Its words are for the log: they name files and hosts.
        Fault::Store(_) => (StatusCode::SERVICE_UNAVAILABLE, "the store is away: try again in a few seconds".into()),
        Fault::NotListening { .. } | Fault::NotTakenBack | Fault::Overloaded | Fault::Stopping => {
            (StatusCode::SERVICE_UNAVAILABLE, fault.to_string())
        }
        Fault::UnknownPool(_) => (StatusCode::INTERNAL_SERVER_ERROR, fault.to_string()),
    };
    let mut response = http::refusal(status, None, http::sentence(&text));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    }
    response
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;
    use http_body_util::BodyExt as _;
    use serde_json::{Value, json};

    use super::*;
    use crate::model::PoolName;

    async fn check(failure: Failure<NotFound>, status: u16, retry_after: Option<&str>, body: Value) {
        let response = answer(failure).into_response();
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(response.headers().get("retry-after").map(|value| value.to_str().unwrap()), retry_after);
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), body);
    }

    #[tokio::test]
    async fn what_is_no_refusal_has_its_line_too() {
        let concurrency = "Another operation on this service instance is in progress: try again when it has ended.";
        check(Failure::Busy, 422, None, json!({ "error": "ConcurrencyError", "description": concurrency })).await;
        let fault = |fault| Failure::Fault(fault);
        let text = |description: &str| json!({ "description": description });
        check(
            fault(Fault::NotListening { port: 35000, reason: "too many open files".into() }),
            503,
            Some("5"),
            text("Port 35000 could not be opened: too many open files."),
        )
        .await;
        check(
            fault(Fault::Overloaded),
            503,
            Some("5"),
            text("Too many requests are under way: try again in a few seconds."),
        )
        .await;
        check(fault(Fault::Stopping), 503, Some("5"), text("Harbor is stopping: try again in a few seconds.")).await;
        check(
            fault(Fault::UnknownPool(PoolName::new("games").unwrap())),
            500,
            None,
            text("No node knows the pool games: add [pools.games] to a configuration."),
        )
        .await;
    }
}
