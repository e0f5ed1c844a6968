//! What a platform can ask for: one use case a file, on the store, with what the forwarder says it has bound.
//!
//! Nothing of HTTP or JSON is known here; requests come in as checked values and go out as outcomes, refusals or
//! faults. Everything is level-triggered: what was committed and not carried out is carried out at the next refresh, or
//! at the next start.
//!
//! A use case that has begun is finished, also when whoever asked has gone: none leaves a port or a trial behind.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::sync::{Mutex, Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::{
    model::{
        Clock, NodeId, PlanId, PoolName, ServiceInstanceId,
        desired::{DesiredState, ForwarderLimits},
        directory::Directory,
        member::Members,
        observed::Observations,
        plan::Plan,
        pool::{Pool, Pools},
    },
    store::{self, AnyStore},
    telemetry::metrics::ControlMetrics,
};

mod apply_ports;
pub mod audit;
mod bind;
mod deprovision;
mod failure;
mod fetch;
mod fetch_binding;
mod keys;
mod list_ports;
mod nodes;
mod observe;
mod operation;
mod overview;
mod pools;
mod ports;
mod provision;
mod release;
mod reload;
mod reservations;
mod reserve;
mod restrain;
mod secret;
mod settings;
mod snapshot;
mod unbind;
mod update;

pub use apply_ports::{Applied, WantedPool};
pub use bind::{BindRefusal, BindSpec, Bound, MAX_BINDINGS};
pub use deprovision::DeleteRefusal;
pub use failure::{Failure, Fault};
pub use fetch::NotFound;
pub use fetch_binding::FetchedBinding;
pub use list_ports::{ListRefusal, ListedAs, ListedPool, ListedPort, MAX_PAGE, PortPage, PortQuery, StateWord};
pub use nodes::NodeRefusal;
pub use observe::NODES_WAIT;
pub use operation::Progress;
pub use overview::PoolUsage;
pub use pools::Disagreement;
pub use provision::{ProvisionRefusal, ProvisionSpec, Provisioned};
pub use reload::ReloadRefusal;
pub use reservations::ReservationRefusal;
pub use restrain::{RestrainRefusal, Restrained};
pub use secret::{Rotation, SecretRefusal};
pub use settings::SettingsRefusal;
pub use update::{UpdateRefusal, UpdateSpec};

use keys::{Keys, NoTurn, TURN_WAIT};
use observe::Inquiry;
use pools::Listened;
use ports::Ports;
use snapshot::Snapshot;

/// Use cases under way at once, over all service instances; more are turned away.
const MAX_OPERATIONS: usize = 1024;

/// How often the store is read for changes that nobody told of.
const REFRESH_EVERY: Duration = Duration::from_secs(5);

/// What a node is told at its start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This node.
    pub node: NodeId,
    /// The pools that it serves, as its file has them.
    pub pools: Vec<Pool>,
    /// The catalog.
    pub plans: Vec<Plan>,
    /// Live settings of the forwarder.
    pub limits: ForwarderLimits,
    /// Base of the announce listener as apps see it; none: credentials carry no `announce`.
    pub announce_url: Option<String>,
}

/// What can change while the node runs, beside service instances and bindings.
#[derive(Debug, Clone)]
struct Facts {
    /// As all nodes have agreed on them.
    pools: Pools,
    /// As this node's file last had them.
    file: Arc<[Pool]>,
    /// Those whose ports this node binds.
    served: BTreeSet<PoolName>,
    plans: Arc<[Plan]>,
    limits: Arc<ForwarderLimits>,
}

/// The use cases of one node.
pub struct Control {
    node: NodeId,
    announce_url: Option<String>,
    /// One at a time.
    reload: Mutex<()>,
    store: AnyStore,
    clock: Arc<dyn Clock>,
    ports: Arc<Ports>,
    snapshot: Snapshot,
    observations: watch::Receiver<Arc<Observations>>,
    members: watch::Receiver<Arc<Members>>,
    inquiry: Inquiry,
    metrics: Arc<ControlMetrics>,
    keys: Keys,
    operations: Arc<Semaphore>,
    /// The service instances that are being opened here after the answer was given.
    openings: watch::Sender<HashSet<ServiceInstanceId>>,
    tasks: TaskTracker,
}

