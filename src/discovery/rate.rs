//! How many requests each token may make.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::model::BindingId;

/// Time between the requests of one token in the long run: 10 a second.
const SPACING: Duration = Duration::from_millis(100);

/// How many it may make at once after a rest.
const BURST: u32 = 50;

/// Tokens that are kept count of. More are refused until some have rested; only tokens that were found valid come here.
const MAX_TOKENS: usize = 65_536;

/// Per token, when it will have rested: each request moves that on by [`SPACING`].
#[derive(Debug, Default)]
pub(super) struct Rate(HashMap<BindingId, Instant>);

impl Rate {
    /// Counts a request.
    ///
    /// # Errors
    /// How long to wait, when there were too many.
    pub(super) fn admit(&mut self, binding: &BindingId, now: Instant) -> Result<(), Duration> {
        if !self.0.contains_key(binding) && self.0.len() >= MAX_TOKENS {
            self.0.retain(|_, rested_at| *rested_at > now);
            if self.0.len() >= MAX_TOKENS {
                return Err(SPACING);
            }
        }
        let rested_at = self.0.entry(binding.clone()).or_insert(now);
        let next = (*rested_at).max(now) + SPACING;
        let ahead = next.saturating_duration_since(now);
        if ahead > SPACING * BURST {
            return Err(ahead - SPACING * BURST);
        }
        *rested_at = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_a_burst_and_then_ten_a_second() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        let (one, two) = (BindingId::new("one").unwrap(), BindingId::new("two").unwrap());
        for _ in 0..BURST {
            assert_eq!(rate.admit(&one, start), Ok(()));
        }
        assert_eq!(rate.admit(&one, start), Err(SPACING));
        assert_eq!(rate.admit(&one, start + SPACING / 2), Err(SPACING / 2));
        assert_eq!(rate.admit(&two, start), Ok(()));
        let second = start + Duration::from_secs(1);
        let admitted = (0..BURST).filter(|_| rate.admit(&one, second).is_ok()).count();
        assert_eq!(admitted, 10);
        let rested = second + SPACING * BURST;
        assert_eq!((0..100).filter(|_| rate.admit(&one, rested).is_ok()).count(), 50);
    }

    #[test]
    fn tokens_that_have_rested_make_room() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        for number in 0..MAX_TOKENS {
            assert_eq!(rate.admit(&BindingId::new(number.to_string()).unwrap(), start), Ok(()));
        }
        let newcomer = BindingId::new("newcomer").unwrap();
        assert_eq!(rate.admit(&newcomer, start), Err(SPACING));
        assert_eq!(rate.admit(&newcomer, start + SPACING), Ok(()));
        assert_eq!(rate.0.len(), 1);
    }
}
