//! The table: every service instance's backends behind one lock, and their slots.

use std::{
    collections::{HashMap, hash_map},
    fmt,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    Backend, Slot,
    instance::{BackendState, Instance, Limits, Move, stands},
};
use crate::model::{
    AppId, ServiceInstanceId, Timestamp, Transport,
    announcement::{AnnouncementRefusal, Authority, Endpoint, Registration, Withdrawal},
    desired::ForwarderLimits,
    directory::Directory,
};

/// All live backends. Clones share them.
#[derive(Clone)]
pub struct Backends(Arc<Shared>);

struct Shared {
    table: Mutex<Table>,
    /// Raised whenever anything changes that the last-known file shows.
    version: AtomicU64,
    on_change: OnceLock<Hook>,
}

type Hook = Box<dyn Fn(&ServiceInstanceId) + Send + Sync>;

struct Table {
    entries: HashMap<ServiceInstanceId, Entry>,
    index: Index,
    common: Common,
}

/// What follows from the entries.
#[derive(Default)]
struct Index {
    /// Who has a backend on a host, once per transport, in the order of ports: `router.register` asks for thousands of
    /// them a second.
    by_host: HashMap<IpAddr, Vec<Holder>>,
    counts: Counts,
}

/// A service instance with a backend at this port of a host.
struct Holder {
    port: u16,
    id: ServiceInstanceId,
    /// The app by whose authority it is there, where it is by an app's.
    app: Option<AppId>,
}

/// What all entries go by.
struct Common {
    limits: Limits,
    /// Until when nothing expires.
    suspended_until: Option<Instant>,
}

#[derive(Default)]
struct Entry {
    slot: Arc<Slot>,
    instance: Instance,
}

/// What a call has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Known, and lives on.
    Renewed,
    /// It drains now, or no longer does, or has another place in the order.
    Altered,
    /// At least one backend is new.
    Added,
    /// At least one backend is gone.
    Removed,
}

/// How many backends there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// For TCP.
    pub tcp: usize,
    /// For UDP.
    pub udp: usize,
}

impl Backends {
    /// An empty table with at most `max_backends` per service instance, both transports together.
    #[must_use]
    pub fn new(max_backends: usize) -> Self {
        let limits = Limits { max_backends, drain_timeout: ForwarderLimits::default().drain_timeout };
        Self(Arc::new(Shared {
            table: Mutex::new(Table {
                entries: HashMap::new(),
                index: Index::default(),
                common: Common { limits, suspended_until: None },
            }),
            version: AtomicU64::new(0),
            on_change: OnceLock::new(),
        }))
    }

    /// Sets who is told of each new set and each change of a phase, after it and never under a lock.
    ///
    /// # Panics
    /// When it is set twice.
    pub fn on_change(&self, hook: Box<dyn Fn(&ServiceInstanceId) + Send + Sync>) {
        assert!(self.0.on_change.set(hook).is_ok(), "one part listens to changes of backends");
    }

    /// How long flows of backends that begin to drain from now on may go on.
    pub fn set_drain_timeout(&self, timeout: Duration) {
        self.table().common.limits.drain_timeout = timeout;
    }

    /// Where the service instance's current set is found. The same slot for as long as anyone holds it.
    #[must_use]
    pub fn slot(&self, id: &ServiceInstanceId) -> Arc<Slot> {
        Arc::clone(&self.table().entries.entry(id.clone()).or_default().slot)
    }

    /// Adds or renews what an accepted announcement names; all of it or nothing.
    ///
    /// # Errors
    /// [`AnnouncementRefusal::OutOfOrder`] and [`AnnouncementRefusal::TooManyBackends`].
    pub fn apply(&self, registration: &Registration, now: Instant) -> Result<Change, AnnouncementRefusal> {
        self.change(&registration.service_instance_id, |common, instance| {
            let change = instance.apply(registration, &common.limits, now)?;
            Ok((change, change != Change::Renewed))
        })
    }

    /// Removes what an accepted withdrawal names, as far as its sender is the one who registered.
    ///
    /// # Errors
    /// [`AnnouncementRefusal::UnknownBackend`], [`AnnouncementRefusal::OtherOrigin`] and
    /// [`AnnouncementRefusal::OutOfOrder`], when nothing is removed.
    pub fn withdraw(&self, withdrawal: &Withdrawal, now: Instant) -> Result<Change, AnnouncementRefusal> {
        self.change(&withdrawal.service_instance_id, |_, instance| {
            instance.withdraw(withdrawal, now).map(|change| (change, true))
        })
    }

    /// Takes over since when another node knows backends, where that is earlier. Returns whether this node knows of an
    /// earlier time of any.
    pub fn learn_since(&self, id: &ServiceInstanceId, told: &[(Endpoint, Timestamp)]) -> bool {
        if !self.table().entries.contains_key(id) {
            return false;
        }
        let outcome = self.change(id, |_, instance| {
            let (knows_earlier, changed) = instance.learn_since(told);
            // Not a change when it knew as much.
            if changed { Ok((knows_earlier, true)) } else { Err(knows_earlier) }
        });
        outcome.unwrap_or_else(|knows_earlier| knows_earlier)
    }

