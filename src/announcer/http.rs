//! Announcements over HTTP, with the token of a binding.

use std::{fmt, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, Uri, header, http::uri::Scheme};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{
    CertificateDer, InvalidDnsNameError, ServerName,
    pem::{self, PemObject as _},
};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{
    places::Place,
    word::{NotHeard, Word},
};
use crate::model::token::Token;

/// How long one announcement may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Largest answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Longest sentence of Harbor's that is shown, in characters.
const MAX_TOLD_CHARS: usize = 300;

/// Says it to one service instance's URL.
pub struct Client {
    /// `host:port`
    authority: String,
    path: String,
    binding_id: String,
    token: Token,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// Why there can be no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Neither `http://` nor `https://`, or without a path.
    #[error("{0:?} is not the URL of a service instance: take it from the credentials, announce.url")]
    Url(String),
    /// The host in the URL is no name that a certificate can have.
    #[error("the URL's host is not a name: {0}")]
    Name(#[from] InvalidDnsNameError),
    /// The file of authorities.
    #[error("cannot read authorities from {path}: {source}")]
    Authorities {
        /// Which file.
        path: String,
        /// Why.
        source: pem::Error,
    },
    /// The machine's own authorities.
    #[error("this machine has no authorities to check certificates by: name a file by --ca")]
    NoAuthorities,
}

#[derive(Deserialize)]
struct Announced {
    expires_in_seconds: u64,
}

#[derive(Deserialize)]
struct Denied {
    description: String,
}

impl Client {
    /// A client for `url`; `ca` is checked by instead of the machine's own authorities.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn new(url: &str, binding_id: &str, token: Token, ca: Option<&Path>) -> Result<Self, ClientError> {
        let refused = || ClientError::Url(url.to_owned());
        let uri = url.parse::<Uri>().map_err(|_| refused())?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(refused)?;
        let tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => None,
            Some(scheme) if *scheme == Scheme::HTTPS => {
                let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                Some((connector(ca)?, ServerName::try_from(name)?))
            }
            _ => return Err(refused()),
        };
        let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
        let authority = format!("{host}:{port}");
        let path = uri.path().trim_end_matches('/').to_owned();
        if path.is_empty() {
            return Err(refused());
        }
        Ok(Self { authority, path, binding_id: binding_id.to_owned(), token, tls })
    }

    pub(super) async fn say(&self, place: &Place, word: Word) -> Result<Option<Duration>, NotHeard> {
        let exchanged = timeout(TIMEOUT, self.exchange(place, word)).await;
        let failed = |why: String| NotHeard::Failed(format!("{} {why}", self.authority));
        let answer = exchanged
            .map_err(|_| failed(format!("does not answer within {} s", TIMEOUT.as_secs())))?
            .map_err(|error| failed(format!("cannot be asked: {error}")))?;
        match (answer.status, serde_json::from_slice::<Denied>(&answer.body)) {
            (StatusCode::OK, _) if word == Word::Gone => Ok(None),
            (StatusCode::OK, _) => match serde_json::from_slice::<Announced>(&answer.body) {
                Ok(announced) => Ok(Some(Duration::from_secs(announced.expires_in_seconds))),
                Err(_) => Err(failed("answers, but not as Harbor does: is that its announce listener?".into())),
            },
            // What is gone is gone.
            (StatusCode::NOT_FOUND, Ok(_)) if word == Word::Gone => Ok(None),
            (StatusCode::TOO_MANY_REQUESTS, _) => Err(NotHeard::TooMany(answer.retry_after.unwrap_or_default())),
            (status, Ok(denied)) if status.is_client_error() => Err(NotHeard::Refused(one_line(&denied.description))),
            (status, _) => Err(failed(format!("answers {status}"))),
        }
    }

    async fn exchange(&self, place: &Place, word: Word) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let request = self.request(place, word)?;
        let stream = TcpStream::connect(&self.authority).await?;
        match &self.tls {
            Some((connector, name)) => ask(connector.connect(name.clone(), stream).await?, request).await,
            None => ask(stream, request).await,
        }
    }

    fn request(&self, place: &Place, word: Word) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
        let path = &self.path;
        let (method, target, body) = match word {
            Word::Gone => (Method::DELETE, format!("{path}?{}", self.query(place)), Bytes::new()),
            Word::Up | Word::Draining => {
                let mut body = json!({
                    "binding_id": self.binding_id,
                    "protocol": place.protocol().as_str(),
                    "state": word.state(),
                });
                let said = [
                    ("host", place.host.map(|host| json!(host.to_string()))),
                    ("port", place.port.map(|port| json!(port))),
                    ("udp_port", place.udp_port.map(|port| json!(port))),
                ];
                for (key, value) in said {
                    if let Some(value) = value {
                        body[key] = value;
                    }
                }
                (Method::PUT, path.clone(), Bytes::from(body.to_string()))
            }
        };
        Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, &self.authority)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token.expose()))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "close")
            .body(Full::new(body))
    }

    fn query(&self, place: &Place) -> String {
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let parts = [
            Some(("binding_id", encoded(&self.binding_id))),
            place.host.map(|host| ("host", encoded(&host.to_string()))),
            place.port.map(|port| ("port", port.to_string())),
            place.udp_port.map(|port| ("udp_port", port.to_string())),
            Some(("protocol", place.protocol().as_str().to_owned())),
        ];
        parts.into_iter().flatten().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("&")
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("authority", &self.authority).field("path", &self.path).finish_non_exhaustive()
    }
}

struct Answer {
    status: StatusCode,
    retry_after: Option<Duration>,
    body: Bytes,
}

/// What somebody else wrote, as a line of ours: no longer than a sentence or two, and without what ends a line.
fn one_line(text: &str) -> String {
    text.chars().take(MAX_TOLD_CHARS).map(|sign| if sign.is_control() { ' ' } else { sign }).collect()
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let retry_after = head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await?.to_bytes();
        Ok(Answer { status: head.status, retry_after: retry_after.map(Duration::from_secs), body })
    };
    // The connection ends with the exchange, or breaks it: which, the exchange tells.
    let (answer, _) = tokio::join!(exchange, connection);
    answer
}

fn connector(ca: Option<&Path>) -> Result<TlsConnector, ClientError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            let refused = |source| ClientError::Authorities { path: path.display().to_string(), source };
            for certificate in CertificateDer::pem_file_iter(path).map_err(refused)? {
                roots.add_parsable_certificates([certificate.map_err(refused)?]);
            }
        }
        // Some of a machine's may be unreadable; what counts is whether any can be used.
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(ClientError::NoAuthorities);
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has a cipher suite for every protocol version")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_write_stays_on_its_line() {
        assert_eq!(one_line("no\nINFO announced\u{1b}[2J"), "no INFO announced [2J");
        assert_eq!(one_line(&"ü".repeat(1000)).chars().count(), MAX_TOLD_CHARS);
    }
}
