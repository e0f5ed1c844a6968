//! Whether clients may be sent here.

use super::wire::Readiness;
use crate::model::{Revision, observed::Mode};

/// Ready means: a whole desired state has been applied, each port of it open or failed for a reason that `status`
/// shows, and the node does not drain. A port that fails later, or NATS being away, does not change it: what is
/// open goes on.
pub fn readiness(mode: Mode, applied: Option<Revision>) -> Readiness {
    let mut reasons = Vec::new();
    if applied.is_none() {
        reasons.push("not all ports have been tried yet".to_owned());
    }
    match mode {
        Mode::Starting => reasons.push("the node is starting".to_owned()),
        Mode::Draining => reasons.push("the node is draining".to_owned()),
        Mode::Serving => {}
    }
    Readiness { ready: reasons.is_empty(), reasons }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_when_it_serves_what_it_should() {
        let check = |mode, applied: Option<u64>, expect: &[&str]| {
            let readiness = readiness(mode, applied.map(Revision));
            assert_eq!(readiness.reasons, expect);
            assert_eq!(readiness.ready, expect.is_empty());
        };
        check(Mode::Serving, Some(0), &[]);
        check(Mode::Serving, None, &["not all ports have been tried yet"]);
        check(Mode::Starting, None, &["not all ports have been tried yet", "the node is starting"]);
        check(Mode::Starting, Some(3), &["the node is starting"]);
        check(Mode::Draining, Some(3), &["the node is draining"]);
    }
}
