//! Apply: the reservations of pools become what a file says, all of it or nothing.

use std::collections::BTreeMap;

use super::{
    Control, audit,
    reservations::{MAX_ATTEMPTS, ReservationRefusal, by_name, by_operator},
};
use crate::model::{
    PoolName, PortSet, Revision,
    allocation::{PortRow, PortState},
    pool::{Pool, Pools},
    port_plan::{Leave, Step},
    registry::Wish,
    setting::By,
};

/// A section of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedPool {
    /// The pool or block.
    pub name: PoolName,
    /// What a block has; none for a pool.
    pub range: Option<PortSet>,
    /// What is to be held back.
    pub wishes: Vec<Wish>,
}

/// What was done, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// The blocks that are new, or have another range.
    pub defined: Vec<Pool>,
    /// The blocks that are gone.
    pub dropped: Vec<Pool>,
    /// What becomes of each name, by pool and name.
    pub steps: Vec<Step>,
    /// How many names are not in the file and stay as they are.
    pub others: usize,
}

impl Control {
    /// Makes the reservations of the pools in `wanted` what it says, whatever the order. With `dry_run` only tells what that
    /// would be. Blocks that nobody needs are dropped before, and those that are new defined, each as a change
    /// of its own: a repeat goes on from there.
    ///
    /// # Errors
    /// [`ReservationRefusal`]: all that is wrong with any wish.
    pub async fn apply_ports(
        &self,
        wanted: &[WantedPool],
        leave: Leave,
        dry_run: bool,
        who: &str,
    ) -> Result<Applied, ReservationRefusal> {
        let mut sections = BTreeMap::new();
        for section in wanted {
            if sections.insert(&section.name, section).is_some() {
                return Err(ReservationRefusal::Twice(section.name.clone()));
            }
        }
        let (mut defined, mut dropped) = (Vec::new(), Vec::new());
        for _ in 0..MAX_ATTEMPTS {
            let (read_at, pools) = self.pools_with(&sections, leave).await?;
            let mut applied = Applied { defined: pools.defined, dropped: pools.dropped, ..Applied::default() };
            let mut refusals = Vec::new();
            for section in sections.values() {
                match self.plan_reservations(&pools.all[&section.name], &section.wishes, leave).await {
                    Ok(plan) => {
                        applied.steps.extend(plan.steps);
                        applied.others += plan.others;
                    }
                    Err(ReservationRefusal::Refused(more)) => refusals.extend(more),
                    Err(other) => return Err(other),
                }
            }
            if !refusals.is_empty() {
                return Err(ReservationRefusal::Refused(refusals));
            }
            if dry_run {
                return Ok(applied);
            }
            let by = by_operator(who);
            if !applied.dropped.is_empty() {
                let names = applied.dropped.iter().map(|pool| pool.name.clone()).collect::<Vec<_>>();
                let at = By { who: who.to_owned(), at: self.clock.wall() };
                let Some(revision) = self.store.drop_pools(&names, &at, read_at).await? else { continue };
                for pool in &applied.dropped {
                    audit::note(&by, audit::Change::PoolDropped { pool, revision });
                }
                self.look_again().await;
                dropped.append(&mut applied.dropped);
            }
            if !applied.defined.is_empty() {
                let Some(revision) = self.store.define_pools(&applied.defined, read_at).await? else { continue };
                let node = &self.node;
                for pool in &applied.defined {
                    audit::note(&by, audit::Change::PoolDefined { pool, node, revision });
                }
                self.look_again().await;
                defined.append(&mut applied.defined);
            }
            if self.carry_out(&applied.steps, who).await? {
                (applied.defined, applied.dropped) = (defined, dropped);
                return Ok(applied);
            }
        }
        Err(ReservationRefusal::Contended)
    }

    /// All pools as they would be with the blocks of these sections, and the revision at which they are what they are.
    async fn pools_with(
        &self,
        sections: &BTreeMap<&PoolName, &WantedPool>,
        leave: Leave,
    ) -> Result<(Revision, Blocks), ReservationRefusal> {
        let (read_at, pools) = self.store.pools().await?;
        let members = self.store.members().await?;
        let is_served = |name: &PoolName| members.iter().any(|member| member.pools.contains(name));
        let is_block = |pool: &Pool| pool.is_like_a_block() && !is_served(&pool.name);
        let mut blocks = Blocks { all: by_name(pools), defined: Vec::new(), dropped: Vec::new() };
        if leave.prune {
            for pool in blocks.all.values().filter(|pool| is_block(pool) && !sections.contains_key(&pool.name)) {
                if self.is_empty(&pool.name).await? {
                    blocks.dropped.push(pool.clone());
                }
            }
            blocks.all.retain(|name, _| !blocks.dropped.iter().any(|pool| pool.name == *name));
        }
        for WantedPool { name, range, .. } in sections.values() {
            let known = blocks.all.get(name);
            let is_served = is_served(name);
            match (range, known) {
                (None, Some(_)) => {}
                (None, None) => return Err(ReservationRefusal::UnknownPool(name.to_string())),
                (Some(range), Some(known)) if known.ports == *range => {}
                (Some(range), Some(known)) if is_served || !known.is_like_a_block() => {
                    let (pool, known, wanted) = (name.clone(), known.ports.to_string(), range.to_string());
                    return Err(ReservationRefusal::NotABlock { pool, known, wanted });
                }
                (Some(range), _) => {
                    let block = Pool::block(name.clone(), range.clone());
                    blocks.defined.push(block.clone());
                    blocks.all.insert(name.clone(), block);
                }
            }
        }
        let wanted = sections.keys().map(|name| &blocks.all[*name]);
        for block in wanted.filter(|pool| is_block(pool)) {
            for other in blocks.all.values().filter(|other| other.name != block.name) {
                if let Some(port) = block.ports.first_common(&other.ports) {
                    let is_block = is_block(other);
                    let (pool, other) = (block.name.clone(), other.name.clone());
                    return Err(match is_block {
                        true => ReservationRefusal::BlocksOverlap { pool, other, port },
                        false => ReservationRefusal::BlockOverlaps { pool, other, port },
                    });
                }
            }
        }
        Ok((read_at, blocks))
    }

    /// Whether nobody has a port of a pool, by a name or otherwise.
    async fn is_empty(&self, pool: &PoolName) -> Result<bool, ReservationRefusal> {
        let is_allocated = |row: &PortRow| row.state == PortState::Allocated;
        Ok(self.store.reservations(pool).await?.is_empty() && !self.store.ports(pool).await?.iter().any(is_allocated))
    }
}

/// Pools, which of them have to be defined, and which others have to be dropped.
struct Blocks {
    all: Pools,
    defined: Vec<Pool>,
    dropped: Vec<Pool>,
}
