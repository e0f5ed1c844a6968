//! The sessions of one listener without their sockets: who talks to which backend, and until when.
//!
//! A session belongs to a peer: a client's address, and the local address that it sent to. It carries a value of the
//! shell's, which the table never looks at. The table admits nobody: the shell asks for room first.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    hash::Hash,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use crate::{
    forwarder::slab::{Key, Slab},
    model::desired::UNANSWERED_SESSION_TIMEOUT,
    telemetry::metrics::SessionEnd,
};

/// Sessions that any source may have, however short room is.
pub const MIN_SOURCE_SESSIONS: u32 = 32;

/// Where a client is, as far as it cannot choose it freely: an IPv4 address, or the network that an IPv6 host is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// An address.
    V4(Ipv4Addr),
    /// The first 64 bits of an address.
    V6(u64),
}

impl Source {
    /// That of a client.
    #[must_use]
    pub fn of(client: IpAddr) -> Self {
        match client.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => Self::V6((u128::from(address) >> 64) as u64),
        }
    }

    /// An address that is there.
    #[must_use]
    pub fn address(self) -> IpAddr {
        match self {
            Self::V4(address) => address.into(),
            Self::V6(network) => Ipv6Addr::from_bits(u128::from(network) << 64).into(),
        }
    }
}

/// Whether a source with `own` sessions may have one more where there is room for `room`: not more than are left for
/// all others.
#[must_use]
pub const fn has_room(own: u32, room: u32) -> bool {
    own < MIN_SOURCE_SESSIONS || own < room
}

/// The sessions of one listener.
#[derive(Debug)]
pub struct Sessions<P, T> {
    sessions: Slab<Session<P, T>>,
    by_peer: HashMap<P, Key>,
    /// How many sessions each source has; none has none.
    by_source: HashMap<Source, u32>,
    /// When to look at each session again: at its deadline or before.
    alarms: BTreeSet<(Instant, Key)>,
    /// Sessions without an answer, oldest first: the first to go when room is short.
    unanswered: BTreeSet<(Instant, Key)>,
    idle_timeout: Duration,
}

/// A session, in a table or on its way from one to another.
#[derive(Debug)]
pub struct Session<P, T> {
    peer: P,
    value: T,
    past: Past,
    drain_by: Option<Instant>,
    alarm: Instant,
}

/// What a session has been through, as far as it matters for its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Past {
    /// Whom it counts for.
    pub source: Source,
    /// When it began.
    pub opened_at: Instant,
    /// When a datagram was last carried.
    pub active_at: Instant,
    /// Whether the backend has ever answered.
    pub answered: bool,
}

impl<P, T> Session<P, T> {
    /// One that has been through that.
    pub const fn new(peer: P, value: T, past: Past) -> Self {
        Self { peer, value, past, drain_by: None, alarm: past.active_at }
    }

    /// The shell's value.
    #[must_use]
    pub const fn value(&self) -> &T {
        &self.value
    }

    /// The shell's value, to change.
    pub const fn value_mut(&mut self) -> &mut T {
        &mut self.value
    }

    fn deadline(&self, idle_timeout: Duration) -> (Instant, SessionEnd) {
        let Past { opened_at, active_at, answered, .. } = self.past;
        let idle = (active_at + idle_timeout, SessionEnd::Idle);
        let unanswered = (!answered).then(|| (opened_at + UNANSWERED_SESSION_TIMEOUT, SessionEnd::Unanswered));
        let drained = self.drain_by.map(|drain_by| (drain_by, SessionEnd::Drained));
        let sooner = |a: (Instant, SessionEnd), b: (Instant, SessionEnd)| if b.0 < a.0 { b } else { a };
        [unanswered, drained].into_iter().flatten().fold(idle, sooner)
    }
}

