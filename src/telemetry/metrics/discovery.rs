//! Metrics of the discovery.

use prometheus_client::registry::Registry;

/// Handles of the discovery.
#[derive(Debug, Default)]
pub struct DiscoveryMetrics {}

impl DiscoveryMetrics {
    pub(super) fn register(_registry: &mut Registry) -> Self {
        Self::default()
    }
}
