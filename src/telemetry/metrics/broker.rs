//! Metrics of the broker.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Upper bounds of the duration buckets, in seconds: from an answer out of memory to one that waited for its turn.
const DURATION_BUCKETS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5, 10.0, 40.0];

/// Handles of the broker.
#[derive(Debug)]
pub struct BrokerMetrics {
    requests: Family<RequestLabels, Counter>,
    durations: Family<OperationLabels, Histogram, fn() -> Histogram>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    operation: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    operation: &'static str,
}

impl BrokerMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let requests = Family::default();
        registry.register("broker_requests", "Answers of the Open Service Broker API", requests.clone());
        let durations =
            Family::<_, _, fn() -> _>::new_with_constructor(|| Histogram::new(DURATION_BUCKETS.iter().copied()));
        registry.register_with_unit(
            "broker_request_duration",
            "Time from a request of the Open Service Broker API to its answer",
            Unit::Seconds,
            durations.clone(),
        );
        Self { requests, durations }
    }

    /// Counts an answer. `operation` is a word of a closed list.
    pub fn answered(&self, operation: &'static str, status: u16, took: Duration) {
        self.requests.get_or_create(&RequestLabels { operation, status }).inc();
        self.durations.get_or_create(&OperationLabels { operation }).observe(took.as_secs_f64());
    }
}
