//! The free list against a model that looks at every port each time: no port twice, whatever the order of operations.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use harbor::model::{
    PoolName, PortSet, Protocol, SpaceId, Timestamp,
    allocation::{
        CONFLICT_MEMORY, Counts, FreePorts, PortRefusal, PortRow, PortState, REUSE_WAIT, Release, Reservation,
    },
};
use proptest::prelude::*;

/// The ranges that a pool is switched between.
const RANGES: [&str; 3] = ["20000-20011", "20004-20019", "20000-20002, 20010-20014"];

/// One more than all ports of [`RANGES`] on either side.
const LOWEST: u16 = 19_999;
const PORTS: u16 = 22;

#[derive(Debug, Clone)]
enum Step {
    Propose { random: u64 },
    Request { port: u16, space: u8 },
    GiveBack { nth: usize },
    Release { nth: usize, space: u8, quarantine_minutes: u64 },
    Conflict { port: u16 },
    Resize { range: usize },
    Wait { minutes: u64 },
    Reread,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let port = || (0..PORTS).prop_map(|offset| LOWEST + offset);
    prop_oneof![
        8 => any::<u64>().prop_map(|random| Step::Propose { random }),
        4 => (port(), 0..2_u8).prop_map(|(port, space)| Step::Request { port, space }),
        1 => any::<usize>().prop_map(|nth| Step::GiveBack { nth }),
        4 => (any::<usize>(), 0..2_u8, prop_oneof![Just(0), Just(15), Just(60)])
            .prop_map(|(nth, space, quarantine_minutes)| Step::Release { nth, space, quarantine_minutes }),
        2 => port().prop_map(|port| Step::Conflict { port }),
        1 => (0..RANGES.len()).prop_map(|range| Step::Resize { range }),
        3 => prop_oneof![Just(1), Just(10), Just(15), Just(24 * 60)].prop_map(|minutes| Step::Wait { minutes }),
        1 => Just(Step::Reread),
        1 => Just(Step::Restart),
    ]
}

fn space(number: u8) -> SpaceId {
    SpaceId::new(format!("space-{number}")).unwrap()
}

/// All that is known, in plain maps; every question looks at every port.
struct Model {
    now: Timestamp,
    range: PortSet,
    reserved: BTreeSet<u16>,
    allocated: BTreeSet<u16>,
    releases: BTreeMap<u16, Release>,
    conflicts: BTreeMap<u16, Timestamp>,
}

impl Model {
    fn is_quarantined(&self, port: u16) -> bool {
        self.releases.get(&port).is_some_and(|last| self.now < last.quarantined_until)
    }

    fn is_in_conflict(&self, port: u16) -> bool {
        self.conflicts.get(&port).is_some_and(|until| self.now < *until)
    }

    fn may_be_given(&self, port: u16) -> bool {
        self.range.contains(port)
            && !self.allocated.contains(&port)
            && !self.reserved.contains(&port)
            && !self.is_quarantined(port)
            && !self.is_in_conflict(port)
    }

    fn was_lately_used_by_another(&self, port: u16, space: &SpaceId) -> bool {
        let last = self.releases.get(&port);
        last.is_some_and(|last| last.space_id != *space && self.now < last.at.plus(REUSE_WAIT))
    }

    fn free(&self) -> BTreeSet<u16> {
        self.range.iter().filter(|port| self.may_be_given(*port)).collect()
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts { allocated: self.allocated.len(), ..Counts::default() };
        for port in self.range.iter().filter(|port| !self.allocated.contains(port)) {
            if self.reserved.contains(&port) {
                counts.reserved += 1;
            } else if self.is_quarantined(port) {
                counts.quarantined += 1;
            } else if self.is_in_conflict(port) {
                counts.in_conflict += 1;
            } else {
                counts.free += 1;
            }
        }
        counts
    }

    fn nth_allocated(&self, nth: usize) -> Option<u16> {
        self.allocated.iter().nth(nth % self.allocated.len().max(1)).copied()
    }

    /// The store does not tell them.
    fn forget_releases_of_allocated(&mut self) {
        let allocated = &self.allocated;
        self.releases.retain(|port, _| !allocated.contains(port));
    }

    fn rows(&self) -> Vec<PortRow> {
        let allocated = self.allocated.iter().map(|port| PortRow { port: *port, state: PortState::Allocated });
        let released = self
            .releases
            .iter()
            .filter(|(port, _)| !self.allocated.contains(port))
            .map(|(port, last)| PortRow { port: *port, state: PortState::Released(last.clone()) });
        allocated.chain(released).collect()
    }
}

fn reservations() -> Vec<Reservation> {
    let reservation = |name: &str, first_port, last_port| Reservation {
        pool: PoolName::new("default").unwrap(),
        name: name.into(),
        first_port,
        last_port,
        protocol: Protocol::Both,
    };
    vec![reservation("database", 20_001, 20_001), reservation("block", 20_010, 20_011)]
}

