//! What every port of every pool is, a page at a time.
//!
//! Ports in memory say what there is, as they know what no row tells: what is free, and what something else on the machine
//! has. Whose a port is, the store says, for the ports of a page alone.

use std::ops::RangeInclusive;

use super::{Control, PoolUsage};
use crate::{
    model::{
        PoolName, PortSet, Protocol, Timestamp,
        allocation::{PortUse, Release, Reservation},
        service_instance::ServiceInstance,
    },
    store,
};

/// Most entries of a page.
pub const MAX_PAGE: usize = 5000;

/// How many ports of service instances are asked of the store at a time.
const BATCH: usize = 1000;

/// Which ports are asked for: those that fit all that is said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortQuery {
    /// Of this pool.
    pub pool: Option<PoolName>,
    /// In this state.
    pub state: Option<StateWord>,
    /// Of this protocol.
    pub protocol: Option<Protocol>,
    /// Of this organization.
    pub organization: Option<String>,
    /// Of this space, or last of it.
    pub space: Option<String>,
    /// Of this service instance.
    pub service_instance: Option<String>,
    /// Among these.
    pub ports: Option<RangeInclusive<u16>>,
    /// With this in the name of the service instance or the reservation.
    pub name: Option<String>,
    /// After this one.
    pub after: Option<(PoolName, u16)>,
    /// So many; at most [`MAX_PAGE`]. A port is told whole: it may be a few more.
    pub limit: usize,
    /// Whether to tell which ports are free.
    pub free: bool,
}

/// What a listed port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateWord {
    /// It belongs to a service instance.
    Allocated,
    /// It is held back under a name.
    Reserved,
    /// It was freed a short while ago.
    Quarantined,
    /// Something else on the machine has it.
    InConflict,
}

impl StateWord {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Allocated, Self::Reserved, Self::Quarantined, Self::InConflict];

    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allocated => "allocated",
            Self::Reserved => "reserved",
            Self::Quarantined => "quarantined",
            Self::InConflict => "in_conflict",
        }
    }

    /// The state of a word.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// A page of ports, by pool and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPage {
    /// All pools, or the one that was asked for; only with the first page.
    pub pools: Vec<ListedPool>,
    /// The ports.
    pub ports: Vec<ListedPort>,
    /// After which the next page begins; none: this is the last.
    pub next: Option<(PoolName, u16)>,
}

/// How a pool is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedPool {
    /// How many ports are what.
    pub usage: PoolUsage,
    /// Which ones can be given out at once, where that was asked for.
    pub free: Option<PortSet>,
}

/// A port, or a run of them, that is not free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedPort {
    /// Of which pool.
    pub pool: PoolName,
    /// Which.
    pub port: u16,
    /// What it is.
    pub is: ListedAs,
}

/// What a listed port is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListedAs {
    /// This service instance has it.
    Allocated(Box<ServiceInstance>),
    /// It is the first of these that are held back.
    Reserved {
        /// Under which name, up to which port, for what.
        reservation: Reservation,
        /// Who has done that, and when, as far as the history goes back.
        made: Option<(String, Timestamp)>,
    },
    /// It rests.
    Quarantined(Release),
    /// Something else on the machine has it, as far as this node knows; it is tried again then.
    InConflict(Timestamp),
}

/// Why ports are not told.
#[derive(Debug, thiserror::Error)]
pub enum ListRefusal {
    /// There is no such pool.
    #[error("there is no pool {0:?}: `harbor ports list` ends with all of them")]
    UnknownPool(String),
    /// The store is away.
    #[error("the store is away: try again in a few seconds")]
    Fault(#[from] store::Fault),
}

impl Control {
    /// A page of what the ports of all pools are, also of those that no node serves.
    ///
    /// # Errors
    /// [`ListRefusal`].
    pub async fn list_ports(&self, mut query: PortQuery) -> Result<PortPage, ListRefusal> {
        query.limit = query.limit.clamp(1, MAX_PAGE);
        let facts = self.facts();
        if let Some(unknown) = query.pool.as_ref().filter(|name| !facts.pools.contains_key(*name)) {
            return Err(ListRefusal::UnknownPool(unknown.to_string()));
        }
        let mut page = PortPage { pools: Vec::new(), ports: Vec::new(), next: None };
        if query.after.is_none() {
            page.pools = self.listed_pools(&query).await?;
        }
        if let Some(id) = &query.service_instance {
            // It has one port, which the directory knows.
            let directory = self.directory();
            let Some(entry) = directory.borrow().instance(id).cloned() else { return Ok(page) };
            if query.pool.as_ref().is_some_and(|pool| *pool != entry.pool)
                || query.ports.as_ref().is_some_and(|ports| !ports.contains(&entry.port))
            {
                return Ok(page);
            }
            (query.pool, query.ports) = (Some(entry.pool.clone()), Some(entry.port..=entry.port));
        }
        for pool in facts.pools.keys() {
            let is_done = query.after.as_ref().is_some_and(|(last, _)| pool < last);
            if is_done || query.pool.as_ref().is_some_and(|only| only != pool) {
                continue;
            }
            if !self.list_pool(pool, &query, &mut page).await? {
                break;
            }
        }
        Ok(page)
    }

