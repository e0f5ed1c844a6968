//! Durable state.
//!
//! [`Store`] speaks the words of the domain: one call is one transaction is one decision, and no transaction handle
//! gets out. `model::allocation` proposes ports from a free set in memory; here `UNIQUE (pool, port)` decides.
//!
//! [`memory`] is the reference model: the contract suite and random histories hold every engine against it.

use std::{fmt, sync::Arc};

use async_trait::async_trait;

use crate::model::{
    BindingId, NodeId, PoolName, Revision, ServiceInstanceId, SpaceId, Timestamp, binding::Binding,
    service_instance::ServiceInstance, token::AnnounceSecret,
};

pub mod memory;

/// The store cannot do what was asked: it is away, full, or broken. Nothing has been changed, or it is not known
/// whether it has; a repeat of the same call is safe.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}")]
pub struct Fault {
    /// What was being done, as a phrase that names the store.
    pub doing: &'static str,
    /// The engine's own words.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Outcome of a call that can only fail by a fault.
pub type Result<T> = std::result::Result<T, Fault>;

/// What has changed after a revision; or, after [`Revision::default`], everything there is.
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
}

/// A port that is not free, for the free set in memory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRow {
    /// The port.
    pub port: u16,
    /// What it is instead.
    pub state: PortState,
}

/// Why a port is not free.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortState {
    /// It belongs to a service instance.
    Allocated,
    /// It was freed.
    Released(Release),
}

/// How a port came to be freed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    /// Whose it was.
    pub space_id: SpaceId,
    /// When.
    pub at: Timestamp,
    /// Until when nobody gets it.
    pub quarantined_until: Timestamp,
}

/// Ports held back under a name, never allocated by chance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reservation {
    /// In which pool.
    pub pool: PoolName,
    /// Under which name.
    pub name: String,
    /// First port.
    pub first_port: u16,
    /// Last port; equal to the first for a single one.
    pub last_port: u16,
}

/// What became of [`Store::provision`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provision {
    /// Committed, with its revision set.
    Created(ServiceInstance),
    /// The id is taken; by this one, unchanged.
    Exists(ServiceInstance),
    /// The port is allocated, quarantined or reserved. Nothing has been changed.
    PortTaken,
}

/// What became of [`Store::move_port`] and [`Store::update`].
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
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// What tokens are derived from; made once, at the first call.
    async fn announce_secret(&self) -> Result<AnnounceSecret>;

    /// All service instances and bindings, at one revision.
    async fn everything(&self) -> Result<Changes>;

    /// What has changed after `revision`; `None` when that can no longer be told (tombstones are kept for a bounded
    /// time, and a restored backup may be older than the caller): read [`Store::everything`].
    async fn changes_since(&self, revision: Revision) -> Result<Option<Changes>>;

    /// The ports of `pool` that are not free.
    async fn ports(&self, pool: &PoolName) -> Result<Vec<PortRow>>;

    /// The reservations of `pool`.
    async fn reservations(&self, pool: &PoolName) -> Result<Vec<Reservation>>;

    /// Holds ports back. `false` when the name is taken in that pool or a reservation overlaps; nothing has been
    /// changed then. Ports already allocated stay with their service instances.
    async fn reserve(&self, reservation: &Reservation) -> Result<bool>;

    /// One service instance.
    async fn instance(&self, id: &ServiceInstanceId) -> Result<Option<ServiceInstance>>;

    /// One binding of one service instance.
    async fn binding(&self, instance: &ServiceInstanceId, id: &BindingId) -> Result<Option<Binding>>;

    /// Stores a new service instance with its port, where `now` is past the port's quarantine. A port that the user
    /// chose (`requested_port`) may lie in a reservation of nobody only. Its `revision` is set here.
    async fn provision(&self, instance: &ServiceInstance, now: Timestamp) -> Result<Provision>;

    /// Gives a service instance another port: the first one cannot be bound, and nobody has been told it. The old
    /// port is free at once; it was never used.
    async fn move_port(&self, id: &ServiceInstanceId, from: u16, to: u16, now: Timestamp) -> Result<Change>;

    /// Replaces plan, protocol, settings and name, if the row still has the revision that `instance` was read with.
    async fn update(&self, instance: &ServiceInstance) -> Result<Change>;

    /// Deletes a service instance with its bindings, and quarantines its port until `quarantined_until`.
    /// `None` when there is none.
    async fn deprovision(
        &self,
        id: &ServiceInstanceId,
        now: Timestamp,
        quarantined_until: Timestamp,
    ) -> Result<Option<ServiceInstance>>;

    /// Stores a new binding. Its `revision` is set here.
    async fn bind(&self, binding: &Binding) -> Result<Bind>;

    /// Deletes a binding. `None` when there is none.
    async fn unbind(&self, instance: &ServiceInstanceId, id: &BindingId) -> Result<Option<Binding>>;

    /// Says that a node serves these pools, and when it was last seen.
    async fn join(&self, node: &NodeId, pools: &[PoolName], now: Timestamp) -> Result<()>;

    /// Whether the store answers.
    async fn ping(&self) -> Result<()>;

    /// Ends its connections. Calls after it fail.
    async fn close(&self);
}

/// A store, whichever engine it is on.
pub type AnyStore = Arc<dyn Store>;
