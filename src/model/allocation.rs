//! Which port of a pool a new service instance gets.
//!
//! A port is free, then allocated, then quarantined, then free again. Ports may besides be held back by a reservation,
//! or be put aside because somebody else on the machine has them. [`FreePorts`] proposes; the store decides.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ops::RangeInclusive,
    time::Duration,
};

use super::{PoolName, PortSet, Protocol, SpaceId, Timestamp};

/// For how long after its use by one space a port is not given to another that asks for this very port: its former
/// clients may still be calling.
pub const REUSE_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a port that a stranger holds is put aside before it is tried again.
pub const CONFLICT_MEMORY: Duration = Duration::from_secs(10 * 60);

/// A port that is or was allocated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRow {
    /// The port.
    pub port: u16,
    /// What is known of it.
    pub state: PortState,
}

/// What is known of a port that is or was allocated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortState {
    /// It belongs to a service instance.
    Allocated,
    /// It was freed.
    Released(Release),
}

impl PortState {
    /// Whether `space` can have the port, as far as its own history says.
    #[must_use]
    pub fn is_free_for(&self, space: &SpaceId, asked_for: bool, now: Timestamp) -> bool {
        match self {
            Self::Allocated => false,
            Self::Released(last) => last.barred_until(space, asked_for) <= now,
        }
    }
}

/// How a port came to be freed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Whose it was.
    pub space_id: SpaceId,
    /// When.
    pub at: Timestamp,
    /// Until when nobody gets it.
    pub quarantined_until: Timestamp,
}

impl Release {
    /// Until when `space` cannot have the port: the end of its quarantine; or, where it asks for this very port, of
    /// [`REUSE_WAIT`] after its use by another space, if that is later.
    #[must_use]
    pub fn barred_until(&self, space: &SpaceId, asked_for: bool) -> Timestamp {
        if asked_for && self.space_id != *space {
            self.quarantined_until.max(self.at.plus(REUSE_WAIT))
        } else {
            self.quarantined_until
        }
    }
}

/// Ports held back under a name, never allocated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// In which pool.
    pub pool: PoolName,
    /// Under which name.
    pub name: String,
    /// First port.
    pub first_port: u16,
    /// Last port; equal to the first for a single one.
    pub last_port: u16,
    /// For what. Harbor gives none of the ports out whatever it is.
    pub protocol: Protocol,
}

impl Reservation {
    /// Whether it holds `port` back.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        (self.first_port..=self.last_port).contains(&port)
    }

    /// Whether both hold a common port back for a common transport.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let shares = self.protocol.transports().iter().any(|transport| other.protocol.has(*transport));
        shares && self.first_port <= other.last_port && other.first_port <= self.last_port
    }

    /// Its ports and protocol in words: `25090-25099 tcp`.
    #[must_use]
    pub fn told(&self) -> String {
        let Self { first_port: first, last_port: last, protocol, .. } = self;
        if first == last { format!("{first} {protocol}") } else { format!("{first}-{last} {protocol}") }
    }
}

/// Why a user does not get the port asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortRefusal {
    /// Not one of the pool's.
    #[error("port {port} is not in the pool's range: choose one of {range}, or leave `port` out")]
    NotInPool {
        /// The port.
        port: u16,
        /// What the pool has.
        range: PortSet,
    },
    /// It belongs to a service instance.
    #[error("port {port} is allocated: choose another one, or leave `port` out")]
    Allocated {
        /// The port.
        port: u16,
    },
    /// It is held back.
    #[error("port {port} is reserved: choose another one, or leave `port` out")]
    Reserved {
        /// The port.
        port: u16,
        /// The reservation.
        name: String,
    },
    /// It was freed a short while ago.
    #[error("port {port} was freed a short while ago: choose another one, or try again later")]
    Quarantined {
        /// The port.
        port: u16,
        /// Until when.
        until: Timestamp,
    },
    /// Another space used it less than [`REUSE_WAIT`] ago.
    #[error("port {port} was used by another space in the last 24 hours: choose another one, or try again later")]
    RecentlyUsed {
        /// The port.
        port: u16,
        /// Until when.
        until: Timestamp,
    },
    /// Something else on the machine had it when it was tried.
    #[error("port {port} is in use outside of Harbor: choose another one, or try again later")]
    InConflict {
        /// The port.
        port: u16,
        /// When it will be tried again.
        until: Timestamp,
    },
}

/// How many ports of a pool are what. Only `allocated` may hold ports that are no longer in the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Can be given out at once.
    pub free: usize,
    /// Belong to a service instance.
    pub allocated: usize,
    /// Are held back under a name.
    pub reserved: usize,
    /// Were freed a short while ago.
    pub quarantined: usize,
    /// Are put aside because something else has them.
    pub in_conflict: usize,
}

