//! The free ports of each pool, in memory. They propose; the store decides, and when it knows better they are read again.

use std::collections::HashMap;

use tokio::sync::Mutex;

use crate::{
    model::{
        PoolName, SpaceId, Timestamp,
        allocation::{CONFLICT_MEMORY, Counts, FreePorts, PortRefusal, PortRow, Release, Reservation},
        pool::Pool,
    },
    store::{self, AnyStore},
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
}

/// The ports of all pools that this node serves.
#[derive(Debug)]
pub(super) struct Ports {
    store: AnyStore,
    pools: Mutex<HashMap<PoolName, PoolPorts>>,
}

impl Ports {
    pub(super) async fn open(
        store: AnyStore,
        pools: impl Iterator<Item = &Pool>,
        now: Timestamp,
    ) -> store::Result<Self> {
        let mut known = HashMap::new();
        for pool in pools {
            let (reservations, rows) = read(&store, &pool.name).await?;
            let free = FreePorts::new(pool.ports.clone(), reservations, rows, now);
            known.insert(pool.name.clone(), PoolPorts { free, doubted: false });
        }
        Ok(Self { store, pools: Mutex::new(known) })
    }

    /// Takes the port asked for, or any; nobody else is offered it from then on.
    pub(super) async fn take(
        &self,
        pool: &PoolName,
        asked: Option<u16>,
        space: &SpaceId,
        now: Timestamp,
    ) -> store::Result<Result<u16, Shortage>> {
        let mut pools = self.pools.lock().await;
        let Some(ports) = pools.get_mut(pool) else { return Ok(Err(Shortage::Exhausted)) };
        if ports.doubted {
            let (reservations, rows) = read(&self.store, pool).await?;
            ports.free.reread(reservations, rows, now);
            ports.doubted = false;
        }
        let port = match asked {
            Some(port) => ports.free.request(port, space, now).map(|()| port).map_err(Shortage::Refused),
            None => ports.free.propose(fastrand::u64(..), now).ok_or(Shortage::Exhausted),
        };
        if let Ok(port) = port {
            ports.free.take(port, now);
        }
        Ok(port)
    }

    /// Gives a port back that was never used.
    pub(super) async fn give_back(&self, pool: &PoolName, port: u16, now: Timestamp) {
        self.with(pool, |ports| ports.free.give_back(port, now)).await;
    }

    /// Puts a port to rest.
    pub(super) async fn release(&self, pool: &PoolName, port: u16, release: Release) {
        let now = release.at;
        self.with(pool, |ports| ports.free.release(port, release, now)).await;
    }

    /// Puts a port aside that something else on the machine has.
    pub(super) async fn mark_conflict(&self, pool: &PoolName, port: u16, now: Timestamp) {
        self.with(pool, |ports| ports.free.mark_conflict(port, now.plus(CONFLICT_MEMORY), now)).await;
    }

    /// Says that the store may know otherwise: the next to take a port reads it.
    pub(super) async fn doubt(&self, pool: &PoolName) {
        self.with(pool, |ports| ports.doubted = true).await;
    }

    /// Takes over another range.
    pub(super) async fn resize(&self, pool: &Pool, now: Timestamp) {
        self.with(&pool.name, |ports| ports.free.resize(pool.ports.clone(), now)).await;
    }

    /// How many ports of a pool are what.
    pub(super) async fn counts(&self, pool: &PoolName, now: Timestamp) -> Counts {
        let mut pools = self.pools.lock().await;
        pools.get_mut(pool).map(|ports| ports.free.counts(now)).unwrap_or_default()
    }

    /// Ports of a pool that is not served are nobody's concern here.
    async fn with(&self, pool: &PoolName, change: impl FnOnce(&mut PoolPorts)) {
        if let Some(ports) = self.pools.lock().await.get_mut(pool) {
            change(ports);
        }
    }
}

async fn read(store: &AnyStore, pool: &PoolName) -> store::Result<(Vec<Reservation>, Vec<PortRow>)> {
    Ok((store.reservations(pool).await?, store.ports(pool).await?))
}
