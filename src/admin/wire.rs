//! What the operators' API says, as JSON. The command line reads the same types.

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::model::{Timestamp, observed};

pub mod ports;

/// Where [`Status`] is.
pub const STATUS_PATH: &str = "/admin/v1/status";

/// Where [`Nodes`] are; one of them is below that, under its id.
pub const NODES_PATH: &str = "/admin/v1/nodes";

/// Where [`Suspensions`] are; one of them is below that, under the service instance's id.
pub const SUSPENSIONS_PATH: &str = "/admin/v1/suspensions";

/// Where [`Blocked`] is; a network is below that.
pub const BLOCKED_PATH: &str = "/admin/v1/blocked";

/// Where [`AnnounceSecret`] is; `rotate` and `finish` are below that.
pub const ANNOUNCE_SECRET_PATH: &str = "/admin/v1/announce-secret";

/// Where a hot restart is asked for.
pub const RESTART_PATH: &str = "/admin/v1/restart";

/// Where the [`Configuration`] is; its history is below that.
pub const CONFIG_PATH: &str = "/admin/v1/config";

/// The header in which an operator says who they are.
pub const OPERATOR_HEADER: &str = "x-harbor-operator";

/// The token's file within the data directory, unless the configuration names another.
pub const TOKEN_FILE_NAME: &str = "admin.token";

/// `GET /readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether clients may be sent here.
    pub ready: bool,
    /// Why not, when not.
    pub reasons: Vec<String>,
}

/// `GET /admin/v1/status`: one node and what is around it. Times are RFC 3339, in UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// What is wrong, a sentence each, the worst first; empty: nothing.
    pub degraded: Vec<String>,
    /// The node's id.
    pub node: String,
    /// Of Harbor.
    pub version: String,
    /// Its process id.
    pub process: u32,
    /// Whether it takes part.
    pub mode: Mode,
    /// When the process started.
    pub started_at: String,
    /// The revision that should be bound.
    pub revision_desired: u64,
    /// The last one that is bound whole, but for ports that failed; `null` before the first.
    pub revision_applied: Option<u64>,
    /// The link to the store.
    pub store: Link,
    /// The link to NATS.
    pub nats: Link,
    /// The nodes of the store, this one too.
    pub nodes: Vec<Node>,
    /// All pools.
    pub pools: Vec<Pool>,
    /// How many listeners are what.
    pub listeners: ListenerCounts,
    /// The rotation of the announce secret that is under way; absent: none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_rotation: Option<Rotation>,
    /// How many networks are blocked.
    #[serde(default)]
    pub networks_blocked: usize,
    /// How many backends there are.
    pub backends: BackendCounts,
    /// The last announcements that were refused because they name no service instance that there is, or cannot be read; the
    /// latest first.
    pub refusals: Vec<Refusal>,
    /// Every service instance with its listener and its backends: those that failed first, then those that
    /// are suspended, then by pool and port.
    pub service_instances: Vec<ServiceInstance>,
}

/// `POST /admin/v1/restart`: which process has followed which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarted {
    /// The process that has answered until now. It goes on with its open connections, and ends.
    pub old_process: u32,
    /// Its version of Harbor.
    pub old_version: String,
    /// The process that serves.
    pub process: u32,
    /// Its version of Harbor.
    pub version: String,
}

/// Whether the process takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Not all ports are bound or failed yet.
    Starting,
    /// Forwarding, and ready.
    Serving,
    /// Not ready, and finishing what is open.
    Draining,
}

impl Mode {
    /// The mode of the model.
    #[must_use]
    pub fn of(mode: observed::Mode) -> Self {
        match mode {
            observed::Mode::Starting => Self::Starting,
            observed::Mode::Serving => Self::Serving,
            observed::Mode::Draining => Self::Draining,
        }
    }
}

/// `GET /admin/v1/config`: what each key of the configuration is on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// In the order of the documentation.
    pub keys: Vec<ConfigurationKey>,
}

/// A key of the configuration. Times are RFC 3339, in UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationKey {
    /// Its section, such as `harbor_node` or `pools.games`.
    pub section: String,
    /// Its name there.
    pub key: String,
    /// What holds; `null`: nothing is set. Never a secret.
    pub value: Option<String>,
    /// Where it comes from: `default`, `file`, `environment` or `live`.
    pub source: String,
    /// The place in the file, or the name of the variable.
    pub place: Option<String>,
    /// What a live setting hides.
    pub beneath: Option<Beneath>,
    /// What holds where it is not written, or words that say which; `null`: nothing.
    pub default: Option<String>,
    /// When a change holds: `live` (by `harbor config set`), `reload` (by SIGHUP) or `restart`.
    pub change: String,
    /// What is written and will hold after a restart.
    pub after_restart: Option<String>,
    /// Who has set a live one.
    pub changed_by: Option<String>,
    /// When.
    pub changed_at: Option<String>,
}

/// What file or environment say of a key that is set live: it holds again once that is unset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beneath {
    /// What it is there; `null`: what is never shown.
    pub value: Option<String>,
    /// The place in the file, or the name of the variable.
    pub place: String,
}

