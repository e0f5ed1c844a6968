//! Durable state.
//!
//! [`Store`] speaks the words of the domain: one call is one transaction is one decision, and no transaction handle
//! gets out. `model::allocation` proposes ports from a free set in memory; here `UNIQUE (pool, port)` decides.
//!
//! [`memory`] is the reference model: the contract suite and random histories hold every engine against it.

use std::{collections::BTreeSet, fmt, ops::RangeInclusive, os::fd::OwnedFd, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::model::{
    BindingId, NodeId, PoolName, Revision, ServiceInstanceId, Timestamp,
    binding::Binding,
    member::{Member, Report},
    pool::Pool,
    service_instance::ServiceInstance,
    setting::{By, Setting, SettingChange},
    token::AnnounceSecret,
};

pub use crate::model::allocation::{PortRow, PortState, Release, Reservation};

mod dump;
mod engine;
mod feed;
mod files;
mod lock;
pub mod memory;
mod migrations;
mod open;
mod postgres;
mod relational;
mod row;
mod secret;
mod sql;
mod sqlite;
mod text;

pub use dump::{Contradiction, Dump, LastRelease, MAX_FILE_BYTES, ReadError};
pub use migrations::SCHEMA_VERSION;
pub use open::{ANSWER_WITHIN, MIGRATE_WITHIN, Migrated, OpenError, Settings, migrate, open, open_to_read};
pub use sql::ALL as STATEMENTS;

/// How many revisions [`Store::changes_since`] can look back; tombstones older than that are dropped. A caller further
/// behind reads everything, which costs no more than reading so many changes.
pub const CHANGES_KEPT: u64 = 4_096;

/// The store cannot do what was asked: it is away, full, or broken. Nothing has been changed, or it is not known
/// whether it has; a repeat of the same call is safe.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}")]
pub struct Fault {
    /// What was being done, as a phrase that names the store.
    pub doing: String,
    /// The engine's own words.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl Fault {
    /// Whether it may pass by itself, as the store is away, and not that what it says cannot be understood.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.source.downcast_ref::<sqlx::Error>().is_some_and(postgres::passes)
    }
}

/// Outcome of a call that can only fail by a fault.
pub type Result<T> = std::result::Result<T, Fault>;

/// What has changed after a revision, or everything there is. Lists are in the order of the last changes, those of one
/// revision by id; an id that was deleted and made again is not among the deleted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// The revision that these changes lead to.
    pub revision: Revision,
    /// Service instances made or changed.
    pub instances: Vec<ServiceInstance>,
    /// Bindings made or changed.
    pub bindings: Vec<Binding>,
    /// Service instances deleted.
    pub deleted_instances: Vec<ServiceInstanceId>,
    /// Bindings deleted, alone or with their service instance.
    pub deleted_bindings: Vec<BindingId>,
    /// Pools defined, or defined otherwise; by name.
    pub pools: Vec<Pool>,
    /// Pools dropped, and not defined again; by name.
    pub dropped_pools: Vec<PoolName>,
    /// Ports freed after they were used, and free still; by pool and port. [`Store::everything`] leaves them to
    /// [`Store::ports`].
    pub freed: Vec<Freed>,
    /// Pools of which reservations were made or released, by name. [`Store::everything`] leaves them out too.
    pub reserved: Vec<PoolName>,
    /// All live settings, by scope and key; none when none has changed.
    pub settings: Option<Vec<Setting>>,
    /// The announce secret; none when it has not been rotated, or is not made yet.
    pub announce_secret: Option<AnnounceSecret>,
}

/// A port that nobody has any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freed {
    /// Of which pool.
    pub pool: PoolName,
    /// Which.
    pub port: u16,
    /// By whom, and until when it rests.
    pub release: Release,
}

/// How a service instance ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending<'a> {
    /// Its port was used, and rests until then.
    Rest(Timestamp),
    /// Its port was never used, and is what it was before at once.
    Unused,
    /// The same of one whose operation has failed; only while that is under way on this node.
    Failed {
        /// The node that works on it.
        by: &'a NodeId,
        /// What whoever asks for the operation is told.
        why: &'a str,
    },
}

/// A provision that is not done, on a store of several nodes: whose work it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// What is provisioned.
    pub service_instance_id: ServiceInstanceId,
    /// The node that works on it, or did.
    pub node_id: NodeId,
    /// Why it has failed; none while it is under way.
    pub failure: Option<String>,
    /// When it was last taken up, or when it failed.
    pub changed_at: Timestamp,
}

/// How long it is told why a provision has failed.
pub const FAILURES_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// What became of [`Store::report`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It is kept.
    Kept,
    /// There is no such node any more: it has to join.
    Gone,
    /// Another process speaks for the node by now. Nothing has been changed.
    Superseded,
}

