//! Overview: how full the pools are, for operators.

use super::Control;
use crate::model::{PoolName, PortSet, allocation::Counts};

/// How full a pool is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolUsage {
    /// Which.
    pub name: PoolName,
    /// Its ports.
    pub ports: PortSet,
    /// How many of them are what.
    pub counts: Counts,
}

impl Control {
    /// How full the pools are, by name.
    pub async fn overview(&self) -> Vec<PoolUsage> {
        let (facts, now) = (self.facts(), self.clock.wall());
        let mut pools = Vec::with_capacity(facts.pools.len());
        for pool in facts.pools.values() {
            let counts = self.ports.counts(&pool.name, now).await;
            pools.push(PoolUsage { name: pool.name.clone(), ports: pool.ports.clone(), counts });
        }
        pools
    }
}
