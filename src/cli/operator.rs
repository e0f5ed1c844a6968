//! Asking a running node: where its operators' API is, and what to show there.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, Uri, header, header::HeaderValue};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::net::TcpStream;

use super::{Failure, load};
use crate::admin::wire;

/// How long a node may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Largest answer that is read, in bytes: a node with all ports in use stays below.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// Which node is asked.
#[derive(Debug, clap::Args)]
pub struct Reach {
    /// Where the node's operators' API is [default: as in the configuration].
    #[arg(long, value_name = "URL", env = "HARBOR_ADMIN_URL", hide_env_values = true)]
    admin: Option<String>,

    /// The file with its token [default: as in the configuration]; the variable HARBOR_ADMIN_TOKEN holds the token
    /// itself.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// A running node that can be asked.
pub struct Node {
    /// `http://host:port`, for messages.
    url: String,
    /// `host:port`
    authority: String,
    token: String,
}

impl Node {
    /// From the command line, the environment, or the configuration, which is read only when it is needed.
    pub fn find(Reach { admin, token_file }: Reach, file: Option<PathBuf>) -> Result<Self, Failure> {
        let token = match &token_file {
            Some(_) => None,
            None => std::env::var("HARBOR_ADMIN_TOKEN").ok(),
        };
        let (url, token_file) = match (admin, &token, token_file) {
            (Some(url), Some(_), _) => (url, None),
            (Some(url), None, Some(path)) => (url, Some(path)),
            (admin, _, token_file) => {
                let named = file.is_some();
                let config = load(file).map_err(|error| {
                    match named {
                    true => Failure::from(error),
                    false => Failure::Usage(
                        "which node? Name its configuration by --config FILE, or give --admin URL and --token-file FILE"
                            .into(),
                    ),
                }
                })?;
                let in_data_dir = config.node.data_dir.join(wire::TOKEN_FILE_NAME);
                let token_file = token_file.or(config.admin.token_file).unwrap_or(in_data_dir);
                (admin.unwrap_or_else(|| format!("http://{}", reachable(config.admin.listen))), Some(token_file))
            }
        };
        let token = match (token, token_file) {
            (Some(token), _) => token,
            (None, Some(path)) => std::fs::read_to_string(&path).map_err(|error| {
                let made = match error.kind() {
                    io::ErrorKind::NotFound => " the first start of `harbor serve` makes it, or",
                    io::ErrorKind::PermissionDenied => " ask as Harbor's user or as root, or",
                    _ => "",
                };
                Failure::Usage(format!(
                    "cannot read the token in {}: {error};{made} name another by --token-file",
                    path.display()
                ))
            })?,
            (None, None) => unreachable!("one of them was found"),
        };
        let refused =
            || Failure::Usage(format!("{url:?} is not the URL of a node: write for example http://127.0.0.1:8081"));
        let uri = url.parse::<Uri>().map_err(|_| refused())?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(refused)?;
        let port = authority.port_u16().unwrap_or(80);
        let authority = format!("{}:{port}", authority.host());
        Ok(Self { url: format!("http://{authority}"), authority, token: token.trim().to_owned() })
    }

    /// What the node answers to a question.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.ask(Method::GET, path).await
    }

    /// What the node answers when it is told to do something.
    pub async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, Failure> {
        self.exchange_within(method, path, Bytes::new(), TIMEOUT).await
    }

    /// The same with more to say.
    pub async fn ask_with<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let body = serde_json::to_vec(body).context("a request can be written as JSON").map_err(Failure::Problem)?;
        self.exchange_within(method, path, body.into(), TIMEOUT).await
    }

    /// The same where the answer may take so long.
    pub async fn ask_within<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        within: Duration,
    ) -> Result<T, Failure> {
        self.exchange_within(method, path, Bytes::new(), within).await
    }

    async fn exchange_within<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        within: Duration,
    ) -> Result<T, Failure> {
        let (status, body) = tokio::time::timeout(within, self.exchange(method, path, body))
            .await
            .map_err(|_| Failure::Problem(anyhow!("the node at {} does not answer within {within:?}", self.url)))?
            .map_err(|error| {
                // Flat: the cause is not an input or output error of this command itself.
                Failure::Problem(anyhow!(
                    "no node answers at {} ({error:#}): is `harbor serve` running there?",
                    self.url
                ))
            })?;
        match status {
            StatusCode::OK => serde_json::from_slice(&body)
                .with_context(|| format!("{} answers something that this version does not know", self.url))
                .map_err(Failure::Problem),
            StatusCode::UNAUTHORIZED => Err(Failure::Usage(format!(
                "the node at {} does not take this token: name its file by --token-file, or set HARBOR_ADMIN_TOKEN",
                self.url
            ))),
            other => Err(match serde_json::from_slice(&body) {
                // What was asked for cannot be, whatever the node is like.
                Ok(Refusal { description })
                    if matches!(other, StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY) =>
                {
                    Failure::Usage(description)
                }
                Ok(Refusal { description }) => Failure::Problem(anyhow!("{description}")),
                Err(_) => Failure::Problem(anyhow!("{} answers {other}: is that a node's operators' API?", self.url)),
            }),
        }
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<(StatusCode, Bytes)> {
        let stream = TcpStream::connect(&self.authority).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.authority)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(wire::OPERATOR_HEADER, HeaderValue::from_str(&own_name())?)
            .header(header::CONNECTION, "close")
            .body(Full::new(body))?;
        let exchange = async {
            let (head, body) = sender.send_request(request).await?.into_parts();
            let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await.map_err(|error| anyhow!(error))?;
            anyhow::Ok((head.status, body.to_bytes()))
        };
        // The connection ends with the exchange, or breaks it: which, the exchange tells.
        let (answer, _) = tokio::join!(exchange, connection);
        answer
    }
}

/// Who asks, for the history: the user, also one who has become another by sudo, and the machine.
fn own_name() -> String {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let user = variable("SUDO_USER").or_else(|| variable("USER")).or_else(|| variable("LOGNAME"));
    let user = user.unwrap_or_else(|| format!("user {}", rustix::process::getuid().as_raw()));
    let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{user}@{machine}").chars().filter(|c| !c.is_control()).collect()
}

/// Why a node does not do what it was told.
#[derive(Deserialize)]
struct Refusal {
    description: String,
}

/// An address that a listener on all addresses can be reached at.
fn reachable(listen: SocketAddr) -> SocketAddr {
    match listen {
        SocketAddr::V4(address) if address.ip().is_unspecified() => ([127, 0, 0, 1], address.port()).into(),
        SocketAddr::V6(address) if address.ip().is_unspecified() => {
            (std::net::Ipv6Addr::LOCALHOST, address.port()).into()
        }
        other => other,
    }
}
