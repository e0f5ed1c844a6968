//! Metrics of the checks of backends.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Handles of the checks.
#[derive(Debug)]
pub struct HealthMetrics {
    worked: Counter,
    failed: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    outcome: &'static str,
}

impl HealthMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let checks = Family::<Labels, Counter>::default();
        registry.register("health_checks", "Checks of backends", checks.clone());
        let of = |outcome| checks.get_or_create(&Labels { outcome }).clone();
        Self { worked: of("worked"), failed: of("failed") }
    }

    /// Counts a check.
    pub fn checked(&self, worked: bool) {
        if worked {
            self.worked.inc()
        } else {
            self.failed.inc()
        };
    }
}
