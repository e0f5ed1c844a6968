//! `[forwarder]`: how much is forwarded, and how long for.

use std::time::Duration;

use super::{section::Section, value};
use crate::model::desired::ForwarderLimits;

/// Most threads that can be asked for.
const MAX_WORKERS: u16 = 1024;

/// Most networks in `proxy_from`.
const MAX_NETWORKS: usize = 1024;

/// The data plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarder {
    /// Its threads; 0: one per core.
    pub workers: usize,
    /// All that could change while it runs.
    pub limits: ForwarderLimits,
}

impl Forwarder {
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let default = ForwarderLimits::default();
        let positive = || value::duration(Duration::from_millis(1));
        let any = || value::duration(Duration::ZERO);
        let read = Self {
            workers: section.get("workers", value::number(0..=MAX_WORKERS)).map_or(0, usize::from),
            limits: ForwarderLimits {
                connect_timeout: section.get("connect_timeout", positive()).unwrap_or(default.connect_timeout),
                idle_timeout_tcp: section.get("idle_timeout_tcp", positive()).unwrap_or(default.idle_timeout_tcp),
                idle_timeout_udp: section.get("idle_timeout_udp", positive()).unwrap_or(default.idle_timeout_udp),
                max_connections_per_port: section
                    .get("max_connections_per_port", value::number(1..=u32::MAX))
                    .unwrap_or(default.max_connections_per_port),
                max_udp_sessions_per_port: section
                    .get("max_udp_sessions_per_port", value::number(1..=u32::MAX))
                    .unwrap_or(default.max_udp_sessions_per_port),
                max_sockets: section.get("max_sockets", value::number(0..=u32::MAX)).unwrap_or(default.max_sockets),
                proxy_from: section
                    .get("proxy_from", value::list(MAX_NETWORKS, value::network))
                    .unwrap_or(default.proxy_from),
                blocked: default.blocked,
                drain_wait: section.get("drain_wait", any()).unwrap_or(default.drain_wait),
                drain_timeout: section.get("drain_timeout", any()).unwrap_or(default.drain_timeout),
            },
        };
        section.finish();
        read
    }
}
