//! When things are due that happen at a fixed rate.

use std::time::{Duration, Instant};

/// The i-th thing is due `i / rate` after the start, whatever became of those before.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    start: Instant,
    per_second: f64,
}

impl Schedule {
    pub fn new(start: Instant, per_second: f64) -> Self {
        Self { start, per_second }
    }

    /// When number `index` is due.
    pub fn at(&self, index: u64) -> Instant {
        self.start + Duration::from_secs_f64(index as f64 / self.per_second)
    }

    /// How many have become due: numbers 0 to this, without it.
    pub fn due(&self, now: Instant) -> u64 {
        match now.checked_duration_since(self.start) {
            Some(elapsed) => (elapsed.as_secs_f64() * self.per_second) as u64 + 1,
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_become_due_at_their_rate_from_the_start_on() {
        let start = Instant::now() + Duration::from_secs(1);
        let schedule = Schedule::new(start, 1000.0);
        for (microseconds, due) in [(0, 1), (999, 1), (1001, 2), (2500, 3), (999_999, 1000)] {
            let now = start + Duration::from_micros(microseconds);
            assert_eq!(schedule.due(now), due, "after {microseconds} us");
        }
        assert_eq!(schedule.due(start - Duration::from_millis(1)), 0);
        assert_eq!(schedule.at(0), start);
        assert_eq!(schedule.at(2000), start + Duration::from_secs(2));
    }
}