    /// Takes over backends that an earlier process knew, with their deadlines, unless they have been announced since.
    pub fn restore(&self, states: impl IntoIterator<Item = (ServiceInstanceId, BackendState)>) {
        for (id, state) in states {
            let restored: Result<_, AnnouncementRefusal> = self.change(&id, |common, instance| {
                let restored = instance.restore(state, &common.limits);
                Ok((restored, restored))
            });
            debug_assert!(restored.is_ok());
        }
    }

    /// The backend at an address, draining or not.
    #[must_use]
    pub fn find(&self, id: &ServiceInstanceId, endpoint: &Endpoint) -> Option<Arc<Backend>> {
        let table = self.table();
        let members = table.entries.get(id)?.instance.members();
        members.iter().find(|member| member.backend.endpoint == *endpoint).map(|member| Arc::clone(&member.backend))
    }

    /// Removes those that have not been announced in time, unless that is suspended.
    pub fn sweep(&self, now: Instant) {
        self.for_each(|common, _, instance| {
            instance.forget(now);
            common.suspended_until.is_none_or(|until| until <= now) && instance.expire(now)
        });
        self.table().entries.retain(|_, entry| !(entry.instance.is_idle() && Arc::strong_count(&entry.slot) == 1));
    }

    /// While announcements cannot arrive nothing expires, at the longest until `until`; a suspension that goes on
    /// already is not prolonged.
    pub fn suspend(&self, until: Instant) {
        self.table().common.suspended_until.get_or_insert(until);
    }

    /// Announcements arrive again: every backend has its whole time to be announced.
    pub fn resume(&self, now: Instant) {
        let mut table = self.table();
        if table.common.suspended_until.take().is_some() {
            table.entries.values_mut().for_each(|entry| entry.instance.renew_all(now));
            self.0.version.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends those whose authority has ended, with their flows.
    pub fn retain_authorised(&self, directory: &Directory) {
        self.retain(|id, backend| stands(&backend.authority, id, backend.endpoint.transport, directory));
    }

    /// Ends those that do not stand any more, with their flows.
    pub fn retain(&self, stands: impl Fn(&ServiceInstanceId, &Backend) -> bool) {
        self.for_each(|_, id, instance| instance.revoke(|backend| stands(id, backend)));
    }

    /// The same for these service instances alone.
    pub fn retain_authorised_of<'a>(
        &self,
        ids: impl IntoIterator<Item = &'a ServiceInstanceId>,
        directory: &Directory,
    ) {
        for id in ids {
            // Most have just come and have no entry yet.
            if self.table().entries.contains_key(id) {
                // Not a change when there was nothing to revoke.
                let _ = self.change(id, |_, instance| {
                    let stands =
                        |backend: &Backend| stands(&backend.authority, id, backend.endpoint.transport, directory);
                    if instance.revoke(stands) { Ok(((), true)) } else { Err(()) }
                });
            }
        }
    }

    /// Removes the backends at addresses that are now known to be `owner`'s, or nobody's, but for those that are known to
    /// be the owner's too. Returns whether there were any.
    pub fn evict(&self, addresses: &RangeInclusive<SocketAddr>, owner: Option<&AppId>) -> bool {
        let is_others = |member: &BackendState| {
            let known = app_of(&member.backend.authority).or(member.origin.app_id.as_ref());
            addresses.contains(&member.backend.endpoint.address) && (known.is_none() || known != owner)
        };
        let ids = {
            let table = self.table();
            let held = table.index.held(addresses).iter();
            // Nearly always the address is its own app's still, and nothing more is looked at.
            let others = held.filter(|holder| holder.app.is_none() || holder.app.as_ref() != owner);
            let any = |id: &ServiceInstanceId| table.entries[id].instance.members().iter().any(is_others);
            others.map(|holder| &holder.id).filter(|id| any(id)).cloned().collect::<Vec<_>>()
        };
        let mut evicted = false;
        for id in ids {
            let outcome: Result<bool, AnnouncementRefusal> = self.change(&id, |_, instance| {
                let any = instance.evict(is_others);
                Ok((any, any))
            });
            evicted |= outcome == Ok(true);
        }
        evicted
    }

    /// The backends of a service instance, draining ones too, in order.
    #[must_use]
    pub fn list(&self, id: &ServiceInstanceId) -> Vec<BackendState> {
        self.table().entries.get(id).map(|entry| entry.instance.members().to_vec()).unwrap_or_default()
    }

    /// The service instances that have backends.
    #[must_use]
    pub fn ids(&self) -> Vec<ServiceInstanceId> {
        let table = self.table();
        let with_any = table.entries.iter().filter(|(_, entry)| !entry.instance.members().is_empty());
        with_any.map(|(id, _)| id.clone()).collect()
    }

    /// The backends of all service instances.
    #[must_use]
    pub fn export(&self) -> Vec<(ServiceInstanceId, BackendState)> {
        let table = self.table();
        let each = |(id, entry): (&ServiceInstanceId, &Entry)| {
            entry.instance.members().iter().map(|member| (id.clone(), member.clone())).collect::<Vec<_>>()
        };
        table.entries.iter().flat_map(each).collect()
    }

    /// How many there are.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.table().index.counts
    }

