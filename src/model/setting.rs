//! Live settings: what operators have set for all nodes while they run, and its history.
//!
//! A setting is of a scope: a section of the configuration, such as `harbor_node` or `pools.games`; [`SUSPENDED`], whose
//! keys are service instances; or [`BLOCKED`], whose keys are networks of clients. The history knows scopes more, of
//! what is kept elsewhere: [`reservations_of`] a pool, [`BLOCKS`] and [`SECRETS`].

use super::{PoolName, Revision, Timestamp};

/// Scope of service instances that carry nothing until they are resumed. The key is the id, the value says why.
pub const SUSPENDED: &str = "suspended";

/// Scope of networks whose clients get nowhere. The key is the network, the value says why.
pub const BLOCKED: &str = "blocked";

/// Scope in the history of what became of secrets. The value never is one.
pub const SECRETS: &str = "secrets";

/// What [`reservations_of`] begins with.
pub const RESERVATIONS: &str = "reservations.";

/// Scope in the history of blocks that were dropped. The key is the name.
pub const BLOCKS: &str = "blocks";

/// Most live settings of all scopes together.
pub const MAX_SETTINGS: usize = 10_000;

/// How many changes the history keeps, and those of one revision whole.
pub const HISTORY_KEPT: usize = 10_000;

/// Scope in the history of a pool's reservations. The key is the name, the value its ports and protocol.
#[must_use]
pub fn reservations_of(pool: &PoolName) -> String {
    format!("{RESERVATIONS}{pool}")
}

/// Who changes something for all nodes, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct By {
    /// As they call themselves: whoever has an operator's token is believed.
    pub who: String,
    /// By the clock of the node that was asked.
    pub at: Timestamp,
}

impl By {
    /// Nobody but the platform, which has deprovisioned a service instance.
    #[must_use]
    pub fn deprovision(at: Timestamp) -> Self {
        Self { who: "deprovision".into(), at }
    }
}

/// A live setting, or a change of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// What it is a setting of.
    pub scope: String,
    /// Which.
    pub key: String,
    /// Its value; none, in the history alone, where it was unset.
    pub value: Option<String>,
    /// Who has changed it.
    pub changed_by: String,
    /// When.
    pub changed_at: Timestamp,
    /// The revision of that.
    pub revision: Revision,
}

/// A change of a live setting that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingChange {
    /// What it is a setting of.
    pub scope: String,
    /// Which.
    pub key: String,
    /// Its value; none: it is unset.
    pub value: Option<String>,
}