/// `PATCH /admin/v1/config`: live settings to change, for all nodes; all or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigurationChange {
    /// What to change.
    pub changes: Vec<SettingWanted>,
}

/// The answer to [`ConfigurationChange`]: it holds on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationChanged {
    /// The keys that were changed, as they are on this node then.
    pub keys: Vec<ConfigurationKey>,
    /// Live nodes that have not said in time that they have heard of it.
    #[serde(default)]
    pub lagging: Vec<String>,
    /// What is questionable in this node's configuration since.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// A live setting as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingWanted {
    /// Its section.
    pub section: String,
    /// Its name there.
    pub key: String,
    /// Its value, lists with commas; `null` unsets it.
    pub value: Option<String>,
}

/// `GET /admin/v1/config/history`: what operators have changed for all nodes, the latest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsHistory {
    /// At most as many as were asked for.
    pub changes: Vec<SettingChanged>,
}

/// A change of something that holds for all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingChanged {
    /// A section of the configuration; `suspended`, `blocked`, `secrets`; or `reservations.` and a pool.
    pub section: String,
    /// Which of them.
    pub key: String,
    /// What it was set to; `null`: it was unset.
    pub value: Option<String>,
    /// Who has changed it, as they call themselves.
    pub by: String,
    /// When.
    pub at: String,
    /// The revision that it made.
    pub revision: u64,
}

/// `GET /admin/v1/nodes`: the nodes of the store, by id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nodes {
    /// All of them.
    pub nodes: Vec<Node>,
}

/// A node as the others know it. Times are RFC 3339, in UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its id.
    pub id: String,
    /// Whether it was heard lately.
    pub alive: bool,
    /// Whether it takes part, as it said last.
    pub mode: Mode,
    /// Whether an operator wants it drained.
    pub drain: bool,
    /// Of Harbor.
    pub version: String,
    /// The pools that it serves.
    pub pools: Vec<String>,
    /// The last revision that it has bound whole, but for ports that failed.
    pub revision_applied: u64,
    /// Open connections and sessions.
    pub flows: u64,
    /// Ports that it cannot open.
    pub ports_failed: u64,
    /// When its process joined.
    pub joined_at: String,
    /// When it was heard last.
    pub seen_at: String,
    /// What ails it, a sentence each.
    pub problems: Vec<String>,
}

impl Node {
    /// What [`Node::state`] can be.
    pub const STATES: [&str; 6] = ["starting", "serving", "draining", "drained", "leaving", "dead"];

    /// Its state in a word.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match (self.alive, self.mode) {
            (false, _) => "dead",
            (true, Mode::Starting) => "starting",
            (true, Mode::Serving) if self.drain => "draining",
            (true, Mode::Serving) => "serving",
            (true, Mode::Draining) if self.drain => "drained",
            (true, Mode::Draining) => "leaving",
        }
    }

    /// Whether nothing ails it.
    #[must_use]
    pub fn is_fine(&self) -> bool {
        self.problems.is_empty()
    }
}

/// `GET /admin/v1/suspensions`: the service instances that carry nothing, by id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspensions {
    /// All of them.
    pub suspended: Vec<Suspension>,
}

/// A service instance that carries nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspension {
    /// Its id.
    pub service_instance: String,
    /// How it is held back.
    #[serde(flatten)]
    pub restraint: Restraint,
}

/// `GET /admin/v1/blocked`: the networks whose clients get nowhere, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// All of them.
    pub blocked: Vec<Block>,
}

/// A network whose clients get nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// As it is written.
    pub network: String,
    /// How it is held back.
    #[serde(flatten)]
    pub restraint: Restraint,
}

/// Why something is held back. The time is RFC 3339, in UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restraint {
    /// Since when.
    pub since: String,
    /// By whom, as they call themselves.
    pub by: String,
    /// In their words; empty: they have said nothing.
    pub reason: String,
}

/// What a `PUT` of a suspension or of a network may say.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `PUT` and `DELETE` of a suspension or of a network: how it is by then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restrained {
    /// Whether that has changed anything: it may have been so before.
    pub changed: bool,
    /// How it is held back; `null`: it is not.
    pub restraint: Option<Restraint>,
    /// Live nodes that have not said in time that it is so there.
    pub lagging: Vec<String>,
}

/// `GET /admin/v1/announce-secret`, and what `POST` to `rotate` and `finish` below it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnounceSecret {
    /// The rotation that is under way: tokens of both secrets count; `null`: of one alone.
    pub rotation: Option<Rotation>,
    /// Live nodes that have not said in time that it is so there.
    pub lagging: Vec<String>,
}

/// A rotation of the announce secret. The time is RFC 3339, in UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// When it began; `null`: the history no longer tells.
    pub since: Option<String>,
    /// By whom, as they call themselves.
    pub by: Option<String>,
}

