//! The last refusals of each service instance, for its operators and for who holds a token of it: bounded both ways.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::rate::{Allowance, Rate};
use crate::model::{
    ServiceInstanceId,
    announcement::{AnnouncementRefusal, Refusal},
};

/// Refusals kept per service instance.
pub const MAX_REFUSALS: usize = 16;

/// Service instances whose refusals are kept; the one that was refused longest ago goes first.
const MAX_INSTANCES: usize = 1024;

/// How often the same reason is logged of the same service instance: announcements are repeated every few seconds.
const LOGGED: Allowance = Allowance { spacing: Duration::from_secs(60), burst: 1 };

/// Longest host that is kept, in characters: an IPv6 address has at most 45.
const MAX_HOST_CHARS: usize = 64;

/// Under no service instance are those of messages that name none that there is.
type Whose = Option<ServiceInstanceId>;

#[derive(Debug)]
pub(super) struct Refusals {
    kept: HashMap<Whose, VecDeque<Refusal>>,
    logged: Rate<(Whose, AnnouncementRefusal)>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { kept: HashMap::new(), logged: Rate::new(LOGGED) }
    }
}

/// A host as it is kept and logged: whoever sends it chooses its length.
pub(super) fn shortened(host: &str) -> &str {
    host.char_indices().nth(MAX_HOST_CHARS).map_or(host, |(end, _)| &host[..end])
}

impl Refusals {
    /// Keeps one. Returns whether it is worth a line in the log.
    pub(super) fn push(&mut self, whose: &Whose, refusal: Refusal, now: Instant) -> bool {
        let log = self.logged.admit((whose.clone(), refusal.reason), now).is_ok();
        if !self.kept.contains_key(whose) && self.kept.len() == MAX_INSTANCES {
            let last = |(_, refusals): &(&Whose, &VecDeque<Refusal>)| refusals.back().map(|last| last.at);
            let oldest = self.kept.iter().min_by_key(last).map(|(whose, _)| whose.clone());
            oldest.map(|whose| self.kept.remove(&whose));
        }
        let refusals = self.kept.entry(whose.clone()).or_default();
        if refusals.len() == MAX_REFUSALS {
            refusals.pop_front();
        }
        refusals.push_back(refusal);
        log
    }

    /// The latest first.
    pub(super) fn of(&self, whose: &Whose) -> Vec<Refusal> {
        self.kept.get(whose).map(|refusals| refusals.iter().rev().cloned().collect()).unwrap_or_default()
    }

    /// All of them, the latest of each first.
    pub(super) fn all(&self) -> HashMap<Whose, Vec<Refusal>> {
        self.kept.keys().map(|whose| (whose.clone(), self.of(whose))).collect()
    }

    /// Forgets service instances that are gone.
    pub(super) fn retain(&mut self, stands: impl Fn(&ServiceInstanceId) -> bool) {
        self.kept.retain(|whose, _| whose.as_ref().is_none_or(&stands));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Timestamp, announcement::Source};

    fn refusal(seconds: i64) -> Refusal {
        Refusal {
            at: Timestamp::from_seconds(seconds),
            source: Source::Harbor,
            reason: AnnouncementRefusal::Loop,
            host: "10.0.1.7".into(),
            port: None,
        }
    }

    fn id(number: usize) -> Whose {
        Some(ServiceInstanceId::new(number.to_string()).unwrap())
    }

    #[test]
    fn only_the_last_of_the_latest_service_instances_are_kept() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        for second in 0..100 {
            refusals.push(&id(0), refusal(second), now);
        }
        let kept = refusals.of(&id(0));
        assert_eq!((kept.len(), kept[0].at.seconds(), kept[15].at.seconds()), (MAX_REFUSALS, 99, 84));
        for number in 1..=MAX_INSTANCES {
            refusals.push(&id(number), refusal(100 + i64::try_from(number).unwrap()), now);
        }
        let count = refusals.kept.len();
        assert_eq!((count, refusals.of(&id(0)).len(), refusals.of(&id(1)).len()), (MAX_INSTANCES, 0, 1));
        refusals.push(&None, refusal(9999), now);
        refusals.retain(|kept| Some(kept) == id(7).as_ref());
        assert_eq!(refusals.all().into_keys().collect::<std::collections::HashSet<_>>(), [None, id(7)].into());
    }

    #[test]
    fn of_a_host_no_more_is_kept_than_an_address_may_have() {
        assert_eq!(shortened(&"ü".repeat(100)), "ü".repeat(MAX_HOST_CHARS));
        assert_eq!(shortened("10.0.1.7"), "10.0.1.7");
    }

    #[test]
    fn what_is_refused_again_and_again_is_logged_once_a_minute() {
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        let mut logged = |whose: &Whose, reason, seconds| {
            refusals.push(whose, Refusal { reason, ..refusal(0) }, start + Duration::from_secs(seconds))
        };
        let (looped, unproven) = (AnnouncementRefusal::Loop, AnnouncementRefusal::BadProof);
        assert!(logged(&id(1), looped, 0));
        assert!(!logged(&id(1), looped, 20) && !logged(&id(1), looped, 40));
        assert!(logged(&id(1), unproven, 40), "another reason is news");
        assert!(logged(&id(2), looped, 40) && logged(&None, looped, 40), "another service instance is, too");
        assert!(logged(&id(1), looped, 60));
    }
}