/// What a port of a pool is: the most lasting of what stands in the way of giving it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortUse {
    /// It can be given out at once.
    Free,
    /// It belongs to a service instance, or is about to.
    Allocated,
    /// It is held back under a name.
    Reserved,
    /// It was freed a short while ago.
    Quarantined(Release),
    /// Something else on the machine has it; it is tried again then.
    InConflict(Timestamp),
}

/// In `FreePorts::places`: not in the free list. A pool has fewer ports than that.
const NOT_FREE: u16 = u16::MAX;

/// One pool's ports: what is known of each, and the list of the free ones that follows from it.
///
/// Proposing, taking and releasing cost the same however full the pool is. A clock that is set back delays the end of
/// quarantines and conflicts, nothing else.
#[derive(Debug, Clone)]
pub struct FreePorts {
    range: PortSet,
    reservations: Vec<Reservation>,
    allocated: HashSet<u16>,
    /// The last release of each port, also while it is allocated again.
    releases: HashMap<u16, Release>,
    /// Until when each port is put aside.
    conflicts: HashMap<u16, Timestamp>,
    /// The free ports in no order, so that the n-th is found at once.
    free: Vec<u16>,
    /// By port: its index in `free`, or [`NOT_FREE`].
    places: Vec<u16>,
    /// When each port that only time holds back is looked at again: by moment, and by port.
    wakes: BTreeSet<(Timestamp, u16)>,
    wake_of: HashMap<u16, Timestamp>,
}

/// What stands in the way of giving a port out.
#[derive(Debug, Clone, Copy)]
enum Hold<'a> {
    Allocated,
    OutOfRange,
    Reserved(&'a Reservation),
    Quarantined(Timestamp),
    InConflict(Timestamp),
}

impl FreePorts {
    /// The ports of `range`, less the pool's reservations and what its rows say.
    #[must_use]
    pub fn new(range: PortSet, reservations: Vec<Reservation>, rows: Vec<PortRow>, now: Timestamp) -> Self {
        let mut allocated = HashSet::new();
        let mut releases = HashMap::new();
        for row in rows {
            match row.state {
                PortState::Allocated => {
                    allocated.insert(row.port);
                }
                PortState::Released(release) => {
                    releases.insert(row.port, release);
                }
            }
        }
        let mut ports = Self {
            range: PortSet::default(),
            reservations,
            allocated,
            releases,
            conflicts: HashMap::new(),
            free: Vec::new(),
            places: vec![NOT_FREE; usize::from(u16::MAX) + 1],
            wakes: BTreeSet::new(),
            wake_of: HashMap::new(),
        };
        ports.resize(range, now);
        ports
    }

    /// A free port, chosen by `random`; `None` when the pool is exhausted. It stays free until taken.
    pub fn propose(&mut self, random: u64, now: Timestamp) -> Option<u16> {
        self.wake(now);
        // The high half of the product is uniform over the list to within one part in 2^48.
        let index = (u128::from(random) * self.free.len() as u128) >> 64;
        self.free.get(usize::try_from(index).expect("it is below the length")).copied()
    }

    /// Whether `space` can have this very port. It stays free until taken.
    ///
    /// # Errors
    /// [`PortRefusal`] when it cannot.
    pub fn request(&mut self, port: u16, space: &SpaceId, now: Timestamp) -> Result<(), PortRefusal> {
        self.wake(now);
        match self.hold(port, now) {
            Some(Hold::Allocated) => Err(PortRefusal::Allocated { port }),
            Some(Hold::OutOfRange) => Err(PortRefusal::NotInPool { port, range: self.range.clone() }),
            Some(Hold::Reserved(by)) => Err(PortRefusal::Reserved { port, name: by.name.clone() }),
            Some(Hold::Quarantined(until)) => Err(PortRefusal::Quarantined { port, until }),
            Some(Hold::InConflict(until)) => Err(PortRefusal::InConflict { port, until }),
            None => match self.releases.get(&port).map(|last| last.barred_until(space, true)) {
                Some(until) if now < until => Err(PortRefusal::RecentlyUsed { port, until }),
                _ => Ok(()),
            },
        }
    }

    /// Says that a port belongs to a service instance, or is about to: taken before the store is asked, it is not
    /// proposed to anyone else meanwhile.
    pub fn take(&mut self, port: u16, now: Timestamp) {
        self.allocated.insert(port);
        self.sort_in(port, now);
    }

    /// Undoes [`FreePorts::take`] of a port that was never used: it is at once what it was before.
    pub fn give_back(&mut self, port: u16, now: Timestamp) {
        self.allocated.remove(&port);
        self.sort_in(port, now);
    }

    /// Says that a service instance has freed its port.
    pub fn release(&mut self, port: u16, release: Release, now: Timestamp) {
        self.allocated.remove(&port);
        self.releases.insert(port, release);
        self.sort_in(port, now);
    }

