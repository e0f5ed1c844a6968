//! The port registry under any history: never one port of a transport under two names; and a file comes to the same ports
//! however it is written.

use std::{collections::BTreeMap, ops::RangeInclusive};

use harbor::{
    PortAllocator,
    model::{
        PortSet, Protocol, Transport,
        registry::{Block, Wanted, Wish, resolve},
    },
};
use proptest::prelude::*;

const RANGE: &str = "20000-20009, 20020-20024, 20030";

#[derive(Debug, Clone)]
enum Step {
    Choose { name: u8, count: u16, protocol: Protocol },
    Reserve { name: u8, ports: RangeInclusive<u16>, protocol: Protocol },
    Release { name: u8 },
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop::sample::select(Protocol::ALL.to_vec())
}

/// Ports inside of [`RANGE`], at its edges, and a little beyond.
fn ports() -> impl Strategy<Value = RangeInclusive<u16>> {
    (19_998..20_033_u16, 0..4_u16).prop_map(|(first, more)| first..=first + more)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..12_u8, 0..5_u16, protocol())
            .prop_map(|(name, count, protocol)| Step::Choose { name, count, protocol }),
        4 => (0..12_u8, ports(), protocol())
            .prop_map(|(name, ports, protocol)| Step::Reserve { name, ports, protocol }),
        2 => (0..12_u8).prop_map(|name| Step::Release { name }),
    ]
}

fn wishes() -> impl Strategy<Value = Vec<Wish>> {
    let wanted = prop_oneof![ports().prop_map(Wanted::Given), (1..4_u16).prop_map(Wanted::Chosen)];
    let wish = ("[a-z]{1,2}", wanted, protocol()).prop_map(|(name, ports, protocol)| Wish { name, ports, protocol });
    prop::collection::vec(wish, 0..16).prop_map(|mut wishes| {
        wishes.sort_by(|a, b| a.name.cmp(&b.name));
        wishes.dedup_by(|a, b| a.name == b.name);
        wishes
    })
}

/// Whose each port of each transport is; fails when one is two names'.
fn owners(ports: &PortAllocator) -> BTreeMap<(Transport, u16), String> {
    let range: PortSet = RANGE.parse().unwrap();
    let mut owners = BTreeMap::new();
    for (name, block) in ports.iter() {
        for (transport, port) in
            block.protocol.transports().iter().flat_map(|transport| block.ports().map(move |port| (*transport, port)))
        {
            assert!(range.contains(port), "{name} has {block}");
            let other = owners.insert((transport, port), name.to_owned());
            assert_eq!(other, None, "{name} has {block}");
        }
    }
    owners
}

proptest! {
    #[test]
    fn no_port_of_a_transport_is_two_names(steps in prop::collection::vec(step(), 0..60)) {
        let mut ports = PortAllocator::of(&RANGE.parse().unwrap());
        for step in steps {
            let before = owners(&ports);
            let is_refused = match &step {
                Step::Choose { name, count, protocol } => {
                    let outcome = ports.choose(&name.to_string(), *count, *protocol);
                    prop_assert_eq!(&ports.choose(&name.to_string(), *count, *protocol), &outcome, "asked again");
                    if let Ok(block) = outcome {
                        prop_assert_eq!((block.count(), block.protocol), (usize::from(*count), *protocol));
                    }
                    outcome.is_err()
                }
                Step::Reserve { name, ports: wanted, protocol } => {
                    let outcome = ports.reserve(&name.to_string(), wanted.clone(), *protocol);
                    prop_assert_eq!(&ports.reserve(&name.to_string(), wanted.clone(), *protocol), &outcome, "again");
                    if let Ok(block) = outcome {
                        let given = Block { first: *wanted.start(), last: *wanted.end(), protocol: *protocol };
                        prop_assert_eq!(block, given);
                    }
                    outcome.is_err()
                }
                Step::Release { name } => {
                    let released = ports.release(&name.to_string());
                    prop_assert!(ports.get(&name.to_string()).is_none());
                    released.is_none()
                }
            };
            let after = owners(&ports);
            if is_refused {
                prop_assert_eq!(before, after, "a refusal changes nothing");
            }
        }
    }

    #[test]
    fn a_run_is_found_when_there_is_one(given in prop::collection::vec(ports(), 0..10), count in 1..5_u16) {
        let mut ports = PortAllocator::of(&RANGE.parse().unwrap());
        for (index, given) in given.into_iter().enumerate() {
            // One that is refused is not there.
            let _ = ports.reserve(&index.to_string(), given, Protocol::Both);
        }
        let (owners, range) = (owners(&ports), RANGE.parse::<PortSet>().unwrap());
        let is_free = |port: u16| !owners.contains_key(&(Transport::Udp, port));
        let fits = |range: &RangeInclusive<u16>, first: u16| {
            (first..first + count).all(|port| range.contains(&port) && is_free(port))
        };
        let exists = range.ranges().iter().any(|range| range.clone().any(|first| fits(range, first)));
        prop_assert_eq!(ports.choose("new", count, Protocol::Udp).is_ok(), exists);
    }

    /// As docs/ports.md has it, port by port.
    #[test]
    fn a_name_comes_to_the_port_that_the_contract_says(
        name in "[a-z]{1,4}",
        count in 1..200_u16,
        protocol in protocol(),
        given in prop::collection::vec((19_900..21_100_u16, 0..150_u16, protocol()), 0..40),
    ) {
        let range = "20000-20127, 20129-20130, 20300-20950, 65400-65535".parse::<PortSet>().unwrap();
        let mut ports = PortAllocator::of(&range);
        for (index, (first, more, protocol)) in given.into_iter().enumerate() {
            // Some of them outside, and one over another.
            ports.keep(&index.to_string(), Block { first, last: first + more, protocol });
        }
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let runs = range.ranges().iter().flat_map(|range| range.clone().filter(|first| range.end() - first >= count - 1));
        let runs = runs.map(|first| Block { first, last: first + (count - 1), protocol }).collect::<Vec<_>>();
        let begin = hash.checked_rem(runs.len() as u64).unwrap_or(0) as usize;
        let is_free = |wanted: &&Block| ports.iter().all(|(_, block)| !block.overlaps(wanted));
        let expected = runs[begin..].iter().chain(&runs[..begin]).find(is_free).copied();
        prop_assert_eq!(ports.choose(&name, count, protocol).ok(), expected);
    }

    #[test]
    fn a_file_comes_to_the_same_ports_in_any_order(wishes in wishes(), seed in any::<u64>()) {
        let place = |wishes: &[Wish]| {
            let mut ports = PortAllocator::of(&RANGE.parse().unwrap());
            let placed = resolve(&mut ports, wishes);
            let by_name = wishes.iter().map(|wish| wish.name.clone()).zip(placed).collect::<BTreeMap<_, _>>();
            // Read once more over what it came to, it is the same.
            for (wish, again) in wishes.iter().zip(resolve(&mut ports, wishes)) {
                assert_eq!(by_name[&wish.name].is_ok(), again.is_ok());
            }
            owners(&ports);
            by_name
        };
        let mut shuffled = wishes.clone();
        fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
        prop_assert_eq!(place(&wishes), place(&shuffled));
    }
}
