//! The session table against a table that is too simple to be wrong.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use fastrand::Rng;
use harbor::{
    forwarder::{
        sessions::{Sessions, Source},
        slab::Key,
    },
    model::desired::UNANSWERED_SESSION_TIMEOUT,
    telemetry::metrics::SessionEnd,
};

use crate::seeds::{STEPS, run, weighted};

/// Clients, of which each has a session or none.
const PEERS: u32 = 20;
/// Where they are, of which two are in one network of IPv6.
const SOURCES: u32 = 5;
/// Most sessions at a time: the shell's admission.
const MOST: usize = 12;
/// Steps from one comparison of the whole tables to the next.
const CHECK_EVERY: u32 = 8;

#[derive(Debug, Clone, Copy)]
enum Action {
    Datagram,
    Answer,
    Wait,
    Drain,
    Serve,
    End,
    /// To another table, of which this one plays the part too.
    Move,
    ChangeIdleTimeout,
}

const ACTIONS: [(u32, Action); 8] = [
    (50, Action::Datagram),
    (25, Action::Answer),
    (15, Action::Wait),
    (3, Action::Drain),
    (2, Action::Serve),
    (4, Action::End),
    (4, Action::Move),
    (1, Action::ChangeIdleTimeout),
];

#[derive(Debug)]
struct Shadow {
    key: Key,
    /// The shell's value, which must come back untouched.
    value: u64,
    opened_at: Instant,
    active_at: Instant,
    answered: bool,
    drain_by: Option<Instant>,
}

/// Where a client is.
fn source(peer: u32) -> Source {
    Source::of(match peer % SOURCES {
        number @ 0..3 => Ipv4Addr::from(number).into(),
        number => IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, number as u16, 0, 0, 1)),
    })
}

struct World {
    random: Rng,
    now: Instant,
    idle_timeout: Duration,
    table: Sessions<u32, u64>,
    shadow: HashMap<u32, Shadow>,
    /// Keys of sessions that have ended.
    ended: Vec<Key>,
    opened: u64,
    steps: u32,
}

impl World {
    fn new(random: Rng) -> Self {
        let idle_timeout = Duration::from_secs(60);
        Self {
            random,
            now: Instant::now(),
            idle_timeout,
            table: Sessions::new(idle_timeout),
            shadow: HashMap::new(),
            ended: Vec::new(),
            opened: 0,
            steps: 0,
        }
    }

    /// Every reason for which a session will end, and when.
    fn deadlines(&self, shadow: &Shadow) -> impl Iterator<Item = (Instant, SessionEnd)> {
        let unanswered = (shadow.opened_at + UNANSWERED_SESSION_TIMEOUT, SessionEnd::Unanswered);
        [
            Some((shadow.active_at + self.idle_timeout, SessionEnd::Idle)),
            (!shadow.answered).then_some(unanswered),
            shadow.drain_by.map(|drain_by| (drain_by, SessionEnd::Drained)),
        ]
        .into_iter()
        .flatten()
    }

    fn end(&mut self, peer: u32) {
        let shadow = self.shadow.remove(&peer).expect("it is there");
        assert_eq!(self.table.end(shadow.key), Some((peer, shadow.value)));
        self.ended.push(shadow.key);
    }

    fn datagram(&mut self, peer: u32) {
        if let Some(key) = self.table.find(&peer) {
            let value = self.table.sent(key, self.now).copied();
            let shadow = self.shadow.get_mut(&peer).expect("both tables have it");
            assert_eq!((shadow.key, Some(shadow.value)), (key, value));
            shadow.active_at = self.now;
            return;
        }
        assert!(!self.shadow.contains_key(&peer), "{peer} has lost its session");
        if self.table.len() == MOST {
            let unanswered = self.shadow.iter().filter(|(_, shadow)| !shadow.answered);
            let oldest = unanswered.map(|(_, shadow)| shadow.opened_at).min();
            let Some(key) = self.table.expendable() else {
                assert_eq!(oldest, None, "there was one to give up");
                return;
            };
            let displaced = self.shadow.iter().find(|(_, shadow)| shadow.key == key).expect("both tables have it");
            assert_eq!((displaced.1.answered, Some(displaced.1.opened_at)), (false, oldest));
            let displaced = *displaced.0;
            self.end(displaced);
        }
        self.opened += 1;
        let value = self.opened;
        let key = self.table.open(peer, source(peer), value, self.now);
        let (opened_at, active_at) = (self.now, self.now);
        self.shadow.insert(peer, Shadow { key, value, opened_at, active_at, answered: false, drain_by: None });
    }

