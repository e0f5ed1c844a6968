//! A small HTTP client: one connection a request, JSON in and out.

#![allow(dead_code, reason = "each test module uses the helpers it needs")]

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{HeaderMap, Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// How long an answer may take: a hot restart is answered when it is done.
const ANSWERED_WITHIN: Duration = Duration::from_secs(120);

/// A client of one API with its headers.
#[derive(Debug, Clone)]
pub struct Client {
    address: SocketAddr,
    headers: HeaderMap,
}

/// Why nothing came back.
type Failed = Box<dyn std::error::Error + Send + Sync>;

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// Status and body, for one assertion on both.
    #[track_caller]
    pub fn parts(&self) -> (u16, Value) {
        (self.status.as_u16(), self.json())
    }
}

impl Client {
    /// A client without headers.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, headers: HeaderMap::new() }
    }

    /// A client of the broker API, as the Cloud Controller is one.
    pub fn broker(address: SocketAddr, authorization: &str) -> Self {
        Self::new(address).with("authorization", authorization).with("x-broker-api-version", "2.15")
    }

    /// The same with one more header.
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(name, value.parse().expect("a valid header value"));
        self
    }

    /// Sends a request with a JSON body, or none.
    ///
    /// # Errors
    /// When the server is not there, or goes away before it has answered, or does not answer.
    pub async fn try_send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer, Failed> {
        tokio::time::timeout(ANSWERED_WITHIN, self.exchange(method, path, body)).await?
    }

    async fn exchange(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer, Failed> {
        let stream = TcpStream::connect(self.address).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut request = Request::new(Full::new(body.map(|body| Bytes::from(body.to_string())).unwrap_or_default()));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse()?;
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().insert(header::HOST, self.address.to_string().parse()?);
        request.headers_mut().insert(header::CONNECTION, "close".parse()?);
        if body.is_some() {
            request.headers_mut().insert(header::CONTENT_TYPE, "application/json".parse()?);
        }
        let exchange = async move {
            let (head, body) = sender.send_request(request).await?.into_parts();
            Ok(Answer { status: head.status, headers: head.headers, body: body.collect().await?.to_bytes() })
        };
        let (answer, _) = tokio::join!(exchange, connection);
        answer
    }

    /// Sends a request that must be answered.
    pub async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let shown = format!("{method} {path}");
        self.try_send(method, path, body).await.unwrap_or_else(|error| panic!("{shown}: {error}"))
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PUT, path, Some(body)).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PATCH, path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, None).await
    }
}
