//! Latencies, counted in log-linear buckets.

use std::time::Duration;

use serde::Serialize;

/// Buckets per power of two: a bucket is at most 1/128 of its values wide.
const STEPS_LOG2: u32 = 7;
const STEPS: u64 = 1 << STEPS_LOG2;
/// Values from 2^40 ns (18 minutes) on are counted as the largest.
const LARGEST: u64 = (1 << 40) - 1;

/// How long things took; a quantile is right to 0.8 %.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

/// What is told of a histogram, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; index(LARGEST) + 1], total: 0, max: 0 }
    }
}

impl Histogram {
    pub fn record(&mut self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(LARGEST).min(LARGEST);
        self.counts[index(nanoseconds)] += 1;
        self.total += 1;
        self.max = self.max.max(nanoseconds);
    }

    pub fn count(&self) -> u64 {
        self.total
    }

    /// None when nothing was recorded.
    pub fn quantiles(&self) -> Option<Quantiles> {
        (self.total > 0).then(|| Quantiles {
            p50: self.quantile(0.5),
            p90: self.quantile(0.9),
            p99: self.quantile(0.99),
            p999: self.quantile(0.999),
            max: microseconds(self.max),
        })
    }

    /// The upper end of the bucket that holds the value of this rank.
    fn quantile(&self, quantile: f64) -> f64 {
        let rank = ((self.total as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        microseconds(upper(bucket.expect("the rank is at most the total")).min(self.max))
    }
}

/// Values below two rows of steps have a bucket each; then every power of two has [`STEPS`].
fn index(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(STEPS_LOG2 + 1);
    (u64::from(shift) * STEPS + (value >> shift)) as usize
}

/// The largest value of a bucket.
fn upper(index: usize) -> u64 {
    let index = index as u64;
    let shift = (index / STEPS).saturating_sub(1);
    ((index - shift * STEPS + 1) << shift) - 1
}

fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_a_bucket_that_is_at_most_a_128th_wide() {
        let powers = (0..40).flat_map(|power| [(1_u64 << power) - 1, 1 << power, (1 << power) + 1, 3 << power >> 1]);
        for value in powers.filter(|value| *value <= LARGEST) {
            let end = upper(index(value));
            assert!(end >= value, "{value} is above its bucket's end {end}");
            assert!(end - value <= value / STEPS, "{value} is told as {end}");
            assert_eq!(index(end), index(value), "the end {end} of the bucket of {value} lies in it");
            assert_eq!(index(end + 1), index(value) + 1, "buckets leave no gap after {end}");
        }
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_values() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantiles(), None);
        (1..=1000).for_each(|value| histogram.record(Duration::from_micros(value)));
        let told = histogram.quantiles().expect("there are values");
        for (told, exact) in [(told.p50, 500.0), (told.p90, 900.0), (told.p99, 990.0), (told.p999, 999.0)] {
            assert!((exact..=exact * 1.008).contains(&told), "{told} instead of {exact}");
        }
        assert_eq!(told.max, 1000.0);
    }

    #[test]
    fn a_single_value_is_every_quantile() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::from_nanos(1_234_567));
        let told = histogram.quantiles().expect("there is a value");
        assert_eq!([told.p50, told.p90, told.p99, told.p999, told.max], [1234.567; 5]);
    }

    #[test]
    fn what_takes_for_ever_is_counted_as_the_largest() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::MAX);
        assert_eq!(histogram.quantiles().expect("there is a value").max, LARGEST as f64 / 1e3);
    }
}
