//! How many connections each caller has, and which of them make room for the next.
//!
//! A connection that waits for its caller, who has not asked yet or has been answered, costs nothing but its place. So one
//! who holds all places without a word keeps nobody out who has one to say.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::{Arc, Mutex},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Connections of each caller that has any.
#[derive(Debug, Clone)]
pub(super) struct Callers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    open: Mutex<Open>,
    /// Of all callers.
    most: usize,
    /// Of each.
    most_of_one: usize,
    /// Whether there is a place for one more, or somebody who can make it one.
    room: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Open {
    of: HashMap<IpAddr, HashMap<u64, Connection>>,
    /// Numbers connections, and the moments at which one begins to wait.
    last: u64,
    /// Of all callers.
    connections: usize,
    /// Of these, those that wait for their caller.
    waiting: usize,
    /// Have made room, and are not gone yet.
    closing: usize,
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
    /// Nobody yet. There is room for `most` connections, and for `most_of_one` of each caller: at least for one.
    pub(super) fn new(most: usize, most_of_one: usize) -> Self {
        let (most, most_of_one) = (most.max(1), most_of_one.max(1));
        Self(Arc::new(Shared { open: Mutex::default(), most, most_of_one, room: watch::Sender::new(true) }))
    }

    /// Whether there is room for one more, of somebody who has not all that one may have. It changes with every connection
    /// that comes, goes, asks or is answered.
    pub(super) fn room(&self) -> watch::Receiver<bool> {
        self.0.room.subscribe()
    }

    /// Counts one more, which waits; `None` when its caller has as many as one may have, and all are being answered.
    ///
    /// Where it needs room, the one that has waited longest makes it: of its own caller where that one has its share, or
    /// else of those who have most. One that came in the moment in which the last that waited has asked is one too many.
    pub(super) fn admit(&self, network: IpAddr) -> Option<Counted> {
        self.change(|open| {
            let own = open.of.get(&network).map_or(0, HashMap::len);
            if own >= self.0.most_of_one {
                if !open.close_one(network) {
                    return None;
                }
            } else if open.connections + open.closing >= self.0.most {
                open.make_room();
            }
            let (number, closed) = (open.next(), CancellationToken::new());
            let connection = Connection { waits_since: Some(number), closed: closed.clone() };
            open.of.entry(network).or_default().insert(number, connection);
            open.connections += 1;
            open.waiting += 1;
            Some(Counted { callers: self.clone(), network, number, closed })
        })
    }

    /// Makes a change, and says whether there is room after it.
    fn change<T>(&self, change: impl FnOnce(&mut Open) -> T) -> T {
        let mut open = self.0.open.lock().expect("nothing panics while it holds the counts");
        let changed = change(&mut open);
        let is_free = open.connections + open.closing < self.0.most;
        let room = is_free || (open.closing == 0 && open.waiting > 0);
        self.0.room.send_if_modified(|was| std::mem::replace(was, room) != room);
        changed
    }
}

impl Open {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Closes the connection that has waited longest, of those who have most.
    fn make_room(&mut self) {
        let mut callers = self.of.iter().map(|(network, own)| (own.len(), *network)).collect::<Vec<_>>();
        callers.sort_unstable_by_key(|(connections, _)| std::cmp::Reverse(*connections));
        callers.into_iter().any(|(_, network)| self.close_one(network));
    }

    /// Closes the caller's connection that has waited longest; `false` when none waits.
    fn close_one(&mut self, network: IpAddr) -> bool {
        let own = self.of.get(&network).into_iter().flatten();
        let waiting = own.filter_map(|(number, connection)| Some((connection.waits_since?, *number)));
        let Some((_, longest)) = waiting.min() else { return false };
        let Some(connection) = self.remove(network, longest) else { return false };
        connection.closed.cancel();
        self.closing += 1;
        true
    }

    fn remove(&mut self, network: IpAddr, number: u64) -> Option<Connection> {
        let Entry::Occupied(mut own) = self.of.entry(network) else { return None };
        let connection = own.get_mut().remove(&number)?;
        if own.get().is_empty() {
            own.remove();
        }
        self.connections -= 1;
        self.waiting -= usize::from(connection.waits_since.is_some());
        Some(connection)
    }
}

