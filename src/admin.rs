//! What operators ask: health, metrics, and a status that the command line shows.
//!
//! Most of it only looks: each answer is made of what the other parts publish, at the moment it is asked for. What an
//! operator has done, the use cases of control do; a restart, the process itself.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    handler::Handler,
    http::{Method, StatusCode},
    middleware,
    response::{IntoResponse as _, Response},
    routing::{MethodFilter, MethodRouter, on},
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    backends::Backends,
    control::Control,
    http::{refusal, with_fallbacks},
    model::{
        Clock, NodeId, ServiceInstanceId, Timestamp,
        announcement::Refusal,
        member::Members,
        observed::{Link, Mode, Observations},
        requester::Requester,
    },
    telemetry::metrics::{Metrics, PortCounts},
};

mod config;
mod metrics;
mod nodes;
mod ports;
mod ready;
mod request;
mod restraints;
mod secret;
mod standing;
mod status;
mod token;
pub mod wire;

pub use config::{SettingsError, SettingsRequest};
pub use token::{Token, TokenError};

/// Somebody asks for a hot restart, and hears what has come of it.
#[derive(Debug)]
pub struct RestartRequest {
    /// Who.
    pub by: Requester,
    reply: oneshot::Sender<Result<wire::Restarted, RestartError>>,
}

impl RestartRequest {
    /// Says what has come of it.
    ///
    /// # Errors
    /// When nobody hears it: who has asked is gone.
    pub fn send(
        self,
        outcome: Result<wire::Restarted, RestartError>,
    ) -> Result<(), Result<wire::Restarted, RestartError>> {
        self.reply.send(outcome)
    }
}

/// Why there was no hot restart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestartError {
    /// There is one already.
    #[error("a restart is under way")]
    UnderWay,
    /// The new process has failed, and all is as before.
    #[error("{0}")]
    Failed(String),
}

/// Where answers come from.
pub struct Sources {
    /// This node.
    pub node: NodeId,
    /// When the process started.
    pub started_at: Timestamp,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Whether the process takes part.
    pub mode: watch::Receiver<Mode>,
    /// Pools and desired state.
    pub control: Arc<Control>,
    /// What is bound.
    pub observations: watch::Receiver<Arc<Observations>>,
    /// The nodes of the store.
    pub members: watch::Receiver<Arc<Members>>,
    /// Who serves.
    pub backends: Backends,
    /// Which announcements were refused lately, and of which service instance; none: of none that there is.
    pub refusals: Box<dyn Fn() -> HashMap<Option<ServiceInstanceId>, Vec<Refusal>> + Send + Sync>,
    /// The link to the store.
    pub store: watch::Receiver<Link>,
    /// The link to NATS.
    pub nats: watch::Receiver<Link>,
    /// For how long both may be away before the node is not ready.
    pub cut_off_after: Duration,
    /// Where hot restarts are asked for.
    pub restart: mpsc::Sender<RestartRequest>,
    /// What each key of the configuration is.
    pub configuration: watch::Receiver<Arc<[wire::ConfigurationKey]>>,
    /// Why the live settings that the nodes have are not in force here; none: they are.
    pub settings_behind: watch::Receiver<Option<String>>,
    /// Where changes of live settings are asked for.
    pub change_settings: mpsc::Sender<SettingsRequest>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// How many lines of the log were lost.
    pub log_lines_lost: Box<dyn Fn() -> u64 + Send + Sync>,
    /// What has been counted of each port.
    pub port_counts: Box<dyn Fn() -> HashMap<ServiceInstanceId, PortCounts> + Send + Sync>,
    /// What operators show.
    pub token: Token,
    /// What shows the metrics too, and nothing else.
    pub metrics_token: Option<Token>,
    /// Whether metrics are shown without a token.
    pub metrics_public: bool,
    /// Whether `/metrics` has the series of each service instance too.
    pub metrics_instances: bool,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("node", &self.node).finish_non_exhaustive()
    }
}

/// A method at a path, and what answers there.
struct Route {
    method: Method,
    path: String,
    handler: MethodRouter<Arc<Sources>>,
}

impl Route {
    fn new<H: Handler<T, Arc<Sources>>, T: 'static>(method: Method, path: impl Into<String>, handler: H) -> Self {
        let filter = MethodFilter::try_from(method.clone()).expect("it is a common method");
        Self { method, path: path.into(), handler: on(filter, handler) }
    }
}

/// What anybody may ask, but for metrics that are not public.
fn open() -> Vec<Route> {
    vec![
        Route::new(Method::GET, "/healthz", healthz),
        Route::new(Method::GET, "/readyz", readyz),
        Route::new(Method::GET, "/metrics", metrics::show),
        Route::new(Method::GET, "/metrics/instances", metrics::show_instances),
    ]
}

