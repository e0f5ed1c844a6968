//! A pool: a port range, the names clients reach it by, and how long a freed port rests.

use std::time::Duration;

use super::{PoolName, PortSet};

/// How long a freed port rests where nothing is written, also one of a pool that is no longer configured.
pub const DEFAULT_QUARANTINE: Duration = Duration::from_secs(15 * 60);

/// One pool as every node that serves it must agree on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Its name; `default` is the one that `[harbor_node]` describes.
    pub name: PoolName,
    /// The ports it may give out.
    pub ports: PortSet,
    /// The addresses and names shown in credentials.
    pub names: PoolNames,
    /// The port an app is told to listen on, unless its service instance says otherwise.
    pub int_port: u16,
    /// How long a freed port is kept back before it is given out again.
    pub quarantine: Duration,
    /// Whether it gives out no more ports; what has one keeps it.
    pub retired: bool,
}

/// Where a pool's ports are reached: inside the platform and, when it is public, outside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PoolNames {
    /// Internal address.
    pub host: Option<String>,
    /// Internal name.
    pub hostname: Option<String>,
    /// Public address; absent when the pool is not public.
    pub host_external: Option<String>,
    /// Public name; absent when the pool is not public.
    pub hostname_external: Option<String>,
}
