//! What every request passes: the account of it, authentication, the version of the API.

use std::{fmt, sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::digest;
use serde_json::{Map, Value};
use subtle::{Choice, ConstantTimeEq as _};
use tracing::Instrument as _;

use super::{Broker, routes};
use crate::{
    http,
    model::requester::{Identity, Requester, Said},
};

const REQUEST_IDENTITY: HeaderName = HeaderName::from_static("x-broker-api-request-identity");
const ORIGINATING_IDENTITY: HeaderName = HeaderName::from_static("x-broker-api-originating-identity");
const API_VERSION: HeaderName = HeaderName::from_static("x-broker-api-version");

/// Longest value of the header of the originating identity that is read, in bytes: Cloud Foundry sends about 100.
const MAX_IDENTITY_BYTES: usize = 4096;

/// Who may ask: a user and all passwords that are valid, so that one can be replaced without a gap. Kept as digests:
/// comparing those tells nothing of the length either.
pub struct Passwords(ArcSwap<Digests>);

struct Digests {
    username: digest::Digest,
    passwords: Vec<digest::Digest>,
}

impl Passwords {
    /// One user with all its valid passwords.
    #[must_use]
    pub fn new(username: &str, passwords: &[String]) -> Self {
        Self(ArcSwap::from_pointee(Digests::of(username, passwords)))
    }

    /// Takes over others, for every request from now on.
    pub fn replace(&self, username: &str, passwords: &[String]) {
        self.0.store(Arc::new(Digests::of(username, passwords)));
    }

    /// Whether a header `Authorization` shows one of them. Each is compared, whichever is right.
    #[must_use]
    pub fn admit(&self, authorization: Option<&HeaderValue>) -> bool {
        let presented = authorization.and_then(basic).unwrap_or_default();
        let (username, password) = presented.split_once(':').unwrap_or_default();
        let (username, password) = (sha256(username), sha256(password));
        let valid = self.0.load();
        let right = valid.passwords.iter().fold(Choice::from(0), |right, valid| right | same(valid, &password));
        (right & same(&valid.username, &username)).into()
    }
}

impl Digests {
    fn of(username: &str, passwords: &[String]) -> Self {
        Self { username: sha256(username), passwords: passwords.iter().map(|password| sha256(password)).collect() }
    }
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passwords(…)")
    }
}

fn sha256(text: &str) -> digest::Digest {
    digest::digest(&digest::SHA256, text.as_bytes())
}

fn same(a: &digest::Digest, b: &digest::Digest) -> Choice {
    a.as_ref().ct_eq(b.as_ref())
}

/// What HTTP basic authentication carries: `user:password`.
fn basic(authorization: &HeaderValue) -> Option<String> {
    let (scheme, encoded) = authorization.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()
}

/// Counts and logs every answer, and echoes the identity of its request.
pub(super) async fn account(State(broker): State<Arc<Broker>>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let identity = request.headers().get(REQUEST_IDENTITY).cloned();
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let operation = routes::word(request.method().as_str(), path);
    let span = tracing::info_span!(
        "request",
        operation,
        request_id = identity.as_ref().and_then(said).as_ref().map(Said::as_str),
    );
    let by =
        Requester::Platform { identity: originating(request.headers()), request_id: identity.as_ref().and_then(said) };
    request.extensions_mut().insert(by);
    let mut response = next.run(request).instrument(span.clone()).await;
    let (status, took) = (response.status().as_u16(), began.elapsed());
    span.in_scope(|| tracing::debug!(status, ?took, "answered"));
    broker.metrics.answered(operation, status, took);
    if let Some(identity) = identity {
        response.headers_mut().insert(REQUEST_IDENTITY, identity);
    }
    response
}

/// Turns away who has no password, before anything else of the request is looked at.
pub(super) async fn authentication(State(broker): State<Arc<Broker>>, request: Request, next: Next) -> Response {
    if broker.passwords.admit(request.headers().get(header::AUTHORIZATION)) {
        return next.run(request).await;
    }
    let mut response =
        http::refusal(StatusCode::UNAUTHORIZED, None, "Log in with the broker's user name and password.");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"harbor\""));
    response
}

/// Turns away clients of another major version of the API: what they mean cannot be known.
pub(super) async fn version(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if path == "/v2" || path.starts_with("/v2/") {
        let version = request.headers().get(API_VERSION).and_then(|value| value.to_str().ok());
        if !version.is_some_and(is_served) {
            return http::refusal(
                StatusCode::PRECONDITION_FAILED,
                None,
                "Send the header X-Broker-API-Version with a version 2.x, for example 2.17.",
            );
        }
    }
    next.run(request).await
}

