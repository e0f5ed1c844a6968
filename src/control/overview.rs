//! Overview: how the pools are, for operators.

use super::Control;
use crate::model::{
    PoolName, PortSet,
    allocation::Counts,
    pool::{Differences, Pool},
};

/// How a pool is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolUsage {
    /// Which.
    pub name: PoolName,
    /// Its ports.
    pub ports: PortSet,
    /// How many of them are what.
    pub counts: Counts,
    /// Whether it gives out no more ports.
    pub retired: bool,
    /// Whether a node serves it.
    pub served: bool,
    /// In what the file of this node differs from what the nodes have agreed on.
    pub differences: Option<Differences>,
}

impl Control {
    /// How the pools are, by name: those that a node serves, and those that have ports given out.
    pub async fn overview(&self) -> Vec<PoolUsage> {
        let mut pools = self.all_pools().await;
        pools.retain(|pool| pool.served || pool.counts.allocated > 0);
        pools
    }

    /// How all pools are that are defined, by name.
    pub(super) async fn all_pools(&self) -> Vec<PoolUsage> {
        let (facts, now) = (self.facts(), self.clock.wall());
        let members = self.members.borrow().clone();
        let is_served = |name: &PoolName| {
            facts.served.contains(name) || members.all.iter().any(|known| known.member.pools.contains(name))
        };
        let differences = |agreed: &Pool| facts.file.iter().find(|pool| pool.name == agreed.name)?.differences(agreed);
        let mut pools = Vec::with_capacity(facts.pools.len());
        for pool in facts.pools.values() {
            pools.push(PoolUsage {
                name: pool.name.clone(),
                ports: pool.ports.clone(),
                counts: self.ports.counts(&pool.name, now).await,
                retired: pool.retired,
                served: is_served(&pool.name),
                differences: differences(pool),
            });
        }
        pools
    }
}
