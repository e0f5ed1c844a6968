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
    /// In what the file of this node differs from what the nodes have agreed on.
    pub differences: Option<Differences>,
}

impl Control {
    /// How the pools are, by name: those that a node serves, and those that have ports given out.
    pub async fn overview(&self) -> Vec<PoolUsage> {
        let (facts, now) = (self.facts(), self.clock.wall());
        let members = self.members.borrow().clone();
        let is_served = |name: &PoolName| {
            facts.served.contains(name) || members.all.iter().any(|known| known.member.pools.contains(name))
        };
        let differences = |agreed: &Pool| facts.file.iter().find(|pool| pool.name == agreed.name)?.differences(agreed);
        let mut pools = Vec::with_capacity(facts.pools.len());
        for pool in facts.pools.values() {
            let counts = self.ports.counts(&pool.name, now).await;
            if counts.allocated > 0 || is_served(&pool.name) {
                pools.push(PoolUsage {
                    name: pool.name.clone(),
                    ports: pool.ports.clone(),
                    counts,
                    retired: pool.retired,
                    differences: differences(pool),
                });
            }
        }
        pools
    }
}
