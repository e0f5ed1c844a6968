//! The port registry: which ports of a range belong to which name.
//!
//! A name is given its ports, or they are chosen by it. How they are chosen is part of the contract, so that one file
//! comes to the same ports on every cluster, with every version, also where somebody else computes it:
//!
//! 1. The candidates are, ascending, all ports at which a run of as many ports as are asked for begins, none of them
//!    outside of the range.
//! 2. The first that is looked at is number `h mod n`, counted from 0: `n` is how many candidates there are, `h` is
//!    FNV-1a of 64 bits over the name in UTF-8.
//! 3. From there on ascending, and from the lowest on after the highest, the first is taken whose whole run is free for
//!    every transport that is asked for.
//!
//! So what is chosen depends on what is taken already. Of several names, those that are given ports come first, and then
//! those whose ports are chosen, in the order of their names: see [`resolve`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::RangeInclusive,
};

use super::{PoolName, PortSet, Protocol, Transport};

/// Longest name of an entry, in characters: that of a host name's part.
pub const MAX_NAME: usize = 63;

/// What [`is_name`] takes, for messages.
pub const NAME_RULE: &str = "use 1 to 63 small letters, digits and dashes, with a letter or digit at either end";

/// Whether an entry of a file may be called so. [`PortAllocator`] itself takes any text.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(fits) && !name.starts_with('-') && !name.ends_with('-')
}

/// Ports that belong together: a single one, or a run of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Block {
    /// First port.
    pub first: u16,
    /// Last port; equal to the first for a single one.
    pub last: u16,
    /// For which transports. A name of TCP and one of UDP may have the same ports.
    pub protocol: Protocol,
}

impl Block {
    /// Its ports.
    #[must_use]
    pub const fn ports(&self) -> RangeInclusive<u16> {
        self.first..=self.last
    }

    /// How many ports it has.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ports().count()
    }

    /// Its ports as people write them: `25080`, `25090-25099`.
    #[must_use]
    pub fn shown_ports(&self) -> String {
        Shown(&self.ports()).to_string()
    }

    /// Whether both have a port of one transport.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let transports = self.protocol.transports().iter();
        let is_shared = transports.clone().any(|transport| other.protocol.has(*transport));
        is_shared && self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for Block {
    /// `25080 (both)`, `25090-25099 (tcp)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", Shown(&self.ports()), self.protocol)
    }
}

/// A range as people write it.
struct Shown<'a>(&'a RangeInclusive<u16>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.start() == self.0.end() {
            write!(f, "{}", self.0.start())
        } else {
            write!(f, "{}-{}", self.0.start(), self.0.end())
        }
    }
}

/// Why a name does not get ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryRefusal {
    /// All that is left is too small.
    #[error("{wanted} of {range} for {name}: choose a larger range, or release a name")]
    NoRoom {
        /// Who asked.
        name: String,
        /// What was asked for.
        wanted: Run,
        /// Of which ports.
        range: Ranges,
    },
    /// Not all of them are in the range.
    #[error("{ports} is not in {range}: choose other ports for {name}")]
    OutOfRange {
        /// Who asked.
        name: String,
        /// The ports that were asked for.
        ports: String,
        /// What there is.
        range: Ranges,
    },
    /// Another name has one of them.
    #[error("{name} overlaps {other}, which has {block}: choose other ports for one of them")]
    Overlaps {
        /// Who asked.
        name: String,
        /// Who has it.
        other: String,
        /// What that one has.
        block: Block,
    },
    /// The name has others.
    #[error("{name} has {block} already: release it first, or ask for the same")]
    Differs {
        /// Who asked.
        name: String,
        /// What it has.
        block: Block,
    },
    /// No ports were asked for.
    #[error("{name} asks for no port: ask for at least one")]
    Nothing {
        /// Who asked.
        name: String,
    },
}

/// So many ports in a row, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// How many.
    pub count: u16,
    /// For which transports.
    pub protocol: Protocol,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            1 => write!(f, "no port ({}) is left", self.protocol),
            count => write!(f, "no {count} ports in a row ({}) are left", self.protocol),
        }
    }
}

