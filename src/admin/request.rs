//! What a request to the operators' API has to show, and what it brings along.

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::Body,
    extract::{FromRequestParts, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    middleware::Next,
    response::Response,
};
use serde::de::DeserializeOwned;

use super::{Sources, token::Token, wire::OPERATOR_HEADER};
use crate::{
    http::{read_body, refusal},
    model::requester::{Requester, Said},
};

/// Largest body of a request, in bytes: a registry of ports with all entries that it may have.
const MAX_BODY_BYTES: usize = 1024 * 1024;

/// Longest name of an operator, in characters; what is longer is cut.
const MAX_NAME: usize = 100;

/// What an operator is called who does not say so.
const UNNAMED: &str = "operator";

/// Lets those in who show the token.
pub(super) async fn gate(State(sources): State<Arc<Sources>>, request: Request, next: Next) -> Response {
    match refused(request.headers(), [&sources.token]) {
        None => next.run(request).await,
        Some(refused) => refused,
    }
}

/// The refusal of a request that shows none of the tokens.
pub(super) fn refused<'a>(headers: &HeaderMap, tokens: impl IntoIterator<Item = &'a Token>) -> Option<Response> {
    let presented = headers.get(header::AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
    let presented = match presented.split_first_chunk::<7>() {
        Some((scheme, presented)) if scheme.eq_ignore_ascii_case(b"bearer ") => presented,
        _ => b"",
    };
    if tokens.into_iter().any(|token| token.matches(presented)) {
        return None;
    }
    let mut refused = refusal(
        StatusCode::UNAUTHORIZED,
        None,
        "This wants the header Authorization: Bearer with the token of admin.token_file.",
    );
    refused.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    Some(refused)
}

/// Who asks, as they call themselves: the token is the same for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Operator(pub(super) String);

impl<S: Sync> FromRequestParts<S> for Operator {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let said = parts.headers.get(OPERATOR_HEADER).map(|value| String::from_utf8_lossy(value.as_bytes()));
        let name = said.unwrap_or_default().chars().filter(|c| !c.is_control()).take(MAX_NAME).collect::<String>();
        Ok(Self(if name.trim().is_empty() { UNNAMED.into() } else { name.trim().into() }))
    }
}

impl From<Operator> for Requester {
    fn from(Operator(name): Operator) -> Self {
        Self::Operator { name: Said::new(&name) }
    }
}

/// What a body says.
///
/// # Errors
/// The refusal to answer with.
pub(super) async fn read<T: DeserializeOwned>(body: Body) -> Result<T, Response> {
    let bytes = read_body(body, MAX_BODY_BYTES).await?;
    serde_json::from_slice(&bytes).map_err(not_understood)
}

/// The same of one that may be left out.
///
/// # Errors
/// The refusal to answer with.
pub(super) async fn read_if_any<T: DeserializeOwned + Default>(body: Body) -> Result<T, Response> {
    let bytes = read_body(body, MAX_BODY_BYTES).await?;
    if bytes.is_empty() { Ok(T::default()) } else { serde_json::from_slice(&bytes).map_err(not_understood) }
}

fn not_understood(error: serde_json::Error) -> Response {
    refusal(StatusCode::BAD_REQUEST, None, format!("The body is not what is asked for: {error}."))
}
