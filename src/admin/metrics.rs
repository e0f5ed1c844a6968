//! `/metrics`: the counters of all parts, and the state of the node at the moment of the question.

use std::{convert::Infallible, iter, sync::Arc};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};
use tokio::task::spawn_blocking;

use super::{
    Sources,
    request::refused,
    status,
    wire::{Link, Mode, Node, Status},
};
use crate::model::Timestamp;

mod instances;

/// OpenMetrics, as text.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What ends a text; it may stand only once.
const END: &str = "# EOF\n";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    pool: String,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

/// `GET /metrics`
pub(super) async fn show(State(sources): State<Arc<Sources>>, headers: HeaderMap) -> Response {
    if let Some(refused) = metrics_refused(&sources, &headers) {
        return refused;
    }
    let status = status::summary(&sources).await;
    // What the kernel says of a process may take it milliseconds.
    let asked = Arc::clone(&sources);
    let text = spawn_blocking(move || encode(&asked, &status)).await.expect("writing does not panic");
    let instances = sources.metrics_instances.then(|| instances::pieces(&sources));
    answer(iter::once(text).chain(instances.into_iter().flatten()))
}

/// `GET /metrics/instances`
pub(super) async fn show_instances(State(sources): State<Arc<Sources>>, headers: HeaderMap) -> Response {
    match metrics_refused(&sources, &headers) {
        None => answer(instances::pieces(&sources)),
        Some(refused) => refused,
    }
}

fn metrics_refused(sources: &Sources, headers: &HeaderMap) -> Option<Response> {
    if sources.metrics_public {
        return None;
    }
    refused(headers, iter::once(&sources.token).chain(&sources.metrics_token))
}

/// Each piece is made when the one who asks has taken those before.
fn answer(pieces: impl Iterator<Item = String> + Send + 'static) -> Response {
    let pieces = pieces.chain(iter::once(END.to_owned())).map(Ok::<_, Infallible>);
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], Body::from_stream(stream::iter(pieces))).into_response()
}

/// Counters and state as one text, without its last line.
fn encode(sources: &Sources, status: &Status) -> String {
    let mut text = sources.metrics.encode();
    for registry in [&state(status), &log(sources), &process(sources.started_at)] {
        text::encode_registry(&mut text, registry).expect("writing to a String cannot fail");
    }
    text
}

/// Gauges of a moment: made for one answer, they cannot be out of date.
fn state(status: &Status) -> Registry {
    let mut registry = Registry::with_prefix("harbor");
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    registry.register(
        "build",
        "Version of this process, and its node",
        Info::new([("version", status.version.clone()), ("node", status.node.clone())]),
    );
    let serving = Gauge::<i64>::default();
    serving.set(i64::from(status.mode == Mode::Serving));
    registry.register("serving", "1 while the node serves, 0 while it starts or drains", serving);
    let degraded = Gauge::<i64>::default();
    degraded.set(count(status.degraded.len()));
    registry.register("degraded_reasons", "Things that are wrong, as `harbor status` tells them", degraded);
    let store = Gauge::<i64>::default();
    store.set(i64::from(!matches!(status.store, Link::Down { .. })));
    registry.register("store_up", "1 while the store answers", store);
    let nats = Gauge::<i64>::default();
    nats.set(i64::from(!matches!(status.nats, Link::Absent)));
    registry.register("nats_configured", "1 where there are NATS servers to connect to", nats);
    let listeners = Family::<StateLabels, Gauge>::default();
    let counts = status.listeners;
    for (state, listener_count) in [
        ("bound", counts.bound),
        ("failed", counts.failed),
        ("closed", counts.closed),
        ("suspended", counts.suspended),
        ("pending", counts.pending),
    ] {
        listeners.get_or_create(&StateLabels { state }).set(count(listener_count));
    }
    registry.register("listeners", "Service instances by the state of their port", listeners);
    let blocked = Gauge::<i64>::default();
    blocked.set(count(status.networks_blocked));
    registry.register(
        "networks_blocked",
        "Networks whose clients are refused, as an operator has blocked them",
        blocked,
    );
    let (backends, longest) = (Family::<StateLabels, Gauge>::default(), Family::<StateLabels, Gauge>::default());
    let states = status.backends.states;
    for (state, is_in) in
        [("up", states.up), ("aside", states.aside), ("down", states.down), ("draining", states.draining)]
    {
        backends.get_or_create(&StateLabels { state }).set(count(is_in.count));
        longest.get_or_create(&StateLabels { state }).set(i64::try_from(is_in.longest_seconds).unwrap_or(i64::MAX));
    }
    registry.register("backend_states", "Backends by their state", backends);
    registry.register_with_unit(
        "backend_states_longest",
        "How long the backend that has been in a state longest has been in it",
        Unit::Seconds,
        longest,
    );
    let nodes = Family::<StateLabels, Gauge>::default();
    for state in Node::STATES {
        let of_state = status.nodes.iter().filter(|node| node.state() == state);
        nodes.get_or_create(&StateLabels { state }).set(count(of_state.count()));
    }
    registry.register("nodes", "Nodes of the store by state, as this one knows them", nodes);
    let ports = Family::<PoolLabels, Gauge>::default();
    for pool in &status.pools {
        for (state, port_count) in [
            ("free", pool.free),
            ("allocated", pool.allocated),
            ("quarantined", pool.quarantined),
            ("reserved", pool.reserved),
            ("in_conflict", pool.in_conflict),
        ] {
            ports.get_or_create(&PoolLabels { pool: pool.name.clone(), state }).set(count(port_count));
        }
    }
    registry.register("pool_ports", "Ports of a pool by state", ports);
    registry
}

fn log(sources: &Sources) -> Registry {
    let mut registry = Registry::with_prefix("harbor");
    let lost = Counter::<u64>::default();
    lost.inc_by((sources.log_lines_lost)());
    registry.register(
        "log_lines_lost",
        "Lines of the log that were lost: they came faster than they were written, or could not be",
        lost,
    );
    registry
}

/// What else every process has, by the name that it has everywhere.
fn process(started_at: Timestamp) -> Registry {
    let mut registry = Registry::with_prefix("process");
    let start = Gauge::<i64>::default();
    start.set(started_at.seconds());
    registry.register_with_unit("start_time", "When this process started, since 1970", Unit::Seconds, start);
    registry
}
