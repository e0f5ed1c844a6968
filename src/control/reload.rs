//! Reload: other pools, plans and limits, taken over while the node runs.

use std::{collections::BTreeSet, sync::Arc};

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

/// Pools as this node would have all nodes have them.
struct Proposal {
    /// All that it serves.
    all: Vec<Pool>,
    /// Those that change.
    moving: BTreeSet<PoolName>,
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
        let Proposal { all, moving } = self.propose(&wanted)?;
        let unmoved = wanted.iter().filter(|pool| !moving.contains(&pool.name));
        for (pool, differences) in
            unmoved.filter_map(|pool| Some((pool, pool.differences(facts.pools.get(&pool.name)?)?)))
        {
            tracing::warn!(pool = %pool.name, %differences, "this node's file is not what the nodes have agreed on");
        }
        if !moving.is_empty() {
            let listened = Listened::from_now(&self.store).await.map_err(Disagreement::from)?;
            pools::define(&self.store, &self.node, &all, &|name| moving.contains(name), &listened).await?;
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

    /// Whether [`Control::reload`] would take these pools over, as far as that can be told now.
    ///
    /// # Errors
    /// [`ReloadRefusal`].
    pub async fn check_reload(&self, wanted: &[Pool]) -> Result<(), ReloadRefusal> {
        let Proposal { all, moving } = self.propose(wanted)?;
        if !moving.is_empty() {
            let listened = Listened::from_now(&self.store).await.map_err(Disagreement::from)?;
            pools::find_changes(&self.store, &self.node, &all, &|name| moving.contains(name), &listened).await?;
        }
        Ok(())
    }

    /// What this node proposes to the others when it wants these pools.
    fn propose(&self, wanted: &[Pool]) -> Result<Proposal, ReloadRefusal> {
        self.check_left(wanted)?;
        let facts = self.facts();
        let moving = wanted.iter().filter(|pool| !facts.file.contains(pool)).map(|pool| pool.name.clone());
        let moving = moving.collect::<BTreeSet<_>>();
        // With those that stay as they were agreed on: no port may be in two of them.
        let all = wanted.iter().map(|pool| match facts.pools.get(&pool.name) {
            Some(agreed) if !moving.contains(&pool.name) => agreed.clone(),
            Some(agreed) => match facts.file.iter().find(|before| before.name == pool.name) {
                Some(before) => pool.changed(before, agreed),
                None => pool.clone(),
            },
            None => pool.clone(),
        });
        Ok(Proposal { all: all.collect(), moving })
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
