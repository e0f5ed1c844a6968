//! The snapshot: the store's revisions made into desired states for the forwarder and directories for discovery.
//!
//! Each refresh reads only what changed; what did not is shared with the value before, down to the same
//! `Arc<ListenerSpec>`, so that a reader can tell by the pointer.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{Mutex, watch};

use super::{
    Facts, failure,
    ports::{PortChanges, Ports},
    secret::{self, Rotation},
};
use crate::{
    model::{
        Clock, PlanId, PoolName, Protocol, Revision, ServiceInstanceId,
        desired::{DesiredState, ForwarderLimits, ListenerSpec, Listeners},
        directory::{Directory, DirectoryEntry},
        effective::bounded,
        parameters::Settings,
        pool::Pools,
        restraint::Restraints,
        service_instance::ServiceInstance,
        setting::Setting,
    },
    store::{self, AnyStore, Changes},
};

/// What is published, and what it is made from.
pub(super) struct Snapshot {
    store: AnyStore,
    clock: Arc<dyn Clock>,
    ports: Arc<Ports>,
    facts: ArcSwap<Facts>,
    pools: watch::Sender<Pools>,
    settings: watch::Sender<Arc<[Setting]>>,
    rotation: ArcSwapOption<Rotation>,
    state: Mutex<State>,
    desired: watch::Sender<Arc<DesiredState>>,
    directory: watch::Sender<Arc<Directory>>,
}

#[derive(Debug)]
struct State {
    facts: Arc<Facts>,
    revision: Revision,
    /// [`Store::losses`](store::Store::losses) before it was read: another database counts revisions anew.
    losses: u64,
    instances: HashMap<ServiceInstanceId, Known>,
    directory: Directory,
    /// Live settings, by scope and key.
    live: Arc<[Setting]>,
    /// The rotation of the announce secret that is under way.
    rotation: Option<Arc<Rotation>>,
    /// What of those holds something back.
    restraints: Arc<Restraints>,
    listeners: Listeners,
    /// What a listener carries while a change of its protocol is being tried, in place of what is stored.
    tried: HashMap<ServiceInstanceId, Protocol>,
    /// The last [`ListenerSpec::version`].
    version: u64,
}

/// What is kept of a service instance, by the thousand: what a listener and a directory entry are made from.
#[derive(Debug)]
struct Known {
    plan_id: PlanId,
    pool: PoolName,
    port: u16,
    protocol: Protocol,
    settings: Settings,
}

impl Snapshot {
    pub(super) async fn open(
        store: AnyStore,
        clock: Arc<dyn Clock>,
        ports: Arc<Ports>,
        facts: Facts,
        directory: Directory,
    ) -> store::Result<Self> {
        let mut state = State {
            facts: Arc::new(facts),
            revision: Revision::default(),
            losses: store.losses(),
            instances: HashMap::new(),
            directory,
            live: Arc::default(),
            rotation: None,
            restraints: Arc::default(),
            listeners: Listeners::default(),
            tried: HashMap::new(),
            version: 0,
        };
        state.replace(store.everything().await?);
        state.follow_rotation(&store).await;
        ports.set_pools(&state.facts.pools, clock.wall()).await;
        let served = &state.facts.served;
        let elsewhere = state.instances.values().filter(|instance| !served.contains(&instance.pool)).count();
        if elsewhere > 0 {
            tracing::info!("{elsewhere} service instances belong to pools that this node does not serve");
        }
        let (desired, directory) = (watch::Sender::new(state.desired()), watch::Sender::new(state.directory()));
        let facts = ArcSwap::new(Arc::clone(&state.facts));
        let pools = watch::Sender::new(state.facts.pools.clone());
        let settings = watch::Sender::new(Arc::clone(&state.live));
        let rotation = ArcSwapOption::new(state.rotation.clone());
        Ok(Self { store, clock, ports, facts, pools, settings, rotation, state: Mutex::new(state), desired, directory })
    }

    pub(super) fn pools(&self) -> watch::Receiver<Pools> {
        self.pools.subscribe()
    }

    pub(super) fn settings(&self) -> watch::Receiver<Arc<[Setting]>> {
        self.settings.subscribe()
    }

    pub(super) fn rotation(&self) -> Option<Rotation> {
        self.rotation.load().as_deref().cloned()
    }

    /// What holds by now, apart from service instances.
    pub(super) fn facts(&self) -> Arc<Facts> {
        self.facts.load_full()
    }

