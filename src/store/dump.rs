//! A dump: all that a store keeps but for its nodes, which say again who they are. It moves a store to another engine,
//! and is its backup.
//!
//! [`file`] is its form in a file, [`record`] that of each part of it.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt::Debug,
};

use super::{Operation, Release, Reservation};
use crate::model::{
    BindingId, PoolName, Revision, ServiceInstanceId, Timestamp, Transport,
    binding::Binding,
    pool::{DEFAULT_QUARANTINE, Pool},
    service_instance::ServiceInstance,
    setting::{SUSPENDED, Setting},
    token::AnnounceSecret,
};

mod file;
mod record;

pub use file::{MAX_FILE_BYTES, ReadError};

/// All that a store keeps but for its nodes, at one revision. Each list is in an order that does not depend on the engine,
/// so that two stores which hold the same are told by the same file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dump {
    /// The revision.
    pub revision: Revision,
    /// What tokens are derived from; none when it was never asked for, or is left out.
    pub announce_secret: Option<AnnounceSecret>,
    /// The pools that are defined, each with the revision at which it was; by name.
    pub pools: Vec<(Pool, Revision)>,
    /// Reservations, each with the revision at which it was made; by pool and name.
    pub reservations: Vec<(Reservation, Revision)>,
    /// Service instances with their ports, by revision.
    pub instances: Vec<ServiceInstance>,
    /// Bindings, by revision.
    pub bindings: Vec<Binding>,
    /// What is known of ports that were used and freed, whether or not somebody has them again; by pool and port.
    pub last_releases: Vec<LastRelease>,
    /// Operations under way, and those that have failed; by service instance.
    pub operations: Vec<Operation>,
    /// Deleted service instances that [`super::Store::changes_since`] still tells; by revision.
    pub deleted_instances: Vec<(ServiceInstanceId, Revision)>,
    /// Deleted bindings, of which the same holds; by revision and id.
    pub deleted_bindings: Vec<(BindingId, Revision)>,
    /// Live settings; by scope and key.
    pub settings: Vec<Setting>,
    /// Every change of a live setting; by revision, scope and key.
    pub settings_history: Vec<Setting>,
}

/// How a port was freed the last time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastRelease {
    /// Of which pool.
    pub pool: PoolName,
    /// Which.
    pub port: u16,
    /// By whom, and until when it rests.
    pub release: Release,
    /// The revision that freed it; zero where that was not noted yet.
    pub revision: Revision,
}

/// What no store can have kept: two parts of a dump that contradict one another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Contradiction(String);

impl Dump {
    /// Whether a store can hold it and go on from it: every id, port and name once, every binding with its service instance,
    /// nothing later than its revision, and revisions left for what comes.
    ///
    /// # Errors
    /// The first [`Contradiction`].
    pub fn check(&self) -> Result<(), Contradiction> {
        once("the pool", self.pools.iter().map(|(pool, _)| &pool.name))?;
        once("the reservation", self.reservations.iter().map(|(held, _)| (&held.pool, &held.name)))?;
        once("the service instance", self.instances.iter().map(|instance| &instance.id))?;
        once("the port", self.instances.iter().map(|instance| (&instance.pool, instance.port)))?;
        once("the revision of a service instance", self.instances.iter().map(|instance| instance.revision))?;
        once("the binding", self.bindings.iter().map(|binding| &binding.id))?;
        once("the revision of a binding", self.bindings.iter().map(|binding| binding.revision))?;
        once("the release of the port", self.last_releases.iter().map(|last| (&last.pool, last.port)))?;
        once("the operation of", self.operations.iter().map(|operation| &operation.service_instance_id))?;
        once("the live setting", self.settings.iter().map(|setting| (&setting.scope, &setting.key)))?;
        let changes = self.settings_history.iter();
        once("the change of a setting", changes.map(|change| (change.revision, &change.scope, &change.key)))?;
        // What is deleted is not there.
        let deleted = self.deleted_instances.iter().map(|(id, _)| id);
        once("the deleted service instance", deleted.chain(self.instances.iter().map(|instance| &instance.id)))?;
        let deleted = self.deleted_bindings.iter().map(|(id, _)| id);
        once("the deleted binding", deleted.chain(self.bindings.iter().map(|binding| &binding.id)))?;
        self.check_references()?;
        self.check_ports()?;
        self.check_revisions()
    }

    /// The same as it is when these service instances have been deprovisioned `now`, by whoever is called `who`: their ports
    /// rest from then on. Returns the service instances.
    pub fn deprovision(
        &mut self,
        is_gone: impl Fn(&ServiceInstance) -> bool,
        now: Timestamp,
        who: &str,
    ) -> Vec<ServiceInstance> {
        let (gone, kept) = std::mem::take(&mut self.instances).into_iter().partition::<Vec<_>, _>(is_gone);
        self.instances = kept;
        if gone.is_empty() {
            return gone;
        }
        self.revision = Revision(self.revision.0 + 1);
        let (revision, ids) = (self.revision, gone.iter().map(|instance| &instance.id).collect::<HashSet<_>>());
        for instance in &gone {
            let pool = self.pools.iter().find(|(pool, _)| pool.name == instance.pool);
            let quarantine = pool.map_or(DEFAULT_QUARANTINE, |(pool, _)| pool.quarantine);
            let release =
                Release { space_id: instance.space_id.clone(), at: now, quarantined_until: now.plus(quarantine) };
            let (pool, port) = (instance.pool.clone(), instance.port);
            self.last_releases.retain(|last| (&last.pool, last.port) != (&pool, port));
            self.last_releases.push(LastRelease { pool, port, release, revision });
        }
        self.last_releases.sort_by(|a, b| (&a.pool, a.port).cmp(&(&b.pool, b.port)));
        let unbound = self.bindings.extract_if(.., |binding| ids.contains(&binding.service_instance_id));
        let mut unbound = unbound.map(|binding| (binding.id, revision)).collect::<Vec<_>>();
        unbound.sort();
        self.deleted_bindings.extend(unbound);
        self.operations.retain(|operation| !ids.contains(&operation.service_instance_id));
        let mut deleted = gone.iter().map(|instance| (instance.id.clone(), revision)).collect::<Vec<_>>();
        deleted.sort();
        self.deleted_instances.extend(deleted);
        let is_of_one =
            |setting: &mut Setting| setting.scope == SUSPENDED && ids.iter().any(|id| id.as_str() == setting.key);
        let resumed = self.settings.extract_if(.., is_of_one).map(|setting| Setting {
            value: None,
            changed_by: who.into(),
            changed_at: now,
            revision,
            ..setting
        });
        self.settings_history.extend(resumed);
        gone
    }

