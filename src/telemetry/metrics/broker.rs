//! Metrics of the broker.

use prometheus_client::registry::Registry;

/// Handles of the broker.
#[derive(Debug, Default)]
pub struct BrokerMetrics {}

impl BrokerMetrics {
    pub(super) fn register(_registry: &mut Registry) -> Self {
        Self::default()
    }
}
