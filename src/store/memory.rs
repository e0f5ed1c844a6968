//! The reference model: the whole of [`Store`] in maps, so short that it can be seen to be right. Other engines are held
//! against it; tests of other modules run on it. It keeps nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;

use super::{
    Bind, CHANGES_KEPT, Change, Changes, Dump, Ending, FAILURES_KEPT, Fault, Feed, Freed, Heard, Hint, LastRelease,
    Operation, PortRow, PortState, Provision, Release, Reservation, Result, Store, feed::Bell, secret,
};
use crate::model::{
    BindingId, NodeId, PoolName, Revision, ServiceInstanceId, SpaceId, Timestamp,
    binding::Binding,
    member::{Member, Report},
    pool::Pool,
    service_instance::ServiceInstance,
    setting::{self, By, Setting, SettingChange},
    token::AnnounceSecret,
};

/// A store that lives as long as its process.
#[derive(Debug)]
pub struct MemoryStore {
    /// `None` once closed.
    state: Mutex<Option<State>>,
    bell: Bell,
    shared: bool,
}

#[derive(Debug, Default)]
struct State {
    revision: Revision,
    secret: Option<AnnounceSecret>,
    instances: BTreeMap<ServiceInstanceId, ServiceInstance>,
    bindings: BTreeMap<BindingId, Binding>,
    ports: BTreeMap<(PoolName, u16), Port>,
    reservations: BTreeMap<(PoolName, String), (Reservation, Revision)>,
    pools: BTreeMap<PoolName, (Pool, Revision)>,
    operations: BTreeMap<ServiceInstanceId, Operation>,
    members: BTreeMap<NodeId, Member>,
    deleted_instances: BTreeMap<ServiceInstanceId, Revision>,
    deleted_bindings: BTreeMap<BindingId, Revision>,
    /// By scope and key.
    settings: BTreeMap<(String, String), Setting>,
    /// By revision, scope and key.
    settings_history: Vec<Setting>,
}

