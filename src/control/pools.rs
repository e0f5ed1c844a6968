//! Pools: what the nodes agree on. Files propose; the store has what holds, for all nodes at once.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    Control,
    audit::{self, Change},
};
use crate::{
    model::{
        NodeId, PoolName, Revision,
        member::{DEAD_AFTER, Member, Members},
        pool::{Pool, PoolRefusal, Pools, agree},
        requester::Requester,
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

/// The nodes as they were at one moment. Whoever has said nothing for [`DEAD_AFTER`] since then is dead, whatever the clocks
/// say.
pub(super) struct Listened {
    before: Vec<Member>,
    since: Instant,
}

impl Listened {
    /// Begins to listen.
    pub(super) async fn from_now(store: &AnyStore) -> store::Result<Self> {
        Ok(Self { before: store.members().await?, since: Instant::now() })
    }

    fn is_long_enough(&self) -> bool {
        self.since.elapsed() >= DEAD_AFTER
    }

    /// Whether the node has said nothing since.
    fn is_silent(&self, member: &Member) -> bool {
        self.before.iter().any(|before| before.id == member.id && before.seen_at == member.seen_at)
    }
}

/// Makes `wanted` what all nodes have, as far as [`agree`] lets it. Nothing has been changed otherwise.
pub(super) async fn define(
    store: &AnyStore,
    own: &NodeId,
    wanted: &[Pool],
    moving: &impl Fn(&PoolName) -> bool,
    listened: &Listened,
) -> Result<(), Disagreement> {
    for _ in 0..MAX_ATTEMPTS {
        let (read_at, changes) = find_changes(store, own, wanted, moving, listened).await?;
        if changes.is_empty() {
            return Ok(());
        }
        if let Some(revision) = store.define_pools(&changes, read_at).await? {
            for pool in &changes {
                audit::note(&Requester::Harbor, Change::PoolDefined { pool, node: own, revision });
            }
            return Ok(());
        }
    }
    Err(Disagreement::Contended)
}

impl Control {
    /// Defines those of this node's pools that the store does not know: it has become one of before they were defined.
    pub(super) async fn define_lost_pools(&self) -> store::Result<()> {
        let facts = self.facts();
        if facts.served.iter().all(|name| facts.pools.contains_key(name)) {
            return Ok(());
        }
        let listened = Listened::from_now(&self.store).await?;
        match define(&self.store, &self.node, &facts.file, &|_| false, &listened).await {
            Ok(()) => self.refresh().await,
            Err(Disagreement::Fault(fault)) => Err(fault),
            Err(refused) => {
                tracing::warn!(%refused, "the store lacks pools of this node");
                Ok(())
            }
        }
    }
}

/// What has to be defined, and the revision that this was found at. A node that is in the way is listened for, as it may be
/// dead.
pub(super) async fn find_changes(
    store: &AnyStore,
    own: &NodeId,
    wanted: &[Pool],
    moving: &impl Fn(&PoolName) -> bool,
    listened: &Listened,
) -> Result<(Revision, Vec<Pool>), Disagreement> {
    let mut is_told = false;
    loop {
        let is_over = listened.is_long_enough();
        let (read_at, agreed) = store.pools().await?;
        let agreed = agreed.into_iter().map(|pool| (pool.name.clone(), pool)).collect::<Pools>();
        let mut members = Members::presumed_alive(store.members().await?);
        if let Ok(changes) = agree(own, wanted, &agreed, &members, moving) {
            return Ok((read_at, changes));
        }
        members.all.retain(|known| !listened.is_silent(&known.member));
        match agree(own, wanted, &agreed, &members, moving) {
            Ok(changes) if is_over => return Ok((read_at, changes)),
            Ok(_) => {
                if !std::mem::replace(&mut is_told, true) {
                    tracing::info!(
                        "listening for {DEAD_AFTER:?} whether a node that serves one of these pools by other rules still lives"
                    );
                }
                sleep(LOOK_AGAIN).await;
            }
            Err(refusal) => return Err(refusal.into()),
        }
    }
}