/// The ports that an allocator gives out, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges(Vec<RangeInclusive<u16>>);

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("an empty range");
        }
        for (index, range) in self.0.iter().enumerate() {
            write!(f, "{}{}", if index == 0 { "" } else { ", " }, Shown(range))?;
        }
        Ok(())
    }
}

/// Gives names their ports: the same name the same ports, and no port of a transport to two names.
///
/// ```
/// let mut ports = harbor::PortAllocator::new(25_000, 25_999);
/// assert_eq!(ports.allocate("ceph-rgw")?, 25_676);
/// assert_eq!(ports.allocate("ceph-rgw")?, 25_676);
/// # Ok::<(), harbor::model::registry::RegistryRefusal>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortAllocator {
    /// Ascending, disjoint and not adjacent.
    ranges: Vec<RangeInclusive<u16>>,
    blocks: BTreeMap<String, Block>,
    /// Every port of every block, by transport.
    taken: [Bits; Transport::ALL.len()],
}

/// A bit for each port, so that thousands of names find theirs among ports that are nearly all taken.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bits(Vec<u64>);

impl Bits {
    const WORDS: usize = (1 << 16) / 64;

    fn new() -> Self {
        Self(vec![0; Self::WORDS])
    }

    /// The words that have a bit of these ports, with those bits.
    fn of(ports: RangeInclusive<u16>) -> impl Iterator<Item = (usize, u64)> {
        let (first, last) = (usize::from(*ports.start()), usize::from(*ports.end()));
        (first / 64..=last / 64).map(move |word| {
            let from = first.saturating_sub(word * 64);
            let to = (last - word * 64).min(63);
            (word, u64::MAX << from & u64::MAX >> (63 - to))
        })
    }

    fn set(&mut self, ports: RangeInclusive<u16>) {
        Self::of(ports).for_each(|(word, bits)| self.0[word] |= bits);
    }

    fn clear(&mut self, ports: RangeInclusive<u16>) {
        Self::of(ports).for_each(|(word, bits)| self.0[word] &= !bits);
    }

    fn has_any(&self, ports: RangeInclusive<u16>) -> bool {
        Self::of(ports).any(|(word, bits)| self.0[word] & bits != 0)
    }

    fn without(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word &= !other);
    }

    /// Leaves the ports at which a run of so many begins.
    fn keep_runs(&mut self, count: u16) {
        let (mut length, count) = (1, usize::from(count));
        while length < count {
            // A run is a shorter one, with as much of another one after it as it lacks.
            let more = length.min(count - length);
            let (words, bits) = (more / 64, more % 64);
            for word in 0..self.0.len() {
                let at = |word: usize| u128::from(self.0.get(word).copied().unwrap_or(0));
                let after = at(word + words) | at(word + words + 1) << 64;
                self.0[word] &= (after >> bits) as u64;
            }
            length += more;
        }
    }

    /// The first port from this one on.
    fn next(&self, from: u16) -> Option<u16> {
        let found = Self::of(from..=u16::MAX).find(|(word, bits)| self.0[*word] & bits != 0);
        let (word, bits) = found?;
        u16::try_from(word * 64 + (self.0[word] & bits).trailing_zeros() as usize).ok()
    }
}

impl PortAllocator {
    /// Over the ports from `first` to `last`; there is none when `last` is before `first`. Port 0 is none.
    #[must_use]
    pub fn new(first: u16, last: u16) -> Self {
        Self::over([first.max(1)..=last])
    }

    /// Over the ports of a pool.
    #[must_use]
    pub fn of(ports: &PortSet) -> Self {
        Self::over(ports.ranges().iter().cloned())
    }

    fn over(ranges: impl IntoIterator<Item = RangeInclusive<u16>>) -> Self {
        let ranges = ranges.into_iter().filter(|range| !range.is_empty()).collect();
        Self { ranges, blocks: BTreeMap::new(), taken: [Bits::new(), Bits::new()] }
    }

