//! The reference model: the whole of [`Store`] in maps, so short that it can be seen to be right. Other engines are held
//! against it; tests of other modules run on it. It keeps nothing.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;

use super::{
    Bind, CHANGES_KEPT, Change, Changes, Fault, Node, PortRow, PortState, Provision, Release, Reservation, Result,
    Store, secret,
};
use crate::model::{
    BindingId, NodeId, PoolName, Revision, ServiceInstanceId, SpaceId, Timestamp, binding::Binding,
    service_instance::ServiceInstance, token::AnnounceSecret,
};

/// A store that lives as long as its process.
#[derive(Debug)]
pub struct MemoryStore {
    /// `None` once closed.
    state: Mutex<Option<State>>,
}

#[derive(Debug, Default)]
struct State {
    revision: Revision,
    secret: Option<AnnounceSecret>,
    instances: BTreeMap<ServiceInstanceId, ServiceInstance>,
    bindings: BTreeMap<BindingId, Binding>,
    ports: BTreeMap<(PoolName, u16), Port>,
    reservations: BTreeMap<(PoolName, String), Reservation>,
    nodes: BTreeMap<NodeId, Node>,
    deleted_instances: BTreeMap<ServiceInstanceId, Revision>,
    deleted_bindings: BTreeMap<BindingId, Revision>,
}

/// What is known of a port that is or was allocated.
#[derive(Debug, Default)]
struct Port {
    holder: Option<ServiceInstanceId>,
    last_release: Option<Release>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self { state: Mutex::new(Some(State::default())) }
    }

    fn with<T>(&self, call: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        match self.state.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(state) => call(state),
            None => Err(Fault { doing: "the store in memory", source: "it is closed".into() }),
        }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    /// The revision of the change that is being made.
    fn raise(&mut self) -> Revision {
        self.revision.0 += 1;
        self.revision
    }

    fn changes(&self, after: Revision) -> Changes {
        let mut changes = Changes {
            revision: self.revision,
            instances: self.instances.values().filter(|instance| instance.revision > after).cloned().collect(),
            bindings: self.bindings.values().filter(|binding| binding.revision > after).cloned().collect(),
            deleted_instances: deleted_after(&self.deleted_instances, after),
            deleted_bindings: deleted_after(&self.deleted_bindings, after),
        };
        changes.instances.sort_by_key(|instance| instance.revision);
        changes.bindings.sort_by_key(|binding| binding.revision);
        changes
    }

    fn is_free(&self, pool: &PoolName, port: u16, space: &SpaceId, asked_for: bool, now: Timestamp) -> bool {
        let reserved = self.reservations.values().any(|r| r.pool == *pool && r.contains(port));
        let held = self.ports.get(&(pool.clone(), port)).is_some_and(|port| {
            port.holder.is_some()
                || port.last_release.as_ref().is_some_and(|last| now < last.barred_until(space, asked_for))
        });
        !reserved && !held
    }

    fn hold(&mut self, instance: &ServiceInstance) {
        self.ports.entry((instance.pool.clone(), instance.port)).or_default().holder = Some(instance.id.clone());
    }

    fn bury_binding(&mut self, id: &BindingId, revision: Revision) {
        self.bindings.remove(id);
        self.deleted_bindings.insert(id.clone(), revision);
    }

    fn forget_old_tombstones(&mut self) {
        let current = self.revision;
        let told = |revision: &Revision| revision.0 + CHANGES_KEPT > current.0;
        self.deleted_instances.retain(|_, revision| told(revision));
        self.deleted_bindings.retain(|_, revision| told(revision));
    }
}

fn deleted_after<Id: Clone + Ord>(tombstones: &BTreeMap<Id, Revision>, after: Revision) -> Vec<Id> {
    let mut deleted = tombstones.iter().filter(|(_, at)| **at > after).map(|(id, at)| (*at, id)).collect::<Vec<_>>();
    deleted.sort();
    deleted.into_iter().map(|(_, id)| id.clone()).collect()
}

#[async_trait]
impl Store for MemoryStore {
    async fn announce_secret(&self) -> Result<AnnounceSecret> {
        self.with(|state| match &state.secret {
            Some(secret) => Ok(secret.clone()),
            None => Ok(state.secret.insert(secret::fresh()?).clone()),
        })
    }

    async fn everything(&self) -> Result<Changes> {
        self.with(|state| {
            Ok(Changes {
                deleted_instances: Vec::new(),
                deleted_bindings: Vec::new(),
                ..state.changes(Revision::default())
            })
        })
    }

    async fn changes_since(&self, revision: Revision) -> Result<Option<Changes>> {
        self.with(|state| {
            let told = revision <= state.revision && revision.0 + CHANGES_KEPT >= state.revision.0;
            Ok(told.then(|| state.changes(revision)))
        })
    }

    async fn ports(&self, pool: &PoolName) -> Result<Vec<PortRow>> {
        self.with(|state| {
            let of_pool = state.ports.iter().filter(|((of, _), _)| of == pool);
            Ok(of_pool
                .filter_map(|((_, port), known)| {
                    let state = match (&known.holder, &known.last_release) {
                        (Some(_), _) => PortState::Allocated,
                        (None, Some(release)) => PortState::Released(release.clone()),
                        (None, None) => return None,
                    };
                    Some(PortRow { port: *port, state })
                })
                .collect())
        })
    }

    async fn reservations(&self, pool: &PoolName) -> Result<Vec<Reservation>> {
        self.with(|state| Ok(state.reservations.values().filter(|r| r.pool == *pool).cloned().collect()))
    }