    fn step(&mut self) {
        let peer = self.random.u32(..PEERS);
        let action = weighted(&mut self.random, &ACTIONS);
        let key = self.shadow.get(&peer).map(|shadow| shadow.key);
        match action {
            Action::Datagram => self.datagram(peer),
            Action::Answer => {
                if let Some(shadow) = self.shadow.get_mut(&peer) {
                    self.table.answered(shadow.key, self.now);
                    shadow.active_at = self.now;
                    shadow.answered = true;
                }
            }
            Action::Wait => {
                let longest = weighted(&mut self.random, &[(20, 100), (5, 6_000), (1, 120_000)]);
                self.now += Duration::from_millis(self.random.u64(..longest));
            }
            Action::Drain | Action::Serve => {
                let after = Duration::from_secs(self.random.u64(..30));
                let drain_by = matches!(action, Action::Drain).then(|| self.now + after);
                if let Some(shadow) = self.shadow.get_mut(&peer) {
                    self.table.drain_by(shadow.key, drain_by);
                    shadow.drain_by = drain_by;
                }
            }
            Action::End if key.is_some() => self.end(peer),
            Action::Move if key.is_some() => {
                let shadow = self.shadow.get_mut(&peer).expect("it has a key");
                let session = self.table.take(shadow.key).expect("both tables have it");
                assert_eq!((session.value(), self.table.find(&peer)), (&shadow.value, None));
                shadow.key = self.table.adopt(session);
            }
            Action::End | Action::Move => {}
            Action::ChangeIdleTimeout => {
                self.idle_timeout = Duration::from_secs(self.random.u64(1..120));
                self.table.set_idle_timeout(self.idle_timeout);
            }
        }
        self.expire();
        self.steps += 1;
        if self.steps.is_multiple_of(CHECK_EVERY) {
            self.check();
        }
    }

    /// Ends what is due, and nothing else.
    fn expire(&mut self) {
        while let Some((key, end)) = self.table.expired(self.now) {
            let (peer, _) = self.table.get(key).expect("it has not ended yet");
            let shadow = &self.shadow[&peer];
            let due = self.deadlines(shadow).any(|(at, why)| at <= self.now && why == end);
            assert!(due, "{end:?} is not why {shadow:?} ends");
            self.end(peer);
        }
    }

    fn check(&self) {
        assert_eq!(self.table.len(), self.shadow.len());
        assert!(self.table.len() <= MOST);
        for one in 0..SOURCES {
            let sessions = self.shadow.keys().filter(|peer| source(**peer) == source(one)).count();
            assert_eq!(self.table.of_source(source(one)) as usize, sessions, "sessions of {:?}", source(one));
        }
        let mut first = None;
        for (peer, shadow) in &self.shadow {
            assert_eq!(self.table.find(peer), Some(shadow.key));
            assert_eq!(self.table.get(shadow.key), Some((*peer, &shadow.value)));
            let deadline = self.deadlines(shadow).map(|(at, _)| at).min();
            assert!(deadline > Some(self.now), "{shadow:?} is over");
            assert_eq!(self.table.deadline(shadow.key), deadline);
            first = [first, deadline].into_iter().flatten().min();
        }
        assert!(self.table.next_alarm() <= first, "no alarm comes too late");
        assert_eq!(self.table.next_alarm().is_some(), first.is_some());
        assert!(self.ended.last().is_none_or(|key| self.table.get(*key).is_none()));
    }

    fn finish(mut self) {
        for peer in self.shadow.keys().copied().collect::<Vec<_>>() {
            self.end(peer);
        }
        assert!(self.table.is_empty());
        assert_eq!((self.table.next_alarm(), self.table.expendable()), (None, None));
        assert!((0..SOURCES).all(|one| self.table.of_source(source(one)) == 0));
        assert_eq!(self.ended.len() as u64, self.opened, "every session that began has ended, once");
        assert!(self.ended.iter().all(|key| self.table.get(*key).is_none()));
    }
}

#[test]
fn whatever_happens_each_session_ends_when_it_should_and_the_table_is_never_over_its_cap() {
    run(|random| {
        let mut world = World::new(random);
        (0..STEPS).for_each(|_| world.step());
        world.finish();
    });
}
