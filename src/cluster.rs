//! The nodes of a store: this one says how it is, hears how the others are, and hears that something has changed.
//!
//! Nobody leads and nothing is elected. Each node writes one row of its own; what a node hears is a hint to read again,
//! and a timer reads anyway. A store that only one process has goes the same way.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    model::{
        Clock, NodeId, PoolName, Timestamp,
        desired::DesiredState,
        member::{HEARTBEAT_EVERY, Member, Members, Report},
        observed::{Mode, Observations},
    },
    store::{self, AnyStore, Feed, Heard, Hint},
};

mod pulse;

use pulse::Pulse;

/// Reports are at least so far apart: what changes meanwhile goes into the next one.
const REPORT_PAUSE: Duration = Duration::from_millis(5);

/// How long it is waited before the store is asked for hints again.
const LISTEN_AGAIN: Duration = Duration::from_millis(500);

/// This node as the others know it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its name.
    pub node: NodeId,
    /// Its process: of two that claim one name, the one that joined later speaks for it.
    pub incarnation: String,
    /// The version that it runs.
    pub version: String,
}

impl Settings {
    /// The node as it joins `now`: what it serves, and how it is.
    #[must_use]
    pub fn member(&self, pools: Vec<PoolName>, report: Report, now: Timestamp) -> Member {
        let Self { node: id, incarnation, version } = self.clone();
        Member { id, incarnation, version, pools, report, drain: false, joined_at: now, seen_at: now }
    }
}

/// What a node tells of itself.
pub struct Sources {
    /// Whether it takes part.
    pub mode: watch::Receiver<Mode>,
    /// What it has bound.
    pub observations: watch::Receiver<Arc<Observations>>,
    /// What it should have bound.
    pub desired: watch::Receiver<Arc<DesiredState>>,
    /// The pools that it serves.
    pub served: watch::Receiver<BTreeSet<PoolName>>,
    /// How many flows are open.
    pub flows: Box<dyn Fn() -> u64 + Send + Sync>,
}

/// Where it is told what was heard.
#[derive(Debug)]
pub struct Ears {
    /// The nodes, whenever one of them says something new, and whenever one has died.
    pub members: watch::Sender<Arc<Members>>,
    /// Marked when the desired state may have changed.
    pub changed: watch::Sender<()>,
}

/// This node's part in the cluster.
pub struct Cluster {
    settings: Settings,
    store: AnyStore,
    clock: Arc<dyn Clock>,
    sources: Sources,
    ears: Ears,
    pulse: Pulse,
    /// Whether the store knows this process, with the pools that it serves now, as the node.
    joined: bool,
    /// Whether the last call to the store has failed.
    away: bool,
    /// Whether another process speaks for this node.
    superseded: bool,
}

impl Cluster {
    /// Puts the parts together. Nobody is told anything before [`Cluster::run`].
    #[must_use]
    pub fn new(settings: Settings, store: AnyStore, clock: Arc<dyn Clock>, sources: Sources, ears: Ears) -> Self {
        Self {
            settings,
            store,
            clock,
            sources,
            ears,
            pulse: Pulse::default(),
            joined: false,
            away: false,
            superseded: false,
        }
    }

