//! Metrics of the forwarder.

use prometheus_client::registry::Registry;

/// Handles of the forwarder.
#[derive(Debug, Default)]
pub struct ForwarderMetrics {}

impl ForwarderMetrics {
    pub(super) fn register(_registry: &mut Registry) -> Self {
        Self::default()
    }
}