/// Everything that can be proposed: the random number that leads to each place in the list of `count` free ports.
fn proposals(ports: &mut FreePorts, count: usize, now: Timestamp) -> BTreeSet<u16> {
    let random = |index: usize| u64::try_from(((index as u128) << 64).div_ceil(count as u128)).unwrap();
    (0..count).map(|index| ports.propose(random(index), now).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_port_is_given_twice_and_none_that_is_held_back(steps in prop::collection::vec(step(), 1..120)) {
        let mut model = Model {
            now: Timestamp::from_seconds(1_700_000_000),
            range: RANGES[0].parse().unwrap(),
            reserved: [20_001, 20_010, 20_011].into(),
            allocated: BTreeSet::new(),
            releases: BTreeMap::new(),
            conflicts: BTreeMap::new(),
        };
        let mut ports = FreePorts::new(model.range.clone(), reservations(), Vec::new(), model.now);
        for step in steps {
            let now = model.now;
            match step {
                Step::Propose { random } => match ports.propose(random, now) {
                    Some(port) => {
                        prop_assert!(model.may_be_given(port), "{port} was proposed");
                        model.allocated.insert(port);
                        ports.take(port, now);
                    }
                    None => prop_assert!(model.free().is_empty()),
                },
                Step::Request { port, space: number } => {
                    let answer = ports.request(port, &space(number), now);
                    let lately_used = model.was_lately_used_by_another(port, &space(number));
                    prop_assert_eq!(answer.is_ok(), model.may_be_given(port) && !lately_used, "{:?}", answer);
                    if answer.is_ok() {
                        model.allocated.insert(port);
                        ports.take(port, now);
                    }
                }
                Step::GiveBack { nth } => if let Some(port) = model.nth_allocated(nth) {
                    model.allocated.remove(&port);
                    ports.give_back(port, now);
                },
                Step::Release { nth, space: number, quarantine_minutes } => if let Some(port) = model.nth_allocated(nth) {
                    let quarantined_until = now.plus(Duration::from_secs(60 * quarantine_minutes));
                    let release = Release { space_id: space(number), at: now, quarantined_until };
                    model.allocated.remove(&port);
                    model.releases.insert(port, release.clone());
                    ports.release(port, release, now);
                },
                Step::Conflict { port } => {
                    model.conflicts.insert(port, now.plus(CONFLICT_MEMORY));
                    ports.mark_conflict(port, now.plus(CONFLICT_MEMORY), now);
                }
                Step::Resize { range } => {
                    model.range = RANGES[range].parse().unwrap();
                    ports.resize(model.range.clone(), now);
                }
                Step::Wait { minutes } => model.now = now.plus(Duration::from_secs(60 * minutes)),
                Step::Reread => {
                    model.forget_releases_of_allocated();
                    ports.reread(reservations(), model.rows(), now);
                }
                Step::Restart => {
                    // Only what the store keeps survives.
                    model.conflicts.clear();
                    model.forget_releases_of_allocated();
                    ports = FreePorts::new(model.range.clone(), reservations(), model.rows(), now);
                }
            }
            prop_assert_eq!(ports.counts(model.now), model.counts());
            prop_assert_eq!(proposals(&mut ports, model.free().len(), model.now), model.free());
        }
    }

    #[test]
    fn a_refusal_names_what_is_in_the_way(port in 0..PORTS) {
        let port = LOWEST + port;
        let now = Timestamp::from_seconds(1_700_000_000);
        let later = now.plus(Duration::from_secs(900));
        let release = |at: Timestamp, until| PortState::Released(Release { space_id: space(0), at, quarantined_until: until });
        let rows = vec![
            PortRow { port: 20_002, state: PortState::Allocated },
            PortRow { port: 20_003, state: release(now, later) },
            PortRow { port: 20_004, state: release(Timestamp(now.0 - 1), now) },
        ];
        let mut ports = FreePorts::new(RANGES[0].parse().unwrap(), reservations(), rows, now);
        ports.mark_conflict(20_005, later, now);
        let expected = match port {
            20_001 => Err(PortRefusal::Reserved { port, name: "database".into() }),
            20_010..=20_011 => Err(PortRefusal::Reserved { port, name: "block".into() }),
            20_002 => Err(PortRefusal::Allocated { port }),
            20_003 => Err(PortRefusal::Quarantined { port, until: later }),
            20_004 => Err(PortRefusal::RecentlyUsed { port, until: Timestamp(now.0 - 1).plus(REUSE_WAIT) }),
            20_005 => Err(PortRefusal::InConflict { port, until: later }),
            20_000..=20_011 => Ok(()),
            _ => Err(PortRefusal::NotInPool { port, range: RANGES[0].parse().unwrap() }),
        };
        prop_assert_eq!(ports.request(port, &space(1), now), expected);
    }
}
