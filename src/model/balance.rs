//! How a listener chooses among its backends.

use std::net::{IpAddr, SocketAddr};

use super::Transport;

/// A way to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Balance {
    /// Each in turn, exact over all workers.
    RoundRobin,
    /// The one with the fewest open connections.
    LeastConnections,
    /// Any.
    Random,
    /// By the client's address: the same client gets the same backend while the set stays.
    SourceHash,
    /// The first announced while it lives, then the next: the original's rule for UDP, which it called `fifo`.
    Failover,
}

impl Balance {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::RoundRobin, Self::LeastConnections, Self::Random, Self::SourceHash, Self::Failover];

    /// The word used in parameters and rows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::LeastConnections => "least_connections",
            Self::Random => "random",
            Self::SourceHash => "source_hash",
            Self::Failover => "failover",
        }
    }

    /// The value that `word` names; `fifo` is the original's name of [`Balance::Failover`].
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        if word == "fifo" {
            return Some(Self::Failover);
        }
        Self::ALL.into_iter().find(|value| value.as_str() == word)
    }

    /// What holds where a user has set nothing: round robin for TCP, the first announced for UDP, as the original did.
    #[must_use]
    pub const fn default_for(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::RoundRobin,
            Transport::Udp => Self::Failover,
        }
    }
}

/// What a choice needs to know of one backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Where it is: a backend that was tried already is recognised by it.
    pub address: SocketAddr,
    /// Open connections or sessions, over all workers.
    pub open: u32,
    /// Whether it failed a moment ago and is passed over while there are others.
    pub aside: bool,
}

/// What a choice depends on besides the backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// The client's address.
    pub client: IpAddr,
    /// The listener's next number: every flow takes one, whichever worker has it.
    pub ticket: u64,
    /// Any number.
    pub random: u64,
}

/// The place in `candidates`, which stand in the order of their announcement, of the backend that a flow goes to.
///
/// Those in `tried` are out. Those put aside are out as long as others are left; the last ones are tried all the same.
#[must_use]
pub fn choose(balance: Balance, candidates: &[Candidate], tried: &[SocketAddr], draw: Draw) -> Option<usize> {
    let untried = |candidate: &Candidate| !tried.contains(&candidate.address);
    let all_aside = candidates.iter().filter(|candidate| untried(candidate)).all(|candidate| candidate.aside);
    let usable = || {
        let wanted = move |(_, candidate): &(usize, &Candidate)| untried(candidate) && (all_aside || !candidate.aside);
        candidates.iter().enumerate().filter(wanted)
    };
    let count = usable().count();
    if count == 0 {
        return None;
    }
    let turn = usize::try_from(draw.ticket % count as u64).expect("less than a count in memory");
    let chosen = match balance {
        Balance::RoundRobin => usable().nth(turn),
        // Among equals each in turn: otherwise the first would get every flow of an idle service instance.
        Balance::LeastConnections => usable()
            .enumerate()
            .min_by_key(|(place, (_, candidate))| (candidate.open, (place + count - turn) % count))
            .map(|(_, candidate)| candidate),
        Balance::Random => {
            let place = (u128::from(draw.random) * count as u128) >> 64;
            usable().nth(usize::try_from(place).expect("less than a count in memory"))
        }
        // Rendezvous hashing: a backend that goes takes only its own clients along, on every node the same way.
        Balance::SourceHash => {
            let client = draw.client.to_canonical();
            usable().max_by_key(|(_, candidate)| affinity(client, candidate.address))
        }
        Balance::Failover => usable().next(),
    };
    chosen.map(|(place, _)| place)
}

/// How much `client` wants `backend`: a fixed function, so that all nodes and versions agree.
fn affinity(client: IpAddr, backend: SocketAddr) -> u64 {
    let client = hash_address(0, client);
    mix(hash_address(client, backend.ip()) ^ u64::from(backend.port()))
}

fn hash_address(seed: u64, address: IpAddr) -> u64 {
    let bits = match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    let (high, low) = ((bits >> 64) as u64, bits as u64);
    mix(mix(seed ^ high) ^ low)
}

