//! The directory: what discovery must know of service instances and bindings to place an announcement and to judge it.
//!
//! A value: `control::snapshot` makes a new one with every change, which shares the rest with the one before.

use std::{collections::BTreeSet, sync::Arc};

use rpds::HashTrieMapSync;
use smallvec::SmallVec;

use super::{
    AppId, BindingId, PoolName, Protocol, Revision, ServiceInstanceId, binding::Binding, token::AnnounceSecret,
    trail::Trail,
};

/// Ports, bound apps, bindings and the announce secret.
#[derive(Debug, Clone)]
pub struct Directory {
    /// The store's revision that this shows.
    pub revision: Revision,
    /// What tokens are derived from.
    pub announce_secret: AnnounceSecret,
    instances: HashTrieMapSync<ServiceInstanceId, Arc<DirectoryEntry>>,
    by_port: Index<u16>,
    /// Those of `by_port` that are alone there: each internal route is looked up by its port.
    alone_at_port: HashTrieMapSync<u16, Arc<DirectoryEntry>>,
    by_app: Index<AppId>,
    bindings: HashTrieMapSync<BindingId, Arc<Binding>>,
    trail: Trail,
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
    /// The apps of those bindings, in order and each once. Mostly one, which each announcement of it asks for: so it is here
    /// and not elsewhere in memory.
    pub apps: SmallVec<[AppId; 1]>,
}

impl DirectoryEntry {
    /// The app of that id, if it is bound.
    #[must_use]
    pub fn bound_app(&self, app: &str) -> Option<&AppId> {
        let at = self.apps.binary_search_by(|known| known.as_str().cmp(app)).ok()?;
        Some(&self.apps[at])
    }
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
            alone_at_port: HashTrieMapSync::default(),
            by_app: HashTrieMapSync::default(),
            bindings: HashTrieMapSync::default(),
            trail: Trail::default(),
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
        self.alone_at_port.get(&port)
    }

    /// Whether a service instance has that port of that pool.
    #[must_use]
    pub fn has_port(&self, pool: &PoolName, port: u16) -> bool {
        let ids = self.by_port.get(&port).into_iter().flat_map(|ids| ids.iter());
        ids.filter_map(|id| self.instances.get(id)).any(|entry| entry.pool == *pool)
    }

    /// The only service instance that the app is bound to; none when there are several.
    #[must_use]
    pub fn by_app(&self, app: &str) -> Option<&Arc<DirectoryEntry>> {
        self.only(self.by_app.get(app)?)
    }

    /// All service instances that the app is bound to.
    #[must_use]
    pub fn all_by_app(&self, app: &str) -> &[ServiceInstanceId] {
        self.by_app.get(app).map_or(&[], |ids| ids)
    }

    /// The binding of that id.
    #[must_use]
    pub fn binding(&self, id: &str) -> Option<&Arc<Binding>> {
        self.bindings.get(id)
    }

    /// The service instances of which this may know something else than `earlier`; `None` when only a look at all of both
    /// can tell.
    #[must_use]
    pub fn changed_since(&self, earlier: &Self) -> Option<BTreeSet<ServiceInstanceId>> {
        self.trail.since(&earlier.trail)
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
                self.follow_port(port);
            }
        }
        add_to(&mut self.by_port, entry.port, &entry.id);
        self.set(entry);
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
        self.follow_port(entry.port);
        self.trail.push(id.clone());
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
            if let Err(at) = entry.apps.binary_search(app) {
                entry.apps.insert(at, app.clone());
            }
            add_to(&mut self.by_app, app.clone(), &entry.id);
        }
        self.bindings.insert_mut(binding.id.clone(), Arc::clone(binding));
        self.set(entry);
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
                entry.apps.retain(|known| known != app);
                remove_from(&mut self.by_app, app, &entry.id);
            }
        }
        self.set(entry);
    }

    fn set(&mut self, entry: DirectoryEntry) {
        let port = entry.port;
        self.trail.push(entry.id.clone());
        self.instances.insert_mut(entry.id.clone(), Arc::new(entry));
        self.follow_port(port);
    }

    /// Brings `alone_at_port` after what has become of a port.
    fn follow_port(&mut self, port: u16) {
        match self.by_port.get(&port).and_then(|ids| self.only(ids)).cloned() {
            Some(entry) => self.alone_at_port.insert_mut(port, entry),
            None => _ = self.alone_at_port.remove_mut(&port),
        }
    }

    fn only(&self, ids: &[ServiceInstanceId]) -> Option<&Arc<DirectoryEntry>> {
        let [id] = ids else { return None };
        self.instances.get(id)
    }
}

/// Service instances in no order, each once: mostly one.
type Index<K> = HashTrieMapSync<K, Arc<[ServiceInstanceId]>>;

fn add_to<K: Eq + std::hash::Hash>(index: &mut Index<K>, key: K, id: &ServiceInstanceId) {
    let others = index.get(&key).into_iter().flat_map(|ids| ids.iter()).filter(|known| *known != id);
    let ids = others.chain([id]).cloned().collect();
    index.insert_mut(key, ids);
}

