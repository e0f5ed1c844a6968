//! Waiting, for a bounded time, until the forwarder has done what was published.

use std::time::Duration;

use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout},
};

use super::Control;
use crate::{
    model::{
        NodeId, PoolName, Revision, ServiceInstanceId,
        member::Opening,
        observed::{ListenerState, Observations},
        service_instance::ServiceInstance,
    },
    store::{self, AnyStore},
};

/// How long a port may take to open or to close. Binding takes milliseconds; this is for a machine in trouble.
pub(super) const LISTENER_WAIT: Duration = Duration::from_secs(10);

/// How long the other nodes may take. One that dies meanwhile is found out sooner.
pub const NODES_WAIT: Duration = Duration::from_secs(5);

/// How often it is asked, while somebody waits for other nodes, whether the store is there: without it they can say nothing.
const ASK_EVERY: Duration = Duration::from_millis(100);

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
    /// The store went away before all other nodes had said what has become of it.
    Untold(store::Fault),
}

/// Whether the store is there, asked by one for all who want to know.
#[derive(Debug, Default)]
pub(super) struct Inquiry {
    answered: Mutex<Option<Instant>>,
}

impl Inquiry {
    async fn ask(&self, store: &AnyStore) -> store::Result<()> {
        let mut answered = self.answered.lock().await;
        if answered.is_some_and(|at| at.elapsed() < ASK_EVERY) {
            return Ok(());
        }
        if store.members().await.is_err() {
            // A connection may have been lost that was no loss of the store.
            store.members().await?;
        }
        *answered = Some(Instant::now());
        Ok(())
    }
}

impl Control {
    /// What has become of the port of `instance`, which is published, on every live node of its pool. One that does not
    /// say in time is named in the log, and waited for no longer.
    ///
    /// One that is suspended, perhaps while it was waited for, is as it should be.
    pub(super) async fn opening(&self, instance: &ServiceInstance) -> Seen {
        let here = self.opening_here(&instance.id).await;
        let seen = match here {
            _ if self.snapshot.is_suspended(&instance.id).await => return Seen::Listening,
            Some(Seen::Listening) | None => self.elsewhere(instance, here.is_some()).await,
            Some(failed) => return failed,
        };
        if self.snapshot.is_suspended(&instance.id).await { Seen::Listening } else { seen }
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
        let told = match self.told(pool, id, *port, *revision, "listen on the port").await {
            Ok(told) => told,
            Err(fault) => return Seen::Untold(fault),
        };
        match told {
            Opening::Failed(node, failure) if failure.held => Seen::Held(format!("on {node}: {}", failure.reason)),
            Opening::Failed(node, failure) => Seen::Failed(format!("on {node}: {}", failure.reason)),
            Opening::Open(0) if !is_open_here => {
                Seen::Failed(format!("every node of the pool {pool} is dead or drained"))
            }
            Opening::Waiting(nodes) if !is_open_here => {
                Seen::Failed(format!("{} did not open it in time", names(&nodes)))
            }
            Opening::Open(_) | Opening::Waiting(_) => Seen::Listening,
        }
    }

    /// Waits, for a bounded time, until the other nodes of its pool have closed the port of a service instance that is
    /// deleted at `revision`. One that does not say so in time is named in the log.
    pub(super) async fn closed_elsewhere(&self, gone: &ServiceInstance, revision: Revision) {
        let _ = self.told(&gone.pool, &gone.id, gone.port, revision, "have closed the port").await;
    }

    /// Waits, for a bounded time, until every live node has applied a revision. Returns those that have not said so.
    pub(super) async fn applied_everywhere(&self, revision: Revision) -> Vec<NodeId> {
        let (mut observations, mut members) = (self.observations.clone(), self.members.clone());
        let has_applied = |observed: &Observations| observed.applied >= Some(revision);
        let here = observations.wait_for(|observed| has_applied(observed));
        let is_here = matches!(timeout(NODES_WAIT, here).await, Ok(Ok(_)));
        let elsewhere = members.wait_for(|members| members.behind(revision, &self.node).next().is_none());
        let _ = timeout(NODES_WAIT, elsewhere).await;
        let own = (!is_here).then(|| self.node.clone());
        own.into_iter().chain(self.members.borrow().behind(revision, &self.node).cloned()).collect()
    }

    /// What the other nodes of a pool say of a port at a revision: when all have said it, or one that it cannot, or after
    /// a bounded wait. A fault when the store goes away before that, as nobody can say anything then. Those that have not said
    /// by then that they do `what` are named in the log.
    async fn told(
        &self,
        pool: &PoolName,
        id: &ServiceInstanceId,
        port: u16,
        revision: Revision,
        what: &str,
    ) -> store::Result<Opening> {
        let mut members = self.members.clone();
        let told = members
            .wait_for(|members| !matches!(members.opening(pool, id, port, revision, &self.node), Opening::Waiting(_)));
        let away = tokio::select! {
            _ = timeout(NODES_WAIT, told) => None,
            fault = self.store_goes_away() => Some(fault),
        };
        let latest = self.members.borrow().opening(pool, id, port, revision, &self.node);
        let Opening::Waiting(nodes) = &latest else { return Ok(latest) };
        let lagging = names(nodes);
        if let Some(fault) = away {
            tracing::warn!(
                service_instance = %id, %pool, port, lagging,
                "the store went away before these nodes could say that they {what}"
            );
            return Err(fault);
        }
        tracing::warn!(
            service_instance = %id, %pool, port, lagging,
            "these nodes have not said in time that they {what}: going on without them"
        );
        Ok(latest)
    }

    /// Waits until the store is away, and says how that shows. A question that is dropped costs its connection.
    async fn store_goes_away(&self) -> store::Fault {
        loop {
            sleep(ASK_EVERY).await;
            if let Err(fault) = self.inquiry.ask(&self.store).await {
                return fault;
            }
        }
    }

    /// What has become of the listener's `version`, or of a later one.
    pub(super) async fn listener(&self, id: &ServiceInstanceId, version: u64) -> Seen {
        let mut observations = self.observations.clone();
        let told = observations.wait_for(|all| all.get(id).is_some_and(|seen| seen.version >= version));
        match timeout(LISTENER_WAIT, told).await {
            Ok(Ok(all)) => match all.get(id).map(|seen| &seen.state) {
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
        let gone = observations.wait_for(|all| all.get(id).is_none());
        match timeout(LISTENER_WAIT, gone).await {
            Ok(seen) => seen.is_ok(),
            Err(_) => {
                tracing::warn!(service_instance = %id, "the forwarder did not close its port within {LISTENER_WAIT:?}");
                false
            }
        }
    }
}

/// The names of nodes, as people read them.
fn names(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ")
}