    /// The port of a name, which has it from then on, for both transports. A name that has a port keeps it, whatever
    /// its protocol.
    ///
    /// # Errors
    /// [`RegistryRefusal`] when no port is left, or the name has a block of several.
    pub fn allocate(&mut self, name: &str) -> Result<u16, RegistryRefusal> {
        match self.get(name) {
            Some(block) if block.count() == 1 => Ok(block.first),
            _ => self.choose(name, 1, Protocol::Both).map(|block| block.first),
        }
    }

    /// The same for so many ports in a row.
    ///
    /// # Errors
    /// [`RegistryRefusal`] when there is no such run, or the name has another.
    pub fn allocate_block(&mut self, name: &str, count: u16) -> Result<RangeInclusive<u16>, RegistryRefusal> {
        self.choose(name, count, Protocol::Both).map(|block| block.ports())
    }

    /// The same for the transports of a protocol alone.
    ///
    /// # Errors
    /// [`RegistryRefusal`] when there is no such run, or the name has another.
    pub fn choose(&mut self, name: &str, count: u16, protocol: Protocol) -> Result<Block, RegistryRefusal> {
        if count == 0 {
            return Err(RegistryRefusal::Nothing { name: name.into() });
        }
        if let Some(block) = self.get(name) {
            let is_same = block.count() == usize::from(count) && block.protocol == protocol;
            return if is_same { Ok(block) } else { Err(RegistryRefusal::Differs { name: name.into(), block }) };
        }
        let mut free = Bits::new();
        self.ranges.iter().for_each(|range| free.set(range.clone()));
        protocol.transports().iter().for_each(|transport| free.without(&self.taken[*transport as usize]));
        free.keep_runs(count);
        let begin = self.first_looked_at(name, count);
        let first = begin.and_then(|begin| free.next(begin).or_else(|| free.next(0)));
        let first = first.ok_or_else(|| RegistryRefusal::NoRoom {
            name: name.into(),
            wanted: Run { count, protocol },
            range: Ranges(self.ranges.clone()),
        })?;
        let block = Block { first, last: first + (count - 1), protocol };
        self.insert(name, block);
        Ok(block)
    }

    /// Number `h mod n` of the candidates; none when there are none.
    fn first_looked_at(&self, name: &str, count: u16) -> Option<u16> {
        let candidates = self.ranges.iter().filter_map(|range| {
            let last = range.end().checked_sub(count - 1)?;
            Some(*range.start()..=last)
        });
        let all = candidates.clone().map(|range| range.count() as u64).sum::<u64>();
        let mut number = usize::try_from(hash(name).checked_rem(all)?).expect("there are fewer ports");
        candidates.clone().find_map(|mut range| {
            let count = range.clone().count();
            let found = range.nth(number);
            number = number.saturating_sub(count);
            found
        })
    }

    /// Gives a name these very ports. That they are its own already is fine.
    ///
    /// # Errors
    /// [`RegistryRefusal`] when the name has others, another name has one of them, or they are not in the range.
    pub fn reserve(
        &mut self,
        name: &str,
        ports: RangeInclusive<u16>,
        protocol: Protocol,
    ) -> Result<Block, RegistryRefusal> {
        if ports.is_empty() {
            return Err(RegistryRefusal::Nothing { name: name.into() });
        }
        let wanted = Block { first: *ports.start(), last: *ports.end(), protocol };
        if let Some(block) = self.get(name) {
            return if block == wanted {
                Ok(block)
            } else {
                Err(RegistryRefusal::Differs { name: name.into(), block })
            };
        }
        if !self.ranges.iter().any(|range| range.contains(&wanted.first) && range.contains(&wanted.last)) {
            let (name, ports) = (name.into(), Shown(&ports).to_string());
            return Err(RegistryRefusal::OutOfRange { name, ports, range: Ranges(self.ranges.clone()) });
        }
        if !self.is_free(&wanted) {
            let found = self.blocks.iter().find(|(_, block)| block.overlaps(&wanted));
            let (other, block) = found.expect("a port that is taken is of a block");
            return Err(RegistryRefusal::Overlaps { name: name.into(), other: other.clone(), block: *block });
        }
        self.insert(name, wanted);
        Ok(wanted)
    }

