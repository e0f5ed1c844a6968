//! Announcements that another node let in and this one refuses, as its directory is some milliseconds behind: kept for a
//! moment, and judged again with the next directory.

use std::{
    collections::VecDeque,
    sync::MutexGuard,
    time::{Duration, Instant},
};

use super::{
    Discovery,
    source::{Action, Source},
    wire::Announcement,
};
use crate::model::announcement::AnnouncementRefusal;

/// How long one is kept: longer than a change takes from node to node.
const KEPT_FOR: Duration = Duration::from_secs(2);

/// Most that are kept; what comes beyond is announced again as always.
const MOST: usize = 128;

/// What came too early, in the order in which it came.
#[derive(Debug, Default)]
pub(super) struct Early(VecDeque<(Announcement, Action, Instant)>);

impl Early {
    fn forget_old(&mut self, now: Instant) {
        while self.0.front().is_some_and(|(_, _, at)| now.saturating_duration_since(*at) > KEPT_FOR) {
            self.0.pop_front();
        }
    }
}

/// Whether a newer directory may say otherwise.
fn may_pass(reason: AnnouncementRefusal) -> bool {
    use AnnouncementRefusal::{AppNotBound, BadProof, UnknownServiceInstance};
    matches!(reason, UnknownServiceInstance | AppNotBound | BadProof)
}

impl Discovery {
    /// Keeps a message that was refused, where that may be for want of a newer directory. Only what nodes relay: nobody
    /// else is told that an announcement was accepted.
    pub(super) fn keep_early(
        &self,
        message: Announcement,
        action: Action,
        source: Source,
        arrived_at: Instant,
        reason: AnnouncementRefusal,
    ) {
        if source != Source::Harbor || !may_pass(reason) {
            return;
        }
        let mut early = self.early();
        early.forget_old(arrived_at);
        if early.0.len() < MOST {
            early.0.push_back((message, action, arrived_at));
        }
    }

    /// Judges what is kept again. What is refused once more was counted the first time.
    pub(super) fn judge_early(&self) {
        let waiting = {
            let mut early = self.early();
            early.forget_old(self.clock.now());
            std::mem::take(&mut early.0)
        };
        for (message, action, arrived_at) in waiting {
            let directory = self.directory.borrow().clone();
            match self.judge_and_apply(&message, action, Source::Harbor, &directory, arrived_at) {
                Ok(change) => self.accepted(Source::Harbor, change, arrived_at),
                Err(refused) => self.keep_early(message, action, Source::Harbor, arrived_at, refused.reason),
            }
        }
    }

    fn early(&self) -> MutexGuard<'_, Early> {
        self.early.lock().expect("nothing panics while it holds what came early")
    }
}