    pub(super) fn desired(&self) -> watch::Receiver<Arc<DesiredState>> {
        self.desired.subscribe()
    }

    pub(super) fn directory(&self) -> watch::Receiver<Arc<Directory>> {
        self.directory.subscribe()
    }

    /// Publishes what the store has.
    pub(super) async fn refresh(&self) -> store::Result<()> {
        let mut state = self.state.lock().await;
        self.read(&mut state).await
    }

    /// Publishes what the store has, if `revision` has not been published yet. Of many that wait, the first reads for all.
    pub(super) async fn reach(&self, revision: Revision) -> store::Result<()> {
        let mut state = self.state.lock().await;
        if state.revision >= revision && state.losses == self.store.losses() {
            return Ok(());
        }
        self.read(&mut state).await
    }

    /// The revision that is published.
    pub(super) async fn revision(&self) -> Revision {
        self.state.lock().await.revision
    }

    /// The version of a listener as it is published; none for a service instance of a pool that is not served.
    pub(super) async fn version(&self, id: &ServiceInstanceId) -> Option<u64> {
        self.state.lock().await.listeners.get(id).map(|spec| spec.version)
    }

    /// Whether it is published that a service instance has no listener for now.
    pub(super) async fn is_suspended(&self, id: &ServiceInstanceId) -> bool {
        self.state.lock().await.restraints.suspended.contains_key(id)
    }

    /// Publishes the listener as if it carried `protocol`, until [`Snapshot::settle`].
    pub(super) async fn try_protocol(&self, id: &ServiceInstanceId, protocol: Protocol) {
        let mut state = self.state.lock().await;
        state.tried.insert(id.clone(), protocol);
        state.relist(id);
        self.publish(&state);
    }

    /// Ends a trial: publishes the listener as it is stored.
    pub(super) async fn settle(&self, id: &ServiceInstanceId) -> store::Result<()> {
        let mut state = self.state.lock().await;
        state.tried.remove(id);
        // Before anything is published, so that a change that was committed never flickers back.
        let read = self.read_quietly(&mut state).await;
        state.relist(id);
        self.publish(&state);
        read.map(drop)
    }

    /// Takes over what `change` makes of what holds.
    pub(super) async fn change_facts(&self, change: impl FnOnce(&Facts) -> Facts) {
        let mut state = self.state.lock().await;
        state.facts = Arc::new(change(&state.facts));
        state.show_all();
        self.publish(&state);
    }

    async fn read(&self, state: &mut State) -> store::Result<()> {
        if self.read_quietly(state).await? {
            self.publish(state);
        }
        Ok(())
    }

    /// Whether there was anything new.
    async fn read_quietly(&self, state: &mut State) -> store::Result<bool> {
        let (before, revision) = (Arc::clone(&state.facts), state.revision);
        let losses = self.store.losses();
        let changes = if losses == state.losses { self.store.changes_since(revision).await? } else { None };
        // What was lost on the way there may have been another one's.
        let changes = changes.filter(|_| losses == self.store.losses());
        let ports = match changes {
            Some(changes) => {
                let ports = state.port_changes(&changes);
                state.apply(changes);
                Some(ports)
            }
            None => {
                state.replace(self.store.everything().await?);
                None
            }
        };
        state.losses = losses;
        state.follow_rotation(&self.store).await;
        let is_new = ports.is_none() || state.revision != revision;
        let now = self.clock.wall();
        if !Arc::ptr_eq(&before, &state.facts) {
            self.ports.set_pools(&state.facts.pools, now).await;
        }
        match ports {
            Some(ports) => self.ports.follow(ports, &state.directory, now).await,
            None => self.ports.doubt_all().await,
        }
        Ok(is_new)
    }

    fn publish(&self, state: &State) {
        self.facts.store(Arc::clone(&state.facts));
        self.pools.send_if_modified(|known| {
            let changed = *known != state.facts.pools;
            if changed {
                known.clone_from(&state.facts.pools);
            }
            changed
        });
        self.rotation.store(state.rotation.clone());
        self.settings.send_if_modified(|known| {
            let changed = !Arc::ptr_eq(known, &state.live);
            known.clone_from(&state.live);
            changed
        });
        // Discovery first: it must know a service instance before anything can arrive at its port.
        self.directory.send_replace(state.directory());
        self.desired.send_replace(state.desired());
    }
}

