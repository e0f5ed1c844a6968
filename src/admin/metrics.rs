//! `/metrics`: the counters of all parts, and the state of the node at the moment of the question.

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};

use super::wire::{Link, Mode, Node, Status};
use crate::telemetry::metrics::Metrics;

/// OpenMetrics, as text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

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

/// Counters and state as one text.
pub fn encode(metrics: &Metrics, status: &Status) -> String {
    let mut text = metrics.encode();
    if text.ends_with(END) {
        text.truncate(text.len() - END.len());
    }
    text::encode(&mut text, &state(status)).expect("writing to a String cannot fail");
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
    let listeners = Family::<StateLabels, Gauge>::default();
    let counts = status.listeners;
    for (state, listener_count) in
        [("bound", counts.bound), ("failed", counts.failed), ("closed", counts.closed), ("pending", counts.pending)]
    {
        listeners.get_or_create(&StateLabels { state }).set(count(listener_count));
    }
    registry.register("listeners", "Service instances by the state of their port", listeners);
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