impl Counted {
    /// A request has come: from now on it makes room for nobody. `false` when it has done so just before.
    pub(super) fn answers(&self) -> bool {
        self.turn(|_| None)
    }

    /// The request is answered: it waits for the next one, or for the answer to be taken.
    pub(super) fn waits(&self) {
        self.turn(Some);
    }

    /// Returns when it has to make room.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Sets since when it waits, where it has not made room: from what it is now.
    fn turn(&self, waits_since: impl FnOnce(u64) -> Option<u64>) -> bool {
        self.callers.change(|open| {
            let now = open.next();
            let own = open.of.get_mut(&self.network).and_then(|own| own.get_mut(&self.number));
            let Some(connection) = own else { return false };
            let before = std::mem::replace(&mut connection.waits_since, waits_since(now));
            open.waiting += usize::from(connection.waits_since.is_some());
            open.waiting -= usize::from(before.is_some());
            true
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.callers.change(|open| {
            if open.remove(self.network, self.number).is_none() {
                open.closing -= 1;
            }
        });
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

    #[track_caller]
    fn check_empty(callers: &Callers) {
        callers.change(|open| {
            assert!(open.of.is_empty());
            assert_eq!((open.connections, open.waiting, open.closing), (0, 0, 0));
        });
    }

    #[test]
    fn of_a_callers_connections_the_one_that_has_waited_longest_makes_room() {
        let callers = Callers::new(9, 2);
        let [first, second] = [(); 2].map(|()| callers.admit(ONE.into()).unwrap());
        let other = callers.admit(OTHER.into()).unwrap();
        assert!(first.answers());
        first.waits();
        let third = callers.admit(ONE.into()).unwrap();
        assert_eq!(closed([&first, &second, &third, &other]), [false, true, false, false]);
        assert!(!second.answers(), "it came too late");
        assert!(first.answers() && third.answers());
        assert!(callers.admit(ONE.into()).is_none(), "whoever is being answered makes room for nobody");
        drop(first);
        assert!(callers.admit(ONE.into()).is_some());
        drop((second, third, other));
        check_empty(&callers);
    }

    #[test]
    fn of_all_who_wait_one_of_the_caller_who_has_most_makes_room() {
        let callers = Callers::new(3, 9);
        let single = callers.admit(OTHER.into()).unwrap();
        let [first, second] = [(); 2].map(|()| callers.admit(ONE.into()).unwrap());
        assert!(first.answers());
        let third = callers.admit(OTHER.into()).unwrap();
        assert_eq!(closed([&single, &first, &second, &third]), [false, false, true, false]);
        drop(second);
        assert!(third.answers());
        let fourth = callers.admit(ONE.into()).unwrap();
        assert_eq!(closed([&single, &first, &third, &fourth]), [true, false, false, false]);
        drop((single, first, third, fourth));
        check_empty(&callers);
    }

    #[test]
    fn nobody_makes_room_for_a_caller_who_is_refused() {
        let callers = Callers::new(2, 1);
        let [busy, waiting] = [ONE, OTHER].map(|network| callers.admit(network.into()).unwrap());
        assert!(busy.answers());
        assert!(callers.admit(ONE.into()).is_none());
        assert_eq!(closed([&busy, &waiting]), [false, false]);
        drop((busy, waiting));
        check_empty(&callers);
    }

    #[test]
    fn there_is_room_while_a_place_is_free_or_somebody_waits_and_nobody_is_closing() {
        let callers = Callers::new(2, 9);
        let room = callers.room();
        let [first, second] = [(); 2].map(|()| callers.admit(ONE.into()).unwrap());
        assert!(*room.borrow(), "two wait");
        assert!(first.answers());
        assert!(*room.borrow(), "one waits");
        assert!(second.answers());
        assert!(!*room.borrow());
        second.waits();
        assert!(*room.borrow());
        let third = callers.admit(OTHER.into()).unwrap();
        assert!(!*room.borrow(), "the second is not gone yet");
        drop(second);
        assert!(*room.borrow(), "the third waits");
        assert!(third.answers());
        assert!(!*room.borrow());
        drop(first);
        assert!(*room.borrow());
        drop(third);
        check_empty(&callers);
    }
}
