//! How many requests each token and each caller may make.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// What one may make.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance {
    /// Time between requests in the long run.
    pub spacing: Duration,
    /// How many at once after a rest.
    pub burst: u32,
}

/// Who is kept count of, at the most. More are refused until some have rested.
const MAX_KEYS: usize = 65_536;

/// Per key, when it will have rested: each request moves that on by the spacing.
#[derive(Debug)]
pub(super) struct Rate<K> {
    allowance: Allowance,
    rested_at: HashMap<K, Instant>,
}

impl<K: Eq + Hash> Rate<K> {
    pub(super) fn new(allowance: Allowance) -> Self {
        Self { allowance, rested_at: HashMap::new() }
    }

    /// Counts a request.
    ///
    /// # Errors
    /// How long to wait, when there were too many.
    pub(super) fn admit(&mut self, key: K, now: Instant) -> Result<(), Duration> {
        let Allowance { spacing, burst } = self.allowance;
        if !self.rested_at.contains_key(&key) && self.rested_at.len() >= MAX_KEYS {
            self.rested_at.retain(|_, rested_at| *rested_at > now);
            if self.rested_at.len() >= MAX_KEYS {
                return Err(spacing);
            }
        }
        let rested_at = self.rested_at.entry(key).or_insert(now);
        let next = (*rested_at).max(now) + spacing;
        let ahead = next.saturating_duration_since(now);
        if ahead > spacing * burst {
            return Err(ahead - spacing * burst);
        }
        *rested_at = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACING: Duration = Duration::from_millis(100);
    const ALLOWANCE: Allowance = Allowance { spacing: SPACING, burst: 50 };

    #[test]
    fn each_has_a_burst_and_then_so_many_a_second() {
        let (mut rate, start) = (Rate::new(ALLOWANCE), Instant::now());
        for _ in 0..ALLOWANCE.burst {
            assert_eq!(rate.admit("one", start), Ok(()));
        }
        assert_eq!(rate.admit("one", start), Err(SPACING));
        assert_eq!(rate.admit("one", start + SPACING / 2), Err(SPACING / 2));
        assert_eq!(rate.admit("two", start), Ok(()));
        let second = start + Duration::from_secs(1);
        let admitted = (0..ALLOWANCE.burst).filter(|_| rate.admit("one", second).is_ok()).count();
        assert_eq!(admitted, 10);
        let rested = second + SPACING * ALLOWANCE.burst;
        assert_eq!((0..100).filter(|_| rate.admit("one", rested).is_ok()).count(), 50);
    }

    #[test]
    fn those_that_have_rested_make_room() {
        let (mut rate, start) = (Rate::new(ALLOWANCE), Instant::now());
        for number in 0..MAX_KEYS {
            assert_eq!(rate.admit(number, start), Ok(()));
        }
        assert_eq!(rate.admit(MAX_KEYS, start), Err(SPACING));
        assert_eq!(rate.admit(MAX_KEYS, start + SPACING), Ok(()));
        assert_eq!(rate.rested_at.len(), 1);
    }
}
