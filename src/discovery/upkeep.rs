//! What happens without a message: backends expire, and lose their authority with the directory.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Discovery;
use crate::model::directory::Directory;

/// Runs until `shutdown`.
pub async fn run(discovery: Arc<Discovery>, shutdown: CancellationToken) {
    let mut directory = discovery.directory.clone();
    directory.mark_changed();
    // The directory that the table was held against last.
    let mut known = None;
    let mut next_sweep = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = directory.changed() => {
                if changed.is_err() {
                    // Nobody publishes directories any more: the program is ending.
                    return shutdown.cancelled().await;
                }
                let latest = Arc::clone(&directory.borrow_and_update());
                discovery.hold_against(&latest, known.as_deref());
                known = Some(latest);
                discovery.judge_early();
            }
            () = tokio::time::sleep_until(next_sweep) => {
                discovery.sweep();
                next_sweep = tokio::time::Instant::now() + discovery.settings.load().prune_every;
            }
        }
    }
}

impl Discovery {
    /// Removes what has not been announced in time, unless that is suspended.
    pub fn sweep(&self) {
        self.backends.sweep(self.clock.now());
        self.expire_attribution();
        self.show_counts();
    }

    /// Ends backends whose authority has gone with the `latest` directory; `known` is the one that they stood in, where
    /// that is known.
    pub fn hold_against(&self, latest: &Directory, known: Option<&Directory>) {
        match known.and_then(|known| latest.changed_since(known)) {
            Some(changed) => self.backends.retain_authorised_of(&changed, latest),
            None => self.backends.retain_authorised(latest),
        }
        self.known_refusals().retain(|id| latest.instance(id.as_str()).is_some());
        self.show_counts();
    }
}
