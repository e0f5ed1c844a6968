//! How many connections each caller has, and which of them make room for the next.
//!
//! A connection that waits for its caller, who has not asked yet or has been answered, costs nothing but its place. So one
//! who holds all places without a word keeps nobody out who has one to say.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio_util::sync::CancellationToken;

/// Connections of each caller that has any.
#[derive(Debug, Clone, Default)]
pub(super) struct Callers(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    of: HashMap<IpAddr, HashMap<u64, Connection>>,
    /// Numbers connections, and the moments at which one begins to wait.
    last: u64,
}

#[derive(Debug)]
struct Connection {
    /// Since when it waits for its caller; none while a request is answered.
    waits_since: Option<u64>,
    closed: CancellationToken,
}

/// One of a caller's connections; counted until it is dropped, or has to make room.
#[derive(Debug)]
pub(super) struct Counted {
    callers: Callers,
    network: IpAddr,
    number: u64,
    closed: CancellationToken,
}

impl Callers {
    /// Counts one more, which waits. The one that has waited longest makes room for it where the caller has `most` already;
    /// none when all of these are being answered.
    pub(super) fn admit(&self, network: IpAddr, most: usize) -> Option<Counted> {
        let mut open = self.open();
        let number = open.next();
        let connections = open.of.entry(network).or_default();
        // A limit of none would leave an entry that nobody takes away.
        if connections.len() >= most.max(1) && !close_one(connections) {
            return None;
        }
        let closed = CancellationToken::new();
        connections.insert(number, Connection { waits_since: Some(number), closed: closed.clone() });
        Some(Counted { callers: self.clone(), network, number, closed })
    }

    /// Has a connection that waits make room for one of anybody: of those who have most.
    pub(super) fn make_room(&self) {
        let mut open = self.open();
        let mut callers = open.of.values_mut().collect::<Vec<_>>();
        callers.sort_by_key(|connections| std::cmp::Reverse(connections.len()));
        callers.into_iter().any(close_one);
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().expect("nothing panics while it holds the counts")
    }
}

impl Open {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

/// Closes the connection that has waited longest; `false` when none waits.
fn close_one(connections: &mut HashMap<u64, Connection>) -> bool {
    let waiting = connections.iter().filter_map(|(number, connection)| Some((connection.waits_since?, *number)));
    let Some((_, longest)) = waiting.min() else { return false };
    let Some(closed) = connections.remove(&longest) else { return false };
    closed.closed.cancel();
    true
}

impl Counted {
    /// A request has come: from now on it makes room for nobody. `false` when it has done so just before.
    pub(super) fn answers(&self) -> bool {
        self.with(|connection, _| connection.waits_since = None)
    }

    /// The request is answered: it waits for the next one, or for the answer to be taken.
    pub(super) fn waits(&self) {
        self.with(|connection, now| connection.waits_since = Some(now));
    }

    /// Returns when it has to make room.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    fn with(&self, change: impl FnOnce(&mut Connection, u64)) -> bool {
        let mut open = self.callers.open();
        let now = open.next();
        let own = open.of.get_mut(&self.network).and_then(|connections| connections.get_mut(&self.number));
        own.map(|connection| change(connection, now)).is_some()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.callers.open();
        let Entry::Occupied(mut connections) = open.of.entry(self.network) else { return };
        connections.get_mut().remove(&self.number);
        if connections.get().is_empty() {
            connections.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: [u8; 4] = [10, 0, 0, 1];
    const OTHER: [u8; 4] = [10, 0, 0, 2];

    /// Those that have had to make room, of these.
    fn closed<const N: usize>(connections: [&Counted; N]) -> [bool; N] {
        connections.map(|connection| connection.closed.is_cancelled())
    }

    #[test]
    fn of_a_callers_connections_the_one_that_has_waited_longest_makes_room() {
        let callers = Callers::default();
        let [first, second] = [(); 2].map(|()| callers.admit(ONE.into(), 2).unwrap());
        let other = callers.admit(OTHER.into(), 2).unwrap();
        assert!(first.answers());
        first.waits();
        let third = callers.admit(ONE.into(), 2).unwrap();
        assert_eq!(closed([&first, &second, &third, &other]), [false, true, false, false]);
        assert!(!second.answers(), "it came too late");
        assert!(first.answers() && third.answers());
        assert!(callers.admit(ONE.into(), 2).is_none(), "whoever is being answered makes room for nobody");
        drop(first);
        assert!(callers.admit(ONE.into(), 2).is_some());
        drop((second, third, other));
        assert!(callers.open().of.is_empty());
    }

    #[test]
    fn of_all_who_wait_one_of_the_caller_who_has_most_makes_room() {
        let callers = Callers::default();
        let single = callers.admit(OTHER.into(), 9).unwrap();
        let [first, second] = [(); 2].map(|()| callers.admit(ONE.into(), 9).unwrap());
        assert!(first.answers());
        callers.make_room();
        assert_eq!(closed([&single, &first, &second]), [false, false, true]);
        callers.make_room();
        callers.make_room();
        assert_eq!(closed([&single, &first, &second]), [true, false, true]);
        drop((single, first, second));
        assert!(callers.open().of.is_empty());
    }
}