    /// Gives a name ports that it has, whatever the range and other names: from then on nobody else gets them.
    pub fn keep(&mut self, name: &str, block: Block) {
        self.insert(name, block);
    }

    /// Takes the ports of a name back; `None` when it has none.
    pub fn release(&mut self, name: &str) -> Option<Block> {
        let block = self.blocks.remove(name)?;
        for transport in block.protocol.transports() {
            self.taken[*transport as usize].clear(block.ports());
        }
        Some(block)
    }

    /// The ports of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Block> {
        self.blocks.get(name).copied()
    }

    /// Every name with its ports, by port.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Block)> {
        let mut all = self.blocks.iter().map(|(name, block)| (name.as_str(), *block)).collect::<Vec<_>>();
        all.sort_by_key(|(name, block)| (*block, *name));
        all.into_iter()
    }

    /// Whether no name has a port of the block for a transport of it.
    #[must_use]
    pub fn is_free(&self, block: &Block) -> bool {
        let mut transports = block.protocol.transports().iter();
        !transports.any(|transport| self.taken[*transport as usize].has_any(block.ports()))
    }

    fn insert(&mut self, name: &str, block: Block) {
        for transport in block.protocol.transports() {
            self.taken[*transport as usize].set(block.ports());
        }
        self.blocks.insert(name.into(), block);
    }
}

/// FNV-1a, 64 bits.
fn hash(name: &str) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    name.bytes().fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

/// What an entry of a file asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Under which name.
    pub name: String,
    /// Which ports.
    pub ports: Wanted,
    /// For which transports.
    pub protocol: Protocol,
}

/// Which ports an entry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// These.
    Given(RangeInclusive<u16>),
    /// So many in a row, chosen by the name.
    Chosen(u16),
}

/// What a file comes to: those with given ports first, then those whose ports are chosen, each in the order of their
/// names, whatever the order they are written in. The answers are in the order of `wishes`.
pub fn resolve(ports: &mut PortAllocator, wishes: &[Wish]) -> Vec<Result<Block, RegistryRefusal>> {
    let mut order = (0..wishes.len()).collect::<Vec<_>>();
    order.sort_by_key(|index| (matches!(wishes[*index].ports, Wanted::Chosen(_)), &wishes[*index].name));
    let place = |index: usize| {
        let Wish { name, ports: wanted, protocol } = &wishes[index];
        let block = match wanted {
            Wanted::Given(given) => ports.reserve(name, given.clone(), *protocol),
            Wanted::Chosen(count) => ports.choose(name, *count, *protocol),
        };
        (index, block)
    };
    let mut placed = order.into_iter().map(place).collect::<Vec<_>>();
    placed.sort_by_key(|(index, _)| *index);
    placed.into_iter().map(|(_, block)| block).collect()
}

/// An entry with its ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Of which pool, or of which block that no pool gives out.
    pub pool: PoolName,
    /// Under which name.
    pub name: String,
    /// Its ports.
    pub block: Block,
}

/// Two claims of one topology that cannot both hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Clash {
    /// Which claim, counted from 0.
    pub claim: usize,
    /// And which one before it.
    pub other: usize,
    /// Why.
    pub reason: ClashReason,
}

/// Why two claims cannot both hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClashReason {
    /// One name of one pool has different ports in them.
    TwoPlaces,
    /// Two names have a port of one transport.
    OnePort,
}