/// What became of [`Store::provision`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provision {
    /// Committed, with its revision set.
    Created(ServiceInstance),
    /// The id is taken; by this one, unchanged.
    Exists(ServiceInstance),
    /// The port is not free for it. Nothing has been changed.
    PortTaken,
}

/// What became of [`Store::move_port`] and [`Store::update`].
#[expect(clippy::large_enum_variant, reason = "one a call, taken apart at once")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Committed, with its revision set.
    Done(ServiceInstance),
    /// No such service instance, or it has changed since it was read. Nothing has been changed.
    Stale,
    /// The new port is not free. Nothing has been changed.
    PortTaken,
}

/// What became of [`Store::bind`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bind {
    /// Committed, with its revision set.
    Created(Binding),
    /// The id is taken; by this one, unchanged.
    Exists(Binding),
    /// No such service instance. Nothing has been changed.
    NoServiceInstance,
}

/// Durable state. Every change raises the revision by one in the same transaction and marks the rows with it;
/// deletions leave tombstones, so that [`Store::changes_since`] can tell them.
///
/// Ids and names hold any character, U+0000 too: an engine whose text cannot hold that one has to write it otherwise.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// What tokens are derived from; made at the first call.
    async fn announce_secret(&self) -> Result<AnnounceSecret>;

    /// Makes a new announce secret, which the former one counts beside. `false` when one does so already; nothing has been
    /// changed then.
    async fn rotate_announce_secret(&self, by: &By) -> Result<bool>;

    /// Ends the rotation: only the new secret counts. `false` when there is none under way.
    async fn drop_former_secret(&self, by: &By) -> Result<bool>;

    /// All service instances and bindings, at one revision.
    async fn everything(&self) -> Result<Changes>;

    /// What has changed after `revision`; `None` when that cannot be told, because it is more than [`CHANGES_KEPT`] back
    /// or, after a backup was restored, ahead of the store: read [`Store::everything`].
    async fn changes_since(&self, revision: Revision) -> Result<Option<Changes>>;

    /// The ports of `pool` that are not free.
    async fn ports(&self, pool: &PoolName) -> Result<Vec<PortRow>>;

    /// The reservations of `pool`.
    async fn reservations(&self, pool: &PoolName) -> Result<Vec<Reservation>>;

    /// Who has made the reservations of `pool`, and when: the change of each that made it, by name; without those that were
    /// made before the history begins.
    async fn reservation_changes(&self, pool: &PoolName) -> Result<Vec<Setting>>;

    /// Releases reservations, by pool and name, then holds ports back. `false` when there is none of a name to release, or
    /// the pool of one that is made is not defined, or its name is taken there, or a reservation of that pool overlaps, or a
    /// service instance has a port of one that is made and that is not among those `known` to be allocated; nothing has been
    /// changed then. Ports already allocated stay with their service instances.
    async fn change_reservations(
        &self,
        released: &[(PoolName, String)],
        made: &[Reservation],
        known: &BTreeSet<(PoolName, u16)>,
        by: &By,
    ) -> Result<bool>;

    /// All live settings, by scope and key, and the revision at which they are so.
    async fn settings(&self) -> Result<(Revision, Vec<Setting>)>;

    /// Sets and unsets live settings, for all nodes. `None` when any was changed after the revision `read_at`; nothing has
    /// been changed then.
    async fn change_settings(&self, changes: &[SettingChange], by: &By, read_at: Revision) -> Result<Option<Revision>>;

    /// The history of what operators have changed, the latest first; at most `limit`.
    async fn settings_history(&self, limit: usize) -> Result<Vec<Setting>>;

    /// One service instance.
    async fn instance(&self, id: &ServiceInstanceId) -> Result<Option<ServiceInstance>>;

    /// The service instances that have `ports` of `pool`, by port.
    async fn instances_at(&self, pool: &PoolName, ports: RangeInclusive<u16>) -> Result<Vec<ServiceInstance>>;

    /// One binding of one service instance. Binding ids are unique among all service instances.
    async fn binding(&self, instance: &ServiceInstanceId, id: &BindingId) -> Result<Option<Binding>>;

    /// Stores a new service instance with its port, which must be in no reservation and past the wait that
    /// [`Release::barred_until`] sets. Its `revision` is set here.
    /// What was told of an earlier one of that id is forgotten.
    ///
    /// When `open_later`, there is an [`Operation`] of its node until [`Store::opened`] or the end.
    async fn provision(&self, instance: &ServiceInstance, open_later: bool, now: Timestamp) -> Result<Provision>;

    /// Gives a service instance another port, under the same rules: the first one cannot be bound, and nobody has been
    /// told it. The old port is what it was before at once; it was never used. With `by`, only while its operation is
    /// under way on that node: it is stale otherwise.
    async fn move_port(
        &self,
        id: &ServiceInstanceId,
        from: u16,
        to: u16,
        by: Option<&NodeId>,
        now: Timestamp,
    ) -> Result<Change>;

    /// Replaces plan, protocol, settings and name, if the row still has the revision that `instance` was read with.
    async fn update(&self, instance: &ServiceInstance) -> Result<Change>;

    /// Deletes a service instance with its bindings, its operation and its suspension. `None` when there is none, or `ending` does not
    /// hold; nothing has been changed then.
    async fn deprovision(
        &self,
        id: &ServiceInstanceId,
        now: Timestamp,
        ending: Ending<'_>,
    ) -> Result<Option<ServiceInstance>>;

    /// The operation of a service instance: under way, or failed less than [`FAILURES_KEPT`] ago.
    async fn operation(&self, id: &ServiceInstanceId, now: Timestamp) -> Result<Option<Operation>>;

    /// The operations under way, by service instance.
    async fn operations(&self) -> Result<Vec<Operation>>;

    /// Takes an operation under way up from another node. `false` when it is no longer that node's.
    async fn take_up(&self, id: &ServiceInstanceId, from: &NodeId, to: &NodeId, now: Timestamp) -> Result<bool>;

    /// Ends an operation well. `false` when it is no longer under way on that node.
    async fn opened(&self, id: &ServiceInstanceId, by: &NodeId) -> Result<bool>;

    /// Stores a new binding. Its `revision` is set here.
    async fn bind(&self, binding: &Binding) -> Result<Bind>;

    /// Deletes a binding. `None` when there is none.
    async fn unbind(&self, instance: &ServiceInstanceId, id: &BindingId) -> Result<Option<Binding>>;

    /// The pools that are defined, by name, and the revision at which they were.
    async fn pools(&self) -> Result<(Revision, Vec<Pool>)>;

    /// Defines pools, for all nodes. `None` when one of them was defined after the revision `read_at`; nothing has been
    /// changed then.
    async fn define_pools(&self, pools: &[Pool], read_at: Revision) -> Result<Option<Revision>>;

    /// Drops pools that nobody needs, for all nodes. `None` when one of them is not there, was defined after the revision
    /// `read_at`, is served by a node, or has a reservation or a service instance; nothing has been changed then.
    async fn drop_pools(&self, pools: &[PoolName], by: &By, read_at: Revision) -> Result<Option<Revision>>;

    /// Makes a node known, in place of what was known of it; only an operator's wish to have it drained stays. Nodes are
    /// no part of the desired state: the revision stays.
    async fn join(&self, member: &Member) -> Result<()>;

    /// Keeps what the node says through its `incarnation`.
    async fn report(&self, node: &NodeId, incarnation: &str, report: &Report, now: Timestamp) -> Result<Heard>;

    /// Notes whether an operator wants the node drained. `false` when there is no such node.
    async fn set_drain(&self, node: &NodeId, drain: bool) -> Result<bool>;

    /// Forgets a node. `false` when there is no such node.
    async fn remove_node(&self, node: &NodeId) -> Result<bool>;

    /// The nodes that have joined, by id.
    async fn members(&self) -> Result<Vec<Member>>;

    /// Hears of changes from now on.
    async fn feed(&self) -> Result<Box<dyn Feed>>;

    /// All that is kept but nodes, at one revision.
    async fn export(&self) -> Result<Dump>;

    /// Takes over `dump`, which [`Dump::check`] has found sound, and its revision with it. `false` when anything was ever
    /// kept here; nothing has been changed then.
    async fn import(&self, dump: &Dump) -> Result<bool>;

    /// Whether the store answers and, after a fault, takes changes again. It changes nothing.
    async fn ping(&self) -> Result<()>;

    /// Whether several nodes can share it.
    fn serves_many(&self) -> bool;

    /// How often the link to the database was lost. What comes after a loss may be another one under the same name: a backup
    /// that was restored, or a standby that lacks the last changes.
    fn losses(&self) -> u64 {
        0
    }

    /// Lets go of what only one process may have, so that a successor can open the store; returns what must travel there
    /// for that, if anything. Calls fail from then on, until [`Store::take_back`]; without it, [`Store::close`] leaves to
    /// the successor what is its own. An engine that serves several processes at a time needs neither.
    async fn hand_over(&self) -> Result<Option<OwnedFd>> {
        Ok(None)
    }

    /// Goes on after [`Store::hand_over`], when there is no successor after all.
    async fn take_back(&self) -> Result<()> {
        Ok(())
    }

    /// Ends its connections. Calls after it fail.
    async fn close(&self);
}

/// What changes, as it changes: hints to read again, never the change itself.
#[async_trait]
pub trait Feed: Send {
    /// The next one. None is lost by dropping the future; several of one kind may come as one.
    async fn next(&mut self) -> Hint;
}

/// What to read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// The revision was raised.
    Desired,
    /// A node has said something, joined or gone.
    Members,
    /// Everything: hints may have been lost.
    Everything,
}

/// A store, whichever engine it is on.
pub type AnyStore = Arc<dyn Store>;