    async fn reserve(&self, reservation: &Reservation) -> Result<bool> {
        self.with(|state| {
            let clashes = |r: &Reservation| r.name == reservation.name || r.overlaps(reservation);
            if state.reservations.values().any(|r| r.pool == reservation.pool && clashes(r)) {
                return Ok(false);
            }
            state.raise();
            state.reservations.insert((reservation.pool.clone(), reservation.name.clone()), reservation.clone());
            Ok(true)
        })
    }

    async fn instance(&self, id: &ServiceInstanceId) -> Result<Option<ServiceInstance>> {
        self.with(|state| Ok(state.instances.get(id).cloned()))
    }

    async fn binding(&self, instance: &ServiceInstanceId, id: &BindingId) -> Result<Option<Binding>> {
        self.with(|state| Ok(state.bindings.get(id).filter(|b| b.service_instance_id == *instance).cloned()))
    }

    async fn provision(&self, instance: &ServiceInstance, now: Timestamp) -> Result<Provision> {
        self.with(|state| {
            if let Some(known) = state.instances.get(&instance.id) {
                return Ok(Provision::Exists(known.clone()));
            }
            let asked_for = instance.requested_port == Some(instance.port);
            if !state.is_free(&instance.pool, instance.port, &instance.space_id, asked_for, now) {
                return Ok(Provision::PortTaken);
            }
            let instance = ServiceInstance { revision: state.raise(), ..instance.clone() };
            state.hold(&instance);
            state.deleted_instances.remove(&instance.id);
            state.instances.insert(instance.id.clone(), instance.clone());
            Ok(Provision::Created(instance))
        })
    }

    async fn move_port(&self, id: &ServiceInstanceId, from: u16, to: u16, now: Timestamp) -> Result<Change> {
        self.with(|state| {
            let Some(known) = state.instances.get(id).filter(|known| known.port == from).cloned() else {
                return Ok(Change::Stale);
            };
            let asked_for = known.requested_port == Some(to);
            if !state.is_free(&known.pool, to, &known.space_id, asked_for, now) {
                return Ok(Change::PortTaken);
            }
            state.ports.get_mut(&(known.pool.clone(), from)).expect("its service instance holds it").holder = None;
            let moved = ServiceInstance { port: to, revision: state.raise(), ..known };
            state.hold(&moved);
            state.instances.insert(id.clone(), moved.clone());
            Ok(Change::Done(moved))
        })
    }

    async fn update(&self, instance: &ServiceInstance) -> Result<Change> {
        self.with(|state| {
            let known = state.instances.get(&instance.id).filter(|known| known.revision == instance.revision);
            let Some(known) = known.cloned() else { return Ok(Change::Stale) };
            let changed = ServiceInstance {
                plan_id: instance.plan_id.clone(),
                protocol: instance.protocol,
                settings: instance.settings.clone(),
                name: instance.name.clone(),
                revision: state.raise(),
                ..known
            };
            state.instances.insert(changed.id.clone(), changed.clone());
            Ok(Change::Done(changed))
        })
    }

    async fn deprovision(
        &self,
        id: &ServiceInstanceId,
        now: Timestamp,
        quarantined_until: Option<Timestamp>,
    ) -> Result<Option<ServiceInstance>> {
        self.with(|state| {
            let Some(gone) = state.instances.remove(id) else { return Ok(None) };
            let revision = state.raise();
            let bindings = state.bindings.values().filter(|b| b.service_instance_id == *id);
            for binding in bindings.map(|b| b.id.clone()).collect::<Vec<_>>() {
                state.bury_binding(&binding, revision);
            }
            state.deleted_instances.insert(id.clone(), revision);
            let port = state.ports.entry((gone.pool.clone(), gone.port)).or_default();
            port.holder = None;
            if let Some(quarantined_until) = quarantined_until {
                port.last_release = Some(Release { space_id: gone.space_id.clone(), at: now, quarantined_until });
            }
            state.forget_old_tombstones();
            Ok(Some(gone))
        })
    }

    async fn bind(&self, binding: &Binding) -> Result<Bind> {
        self.with(|state| {
            if let Some(known) = state.bindings.get(&binding.id) {
                return Ok(Bind::Exists(known.clone()));
            }
            if !state.instances.contains_key(&binding.service_instance_id) {
                return Ok(Bind::NoServiceInstance);
            }
            let binding = Binding { revision: state.raise(), ..binding.clone() };
            state.deleted_bindings.remove(&binding.id);
            state.bindings.insert(binding.id.clone(), binding.clone());
            Ok(Bind::Created(binding))
        })
    }

    async fn unbind(&self, instance: &ServiceInstanceId, id: &BindingId) -> Result<Option<Binding>> {
        self.with(|state| {
            let known = state.bindings.get(id).filter(|b| b.service_instance_id == *instance);
            let Some(gone) = known.cloned() else { return Ok(None) };
            let revision = state.raise();
            state.bury_binding(id, revision);
            state.forget_old_tombstones();
            Ok(Some(gone))
        })
    }

    async fn join(&self, node: &NodeId, pools: &[PoolName], now: Timestamp) -> Result<()> {
        self.with(|state| {
            let mut pools = pools.to_vec();
            pools.sort();
            pools.dedup();
            state.nodes.insert(node.clone(), Node { id: node.clone(), pools, seen_at: now });
            Ok(())
        })
    }

    async fn nodes(&self) -> Result<Vec<Node>> {
        self.with(|state| Ok(state.nodes.values().cloned().collect()))
    }

    async fn ping(&self) -> Result<()> {
        self.with(|_| Ok(()))
    }

    async fn close(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
