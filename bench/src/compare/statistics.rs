//! Medians, their confidence intervals, and ratios paired within a round. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

/// How sure an interval must be.
const CONFIDENCE: f64 = 0.95;

/// What is known of a figure that was measured once a round.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    pub count: usize,
    pub median: f64,
    pub min: f64,
    pub max: f64,
    /// Holds the true median with [`CONFIDENCE`]; none when there are too few values for that.
    pub interval: Option<(f64, f64)>,
}

/// None without values.
pub fn summarise(mut values: Vec<f64>) -> Option<Summary> {
    values.sort_by(f64::total_cmp);
    let (first, last) = (*values.first()?, *values.last()?);
    let count = values.len();
    let median = (values[(count - 1) / 2] + values[count / 2]) / 2.0;
    let interval = interval_rank(count).map(|rank| (values[rank - 1], values[count - rank]));
    Some(Summary { count, median, min: first, max: last, interval })
}

/// The `k` for which the k-th smallest and the k-th largest of `count` values hold the median between them: the
/// largest for which at most `1 - CONFIDENCE` is left outside. The number of values below the median is binomial, so
/// nothing is assumed of how the values are distributed.
fn interval_rank(count: usize) -> Option<usize> {
    let mut probability = 0.5_f64.powi(i32::try_from(count).ok()?);
    let (mut below, mut rank) = (0.0, 0);
    while rank < count / 2 {
        below += probability;
        if 2.0 * below > 1.0 - CONFIDENCE {
            break;
        }
        rank += 1;
        probability *= (count - rank + 1) as f64 / rank as f64;
    }
    (rank > 0).then_some(rank)
}

/// `ours / theirs` of each round that has both. A round in which theirs is zero says nothing.
pub fn paired_ratios(ours: &BTreeMap<u32, f64>, theirs: &BTreeMap<u32, f64>) -> Vec<f64> {
    let pairs = ours.iter().filter_map(|(round, ours)| Some((ours, theirs.get(round)?)));
    pairs.filter(|(_, theirs)| **theirs > 0.0).map(|(ours, theirs)| ours / theirs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_the_interval_are_those_of_the_sign_test() {
        #[track_caller]
        fn check(count: usize, expect: Option<usize>) {
            assert_eq!(interval_rank(count), expect, "{count} values");
        }
        // As printed in tables of the sign test at 5 %, two-sided.
        check(0, None);
        check(1, None);
        check(5, None);
        check(6, Some(1));
        check(8, Some(1));
        check(9, Some(2));
        check(11, Some(2));
        check(12, Some(3));
        check(15, Some(4));
        check(20, Some(6));
        check(25, Some(8));
        check(30, Some(10));
        check(100, Some(40));
    }

    #[test]
    fn a_summary_has_the_median_the_range_and_the_interval_of_its_values() {
        let values = (1..=15).rev().map(f64::from).collect();
        let expect = Summary { count: 15, median: 8.0, min: 1.0, max: 15.0, interval: Some((4.0, 12.0)) };
        assert_eq!(summarise(values), Some(expect));
        let expect = Summary { count: 4, median: 2.5, min: 1.0, max: 9.0, interval: None };
        assert_eq!(summarise(vec![9.0, 1.0, 2.0, 3.0]), Some(expect));
        assert_eq!(summarise(Vec::new()), None);
    }

    #[test]
    fn ratios_pair_what_was_measured_in_the_same_round() {
        let ours = BTreeMap::from([(1, 1.0), (2, 2.0), (3, 3.0), (5, 5.0)]);
        let theirs = BTreeMap::from([(1, 2.0), (3, 1.5), (4, 8.0), (5, 0.0)]);
        assert_eq!(paired_ratios(&ours, &theirs), [0.5, 2.0]);
    }
}
