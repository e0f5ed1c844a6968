//! Waiting, for a bounded time, until the forwarder has done what was published.

use std::time::Duration;

use super::Control;
use crate::model::{ServiceInstanceId, observed::ListenerState};

/// How long a port may take to open or to close. Binding takes milliseconds; this is for a machine in trouble.
pub(super) const LISTENER_WAIT: Duration = Duration::from_secs(10);

/// What has become of a listener.
#[derive(Debug)]
pub(super) enum Seen {
    /// It serves.
    Listening,
    /// Somebody else has the port.
    Held(String),
    /// It cannot be bound, for another reason.
    Failed(String),
}

impl Control {
    /// What has become of the listener's `version`, or of a later one.
    pub(super) async fn listener(&self, id: &ServiceInstanceId, version: u64) -> Seen {
        let mut observations = self.observations.clone();
        let told = observations.wait_for(|all| all.listeners.get(id).is_some_and(|seen| seen.version >= version));
        match tokio::time::timeout(LISTENER_WAIT, told).await {
            Ok(Ok(all)) => match all.listeners.get(id).map(|seen| &seen.state) {
                Some(ListenerState::Bound) => Seen::Listening,
                Some(ListenerState::Failed { held: true, reason }) => Seen::Held(reason.to_string()),
                Some(ListenerState::Failed { held: false, reason }) => Seen::Failed(reason.to_string()),
                None => unreachable!("it was there when the wait ended, and it is still locked"),
            },
            Ok(Err(_)) => Seen::Failed("the forwarder has stopped".into()),
            Err(_) => Seen::Failed(format!("the forwarder did not open it within {LISTENER_WAIT:?}")),
        }
    }

    /// Waits until the forwarder has closed the listener. Returns whether it did.
    pub(super) async fn listener_gone(&self, id: &ServiceInstanceId) -> bool {
        let mut observations = self.observations.clone();
        let gone = observations.wait_for(|all| !all.listeners.contains_key(id));
        match tokio::time::timeout(LISTENER_WAIT, gone).await {
            Ok(seen) => seen.is_ok(),
            Err(_) => {
                tracing::warn!(service_instance = %id, "the forwarder did not close its port within {LISTENER_WAIT:?}");
                false
            }
        }
    }
}
