//! What Harbor must show, as data, and whether it did.

use super::{
    metric::Metric,
    results::Results,
    statistics::{Summary, paired_ratios, summarise},
};

/// The one whose bounds these are.
pub const OURS: &str = "harbor";

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound {
    pub work: &'static str,
    pub metric: Metric,
    pub against: Against,
    pub limit: Limit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Against {
    /// Ratio of ours to this peer's, paired within the round.
    Peer(&'static str),
    /// The figure itself.
    Itself,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    AtMost(f64),
    AtLeast(f64),
    /// In every round, not only in the median of them.
    NeverMoreThan(f64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Met,
    Missed,
    /// A round of it was not done, or not without errors.
    Failed,
    /// Measured, but in too few rounds for an interval of the median.
    TooFewRounds,
    NotMeasured,
}

impl Verdict {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "**missed**",
            Self::Failed => "**failed**",
            Self::TooFewRounds => "too few rounds",
            Self::NotMeasured => "not measured",
        }
    }
}

const fn ratio(work: &'static str, peer: &'static str, metric: Metric, limit: Limit) -> Bound {
    Bound { work, metric, against: Against::Peer(peer), limit }
}

const fn figure(work: &'static str, metric: Metric, limit: Limit) -> Bound {
    Bound { work, metric, against: Against::Itself, limit }
}

const fn cpu(work: &'static str, peer: &'static str, at_most: f64) -> Bound {
    ratio(work, peer, Metric::Cpu, Limit::AtMost(at_most))
}

/// All of them, in the order in which they are shown.
pub const BOUNDS: &[Bound] = &[
    cpu("bulk-up", "haproxy-splice", 0.90),
    cpu("bulk-down", "haproxy-splice", 0.90),
    cpu("bulk-both", "haproxy-splice", 0.70),
    cpu("bulk-both-16", "haproxy-splice", 0.85),
    cpu("bulk-up", "haproxy", 0.35),
    cpu("bulk-up", "nginx", 0.35),
    cpu("bulk-up", "envoy", 0.35),
    cpu("bulk-down", "haproxy", 0.35),
    cpu("bulk-down", "nginx", 0.35),
    cpu("bulk-down", "envoy", 0.35),
    cpu("bulk-both", "haproxy", 0.35),
    cpu("bulk-both", "nginx", 0.35),
    cpu("bulk-both", "envoy", 0.35),
    cpu("bulk-both-16", "haproxy", 0.35),
    cpu("bulk-both-16", "nginx", 0.35),
    cpu("bulk-both-16", "envoy", 0.35),
    cpu("exchange-64", "haproxy", 0.90),
    cpu("exchange-64", "nginx", 0.90),
    ratio("exchange-1", "haproxy", Metric::P50, Limit::AtMost(1.0)),
    ratio("open-loop", "haproxy", Metric::P99, Limit::AtMost(1.0)),
    ratio("open-loop", "haproxy-splice", Metric::P99, Limit::AtMost(1.0)),
    ratio("open-loop", "nginx", Metric::P99, Limit::AtMost(1.0)),
    ratio("open-loop", "envoy", Metric::P99, Limit::AtMost(1.0)),
    ratio("open-loop", "naive", Metric::P99, Limit::AtMost(1.0)),
    cpu("connect", "haproxy", 0.90),
    cpu("connect", "nginx", 0.90),
    figure("idle", Metric::IdleMemory5000, Limit::AtMost(1.0)),
    figure("idle", Metric::IdleMemory9000, Limit::AtMost(1.0)),
    figure("listeners", Metric::Bind, Limit::AtMost(0.3)),
    figure("listeners", Metric::ListenerMemory, Limit::AtMost(24.0)),
    cpu("udp-exchange-64", "nginx", 0.75),
    cpu("udp-exchange-1000", "nginx", 0.75),
    figure("udp-exchange-1000", Metric::Drops, Limit::NeverMoreThan(0.0)),
    ratio("udp-max", "nginx", Metric::Rate, Limit::AtLeast(1.4)),
    ratio("mixed", "haproxy", Metric::P99, Limit::AtMost(0.8)),
];

impl Bound {
    /// What was measured of it.
    pub fn summary(&self, results: &Results) -> Option<Summary> {
        let ours = results.by_round(self.work, OURS, self.metric);
        summarise(match self.against {
            Against::Peer(peer) => paired_ratios(&ours, &results.by_round(self.work, peer, self.metric)),
            Against::Itself => ours.into_values().collect(),
        })
    }

    /// Whether the run shows it. What was not done in one round could have been the worst.
    pub fn verdict(&self, results: &Results) -> Verdict {
        let peer = match self.against {
            Against::Peer(peer) => Some(peer),
            Against::Itself => None,
        };
        let mut cells = [Some(OURS), peer].into_iter().flatten().flat_map(|peer| results.cells_of(self.work, peer));
        if cells.any(|cell| !cell.is_whole()) { Verdict::Failed } else { self.judge(self.summary(results).as_ref()) }
    }

    /// Met when the whole interval of the median is within the limit.
    fn judge(&self, summary: Option<&Summary>) -> Verdict {
        let Some(summary) = summary else { return Verdict::NotMeasured };
        let Some((low, high)) = summary.interval else { return Verdict::TooFewRounds };
        let met = match self.limit {
            Limit::AtMost(limit) => high <= limit,
            Limit::AtLeast(limit) => low >= limit,
            Limit::NeverMoreThan(limit) => summary.max <= limit,
        };
        if met { Verdict::Met } else { Verdict::Missed }
    }
}

/// The bounds of the works that a run was to measure.
pub fn of(results: &Results) -> impl Iterator<Item = &'static Bound> {
    BOUNDS.iter().filter(|bound| results.works.iter().any(|work| work == bound.work))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{peers, works};

    fn summary(interval: Option<(f64, f64)>) -> Option<Summary> {
        Some(Summary { count: 15, median: 0.9, min: 0.1, max: 9.0, interval })
    }

    #[test]
    fn a_bound_is_met_when_the_whole_interval_is_within_it() {
        #[track_caller]
        fn check(limit: Limit, measured: Option<Summary>, expect: Verdict) {
            let bound = ratio("bulk-up", "haproxy", Metric::Cpu, limit);
            assert_eq!(bound.judge(measured.as_ref()), expect, "{limit:?} {measured:?}");
        }
        check(Limit::AtMost(1.0), summary(Some((0.8, 1.0))), Verdict::Met);
        check(Limit::AtMost(1.0), summary(Some((0.8, 1.01))), Verdict::Missed);
        check(Limit::AtLeast(1.4), summary(Some((1.4, 2.0))), Verdict::Met);
        check(Limit::AtLeast(1.4), summary(Some((1.39, 2.0))), Verdict::Missed);
        check(Limit::NeverMoreThan(9.0), summary(Some((0.8, 1.0))), Verdict::Met);
        check(Limit::NeverMoreThan(8.9), summary(Some((0.8, 1.0))), Verdict::Missed);
        check(Limit::AtMost(1.0), summary(None), Verdict::TooFewRounds);
        check(Limit::AtMost(1.0), None, Verdict::NotMeasured);
    }

    #[test]
    fn every_bound_is_of_a_work_that_measures_it_on_peers_that_do_it() {
        for bound in BOUNDS {
            let work = works::find(bound.work).unwrap_or_else(|| panic!("there is no work {}", bound.work));
            assert!(work.metrics.contains(&bound.metric), "{bound:?}");
            if let Against::Peer(peer) = bound.against {
                assert!(peers::NAMES.contains(&peer) && work.peers.contains(&peer), "{bound:?}");
            }
        }
    }
}
