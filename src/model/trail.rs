//! The trail: which service instances changed last, in a value that is published anew with every change.
//!
//! A reader that keeps the value it saw last finds in the next one what is new, without a walk over everything. The trail
//! only says where to look: a reader that is too far behind, or that saw a value of another past, looks everywhere.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use super::ServiceInstanceId;

/// Changes that are kept, the oldest dropped first: more than come while a reader is busy with the last value.
const MAX_CHANGES: usize = 64;

/// The last changes, the latest at the end. Each is an `Arc` of its own, so that it is told from every other change by its
/// pointer: two values that share a change share all that came before it.
#[derive(Debug, Clone, Default)]
pub(super) struct Trail(VecDeque<Arc<ServiceInstanceId>>);

impl Trail {
    /// Adds a change.
    pub(super) fn push(&mut self, id: ServiceInstanceId) {
        if self.0.len() == MAX_CHANGES {
            self.0.pop_front();
        }
        self.0.push_back(Arc::new(id));
    }

    /// What has changed since `earlier`; `None` when only a look at everything can tell.
    pub(super) fn since(&self, earlier: &Self) -> Option<BTreeSet<ServiceInstanceId>> {
        let last_seen = earlier.0.back()?;
        let place = self.0.iter().rposition(|change| Arc::ptr_eq(change, last_seen))?;
        Some(self.0.range(place + 1..).map(|id| ServiceInstanceId::clone(id)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> ServiceInstanceId {
        ServiceInstanceId::new(number.to_string()).unwrap()
    }

    fn trail(changes: impl IntoIterator<Item = usize>) -> Trail {
        let mut trail = Trail::default();
        changes.into_iter().for_each(|number| trail.push(id(number)));
        trail
    }

    fn check(later: &Trail, earlier: &Trail, expected: Option<&[usize]>) {
        assert_eq!(later.since(earlier), expected.map(|numbers| numbers.iter().copied().map(id).collect()));
    }

    #[test]
    fn it_tells_what_came_after_a_value_of_the_same_past_and_of_no_other() {
        let nothing = Trail::default();
        let first = trail([1]);
        let mut second = first.clone();
        [2, 1, 2].into_iter().for_each(|number| second.push(id(number)));
        check(&second, &first, Some(&[1, 2]));
        check(&second, &second, Some(&[]));
        check(&first, &second, None);
        check(&first, &nothing, None);
        check(&nothing, &nothing, None);
        check(&second, &trail([1]), None);

        let (mut left, mut right) = (first.clone(), first.clone());
        left.push(id(3));
        right.push(id(4));
        check(&left, &right, None);
        check(&left, &first, Some(&[3]));
    }

    #[test]
    fn a_reader_that_is_too_far_behind_looks_everywhere() {
        let first = trail([0]);
        let mut later = first.clone();
        (1..MAX_CHANGES).for_each(|number| later.push(id(number)));
        assert_eq!(later.since(&first).map(|changed| changed.len()), Some(MAX_CHANGES - 1));
        later.push(id(0));
        check(&later, &first, None);
        assert_eq!(later.0.len(), MAX_CHANGES);
    }
}