impl State {
    fn desired(&self) -> Arc<DesiredState> {
        Arc::new(DesiredState {
            revision: self.revision,
            listeners: self.listeners.clone(),
            limits: self.limits(),
            restraints: Arc::clone(&self.restraints),
        })
    }

    /// The forwarder's limits, with the networks that are blocked.
    fn limits(&self) -> Arc<ForwarderLimits> {
        let (limits, blocked) = (&self.facts.limits, &self.restraints.networks);
        if limits.blocked == *blocked {
            return Arc::clone(limits);
        }
        Arc::new(ForwarderLimits { blocked: Arc::clone(blocked), ..ForwarderLimits::clone(limits) })
    }

    fn directory(&self) -> Arc<Directory> {
        Arc::new(self.directory.clone())
    }

    /// What these changes do to ports. Before they are applied: what a service instance had is known only until then.
    fn port_changes(&self, changes: &Changes) -> PortChanges {
        let place = |known: &Known| (known.pool.clone(), known.port);
        let gone = changes.deleted_instances.iter().chain(changes.instances.iter().map(|instance| &instance.id));
        PortChanges {
            given_back: gone.filter_map(|id| self.instances.get(id)).map(place).collect(),
            freed: changes.freed.clone(),
            taken: changes.instances.iter().map(|instance| (instance.pool.clone(), instance.port)).collect(),
            reserved: changes.reserved.clone(),
        }
    }

    fn apply(&mut self, changes: Changes) {
        if !changes.pools.is_empty() || !changes.dropped_pools.is_empty() {
            let mut facts = Facts::clone(&self.facts);
            facts.pools.retain(|name, _| !changes.dropped_pools.contains(name));
            facts.pools.extend(changes.pools.into_iter().map(|pool| (pool.name.clone(), pool)));
            self.facts = Arc::new(facts);
            self.show_all();
        }
        if let Some(settings) = changes.settings
            && *self.live != settings[..]
        {
            self.live = settings.into();
            self.restrain();
        }
        if let Some(secret) = changes.announce_secret {
            self.directory.announce_secret = secret;
        }
        for id in &changes.deleted_bindings {
            self.directory.remove_binding(id);
        }
        for id in &changes.deleted_instances {
            self.instances.remove(id);
            self.show(id);
        }
        for instance in changes.instances {
            let (id, known) = self.keep(instance);
            self.instances.insert(id.clone(), known);
            self.show(&id);
        }
        for binding in changes.bindings {
            self.directory.put_binding(&Arc::new(binding));
        }
        self.revision = changes.revision;
        self.directory.revision = changes.revision;
    }

    /// Takes over the whole of the store, as changes to what is known.
    fn replace(&mut self, mut all: Changes) {
        let instances = all.instances.iter().map(|instance| &instance.id).collect::<HashSet<_>>();
        let bindings = all.bindings.iter().map(|binding| &binding.id).collect::<HashSet<_>>();
        let gone = self.instances.keys().filter(|id| !instances.contains(id)).cloned().collect();
        let known = self.directory.instances().flat_map(|entry| &entry.bindings);
        let unbound = known.filter(|id| !bindings.contains(id)).cloned().collect();
        (all.deleted_instances, all.deleted_bindings) = (gone, unbound);
        let defined = |name: &PoolName| all.pools.iter().any(|pool| pool.name == *name);
        if self.facts.pools.keys().any(|name| !defined(name)) {
            let mut facts = Facts::clone(&self.facts);
            facts.pools.retain(|name, _| defined(name));
            self.facts = Arc::new(facts);
            self.show_all();
        }
        self.apply(all);
    }

    /// Finds out since when the announce secret is being rotated, if it is. Where that cannot be told now, the next refresh asks
    /// again.
    async fn follow_rotation(&mut self, store: &AnyStore) {
        if self.directory.announce_secret.former().is_none() {
            self.rotation = None;
        } else if self.rotation.as_ref().is_none_or(|known| known.began.is_none()) {
            let began = secret::began(store).await.unwrap_or_else(|fault| {
                tracing::debug!(error = %failure::chain(&fault), "it is not known since when a rotation is under way");
                None
            });
            self.rotation = Some(Arc::new(Rotation { began }));
        }
    }

    /// Takes over what is held back by now: listeners go, or come again.
    fn restrain(&mut self) {
        let before = std::mem::replace(&mut self.restraints, Arc::new(Restraints::of(&self.live)));
        let now = Arc::clone(&self.restraints);
        for id in before.suspended.keys().chain(now.suspended.keys()) {
            self.relist(id);
        }
    }

