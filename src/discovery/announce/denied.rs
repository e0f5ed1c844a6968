//! The answers that say no, in one table.

use std::{net::IpAddr, time::Duration};

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use crate::{http::refusal, model::announcement::AnnouncementRefusal};

/// Why a request is not done.
#[derive(Debug)]
pub(super) enum Denied {
    /// No such service instance and binding, or not the binding's token: which, is not told.
    Unauthorized,
    /// This token or this caller makes too many; for how long to wait.
    TooMany(Duration),
    /// Not of the documented form, in a sentence.
    BadRequest(String),
    /// The announced host is neither this caller nor in the networks for others.
    NotTheCaller(IpAddr),
    /// The announcement is refused.
    Refused(AnnouncementRefusal),
    /// The body could not be read; the answer is made already.
    Body(Box<Response>),
}

impl Denied {
    pub(super) fn body(response: Response) -> Self {
        Self::Body(Box::new(response))
    }
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        use AnnouncementRefusal::{AddressForbidden, Malformed, RateLimited};
        match self {
            Self::Unauthorized => {
                let mut response = refusal(
                    StatusCode::UNAUTHORIZED,
                    None,
                    "No such service instance and binding, or not its token: use what the credentials have under announce.",
                );
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                response
            }
            Self::TooMany(wait) => {
                let mut response = refused(RateLimited);
                // Whole seconds, rounded up: a client that comes back then is let in.
                let seconds = wait.as_millis().div_ceil(1000);
                let seconds = HeaderValue::from(u64::try_from(seconds).unwrap_or(u64::MAX));
                response.headers_mut().insert(header::RETRY_AFTER, seconds);
                response
            }
            Self::BadRequest(description) => refusal(StatusCode::BAD_REQUEST, Some(Malformed.as_str()), description),
            Self::NotTheCaller(caller) => refusal(
                StatusCode::FORBIDDEN,
                Some(AddressForbidden.as_str()),
                format!(
                    "A token announces its caller, {caller}, or a host in discovery.token_networks: leave host out."
                ),
            ),
            Self::Refused(reason) => refused(reason),
            Self::Body(response) => *response,
        }
    }
}

fn refused(reason: AnnouncementRefusal) -> Response {
    use AnnouncementRefusal as R;
    let status = match reason {
        R::Malformed
        | R::Ambiguous
        | R::NotAddressed
        | R::NotMatched
        | R::HostNotAnAddress
        | R::TlsOnly
        | R::NoPort
        | R::ProtocolMismatch => StatusCode::BAD_REQUEST,
        R::NoAuthority
        | R::AppNotBound
        | R::BadProof
        | R::StaleProof
        | R::AddressForbidden
        | R::Loop
        | R::NotAttributed => StatusCode::FORBIDDEN,
        R::UnknownServiceInstance | R::UnknownBackend => StatusCode::NOT_FOUND,
        R::TooManyBackends | R::OutOfOrder | R::OtherOrigin => StatusCode::CONFLICT,
        R::RateLimited => StatusCode::TOO_MANY_REQUESTS,
    };
    refusal(status, Some(reason.as_str()), describe(reason))
}

/// A sentence for the holder of a token that says what to do next.
pub(super) const fn describe(reason: AnnouncementRefusal) -> &'static str {
    use AnnouncementRefusal as R;
    match reason {
        R::Malformed => "The announcement is not of the documented form: compare it with docs/announcements.md.",
        R::UnknownServiceInstance => "There is no such service instance: check the id, or the port in the uri.",
        R::Ambiguous => "The uris name more than one service instance: announce each by itself.",
        R::NotAddressed => "Nothing says which service instance is meant: give its id.",
        R::NotMatched => {
            "The app has a route, and makes no backend by it: set match_app and bind the app to no other port, map p<port>.<domain> to it, or let it announce itself."
        }
        R::NoAuthority => "Nothing shows that the sender may announce: name a bound app, or prove a binding's token.",
        R::AppNotBound => "The app is not bound to the service instance: bind it.",
        R::BadProof => "The proof is not of a binding that may announce: make it with the token of the credentials.",
        R::StaleProof => "The proof is too old or from the future: make a new one, and check the clock.",
        R::HostNotAnAddress => "The host is not an IP address: give an address, not a name.",
        R::AddressForbidden => {
            "Backends may not have that address: announce another, or ask the operator for discovery.backend_networks."
        }
        R::Loop => "The address is Harbor's own: announce that of the app.",
        R::NotAttributed => {
            "The platform has not given that address on a cell to the app: announce host and port of one of its routes, or wait for it to be heard."
        }
        R::TlsOnly => "There is no plain port: announce one, since TLS to backends is not there yet.",
        R::NoPort => "There is no port: give one.",
        R::ProtocolMismatch => "The service instance does not carry that protocol: announce the one it has.",
        R::TooManyBackends => "The service instance has all the backends it may have: withdraw some.",
        R::OutOfOrder => "A newer word of the same app instance has been heard: there is nothing to do.",
        R::OtherOrigin => "Somebody else announced that backend: only who did may withdraw it.",
        R::UnknownBackend => "There is no such backend: there is nothing to do.",
        R::RateLimited => "Too many requests: wait as long as Retry-After says.",
    }
}