    /// Takes part until `shutdown`, and says so when it ends.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut heartbeat = interval(HEARTBEAT_EVERY);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut feed: Option<Box<dyn Feed>> = None;
        let (mut listen_at, mut report_at) = (Instant::now(), None::<Instant>);
        let mut served = self.sources.served.clone();
        let joined = self.join().await;
        self.note(joined);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = heartbeat.tick() => self.speak().await,
                () = until(report_at) => {
                    report_at = None;
                    self.speak().await;
                }
                () = self.sources.news() => {
                    report_at.get_or_insert(Instant::now() + REPORT_PAUSE);
                }
                Ok(()) = served.changed() => {
                    self.joined = false;
                    let joined = self.join().await;
                    self.note(joined);
                }
                hint = next(&mut feed) => self.hear(hint).await,
                () = sleep_until(listen_at), if feed.is_none() => match self.store.feed().await {
                    Ok(listening) => {
                        feed = Some(listening);
                        self.hear(Hint::Everything).await;
                    }
                    Err(fault) => {
                        listen_at = Instant::now() + LISTEN_AGAIN;
                        self.note(Err(fault));
                    }
                },
            }
        }
        self.speak().await;
    }

    /// Says how this node is, and looks who lives.
    async fn speak(&mut self) {
        let said = self.report().await;
        self.note(said);
        self.look().await;
    }

    async fn hear(&mut self, hint: Hint) {
        if hint != Hint::Members {
            self.ears.changed.send_replace(());
        }
        if hint != Hint::Desired {
            self.look().await;
        }
    }

    async fn join(&mut self) -> store::Result<()> {
        let served = self.sources.served.borrow().iter().cloned().collect();
        self.store.join(&self.settings.member(served, self.sources.report(), self.clock.wall())).await?;
        self.joined = true;
        Ok(())
    }

    /// Where nobody else can hear it, nothing more is written than that it has joined. If the store was away then, it
    /// still takes this node for the process before.
    async fn report(&mut self) -> store::Result<()> {
        if !self.joined {
            self.join().await?;
        }
        if !self.store.serves_many() {
            return Ok(());
        }
        let Settings { node, incarnation, .. } = &self.settings;
        match self.store.report(node, incarnation, &self.sources.report(), self.clock.wall()).await? {
            Heard::Kept => self.superseded = false,
            Heard::Gone => self.join().await?,
            Heard::Superseded if !self.ears.members.borrow().is_alive(node) => self.join().await?,
            Heard::Superseded if !self.superseded => {
                self.superseded = true;
                tracing::error!(
                    %node,
                    "another process has joined as this node: give each node a harbor_node.id of its own, and restart one"
                );
            }
            Heard::Superseded => {}
        }
        Ok(())
    }

    /// Reads who there is, and tells it where it is new.
    async fn look(&mut self) {
        let mut members = match self.store.members().await {
            Ok(members) => members,
            Err(fault) => {
                self.note(Err(fault));
                return self.hear_nobody();
            }
        };
        let own = members.iter_mut().find(|member| member.id == self.settings.node && !self.superseded);
        if let Some(own) = own {
            (own.report, own.seen_at) = (self.sources.report(), self.clock.wall());
        }
        let now = self.clock.now();
        if std::mem::take(&mut self.away) {
            // Nobody could say anything meanwhile: that is no sign of death.
            self.pulse.renew(now);
        }
        let newest = self.sources.desired.borrow().revision;
        let members = Members { superseded: self.superseded, ..self.pulse.feel(members, newest, now) };
        self.ears.members.send_if_modified(|known| {
            for (what, id) in differences(known, &members) {
                tracing::info!(node = %id, "{what}");
            }
            let changed = **known != members;
            if changed {
                *known = Arc::new(members);
            }
            changed
        });
    }

    fn note(&mut self, outcome: store::Result<()>) {
        if let Err(fault) = outcome {
            tracing::debug!(error = %fault, "the other nodes cannot be told or heard");
            self.away = true;
        }
    }

    /// Tells that nothing can be heard of anybody.
    fn hear_nobody(&self) {
        self.ears.members.send_if_modified(|known| {
            let is_new = !known.unheard;
            if is_new {
                *known = Arc::new(Members { unheard: true, ..Members::clone(known) });
            }
            is_new
        });
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Sources {
    fn report(&self) -> Report {
        let desired = self.desired.borrow();
        let port_of = |id: &_| desired.listeners.get(id).map(|spec| spec.port);
        Report::of(*self.mode.borrow(), (self.flows)(), &self.observations.borrow(), port_of)
    }

    /// Waits until there is something to tell before the next heartbeat.
    async fn news(&mut self) {
        tokio::select! {
            Ok(()) = self.mode.changed() => {}
            Ok(()) = self.observations.changed() => {}
            else => std::future::pending().await,
        }
    }
}

/// What is worth a line in the log.
fn differences(before: &Members, after: &Members) -> Vec<(&'static str, NodeId)> {
    let find =
        |members: &Members, id: &NodeId| members.all.iter().find(|known| known.member.id == *id).map(|k| k.alive);
    let mut found = Vec::new();
    for known in &after.all {
        let id = &known.member.id;
        match (find(before, id), known.alive) {
            (None, true) => found.push(("a node has joined", id.clone())),
            (Some(true), false) => found.push(("a node is no longer heard, and not waited for", id.clone())),
            (Some(false), true) => found.push(("a node is heard again", id.clone())),
            _ => {}
        }
    }
    let gone = before.all.iter().filter(|known| find(after, &known.member.id).is_none());
    found.extend(gone.map(|known| ("a node was removed", known.member.id.clone())));
    found
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn next(feed: &mut Option<Box<dyn Feed>>) -> Hint {
    match feed {
        Some(feed) => feed.next().await,
        None => std::future::pending().await,
    }
}