    async fn listed_pools(&self, query: &PortQuery) -> Result<Vec<ListedPool>, ListRefusal> {
        let mut pools = Vec::new();
        for usage in self.all_pools().await {
            if query.pool.as_ref().is_some_and(|only| *only != usage.name) {
                continue;
            }
            let free = match query.free {
                true => Some(self.free_ports(&usage).await?),
                false => None,
            };
            pools.push(ListedPool { usage, free });
        }
        Ok(pools)
    }

    async fn free_ports(&self, usage: &PoolUsage) -> Result<PortSet, ListRefusal> {
        // One that is retired gives none out.
        if usage.retired {
            return Ok(PortSet::default());
        }
        let uses = self.ports.uses(&usage.name, 0..=u16::MAX, self.clock.wall(), |_| false).await?;
        let free = uses.into_iter().filter(|(_, is)| *is == PortUse::Free).map(|(port, _)| port..=port);
        Ok(PortSet::from_ranges(free).expect("a pool has no other ports"))
    }

    /// Adds what fits of a pool to the page; `false` when the page is full.
    async fn list_pool(&self, pool: &PoolName, query: &PortQuery, page: &mut PortPage) -> Result<bool, ListRefusal> {
        let after = query.after.as_ref().filter(|(last, _)| last == pool).map(|(_, port)| *port);
        let asked = query.ports.clone().unwrap_or(0..=u16::MAX);
        let mut reserved = self.listed_reservations(pool, query, after, &asked).await?.into_iter().peekable();
        let mut next = match after {
            None => Some(*asked.start()),
            Some(last) => last.checked_add(1).map(|first| first.max(*asked.start())),
        };
        while let Some(first) = next.filter(|first| first <= asked.end()) {
            // One more shows whether there is another page.
            let room = query.limit.saturating_sub(page.ports.len()) + 1;
            let room = if query.is_narrow() { BATCH } else { room.min(BATCH) };
            let (ports, last) = self.listed_batch(pool, query, first..=*asked.end(), room).await?;
            for listed in ports {
                while let Some(earlier) = reserved.next_if(|earlier| earlier.port <= listed.port) {
                    page.ports.push(earlier);
                }
                page.ports.push(listed);
            }
            while let Some(earlier) = reserved.next_if(|earlier| earlier.port <= last) {
                page.ports.push(earlier);
            }
            next = last.checked_add(1);
            if fill(page, query.limit) {
                return Ok(false);
            }
        }
        page.ports.extend(reserved);
        Ok(!fill(page, query.limit))
    }

