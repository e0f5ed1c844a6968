//! What reserving, releasing and applying have in common: a plan is made of what the store has, and carried out in one
//! transaction. When somebody was faster it is made anew.

use std::collections::BTreeSet;

use super::{Control, audit};
use crate::{
    model::{
        PoolName,
        allocation::PortState,
        pool::{Pool, Pools},
        port_plan::{self, Change, Leave, Plan, PlanRefusal, Present, Step},
        registry::Wish,
        requester::{Requester, Said},
        setting::{By, SettingChange, reservations_of},
    },
    store,
};

/// How often a change is tried while others change reservations too.
pub(super) const MAX_ATTEMPTS: usize = 8;

/// Most things that are told one by one.
const MAX_TOLD: usize = 20;

/// Why reservations are not changed. Nothing has been changed then.
#[derive(Debug, thiserror::Error)]
pub enum ReservationRefusal {
    /// There is no such pool.
    #[error("there is no pool {0:?}: `harbor ports list` ends with all of them")]
    UnknownPool(String),
    /// There is no such reservation.
    #[error("the pool {pool} has no reservation {name:?}: `harbor ports list --state reserved` shows all")]
    UnknownName {
        /// Of which pool.
        pool: PoolName,
        /// Which.
        name: String,
    },
    /// They cannot be had.
    #[error("{}", told(.0))]
    Refused(Vec<(PoolName, PlanRefusal)>),
    /// A range is that of a pool which nodes serve.
    #[error("{pool} is a pool, which has {known} and not {wanted}: leave range out, or give the block another name")]
    NotABlock {
        /// Which.
        pool: PoolName,
        /// What it has.
        known: String,
        /// What it would have.
        wanted: String,
    },
    /// A block would have a port of a pool.
    #[error("port {port} would be in the ranges of both {pool} and {other}: change one")]
    BlockOverlaps {
        /// The block.
        pool: PoolName,
        /// The pool that has the port.
        other: PoolName,
        /// The first such port.
        port: u16,
    },
    /// The same, where that one is a block too.
    #[error(
        "port {port} would be in the ranges of both {pool} and {other}: change one, or drop {other}, which --prune does once \
         it has no names and is not in the file"
    )]
    BlocksOverlap {
        /// The block.
        pool: PoolName,
        /// The block that has the port.
        other: PoolName,
        /// The first such port.
        port: u16,
    },
    /// One pool is asked for twice.
    #[error("the pool {0} is asked for twice: make it one section")]
    Twice(PoolName),
    /// Others went on changing them.
    #[error("the reservations are being changed by others: try again")]
    Contended,
    /// The store is away.
    #[error("the store is away: try again in a few seconds")]
    Fault(#[from] store::Fault),
}

impl ReservationRefusal {
    /// Whether what is asked for is wrong in itself, whatever there is.
    #[must_use]
    pub fn is_about_the_wish(&self) -> bool {
        match self {
            Self::Refused(refusals) => refusals.iter().any(|(_, refusal)| refusal.is_about_the_wish()),
            Self::Twice(_) => true,
            _ => false,
        }
    }
}

/// A line each.
fn told(refusals: &[(PoolName, PlanRefusal)]) -> String {
    let mut lines = Vec::new();
    for (pool, refusal) in refusals.iter().take(MAX_TOLD) {
        lines.push(format!("in the pool {pool}, {refusal}"));
    }
    let untold = refusals.len().saturating_sub(MAX_TOLD);
    if untold > 0 {
        lines.push(format!("{untold} more cannot be had"));
    }
    lines.join("\n")
}

/// The pools by name, as the store has them.
pub(super) fn by_name(pools: Vec<Pool>) -> Pools {
    pools.into_iter().map(|pool| (pool.name.clone(), pool)).collect()
}

impl Control {
    /// What has to be done in a pool.
    pub(super) async fn plan_reservations(
        &self,
        pool: &Pool,
        wishes: &[Wish],
        leave: Leave,
    ) -> Result<Plan, ReservationRefusal> {
        let (reservations, rows) = (self.store.reservations(&pool.name).await?, self.store.ports(&pool.name).await?);
        let allocated = rows.into_iter().filter(|row| row.state == PortState::Allocated).map(|row| row.port);
        let allocated = allocated.collect::<BTreeSet<_>>();
        let present =
            Present { pool: &pool.name, range: &pool.ports, reservations: &reservations, allocated: &allocated };
        port_plan::plan(&present, wishes, leave).map_err(|refusals| {
            ReservationRefusal::Refused(refusals.into_iter().map(|refusal| (pool.name.clone(), refusal)).collect())
        })
    }

    /// Does what steps say. `false` when somebody else has changed reservations meanwhile, or has got one of the ports.
    pub(super) async fn carry_out(&self, steps: &[Step], who: &str) -> Result<bool, ReservationRefusal> {
        let changed = |step: &&Step| step.change() != Change::Keep;
        let released = steps.iter().filter(changed).filter(|step| step.before.is_some());
        let released = released.map(|step| (step.pool.clone(), step.name.clone())).collect::<Vec<_>>();
        let made = steps.iter().filter(changed).filter_map(Step::made).collect::<Vec<_>>();
        if released.is_empty() && made.is_empty() {
            return Ok(true);
        }
        let known =
            steps.iter().flat_map(|step| step.allocated.iter().map(|port| (step.pool.clone(), *port))).collect();
        let by = By { who: who.to_owned(), at: self.clock.wall() };
        if !self.store.change_reservations(&released, &made, &known, &by).await? {
            return Ok(false);
        }
        let by = by_operator(who);
        for (pool, name) in &released {
            // One that is made anew is told below, with what it has.
            if !made.iter().any(|made| (&made.pool, &made.name) == (pool, name)) {
                let change = SettingChange { scope: reservations_of(pool), key: name.clone(), value: None };
                audit::note(&by, audit::Change::Reservation(&change));
            }
        }
        for held in &made {
            let (scope, key) = (reservations_of(&held.pool), held.name.clone());
            audit::note(&by, audit::Change::Reservation(&SettingChange { scope, key, value: Some(held.told()) }));
        }
        self.look_again().await;
        Ok(true)
    }

    /// Reads what was just changed. When the store is away by now, whoever reads it next does.
    pub(super) async fn look_again(&self) {
        if let Err(fault) = self.refresh().await {
            tracing::debug!(error = %fault, "a change of reservations is taken over later");
        }
    }
}

/// Whoever has asked, for the audit log.
pub(super) fn by_operator(who: &str) -> Requester {
    Requester::Operator { name: Said::new(who) }
}
