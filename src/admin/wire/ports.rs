//! What the operators' API says of ports and reservations.

use serde::{Deserialize, Serialize};

use super::{Listener, Pool};

/// Where [`Ports`] are; the query says which.
pub const PORTS_PATH: &str = "/admin/v1/ports";

/// Where reservations are: one is below that, under its pool and its name.
pub const RESERVATIONS_PATH: &str = "/admin/v1/ports/reservations";

/// Where reservations are made what a file says.
pub const APPLY_PATH: &str = "/admin/v1/ports/apply";

/// How many ports a page has where nothing is said.
pub const PAGE: usize = 100;

/// How many it has at the most.
pub const MAX_PAGE: usize = crate::control::MAX_PAGE;

/// The query of [`PORTS_PATH`]: what is told fits all that is said.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PortsQuery {
    /// Of this pool.
    pub pool: Option<String>,
    /// `allocated`, `reserved`, `quarantined` or `in_conflict`.
    pub state: Option<String>,
    /// `tcp`, `udp` or `both`: this very one.
    pub protocol: Option<String>,
    /// Id of an organization.
    pub organization: Option<String>,
    /// Id of a space.
    pub space: Option<String>,
    /// Id of a service instance.
    pub service_instance: Option<String>,
    /// A port, or `35000-35099`.
    pub port: Option<String>,
    /// Part of the name of a service instance or of a reservation.
    pub name: Option<String>,
    /// Whether to tell which ports are free.
    pub free: bool,
    /// How many; [`PAGE`] where nothing is said, [`MAX_PAGE`] at the most.
    pub limit: Option<usize>,
    /// [`Ports::next`] of the page before.
    pub after: Option<String>,
}

impl PortsQuery {
    /// As a query of a path.
    #[must_use]
    pub fn in_path(&self) -> String {
        let (free, limit) = (self.free.then(|| "true".to_owned()), self.limit.map(|limit| limit.to_string()));
        let said = [
            ("pool", &self.pool),
            ("state", &self.state),
            ("protocol", &self.protocol),
            ("organization", &self.organization),
            ("space", &self.space),
            ("service_instance", &self.service_instance),
            ("port", &self.port),
            ("name", &self.name),
            ("free", &free),
            ("limit", &limit),
            ("after", &self.after),
        ];
        let said =
            said.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", super::in_path(value.as_ref()?))));
        format!("{PORTS_PATH}?{}", said.collect::<Vec<_>>().join("&"))
    }
}

/// `GET /admin/v1/ports`: a page of what ports are, by pool and port. Times are RFC 3339, in UTC.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ports {
    /// The pools, also those that no node serves; only with the first page.
    pub pools: Vec<PortPool>,
    /// The ports that are not free.
    pub ports: Vec<Port>,
    /// Balancers in front of this node: packets come from them, also where `allow` is about the client in a PROXY header.
    pub proxy_from: Vec<String>,
    /// What to ask for after this page; `null`: it is the last.
    pub next: Option<String>,
}

/// A pool and its free ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortPool {
    /// How it is.
    #[serde(flatten)]
    pub pool: Pool,
    /// Whether a node serves it.
    pub served: bool,
    /// The ports that can be given out at once, as ranges, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_ports: Option<String>,
}

/// A port that is not free, or a run of ports that are held back under one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Of which pool.
    pub pool: String,
    /// Which, or the first of them.
    pub port: u16,
    /// The last of them; the same for a single one.
    pub last_port: u16,
    /// What it is.
    #[serde(flatten)]
    pub is: PortIs,
}

/// What a port is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum PortIs {
    /// It belongs to a service instance.
    Allocated(Box<Allocated>),
    /// It is held back.
    Reserved(Reserved),
    /// It was freed a short while ago.
    Quarantined {
        /// The space that had it.
        space: String,
        /// When it was freed.
        since: String,
        /// Until when nobody gets it.
        until: String,
    },
    /// Something else on the machine had it when it was tried.
    InConflict {
        /// When it is tried again.
        until: String,
    },
}

