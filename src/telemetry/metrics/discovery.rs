//! Metrics of the discovery.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// Handles of the discovery. Labels are words of closed enums; who counts often keeps the handles it got.
#[derive(Debug)]
pub struct DiscoveryMetrics {
    announcements: Family<AnnouncementLabels, Counter>,
    refusals: Family<RefusalLabels, Counter>,
    to_set: Histogram,
    backends: Family<BackendLabels, Gauge>,
    /// Backends removed because the platform gave their address to another app, or took it from theirs.
    pub evictions: Counter,
    /// Addresses on Diego cells of which it is known whose they are.
    pub attributed_addresses: Gauge,
    /// Addresses on Diego cells that were too many to be known.
    pub attributions_dropped: Counter,
    /// 1 while connected to NATS.
    pub nats_connected: Gauge,
    /// Connections to NATS that were made.
    pub nats_connects: Counter,
    /// Times that messages were dropped because they came faster than they were read.
    pub nats_slow_consumer: Counter,
    /// HTTP announcements that could not be handed to NATS.
    pub relays_dropped: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnnouncementLabels {
    source: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    source: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendLabels {
    transport: &'static str,
}

impl DiscoveryMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            announcements: Family::default(),
            refusals: Family::default(),
            // 2 µs to 131 ms: there is nothing to wait for but the table's lock.
            to_set: Histogram::new(exponential_buckets(0.000_002, 2.0, 17)),
            backends: Family::default(),
            evictions: Counter::default(),
            attributed_addresses: Gauge::default(),
            attributions_dropped: Counter::default(),
            nats_connected: Gauge::default(),
            nats_connects: Counter::default(),
            nats_slow_consumer: Counter::default(),
            relays_dropped: Counter::default(),
        };
        registry.register("announcements", "Announcements received", metrics.announcements.clone());
        registry.register("announcement_refusals", "Announcements refused", metrics.refusals.clone());
        registry.register_with_unit(
            "announcement_to_set",
            "Time from the arrival of an announcement that changes something until new flows go by it",
            Unit::Seconds,
            metrics.to_set.clone(),
        );
        registry.register("backends", "Live backends", metrics.backends.clone());
        registry.register(
            "backend_evictions",
            "Times that the platform gave the address of backends to another app, or took it from theirs",
            metrics.evictions.clone(),
        );
        registry.register(
            "attributed_addresses",
            "Addresses on Diego cells of which it is known whose they are",
            metrics.attributed_addresses.clone(),
        );
        registry.register(
            "attributions_dropped",
            "Addresses on Diego cells that were too many to be known",
            metrics.attributions_dropped.clone(),
        );
        registry.register("nats_connected", "Whether NATS is connected", metrics.nats_connected.clone());
        registry.register("nats_connects", "Connections to NATS that were made", metrics.nats_connects.clone());
        registry.register(
            "nats_slow_consumer",
            "Times that messages were dropped because they came faster than they were read",
            metrics.nats_slow_consumer.clone(),
        );
        registry.register(
            "announcement_relays_dropped",
            "HTTP announcements that could not be handed to NATS",
            metrics.relays_dropped.clone(),
        );
        metrics
    }

    /// The counter of announcements from `source` with that `outcome`.
    #[must_use]
    pub fn announcements(&self, source: &'static str, outcome: &'static str) -> Counter {
        self.announcements.get_or_create(&AnnouncementLabels { source, outcome }).clone()
    }

    /// The counter of refusals of announcements from `source`.
    #[must_use]
    pub fn refusals(&self, source: &'static str, reason: &'static str) -> Counter {
        self.refusals.get_or_create(&RefusalLabels { source, reason }).clone()
    }

    /// An announcement has changed something so long after it arrived.
    pub fn announced_to_set(&self, took: Duration) {
        self.to_set.observe(took.as_secs_f64());
    }

    /// Sets how many backends there are.
    pub fn set_backends(&self, transport: &'static str, count: usize) {
        self.backends.get_or_create(&BackendLabels { transport }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