fn is_served(version: &str) -> bool {
    let minor = version.trim().strip_prefix("2.").unwrap_or_default();
    !minor.is_empty() && minor.bytes().all(|byte| byte.is_ascii_digit())
}

fn said(header: &HeaderValue) -> Option<Said> {
    header.to_str().ok().map(Said::new)
}

/// For whom the platform says that it asks, for the log alone: the header can hold anything, and nothing is refused for it.
fn originating(headers: &HeaderMap) -> Identity {
    let Some(header) = headers.get(ORIGINATING_IDENTITY) else { return Identity::Unsaid };
    decoded(header).unwrap_or(Identity::Malformed)
}

/// `platform base64json`, of whose JSON only the user is taken: other fields may be personal.
fn decoded(header: &HeaderValue) -> Option<Identity> {
    let text = header.to_str().ok().filter(|text| text.len() <= MAX_IDENTITY_BYTES)?;
    let (platform, encoded) = text.split_once(' ').filter(|(platform, _)| !platform.is_empty())?;
    let value = serde_json::from_slice::<Map<String, Value>>(&STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let user = ["user_id", "username"].iter().find_map(|key| value.get(*key)?.as_str()).map(Said::new);
    Some(Identity::Of { platform: Said::new(platform), user })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_valid_password_admits_and_nothing_else_does() {
        let passwords = Passwords::new("harbor", &["old:er".into(), "new".into()]);
        let check = |header: &str, admitted: bool| {
            assert_eq!(passwords.admit(Some(&HeaderValue::from_str(header).unwrap())), admitted, "{header}");
        };
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        check(&basic("harbor:old:er"), true);
        check(&basic("harbor:new"), true);
        check(&basic("harbor:new").replace("Basic", "bASIC"), true);
        check(&basic("harbor:newer"), false);
        check(&basic("harbor:"), false);
        check(&basic("harbor"), false);
        check(&basic("admin:new"), false);
        check(&basic(":"), false);
        check(&STANDARD.encode("harbor:new"), false);
        check("Basic !!!", false);
        check("Bearer harbor:new", false);
        assert!(!passwords.admit(None));
        passwords.replace("harbor", &["newest".into()]);
        check(&basic("harbor:newest"), true);
        check(&basic("harbor:new"), false);
        assert!(!Passwords::new("harbor", &[]).admit(Some(&HeaderValue::from_str(&basic("harbor:")).unwrap())));
    }

    #[test]
    fn any_minor_version_of_2_is_served() {
        for (version, served) in [
            ("2.0", true),
            ("2.13", true),
            ("2.17", true),
            ("2.99", true),
            ("2", false),
            ("2.", false),
            ("2.x", false),
            ("2.+5", false),
            ("1.17", false),
            ("3.0", false),
            ("22.1", false),
            ("", false),
        ] {
            assert_eq!(is_served(version), served, "{version:?}");
        }
    }

    #[test]
    fn the_originating_identity_is_read_where_there_is_one_and_never_trusted() {
        let check = |header: &str, expected: Identity| {
            let headers = HeaderMap::from_iter([(ORIGINATING_IDENTITY, HeaderValue::from_str(header).unwrap())]);
            assert_eq!(originating(&headers), expected, "{header}");
        };
        let of = |platform: &str, user: Option<&str>| Identity::Of {
            platform: Said::new(platform),
            user: user.map(Said::new),
        };
        let header = |platform: &str, json: &str| format!("{platform} {}", STANDARD.encode(json));
        check(&header("cloudfoundry", r#"{"user_id":"683ea748"}"#), of("cloudfoundry", Some("683ea748")));
        check(&header("kubernetes", r#"{"username":"duke\nadmin","uid":"u"}"#), of("kubernetes", Some("dukeadmin")));
        check(&header("cloudfoundry", r#"{"user_id":5}"#), of("cloudfoundry", None));
        check(&header("x", &format!(r#"{{"user_id":"{}"}}"#, "u".repeat(500))), of("x", Some(&"u".repeat(128))));
        for malformed in [
            header("cloudfoundry", "["),
            header("cloudfoundry", r#""text""#),
            header("cloudfoundry", &format!(r#"{{"user_id":"{}"}}"#, "u".repeat(4096))),
            header("", r#"{"user_id":"683ea748"}"#),
            "cloudfoundry ***".into(),
            "cloudfoundry".into(),
            "".into(),
        ] {
            check(&malformed, Identity::Malformed);
        }
        assert_eq!(originating(&HeaderMap::new()), Identity::Unsaid);
    }
}
