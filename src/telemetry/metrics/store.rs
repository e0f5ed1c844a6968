//! Metrics of the store.

use prometheus_client::{
    metrics::{
        counter::Counter,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// Handles of the store.
#[derive(Debug)]
pub struct StoreMetrics {
    /// How long commits take, in seconds; its count is the number of commits.
    pub commit_duration: Histogram,
    /// Calls that the store could not answer.
    pub faults: Counter,
}

impl StoreMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        // 0.25 ms to 4 s: a commit waits for the disk once.
        let commit_duration = Histogram::new(exponential_buckets(0.000_25, 2.0, 15));
        let faults = Counter::default();
        registry.register_with_unit(
            "store_commit_duration",
            "How long commits to the store take",
            Unit::Seconds,
            commit_duration.clone(),
        );
        registry.register("store_faults", "Calls that the store could not answer", faults.clone());
        Self { commit_duration, faults }
    }
}
