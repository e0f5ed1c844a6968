//! Durations that were measured, and what is said of them.

use std::time::Duration;

/// Durations in milliseconds, in order.
#[derive(Debug, Default)]
pub struct Sample(pub Vec<f64>);

impl Sample {
    /// Puts them in order.
    pub fn of(durations: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted = durations.into_iter().collect::<Vec<_>>();
        sorted.sort_by(f64::total_cmp);
        Self(sorted)
    }

    /// The value below which so many per cent are.
    pub fn percentile(&self, per_cent: usize) -> f64 {
        self.0[(self.0.len() * per_cent / 100).min(self.0.len() - 1)]
    }
}

impl std::fmt::Display for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (p50, p99, most) = (self.percentile(50), self.percentile(99), self.percentile(100));
        write!(f, "p50 {p50:.2} ms, p99 {p99:.2} ms, maximum {most:.2} ms")
    }
}

/// A duration as [`Sample`] has it.
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
