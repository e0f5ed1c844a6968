//! The last refusals of each service instance, for who holds a token of it: bounded both ways.

use std::collections::{HashMap, VecDeque};

use super::source::Source;
use crate::model::{ServiceInstanceId, Timestamp, announcement::AnnouncementRefusal};

/// Refusals kept per service instance.
pub const MAX_REFUSALS: usize = 16;

/// Service instances whose refusals are kept; the one that was refused longest ago goes first.
const MAX_INSTANCES: usize = 1024;

/// Longest host that is kept, in characters: an IPv6 address has at most 45.
const MAX_HOST_CHARS: usize = 64;

/// One refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// When.
    pub at: Timestamp,
    /// By which way it came.
    pub source: Source,
    /// Why.
    pub reason: AnnouncementRefusal,
    /// The announced host, as it was written.
    pub host: String,
    /// The announced port.
    pub port: Option<u16>,
}

#[derive(Debug, Default)]
pub(super) struct Refusals(HashMap<ServiceInstanceId, VecDeque<Refusal>>);

impl Refusals {
    pub(super) fn push(&mut self, id: &ServiceInstanceId, mut refusal: Refusal) {
        if let Some((end, _)) = refusal.host.char_indices().nth(MAX_HOST_CHARS) {
            refusal.host.truncate(end);
        }
        if !self.0.contains_key(id) && self.0.len() == MAX_INSTANCES {
            let last = |(_, refusals): &(&ServiceInstanceId, &VecDeque<Refusal>)| refusals.back().map(|last| last.at);
            let oldest = self.0.iter().min_by_key(last).map(|(id, _)| id.clone());
            oldest.map(|id| self.0.remove(&id));
        }
        let refusals = self.0.entry(id.clone()).or_default();
        if refusals.len() == MAX_REFUSALS {
            refusals.pop_front();
        }
        refusals.push_back(refusal);
    }

    /// The latest first.
    pub(super) fn of(&self, id: &ServiceInstanceId) -> Vec<Refusal> {
        self.0.get(id).map(|refusals| refusals.iter().rev().cloned().collect()).unwrap_or_default()
    }

    /// Forgets service instances that are gone.
    pub(super) fn retain(&mut self, stands: impl Fn(&ServiceInstanceId) -> bool) {
        self.0.retain(|id, _| stands(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(seconds: i64) -> Refusal {
        Refusal {
            at: Timestamp::from_seconds(seconds),
            source: Source::Harbor,
            reason: AnnouncementRefusal::Loop,
            host: "ü".repeat(100),
            port: None,
        }
    }

    fn id(number: usize) -> ServiceInstanceId {
        ServiceInstanceId::new(number.to_string()).unwrap()
    }

    #[test]
    fn only_the_last_of_the_latest_service_instances_are_kept() {
        let mut refusals = Refusals::default();
        for second in 0..100 {
            refusals.push(&id(0), refusal(second));
        }
        let kept = refusals.of(&id(0));
        assert_eq!((kept.len(), kept[0].at.seconds(), kept[15].at.seconds()), (MAX_REFUSALS, 99, 84));
        assert_eq!(kept[0].host, "ü".repeat(MAX_HOST_CHARS));
        for number in 1..=MAX_INSTANCES {
            refusals.push(&id(number), refusal(100 + i64::try_from(number).unwrap()));
        }
        assert_eq!((refusals.0.len(), refusals.of(&id(0)).len(), refusals.of(&id(1)).len()), (MAX_INSTANCES, 0, 1));
        refusals.retain(|kept| *kept == id(7));
        assert_eq!(refusals.0.len(), 1);
    }
}
