//! What an engine's threads share: limits, the way to backends, time, and where they report to.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::{admission::Admission, engine::OnClose, sockets::Connector};
use crate::{
    model::{Clock, ServiceInstanceId, desired::ForwarderLimits},
    telemetry::metrics::ForwarderMetrics,
};

/// What all threads of the forwarder share. What changes is swapped whole.
pub(super) struct Shared {
    pub admission: Arc<Admission>,
    pub limits: ArcSwap<ForwarderLimits>,
    pub connector: ArcSwap<Connector>,
    pub clock: Arc<dyn Clock>,
    pub metrics: Arc<ForwarderMetrics>,
    pub closed: Box<OnClose>,
    /// Hears of UDP ports that a thread can no longer keep up with.
    pub outgrown: Box<dyn Fn(&ServiceInstanceId) + Send + Sync>,
}
