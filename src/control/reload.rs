//! Reload: other ranges, names and limits, taken over while the node runs.

use std::{collections::BTreeMap, sync::Arc};

use super::{Control, Facts};
use crate::model::{PoolName, desired::ForwarderLimits, pool::Pool};

/// Why live settings are not taken over. Nothing has been changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReloadRefusal {
    /// Pools come and go with a restart: plans and bindings refer to them.
    #[error("the pool {0} was added or removed: restart Harbor to take that over")]
    OtherPools(PoolName),
    /// Two pools of one node have a port in common.
    #[error("the pools {0} and {1} both have port {2}: give them ranges that do not overlap")]
    Overlap(PoolName, PoolName, u16),
}

impl Control {
    /// Takes over what can change live. Shrinking a range evicts nobody.
    ///
    /// # Errors
    /// [`ReloadRefusal`] when that wants a restart or cannot be.
    pub async fn reload(&self, pools: Vec<Pool>, limits: ForwarderLimits) -> Result<(), ReloadRefusal> {
        let pools = pools.into_iter().map(|pool| (pool.name.clone(), pool)).collect::<BTreeMap<_, _>>();
        check(&self.facts.load().pools, &pools)?;
        let now = self.clock.wall();
        for pool in pools.values() {
            self.ports.resize(pool, now).await;
        }
        let facts = Arc::new(Facts { pools, limits: Arc::new(limits) });
        self.facts.store(Arc::clone(&facts));
        self.snapshot.set_facts(facts).await;
        Ok(())
    }
}

fn check(known: &BTreeMap<PoolName, Pool>, wanted: &BTreeMap<PoolName, Pool>) -> Result<(), ReloadRefusal> {
    let differs = |a: &BTreeMap<PoolName, Pool>, b: &BTreeMap<PoolName, Pool>| {
        a.keys().find(|name| !b.contains_key(*name)).cloned()
    };
    if let Some(name) = differs(known, wanted).or_else(|| differs(wanted, known)) {
        return Err(ReloadRefusal::OtherPools(name));
    }
    let all = wanted.values().collect::<Vec<_>>();
    for (index, a) in all.iter().enumerate() {
        for b in &all[index + 1..] {
            if let Some(port) = a.ports.first_common(&b.ports) {
                return Err(ReloadRefusal::Overlap(a.name.clone(), b.name.clone(), port));
            }
        }
    }
    Ok(())
}
