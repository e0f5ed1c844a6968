//! Pools: what the nodes agree on. Files propose; the store has what holds, for all nodes at once.

use crate::{
    model::{
        NodeId, PoolName, Timestamp,
        member::Members,
        pool::{Pool, PoolRefusal, Pools, agree},
    },
    store::{self, AnyStore},
};

/// How often a definition is tried while others define pools too.
const MAX_ATTEMPTS: usize = 8;

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

/// Makes `wanted` what all nodes have, as far as [`agree`] lets it. Nothing has been changed otherwise.
pub(super) async fn define(
    store: &AnyStore,
    own: &NodeId,
    wanted: &[Pool],
    moving: impl Fn(&PoolName) -> bool,
    now: Timestamp,
) -> Result<(), Disagreement> {
    for _ in 0..MAX_ATTEMPTS {
        let (read_at, agreed) = store.pools().await?;
        let agreed = agreed.into_iter().map(|pool| (pool.name.clone(), pool)).collect::<Pools>();
        let members = Members::by_wall_clock(store.members().await?, now);
        let define = agree(own, wanted, &agreed, &members, &moving)?;
        if define.is_empty() || store.define_pools(&define, read_at).await?.is_some() {
            return Ok(());
        }
    }
    Err(Disagreement::Contended)
}
