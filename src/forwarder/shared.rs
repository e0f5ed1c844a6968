//! What an engine's threads share: limits, the way to backends, time, and where they report to.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use arc_swap::ArcSwap;

use super::{admission::Admission, engine::OnClose, listener::Listener, sockets::Connector};
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
    /// What is served, for those who ask what has been counted of it.
    pub listeners: Mutex<HashMap<ServiceInstanceId, Arc<Listener>>>,
    pub closed: Box<OnClose>,
    /// Hears of UDP ports that a thread can no longer keep up with.
    pub outgrown: Box<dyn Fn(&ServiceInstanceId) + Send + Sync>,
}

impl Shared {
    pub(super) fn listeners(&self) -> MutexGuard<'_, HashMap<ServiceInstanceId, Arc<Listener>>> {
        self.listeners.lock().expect("nothing panics while it holds the listeners")
    }
}