    /// A number that differs whenever [`Backends::export`] does.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.0.version.load(Ordering::Relaxed)
    }

    /// Runs `act` on one service instance; it says whether its set or a phase has changed.
    fn change<T, E>(
        &self,
        id: &ServiceInstanceId,
        act: impl FnOnce(&mut Common, &mut Instance) -> Result<(T, bool), E>,
    ) -> Result<T, E> {
        let mut table = self.table();
        let Table { entries, index, common } = &mut *table;
        let entry = match entries.get_mut(id) {
            Some(entry) => entry,
            None => entries.entry(id.clone()).or_default(),
        };
        let (value, changed) = act(common, &mut entry.instance)?;
        if changed {
            entry.publish(id, index);
        }
        drop(table);
        self.0.version.fetch_add(1, Ordering::Relaxed);
        if changed {
            self.notify(id);
        }
        Ok(value)
    }

    fn for_each(&self, act: impl Fn(&mut Common, &ServiceInstanceId, &mut Instance) -> bool) {
        let mut table = self.table();
        let Table { entries, index, common } = &mut *table;
        let mut changed = Vec::new();
        for (id, entry) in entries {
            if act(common, id, &mut entry.instance) {
                entry.publish(id, index);
                changed.push(id.clone());
            }
        }
        drop(table);
        if !changed.is_empty() {
            self.0.version.fetch_add(1, Ordering::Relaxed);
        }
        for id in &changed {
            self.notify(id);
        }
    }

    fn notify(&self, id: &ServiceInstanceId) {
        if let Some(hook) = self.0.on_change.get() {
            hook(id);
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().expect("nothing panics while it holds the table")
    }
}

impl Entry {
    /// Brings the slot and the index after what has become of the service instance.
    fn publish(&mut self, id: &ServiceInstanceId, index: &mut Index) {
        self.instance.take_moves().iter().for_each(|moved| index.follow(id, moved));
        self.slot.store(Arc::new(self.instance.set()));
    }
}

impl Index {
    /// Who has backends at these addresses of one host.
    fn held(&self, addresses: &RangeInclusive<SocketAddr>) -> &[Holder] {
        let (first, last) = (addresses.start(), addresses.end());
        debug_assert_eq!(first.ip(), last.ip(), "addresses of one host");
        let host = self.by_host.get(&first.ip()).map(Vec::as_slice).unwrap_or_default();
        let from = host.partition_point(|holder| holder.port < first.port());
        let to = host.partition_point(|holder| holder.port <= last.port());
        host.get(from..to).unwrap_or_default()
    }

    fn follow(&mut self, id: &ServiceInstanceId, moved: &Move) {
        match moved {
            Move::Came(backend) => {
                let Endpoint { transport, address } = backend.endpoint;
                *self.counts.of(transport) += 1;
                // Mostly there is one.
                let host = self.by_host.entry(address.ip()).or_insert_with(|| Vec::with_capacity(1));
                let at = host.partition_point(|holder| holder.port < address.port());
                let app = app_of(&backend.authority).cloned();
                host.insert(at, Holder { port: address.port(), id: id.clone(), app });
            }
            Move::Went(backend) => {
                let Endpoint { transport, address } = backend.endpoint;
                *self.counts.of(transport) -= 1;
                let hash_map::Entry::Occupied(mut host) = self.by_host.entry(address.ip()) else { return };
                let from = host.get().partition_point(|holder| holder.port < address.port());
                let app = app_of(&backend.authority);
                let is_it =
                    |holder: &Holder| holder.port == address.port() && holder.id == *id && holder.app.as_ref() == app;
                let at = host.get()[from..].iter().position(is_it);
                at.map(|at| host.get_mut().remove(from + at));
                if host.get().is_empty() {
                    host.remove();
                }
            }
        }
    }
}

/// The app of an authority that is one.
fn app_of(authority: &Authority) -> Option<&AppId> {
    match authority {
        Authority::App(app) => Some(app),
        Authority::Binding(_) | Authority::Trusted => None,
    }
}

impl Counts {
    fn of(&mut self, transport: Transport) -> &mut usize {
        match transport {
            Transport::Tcp => &mut self.tcp,
            Transport::Udp => &mut self.udp,
        }
    }
}

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backends").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