/// Which claims of several files cannot all hold in one topology. The same claim in two files is one claim. Of many that
/// overlap each is named with one that it overlaps, not with all.
#[must_use]
pub fn clashes(claims: &[Claim]) -> Vec<Clash> {
    let mut found = BTreeSet::new();
    let mut known = BTreeMap::new();
    let mut distinct = Vec::new();
    for (claim, Claim { pool, name, block }) in claims.iter().enumerate() {
        match known.insert((pool, name), claim) {
            None => distinct.push(claim),
            Some(other) if claims[other].block == *block => {}
            Some(other) => _ = found.insert(Clash { claim, other, reason: ClashReason::TwoPlaces }),
        }
    }
    distinct.sort_by_key(|claim| claims[*claim].block);
    for transport in Transport::ALL {
        // The one so far that reaches furthest.
        let mut furthest: Option<usize> = None;
        for claim in distinct.iter().copied().filter(|claim| claims[*claim].block.protocol.has(transport)) {
            let block = &claims[claim].block;
            match furthest {
                Some(other) if claims[other].block.overlaps(block) => {
                    let (claim, other) = (claim.max(other), claim.min(other));
                    found.insert(Clash { claim, other, reason: ClashReason::OnePort });
                }
                _ => {}
            }
            if furthest.is_none_or(|other| claims[other].block.last < block.last) {
                furthest = Some(claim);
            }
        }
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(outcome: Result<Block, RegistryRefusal>) -> String {
        outcome.map_or_else(|refusal| refusal.to_string(), |block| block.to_string())
    }

    /// Also in docs/ports.md: whoever computes it elsewhere compares with these.
    #[test]
    fn names_come_to_the_ports_that_the_contract_says() {
        assert_eq!(hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(hash("foobar"), 0x8594_4171_f739_67e8);
        let mut ports = PortAllocator::new(25_000, 25_999);
        for (name, port) in [("ceph-rgw", 25_676), ("https", 25_194), ("syslog", 25_020), ("sip", 25_635)] {
            assert_eq!(ports.allocate(name), Ok(port), "{name}");
        }
        assert_eq!(ports.allocate_block("metrics", 10), Ok(25_548..=25_557));
    }

    #[test]
    fn a_name_keeps_its_ports_and_finds_the_next_free_ones() {
        let mut ports = PortAllocator::new(2000, 2003);
        let first = ports.allocate("one").unwrap();
        assert_eq!(ports.allocate("one"), Ok(first));
        // Whatever they hash to: four names fill four ports.
        let others = ["two", "three", "four"].map(|name| ports.allocate(name).unwrap());
        assert_eq!(BTreeSet::from([first, others[0], others[1], others[2]]), (2000..=2003).collect());
        let full = ports.allocate("five").unwrap_err().to_string();
        assert_eq!(full, "no port (both) is left of 2000-2003 for five: choose a larger range, or release a name");
        assert_eq!(ports.release("two").map(|block| block.first), Some(others[0]));
        assert_eq!(ports.release("two"), None);
        assert_eq!(ports.allocate("five"), Ok(others[0]), "it is the only free one");
        assert_eq!(ports.iter().map(|(_, block)| block.first).collect::<Vec<_>>(), [2000, 2001, 2002, 2003]);
    }

    #[test]
    fn an_empty_range_has_no_port() {
        for mut ports in [PortAllocator::new(2, 1), PortAllocator::new(0, 0), PortAllocator::of(&PortSet::default())] {
            let refused = ports.allocate("a").unwrap_err().to_string();
            assert_eq!(
                refused,
                "no port (both) is left of an empty range for a: choose a larger range, or release a name"
            );
        }
        assert_eq!(PortAllocator::new(0, 1).allocate("a"), Ok(1));
        assert_eq!(PortAllocator::new(65_535, 65_535).allocate("a"), Ok(65_535));
    }

    #[test]
    fn ports_are_given_once_a_transport() {
        let mut ports = PortAllocator::new(2000, 2099);
        let mut check = |name: &str, given, protocol, expected: &str| {
            assert_eq!(shown(ports.reserve(name, given, protocol)), expected, "{name}");
        };
        check("dns-tcp", 2053..=2053, Protocol::Tcp, "2053 (tcp)");
        check("dns-udp", 2053..=2053, Protocol::Udp, "2053 (udp)");
        check("dns-udp", 2053..=2053, Protocol::Udp, "2053 (udp)");
        check(
            "dns-udp",
            2053..=2054,
            Protocol::Udp,
            "dns-udp has 2053 (udp) already: release it first, or ask for the same",
        );
        check(
            "game",
            2050..=2060,
            Protocol::Udp,
            "game overlaps dns-udp, which has 2053 (udp): choose other ports for one of them",
        );
        check("game", 2099..=2100, Protocol::Udp, "2099-2100 is not in 2000-2099: choose other ports for game");
        #[expect(clippy::reversed_empty_ranges, reason = "a slip of the pen")]
        check("game", 2060..=2050, Protocol::Udp, "game asks for no port: ask for at least one");
        assert_eq!(ports.allocate("dns-tcp"), Ok(2053));
        assert_eq!(shown(ports.choose("none", 0, Protocol::Tcp)), "none asks for no port: ask for at least one");
    }

    #[test]
    fn a_block_stays_within_one_range() {
        let mut ports = PortAllocator::of(&"2000-2003, 2010-2012".parse().unwrap());
        let first = shown(ports.choose("a", 3, Protocol::Udp));
        let second = shown(ports.choose("b", 3, Protocol::Udp));
        assert!(["2000-2002 (udp)", "2001-2003 (udp)", "2010-2012 (udp)"].contains(&&*first), "{first}");
        assert_ne!(first, second);
        assert_eq!(
            shown(ports.choose("c", 5, Protocol::Udp)),
            "no 5 ports in a row (udp) are left of 2000-2003, 2010-2012 for c: choose a larger range, or release a name"
        );
    }

    #[test]
    fn given_ports_come_before_chosen_ones() {
        let wish = |name: &str, ports| Wish { name: name.into(), ports, protocol: Protocol::Both };
        let taken = PortAllocator::new(2000, 2009).allocate("a").unwrap();
        let wishes = [wish("a", Wanted::Chosen(1)), wish("z", Wanted::Given(taken..=taken))];
        let placed = resolve(&mut PortAllocator::new(2000, 2009), &wishes);
        assert_eq!(placed[1].as_ref().unwrap().first, taken);
        assert_ne!(placed[0].as_ref().unwrap().first, taken);
    }

    #[test]
    fn claims_of_one_topology_are_compared() {
        let claims = |written: &[(&str, &str, u16, u16, Protocol)]| {
            let claim = |(pool, name, first, last, protocol): &(&str, &str, u16, u16, Protocol)| Claim {
                pool: PoolName::new(pool).unwrap(),
                name: (*name).into(),
                block: Block { first: *first, last: *last, protocol: *protocol },
            };
            let found = clashes(&written.iter().map(claim).collect::<Vec<_>>());
            found.into_iter().map(|clash| (clash.claim, clash.other, clash.reason)).collect::<Vec<_>>()
        };
        use ClashReason::{OnePort, TwoPlaces};
        use Protocol::{Both, Tcp, Udp};
        assert_eq!(claims(&[("a", "x", 1, 1, Tcp), ("a", "x", 1, 1, Tcp)]), []);
        assert_eq!(claims(&[("a", "x", 1, 1, Tcp), ("a", "y", 1, 1, Udp)]), []);
        assert_eq!(claims(&[("a", "x", 1, 1, Tcp), ("a", "x", 2, 2, Tcp)]), [(1, 0, TwoPlaces)]);
        assert_eq!(claims(&[("a", "x", 1, 1, Tcp), ("a", "x", 1, 1, Both)]), [(1, 0, TwoPlaces)]);
        assert_eq!(claims(&[("a", "x", 1, 1, Tcp), ("b", "x", 1, 1, Both)]), [(1, 0, OnePort)]);
        assert_eq!(
            claims(&[("a", "x", 5, 5, Both), ("a", "y", 1, 9, Both), ("a", "z", 7, 8, Udp), ("a", "u", 10, 10, Udp)]),
            [(1, 0, OnePort), (2, 1, OnePort)]
        );
    }

    #[test]
    fn names_are_parts_of_host_names() {
        for name in ["a", "ceph-rgw", "9p", &"x".repeat(63)] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "-a", "a-", "A", "a_b", "a.b", "ä", &"x".repeat(64)] {
            assert!(!is_name(name), "{name}");
        }
    }
}
