//! Live settings: changed here, for all nodes. What they mean is the configuration's matter.

use std::sync::Arc;

use tokio::sync::watch;

use super::{
    Control,
    audit::{self, Change},
};
use crate::{
    model::{
        NodeId, Revision,
        requester::{Requester, Said},
        setting::{By, MAX_SETTINGS, Setting, SettingChange},
    },
    store,
};

/// Why live settings are not changed.
#[derive(Debug, thiserror::Error)]
pub enum SettingsRefusal {
    /// Somebody else has changed some meanwhile.
    #[error("live settings were changed by somebody else at the same time: look, and try again")]
    Contended,
    /// There are too many.
    #[error("there are {MAX_SETTINGS} live settings, the most that can be: unset some")]
    TooMany,
    /// The store is away.
    #[error("the store is away: try again in a few seconds")]
    Fault(#[from] store::Fault),
}

impl Control {
    /// The live settings of all scopes, by scope and key.
    #[must_use]
    pub fn settings(&self) -> watch::Receiver<Arc<[Setting]>> {
        self.snapshot.settings()
    }

    /// The live settings as the store has them, and the revision that a change of them is based on.
    ///
    /// # Errors
    /// When the store is away.
    pub async fn read_settings(&self) -> store::Result<(Revision, Vec<Setting>)> {
        self.store.settings().await
    }

    /// Changes live settings that were read at the revision `read_at`. This node has them when it returns, the others as
    /// soon as they hear of it.
    ///
    /// # Errors
    /// [`SettingsRefusal`].
    pub async fn change_settings(
        &self,
        changes: &[SettingChange],
        who: &str,
        read_at: Revision,
    ) -> Result<Revision, SettingsRefusal> {
        let by = By { who: who.to_owned(), at: self.clock.wall() };
        let adds = changes.iter().filter(|change| change.value.is_some()).count();
        if self.snapshot.settings().borrow().len() + adds > MAX_SETTINGS {
            return Err(SettingsRefusal::TooMany);
        }
        let committed = self.store.change_settings(changes, &by, read_at).await?;
        let revision = committed.ok_or(SettingsRefusal::Contended)?;
        let by = Requester::Operator { name: Said::new(who) };
        changes.iter().for_each(|setting| audit::note(&by, Change::Set { setting, revision }));
        // Committed is committed: whoever cannot read it now reads it later.
        if let Err(fault) = self.snapshot.reach(revision).await {
            tracing::warn!(error = %super::failure::chain(&fault), "a live setting was changed, and cannot be read yet");
        }
        Ok(revision)
    }

    /// Waits, for a bounded time, until every live node has heard of all that this one knows. Returns those that have not said
    /// so.
    pub async fn heard_everywhere(&self) -> Vec<NodeId> {
        self.applied_everywhere(self.snapshot.revision().await).await
    }

    /// What operators have changed, the latest first; at most `limit`.
    ///
    /// # Errors
    /// When the store is away.
    pub async fn settings_history(&self, limit: usize) -> store::Result<Vec<Setting>> {
        self.store.settings_history(limit).await
    }
}
