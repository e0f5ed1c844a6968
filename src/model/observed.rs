//! Observed state: what a node has bound, and how the parts around it fare.

use std::sync::Arc;

use rpds::{HashTrieMapSync, HashTrieSetSync};

use super::{Revision, ServiceInstanceId, Timestamp};

/// What this node's forwarder has applied.
#[derive(Debug, Clone, Default)]
pub struct Observations {
    /// The last revision that was applied whole: every listener of it bound, or failed with its reason.
    /// `None` before the first.
    pub applied: Option<Revision>,
    listeners: HashTrieMapSync<ServiceInstanceId, ListenerObservation>,
    /// Those that have failed, kept apart: they are few, and every report tells of them.
    failed: HashTrieSetSync<ServiceInstanceId>,
}

impl Observations {
    /// What has become of a listener; none while there is none.
    #[must_use]
    pub fn get(&self, id: &ServiceInstanceId) -> Option<&ListenerObservation> {
        self.listeners.get(id)
    }

    /// All listeners, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&ServiceInstanceId, &ListenerObservation)> {
        self.listeners.iter()
    }

    /// Those that have failed, in no order. Costs nothing for the others.
    pub fn failed(&self) -> impl Iterator<Item = (&ServiceInstanceId, &ListenerObservation)> {
        self.failed.iter().filter_map(|id| self.listeners.get_key_value(id))
    }

    /// Takes over what has become of a listener.
    pub fn insert(&mut self, id: ServiceInstanceId, seen: ListenerObservation) {
        match seen.state {
            ListenerState::Failed { .. } => self.failed.insert_mut(id.clone()),
            ListenerState::Bound | ListenerState::Closed => _ = self.failed.remove_mut(&id),
        }
        self.listeners.insert_mut(id, seen);
    }

    /// Forgets a listener.
    pub fn remove(&mut self, id: &ServiceInstanceId) {
        self.listeners.remove_mut(id);
        self.failed.remove_mut(id);
    }
}

/// What has become of one [`super::desired::ListenerSpec`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerObservation {
    /// Its [`super::desired::ListenerSpec::version`].
    pub version: u64,
    /// Bound or not.
    pub state: ListenerState,
    /// Since when.
    pub since: Timestamp,
}

/// Whether a listener serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenerState {
    /// All its sockets are bound.
    Bound,
    /// It takes nothing new, as the node drains; open flows go on.
    Closed,
    /// At least one could not be bound; retried until it can.
    Failed {
        /// Whether somebody else holds the port, rather than a fault of this machine (no descriptors, no permission).
        held: bool,
        /// A sentence for people, with the holder where it is known.
        reason: Arc<str>,
    },
}

/// Whether the process takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Not all ports are bound or failed yet.
    #[default]
    Starting,
    /// Forwarding, and ready.
    Serving,
    /// Not ready, then closed, finishing what is open: on its way out, or until it is told to go on.
    Draining,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Starting, Self::Serving, Self::Draining];

    /// The word that is stored and shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
        }
    }

    /// The mode of a word.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == word)
    }
}

/// A link to a part outside this process: NATS or the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// Not configured.
    Absent,
    /// Connected since then.
    Up(Timestamp),
    /// Away since then, for this reason.
    Down(Timestamp, Arc<str>),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn state() -> impl Strategy<Value = Option<ListenerState>> {
        let failed = ListenerState::Failed { held: true, reason: "held".into() };
        let some = prop::sample::select(vec![ListenerState::Bound, ListenerState::Closed, failed]);
        prop::option::weighted(0.8, some)
    }

    proptest! {
        #[test]
        fn those_that_have_failed_are_found_without_looking_at_the_others(
            steps in prop::collection::vec((0..6_u8, state()), 0..60)
        ) {
            let mut observed = Observations::default();
            for (number, state) in steps {
                let id = ServiceInstanceId::new(number.to_string()).unwrap();
                match state {
                    Some(state) => observed.insert(id, ListenerObservation { version: 1, state, since: Timestamp(0) }),
                    None => observed.remove(&id),
                }
                let mut expected = observed.iter().map(|(id, seen)| (id.clone(), seen.clone())).collect::<Vec<_>>();
                expected.retain(|(_, seen)| matches!(seen.state, ListenerState::Failed { .. }));
                let mut found = observed.failed().map(|(id, seen)| (id.clone(), seen.clone())).collect::<Vec<_>>();
                expected.sort_by(|a, b| a.0.cmp(&b.0));
                found.sort_by(|a, b| a.0.cmp(&b.0));
                prop_assert_eq!(found, expected);
            }
        }
    }
}
