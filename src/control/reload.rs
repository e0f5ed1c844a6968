//! Reload: other pools, plans and limits, taken over while the node runs.

use std::sync::Arc;

use super::{
    Control, Disagreement, Facts,
    pools::{self, Listened},
};
use crate::model::{PoolName, desired::ForwarderLimits, plan::Plan, pool::Pool};

/// Why live settings are not taken over. Nothing has been changed then, unless the store went away in the middle: a repeat
/// finds out.
#[derive(Debug, thiserror::Error)]
pub enum ReloadRefusal {
    /// The pools are not what the nodes can agree on.
    #[error(transparent)]
    Pools(#[from] Disagreement),
    /// Ports of a pool would be left without a node.
    #[error(
        "{service_instances} service instances have ports of the pool {pool}, and no other node serves it: retire it by \
         retired = true, and take it out when they are gone"
    )]
    StillInUse {
        /// The pool that this node would no longer serve.
        pool: PoolName,
        /// How many have a port of it.
        service_instances: usize,
    },
}

impl Control {
    /// Takes over what can change live. Pools that the file has otherwise than before are changed for all nodes; those
    /// that others have changed meanwhile stay as they are, with a warning. Shrinking a range evicts nobody.
    ///
    /// # Errors
    /// [`ReloadRefusal`].
    pub async fn reload(
        &self,
        wanted: Vec<Pool>,
        plans: Vec<Plan>,
        limits: ForwarderLimits,
    ) -> Result<(), ReloadRefusal> {
        let _one_at_a_time = self.reload.lock().await;
        let facts = self.facts();
        self.check_left(&wanted)?;
        let changed = wanted.iter().filter(|pool| !facts.file.contains(pool)).cloned().collect::<Vec<_>>();
        let moving = |name: &PoolName| changed.iter().any(|pool| pool.name == *name);
        let unmoved = wanted.iter().filter(|pool| !moving(&pool.name));
        for (pool, differences) in
            unmoved.filter_map(|pool| Some((pool, pool.differences(facts.pools.get(&pool.name)?)?)))
        {
            tracing::warn!(pool = %pool.name, %differences, "this node's file is not what the nodes have agreed on");
        }
        if !changed.is_empty() {
            // With those that stay as they were agreed on: no port may be in two of them.
            let all = wanted.iter().map(|pool| match facts.pools.get(&pool.name) {
                Some(agreed) if !moving(&pool.name) => agreed.clone(),
                _ => pool.clone(),
            });
            let all = all.collect::<Vec<_>>();
            let listened = Listened::from_now(&self.store).await.map_err(Disagreement::from)?;
            pools::define(&self.store, &self.node, &all, &moving, &listened).await?;
            self.snapshot.refresh().await.map_err(Disagreement::from)?;
        }
        let served = wanted.iter().map(|pool| pool.name.clone()).collect();
        self.snapshot
            .change_facts(|facts| Facts {
                pools: facts.pools.clone(),
                file: wanted.into(),
                served,
                plans: if *facts.plans == *plans { Arc::clone(&facts.plans) } else { plans.into() },
                limits: Arc::new(limits),
            })
            .await;
        Ok(())
    }

    /// Whether every pool that would no longer be served here is served elsewhere, or empty.
    fn check_left(&self, wanted: &[Pool]) -> Result<(), ReloadRefusal> {
        let members = self.members.borrow();
        for pool in self.served().into_iter().filter(|name| !wanted.iter().any(|pool| pool.name == *name)) {
            if members.serving(&pool).any(|member| member.id != self.node) {
                continue;
            }
            let directory = self.directory();
            let service_instances = directory.borrow().instances().filter(|entry| entry.pool == pool).count();
            if service_instances > 0 {
                return Err(ReloadRefusal::StillInUse { pool, service_instances });
            }
        }
        Ok(())
    }
}
