//! What has to change so that a pool's reservations are what somebody wants.
//!
//! Pure and deterministic: the same wishes come to the same plan whatever their order, and a plan that was carried out
//! leaves nothing to do. Names that ask for no port keep the ports that they have.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    PoolName, PortSet, Protocol,
    allocation::Reservation,
    registry::{self, Block, NAME_RULE, PortAllocator, RegistryRefusal, Wanted, Wish},
};

/// Most reservations of a pool.
pub const MAX_RESERVATIONS: usize = 4096;

/// A pool as it is.
#[derive(Debug, Clone)]
pub struct Present<'a> {
    /// Which.
    pub pool: &'a PoolName,
    /// The ports it gives out.
    pub range: &'a PortSet,
    /// What is held back.
    pub reservations: &'a [Reservation],
    /// The ports that service instances have.
    pub allocated: &'a BTreeSet<u16>,
}

/// How far a plan may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leave {
    /// Reservations of other names are released.
    pub prune: bool,
    /// A port that a service instance has may be asked for: it is held back once that one is gone.
    pub when_free: bool,
}

/// What becomes of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Of which pool.
    pub pool: PoolName,
    /// Which.
    pub name: String,
    /// What it has; none: nothing.
    pub before: Option<Block>,
    /// What it is to have; none: it is released.
    pub after: Option<Block>,
    /// The first port that its name comes to, where a service instance is in the way there.
    pub moved_from: Option<u16>,
    /// Those of its ports that service instances have still.
    pub allocated: Vec<u16>,
}

/// What [`Step::change`] can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// A new name.
    Add,
    /// It gets other ports, or others transports.
    Alter,
    /// It is released.
    Remove,
    /// Nothing.
    Keep,
}

impl Change {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Alter => "change",
            Self::Remove => "remove",
            Self::Keep => "keep",
        }
    }
}

impl Step {
    /// What it comes to.
    #[must_use]
    pub fn change(&self) -> Change {
        match (self.before, self.after) {
            (None, _) => Change::Add,
            (Some(_), None) => Change::Remove,
            (Some(before), Some(after)) if before == after => Change::Keep,
            (Some(_), Some(_)) => Change::Alter,
        }
    }

    /// The reservation that it makes.
    #[must_use]
    pub fn made(&self) -> Option<Reservation> {
        let Block { first: first_port, last: last_port, protocol } = self.after?;
        Some(Reservation { pool: self.pool.clone(), name: self.name.clone(), first_port, last_port, protocol })
    }
}

/// Why a wish cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanRefusal {
    /// It is called otherwise.
    #[error("{0:?} is no name for ports: {NAME_RULE}")]
    BadName(String),
    /// Two wishes have one name.
    #[error("{0} is asked for twice: leave one out")]
    Twice(String),
    /// As the registry says.
    #[error(transparent)]
    Registry(#[from] RegistryRefusal),
    /// A service instance has one of the ports.
    #[error(
        "port {port} for {name} belongs to a service instance: choose another one, or hold it back once that one is gone \
         by --when-free"
    )]
    Allocated {
        /// Who asks.
        name: String,
        /// The first such port.
        port: u16,
    },
    /// There would be too many.
    #[error("the pool {pool} would have {count} reservations: {MAX_RESERVATIONS} are the most")]
    TooMany {
        /// Which pool.
        pool: PoolName,
        /// How many it would have.
        count: usize,
    },
}

impl PlanRefusal {
    /// Whether the wish itself is wrong, whatever there is.
    #[must_use]
    pub const fn is_about_the_wish(&self) -> bool {
        matches!(
            self,
            Self::BadName(_)
                | Self::Twice(_)
                | Self::Registry(RegistryRefusal::OutOfRange { .. } | RegistryRefusal::Nothing { .. })
        )
    }
}

/// What has to be done in a pool.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// What becomes of each name that was asked for or is released, by name.
    pub steps: Vec<Step>,
    /// How many other names stay as they are.
    pub others: usize,
}

