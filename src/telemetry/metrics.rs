//! Metric handles. Each part gets its own struct of typed handles and never looks a label up on a hot path.
//!
//! Labels are bounded: reasons and words of closed enums, never a client, a connection or an id from outside. What is
//! counted of one port ([`PortTally`]) is kept apart from them, and goes with the port.

use std::sync::Arc;

use prometheus_client::{encoding::text::encode_registry, registry::Registry};

mod broker;
mod control;
mod discovery;
mod forwarder;
mod health;
mod port;
mod process;
mod store;

pub use broker::BrokerMetrics;
pub use control::ControlMetrics;
pub use discovery::DiscoveryMetrics;
pub use forwarder::{ConnectionEnd, Count, CountsBy, Direction, ForwarderMetrics, Refusal, SessionEnd, Tally, Words};
pub use health::HealthMetrics;
pub use port::{PortCounts, PortTally};
pub use store::StoreMetrics;

/// All metrics of one process. Tests make their own: nothing here is global.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// What every process has, by the names that it has everywhere.
    process: Registry,
    /// Requests of the Open Service Broker API.
    pub broker: Arc<BrokerMetrics>,
    /// Changes of ports.
    pub control: Arc<ControlMetrics>,
    /// Announcements and backends.
    pub discovery: Arc<DiscoveryMetrics>,
    /// Connections, sessions and bytes.
    pub forwarder: Arc<ForwarderMetrics>,
    /// Checks of backends.
    pub health: Arc<HealthMetrics>,
    /// Durable state.
    pub store: Arc<StoreMetrics>,
}

impl Metrics {
    /// Registers everything under the prefix `harbor_`.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("harbor");
        Self {
            broker: Arc::new(BrokerMetrics::register(&mut registry)),
            control: Arc::new(ControlMetrics::register(&mut registry)),
            discovery: Arc::new(DiscoveryMetrics::register(&mut registry)),
            forwarder: ForwarderMetrics::register(&mut registry),
            health: Arc::new(HealthMetrics::register(&mut registry)),
            store: Arc::new(StoreMetrics::register(&mut registry)),
            registry,
            process: process::registry(),
        }
    }

    /// All of them in the OpenMetrics text format, without its last line.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        for registry in [&self.registry, &self.process] {
            encode_registry(&mut text, registry).expect("writing to a String cannot fail");
        }
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
