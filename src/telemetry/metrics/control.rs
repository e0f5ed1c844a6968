//! Metrics of the use cases.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// Handles of the use cases.
#[derive(Debug)]
pub struct ControlMetrics {
    opened: Histogram,
    closed: Histogram,
    /// Provisions whose port could not be opened on every node, and which were taken back.
    pub provisions_undone: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ChangeLabel {
    change: &'static str,
}

impl ControlMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        // 0.125 ms to 16 s, which is longer than a use case waits for a port.
        let buckets = || Histogram::new(exponential_buckets(0.000_125, 2.0, 18));
        let family = Family::<_, _, fn() -> _>::new_with_constructor(buckets);
        registry.register_with_unit(
            "commit_to_listening",
            "Time from the commit of a change until the port listens, or no longer does",
            Unit::Seconds,
            family.clone(),
        );
        let provisions_undone = Counter::default();
        registry.register(
            "provisions_undone",
            "Provisions that were taken back, as no port could be opened on all nodes",
            provisions_undone.clone(),
        );
        let of = |change| family.get_or_create(&ChangeLabel { change }).clone();
        Self { opened: of("opened"), closed: of("closed"), provisions_undone }
    }

    /// A port listens so long after the commit that gave it to a service instance.
    pub fn opened(&self, took: Duration) {
        self.opened.observe(took.as_secs_f64());
    }

    /// A port no longer listens so long after the commit that deleted its service instance.
    pub fn closed(&self, took: Duration) {
        self.closed.observe(took.as_secs_f64());
    }
}
