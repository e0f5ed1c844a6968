//! Pools: what the nodes agree on. Files propose; the store has what holds, for all nodes at once.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{
    model::{
        NodeId, PoolName, Revision,
        member::{DEAD_AFTER, Member, Members},
        pool::{Pool, PoolRefusal, Pools, agree},
    },
    store::{self, AnyStore},
};

/// How often a definition is tried while others define pools too.
const MAX_ATTEMPTS: usize = 8;

/// How long until a node that may be dead is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Why pools could not be agreed on.
#[derive(Debug, thiserror::Error)]
pub enum Disagreement {
    /// They cannot be had.
    #[error(transparent)]
    Refused(#[from] PoolRefusal),
    /// The store is away.
    #[error(transparent)]
    Fault(#[from] store::Fault),
    /// Other nodes went on changing them.
    #[error("the pools are being changed by other nodes: try again")]
    Contended,
}

/// Whether `own` could start with these pools, as far as can be told without changing anything.
///
/// # Errors
/// [`Disagreement`].
pub async fn check_pools(store: &AnyStore, own: &NodeId, wanted: &[Pool]) -> Result<(), Disagreement> {
    find_changes(store, own, wanted, &|_| false).await.map(drop)
}

/// Makes `wanted` what all nodes have, as far as [`agree`] lets it. Nothing has been changed otherwise.
pub(super) async fn define(
    store: &AnyStore,
    own: &NodeId,
    wanted: &[Pool],
    moving: impl Fn(&PoolName) -> bool,
) -> Result<(), Disagreement> {
    for _ in 0..MAX_ATTEMPTS {
        let (read_at, changes) = find_changes(store, own, wanted, &moving).await?;
        if changes.is_empty() || store.define_pools(&changes, read_at).await?.is_some() {
            return Ok(());
        }
    }
    Err(Disagreement::Contended)
}

/// What has to be defined, and the revision that this was found at. Another node is in the way only when it lives, and that
/// is told by its word, which goes on changing, whatever the clocks say.
async fn find_changes(
    store: &AnyStore,
    own: &NodeId,
    wanted: &[Pool],
    moving: &impl Fn(&PoolName) -> bool,
) -> Result<(Revision, Vec<Pool>), Disagreement> {
    let before = store.members().await?;
    let deadline = Instant::now() + DEAD_AFTER;
    loop {
        let (read_at, agreed) = store.pools().await?;
        let agreed = agreed.into_iter().map(|pool| (pool.name.clone(), pool)).collect::<Pools>();
        let mut members = Members::presumed_alive(store.members().await?);
        let is_over = Instant::now() >= deadline;
        if let Ok(changes) = agree(own, wanted, &agreed, &members, moving) {
            return Ok((read_at, changes));
        }
        let is_silent = |member: &Member| before.iter().any(|b| b.id == member.id && b.seen_at == member.seen_at);
        members.all.retain(|known| !is_silent(&known.member));
        match agree(own, wanted, &agreed, &members, moving) {
            Ok(changes) if is_over => return Ok((read_at, changes)),
            Ok(_) => sleep(LOOK_AGAIN).await,
            Err(refusal) => return Err(refusal.into()),
        }
    }
}
