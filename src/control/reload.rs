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
}

impl Control {
    /// Takes over what can change live; no port is in two of the pools. Shrinking a range evicts nobody.
    ///
    /// # Errors
    /// [`ReloadRefusal`] when that wants a restart.
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
    Ok(())
}