    fn check_references(&self) -> Result<(), Contradiction> {
        let known = self.instances.iter().map(|instance| &instance.id).collect::<BTreeSet<_>>();
        if let Some(stray) = self.bindings.iter().find(|binding| !known.contains(&binding.service_instance_id)) {
            return contradiction(format!("the binding {:?} is of no service instance", stray.id));
        }
        let is_stray = |of: &&Operation| of.failure.is_none() && !known.contains(&of.service_instance_id);
        if let Some(stray) = self.operations.iter().find(is_stray) {
            return contradiction(format!("{:?} is provisioned, but is not there", stray.service_instance_id));
        }
        match self.settings.iter().find(|setting| setting.value.is_none()) {
            Some(unset) => contradiction(format!("the live setting {:?} of {:?} has no value", unset.key, unset.scope)),
            None => Ok(()),
        }
    }

    fn check_ports(&self) -> Result<(), Contradiction> {
        let used = self.instances.iter().map(|instance| instance.port);
        let mut ports = used.chain(self.last_releases.iter().map(|last| last.port));
        if let Some(privileged) = ports.find(|port| *port < FIRST_PORT) {
            return contradiction(format!("port {privileged} is below {FIRST_PORT}"));
        }
        let allocated = self.instances.iter().map(|instance| ((&instance.pool, instance.port), instance.revision));
        let allocated = allocated.collect::<HashMap<_, _>>();
        let is_freed = |last: &&LastRelease| {
            allocated.get(&(&last.pool, last.port)).is_some_and(|revision| last.revision >= *revision)
        };
        if let Some(last) = self.last_releases.iter().find(is_freed) {
            return contradiction(format!("port {} of the pool {} is both allocated and freed", last.port, last.pool));
        }
        let mut by_port = self.reservations.iter().map(|(held, _)| held).collect::<Vec<_>>();
        if let Some(held) = by_port.iter().find(|held| held.first_port > held.last_port) {
            return contradiction(format!("the reservation {:?} ends before it begins", held.name));
        }
        by_port.sort_by_key(|held| (&held.pool, held.first_port));
        for transport in Transport::ALL {
            let of_transport = by_port.iter().filter(|held| held.protocol.has(transport)).collect::<Vec<_>>();
            for pair in of_transport.windows(2) {
                if pair[0].pool == pair[1].pool && pair[0].overlaps(pair[1]) {
                    let (one, other) = (&pair[0].name, &pair[1].name);
                    return contradiction(format!("the reservations {one:?} and {other:?} hold a common port"));
                }
            }
        }
        Ok(())
    }

    fn check_revisions(&self) -> Result<(), Contradiction> {
        if self.revision > LAST_REVISION {
            return contradiction(format!("the revision {} is later than any store comes to", self.revision));
        }
        let instances = self.instances.iter().map(|instance| instance.revision);
        let bindings = self.bindings.iter().map(|binding| binding.revision);
        let settings = self.settings.iter().chain(&self.settings_history).map(|setting| setting.revision);
        let noted = instances
            .chain(bindings)
            .chain(settings)
            .chain(self.pools.iter().map(|(_, at)| *at))
            .chain(self.reservations.iter().map(|(_, at)| *at))
            .chain(self.deleted_instances.iter().map(|(_, at)| *at))
            .chain(self.deleted_bindings.iter().map(|(_, at)| *at));
        if noted.clone().any(|at| at == Revision::default()) {
            return contradiction("something has no revision".into());
        }
        match noted.chain(self.last_releases.iter().map(|last| last.revision)).find(|at| *at > self.revision) {
            Some(later) => contradiction(format!("something is of revision {later}, later than {}", self.revision)),
            None => Ok(()),
        }
    }
}

/// The first port that can be given out.
const FIRST_PORT: u16 = 1024;

/// Half of what the column of revisions holds. The other half is left to go on: at a million changes a second for 146,000
/// years.
const LAST_REVISION: Revision = Revision(1 << 62);

fn contradiction(what: String) -> Result<(), Contradiction> {
    Err(Contradiction(what))
}

/// Whether each of these is there once.
fn once<K: Ord + Debug>(what: &str, keys: impl Iterator<Item = K>) -> Result<(), Contradiction> {
    let mut seen = BTreeSet::new();
    for key in keys {
        if seen.contains(&key) {
            return contradiction(format!("{what} {key:?} is there twice"));
        }
        seen.insert(key);
    }
    Ok(())
}
