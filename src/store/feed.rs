//! Hints within one process: all there are for a store that only one process has.

use async_trait::async_trait;
use tokio::sync::watch;

use super::{Feed, Hint};

/// Rung at each change.
#[derive(Debug, Default)]
pub(super) struct Bell {
    desired: watch::Sender<()>,
    members: watch::Sender<()>,
}

impl Bell {
    /// Tells everyone who listens.
    pub(super) fn ring(&self, hint: Hint) {
        match hint {
            Hint::Desired => self.desired.send_replace(()),
            Hint::Members => self.members.send_replace(()),
            Hint::Everything => {
                self.desired.send_replace(());
                self.members.send_replace(());
            }
        }
    }

    /// Hears what is rung from now on.
    pub(super) fn listen(&self) -> Box<dyn Feed> {
        Box::new(Ear { desired: self.desired.subscribe(), members: self.members.subscribe() })
    }
}

struct Ear {
    desired: watch::Receiver<()>,
    members: watch::Receiver<()>,
}

#[async_trait]
impl Feed for Ear {
    async fn next(&mut self) -> Hint {
        tokio::select! {
            Ok(()) = self.desired.changed() => Hint::Desired,
            Ok(()) = self.members.changed() => Hint::Members,
            // The store has gone.
            else => std::future::pending().await,
        }
    }
}