/// An id as a part of a path.
#[must_use]
pub fn in_path(id: &str) -> String {
    percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// A link to a part outside the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Link {
    /// Not configured.
    Absent,
    /// Connected.
    Up {
        /// Since when.
        since: String,
    },
    /// Away.
    Down {
        /// Since when.
        since: String,
        /// Why.
        reason: String,
    },
}

/// How a pool is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Its ranges.
    pub ports: String,
    /// Ports in its ranges.
    pub size: usize,
    /// Ports that can be given out now.
    pub free: usize,
    /// Ports of service instances.
    pub allocated: usize,
    /// Ports that were freed a short while ago.
    pub quarantined: usize,
    /// Ports held back under a name.
    pub reserved: usize,
    /// Ports that something else on the machine has.
    pub in_conflict: usize,
    /// Whether it gives out no more ports.
    #[serde(default)]
    pub retired: bool,
    /// In what the node's file differs from what the nodes have agreed on; absent: in nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub differences: Option<String>,
}

/// How many listeners are what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ListenerCounts {
    /// All their sockets are bound.
    pub bound: usize,
    /// At least one socket could not be bound; retried until it can.
    pub failed: usize,
    /// They take nothing new, as the node drains.
    pub closed: usize,
    /// They are closed, as an operator has suspended their service instances.
    #[serde(default)]
    pub suspended: usize,
    /// Not tried yet.
    pub pending: usize,
}

/// How many backends there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BackendCounts {
    /// For TCP.
    pub tcp: usize,
    /// For UDP.
    pub udp: usize,
    /// Service instances that have none.
    pub service_instances_without: usize,
    /// In which state they are: each in one, the last of these that holds.
    pub states: BackendStates,
}

/// How many backends are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BackendStates {
    /// They take new connections and sessions.
    pub up: InState,
    /// They are passed over since connecting to them failed a short while ago.
    pub aside: InState,
    /// They are passed over since their check fails.
    pub down: InState,
    /// They asked for nothing new.
    pub draining: InState,
}

/// Backends in one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InState {
    /// How many.
    pub count: usize,
    /// How long the one that has been in it longest has been.
    pub longest_seconds: u64,
}

/// A service instance with its listener and its backends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceInstance {
    /// Its id.
    pub id: String,
    /// Its pool.
    pub pool: String,
    /// Its port.
    pub port: u16,
    /// `tcp`, `udp` or `both`.
    pub protocol: String,
    /// Whether the port is open.
    pub listener: Listener,
    /// In the order of their first announcement.
    pub backends: Vec<Backend>,
    /// The last announcements that were refused, the latest first.
    pub refusals: Vec<Refusal>,
}

/// An announcement that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// When it came last.
    pub at: String,
    /// When it came first.
    pub first_at: String,
    /// How often it came.
    pub count: u64,
    /// By which way it came: `harbor`, `router`, `service_discovery` or `http`.
    pub source: String,
    /// Why, in the word that metrics have.
    pub reason: String,
    /// What was to say which service instance is meant: an id, else the first uri.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named: Option<String>,
    /// The app that it named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// The announced host, as it was written.
    pub host: String,
    /// The announced port.
    pub port: Option<u16>,
    /// The announced UDP port, where it is said apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp_port: Option<u16>,
    /// What is wrong with one that cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Whether a port is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Listener {
    /// Not tried yet.
    Pending,
    /// It is open.
    Bound {
        /// Since when.
        since: String,
    },
    /// It takes nothing new, as the node drains.
    Closed {
        /// Since when.
        since: String,
    },
    /// It is closed, as an operator has suspended the service instance.
    Suspended(Restraint),
    /// It is not, and is retried.
    Failed {
        /// Since when.
        since: String,
        /// Why, with the holder of the port where that is known.
        reason: String,
    },
}

/// One backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// `tcp` or `udp`.
    pub transport: String,
    /// Address and port.
    pub address: String,
    /// Why it is believed: `app <id>`, `binding <id>` or `trusted`.
    pub authority: String,
    /// `up` or `draining`.
    pub state: String,
    /// Since when it is.
    pub state_since: String,
    /// Open connections or sessions.
    pub open: u32,
    /// When it was first announced.
    pub since: String,
    /// Whether it is passed over, since connecting to it failed a short while ago.
    pub aside: bool,
    /// Since when it is.
    pub aside_since: Option<String>,
    /// What the service instance's checks have found: `unchecked`, `up` or `down`.
    pub health: String,
    /// Since when that is so.
    pub health_since: String,
    /// Until it ends, unless it is announced again.
    pub expires_in_seconds: u64,
}

/// To the second: what people compare with their clocks and logs.
pub(crate) fn rfc3339(timestamp: Timestamp) -> String {
    OffsetDateTime::from_unix_timestamp(timestamp.seconds())
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| timestamp.seconds().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_to_the_second() {
        assert_eq!(rfc3339(Timestamp(1_795_252_518_999_999)), "2026-11-21T09:15:18Z");
        assert_eq!(rfc3339(Timestamp(i64::MAX)), "9223372036854");
    }
}