/// What has to be done in a pool so that its reservations are what was wished for.
///
/// # Errors
/// All that cannot be had; nothing is to be done then.
pub fn plan(present: &Present<'_>, wishes: &[Wish], leave: Leave) -> Result<Plan, Vec<PlanRefusal>> {
    let mut wanted = BTreeMap::new();
    let mut refusals = Vec::new();
    for wish in wishes {
        if !registry::is_name(&wish.name) {
            refusals.push(PlanRefusal::BadName(wish.name.clone()));
        } else if wanted.insert(wish.name.as_str(), wish).is_some() {
            refusals.push(PlanRefusal::Twice(wish.name.clone()));
        }
    }
    let before = present.reservations.iter().map(|held| (held.name.as_str(), block(held))).collect::<BTreeMap<_, _>>();
    let others = before.iter().filter(|(name, _)| !wanted.contains_key(**name));
    let mut places = Places::new(present);
    let (mut steps, mut kept) = (Vec::with_capacity(wishes.len()), 0);
    let step = |name: &str, before, after| Step {
        pool: present.pool.clone(),
        name: name.to_owned(),
        before,
        after,
        moved_from: None,
        allocated: Vec::new(),
    };
    for (name, block) in others {
        if leave.prune {
            steps.push(step(name, Some(*block), None));
        } else {
            places.keep(name, *block);
            kept += 1;
        }
    }
    // Who has a right to certain ports comes first: those that name them, then those that have them.
    let mut order = Vec::with_capacity(wanted.len());
    for wish in wanted.into_values() {
        let had = before.get(&*wish.name).copied();
        order.push((Claim::of(wish, had), had, wish));
    }
    order.sort_by_key(|(claim, had, wish)| (claim.rank(*had), &wish.name));
    for (claim, had, wish) in order {
        match places.place(wish, claim, had, leave.when_free) {
            Ok(placed) => steps.push(Step {
                moved_from: placed.moved_from,
                allocated: present.allocated.range(placed.block.ports()).copied().collect(),
                ..step(&wish.name, had, Some(placed.block))
            }),
            Err(refusal) => refusals.push(refusal),
        }
    }
    let count = kept + steps.iter().filter(|step| step.after.is_some()).count();
    if count > MAX_RESERVATIONS {
        refusals.push(PlanRefusal::TooMany { pool: present.pool.clone(), count });
    }
    steps.sort_by(|a, b| a.name.cmp(&b.name));
    if refusals.is_empty() { Ok(Plan { steps, others: kept }) } else { Err(refusals) }
}

/// The ports that a reservation has.
#[must_use]
pub fn block(held: &Reservation) -> Block {
    Block { first: held.first_port, last: held.last_port, protocol: held.protocol }
}

/// What a wish comes to.
#[derive(Debug, Clone, Copy)]
enum Claim {
    /// These ports.
    Given(Block),
    /// So many; those that the name has already, if it has as many.
    Chosen { count: u16, had: Option<Block> },
}

impl Claim {
    fn of(wish: &Wish, had: Option<Block>) -> Self {
        let protocol = wish.protocol;
        match &wish.ports {
            Wanted::Given(ports) => Self::Given(Block { first: *ports.start(), last: *ports.end(), protocol }),
            Wanted::Chosen(count) => {
                let had = had.filter(|had| had.count() == usize::from(*count));
                Self::Chosen { count: *count, had: had.map(|had| Block { protocol, ..had }) }
            }
        }
    }

    fn rank(self, before: Option<Block>) -> u8 {
        match self {
            Self::Given(_) => 0,
            Self::Chosen { had: Some(had), .. } if before == Some(had) => 1,
            Self::Chosen { had: Some(_), .. } => 2,
            Self::Chosen { had: None, .. } => 3,
        }
    }
}

struct Placed {
    block: Block,
    moved_from: Option<u16>,
}

/// The ports of a pool as a plan goes on.
struct Places<'a> {
    /// As the contract of the registry has them.
    ports: PortAllocator,
    /// The same where all that is allocated is taken.
    unallocated: PortAllocator,
    allocated: &'a BTreeSet<u16>,
}

impl<'a> Places<'a> {
    fn new(present: &Present<'a>) -> Self {
        let ports = PortAllocator::of(present.range);
        let mut unallocated = ports.clone();
        for port in present.allocated {
            // No name of a reservation has a space.
            let block = Block { first: *port, last: *port, protocol: Protocol::Both };
            unallocated.keep(&format!("service instance at {port}"), block);
        }
        Self { ports, unallocated, allocated: present.allocated }
    }

    fn keep(&mut self, name: &str, block: Block) {
        self.ports.keep(name, block);
        self.unallocated.keep(name, block);
    }

    fn place(&mut self, wish: &Wish, claim: Claim, had: Option<Block>, when_free: bool) -> Result<Placed, PlanRefusal> {
        let name = &*wish.name;
        let is_had = |port: &u16| had.is_some_and(|had| had.ports().contains(port));
        let mut moved_from = None;
        let block = match claim {
            // Ports that are given must be the pool's, unless the name has these very ones since before its range shrank.
            Claim::Given(block) if had == Some(block) && self.ports.is_free(&block) => block,
            Claim::Given(block) => {
                let block = self.ports.reserve(name, block.ports(), block.protocol)?;
                let newly = self.allocated.range(block.ports()).find(|port| !is_had(port));
                if let Some(port) = newly.filter(|_| !when_free) {
                    self.ports.release(name);
                    return Err(PlanRefusal::Allocated { name: name.into(), port: *port });
                }
                block
            }
            Claim::Chosen { had: Some(had), .. } if self.ports.reserve(name, had.ports(), had.protocol).is_ok() => had,
            Claim::Chosen { count, .. } => {
                let first = self.ports.choose(name, count, wish.protocol)?;
                if self.allocated.range(first.ports()).next().is_none() {
                    first
                } else {
                    moved_from = Some(first.first);
                    self.ports.release(name);
                    self.unallocated.choose(name, count, wish.protocol)?
                }
            }
        };
        self.keep(name, block);
        Ok(Placed { block, moved_from })
    }
}

#[cfg(test)]
mod tests;
