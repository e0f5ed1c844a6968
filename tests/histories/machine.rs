//! The machine of a node: who else has ports there, and whether anything can be bound. What forwards there binds no
//! socket, but says of each listener what a forwarder would.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use harbor::model::{
    Clock, ServiceInstanceId, Transport,
    desired::{DesiredState, ListenerSpec},
    observed::{ListenerObservation, ListenerState, Observations},
};
use tokio::sync::watch;

use super::time::pass;

/// It outlives the processes of its node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// What others have.
    pub strangers: BTreeSet<(u16, Transport)>,
    /// Whether nothing can be bound.
    pub ails: bool,
}

/// What a process has bound, by what can be had once.
pub type Bound = BTreeMap<(u16, Transport), ServiceInstanceId>;

/// The data plane of one process.
pub struct Opener {
    pub machine: watch::Receiver<Machine>,
    /// Whether it listens nowhere, as its node drains.
    pub closed: watch::Receiver<bool>,
    pub desired: watch::Receiver<Arc<DesiredState>>,
    pub observe: watch::Sender<Arc<Observations>>,
    pub bound: Arc<Mutex<Bound>>,
    pub clock: Arc<dyn Clock>,
    pub random: fastrand::Rng,
}

impl Opener {
    /// Carries out what is desired, for ever.
    pub async fn run(mut self) {
        loop {
            let state = Arc::clone(&self.desired.borrow_and_update());
            let machine = self.machine.borrow_and_update().clone();
            let closed = *self.closed.borrow_and_update();
            // Some bursts of changes take a while.
            let most = if self.random.u8(..32) == 0 { 400 } else { 4 };
            pass(Duration::from_millis(self.random.u64(..most))).await;
            let observations = self.reconcile(&state, &machine, closed);
            self.observe.send_replace(Arc::new(observations));
            tokio::select! {
                biased;
                Ok(()) = self.desired.changed() => {}
                Ok(()) = self.machine.changed() => {}
                Ok(()) = self.closed.changed() => {}
                else => return,
            }
        }
    }

    fn reconcile(&self, state: &DesiredState, machine: &Machine, closed: bool) -> Observations {
        let mut bound = self.bound.lock().unwrap();
        bound.retain(|(port, transport), id| {
            let fits = |spec: &Arc<ListenerSpec>| spec.port == *port && spec.protocol.has(*transport);
            !closed && state.listeners.get(id).is_some_and(fits)
        });
        let before = Arc::clone(&self.observe.borrow());
        let mut observations = Observations::default();
        observations.applied = Some(state.revision);
        let specs = state.listeners.iter().collect::<BTreeMap<_, _>>();
        for (id, spec) in specs {
            let state = if closed { ListenerState::Closed } else { open(&mut bound, spec, machine) };
            let since = before.get(id).filter(|seen| seen.state == state).map(|seen| seen.since);
            let since = since.unwrap_or_else(|| self.clock.wall());
            observations.insert(id.clone(), ListenerObservation { version: spec.version, state, since });
        }
        observations
    }
}

/// Binds what a listener lacks.
fn open(bound: &mut Bound, spec: &ListenerSpec, machine: &Machine) -> ListenerState {
    let failed = |held, reason: &str| ListenerState::Failed { held, reason: reason.into() };
    for transport in spec.protocol.transports() {
        let place = (spec.port, *transport);
        match bound.get(&place) {
            Some(holder) if *holder == spec.service_instance_id => {}
            Some(_) => return failed(true, "the port is held by this very process"),
            None if machine.strangers.contains(&place) => return failed(true, "the port is held by a stranger"),
            None if machine.ails => return failed(false, "too many open files"),
            None => drop(bound.insert(place, spec.service_instance_id.clone())),
        }
    }
    ListenerState::Bound
}
