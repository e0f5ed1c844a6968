//! The free ports of each pool, in memory. They propose; the store decides, and when it knows better they are read again.

use std::{collections::HashMap, ops::RangeInclusive};

use tokio::sync::Mutex;

use crate::{
    model::{
        PoolName, SpaceId, Timestamp,
        allocation::{CONFLICT_MEMORY, Counts, FreePorts, PortRefusal, PortState, PortUse},
        directory::Directory,
        pool::{Pool, Pools},
    },
    store::{self, AnyStore, Freed},
};

/// Why no port can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shortage {
    /// The pool has none left.
    Exhausted,
    /// The one asked for is not to be had.
    Refused(PortRefusal),
}

#[derive(Debug)]
struct PoolPorts {
    free: FreePorts,
    /// Whether the store may know otherwise.
    doubted: bool,
    /// Ports that were taken here, or that the store has said to be allocated, since the last refresh. Changes do not tell
    /// the port of a service instance that came and went between two refreshes, so the next one confirms these.
    unconfirmed: Vec<u16>,
}

impl PoolPorts {
    /// A pool of which the store has not been asked.
    fn unread(pool: &Pool, now: Timestamp) -> Self {
        Self {
            free: FreePorts::new(pool.ports.clone(), Vec::new(), Vec::new(), now),
            doubted: true,
            unconfirmed: Vec::new(),
        }
    }

    /// Asks the store where it may know otherwise.
    async fn settle(&mut self, store: &AnyStore, pool: &PoolName, now: Timestamp) -> store::Result<()> {
        if self.doubted {
            let (reservations, rows) = (store.reservations(pool).await?, store.ports(pool).await?);
            let allocated = rows.iter().filter(|row| row.state == PortState::Allocated).map(|row| row.port);
            self.unconfirmed = allocated.collect();
            self.free.reread(reservations, rows, now);
            self.doubted = false;
        }
        Ok(())
    }
}

/// What has become of ports between two revisions. To be taken over in the order of the fields: a port that was given
/// back may have been taken again.
#[derive(Debug, Default)]
pub(super) struct PortChanges {
    /// Their service instances have them no more.
    pub(super) given_back: Vec<(PoolName, u16)>,
    /// Nobody has them since, and they rest.
    pub(super) freed: Vec<Freed>,
    /// They belong to a service instance.
    pub(super) taken: Vec<(PoolName, u16)>,
    /// Reservations were made in these pools.
    pub(super) reserved: Vec<PoolName>,
}

/// The ports of all pools.
#[derive(Debug)]
pub(super) struct Ports {
    store: AnyStore,
    pools: Mutex<HashMap<PoolName, PoolPorts>>,
}

impl Ports {
    pub(super) fn new(store: AnyStore) -> Self {
        Self { store, pools: Mutex::default() }
    }

    /// Takes the port asked for, or any; nobody else is offered it from then on, until a refresh shows that no service
    /// instance has it. It is not given back otherwise: by then others may have it.
    pub(super) async fn take(
        &self,
        pool: &PoolName,
        asked: Option<u16>,
        space: &SpaceId,
        now: Timestamp,
    ) -> store::Result<Result<u16, Shortage>> {
        let mut pools = self.pools.lock().await;
        let Some(ports) = pools.get_mut(pool) else { return Ok(Err(Shortage::Exhausted)) };
        ports.settle(&self.store, pool, now).await?;
        let port = match asked {
            Some(port) => ports.free.request(port, space, now).map(|()| port).map_err(Shortage::Refused),
            None => ports.free.propose(fastrand::u64(..), now).ok_or(Shortage::Exhausted),
        };
        if let Ok(port) = port {
            ports.free.take(port, now);
            ports.unconfirmed.push(port);
        }
        Ok(port)
    }

    /// Puts a port aside that something else on the machine has.
    pub(super) async fn mark_conflict(&self, pool: &PoolName, port: u16, now: Timestamp) {
        self.with(pool, |ports| ports.free.mark_conflict(port, now.plus(CONFLICT_MEMORY), now)).await;
    }

    /// Says that the store may know otherwise: the next to take a port reads it.
    pub(super) async fn doubt(&self, pool: &PoolName) {
        self.with(pool, |ports| ports.doubted = true).await;
    }

    /// Takes over the pools and their ranges.
    pub(super) async fn set_pools(&self, wanted: &Pools, now: Timestamp) {
        let mut pools = self.pools.lock().await;
        pools.retain(|name, _| wanted.contains_key(name));
        for pool in wanted.values() {
            match pools.get_mut(&pool.name) {
                Some(known) => known.free.resize(pool.ports.clone(), now),
                None => drop(pools.insert(pool.name.clone(), PoolPorts::unread(pool, now))),
            }
        }
    }

    /// Takes over what was changed, here or by another node. `directory` shows all service instances after that: a port
    /// that none of them has is free, as far as is known. If it is about to be somebody's, the store says so to whoever
    /// else wants it, and the next refresh to all.
    pub(super) async fn follow(&self, changed: PortChanges, directory: &Directory, now: Timestamp) {
        let mut pools = self.pools.lock().await;
        let PortChanges { given_back, freed, taken, reserved } = changed;
        for (pool, port) in given_back {
            pools.entry(pool).and_modify(|ports| ports.free.give_back(port, now));
        }
        for Freed { pool, port, release } in freed {
            pools.entry(pool).and_modify(|ports| ports.free.release(port, release, now));
        }
        for (pool, port) in taken {
            pools.entry(pool).and_modify(|ports| ports.free.take(port, now));
        }
        for pool in reserved {
            pools.entry(pool).and_modify(|ports| ports.doubted = true);
        }
        for (pool, ports) in pools.iter_mut() {
            for port in std::mem::take(&mut ports.unconfirmed) {
                if !directory.has_port(pool, port) {
                    ports.free.give_back(port, now);
                }
            }
        }
    }

    /// Says that the store may know otherwise of every pool.
    pub(super) async fn doubt_all(&self) {
        self.pools.lock().await.values_mut().for_each(|ports| ports.doubted = true);
    }

    /// How many ports of a pool are what, as far as that is known while the store is away.
    pub(super) async fn counts(&self, pool: &PoolName, now: Timestamp) -> Counts {
        let mut pools = self.pools.lock().await;
        let Some(ports) = pools.get_mut(pool) else { return Counts::default() };
        if let Err(fault) = ports.settle(&self.store, pool, now).await {
            tracing::debug!(%pool, error = %fault, "ports are counted as they were known");
        }
        ports.free.counts(now)
    }

    /// What these ports of a pool are, until `enough` says so.
    pub(super) async fn uses(
        &self,
        pool: &PoolName,
        ports: RangeInclusive<u16>,
        now: Timestamp,
        mut enough: impl FnMut(&PortUse) -> bool,
    ) -> store::Result<Vec<(u16, PortUse)>> {
        let mut pools = self.pools.lock().await;
        let Some(known) = pools.get_mut(pool) else { return Ok(Vec::new()) };
        known.settle(&self.store, pool, now).await?;
        let mut found = Vec::new();
        for (port, is_what) in known.free.uses(ports, now) {
            let is_last = enough(&is_what);
            found.push((port, is_what));
            if is_last {
                break;
            }
        }
        Ok(found)
    }

    /// Ports of a pool that nobody defined are nobody's concern.
    async fn with(&self, pool: &PoolName, change: impl FnOnce(&mut PoolPorts)) {
        if let Some(ports) = self.pools.lock().await.get_mut(pool) {
            change(ports);
        }
    }
}
