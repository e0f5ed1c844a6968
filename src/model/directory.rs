//! The directory: what discovery must know of service instances and bindings to place an announcement and to judge it.
//!
//! A value: `control::snapshot` makes a new one with every change, which shares the rest with the one before.

use std::{collections::BTreeSet, sync::Arc};

use rpds::HashTrieMapSync;

use super::{
    AppId, BindingId, PoolName, Protocol, Revision, ServiceInstanceId, binding::Binding, token::AnnounceSecret,
};

/// Ports, bound apps, bindings and the announce secret.
#[derive(Debug, Clone)]
pub struct Directory {
    /// The store's revision that this shows.
    pub revision: Revision,
    /// What tokens are derived from.
    pub announce_secret: AnnounceSecret,
    instances: HashTrieMapSync<ServiceInstanceId, Arc<DirectoryEntry>>,
    by_port: HashTrieMapSync<u16, Arc<BTreeSet<ServiceInstanceId>>>,
    by_app: HashTrieMapSync<AppId, Arc<BTreeSet<ServiceInstanceId>>>,
    bindings: HashTrieMapSync<BindingId, Arc<Binding>>,
}

/// One service instance, as announcements see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Which.
    pub id: ServiceInstanceId,
    /// Of which pool.
    pub pool: PoolName,
    /// Its port.
    pub port: u16,
    /// What it carries.
    pub protocol: Protocol,
    /// What its apps listen on.
    pub int_port: u16,
    /// Whether `router.register` of its bound app makes backends.
    pub match_app: bool,
    /// Its bindings.
    pub bindings: BTreeSet<BindingId>,
    /// The apps of those bindings.
    pub apps: BTreeSet<AppId>,
}

impl Directory {
    /// One that knows nothing but the secret.
    #[must_use]
    pub fn new(announce_secret: AnnounceSecret) -> Self {
        Self {
            revision: Revision::default(),
            announce_secret,
            instances: HashTrieMapSync::default(),
            by_port: HashTrieMapSync::default(),
            by_app: HashTrieMapSync::default(),
            bindings: HashTrieMapSync::default(),
        }
    }

    /// The service instance of that id.
    #[must_use]
    pub fn instance(&self, id: &str) -> Option<&Arc<DirectoryEntry>> {
        self.instances.get(id)
    }

    /// The only service instance with that port; none when several pools have it.
    #[must_use]
    pub fn by_port(&self, port: u16) -> Option<&Arc<DirectoryEntry>> {
        self.only(self.by_port.get(&port)?)
    }

    /// The only service instance that the app is bound to; none when there are several.
    #[must_use]
    pub fn by_app(&self, app: &str) -> Option<&Arc<DirectoryEntry>> {
        self.only(self.by_app.get(app)?)
    }

    /// The binding of that id.
    #[must_use]
    pub fn binding(&self, id: &str) -> Option<&Arc<Binding>> {
        self.bindings.get(id)
    }

    /// All service instances.
    pub fn instances(&self) -> impl Iterator<Item = &Arc<DirectoryEntry>> {
        self.instances.values()
    }

    /// Adds a service instance or replaces what is known of its port, protocol and settings; its bindings stay.
    pub fn put_instance(&mut self, mut entry: DirectoryEntry) {
        if let Some(known) = self.instances.get(&entry.id) {
            entry.bindings = known.bindings.clone();
            entry.apps = known.apps.clone();
            if known.port != entry.port {
                let (id, port) = (known.id.clone(), known.port);
                remove_from(&mut self.by_port, &port, &id);
            }
        }
        add_to(&mut self.by_port, entry.port, &entry.id);
        self.instances.insert_mut(entry.id.clone(), Arc::new(entry));
    }

    /// Removes a service instance with its bindings.
    pub fn remove_instance(&mut self, id: &ServiceInstanceId) {
        let Some(entry) = self.instances.get(id).cloned() else { return };
        for binding in &entry.bindings {
            self.bindings.remove_mut(binding);
        }
        for app in &entry.apps {
            remove_from(&mut self.by_app, app, id);
        }
        remove_from(&mut self.by_port, &entry.port, id);
        self.instances.remove_mut(id);
    }

    /// Adds a binding. One whose service instance is not known is ignored: the store never has such a row.
    pub fn put_binding(&mut self, binding: &Arc<Binding>) {
        // One of that id may have been unbound and bound anew, to another app or service instance: the former one's
        // authority ends.
        self.remove_binding(&binding.id);
        let Some(entry) = self.instances.get(&binding.service_instance_id) else { return };
        let mut entry = DirectoryEntry::clone(entry);
        entry.bindings.insert(binding.id.clone());
        if let Some(app) = &binding.app_id {
            entry.apps.insert(app.clone());
            add_to(&mut self.by_app, app.clone(), &entry.id);
        }
        self.bindings.insert_mut(binding.id.clone(), Arc::clone(binding));
        self.instances.insert_mut(entry.id.clone(), Arc::new(entry));
    }

    /// Removes a binding; its app stays bound while another binding of it stands.
    pub fn remove_binding(&mut self, id: &BindingId) {
        let Some(binding) = self.bindings.get(id).cloned() else { return };
        self.bindings.remove_mut(id);
        let Some(entry) = self.instances.get(&binding.service_instance_id) else { return };
        let mut entry = DirectoryEntry::clone(entry);
        entry.bindings.remove(id);
        if let Some(app) = &binding.app_id {
            let bound = |other: &BindingId| self.bindings.get(other).is_some_and(|b| b.app_id.as_ref() == Some(app));
            if !entry.bindings.iter().any(bound) {
                entry.apps.remove(app);
                remove_from(&mut self.by_app, app, &entry.id);
            }
        }
        self.instances.insert_mut(entry.id.clone(), Arc::new(entry));
    }

    fn only(&self, ids: &BTreeSet<ServiceInstanceId>) -> Option<&Arc<DirectoryEntry>> {
        if ids.len() != 1 {
            return None;
        }
        ids.first().and_then(|id| self.instances.get(id))
    }
}

type Index<K> = HashTrieMapSync<K, Arc<BTreeSet<ServiceInstanceId>>>;

fn add_to<K: Eq + std::hash::Hash>(index: &mut Index<K>, key: K, id: &ServiceInstanceId) {
    let mut ids = index.get(&key).map(|ids| BTreeSet::clone(ids)).unwrap_or_default();
    ids.insert(id.clone());
    index.insert_mut(key, Arc::new(ids));
}

fn remove_from<K: Eq + std::hash::Hash + Clone>(index: &mut Index<K>, key: &K, id: &ServiceInstanceId) {
    let Some(ids) = index.get(key) else { return };
    let mut ids = BTreeSet::clone(ids);
    ids.remove(id);
    if ids.is_empty() {
        index.remove_mut(key);
    } else {
        index.insert_mut(key.clone(), Arc::new(ids));
    }
}