/// Whose a port is, and how it is on the node that was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocated {
    /// The service instance.
    pub service_instance: String,
    /// What its user calls it, where the platform says so.
    pub name: Option<String>,
    /// `tcp`, `udp` or `both`.
    pub protocol: String,
    /// Id of its organization.
    pub organization: String,
    /// Id of its space.
    pub space: String,
    /// Id of its plan.
    pub plan: String,
    /// When it was provisioned.
    pub since: String,
    /// Networks of clients that are let in; empty: all.
    pub allow: Vec<String>,
    /// Whether the port is open on this node; `null`: this node does not serve the pool.
    pub listener: Option<Listener>,
    /// How many backends take new work.
    pub backends_up: usize,
    /// How many there are.
    pub backends: usize,
    /// Open connections and sessions on this node.
    pub flows: u64,
}

/// Ports that are held back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserved {
    /// Under which name.
    pub name: String,
    /// `tcp`, `udp` or `both`: for what. None of them is given out whatever it is.
    pub protocol: String,
    /// Since when, where the history goes back that far.
    pub since: Option<String>,
    /// Who has done that.
    pub by: Option<String>,
}

/// `PUT /admin/v1/ports/reservations/{pool}/{name}`: which ports.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WantedPorts {
    /// `25080` or `25090-25099`; without it they are chosen by the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// How many in a row are chosen; 1 where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u16>,
    /// `tcp`, `udp` or `both`, which it is where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Whether a port that a service instance has may be asked for: it is held back once that one is gone.
    pub when_free: bool,
}

/// `POST /admin/v1/ports/apply`: what the reservations of these pools are to be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Apply {
    /// Only tell what would be done.
    pub dry_run: bool,
    /// Release the reservations of these pools that have other names, and drop blocks beside them that have none.
    pub prune: bool,
    /// Whether ports that service instances have may be asked for: they are held back once those are gone.
    pub when_free: bool,
    /// Each once, in any order.
    pub pools: Vec<ApplyPool>,
}

/// What the reservations of a pool are to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyPool {
    /// Which pool, or block.
    pub name: String,
    /// The range of a block, which is defined where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<String>,
    /// Each once, in any order.
    pub names: Vec<ApplyName>,
}

/// What a name is to have.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyName {
    /// Which.
    pub name: String,
    /// `25080` or `25090-25099`; without it the name keeps what it has, or ports are chosen by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// How many in a row are chosen; 1 where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u16>,
    /// `tcp`, `udp` or `both`, which it is where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

/// What was done, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Whether nothing was changed, as that was asked for.
    pub dry_run: bool,
    /// Blocks that are new or have another range.
    pub blocks: Vec<Block>,
    /// Blocks that are gone, as they had no names and are not asked for.
    #[serde(default)]
    pub dropped_blocks: Vec<Block>,
    /// What becomes of each name, by pool and name.
    pub names: Vec<Step>,
    /// How many other names of these pools stay as they are.
    pub others: usize,
}

/// Ports of the machine that no pool gives out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// Its name.
    pub name: String,
    /// Its ports.
    pub range: String,
}

/// What becomes of a name, also the answer to a reservation that is made or released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Of which pool.
    pub pool: String,
    /// Which.
    pub name: String,
    /// `add`, `change`, `remove` or `keep`.
    pub change: String,
    /// What it has had.
    pub before: Option<Held>,
    /// What it has then.
    pub after: Option<Held>,
    /// The first port that its name comes to, where a service instance has kept it from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_from: Option<u16>,
    /// Those of its ports that service instances have still: they keep them, and nobody gets them after.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allocated: Vec<u16>,
}

/// Ports that a name has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The first.
    pub port: u16,
    /// The last; the same for a single one.
    pub last_port: u16,
    /// `tcp`, `udp` or `both`.
    pub protocol: String,
}

impl std::fmt::Display for Held {
    /// `25080 (both)`, `25090-25099 (tcp)`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { port, last_port, protocol } = self;
        if port == last_port { write!(f, "{port} ({protocol})") } else { write!(f, "{port}-{last_port} ({protocol})") }
    }
}
