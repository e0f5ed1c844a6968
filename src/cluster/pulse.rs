//! Who lives, and who keeps up, by one's own clock.

use std::{collections::HashMap, time::Instant};

use crate::model::{
    NodeId, Revision, Timestamp,
    member::{DEAD_AFTER, Known, Member, Members},
};

/// What was heard of each node, and when. A node lives as long as its `seen_at` goes on changing, whatever it is, so that clocks
/// that differ between machines kill nobody.
#[derive(Debug, Default)]
pub struct Pulse {
    beats: HashMap<NodeId, Beat>,
}

#[derive(Debug)]
struct Beat {
    /// What the node last said, and when that was new.
    seen_at: Timestamp,
    heard: Instant,
    applied: Revision,
    behind_since: Option<Instant>,
}

impl Pulse {
    /// Looks at what the store says `now`; `newest` is the revision that every node should have applied. A node that is
    /// seen for the first time counts as alive.
    pub fn feel(&mut self, members: Vec<Member>, newest: Revision, now: Instant) -> Members {
        self.beats.retain(|id, _| members.iter().any(|member| member.id == *id));
        let all = members.into_iter().map(|member| {
            let (seen_at, applied) = (member.seen_at, member.report.applied);
            let first = Beat { seen_at, heard: now, applied, behind_since: None };
            let beat = self.beats.entry(member.id.clone()).or_insert(first);
            if beat.seen_at != seen_at {
                (beat.seen_at, beat.heard) = (seen_at, now);
            }
            beat.behind_since = match beat.behind_since {
                _ if applied >= newest => None,
                Some(since) if beat.applied == applied => Some(since),
                _ => Some(now),
            };
            beat.applied = applied;
            let alive = now.saturating_duration_since(beat.heard) < DEAD_AFTER;
            Known { member, alive, behind_since: beat.behind_since }
        });
        Members { all: all.collect(), ..Members::default() }
    }

    /// Forgets when nodes were heard: the store was away, and nobody could say anything.
    pub fn renew(&mut self, now: Instant) {
        self.beats.values_mut().for_each(|beat| beat.heard = now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::member::{HEARTBEAT_EVERY, Report};

    fn member(id: &str, applied: u64) -> Member {
        Member {
            id: NodeId::new(id).unwrap(),
            incarnation: "1".into(),
            version: "0.1.0".into(),
            pools: Vec::new(),
            report: Report { applied: Revision(applied), ..Report::default() },
            drain: false,
            joined_at: Timestamp(0),
            seen_at: Timestamp(0),
        }
    }

    #[test]
    fn a_node_lives_as_long_as_its_word_goes_on_changing_whatever_its_clock_says() {
        let (mut pulse, start) = (Pulse::default(), Instant::now());
        let mut alive = |seen_at, after: Duration| {
            let member = Member { seen_at: Timestamp(seen_at), ..member("a", 0) };
            pulse.feel(vec![member], Revision(0), start + after).all[0].alive
        };
        assert!(alive(900, Duration::ZERO), "it may just have spoken");
        assert!(alive(900, DEAD_AFTER - Duration::from_millis(1)));
        assert!(!alive(900, DEAD_AFTER));
        assert!(alive(5, DEAD_AFTER), "a clock that was set back");
        assert!(alive(5, DEAD_AFTER + HEARTBEAT_EVERY));
        assert!(!alive(5, 2 * DEAD_AFTER));
        pulse.renew(start + 2 * DEAD_AFTER);
        let member = Member { seen_at: Timestamp(5), ..member("a", 0) };
        assert!(pulse.feel(vec![member], Revision(0), start + 2 * DEAD_AFTER).all[0].alive);
    }

    #[test]
    fn a_node_is_behind_while_it_applies_nothing_though_there_is_something() {
        let (mut pulse, start) = (Pulse::default(), Instant::now());
        let mut behind = |applied, newest, seconds| {
            let now = start + Duration::from_secs(seconds);
            let members = pulse.feel(vec![member("a", applied)], Revision(newest), now);
            members.all[0].behind_since.map(|since| since.duration_since(start).as_secs())
        };
        assert_eq!(behind(5, 5, 0), None);
        assert_eq!(behind(5, 6, 1), Some(1));
        assert_eq!(behind(5, 9, 3), Some(1), "what is new does not excuse it");
        assert_eq!(behind(7, 9, 4), Some(4), "it goes on");
        assert_eq!(behind(7, 9, 5), Some(4));
        assert_eq!(behind(9, 9, 6), None);
    }
}
