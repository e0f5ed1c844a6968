//! Waiting, for a bounded time, until the forwarder has done what was published.

use std::time::Duration;

use super::Control;
use crate::model::{
    PoolName, Revision, ServiceInstanceId,
    member::{Members, Opening},
    observed::ListenerState,
    service_instance::ServiceInstance,
};

/// How long a port may take to open or to close. Binding takes milliseconds; this is for a machine in trouble.
pub(super) const LISTENER_WAIT: Duration = Duration::from_secs(10);

/// How long the other nodes may take. One that dies meanwhile is found out sooner.
pub const NODES_WAIT: Duration = Duration::from_secs(5);

/// What has become of a listener.
#[derive(Debug)]
pub(super) enum Seen {
    /// It serves.
    Listening,
    /// The node drains, and opens nothing.
    Closed,
    /// Somebody else has the port.
    Held(String),
    /// It cannot be bound, for another reason.
    Failed(String),
}

impl Control {
    /// What has become of the port of `instance`, which is published, on every live node of its pool. One that does not
    /// say in time is named in the log, and waited for no longer.
    pub(super) async fn opening(&self, instance: &ServiceInstance) -> Seen {
        let here = self.opening_here(&instance.id).await;
        match here {
            Some(Seen::Listening) | None => self.elsewhere(instance, here.is_some()).await,
            Some(failed) => failed,
        }
    }

    /// The same of this node; `None` when it does not serve the pool, or does not take part.
    pub(super) async fn opening_here(&self, id: &ServiceInstanceId) -> Option<Seen> {
        let version = self.snapshot.version(id).await?;
        match self.listener(id, version).await {
            Seen::Closed => None,
            seen => Some(seen),
        }
    }

    /// What has become of it on the other nodes.
    async fn elsewhere(&self, instance: &ServiceInstance, is_open_here: bool) -> Seen {
        let ServiceInstance { id, pool, port, revision, .. } = instance;
        let mut latest = Opening::Open(0);
        self.until_told(|members| {
            latest = members.opening(pool, id, *port, *revision, &self.node);
            !matches!(latest, Opening::Waiting(_))
        })
        .await;
        match latest {
            Opening::Failed(node, failure) if failure.held => Seen::Held(format!("on {node}: {}", failure.reason)),
            Opening::Failed(node, failure) => Seen::Failed(format!("on {node}: {}", failure.reason)),
            Opening::Open(0) if !is_open_here => Seen::Failed(format!("no live node serves the pool {pool}")),
            Opening::Open(_) => Seen::Listening,
            Opening::Waiting(nodes) => {
                let lagging = nodes.iter().map(|node| node.as_str()).collect::<Vec<_>>().join(", ");
                tracing::warn!(
                    service_instance = %id, %pool, port, lagging,
                    "these nodes have not said within {NODES_WAIT:?} that they listen: going on without them"
                );
                if is_open_here { Seen::Listening } else { Seen::Failed(format!("{lagging} did not open it in time")) }
            }
        }
    }

    /// Waits, for a bounded time, until the other nodes of a pool have applied a revision.
    pub(super) async fn applied_elsewhere(&self, pool: &PoolName, id: &ServiceInstanceId, revision: Revision) {
        let applied =
            |members: &Members| !matches!(members.opening(pool, id, 0, revision, &self.node), Opening::Waiting(_));
        self.until_told(applied).await;
    }

    /// Waits until the nodes have told it: for a bounded time, and no longer when the store goes away meanwhile, as nobody
    /// can tell anything then.
    async fn until_told(&self, mut is_told: impl FnMut(&Members) -> bool) {
        let mut members = self.members.clone();
        let mut was_heard = false;
        let told = members.wait_for(|members| {
            was_heard |= !members.unheard;
            is_told(members) || (was_heard && members.unheard)
        });
        let _ = tokio::time::timeout(NODES_WAIT, told).await;
    }

    /// What has become of the listener's `version`, or of a later one.
    pub(super) async fn listener(&self, id: &ServiceInstanceId, version: u64) -> Seen {
        let mut observations = self.observations.clone();
        let told = observations.wait_for(|all| all.listeners.get(id).is_some_and(|seen| seen.version >= version));
        match tokio::time::timeout(LISTENER_WAIT, told).await {
            Ok(Ok(all)) => match all.listeners.get(id).map(|seen| &seen.state) {
                Some(ListenerState::Bound) => Seen::Listening,
                Some(ListenerState::Closed) => Seen::Closed,
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
