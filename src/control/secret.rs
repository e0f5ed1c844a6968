//! The announce secret: rotated in two steps, so that no token ends before its holder has another one.

use super::{
    Control,
    audit::{self, Change},
};
use crate::{
    model::{
        NodeId,
        requester::{Requester, Said},
        setting::{By, HISTORY_KEPT, SECRETS, Setting},
    },
    store,
};

/// A rotation that is under way: tokens of the former secret count too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// When it began, and by whom; none: the history does not tell, or not yet.
    pub began: Option<By>,
}

/// Why the announce secret stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum SecretRefusal {
    /// Only one secret can be the former one.
    #[error("a rotation is under way already: bind apps anew, then end it by `harbor data rotate-secret --finish`")]
    UnderWay,
    /// There is nothing to end.
    #[error("no rotation is under way: begin one by `harbor data rotate-secret`")]
    NoneUnderWay,
    /// The store is away.
    #[error("the store is away: try again in a few seconds")]
    Fault(#[from] store::Fault),
}

impl Control {
    /// The rotation that is under way.
    #[must_use]
    pub fn rotation(&self) -> Option<Rotation> {
        self.snapshot.rotation()
    }

    /// Makes a new announce secret: from now on its tokens are given out, and those of the former one count as well. Returns
    /// the live nodes that have not said in time that it is so there.
    ///
    /// # Errors
    /// [`SecretRefusal`].
    pub async fn rotate_secret(&self, who: &str) -> Result<Vec<NodeId>, SecretRefusal> {
        if !self.store.rotate_announce_secret(&self.by(who)).await? {
            return Err(SecretRefusal::UnderWay);
        }
        self.publish_secret(who, Change::SecretRotated).await
    }

    /// Ends the rotation: tokens of the former secret count no more.
    ///
    /// # Errors
    /// [`SecretRefusal`].
    pub async fn finish_rotation(&self, who: &str) -> Result<Vec<NodeId>, SecretRefusal> {
        if !self.store.drop_former_secret(&self.by(who)).await? {
            return Err(SecretRefusal::NoneUnderWay);
        }
        self.publish_secret(who, Change::RotationFinished).await
    }

    async fn publish_secret(&self, who: &str, change: Change<'_>) -> Result<Vec<NodeId>, SecretRefusal> {
        audit::note(&Requester::Operator { name: Said::new(who) }, change);
        self.snapshot.refresh().await?;
        Ok(self.heard_everywhere().await)
    }

    fn by(&self, who: &str) -> By {
        By { who: who.to_owned(), at: self.clock.wall() }
    }
}

/// When the rotation that is under way began, and by whom: the last one that the history tells of.
pub(super) async fn began(store: &store::AnyStore) -> store::Result<Option<By>> {
    let history = store.settings_history(HISTORY_KEPT).await?;
    let last = history.into_iter().find(|change| change.scope == SECRETS);
    Ok(last.map(|Setting { changed_by, changed_at, .. }| By { who: changed_by, at: changed_at }))
}