impl<P: Copy + Eq + Hash, T> Sessions<P, T> {
    /// No sessions yet.
    #[must_use]
    pub fn new(idle_timeout: Duration) -> Self {
        Self {
            sessions: Slab::default(),
            by_peer: HashMap::new(),
            by_source: HashMap::new(),
            alarms: BTreeSet::new(),
            unanswered: BTreeSet::new(),
            idle_timeout,
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The session of a peer.
    #[must_use]
    pub fn find(&self, peer: &P) -> Option<Key> {
        self.by_peer.get(peer).copied()
    }

    /// The peer of a session and the shell's value.
    #[must_use]
    pub fn get(&self, key: Key) -> Option<(P, &T)> {
        self.sessions.get(key).map(|session| (session.peer, &session.value))
    }

    /// How many sessions a source has.
    #[must_use]
    pub fn of_source(&self, source: Source) -> u32 {
        self.by_source.get(&source).copied().unwrap_or(0)
    }

    /// The peer of a session and the shell's value, to change.
    #[must_use]
    pub fn get_mut(&mut self, key: Key) -> Option<(P, &mut T)> {
        self.sessions.get_mut(key).map(|session| (session.peer, &mut session.value))
    }

    /// The shell's value of a session.
    #[must_use]
    pub fn value_mut(&mut self, key: Key) -> Option<&mut T> {
        self.sessions.get_mut(key).map(|session| &mut session.value)
    }

    /// All sessions.
    #[must_use]
    pub fn keys(&self) -> Vec<Key> {
        self.sessions.keys()
    }

    /// When a session ends unless a datagram comes.
    #[must_use]
    pub fn deadline(&self, key: Key) -> Option<Instant> {
        self.sessions.get(key).map(|session| session.deadline(self.idle_timeout).0)
    }

    /// What a session has been through.
    #[must_use]
    pub fn past(&self, key: Key) -> Option<Past> {
        self.sessions.get(key).map(|session| session.past)
    }

    /// Begins a session for a peer that has none.
    pub fn open(&mut self, peer: P, source: Source, value: T, now: Instant) -> Key {
        self.adopt(Session::new(peer, value, Past { source, opened_at: now, active_at: now, answered: false }))
    }

    /// Takes over a session that another table had, for a peer that has none.
    pub fn adopt(&mut self, session: Session<P, T>) -> Key {
        let Session { peer, past: Past { source, opened_at, answered, .. }, alarm, .. } = session;
        *self.by_source.entry(source).or_default() += 1;
        let key = self.sessions.insert(session);
        let before = self.by_peer.insert(peer, key);
        debug_assert!(before.is_none(), "a peer has one session");
        if !answered {
            self.unanswered.insert((opened_at, key));
        }
        self.alarms.insert((alarm, key));
        self.set_alarm(key);
        key
    }

    /// The peer has sent a datagram. Gives the shell's value.
    pub fn sent(&mut self, key: Key, now: Instant) -> Option<&mut T> {
        let session = self.sessions.get_mut(key)?;
        session.past.active_at = now;
        Some(&mut session.value)
    }

    /// The backend has answered.
    pub fn answered(&mut self, key: Key, now: Instant) {
        if let Some(session) = self.sessions.get_mut(key) {
            session.past.active_at = now;
            if !session.past.answered {
                session.past.answered = true;
                self.unanswered.remove(&(session.past.opened_at, key));
            }
        }
    }

    /// The backend's draining ends then, or it no longer drains.
    pub fn drain_by(&mut self, key: Key, deadline: Option<Instant>) {
        if let Some(session) = self.sessions.get_mut(key) {
            session.drain_by = deadline;
            self.set_alarm(key);
        }
    }

    /// Sets the idle time-out of all sessions, open ones too.
    pub fn set_idle_timeout(&mut self, idle_timeout: Duration) {
        if self.idle_timeout != idle_timeout {
            self.idle_timeout = idle_timeout;
            for key in self.sessions.keys() {
                self.set_alarm(key);
            }
        }
    }

    /// The session to give up when room is short: the oldest that has no answer.
    #[must_use]
    pub fn expendable(&self) -> Option<Key> {
        self.unanswered.first().map(|(_, key)| *key)
    }

    /// When [`Sessions::expired`] may have something.
    #[must_use]
    pub fn next_alarm(&self) -> Option<Instant> {
        self.alarms.first().map(|(alarm, _)| *alarm)
    }

    /// A session whose time is up, and why. The shell ends it, and asks again.
    pub fn expired(&mut self, now: Instant) -> Option<(Key, SessionEnd)> {
        while let Some((alarm, key)) = self.alarms.first().copied() {
            if alarm > now {
                return None;
            }
            let session = self.sessions.get(key).expect("a session that ends takes its alarm along");
            let (deadline, end) = session.deadline(self.idle_timeout);
            if deadline <= now {
                return Some((key, end));
            }
            self.set_alarm(key);
        }
        None
    }

    /// Takes a session out, as it has ended.
    pub fn end(&mut self, key: Key) -> Option<(P, T)> {
        self.take(key).map(|session| (session.peer, session.value))
    }

    /// Takes a session out, for another table to go on with.
    pub fn take(&mut self, key: Key) -> Option<Session<P, T>> {
        let session = self.sessions.remove(key)?;
        self.by_peer.remove(&session.peer);
        if let Entry::Occupied(mut sessions) = self.by_source.entry(session.past.source) {
            *sessions.get_mut() -= 1;
            if *sessions.get() == 0 {
                sessions.remove();
            }
        }
        self.alarms.remove(&(session.alarm, key));
        self.unanswered.remove(&(session.past.opened_at, key));
        Some(session)
    }

    fn set_alarm(&mut self, key: Key) {
        if let Some(session) = self.sessions.get_mut(key) {
            let (deadline, _) = session.deadline(self.idle_timeout);
            self.alarms.remove(&(session.alarm, key));
            session.alarm = deadline;
            self.alarms.insert((deadline, key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(60);
    const SECOND: Duration = Duration::from_secs(1);

    fn source(last: u32) -> Source {
        Source::V4(Ipv4Addr::from(last))
    }

    fn expired(sessions: &mut Sessions<u32, ()>, now: Instant) -> Vec<(u32, SessionEnd)> {
        let mut ended = Vec::new();
        while let Some((key, end)) = sessions.expired(now) {
            ended.push((sessions.end(key).unwrap().0, end));
        }
        ended
    }

    #[test]
    fn a_source_leaves_as_much_as_it_takes_and_who_comes_last_finds_room() {
        fn check(cap: u32, sources: usize, expected: &[u32]) {
            let mut taken = Vec::<u32>::new();
            for _ in 0..sources {
                let mut own = 0;
                let room = |own: u32| cap - taken.iter().sum::<u32>() - own;
                while room(own) > 0 && has_room(own, room(own)) {
                    own += 1;
                }
                taken.push(own);
            }
            assert_eq!(taken, expected, "{cap}");
        }
        check(16_384, 8, &[8192, 4096, 2048, 1024, 512, 256, 128, 64]);
        check(16_384, 1, &[8192]);
        check(200, 5, &[100, 50, 32, 18, 0]);
        check(40, 2, &[32, 8]);
        check(20, 1, &[20]);
    }

    #[test]
    fn a_source_is_an_address_of_ipv4_or_a_network_of_ipv6() {
        fn check(one: &str, other: &str, same: bool) {
            let source = |text: &str| Source::of(text.parse().unwrap());
            assert_eq!(source(one) == source(other), same, "{one} {other}");
            assert_eq!(Source::of(source(one).address()), source(one));
        }
        check("10.0.0.1", "::ffff:10.0.0.1", true);
        check("10.0.0.1", "10.0.0.2", false);
        check("2001:db8::1", "2001:db8::ffff:1:2:3", true);
        check("2001:db8::1", "2001:db8:0:1::1", false);
    }

    #[test]
    fn a_session_goes_on_in_another_table_as_it_was() {
        let start = Instant::now();
        let (mut from, mut to) = (Sessions::new(IDLE), Sessions::new(IDLE));
        let keys = [1, 2, 3].map(|peer| from.open(peer, source(9), (), start));
        from.answered(keys[0], start + SECOND);
        from.drain_by(keys[2], Some(start + 2 * SECOND));
        for key in keys {
            to.adopt(from.take(key).unwrap());
        }
        assert_eq!((from.len(), from.next_alarm(), from.of_source(source(9))), (0, None, 0));
        assert_eq!((to.len(), to.of_source(source(9))), (3, 3));
        assert_eq!(to.expendable(), to.find(&2));
        assert_eq!(expired(&mut to, start + 2 * SECOND), [(3, SessionEnd::Drained)]);
        assert_eq!(expired(&mut to, start + 5 * SECOND), [(2, SessionEnd::Unanswered)]);
        assert_eq!(expired(&mut to, start + 61 * SECOND), [(1, SessionEnd::Idle)]);
    }

    #[test]
    fn an_answered_session_ends_when_it_is_idle_and_an_unanswered_one_after_five_seconds() {
        let start = Instant::now();
        let mut sessions = Sessions::new(IDLE);
        let answered = sessions.open(1, source(1), (), start);
        let unanswered = sessions.open(2, source(2), (), start);
        sessions.answered(answered, start + SECOND);
        assert_eq!(sessions.sent(unanswered, start + 4 * SECOND), Some(&mut ()));
        assert_eq!(sessions.next_alarm(), Some(start + UNANSWERED_SESSION_TIMEOUT));
        assert_eq!(expired(&mut sessions, start + 5 * SECOND - Duration::from_nanos(1)), []);
        assert_eq!(expired(&mut sessions, start + 5 * SECOND), [(2, SessionEnd::Unanswered)]);
        assert_eq!(sessions.sent(answered, start + 30 * SECOND), Some(&mut ()));
        assert_eq!(expired(&mut sessions, start + 89 * SECOND), []);
        assert_eq!(expired(&mut sessions, start + 90 * SECOND), [(1, SessionEnd::Idle)]);
        assert_eq!((sessions.is_empty(), sessions.next_alarm()), (true, None));
    }

    #[test]
    fn the_oldest_unanswered_session_is_the_one_to_give_up() {
        let start = Instant::now();
        let mut sessions = Sessions::new(IDLE);
        let keys = [1, 2, 3].map(|peer| sessions.open(peer, source(peer), (), start + SECOND * peer));
        assert_eq!(sessions.expendable(), Some(keys[0]));
        sessions.answered(keys[0], start + 4 * SECOND);
        assert_eq!(sessions.expendable(), Some(keys[1]));
        sessions.end(keys[1]);
        sessions.answered(keys[2], start + 4 * SECOND);
        assert_eq!(sessions.expendable(), None);
    }

    #[test]
    fn deadlines_of_open_sessions_follow_settings_and_draining() {
        let start = Instant::now();
        let mut sessions = Sessions::new(IDLE);
        let key = sessions.open(1, source(1), (), start);
        sessions.answered(key, start);
        sessions.set_idle_timeout(2 * SECOND);
        assert_eq!(sessions.next_alarm(), Some(start + 2 * SECOND));
        sessions.set_idle_timeout(IDLE);
        assert_eq!(sessions.next_alarm(), Some(start + IDLE));
        sessions.drain_by(key, Some(start + 10 * SECOND));
        assert_eq!(sessions.deadline(key), Some(start + 10 * SECOND));
        sessions.drain_by(key, None);
        assert_eq!(sessions.sent(key, start + 20 * SECOND), Some(&mut ()));
        assert_eq!(expired(&mut sessions, start + 70 * SECOND), []);
        assert_eq!(sessions.next_alarm(), Some(start + 80 * SECOND));
    }
}
