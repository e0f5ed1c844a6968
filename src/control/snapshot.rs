//! The snapshot: the store's revisions made into desired states for the forwarder and directories for discovery.
//!
//! Each refresh reads only what changed; what did not is shared with the value before, down to the same
//! `Arc<ListenerSpec>`, so that a reader can tell by the pointer.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use rpds::HashTrieMapSync;
use tokio::sync::{Mutex, watch};

use super::Facts;
use crate::{
    model::{
        Protocol, Revision, ServiceInstanceId,
        desired::{DesiredState, ListenerSpec},
        directory::{Directory, DirectoryEntry},
        effective::bounded,
        plan::Plan,
        service_instance::ServiceInstance,
    },
    store::{self, AnyStore, Changes},
};

/// What is published, and what it is made from.
#[derive(Debug)]
pub(super) struct Snapshot {
    store: AnyStore,
    state: Mutex<State>,
    desired: watch::Sender<Arc<DesiredState>>,
    directory: watch::Sender<Arc<Directory>>,
}

#[derive(Debug)]
struct State {
    plans: Arc<[Plan]>,
    facts: Arc<Facts>,
    revision: Revision,
    instances: HashMap<ServiceInstanceId, ServiceInstance>,
    directory: Directory,
    listeners: HashTrieMapSync<ServiceInstanceId, Arc<ListenerSpec>>,
    /// What a listener carries while a change of its protocol is being tried, in place of what is stored.
    tried: HashMap<ServiceInstanceId, Protocol>,
    /// The last [`ListenerSpec::version`].
    version: u64,
}

impl Snapshot {
    pub(super) async fn open(
        store: AnyStore,
        plans: Arc<[Plan]>,
        facts: Arc<Facts>,
        directory: Directory,
    ) -> store::Result<Self> {
        let mut state = State {
            plans,
            facts,
            revision: Revision::default(),
            instances: HashMap::new(),
            directory,
            listeners: HashTrieMapSync::default(),
            tried: HashMap::new(),
            version: 0,
        };
        state.replace(store.everything().await?);
        let elsewhere = state.instances.len() - state.listeners.size();
        if elsewhere > 0 {
            tracing::warn!("{elsewhere} service instances belong to pools that are not in this node's configuration");
        }
        let (desired, directory) = (watch::Sender::new(state.desired()), watch::Sender::new(state.directory()));
        Ok(Self { store, state: Mutex::new(state), desired, directory })
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
        if state.revision >= revision {
            return Ok(());
        }
        self.read(&mut state).await
    }

    /// The version of a listener as it is published; none for a service instance of a pool that is not served.
    pub(super) async fn version(&self, id: &ServiceInstanceId) -> Option<u64> {
        self.state.lock().await.listeners.get(id).map(|spec| spec.version)
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
        read
    }

    /// Takes over other names and limits.
    pub(super) async fn set_facts(&self, facts: Arc<Facts>) {
        let mut state = self.state.lock().await;
        state.facts = facts;
        for id in state.instances.keys().cloned().collect::<Vec<_>>() {
            state.show(&id);
        }
        self.publish(&state);
    }

    /// How many service instances there are.
    pub(super) async fn revision_and_size(&self) -> (Revision, usize) {
        let state = self.state.lock().await;
        (state.revision, state.instances.len())
    }

    async fn read(&self, state: &mut State) -> store::Result<()> {
        let before = state.revision;
        self.read_quietly(state).await?;
        if state.revision != before {
            self.publish(state);
        }
        Ok(())
    }

    async fn read_quietly(&self, state: &mut State) -> store::Result<()> {
        match self.store.changes_since(state.revision).await? {
            Some(changes) => state.apply(changes),
            None => state.replace(self.store.everything().await?),
        }
        Ok(())
    }

    fn publish(&self, state: &State) {
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
            limits: Arc::clone(&self.facts.limits),
        })
    }

    fn directory(&self) -> Arc<Directory> {
        Arc::new(self.directory.clone())
    }

    fn apply(&mut self, changes: Changes) {
        for id in &changes.deleted_bindings {
            self.directory.remove_binding(id);
        }
        for id in &changes.deleted_instances {
            self.instances.remove(id);
            self.show(id);
        }
        for instance in changes.instances {
            let id = instance.id.clone();
            self.instances.insert(id.clone(), instance);
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
        self.apply(all);
    }

    /// Brings directory and listener of a service instance up to date.
    fn show(&mut self, id: &ServiceInstanceId) {
        let served = self.instances.get(id).and_then(|instance| {
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
        match served {
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
        let instance = self.instances.get(id).filter(|instance| self.facts.pools.contains_key(&instance.pool))?;
        let protocol = self.tried.get(id).copied().unwrap_or(instance.protocol);
        // A plan that was taken out of the configuration no longer caps anything.
        let caps = self.plans.iter().find(|plan| plan.id == instance.plan_id).map(|plan| plan.caps).unwrap_or_default();
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