    /// Names of plans and pools are shared with the configuration.
    fn keep(&self, instance: ServiceInstance) -> (ServiceInstanceId, Known) {
        let ServiceInstance { id, plan_id, pool, port, protocol, settings, .. } = instance;
        let plan = self.facts.plans.iter().find(|plan| plan.id == plan_id);
        let plan_id = plan.map_or(plan_id, |plan| plan.id.clone());
        let pool = self.facts.pools.get_key_value(&pool).map_or(pool, |(name, _)| name.clone());
        (id, Known { plan_id, pool, port, protocol, settings })
    }

    fn show_all(&mut self) {
        for id in self.instances.keys().cloned().collect::<Vec<_>>() {
            self.show(&id);
        }
    }

    /// Brings directory and listener of a service instance up to date.
    fn show(&mut self, id: &ServiceInstanceId) {
        let known = self.instances.get(id).and_then(|instance| {
            let pool = self.facts.pools.get(&instance.pool)?;
            Some(DirectoryEntry {
                id: id.clone(),
                pool: instance.pool.clone(),
                port: instance.port,
                protocol: instance.protocol,
                int_port: instance.settings.int_port.unwrap_or(pool.int_port),
                match_app: instance.settings.match_app.unwrap_or_default(),
                bindings: Default::default(),
                apps: Default::default(),
            })
        });
        match known {
            Some(entry) => self.directory.put_instance(entry),
            None => self.directory.remove_instance(id),
        }
        self.relist(id);
    }

    /// Brings the listener of a service instance up to date. One that would be the same stays the same.
    fn relist(&mut self, id: &ServiceInstanceId) {
        let Some(wanted) = self.listener(id) else {
            self.listeners.remove_mut(id);
            return;
        };
        let same = |known: &Arc<ListenerSpec>| {
            ListenerSpec { version: wanted.version, ..ListenerSpec::clone(known) } == wanted
        };
        if !self.listeners.get(id).is_some_and(same) {
            self.version = wanted.version;
            self.listeners.insert_mut(id.clone(), Arc::new(wanted));
        }
    }