    /// What fits among the first of `ports`, but for reservations, and the last port that was looked at. Looks at so many that
    /// are not free.
    async fn listed_batch(
        &self,
        pool: &PoolName,
        query: &PortQuery,
        ports: RangeInclusive<u16>,
        room: usize,
    ) -> Result<(Vec<ListedPort>, u16), ListRefusal> {
        let (mut seen, end) = (0, *ports.end());
        let enough = |is: &PortUse| {
            seen += usize::from(!matches!(is, PortUse::Free | PortUse::Reserved));
            seen >= room
        };
        let uses = self.ports.uses(pool, ports, self.clock.wall(), enough).await?;
        // Fewer than were looked for: there are no more.
        let is_end = seen < room;
        let last = uses.last().filter(|_| !is_end).map_or(end, |(port, _)| *port);
        let allocated = uses.iter().filter(|(_, is)| *is == PortUse::Allocated).map(|(port, _)| *port);
        let wanted = query.state.is_none_or(|state| state == StateWord::Allocated);
        let (from, to) = (allocated.clone().min(), allocated.max());
        let instances = match from.zip(to).filter(|_| wanted) {
            Some((from, to)) => self.store.instances_at(pool, from..=to).await?,
            None => Vec::new(),
        };
        let listed = |port, is| ListedPort { pool: pool.clone(), port, is };
        let mut found = Vec::with_capacity(instances.len());
        for (port, is) in uses {
            let is = match is {
                PortUse::Quarantined(release) => ListedAs::Quarantined(release),
                PortUse::InConflict(until) => ListedAs::InConflict(until),
                // What is about to be somebody's is nobody's yet.
                PortUse::Free | PortUse::Allocated | PortUse::Reserved => continue,
            };
            if query.fits(&is) {
                found.push(listed(port, is));
            }
        }
        for instance in instances {
            let port = instance.port;
            let is = ListedAs::Allocated(Box::new(instance));
            if query.fits(&is) {
                found.push(listed(port, is));
            }
        }
        found.sort_by_key(|listed| listed.port);
        Ok((found, last))
    }

    async fn listed_reservations(
        &self,
        pool: &PoolName,
        query: &PortQuery,
        after: Option<u16>,
        asked: &RangeInclusive<u16>,
    ) -> Result<Vec<ListedPort>, ListRefusal> {
        if query.state.is_some_and(|state| state != StateWord::Reserved) {
            return Ok(Vec::new());
        }
        let (held, changes) = (self.store.reservations(pool).await?, self.store.reservation_changes(pool).await?);
        let mut listed = Vec::new();
        for reservation in held {
            let is_asked = reservation.first_port <= *asked.end() && reservation.last_port >= *asked.start();
            if !is_asked || after.is_some_and(|after| reservation.first_port <= after) {
                continue;
            }
            let made = changes.binary_search_by(|change| change.key.cmp(&reservation.name)).ok().map(|at| &changes[at]);
            let made = made.map(|change| (change.changed_by.clone(), change.changed_at));
            let (pool, port) = (pool.clone(), reservation.first_port);
            let is = ListedAs::Reserved { reservation, made };
            if query.fits(&is) {
                listed.push(ListedPort { pool, port, is });
            }
        }
        listed.sort_by_key(|listed| listed.port);
        Ok(listed)
    }
}

/// Cuts a page that has its entries after the last port that fits in, and whole; whether it has.
fn fill(page: &mut PortPage, limit: usize) -> bool {
    let Some(last) = page.ports.get(limit - 1) else { return false };
    let last = (last.pool.clone(), last.port);
    let beyond = page.ports.iter().skip(limit).position(|listed| (&listed.pool, listed.port) > (&last.0, last.1));
    let Some(beyond) = beyond else { return false };
    page.ports.truncate(limit + beyond);
    page.next = Some(last);
    true
}

impl PortQuery {
    /// Whether a port of a service instance may not be what is asked for.
    const fn is_narrow(&self) -> bool {
        self.protocol.is_some() || self.organization.is_some() || self.space.is_some() || self.name.is_some()
    }

    /// Whether it asks for this, apart from its place.
    fn fits(&self, is: &ListedAs) -> bool {
        let same = |asked: &Option<String>, known: Option<&str>| {
            asked.as_ref().is_none_or(|asked| known.is_some_and(|known| known == asked))
        };
        let (state, protocol, organization, space, id, name) = match is {
            ListedAs::Allocated(instance) => (
                StateWord::Allocated,
                Some(instance.protocol),
                Some(instance.organization_id.as_str()),
                Some(instance.space_id.as_str()),
                Some(instance.id.as_str()),
                instance.name.as_deref(),
            ),
            ListedAs::Reserved { reservation, .. } => {
                (StateWord::Reserved, Some(reservation.protocol), None, None, None, Some(&*reservation.name))
            }
            ListedAs::Quarantined(release) => {
                (StateWord::Quarantined, None, None, Some(release.space_id.as_str()), None, None)
            }
            ListedAs::InConflict(_) => (StateWord::InConflict, None, None, None, None, None),
        };
        self.state.is_none_or(|asked| asked == state)
            && self.protocol.is_none_or(|asked| protocol == Some(asked))
            && same(&self.organization, organization)
            && same(&self.space, space)
            && same(&self.service_instance, id)
            && self.name.as_ref().is_none_or(|asked| name.is_some_and(|name| name.contains(&**asked)))
    }
}
