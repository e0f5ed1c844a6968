//! Announcements over HTTP: how the holder of a binding's token, usually an app, announces its own backends.
//!
//! A request that is let in becomes the message that is relayed to the other nodes, and is judged here as they will
//! judge it: every node believes the same, by the same authority.

use std::{
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{Path, Query, Request, State, rejection::PathRejection},
    http::{HeaderMap, header},
    response::{IntoResponse as _, Response},
    routing::put,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time::timeout;

use super::{
    Discovery,
    address::parse_host,
    authority::statement,
    judge::time_to_live,
    rate::{Allowance, Rate},
    refusals::shortened,
    source::{Action, Source},
    wire::{Announcement, Harbor},
};
use crate::{
    backends::BackendState,
    http::{Caller, read_body, with_fallbacks},
    model::{
        AppId, BindingId, ServiceInstanceId, Timestamp, Transport,
        announcement::{AnnouncedState, AnnouncementRefusal, Endpoint, Refusal, Sketch},
        binding::Binding,
    },
};

mod denied;

use denied::{Denied, describe};

/// Largest body, in bytes.
const MAX_BODY_BYTES: usize = 16 * 1024;

/// What the holder of a token may do: 10 requests a second, 50 at once.
const PER_TOKEN: Allowance = Allowance { spacing: Duration::from_millis(100), burst: 50 };

/// What one caller may do without a token that is right. Those with one do not count here: all apps of a cell call from
/// one address, and none shall keep its neighbours out.
const PER_CALLER: Allowance = Allowance { spacing: Duration::from_millis(10), burst: 1000 };

/// How long a request with the right token waits for its binding, which another node may have made a moment ago.
const LEARNT_WITHIN: Duration = Duration::from_secs(1);

/// What `PUT` takes.
#[derive(Debug, Deserialize)]
struct PutBody {
    port: Option<u16>,
    udp_port: Option<u16>,
    protocol: Option<String>,
    host: Option<String>,
    state: Option<String>,
    stale_threshold_in_seconds: Option<i64>,
}

/// What `DELETE` takes, in its query.
#[derive(Debug, Deserialize)]
struct DeleteQuery {
    port: Option<u16>,
    udp_port: Option<u16>,
    protocol: Option<String>,
    host: Option<String>,
}

/// Whose token it is; all requests have it.
#[derive(Debug, Deserialize)]
struct WhoseToken {
    binding_id: String,
}

/// The answer to `PUT`.
#[derive(Debug, Serialize)]
struct Announced {
    /// When to have announced again, at the latest.
    expires_in_seconds: u64,
}

/// The answer to `GET`.
#[derive(Debug, Serialize)]
struct Shown {
    service_instance_id: String,
    backends: Vec<ShownBackend>,
    refusals: Vec<ShownRefusal>,
}

#[derive(Debug, Serialize)]
struct ShownBackend {
    protocol: &'static str,
    host: IpAddr,
    port: u16,
    state: &'static str,
    /// RFC 3339, in UTC.
    state_since: String,
    /// When it was first announced. RFC 3339, in UTC.
    since: String,
    /// What checks have found.
    health: &'static str,
    /// RFC 3339, in UTC.
    health_since: String,
    expires_in_seconds: u64,
    /// Open connections or sessions.
    open: u32,
    /// Whether it is passed over because connecting to it failed lately.
    put_aside: bool,
    /// RFC 3339, in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    put_aside_since: Option<String>,
}

#[derive(Debug, Serialize)]
struct ShownRefusal {
    /// When it came last. RFC 3339, in UTC.
    at: String,
    /// When it came first.
    first_at: String,
    /// How often it came.
    count: u64,
    source: &'static str,
    reason: &'static str,
    description: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    named: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<String>,
    host: String,
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    udp_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// Who has been let in.
struct Holder {
    service_instance_id: ServiceInstanceId,
    binding_id: BindingId,
    /// The app of the binding; none for a key.
    app_id: Option<AppId>,
    caller: IpAddr,
}

struct Shared {
    discovery: Arc<Discovery>,
    tokens: Mutex<Rate<BindingId>>,
    callers: Mutex<Rate<IpAddr>>,
}

type Outcome<T = Response> = Result<T, Denied>;

/// The id in the path; a text that cannot be one is no service instance.
type Id = Result<Path<String>, PathRejection>;

/// The routes of `announce.listen`.
pub fn announce_router(discovery: Arc<Discovery>) -> Router {
    let (tokens, callers) = (Mutex::new(Rate::new(PER_TOKEN)), Mutex::new(Rate::new(PER_CALLER)));
    let shared = Arc::new(Shared { discovery, tokens, callers });
    let each = put(register).delete(unregister).get(show);
    with_fallbacks(Router::new().route("/announce/v1/instances/{id}", each).with_state(shared))
}

async fn register(State(shared): State<Arc<Shared>>, id: Id, request: Request) -> Outcome {
    let presented = shared.presented(&request)?;
    let body = async {
        let bytes = read_body(request.into_body(), MAX_BODY_BYTES).await.map_err(Denied::body)?;
        let body = parse_object(&bytes)?;
        Ok((fields::<WhoseToken>(&body)?, body))
    };
    let (whose, body) = body.await.map_err(|denied| shared.strange(presented.caller, denied))?;
    let holder = shared.let_in(id, &whose.binding_id, &presented).await?;
    let body: PutBody = fields(&body).map_err(|denied| shared.noted(&holder, denied, Sketch::default()))?;
    let message = Announcement {
        host: Some(shared.host(&holder, body.host.as_deref(), body.port)?.to_string()),
        port: body.port,
        stale_threshold_in_seconds: body.stale_threshold_in_seconds,
        harbor: Some(Harbor {
            protocol: body.protocol,
            udp_port: body.udp_port,
            state: body.state,
            ..Harbor::default()
        }),
        ..Announcement::default()
    };
    let expires_in_seconds = time_to_live(&message, shared.discovery.settings.load().rules.stale_after).as_secs();
    shared.discovery.announce(&holder, Action::Register, message)?;
    Ok(Json(Announced { expires_in_seconds }).into_response())
}

async fn unregister(State(shared): State<Arc<Shared>>, id: Id, request: Request) -> Outcome {
    let (whose, presented) = shared.presented_by_query(&request)?;
    let holder = shared.let_in(id, &whose.binding_id, &presented).await?;
    let query: DeleteQuery = query(&request).map_err(|denied| shared.noted(&holder, denied, Sketch::default()))?;
    let message = Announcement {
        host: Some(shared.host(&holder, query.host.as_deref(), query.port)?.to_string()),
        port: query.port,
        harbor: Some(Harbor { protocol: query.protocol, udp_port: query.udp_port, ..Harbor::default() }),
        ..Announcement::default()
    };
    shared.discovery.announce(&holder, Action::Unregister, message)?;
    Ok(Json(serde_json::json!({})).into_response())
}

async fn show(State(shared): State<Arc<Shared>>, id: Id, request: Request) -> Outcome {
    let (whose, presented) = shared.presented_by_query(&request)?;
    let holder = shared.let_in(id, &whose.binding_id, &presented).await?;
    Ok(Json(shared.discovery.shown(&holder.service_instance_id)).into_response())
}

impl Discovery {
    /// The binding; one that is not known is waited for, for [`LEARNT_WITHIN`].
    async fn binding(&self, id: &str) -> Option<Arc<Binding>> {
        let mut directory = self.directory.clone();
        let known = directory.wait_for(|directory| directory.binding(id).is_some());
        let known = timeout(LEARNT_WITHIN, known).await.ok()?.ok()?;
        known.binding(id).cloned()
    }

    /// Judges what a holder announces, applies it and hands it to the other nodes.
    fn announce(&self, holder: &Holder, action: Action, mut message: Announcement) -> Outcome<()> {
        let arrived_at = self.clock.now();
        let harbor = message.harbor.get_or_insert_default();
        harbor.instance_id = Some(holder.service_instance_id.to_string());
        match &holder.app_id {
            Some(app) => message.app = Some(app.to_string()),
            None => {
                harbor.binding_id = Some(holder.binding_id.to_string());
                harbor.timestamp = Some(self.clock.wall().seconds());
                let token = self.directory.borrow().announce_secret.token(&holder.binding_id);
                let proof = token.prove(&statement(&message, action));
                message.harbor.get_or_insert_default().proof = Some(proof);
            }
        }
        match self.decide(&message, action, Source::Http, arrived_at) {
            Ok(_) => {
                if action == Action::Register {
                    message.harbor.get_or_insert_default().since = self.first_announced(holder, &message);
                }
                self.relay(action, &message);
                Ok(())
            }
            Err(refused) => {
                if refused.reason == AnnouncementRefusal::UnknownBackend {
                    // Others may know it.
                    self.relay(action, &message);
                }
                Err(Denied::Refused(refused.reason))
            }
        }
    }

    /// When what the message announces was announced first, so that all nodes have it at the same place.
    fn first_announced(&self, holder: &Holder, message: &Announcement) -> Option<i64> {
        let host = message.host.as_deref().and_then(|host| parse_host(host).ok())?;
        let udp_port = message.harbor().udp_port.or(message.port);
        let is_announced = |state: &BackendState| {
            let Endpoint { transport, address } = state.backend.endpoint;
            let port = if transport == Transport::Tcp { message.port } else { udp_port };
            address.ip() == host && port == Some(address.port())
        };
        let backends = self.backends.list(&holder.service_instance_id);
        backends.iter().filter(|state| is_announced(state)).map(|state| state.since.0).min()
    }

    fn shown(&self, id: &ServiceInstanceId) -> Shown {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let past = |moment: Instant| rfc3339(wall.minus(now.saturating_duration_since(moment)));
        let backend = |state: BackendState| {
            let backend = &state.backend;
            let (health, health_since) = backend.health();
            let aside = backend.aside(now);
            ShownBackend {
                protocol: backend.endpoint.transport.as_str(),
                host: backend.endpoint.address.ip(),
                port: backend.endpoint.address.port(),
                state: match state.state {
                    AnnouncedState::Up => "up",
                    AnnouncedState::Draining => "draining",
                },
                state_since: past(state.state_since),
                since: rfc3339(state.since),
                health: health.as_str(),
                health_since: past(health_since),
                expires_in_seconds: state.expires_at.saturating_duration_since(now).as_secs(),
                open: backend.open(),
                put_aside: aside.is_some(),
                put_aside_since: aside.map(|(since, _)| past(since)),
            }
        };
        let refusal = |refusal: Refusal| ShownRefusal {
            at: rfc3339(refusal.at),
            first_at: rfc3339(refusal.first_at),
            count: refusal.count,
            source: refusal.source.as_str(),
            reason: refusal.reason.as_str(),
            description: describe(refusal.reason),
            named: refusal.of.named,
            app: refusal.of.app,
            host: refusal.of.host,
            port: refusal.of.port,
            udp_port: refusal.of.udp_port,
            detail: refusal.of.detail,
        };
        Shown {
            service_instance_id: id.to_string(),
            backends: self.backends.list(id).into_iter().map(backend).collect(),
            refusals: self.refusals(&Some(id.clone())).into_iter().map(refusal).collect(),
        }
    }
}

impl Shared {
    fn presented(&self, request: &Request) -> Outcome<Presented> {
        let caller = *request.extensions().get::<Caller>().expect("every listener says who calls");
        match bearer(request.headers()) {
            Some(token) => Ok(Presented { token: token.to_owned(), caller }),
            None => Err(self.strange(caller, Denied::Unauthorized)),
        }
    }

    /// Counts a request that is not let in: what it is told, unless its caller makes too many of them.
    fn strange(&self, caller: Caller, denied: Denied) -> Denied {
        if let Err(too_many) = self.limit(&self.callers, caller.network()) {
            return too_many;
        }
        self.keep(None, &denied, Sketch { host: caller.0.ip().to_canonical().to_string(), ..Sketch::default() });
        denied
    }

    /// Counts a request that is let in and says nothing that can be judged.
    fn noted(&self, holder: &Holder, denied: Denied, of: Sketch) -> Denied {
        self.keep(Some(holder.service_instance_id.clone()), &denied, of);
        denied
    }

    fn keep(&self, whose: Option<ServiceInstanceId>, denied: &Denied, of: Sketch) {
        let (reason, detail) = match denied {
            Denied::Unauthorized => (AnnouncementRefusal::BadProof, None),
            Denied::BadRequest(description) => (AnnouncementRefusal::Malformed, Some(shortened(description))),
            Denied::Body(_) => (AnnouncementRefusal::Malformed, None),
            Denied::NotTheCaller(_) => (AnnouncementRefusal::AddressForbidden, None),
            Denied::Refused(reason) => (*reason, None),
            Denied::TooMany(_) => return,
        };
        self.discovery.refused(Source::Http, reason, &[whose], &Sketch { detail, ..of });
    }

    fn limit<K: Eq + Hash>(&self, rate: &Mutex<Rate<K>>, key: K) -> Outcome<()> {
        let mut rate = rate.lock().expect("nothing panics while it holds the rates");
        rate.admit(key, self.discovery.clock.now()).map_err(|wait| {
            self.discovery.tally.refused(Source::Http, AnnouncementRefusal::RateLimited);
            Denied::TooMany(wait)
        })
    }

    fn presented_by_query(&self, request: &Request) -> Outcome<(WhoseToken, Presented)> {
        let presented = self.presented(request)?;
        let whose = query(request).map_err(|denied| self.strange(presented.caller, denied))?;
        Ok((whose, presented))
    }

    /// Lets in who holds the binding's token. What is wrong, the service instance, the binding or the token, is not
    /// told.
    async fn let_in(&self, id: Id, binding_id: &str, presented: &Presented) -> Outcome<Holder> {
        let stranger = || self.strange(presented.caller, Denied::Unauthorized);
        let (Ok(Path(id)), Ok(named)) = (id, BindingId::new(binding_id)) else { return Err(stranger()) };
        // The token is made and compared also for a binding that is not there, so that the time tells nothing.
        if !self.discovery.directory.borrow().announce_secret.has_token(&named, &presented.token) {
            return Err(stranger());
        }
        self.limit(&self.tokens, named)?;
        let binding = self
            .discovery
            .binding(binding_id)
            .await
            .filter(|binding| binding.announce && binding.service_instance_id.as_str() == id)
            .ok_or_else(stranger)?;
        Ok(Holder {
            service_instance_id: binding.service_instance_id.clone(),
            binding_id: binding.id.clone(),
            app_id: binding.app_id.clone(),
            caller: presented.caller.0.ip().to_canonical(),
        })
    }

    /// The host to announce: the caller's own address, or another where that is allowed.
    fn host(&self, holder: &Holder, wanted: Option<&str>, port: Option<u16>) -> Outcome<IpAddr> {
        let Some(wanted) = wanted else { return Ok(holder.caller) };
        let settings = self.discovery.settings.load();
        let is_open = |host: &IpAddr| settings.token_networks.iter().any(|network| network.contains(host));
        let host = parse_host(wanted).map_err(Denied::Refused).and_then(|host| {
            if host == holder.caller || is_open(&host) { Ok(host) } else { Err(Denied::NotTheCaller(holder.caller)) }
        });
        host.map_err(|denied| self.noted(holder, denied, Sketch { host: shortened(wanted), port, ..Sketch::default() }))
    }
}

/// What a request shows before anything in it is believed.
struct Presented {
    token: String,
    caller: Caller,
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn parse_object(bytes: &[u8]) -> Outcome<serde_json::Value> {
    match serde_json::from_slice(bytes) {
        Ok(value @ serde_json::Value::Object(_)) => Ok(value),
        Ok(_) => Err(Denied::BadRequest("The body must be a JSON object.".into())),
        Err(error) => Err(Denied::BadRequest(format!("The body is not JSON: {error}."))),
    }
}

fn fields<T: DeserializeOwned>(body: &serde_json::Value) -> Outcome<T> {
    T::deserialize(body)
        .map_err(|error| Denied::BadRequest(format!("The body is not of the documented form: {error}.")))
}

fn query<T: DeserializeOwned>(request: &Request) -> Outcome<T> {
    let parsed = Query::<T>::try_from_uri(request.uri());
    parsed
        .map(|Query(query)| query)
        .map_err(|error| Denied::BadRequest(format!("The query is not of the documented form: {error}.")))
}

fn rfc3339(timestamp: Timestamp) -> String {
    let moment =
        time::OffsetDateTime::from_unix_timestamp(timestamp.seconds()).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    moment.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}
