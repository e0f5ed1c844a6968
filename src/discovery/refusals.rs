//! The last refusals of each service instance, for its operators and for who holds a token of it: bounded every way.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::{
    rate::{Allowance, Rate},
    source::Source,
    wire::Announcement,
};
use crate::model::{
    ServiceInstanceId, Timestamp,
    announcement::{AnnouncementRefusal, Refusal, Sketch},
};

/// Refusals kept per service instance; the one that came longest ago goes first. What is said again and again is one.
pub const MAX_REFUSALS: usize = 16;

/// Service instances whose refusals are kept; the one that was refused longest ago goes first.
const MAX_INSTANCES: usize = 1024;

/// How often the same reason is logged of the same service instance: announcements are repeated every few seconds.
const LOGGED: Allowance = Allowance { spacing: Duration::from_secs(60), burst: 1 };

/// Longest text of a message that is kept, in characters: whoever sends it chooses its length.
const MAX_TEXT_CHARS: usize = 128;

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

impl Refusals {
    /// Keeps one. Returns whether it is worth a line in the log.
    pub(super) fn push(
        &mut self,
        whose: &Whose,
        (source, reason): (Source, AnnouncementRefusal),
        of: Sketch,
        (now, wall): (Instant, Timestamp),
    ) -> bool {
        let log = self.logged.admit((whose.clone(), reason), now).is_ok();
        if !self.kept.contains_key(whose) && self.kept.len() == MAX_INSTANCES {
            let last = |(_, refusals): &(&Whose, &VecDeque<Refusal>)| refusals.back().map(|last| last.at);
            let oldest = self.kept.iter().min_by_key(last).map(|(whose, _)| whose.clone());
            oldest.map(|whose| self.kept.remove(&whose));
        }
        let refusals = self.kept.entry(whose.clone()).or_default();
        let is_same = |kept: &Refusal| (kept.source, kept.reason, &kept.of) == (source, reason, &of);
        let again = refusals.iter().position(is_same).and_then(|at| refusals.remove(at));
        if refusals.len() == MAX_REFUSALS {
            refusals.pop_front();
        }
        let before = again.unwrap_or(Refusal { first_at: wall, at: wall, count: 0, source, reason, of });
        refusals.push_back(Refusal { at: wall, count: before.count + 1, ..before });
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

/// What of a message is kept.
pub(super) fn sketch(message: &Announcement) -> Sketch {
    let id = message.harbor_or_tag(|harbor| harbor.instance_id.as_ref(), |tags| tags.harbor_instance.as_ref());
    let uri = || message.uris.as_deref()?.first().map(String::as_str);
    Sketch {
        named: id.or_else(uri).map(shortened),
        app: message.app.as_deref().map(shortened),
        host: shortened(message.host.as_deref().unwrap_or_default()),
        port: message.port,
        udp_port: message.harbor().udp_port,
        detail: None,
    }
}

/// The beginning of a text.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(MAX_TEXT_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOP: (Source, AnnouncementRefusal) = (Source::Harbor, AnnouncementRefusal::Loop);

    fn id(number: usize) -> Whose {
        Some(ServiceInstanceId::new(number.to_string()).unwrap())
    }

    fn of(port: u16) -> Sketch {
        Sketch { host: "10.0.1.7".into(), port: Some(port), ..Sketch::default() }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    #[test]
    fn only_the_last_of_the_latest_service_instances_are_kept() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        for second in 0..100_u16 {
            refusals.push(&id(0), LOOP, of(second), (now, at(second.into())));
        }
        let kept = refusals.of(&id(0));
        assert_eq!((kept.len(), kept[0].at, kept[15].at), (MAX_REFUSALS, at(99), at(84)));
        for number in 1..=MAX_INSTANCES {
            refusals.push(&id(number), LOOP, of(1), (now, at(100 + i64::try_from(number).unwrap())));
        }
        let count = refusals.kept.len();
        assert_eq!((count, refusals.of(&id(0)).len(), refusals.of(&id(1)).len()), (MAX_INSTANCES, 0, 1));
        refusals.push(&None, LOOP, of(1), (now, at(9999)));
        refusals.retain(|kept| Some(kept) == id(7).as_ref());
        assert_eq!(refusals.all().into_keys().collect::<std::collections::HashSet<_>>(), [None, id(7)].into());
    }

    #[test]
    fn what_is_said_again_and_again_is_one_and_pushes_nothing_out() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        refusals.push(&id(1), LOOP, of(1), (now, at(0)));
        for second in 1..=100 {
            refusals.push(&id(1), LOOP, of(2), (now, at(second)));
        }
        let kept = refusals.of(&id(1));
        let told = kept.iter().map(|kept| (kept.of.port, kept.first_at, kept.at, kept.count)).collect::<Vec<_>>();
        assert_eq!(told, [(Some(2), at(1), at(100), 100), (Some(1), at(0), at(0), 1)]);
        refusals.push(&id(1), LOOP, of(1), (now, at(101)));
        assert_eq!(refusals.of(&id(1))[0].count, 2, "the latest comes first");
    }

    #[test]
    fn of_a_message_its_names_and_ports_are_kept_in_short() {
        let long = "ü".repeat(1000);
        let message = format!(r#"{{"uris":["{long}","b"],"host":"{long}","port":1,"harbor":{{"udp_port":2}}}}"#);
        let kept = sketch(&super::super::wire::parse(message.as_bytes()).unwrap());
        let short = "ü".repeat(MAX_TEXT_CHARS);
        let expect =
            Sketch { named: Some(short.clone()), host: short, port: Some(1), udp_port: Some(2), ..Sketch::default() };
        assert_eq!(kept, expect);
        let named = |text: &str| sketch(&super::super::wire::parse(text.as_bytes()).unwrap()).named;
        assert_eq!(named(r#"{"uris":["a"],"tags":{"harbor_instance":"id"}}"#).as_deref(), Some("id"));
        assert_eq!(named("{}"), None);
    }

    #[test]
    fn what_is_refused_again_and_again_is_logged_once_a_minute() {
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        let mut logged = |whose: &Whose, reason, seconds| {
            let now = start + Duration::from_secs(seconds);
            refusals.push(whose, (Source::Harbor, reason), of(1), (now, at(0)))
        };
        let (looped, unproven) = (AnnouncementRefusal::Loop, AnnouncementRefusal::BadProof);
        assert!(logged(&id(1), looped, 0));
        assert!(!logged(&id(1), looped, 20) && !logged(&id(1), looped, 40));
        assert!(logged(&id(1), unproven, 40), "another reason is news");
        assert!(logged(&id(2), looped, 40) && logged(&None, looped, 40), "another service instance is, too");
        assert!(logged(&id(1), looped, 60));
    }
}