/// What is known of a port that is or was allocated.
#[derive(Debug, Default)]
struct Port {
    holder: Option<ServiceInstanceId>,
    last_release: Option<Release>,
    /// The revision of that.
    freed_at: Revision,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self { state: Mutex::new(Some(State::default())), bell: Bell::default(), shared: false }
    }

    /// An empty store of several nodes, which live in one process.
    #[must_use]
    pub fn shared() -> Self {
        Self { shared: true, ..Self::new() }
    }

    fn with<T>(&self, call: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(state) = state.as_mut() else {
            return Err(Fault { doing: "the store in memory".into(), source: "it is closed".into() });
        };
        let before = state.revision;
        let outcome = call(state);
        if state.revision != before {
            self.bell.ring(Hint::Desired);
        }
        outcome
    }

    /// Changes what is known of nodes; `change` says whether it has.
    fn with_members(&self, change: impl FnOnce(&mut BTreeMap<NodeId, Member>) -> bool) -> Result<bool> {
        let changed = self.with(|state| Ok(change(&mut state.members)))?;
        if changed {
            self.bell.ring(Hint::Members);
        }
        Ok(changed)
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

    /// All but what was freed and reserved, which ports and reservations tell.
    fn all(&self) -> Changes {
        Changes {
            deleted_instances: Vec::new(),
            deleted_bindings: Vec::new(),
            dropped_pools: Vec::new(),
            freed: Vec::new(),
            reserved: Vec::new(),
            settings: Some(self.settings.values().cloned().collect()),
            announce_secret: self.secret.clone(),
            ..self.changes(Revision::default())
        }
    }

    fn changes(&self, after: Revision) -> Changes {
        let freed = self.ports.iter().filter(|(_, known)| known.holder.is_none() && known.freed_at > after);
        let changed = self.settings_history.iter().filter(|change| change.revision > after);
        let changed = changed.map(|change| change.scope.as_str()).collect::<BTreeSet<_>>();
        let reserved = changed.iter().filter_map(|scope| scope.strip_prefix(setting::RESERVATIONS));
        let is_setting = |scope: &&str| {
            ![setting::SECRETS, setting::BLOCKS].contains(scope) && !scope.starts_with(setting::RESERVATIONS)
        };
        let dropped = self.settings_history.iter().filter(|c| c.revision > after && c.scope == setting::BLOCKS);
        let dropped = dropped.map(|change| PoolName::new(change.key.clone()).expect("it was the name of one"));
        let dropped = dropped.filter(|pool| !self.pools.contains_key(pool)).collect::<BTreeSet<_>>();
        let mut changes = Changes {
            revision: self.revision,
            instances: self.instances.values().filter(|instance| instance.revision > after).cloned().collect(),
            bindings: self.bindings.values().filter(|binding| binding.revision > after).cloned().collect(),
            deleted_instances: deleted_after(&self.deleted_instances, after),
            deleted_bindings: deleted_after(&self.deleted_bindings, after),
            pools: self.pools.values().filter(|(_, at)| *at > after).map(|(pool, _)| pool.clone()).collect(),
            dropped_pools: dropped.into_iter().collect(),
            freed: freed
                .filter_map(|((pool, port), known)| {
                    let release = known.last_release.clone()?;
                    Some(Freed { pool: pool.clone(), port: *port, release })
                })
                .collect(),
            reserved: reserved.map(|pool| PoolName::new(pool).expect("it was the name of one")).collect(),
            settings: changed.iter().any(is_setting).then(|| self.settings.values().cloned().collect()),
            announce_secret: self.secret.clone().filter(|_| changed.contains(setting::SECRETS)),
        };
        changes.instances.sort_by_key(|instance| instance.revision);
        changes.bindings.sort_by_key(|binding| binding.revision);
        changes
    }

    fn dump(&self) -> Dump {
        let released = self.ports.iter().filter_map(|((pool, port), known)| {
            let release = known.last_release.clone()?;
            Some(LastRelease { pool: pool.clone(), port: *port, release, revision: known.freed_at })
        });
        let Changes { revision, instances, bindings, .. } = self.all();
        Dump {
            revision,
            announce_secret: self.secret.clone(),
            pools: self.pools.values().cloned().collect(),
            reservations: self.reservations.values().cloned().collect(),
            instances,
            bindings,
            last_releases: released.collect(),
            operations: self.operations.values().cloned().collect(),
            deleted_instances: by_revision(&self.deleted_instances),
            deleted_bindings: by_revision(&self.deleted_bindings),
            settings: self.settings.values().cloned().collect(),
            settings_history: self.settings_history.clone(),
        }
    }

    fn of(dump: Dump) -> Self {
        let mut state = Self {
            revision: dump.revision,
            secret: dump.announce_secret,
            instances: dump.instances.into_iter().map(|instance| (instance.id.clone(), instance)).collect(),
            bindings: dump.bindings.into_iter().map(|binding| (binding.id.clone(), binding)).collect(),
            pools: dump.pools.into_iter().map(|(pool, at)| (pool.name.clone(), (pool, at))).collect(),
            operations: dump.operations.into_iter().map(|o| (o.service_instance_id.clone(), o)).collect(),
            deleted_instances: dump.deleted_instances.into_iter().collect(),
            deleted_bindings: dump.deleted_bindings.into_iter().collect(),
            settings: dump
                .settings
                .into_iter()
                .map(|known| ((known.scope.clone(), known.key.clone()), known))
                .collect(),
            settings_history: dump.settings_history,
            ..Self::default()
        };
        for held in dump.reservations {
            state.reservations.insert((held.0.pool.clone(), held.0.name.clone()), held);
        }
        for LastRelease { pool, port, release, revision } in dump.last_releases {
            let freed = Port { holder: None, last_release: Some(release), freed_at: revision };
            state.ports.insert((pool, port), freed);
        }
        for instance in state.instances.values().cloned().collect::<Vec<_>>() {
            state.hold(&instance);
        }
        state
    }

    /// Adds to the history what is changed with the present revision.
    fn note(&mut self, changes: &[SettingChange], by: &By) {
        let mut noted = changes.iter().map(|change| Setting {
            scope: change.scope.clone(),
            key: change.key.clone(),
            value: change.value.clone(),
            changed_by: by.who.clone(),
            changed_at: by.at,
            revision: self.revision,
        });
        self.settings_history.extend(noted.by_ref());
        self.settings_history.sort_by(|a, b| (a.revision, &a.scope, &a.key).cmp(&(b.revision, &b.scope, &b.key)));
        let kept = self.settings_history.iter().rev().nth(setting::HISTORY_KEPT - 1).map(|first| first.revision);
        let told = Revision(self.revision.0.saturating_sub(CHANGES_KEPT));
        if let Some(kept) = kept {
            self.settings_history.retain(|change| change.revision >= kept || change.revision > told);
        }
    }

    fn note_secret(&mut self, by: &By, what: &str) {
        self.raise();
        let (scope, key) = (setting::SECRETS.into(), "announce".into());
        self.note(&[SettingChange { scope, key, value: Some(what.into()) }], by);
    }

    fn is_free(&self, pool: &PoolName, port: u16, space: &SpaceId, asked_for: bool, now: Timestamp) -> bool {
        let reserved = self.reservations.values().any(|(r, _)| r.pool == *pool && r.contains(port));
        let held = self.ports.get(&(pool.clone(), port)).is_some_and(|port| {
            port.holder.is_some()
                || port.last_release.as_ref().is_some_and(|last| now < last.barred_until(space, asked_for))
        });
        !reserved && !held
    }

    fn is_opened_by(&self, id: &ServiceInstanceId, node: &NodeId) -> bool {
        self.operations.get(id).is_some_and(|operation| is_under_way_on(operation, node))
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
    by_revision(tombstones).into_iter().filter(|(_, at)| *at > after).map(|(id, _)| id).collect()
}

fn by_revision<Id: Clone + Ord>(tombstones: &BTreeMap<Id, Revision>) -> Vec<(Id, Revision)> {
    let mut deleted = tombstones.iter().map(|(id, at)| (id.clone(), *at)).collect::<Vec<_>>();
    deleted.sort_by(|(id, at), (other, other_at)| (at, id).cmp(&(other_at, other)));
    deleted
}

fn is_told(operation: &Operation, now: Timestamp) -> bool {
    operation.failure.is_none() || now < operation.changed_at.plus(FAILURES_KEPT)
}

fn is_under_way_on(operation: &Operation, node: &NodeId) -> bool {
    operation.failure.is_none() && operation.node_id == *node
}

#[async_trait]
impl Store for MemoryStore {
    async fn announce_secret(&self) -> Result<AnnounceSecret> {
        self.with(|state| match &state.secret {
            Some(secret) => Ok(secret.clone()),
            None => Ok(state.secret.insert(secret::fresh()?).clone()),
        })
    }

    async fn rotate_announce_secret(&self, by: &By) -> Result<bool> {
        self.with(|state| {
            if state.secret.as_ref().is_some_and(|secret| secret.former().is_some()) {
                return Ok(false);
            }
            let made = secret::fresh()?;
            state.secret = Some(state.secret.take().map_or(made.clone(), |known| made.after(&known)));
            state.note_secret(by, "rotated");
            Ok(true)
        })
    }

    async fn drop_former_secret(&self, by: &By) -> Result<bool> {
        self.with(|state| {
            let Some(secret) = state.secret.take_if(|secret| secret.former().is_some()) else { return Ok(false) };
            state.secret = Some(AnnounceSecret::new(*secret.expose()));
            state.note_secret(by, "former dropped");
            Ok(true)
        })
    }

    async fn everything(&self) -> Result<Changes> {
        self.with(|state| Ok(state.all()))
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
        let of_pool = |(r, _): &(Reservation, Revision)| (r.pool == *pool).then(|| r.clone());
        self.with(|state| Ok(state.reservations.values().filter_map(of_pool).collect()))
    }

    async fn reservation_changes(&self, pool: &PoolName) -> Result<Vec<Setting>> {
        self.with(|state| {
            let scope = setting::reservations_of(pool);
            let made = |change: &&Setting| {
                let held = state.reservations.get(&(pool.clone(), change.key.clone()));
                change.scope == scope && held.is_some_and(|(_, revision)| *revision == change.revision)
            };
            let mut changes = state.settings_history.iter().filter(made).cloned().collect::<Vec<_>>();
            changes.sort_by(|a, b| a.key.cmp(&b.key));
            Ok(changes)
        })
    }

    async fn change_reservations(
        &self,
        released: &[(PoolName, String)],
        made: &[Reservation],
        known: &BTreeSet<(PoolName, u16)>,
        by: &By,
    ) -> Result<bool> {
        self.with(|state| {
            let mut reservations = state.reservations.clone();
            let mut history = BTreeMap::new();
            for (pool, name) in released {
                if reservations.remove(&(pool.clone(), name.clone())).is_none() {
                    return Ok(false);
                }
                history.insert((setting::reservations_of(pool), name.clone()), None);
            }
            let revision = Revision(state.revision.0 + 1);
            for reservation in made {
                if !state.pools.contains_key(&reservation.pool) {
                    return Ok(false);
                }
                let clashes = |r: &Reservation| r.name == reservation.name || r.overlaps(reservation);
                if reservations.values().any(|(r, _)| r.pool == reservation.pool && clashes(r)) {
                    return Ok(false);
                }
                let is_in_the_way = |instance: &ServiceInstance| {
                    let place = (instance.pool.clone(), instance.port);
                    instance.pool == reservation.pool && reservation.contains(instance.port) && !known.contains(&place)
                };
                if state.instances.values().any(is_in_the_way) {
                    return Ok(false);
                }
                let key = (reservation.pool.clone(), reservation.name.clone());
                history.insert((setting::reservations_of(&key.0), key.1.clone()), Some(reservation.told()));
                reservations.insert(key, (reservation.clone(), revision));
            }
            if !history.is_empty() {
                state.reservations = reservations;
                state.raise();
                let change = |((scope, key), value)| SettingChange { scope, key, value };
                state.note(&history.into_iter().map(change).collect::<Vec<_>>(), by);
            }
            Ok(true)
        })
    }

    async fn settings(&self) -> Result<(Revision, Vec<Setting>)> {
        self.with(|state| Ok((state.revision, state.settings.values().cloned().collect())))
    }

    async fn change_settings(&self, changes: &[SettingChange], by: &By, read_at: Revision) -> Result<Option<Revision>> {
        self.with(|state| {
            if state.changes(read_at).settings.is_some() {
                return Ok(None);
            }
            let revision = state.raise();
            state.note(changes, by);
            for SettingChange { scope, key, value } in changes.iter().cloned() {
                state.settings.remove(&(scope.clone(), key.clone()));
                if value.is_some() {
                    let (changed_by, changed_at) = (by.who.clone(), by.at);
                    let set =
                        Setting { scope: scope.clone(), key: key.clone(), value, changed_by, changed_at, revision };
                    state.settings.insert((scope, key), set);
                }
            }
            Ok(Some(revision))
        })
    }

    async fn settings_history(&self, limit: usize) -> Result<Vec<Setting>> {
        self.with(|state| {
            let mut history = state.settings_history.clone();
            history.sort_by(|a, b| (b.revision, &a.scope, &a.key).cmp(&(a.revision, &b.scope, &b.key)));
            history.truncate(limit);
            Ok(history)
        })
    }

    async fn instance(&self, id: &ServiceInstanceId) -> Result<Option<ServiceInstance>> {
        self.with(|state| Ok(state.instances.get(id).cloned()))
    }

    async fn instances_at(&self, pool: &PoolName, ports: RangeInclusive<u16>) -> Result<Vec<ServiceInstance>> {
        let is_meant = |instance: &&ServiceInstance| instance.pool == *pool && ports.contains(&instance.port);
        self.with(|state| {
            let mut found = state.instances.values().filter(is_meant).cloned().collect::<Vec<_>>();
            found.sort_by_key(|instance| instance.port);
            Ok(found)
        })
    }

    async fn binding(&self, instance: &ServiceInstanceId, id: &BindingId) -> Result<Option<Binding>> {
        self.with(|state| Ok(state.bindings.get(id).filter(|b| b.service_instance_id == *instance).cloned()))
    }

    async fn provision(&self, instance: &ServiceInstance, open_later: bool, now: Timestamp) -> Result<Provision> {
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
            state.operations.remove(&instance.id);
            if open_later {
                let (service_instance_id, node_id) = (instance.id.clone(), instance.node_id.clone());
                let operation = Operation { service_instance_id, node_id, failure: None, changed_at: now };
                state.operations.insert(instance.id.clone(), operation);
            }
            Ok(Provision::Created(instance))
        })
    }

    async fn move_port(
        &self,
        id: &ServiceInstanceId,
        from: u16,
        to: u16,
        by: Option<&NodeId>,
        now: Timestamp,
    ) -> Result<Change> {
        self.with(|state| {
            let known = state.instances.get(id).filter(|known| known.port == from).cloned();
            let Some(known) = known.filter(|_| by.is_none_or(|by| state.is_opened_by(id, by))) else {
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
        ending: Ending<'_>,
    ) -> Result<Option<ServiceInstance>> {
        self.with(|state| {
            if let Ending::Failed { by, .. } = ending
                && !state.is_opened_by(id, by)
            {
                return Ok(None);
            }
            let Some(gone) = state.instances.remove(id) else { return Ok(None) };
            let revision = state.raise();
            let bindings = state.bindings.values().filter(|b| b.service_instance_id == *id);
            for binding in bindings.map(|b| b.id.clone()).collect::<Vec<_>>() {
                state.bury_binding(&binding, revision);
            }
            state.deleted_instances.insert(id.clone(), revision);
            let port = state.ports.entry((gone.pool.clone(), gone.port)).or_default();
            port.holder = None;
            if let Ending::Rest(quarantined_until) = ending {
                port.last_release = Some(Release { space_id: gone.space_id.clone(), at: now, quarantined_until });
                port.freed_at = revision;
            }
            let operation = state.operations.remove(id);
            if let (Ending::Failed { why, .. }, Some(operation)) = (ending, operation) {
                let operation = Operation { failure: Some(why.into()), changed_at: now, ..operation };
                state.operations.insert(id.clone(), operation);
            }
            state.operations.retain(|_, operation| is_told(operation, now));
            let suspension = (setting::SUSPENDED.to_owned(), id.to_string());
            if state.settings.remove(&suspension).is_some() {
                let (scope, key) = suspension;
                state.note(&[SettingChange { scope, key, value: None }], &By::deprovision(now));
            }
            state.forget_old_tombstones();
            Ok(Some(gone))
        })
    }

    async fn operation(&self, id: &ServiceInstanceId, now: Timestamp) -> Result<Option<Operation>> {
        self.with(|state| Ok(state.operations.get(id).filter(|operation| is_told(operation, now)).cloned()))
    }

    async fn operations(&self) -> Result<Vec<Operation>> {
        self.with(|state| Ok(state.operations.values().filter(|o| o.failure.is_none()).cloned().collect()))
    }

    async fn take_up(&self, id: &ServiceInstanceId, from: &NodeId, to: &NodeId, now: Timestamp) -> Result<bool> {
        self.with(|state| {
            let Some(operation) = state.operations.get_mut(id).filter(|o| is_under_way_on(o, from)) else {
                return Ok(false);
            };
            (operation.node_id, operation.changed_at) = (to.clone(), now);
            Ok(true)
        })
    }

    async fn opened(&self, id: &ServiceInstanceId, by: &NodeId) -> Result<bool> {
        self.with(|state| {
            let ends = state.is_opened_by(id, by);
            if ends {
                state.operations.remove(id);
            }
            Ok(ends)
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

    async fn pools(&self) -> Result<(Revision, Vec<Pool>)> {
        self.with(|state| Ok((state.revision, state.pools.values().map(|(pool, _)| pool.clone()).collect())))
    }

    async fn define_pools(&self, pools: &[Pool], read_at: Revision) -> Result<Option<Revision>> {
        self.with(|state| {
            let changed_since = |pool: &Pool| state.pools.get(&pool.name).is_some_and(|(_, at)| *at > read_at);
            if pools.iter().any(changed_since) {
                return Ok(None);
            }
            let revision = state.raise();
            state.pools.extend(pools.iter().map(|pool| (pool.name.clone(), (pool.clone(), revision))));
            Ok(Some(revision))
        })
    }

    async fn drop_pools(&self, pools: &[PoolName], by: &By, read_at: Revision) -> Result<Option<Revision>> {
        self.with(|state| {
            let can_go = |name: &PoolName| {
                state.pools.get(name).is_some_and(|(_, at)| *at <= read_at)
                    && !state.members.values().any(|member| member.pools.contains(name))
                    && !state.reservations.keys().any(|(pool, _)| pool == name)
                    && !state.instances.values().any(|instance| instance.pool == *name)
            };
            if !pools.iter().all(can_go) {
                return Ok(None);
            }
            let gone =
                |name: &PoolName| SettingChange { scope: setting::BLOCKS.into(), key: name.to_string(), value: None };
            state.pools.retain(|name, _| !pools.contains(name));
            let revision = state.raise();
            state.note(&pools.iter().map(gone).collect::<Vec<_>>(), by);
            Ok(Some(revision))
        })
    }

    async fn join(&self, member: &Member) -> Result<()> {
        self.with_members(|members| {
            let drain = members.get(&member.id).map_or(member.drain, |known| known.drain);
            members.insert(member.id.clone(), Member { drain, ..member.clone() });
            true
        })?;
        Ok(())
    }

    async fn report(&self, node: &NodeId, incarnation: &str, report: &Report, now: Timestamp) -> Result<Heard> {
        let mut heard = Heard::Gone;
        self.with_members(|members| {
            let Some(member) = members.get_mut(node) else { return false };
            if member.incarnation != incarnation {
                heard = Heard::Superseded;
                return false;
            }
            (member.report, member.seen_at) = (report.clone(), now);
            heard = Heard::Kept;
            true
        })?;
        Ok(heard)
    }

    async fn set_drain(&self, node: &NodeId, drain: bool) -> Result<bool> {
        self.with_members(|members| members.get_mut(node).map(|member| member.drain = drain).is_some())
    }

    async fn remove_node(&self, node: &NodeId) -> Result<bool> {
        self.with_members(|members| members.remove(node).is_some())
    }

    async fn members(&self) -> Result<Vec<Member>> {
        self.with(|state| Ok(state.members.values().cloned().collect()))
    }

    async fn feed(&self) -> Result<Box<dyn Feed>> {
        self.with(|_| Ok(self.bell.listen()))
    }

    async fn export(&self) -> Result<Dump> {
        self.with(|state| Ok(state.dump()))
    }

    async fn import(&self, dump: &Dump) -> Result<bool> {
        self.with(|state| {
            if state.dump() != Dump::default() || !state.members.is_empty() {
                return Ok(false);
            }
            *state = State::of(dump.clone());
            Ok(true)
        })
    }

    async fn ping(&self) -> Result<()> {
        self.with(|_| Ok(()))
    }

    fn serves_many(&self) -> bool {
        self.shared
    }

    async fn close(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