/// What wants the token.
fn for_operators() -> Vec<Route> {
    use wire::{
        ANNOUNCE_SECRET_PATH, BLOCKED_PATH, CONFIG_PATH, NODES_PATH, RESTART_PATH, STATUS_PATH, SUSPENSIONS_PATH,
    };
    let mut routes = vec![
        Route::new(Method::GET, STATUS_PATH, show_status),
        Route::new(Method::GET, NODES_PATH, nodes::list),
        Route::new(Method::DELETE, format!("{NODES_PATH}/{{node_id}}"), nodes::remove),
        Route::new(Method::POST, format!("{NODES_PATH}/{{node_id}}/drain"), nodes::drain),
        Route::new(Method::POST, format!("{NODES_PATH}/{{node_id}}/resume"), nodes::resume),
        Route::new(Method::GET, CONFIG_PATH, config::list),
        Route::new(Method::PATCH, CONFIG_PATH, config::change),
        Route::new(Method::GET, format!("{CONFIG_PATH}/history"), config::history),
        Route::new(Method::GET, ANNOUNCE_SECRET_PATH, secret::show),
        Route::new(Method::POST, format!("{ANNOUNCE_SECRET_PATH}/rotate"), secret::rotate),
        Route::new(Method::POST, format!("{ANNOUNCE_SECRET_PATH}/finish"), secret::finish),
        Route::new(Method::GET, SUSPENSIONS_PATH, restraints::suspensions),
        Route::new(Method::PUT, format!("{SUSPENSIONS_PATH}/{{suspended_id}}"), restraints::suspend),
        Route::new(Method::DELETE, format!("{SUSPENSIONS_PATH}/{{suspended_id}}"), restraints::resume),
        Route::new(Method::GET, BLOCKED_PATH, restraints::blocked),
        Route::new(Method::PUT, format!("{BLOCKED_PATH}/{{network}}"), restraints::block),
        Route::new(Method::DELETE, format!("{BLOCKED_PATH}/{{network}}"), restraints::unblock),
        Route::new(Method::POST, RESTART_PATH, restart),
    ];
    routes.extend(ports::routes());
    routes
}

/// Every method and path that the API answers.
#[must_use]
pub fn routes() -> Vec<(Method, String)> {
    open().into_iter().chain(for_operators()).map(|route| (route.method, route.path)).collect()
}

/// The operators' API.
pub fn router(sources: Sources) -> Router {
    let sources = Arc::new(sources);
    let routed = |routes: Vec<Route>| {
        routes.into_iter().fold(Router::new(), |router, route| router.route(&route.path, route.handler))
    };
    let gate = middleware::from_fn_with_state(Arc::clone(&sources), request::gate);
    let routes = routed(open()).merge(routed(for_operators()).route_layer(gate));
    with_fallbacks(routes.with_state(sources))
}

/// The process lives: it answers.
async fn healthz() -> Response {
    Json(serde_json::json!({ "status": "ok" })).into_response()
}

async fn readyz(State(sources): State<Arc<Sources>>) -> Response {
    let applied = sources.observations.borrow().applied;
    let away = ready::cut_off(&sources.store.borrow(), &sources.nats.borrow(), sources.clock.wall());
    let cut_off = away.is_some_and(|away| away >= sources.cut_off_after);
    let readiness = ready::readiness(*sources.mode.borrow(), applied, cut_off);
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness)).into_response()
}

async fn show_status(State(sources): State<Arc<Sources>>) -> Response {
    Json(status::status(&sources).await).into_response()
}

/// Answers when another process serves, or has failed to.
async fn restart(State(sources): State<Arc<Sources>>, by: request::Operator) -> Response {
    let (reply, answer) = oneshot::channel();
    let outcome = match sources.restart.try_send(RestartRequest { by: by.into(), reply }) {
        Ok(()) => answer.await.unwrap_or_else(|_| Err(RestartError::Failed("this process is about to end".into()))),
        Err(mpsc::error::TrySendError::Full(_)) => Err(RestartError::UnderWay),
        Err(mpsc::error::TrySendError::Closed(_)) => Err(RestartError::Failed("this process is about to end".into())),
    };
    match outcome {
        Ok(restarted) => Json(restarted).into_response(),
        Err(error @ RestartError::UnderWay) => refusal(StatusCode::CONFLICT, None, error.to_string()),
        Err(error @ RestartError::Failed(_)) => refusal(StatusCode::INTERNAL_SERVER_ERROR, None, error.to_string()),
    }
}