    /// Puts aside a port that something else on the machine has.
    pub fn mark_conflict(&mut self, port: u16, until: Timestamp, now: Timestamp) {
        self.conflicts.insert(port, until);
        self.sort_in(port, now);
    }

    /// Takes over what the store says of the pool, in place of what was known. What is put aside stays so.
    pub fn reread(&mut self, reservations: Vec<Reservation>, rows: Vec<PortRow>, now: Timestamp) {
        let conflicts = std::mem::take(&mut self.conflicts);
        *self = Self::new(self.range.clone(), reservations, rows, now);
        for (port, until) in conflicts.into_iter().filter(|(_, until)| now < *until) {
            self.mark_conflict(port, until, now);
        }
    }

    /// Takes over another range. Ports that are no longer in it stay with their service instances and are not given out
    /// again.
    pub fn resize(&mut self, range: PortSet, now: Timestamp) {
        let before = std::mem::replace(&mut self.range, range);
        let after = self.range.clone();
        for port in before.iter().chain(after.iter()) {
            self.sort_in(port, now);
        }
    }

    /// How many ports are what. Looks at every port.
    pub fn counts(&mut self, now: Timestamp) -> Counts {
        self.wake(now);
        let mut counts = Counts { free: self.free.len(), allocated: self.allocated.len(), ..Counts::default() };
        for port in self.range.iter() {
            match self.hold(port, now) {
                Some(Hold::Reserved(_)) => counts.reserved += 1,
                Some(Hold::Quarantined(_)) => counts.quarantined += 1,
                Some(Hold::InConflict(_)) => counts.in_conflict += 1,
                Some(Hold::Allocated | Hold::OutOfRange) | None => {}
            }
        }
        counts
    }

    /// What each of `ports` is, ascending: those of the range, and those that service instances have beside it.
    pub fn uses(&mut self, ports: RangeInclusive<u16>, now: Timestamp) -> impl Iterator<Item = (u16, PortUse)> {
        self.wake(now);
        ports.filter_map(move |port| {
            let is_what = match self.hold(port, now) {
                None => PortUse::Free,
                Some(Hold::Allocated) => PortUse::Allocated,
                Some(Hold::Reserved(_)) => PortUse::Reserved,
                Some(Hold::Quarantined(_)) => PortUse::Quarantined(self.releases.get(&port)?.clone()),
                Some(Hold::InConflict(until)) => PortUse::InConflict(until),
                Some(Hold::OutOfRange) => return None,
            };
            Some((port, is_what))
        })
    }

    /// The one rule: what stands in the way of giving `port` out, the most lasting first.
    fn hold(&self, port: u16, now: Timestamp) -> Option<Hold<'_>> {
        if self.allocated.contains(&port) {
            return Some(Hold::Allocated);
        }
        if !self.range.contains(port) {
            return Some(Hold::OutOfRange);
        }
        if let Some(by) = self.reservations.iter().find(|reservation| reservation.contains(port)) {
            return Some(Hold::Reserved(by));
        }
        if let Some(until) = self.releases.get(&port).map(|last| last.quarantined_until).filter(|until| now < *until) {
            return Some(Hold::Quarantined(until));
        }
        self.conflicts.get(&port).copied().filter(|until| now < *until).map(Hold::InConflict)
    }

    /// Puts `port` where the rule says: into the free list, under a wake, or into neither.
    fn sort_in(&mut self, port: u16, now: Timestamp) {
        let hold = self.hold(port, now);
        let is_free = hold.is_none();
        let wake = match hold {
            Some(Hold::Quarantined(until) | Hold::InConflict(until)) => Some(until),
            Some(Hold::Allocated | Hold::OutOfRange | Hold::Reserved(_)) | None => None,
        };
        if let Some(at) = self.wake_of.remove(&port) {
            self.wakes.remove(&(at, port));
        }
        if let Some(at) = wake {
            self.wake_of.insert(port, at);
            self.wakes.insert((at, port));
        }
        let place = self.places[usize::from(port)];
        if is_free && place == NOT_FREE {
            self.places[usize::from(port)] = u16::try_from(self.free.len()).expect("a pool has at most 64,512 ports");
            self.free.push(port);
        } else if !is_free && place != NOT_FREE {
            self.free.swap_remove(usize::from(place));
            if let Some(moved) = self.free.get(usize::from(place)) {
                self.places[usize::from(*moved)] = place;
            }
            self.places[usize::from(port)] = NOT_FREE;
        }
    }

    /// Looks again at every port whose time has come.
    fn wake(&mut self, now: Timestamp) {
        while let Some((at, port)) = self.wakes.first().copied()
            && at <= now
        {
            if self.conflicts.get(&port).is_some_and(|until| *until <= now) {
                self.conflicts.remove(&port);
            }
            self.sort_in(port, now);
        }
    }
}
