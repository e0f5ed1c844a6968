//! What an accepted announcement says of a backend, by what authority it is believed, and why others are not.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::{AppId, BindingId, ServiceInstanceId, Timestamp, Transport};

/// Why a backend is believed. When the authority ends, so does the backend.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Authority {
    /// The app is bound to the service instance.
    App(AppId),
    /// The holder of this binding's token vouched for it.
    Binding(BindingId),
    /// The address is in a `[[discovery.trusted]]` network that may serve the service instance.
    Trusted,
}

/// An accepted announcement: these addresses serve this service instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Which service instance.
    pub service_instance_id: ServiceInstanceId,
    /// At most one address per transport.
    pub endpoints: Vec<Endpoint>,
    /// By what authority.
    pub authority: Authority,
    /// Who announced it.
    pub origin: Origin,
    /// How long it lives without being announced again.
    pub time_to_live: Duration,
    /// Whether it wants new work.
    pub state: AnnouncedState,
    /// When the backend was first announced, or began to serve, where the message says so; never after `heard_at`.
    pub since: Option<Timestamp>,
    /// When the message arrived, by this node's clock.
    pub heard_at: Timestamp,
}

/// An accepted withdrawal: these addresses no longer serve this service instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdrawal {
    /// Which service instance.
    pub service_instance_id: ServiceInstanceId,
    /// At most one address per transport.
    pub endpoints: Vec<Endpoint>,
    /// Who announced it: must agree with who registered, where both sides say so.
    pub origin: Origin,
}

/// Where a backend is reached for one transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// TCP or UDP.
    pub transport: Transport,
    /// Its address and port.
    pub address: SocketAddr,
}

/// Who announced: what tells a late message about an address from a message about its new owner.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origin {
    /// `app`.
    pub app_id: Option<AppId>,
    /// `private_instance_id`. One route_registrar process uses one for all its routes.
    pub private_instance_id: Option<Arc<str>>,
    /// `endpoint_updated_at_ns`, nanoseconds since the epoch: orders the messages of one app instance. None when the
    /// message has none, or one too far ahead to be believed.
    pub updated_at_ns: Option<i64>,
}

/// Whether a backend wants new work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AnnouncedState {
    /// It takes new connections and sessions.
    #[default]
    Up,
    /// It takes none; those it has go on for the drain time-out.
    Draining,
}

/// By which way a message came: said by where it arrived, not by its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// `harbor.register` and `harbor.unregister`.
    Harbor,
    /// `router.register` and `router.unregister`.
    Router,
    /// `service-discovery.register` and `service-discovery.unregister`.
    ServiceDiscovery,
    /// `announce.listen`.
    Http,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Harbor, Self::Router, Self::ServiceDiscovery, Self::Http];

    /// The word used in metrics and answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Harbor => "harbor",
            Self::Router => "router",
            Self::ServiceDiscovery => "service_discovery",
            Self::Http => "http",
        }
    }
}

/// An announcement that was refused, as it is kept for who asks why a port has no backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// When it was heard first.
    pub first_at: Timestamp,
    /// When it was heard last.
    pub at: Timestamp,
    /// How often it was.
    pub count: u64,
    /// By which way it came.
    pub source: Source,
    /// Why.
    pub reason: AnnouncementRefusal,
    /// What it said.
    pub of: Sketch,
}

/// What of a refused announcement is kept, as it was written; texts are shortened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sketch {
    /// What is to say which service instance is meant: an id, else the first uri.
    pub named: Option<String>,
    /// `app`.
    pub app: Option<String>,
    /// `host`.
    pub host: String,
    /// `port`.
    pub port: Option<u16>,
    /// `harbor.udp_port`.
    pub udp_port: Option<u16>,
    /// What is wrong with a message that cannot be read.
    pub detail: Option<String>,
}

/// Why an announcement made no backend. Closed: these words are metric labels and what a token's holder is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AnnouncementRefusal {
    /// Not a message of the known form.
    Malformed,
    /// Names a service instance, or a port under the domain, that is not known.
    UnknownServiceInstance,
    /// Its uris name more than one service instance.
    Ambiguous,
    /// Nothing in it says which service instance is meant. The usual case on `router.register`: somebody's HTTP route.
    NotAddressed,
    /// A route of an app that is bound, but not to one service instance alone that has `match_app`.
    NotMatched,
    /// None of the three authorities holds, and the message named no app and carried no proof.
    NoAuthority,
    /// The app that it names is not bound to the service instance.
    AppNotBound,
    /// Its proof or token is not the binding's, or the binding is not there or may not announce.
    BadProof,
    /// Its proof is older than the time to live, or from the future.
    StaleProof,
    /// Its host is not an IP address.
    HostNotAnAddress,
    /// Its address is not in the backend networks, or taken out of them.
    AddressForbidden,
    /// Its address is Harbor's own: traffic would go in circles.
    Loop,
    /// Its address is on a Diego cell, and the platform has not said that it is the app's.
    NotAttributed,
    /// It has no plain port: only TLS, which is not there yet.
    TlsOnly,
    /// It has no port at all.
    NoPort,
    /// It serves no transport that the service instance has.
    ProtocolMismatch,
    /// The service instance already has the most backends it may have.
    TooManyBackends,
    /// A newer message of the same app instance has been seen.
    OutOfOrder,
    /// A withdrawal by somebody other than who registered.
    OtherOrigin,
    /// A withdrawal of a backend that is not there.
    UnknownBackend,
    /// The caller or the token sends too many.
    RateLimited,
}

impl AnnouncementRefusal {
    /// All reasons.
    pub const ALL: [Self; 21] = [
        Self::Malformed,
        Self::UnknownServiceInstance,
        Self::Ambiguous,
        Self::NotAddressed,
        Self::NotMatched,
        Self::NoAuthority,
        Self::AppNotBound,
        Self::BadProof,
        Self::StaleProof,
        Self::HostNotAnAddress,
        Self::AddressForbidden,
        Self::Loop,
        Self::NotAttributed,
        Self::TlsOnly,
        Self::NoPort,
        Self::ProtocolMismatch,
        Self::TooManyBackends,
        Self::OutOfOrder,
        Self::OtherOrigin,
        Self::UnknownBackend,
        Self::RateLimited,
    ];

    /// The word used in metrics, logs and answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownServiceInstance => "unknown_service_instance",
            Self::Ambiguous => "ambiguous",
            Self::NotAddressed => "not_addressed",
            Self::NotMatched => "not_matched",
            Self::NoAuthority => "no_authority",
            Self::AppNotBound => "app_not_bound",
            Self::BadProof => "bad_proof",
            Self::StaleProof => "stale_proof",
            Self::HostNotAnAddress => "host_not_an_address",
            Self::AddressForbidden => "address_forbidden",
            Self::Loop => "loop",
            Self::NotAttributed => "not_attributed",
            Self::TlsOnly => "tls_only",
            Self::NoPort => "no_port",
            Self::ProtocolMismatch => "protocol_mismatch",
            Self::TooManyBackends => "too_many_backends",
            Self::OutOfOrder => "out_of_order",
            Self::OtherOrigin => "other_origin",
            Self::UnknownBackend => "unknown_backend",
            Self::RateLimited => "rate_limited",
        }
    }
}
