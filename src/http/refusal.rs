//! Refusals as JSON: one form for every answer that is not a success.

use std::any::Any;

use axum::{
    Json, Router,
    http::{Method, StatusCode},
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use tower_http::catch_panic::CatchPanicLayer;

/// The body: `error` only where the API has a word for it.
#[derive(Debug, Serialize)]
struct RefusalBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    description: String,
}

/// An answer that says no, as the JSON object `{"error"?, "description"}`.
pub fn refusal(status: StatusCode, error: Option<&str>, description: impl Into<String>) -> Response {
    (status, Json(RefusalBody { error, description: description.into() })).into_response()
}

/// Makes the answers that a router gives by itself JSON refusals: 404, 405, and 500 for a handler that panicked.
/// Call it when all routes are there.
pub fn with_fallbacks(router: Router) -> Router {
    router.fallback(not_found).method_not_allowed_fallback(method_not_allowed).layer(CatchPanicLayer::custom(panicked))
}

async fn not_found() -> Response {
    refusal(StatusCode::NOT_FOUND, None, "There is nothing at this path.")
}

async fn method_not_allowed(method: Method) -> Response {
    refusal(
        StatusCode::METHOD_NOT_ALLOWED,
        None,
        format!("{method} is not possible at this path: see the header Allow for what is."),
    )
}

fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    tracing::error!(message, "a request handler panicked: this is a bug, please report it");
    refusal(StatusCode::INTERNAL_SERVER_ERROR, None, "Harbor made a mistake: its log says more.")
}

/// An error's words as a sentence for people. A key or an id that it begins with, such as `harbor_node.host`, stays as it is.
#[must_use]
pub fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(char::to_uppercase).into_iter().flatten();
    let mut sentence = match text.split([' ', ':']).next() {
        Some(word) if word.trim_end_matches('.').contains(['.', '_']) => text.to_owned(),
        _ => first.chain(characters).collect::<String>(),
    };
    if !sentence.ends_with('.') {
        sentence.push('.');
    }
    sentence
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request, routing::get};
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    async fn check(method: Method, path: &str, status: u16, allow: Option<&str>, body: &str) {
        async fn broken() -> StatusCode {
            panic!("as the test wants it")
        }
        let router =
            with_fallbacks(Router::new().route("/there", get(|| async { "ok" })).route("/broken", get(broken)));
        let request = Request::builder().method(method).uri(path).body(Body::empty()).expect("a valid request");
        let response = router.oneshot(request).await.expect("a router does not fail");
        assert_eq!(response.status().as_u16(), status, "{path}");
        assert_eq!(response.headers().get("allow").map(|value| value.to_str().expect("ascii")), allow, "{path}");
        let bytes = response.into_body().collect().await.expect("it is in memory").to_bytes();
        assert_eq!(bytes, body.as_bytes(), "{path}");
    }

    #[tokio::test]
    async fn what_no_route_answers_is_a_json_refusal_too() {
        check(Method::GET, "/there", 200, None, "ok").await;
        check(Method::GET, "/nowhere", 404, None, r#"{"description":"There is nothing at this path."}"#).await;
        check(
            Method::PUT,
            "/there",
            405,
            Some("GET,HEAD"),
            r#"{"description":"PUT is not possible at this path: see the header Allow for what is."}"#,
        )
        .await;
        check(Method::GET, "/broken", 500, None, r#"{"description":"Harbor made a mistake: its log says more."}"#)
            .await;
    }

    #[tokio::test]
    async fn a_refusal_names_its_error_only_where_there_is_one() {
        let body = |response: Response| async { response.into_body().collect().await.expect("in memory").to_bytes() };
        let with = refusal(StatusCode::UNPROCESSABLE_ENTITY, Some("ConcurrencyError"), "Try again.");
        assert_eq!(with.headers()["content-type"], "application/json");
        assert_eq!(body(with).await, r#"{"error":"ConcurrencyError","description":"Try again."}"#);
        assert_eq!(body(refusal(StatusCode::GONE, None, "It is gone.")).await, r#"{"description":"It is gone."}"#);
    }

    #[test]
    fn a_sentence_begins_with_a_capital_but_for_a_key_or_an_id() {
        for (text, expected) in [
            ("the store is away", "The store is away."),
            ("busy.", "Busy."),
            ("port: taken", "Port: taken."),
            ("nats.token cannot be changed so", "nats.token cannot be changed so."),
            ("harbor_node_2 lives", "harbor_node_2 lives."),
            ("max_connections: 0 is none", "max_connections: 0 is none."),
            ("", "."),
        ] {
            assert_eq!(sentence(text), expected);
        }
    }
}