impl Control {
    /// Agrees with the other nodes on the pools, reads everything from the store, and publishes the first desired state
    /// and directory. `members` are the nodes as they are known from then on. By `join` this one is seen by others before it
    /// defines anything: so the later one of two that start at once with different pools is refused.
    ///
    /// # Errors
    /// [`Disagreement`], also when the store is away.
    pub async fn open(
        settings: Settings,
        store: AnyStore,
        clock: Arc<dyn Clock>,
        observations: watch::Receiver<Arc<Observations>>,
        members: watch::Receiver<Arc<Members>>,
        metrics: Arc<ControlMetrics>,
        join: impl AsyncFnOnce() -> store::Result<()>,
    ) -> Result<Arc<Self>, Disagreement> {
        let Settings { node, pools, plans, limits, announce_url } = settings;
        let (none_moves, listened) = (|_: &_| false, Listened::from_now(&store).await?);
        // What is refused now keeps nobody waiting.
        pools::find_changes(&store, &node, &pools, &none_moves, &listened).await?;
        join().await?;
        pools::define(&store, &node, &pools, &none_moves, &listened).await?;
        let announce_secret = store.announce_secret().await?;
        let ports = Arc::new(Ports::new(Arc::clone(&store)));
        let facts = Facts {
            pools: Pools::new(),
            served: pools.iter().map(|pool| pool.name.clone()).collect(),
            file: pools.into(),
            plans: plans.into(),
            limits: Arc::new(limits),
        };
        let directory = Directory::new(announce_secret);
        let snapshot =
            Snapshot::open(Arc::clone(&store), Arc::clone(&clock), Arc::clone(&ports), facts, directory).await?;
        Ok(Arc::new(Self {
            node,
            announce_url,
            reload: Mutex::default(),
            store,
            clock,
            ports,
            snapshot,
            observations,
            members,
            inquiry: Inquiry::default(),
            metrics,
            keys: Keys::new(TURN_WAIT),
            operations: Arc::new(Semaphore::new(MAX_OPERATIONS)),
            openings: watch::Sender::default(),
            tasks: TaskTracker::new(),
        }))
    }

    /// What nodes should have bound.
    #[must_use]
    pub fn desired(&self) -> watch::Receiver<Arc<DesiredState>> {
        self.snapshot.desired()
    }

    /// What discovery must know.
    #[must_use]
    pub fn directory(&self) -> watch::Receiver<Arc<Directory>> {
        self.snapshot.directory()
    }

    /// The pools as all nodes have agreed on them.
    #[must_use]
    pub fn pools(&self) -> watch::Receiver<Pools> {
        self.snapshot.pools()
    }

    /// The plans, in the order they are shown.
    #[must_use]
    pub fn catalog(&self) -> Arc<[Plan]> {
        Arc::clone(&self.facts().plans)
    }

    /// The pools whose ports this node binds.
    #[must_use]
    pub fn served(&self) -> BTreeSet<PoolName> {
        self.facts().served.clone()
    }

    /// Reads the store for changes: after a hint that there are some.
    ///
    /// # Errors
    /// When the store is away; what was published stays.
    pub async fn refresh(&self) -> store::Result<()> {
        self.snapshot.refresh().await
    }

    /// Refreshes until `shutdown`: whenever `changed` says that there is something to read, and from time to time, for
    /// what a fault kept from being published.
    pub async fn follow(self: Arc<Self>, mut changed: watch::Receiver<()>, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(REFRESH_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut away = false;
        loop {
            let hinted = tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => false,
                Ok(()) = changed.changed() => true,
            };
            let refreshed = async {
                self.refresh().await?;
                self.define_lost_pools().await?;
                if hinted { Ok(()) } else { self.take_up_operations().await }
            };
            match refreshed.await {
                Ok(()) => away = false,
                Err(fault) if !away => {
                    away = true;
                    tracing::warn!(error = %failure::chain(&fault), "the store could not be read; going on with what is known");
                }
                Err(_) => {}
            }
        }
    }

    /// Waits for the use cases under way. Nobody may ask for more by then.
    pub async fn close(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn facts(&self) -> Arc<Facts> {
        self.snapshot.facts()
    }

    /// Takes on use cases again after [`Control::close`].
    pub fn reopen(&self) {
        self.tasks.reopen();
    }

    fn plan(&self, id: &PlanId) -> Option<Plan> {
        self.facts().plans.iter().find(|plan| plan.id == *id).cloned()
    }

    fn pool(&self, name: &PoolName) -> Result<Pool, Fault> {
        self.facts().pools.get(name).cloned().ok_or_else(|| Fault::UnknownPool(name.clone()))
    }

    /// Runs a use case to its end, in its turn among those on the same service instance.
    async fn in_turn<T, R, F>(
        self: &Arc<Self>,
        id: &ServiceInstanceId,
        work: impl FnOnce(Arc<Self>) -> F + Send + 'static,
    ) -> Result<T, Failure<R>>
    where
        T: Send + 'static,
        R: Send + 'static,
        F: Future<Output = Result<T, Failure<R>>> + Send,
    {
        let Ok(permit) = Arc::clone(&self.operations).try_acquire_owned() else {
            return Err(Fault::Overloaded.into());
        };
        let (control, id) = (Arc::clone(self), id.clone());
        let turn = async move {
            let _permit = permit;
            let turn = control.keys.turn(&id).await.map_err(|why| match why {
                NoTurn::TooLong => Failure::Busy,
                NoTurn::GivenUp => Fault::Store(store::Fault {
                    doing: "waiting for another request on the same service instance".into(),
                    source: "the store has failed that one".into(),
                })
                .into(),
            })?;
            let outcome = work(Arc::clone(&control)).await;
            if matches!(outcome, Err(Failure::Fault(Fault::Store(_)))) {
                // One that is away is not asked in vain by each of them in turn.
                turn.give_up();
            }
            outcome
        };
        match self.tasks.spawn(turn.in_current_span()).await {
            Ok(outcome) => outcome,
            Err(failed) => match failed.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(Fault::Stopping.into()),
            },
        }
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("node", &self.node).finish_non_exhaustive()
    }
}
