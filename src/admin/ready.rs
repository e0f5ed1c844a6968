//! Whether clients may be sent here.

use std::time::Duration;

use super::wire::Readiness;
use crate::model::{
    Revision, Timestamp,
    observed::{Link, Mode},
};

/// Ready means: a whole desired state has been applied, each port of it open or failed for a reason that `status`
/// shows, and the node neither drains nor has been cut off for too long. A port that fails later, or one of store and
/// NATS being away, does not change it: what is open goes on.
pub fn readiness(mode: Mode, applied: Option<Revision>, cut_off: bool) -> Readiness {
    let mut reasons = Vec::new();
    if applied.is_none() {
        reasons.push("not all ports have been tried yet".to_owned());
    }
    match mode {
        Mode::Starting => reasons.push("the node is starting".to_owned()),
        Mode::Draining => reasons.push("the node is draining".to_owned()),
        Mode::Serving => {}
    }
    if cut_off {
        reasons.push("neither the store nor NATS has been reached for a while".to_owned());
    }
    Readiness { ready: reasons.is_empty(), reasons }
}

/// For how long a node has reached none of the parts that it has; `None` while it reaches one. One that has no NATS is
/// not cut off: it hears announcements itself.
pub fn cut_off(store: &Link, nats: &Link, now: Timestamp) -> Option<Duration> {
    match (store, nats) {
        (Link::Down(store_since, _), Link::Down(nats_since, _)) => Some(now.since((*store_since).max(*nats_since))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_when_it_serves_what_it_should() {
        let check = |mode, applied: Option<u64>, expect: &[&str]| {
            let readiness = readiness(mode, applied.map(Revision), false);
            assert_eq!(readiness.reasons, expect);
            assert_eq!(readiness.ready, expect.is_empty());
        };
        check(Mode::Serving, Some(0), &[]);
        check(Mode::Serving, None, &["not all ports have been tried yet"]);
        check(Mode::Starting, None, &["not all ports have been tried yet", "the node is starting"]);
        check(Mode::Starting, Some(3), &["the node is starting"]);
        check(Mode::Draining, Some(3), &["the node is draining"]);
        let cut_off = readiness(Mode::Serving, Some(Revision(3)), true);
        assert_eq!(cut_off.reasons, ["neither the store nor NATS has been reached for a while"]);
    }

    #[test]
    fn a_node_is_cut_off_since_it_has_reached_neither_store_nor_nats() {
        let (at, up) = (Timestamp::from_seconds, || Link::Up(Timestamp::from_seconds(0)));
        let down = |since| Link::Down(Timestamp::from_seconds(since), "gone".into());
        assert_eq!(cut_off(&up(), &down(1), at(9)), None);
        assert_eq!(cut_off(&down(1), &up(), at(9)), None);
        assert_eq!(cut_off(&down(1), &Link::Absent, at(9)), None);
        assert_eq!(cut_off(&down(1), &down(4), at(9)), Some(Duration::from_secs(5)));
    }
}
