//! How many connections each caller has: of one who holds many, the next ones are closed, so that there is room for others.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
};

/// Connections of each caller that has any.
#[derive(Debug, Clone, Default)]
pub(super) struct Callers(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One of a caller's connections; counted until it is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    callers: Callers,
    network: IpAddr,
}

impl Callers {
    /// Counts one more, unless the caller has `most` already.
    pub(super) fn admit(&self, network: IpAddr, most: usize) -> Option<Counted> {
        let mut open = self.open();
        let count = open.entry(network).or_default();
        // A limit of none would leave an entry that nobody takes away.
        if *count >= most.max(1) {
            return None;
        }
        *count += 1;
        Some(Counted { callers: self.clone(), network })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().expect("nothing panics while it holds the counts")
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.callers.open();
        let Entry::Occupied(mut count) = open.entry(self.network) else { return };
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_and_those_that_have_ended_do_not_count() {
        let callers = Callers::default();
        let [one, two] = ["10.0.0.1", "10.0.0.2"].map(|address| address.parse().unwrap());
        let first = callers.admit(one, 2);
        let second = callers.admit(one, 2);
        assert!(first.is_some() && second.is_some() && callers.admit(one, 2).is_none());
        assert!(callers.admit(two, 2).is_some());
        drop(first);
        assert!(callers.admit(one, 2).is_some());
        drop(second);
        assert!(callers.open().is_empty());
    }
}
