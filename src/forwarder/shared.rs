//! What an engine's threads share: limits, the way to backends, time, and where they report to.

use std::sync::{Arc, Mutex, MutexGuard, Weak};

use arc_swap::ArcSwap;

use super::{admission::Admission, engine::OnClose, listener::Listener, sockets::Connector};
use crate::{
    model::{Clock, ServiceInstanceId, desired::ForwarderLimits},
    telemetry::metrics::ForwarderMetrics,
};

/// Least room for more listeners that is made at once.
const MIN_ROOM: usize = 64;

/// What all threads of the forwarder share. What changes is swapped whole.
pub(super) struct Shared {
    pub admission: Arc<Admission>,
    pub limits: ArcSwap<ForwarderLimits>,
    pub connector: ArcSwap<Connector>,
    pub clock: Arc<dyn Clock>,
    pub metrics: Arc<ForwarderMetrics>,
    /// What is served, for those who ask what has been counted of it.
    pub listeners: Roll,
    pub closed: Box<OnClose>,
    /// Hears of UDP ports that a thread can no longer keep up with.
    pub outgrown: Box<dyn Fn(&ServiceInstanceId) + Send + Sync>,
}

/// Listeners, for those who ask what has been counted of them. Who makes and drops thousands pays next to nothing for it.
#[derive(Default)]
pub(super) struct Roll(Mutex<Vec<Weak<Listener>>>);

impl Roll {
    /// Puts one in; it is out once nobody else has it.
    pub(super) fn enter(&self, listener: &Arc<Listener>) {
        let mut listeners = self.listeners();
        if listeners.len() == listeners.capacity() {
            listeners.retain(|listener| listener.strong_count() > 0);
            // So much room that the next look at all is far away.
            let live = listeners.len();
            listeners.reserve(live.max(MIN_ROOM));
        }
        listeners.push(Arc::downgrade(listener));
    }

    /// Those that are there, the youngest last.
    pub(super) fn all(&self) -> Vec<Arc<Listener>> {
        self.listeners().iter().filter_map(Weak::upgrade).collect()
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<Weak<Listener>>> {
        self.0.lock().expect("nothing panics while it holds the listeners")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backends::Backends,
        model::{PoolName, Protocol, desired::ListenerSpec, parameters::Settings},
    };

    #[test]
    fn a_roll_has_who_is_there_and_does_not_grow_by_those_who_have_gone() {
        let (roll, backends) = (Roll::default(), Backends::new(1));
        let enter = |port: u16| {
            let id = ServiceInstanceId::new(format!("id-{port}")).unwrap();
            let slot = backends.slot(&id);
            let spec = ListenerSpec {
                service_instance_id: id,
                version: 1,
                pool: PoolName::new("default").unwrap(),
                port,
                protocol: Protocol::Tcp,
                settings: Settings::default(),
            };
            let listener = Arc::new(Listener::new(Arc::new(spec), slot, 1));
            roll.enter(&listener);
            listener
        };
        let stay = (0..100).map(enter).collect::<Vec<_>>();
        (1000..9000).for_each(|port| drop(enter(port)));
        let there = roll.all().iter().map(|listener| listener.port).collect::<Vec<_>>();
        assert_eq!(there, (0..100).collect::<Vec<_>>());
        assert!(roll.listeners().capacity() <= 4 * stay.len(), "{}", roll.listeners().capacity());
    }
}