/// The finalizer of `SplitMix64`: every bit of the input reaches every bit of the output.
const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, number], 4100))
    }

    /// One backend each, with its open flows and whether it is put aside.
    fn backends(open: &[(u32, bool)]) -> Vec<Candidate> {
        let candidate = |(place, (open, aside)): (usize, &(u32, bool))| Candidate {
            address: address(u8::try_from(place).unwrap()),
            open: *open,
            aside: *aside,
        };
        open.iter().enumerate().map(candidate).collect()
    }

    fn draw(client: u32, ticket: u64, random: u64) -> Draw {
        Draw { client: IpAddr::from(client.to_be_bytes()), ticket, random }
    }

    const UP: (u32, bool) = (0, false);
    const ASIDE: (u32, bool) = (0, true);

    #[test]
    fn no_backend_is_chosen_when_there_is_none_or_all_were_tried() {
        for balance in Balance::ALL {
            assert_eq!(choose(balance, &[], &[], draw(1, 0, 0)), None, "{balance:?}");
            let two = backends(&[UP, ASIDE]);
            assert_eq!(choose(balance, &two, &[address(0), address(1)], draw(1, 0, 0)), None, "{balance:?}");
        }
    }

    #[test]
    fn those_put_aside_are_chosen_only_when_no_others_are_left() {
        for balance in Balance::ALL {
            for number in 0..50 {
                let draw = draw(number, u64::from(number), mix(u64::from(number)));
                assert_eq!(choose(balance, &backends(&[ASIDE, UP, ASIDE]), &[], draw), Some(1), "{balance:?}");
                let left = choose(balance, &backends(&[ASIDE, UP, ASIDE]), &[address(1)], draw);
                assert!(matches!(left, Some(0 | 2)), "{balance:?} {left:?}");
                assert!(choose(balance, &backends(&[ASIDE, ASIDE]), &[], draw).is_some(), "{balance:?}");
            }
        }
    }

    #[test]
    fn round_robin_gives_each_its_turn() {
        let chosen = (0..6).map(|ticket| choose(Balance::RoundRobin, &backends(&[UP; 3]), &[], draw(1, ticket, 0)));
        assert_eq!(chosen.map(Option::unwrap).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn least_connections_takes_the_emptiest_and_equals_in_turn() {
        let check = |open: &[(u32, bool)], ticket, expected| {
            let chosen = choose(Balance::LeastConnections, &backends(open), &[], draw(1, ticket, 0));
            assert_eq!(chosen, Some(expected), "{open:?} {ticket}");
        };
        check(&[(3, false), (1, false), (2, false)], 0, 1);
        check(&[(3, false), (1, true), (2, false)], 0, 2);
        check(&[(1, false), (1, false), (2, false)], 0, 0);
        check(&[(1, false), (1, false), (2, false)], 1, 1);
        check(&[(1, false), (1, false), (2, false)], 2, 0);
    }

    #[test]
    fn random_reaches_everyone_evenly() {
        let mut counts = [0_u32; 3];
        for number in 0..3000 {
            counts[choose(Balance::Random, &backends(&[UP; 3]), &[], draw(1, 0, mix(number))).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
        assert_eq!(choose(Balance::Random, &backends(&[UP; 3]), &[], draw(1, 0, u64::MAX)), Some(2));
    }

    #[test]
    fn source_hash_moves_only_the_clients_of_the_backend_that_went() {
        let all = backends(&[UP; 5]);
        let without_two = all.iter().copied().filter(|candidate| candidate.address != address(2)).collect::<Vec<_>>();
        let mut counts = [0_u32; 5];
        for client in 0..5000 {
            let before = choose(Balance::SourceHash, &all, &[], draw(client, u64::from(client), 7)).unwrap();
            counts[before] += 1;
            let after = choose(Balance::SourceHash, &without_two, &[], draw(client, 0, 9)).unwrap();
            if before != 2 {
                assert_eq!(without_two[after].address, all[before].address, "client {client} moved");
            }
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    #[test]
    fn source_hash_is_a_fixed_function_of_addresses() {
        let mut reversed = backends(&[UP; 5]);
        reversed.reverse();
        for client in 0..100 {
            let there = choose(Balance::SourceHash, &backends(&[UP; 5]), &[], draw(client, 0, 0)).unwrap();
            let here = choose(Balance::SourceHash, &reversed, &[], draw(client, 0, 0)).unwrap();
            assert_eq!(there, 4 - here, "the order of the set does not matter");
        }
        let mapped = Draw { client: "::ffff:10.1.2.3".parse().unwrap(), ticket: 0, random: 0 };
        let plain = Draw { client: "10.1.2.3".parse().unwrap(), ..mapped };
        let choice = |draw| choose(Balance::SourceHash, &backends(&[UP; 5]), &[], draw);
        assert_eq!(choice(mapped), choice(plain));
        assert_eq!(
            affinity("10.1.2.3".parse().unwrap(), address(1)),
            0x5d5b_ff5f_daa7_f101,
            "nodes of two versions agree"
        );
    }

    #[test]
    fn failover_takes_the_first_that_works() {
        assert_eq!(choose(Balance::Failover, &backends(&[(9, false), UP]), &[], draw(1, 1, 1)), Some(0));
        assert_eq!(choose(Balance::Failover, &backends(&[ASIDE, UP]), &[], draw(1, 1, 1)), Some(1));
        assert_eq!(choose(Balance::Failover, &backends(&[UP, UP]), &[address(0)], draw(1, 1, 1)), Some(1));
    }
}