    /// The listener that a service instance should have, with the next version.
    fn listener(&self, id: &ServiceInstanceId) -> Option<ListenerSpec> {
        if self.restraints.suspended.contains_key(id) {
            return None;
        }
        let instance = self.instances.get(id).filter(|instance| self.facts.served.contains(&instance.pool))?;
        let protocol = self.tried.get(id).copied().unwrap_or(instance.protocol);
        // A plan that was taken out of the configuration no longer caps anything.
        let caps =
            self.facts.plans.iter().find(|plan| plan.id == instance.plan_id).map(|plan| plan.caps).unwrap_or_default();
        Some(ListenerSpec {
            service_instance_id: id.clone(),
            pool: instance.pool.clone(),
            port: instance.port,
            protocol,
            settings: bounded(&instance.settings, protocol, caps, &self.facts.limits),
            version: self.version + 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        time::Duration,
    };

    use super::*;
    use crate::{
        model::{
            AppId, BindingId, NodeId, OrganizationId, PoolName, SpaceId, Timestamp,
            binding::Binding,
            desired::ForwarderLimits,
            plan::Plan,
            pool::{Pool, PoolNames},
        },
        store::{CHANGES_KEPT, Store as _, memory::MemoryStore},
    };

    fn id(text: &str) -> ServiceInstanceId {
        ServiceInstanceId::new(text).unwrap()
    }

    fn instance(name: &str, pool: &str, port: u16) -> ServiceInstance {
        let plans = Plan::built_in(&PoolName::new("default").unwrap());
        ServiceInstance {
            id: id(name),
            plan_id: plans[1].id.clone(),
            pool: PoolName::new(pool).unwrap(),
            port,
            protocol: Protocol::Tcp,
            requested_port: None,
            settings: Settings::default(),
            organization_id: OrganizationId::new("org").unwrap(),
            space_id: SpaceId::new("space").unwrap(),
            name: None,
            node_id: NodeId::new("node").unwrap(),
            created_at: Timestamp::default(),
            revision: Revision::default(),
        }
    }

    fn binding(name: &str, of: &str) -> Binding {
        Binding {
            id: BindingId::new(name).unwrap(),
            service_instance_id: id(of),
            app_id: None,
            space_id: None,
            announce: true,
            predecessor_id: None,
            created_at: Timestamp::default(),
            revision: Revision::default(),
        }
    }

    async fn provision(store: &MemoryStore, name: &str, pool: &str, port: u16) {
        let outcome = store.provision(&instance(name, pool, port), false, Timestamp::default()).await.unwrap();
        assert!(matches!(outcome, store::Provision::Created(_)), "{outcome:?}");
    }

    struct StoppedClock;

    impl Clock for StoppedClock {
        fn now(&self) -> std::time::Instant {
            unreachable!("a snapshot measures nothing")
        }

        fn wall(&self) -> Timestamp {
            Timestamp::default()
        }
    }

    async fn open(store: &Arc<MemoryStore>) -> Snapshot {
        let pool = Pool {
            name: PoolName::new("default").unwrap(),
            ports: "35000-35999".parse().unwrap(),
            names: PoolNames::default(),
            int_port: 4100,
            quarantine: Duration::ZERO,
            retired: false,
        };
        let (read_at, _) = store.pools().await.unwrap();
        store.define_pools(std::slice::from_ref(&pool), read_at).await.unwrap();
        let facts = Facts {
            served: BTreeSet::from([pool.name.clone()]),
            file: [pool.clone()].into(),
            plans: Plan::built_in(&pool.name).into(),
            pools: BTreeMap::from([(pool.name.clone(), pool)]),
            limits: Arc::new(ForwarderLimits::default()),
        };
        let directory = Directory::new(store.announce_secret().await.unwrap());
        let ports = Arc::new(Ports::new(store.clone()));
        Snapshot::open(store.clone(), Arc::new(StoppedClock), ports, facts, directory).await.unwrap()
    }

    #[tokio::test]
    async fn what_was_stored_before_the_start_is_there_at_once() {
        let store = Arc::new(MemoryStore::new());
        provision(&store, "a", "default", 35_000).await;
        store.bind(&binding("b", "a")).await.unwrap();
        let snapshot = open(&store).await;
        let (desired, directory) = (snapshot.desired(), snapshot.directory());
        assert_eq!((desired.borrow().revision, directory.borrow().revision), (Revision(3), Revision(3)));
        assert_eq!(desired.borrow().listeners.get("a").unwrap().port, 35_000);
        assert!(directory.borrow().binding("b").is_some());
    }

    #[tokio::test]
    async fn what_did_not_change_is_shared_by_pointer() {
        let store = Arc::new(MemoryStore::new());
        provision(&store, "a", "default", 35_000).await;
        let snapshot = open(&store).await;
        let before = snapshot.desired().borrow().clone();
        provision(&store, "b", "default", 35_001).await;
        store.bind(&binding("b", "a")).await.unwrap();
        snapshot.refresh().await.unwrap();
        let after = snapshot.desired().borrow().clone();
        assert!(Arc::ptr_eq(&before.listeners[&id("a")], &after.listeners[&id("a")]));
        assert_eq!((before.listeners.size(), after.listeners.size()), (1, 2));
        assert!(after.listeners[&id("b")].version > before.listeners[&id("a")].version);

        snapshot.refresh().await.unwrap();
        assert!(Arc::ptr_eq(&after, &snapshot.desired().borrow()), "nothing new, nothing published");
    }

    #[tokio::test]
    async fn after_a_gap_all_is_read_and_what_is_gone_goes() {
        let store = Arc::new(MemoryStore::new());
        provision(&store, "kept", "default", 35_000).await;
        provision(&store, "deleted", "default", 35_001).await;
        for name in ["kept", "deleted"] {
            store.bind(&binding(name, name)).await.unwrap();
        }
        store.bind(&binding("unbound", "kept")).await.unwrap();
        let snapshot = open(&store).await;
        let before = snapshot.desired().borrow().clone();

        store.deprovision(&id("deleted"), Timestamp::default(), store::Ending::Unused).await.unwrap();
        store.unbind(&id("kept"), &BindingId::new("unbound").unwrap()).await.unwrap();
        for _ in 0..=CHANGES_KEPT / 2 {
            store.bind(&binding("passing", "kept")).await.unwrap();
            store.unbind(&id("kept"), &BindingId::new("passing").unwrap()).await.unwrap();
        }
        assert_eq!(store.changes_since(before.revision).await.unwrap(), None, "too far back");
        snapshot.refresh().await.unwrap();

        let after = snapshot.desired().borrow().clone();
        assert_eq!(after.revision, store.everything().await.unwrap().revision);
        assert_eq!(after.listeners.size(), 1);
        assert!(Arc::ptr_eq(&before.listeners[&id("kept")], &after.listeners[&id("kept")]));
        let directory = snapshot.directory().borrow().clone();
        assert!(directory.instance("deleted").is_none() && directory.binding("deleted").is_none());
        assert!(directory.binding("unbound").is_none() && directory.binding("kept").is_some());
    }

    #[tokio::test]
    async fn a_pool_that_was_dropped_is_none_of_the_pools_any_more() {
        let store = Arc::new(MemoryStore::new());
        let snapshot = open(&store).await;
        let block = Pool::block(PoolName::new("block").unwrap(), "45000-45999".parse().unwrap());
        let (read_at, _) = store.pools().await.unwrap();
        let defined = store.define_pools(std::slice::from_ref(&block), read_at).await.unwrap().unwrap();
        snapshot.refresh().await.unwrap();
        assert!(snapshot.facts().pools.contains_key(&block.name));
        let by = crate::model::setting::By::deprovision(Timestamp::default());
        store.drop_pools(std::slice::from_ref(&block.name), &by, defined).await.unwrap().unwrap();
        snapshot.refresh().await.unwrap();
        let names = |pools: &Pools| pools.keys().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            (names(&snapshot.facts().pools), names(&snapshot.pools().borrow())),
            (vec!["default".into()], vec!["default".into()])
        );
    }

    #[tokio::test]
    async fn a_pool_that_is_not_served_has_no_listeners_here() {
        let store = Arc::new(MemoryStore::new());
        provision(&store, "a", "elsewhere", 35_000).await;
        let snapshot = open(&store).await;
        assert_eq!(snapshot.desired().borrow().listeners.size(), 0);
        assert!(snapshot.directory().borrow().instance("a").is_none());
        assert_eq!(snapshot.version(&id("a")).await, None);
        assert_eq!(snapshot.desired().borrow().revision, Revision(2));
    }

    #[tokio::test]
    async fn a_binding_that_was_made_anew_between_two_reads_leaves_no_authority_behind() {
        let store = Arc::new(MemoryStore::new());
        for (name, port) in [("a", 35_000), ("b", 35_001)] {
            provision(&store, name, "default", port).await;
        }
        let of_app = |of: &str, app: &str| Binding { app_id: Some(AppId::new(app).unwrap()), ..binding("1", of) };
        store.bind(&of_app("a", "first")).await.unwrap();
        let snapshot = open(&store).await;
        let check = |instance: &str, expected: &[&str]| {
            let directory = snapshot.directory().borrow().clone();
            let apps = directory.instance(instance).unwrap().apps.iter().map(AppId::as_str).collect::<Vec<_>>();
            assert_eq!(apps, expected, "apps of {instance}");
            let bound_to = directory.by_app("first").map(|entry| entry.id.clone());
            assert_eq!(bound_to.is_some_and(|id| id.as_str() == instance), expected.contains(&"first"));
        };
        check("a", &["first"]);
        for (was, is, app) in [("a", "a", "second"), ("a", "b", "second"), ("b", "a", "first")] {
            store.unbind(&id(was), &BindingId::new("1").unwrap()).await.unwrap();
            store.bind(&of_app(is, app)).await.unwrap();
            snapshot.refresh().await.unwrap();
            check(is, &[app]);
            if was != is {
                check(was, &[]);
            }
        }
    }

    #[tokio::test]
    async fn a_trial_is_published_and_taken_back_whatever_is_read_meanwhile() {
        let store = Arc::new(MemoryStore::new());
        provision(&store, "a", "default", 35_000).await;
        let snapshot = open(&store).await;
        let protocol = || snapshot.desired().borrow().listeners[&id("a")].protocol;
        let first = snapshot.version(&id("a")).await;
        snapshot.try_protocol(&id("a"), Protocol::Both).await;
        let tried = snapshot.version(&id("a")).await;
        assert!(tried > first);
        provision(&store, "b", "default", 35_001).await;
        snapshot.refresh().await.unwrap();
        assert_eq!((protocol(), snapshot.version(&id("a")).await), (Protocol::Both, tried));
        store.close().await;
        assert!(snapshot.settle(&id("a")).await.is_err());
        assert_eq!(protocol(), Protocol::Tcp, "also when the store is away");
        assert!(snapshot.version(&id("a")).await > tried);
    }
}
