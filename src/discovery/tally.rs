//! Counters looked up once: announcements come by the thousand a second.

use std::array;

use prometheus_client::metrics::counter::Counter;

use super::source::Source;
use crate::{backends::Change, model::announcement::AnnouncementRefusal, telemetry::metrics::DiscoveryMetrics};

const OUTCOMES: [&str; 5] = ["renewed", "altered", "added", "removed", "refused"];
const REFUSED: usize = 4;

#[derive(Debug)]
pub(super) struct Tally {
    outcomes: [[Counter; OUTCOMES.len()]; Source::ALL.len()],
    refusals: [[Counter; AnnouncementRefusal::ALL.len()]; Source::ALL.len()],
}

impl Tally {
    pub(super) fn new(metrics: &DiscoveryMetrics) -> Self {
        let source = |index: usize| Source::ALL[index].as_str();
        let reason = |index: usize| AnnouncementRefusal::ALL[index].as_str();
        Self {
            outcomes: array::from_fn(|s| array::from_fn(|o| metrics.announcements(source(s), OUTCOMES[o]))),
            refusals: array::from_fn(|s| array::from_fn(|r| metrics.refusals(source(s), reason(r)))),
        }
    }

    pub(super) fn accepted(&self, source: Source, change: Change) {
        let outcome = match change {
            Change::Renewed => 0,
            Change::Altered => 1,
            Change::Added => 2,
            Change::Removed => 3,
        };
        self.outcomes[source as usize][outcome].inc();
    }

    pub(super) fn refused(&self, source: Source, reason: AnnouncementRefusal) {
        self.outcomes[source as usize][REFUSED].inc();
        self.refusals[source as usize][reason as usize].inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_stands_at_its_own_place() {
        for (index, source) in Source::ALL.into_iter().enumerate() {
            assert_eq!(source as usize, index);
        }
        for (index, reason) in AnnouncementRefusal::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}