fn remove_from<K: Eq + std::hash::Hash + Clone>(index: &mut Index<K>, key: &K, id: &ServiceInstanceId) {
    let Some(ids) = index.get(key) else { return };
    let others = ids.iter().filter(|known| *known != id).cloned().collect::<Arc<[_]>>();
    if others.is_empty() {
        index.remove_mut(key);
    } else {
        index.insert_mut(key.clone(), others);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Timestamp, token::SECRET_BYTES};

    fn directory() -> Directory {
        Directory::new(AnnounceSecret::new([1; SECRET_BYTES]))
    }

    fn id(text: &str) -> ServiceInstanceId {
        ServiceInstanceId::new(text).unwrap()
    }

    fn put(directory: &mut Directory, name: &str, pool: &str, port: u16) {
        directory.put_instance(DirectoryEntry {
            id: id(name),
            pool: PoolName::new(pool).unwrap(),
            port,
            protocol: Protocol::Tcp,
            int_port: 4100,
            match_app: false,
            bindings: BTreeSet::new(),
            apps: Default::default(),
        });
    }

    fn bind(directory: &mut Directory, binding: &str, name: &str, app: Option<&str>) {
        directory.put_binding(&Arc::new(Binding {
            id: BindingId::new(binding).unwrap(),
            service_instance_id: id(name),
            app_id: app.map(|app| AppId::new(app).unwrap()),
            space_id: None,
            announce: true,
            predecessor_id: None,
            created_at: Timestamp::default(),
            revision: Revision(1),
        }));
    }

    fn unbind(directory: &mut Directory, binding: &str) {
        directory.remove_binding(&BindingId::new(binding).unwrap());
    }

    fn found(entry: Option<&Arc<DirectoryEntry>>) -> Option<&str> {
        entry.map(|entry| entry.id.as_str())
    }

    #[test]
    fn a_port_names_a_service_instance_when_only_one_pool_has_it() {
        let mut directory = directory();
        put(&mut directory, "a", "default", 2000);
        assert_eq!((found(directory.by_port(2000)), found(directory.by_port(2001))), (Some("a"), None));
        put(&mut directory, "b", "games", 2000);
        assert_eq!(found(directory.by_port(2000)), None);
        directory.remove_instance(&id("a"));
        assert_eq!(found(directory.by_port(2000)), Some("b"));
        put(&mut directory, "b", "games", 2001);
        assert_eq!((found(directory.by_port(2000)), found(directory.by_port(2001))), (None, Some("b")), "it has moved");
    }

    #[test]
    fn an_app_names_a_service_instance_when_it_is_bound_to_only_one() {
        let mut directory = directory();
        put(&mut directory, "a", "default", 2000);
        put(&mut directory, "b", "default", 2001);
        bind(&mut directory, "1", "a", Some("app"));
        bind(&mut directory, "2", "a", Some("app"));
        assert_eq!(found(directory.by_app("app")), Some("a"));
        bind(&mut directory, "3", "b", Some("app"));
        assert_eq!(found(directory.by_app("app")), None);
        unbind(&mut directory, "1");
        assert_eq!(found(directory.by_app("app")), None, "another binding of the app to it stands");
        unbind(&mut directory, "2");
        assert_eq!(found(directory.by_app("app")), Some("b"));
        assert!(directory.instance("a").unwrap().apps.is_empty());
    }

    #[test]
    fn what_is_bound_survives_a_change_of_the_service_instance_and_goes_with_it() {
        let mut directory = directory();
        put(&mut directory, "a", "default", 2000);
        bind(&mut directory, "1", "a", Some("app"));
        bind(&mut directory, "key", "a", None);
        put(&mut directory, "a", "default", 2000);
        let entry = directory.instance("a").unwrap();
        assert_eq!((entry.bindings.len(), entry.apps.len()), (2, 1));
        directory.remove_instance(&id("a"));
        assert!(directory.binding("1").is_none() && directory.binding("key").is_none());
        assert!(directory.by_app("app").is_none() && directory.by_port(2000).is_none());
        assert_eq!(directory.instances().count(), 0);
    }

    #[test]
    fn what_belongs_to_nothing_known_is_ignored() {
        let mut directory = directory();
        bind(&mut directory, "1", "gone", Some("app"));
        assert!(directory.binding("1").is_none() && directory.by_app("app").is_none());
        unbind(&mut directory, "1");
        directory.remove_instance(&id("gone"));
    }

    #[test]
    fn a_copy_does_not_change_with_its_original() {
        let mut directory = directory();
        put(&mut directory, "a", "default", 2000);
        let copy = directory.clone();
        bind(&mut directory, "1", "a", Some("app"));
        assert!(copy.binding("1").is_none() && copy.instance("a").unwrap().apps.is_empty());
    }

    #[test]
    fn each_change_tells_whom_it_concerns() {
        let mut directory = directory();
        put(&mut directory, "a", "default", 35_000);
        put(&mut directory, "b", "default", 35_001);
        let mut before = directory.clone();
        let mut check = |directory: &Directory, expected: &[&str]| {
            let changed = directory.changed_since(&before).unwrap();
            assert_eq!(changed.iter().map(ServiceInstanceId::as_str).collect::<Vec<_>>(), expected);
            before = directory.clone();
        };
        check(&directory, &[]);
        bind(&mut directory, "1", "a", Some("app"));
        check(&directory, &["a"]);
        // The same binding, made anew elsewhere between two looks.
        bind(&mut directory, "1", "b", Some("app"));
        check(&directory, &["a", "b"]);
        unbind(&mut directory, "1");
        check(&directory, &["b"]);
        unbind(&mut directory, "1");
        check(&directory, &[]);
        put(&mut directory, "a", "default", 35_002);
        check(&directory, &["a"]);
        directory.remove_instance(&id("b"));
        directory.remove_instance(&id("c"));
        check(&directory, &["b"]);
    }
}
