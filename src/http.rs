//! What every HTTP listener shares: the accept loop, TLS, limits, JSON refusals.
//!
//! It knows no routes. Whoever has some builds a router, wraps it in [`with_fallbacks`] and hands it to [`serve`]
//! with a bound listener and a token that ends it. HTTP/1.1 only: the Cloud Controller, Prometheus and `curl` ask for
//! no more.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

mod body;
mod callers;
mod refusal;
mod serve;
mod tls;

pub use body::{BODY_TIMEOUT, MAX_DISCARDED_BYTES, read_body};
pub use refusal::{refusal, sentence, with_fallbacks};
pub use serve::serve;
pub use tls::{Tls, TlsError};

/// Who calls: a request extension that [`serve`] sets. An IPv4 client of a dual-stack listener has its IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller(pub SocketAddr);

impl Caller {
    /// What counts as one caller: one who has an IPv6 address has its whole network of 64 bits.
    #[must_use]
    pub fn network(&self) -> IpAddr {
        match self.0.ip().to_canonical() {
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
            v4 => v4,
        }
    }
}

/// What a listener puts up with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Open connections. For the next one the one makes room that has waited longest for a request, of the caller who has
    /// most; while all are being answered it waits in the kernel's queue.
    pub max_connections: usize,
    /// Of these, those of one caller, see [`Caller::network`]. For the next one the one makes room that has waited longest
    /// for a request; while all are being answered it is closed.
    pub max_connections_per_caller: usize,
    /// How long a TLS handshake, a request head, or the silence before the next one may take.
    pub header_timeout: Duration,
    /// Headers of one request.
    pub max_headers: usize,
    /// Bytes of one request head.
    pub max_head_bytes: usize,
    /// How long a caller may take nothing of an answer, or acknowledge nothing: the connection is reset then. It holds what
    /// the answer is made of.
    pub stall_timeout: Duration,
    /// How long requests may take to finish after shutdown.
    pub shutdown_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_connections_per_caller: 256,
            header_timeout: Duration::from_secs(30),
            max_headers: 64,
            max_head_bytes: 32 * 1024,
            stall_timeout: Duration::from_secs(30),
            shutdown_grace: Duration::from_secs(10),
        }
    }
}
