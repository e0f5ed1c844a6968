//! Observed state: what a node has bound, and how the parts around it fare.

use std::sync::Arc;

use rpds::HashTrieMapSync;

use super::{Revision, ServiceInstanceId, Timestamp};

/// What this node's forwarder has applied.
#[derive(Debug, Clone, Default)]
pub struct Observations {
    /// The last revision that was applied whole: every listener of it bound, or failed with its reason.
    /// `None` before the first.
    pub applied: Option<Revision>,
    /// State of each listener.
    pub listeners: HashTrieMapSync<ServiceInstanceId, ListenerObservation>,
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
