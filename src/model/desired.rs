//! Desired state: what every node of a pool should have bound.
//!
//! Level-triggered: each value is whole, so one that is missed costs nothing. Maps are persistent, so that a new
//! revision shares all that did not change with the one before.

use std::{collections::BTreeSet, net::IpAddr, ops::Deref, sync::Arc, time::Duration};

use ipnet::IpNet;
use rpds::HashTrieMapSync;

use super::{
    PoolName, Protocol, Revision, ServiceInstanceId, Transport, networks::Networks, parameters::Settings,
    restraint::Restraints, trail::Trail,
};

/// All listeners a node should have, and the limits they share.
#[derive(Debug, Clone, Default)]
pub struct DesiredState {
    /// The store's revision that this shows.
    pub revision: Revision,
    /// One listener per service instance.
    pub listeners: Listeners,
    /// Shared limits.
    pub limits: Arc<ForwarderLimits>,
    /// What operators hold back. Service instances that are suspended have no listener here, and the networks that are
    /// blocked are among the limits: this tells why.
    pub restraints: Arc<Restraints>,
}

/// The listeners by service instance, and which of them changed last: a change costs its reader what has changed, not a
/// walk over all.
#[derive(Debug, Clone, Default)]
pub struct Listeners {
    by_id: HashTrieMapSync<ServiceInstanceId, Arc<ListenerSpec>>,
    transports: usize,
    trail: Trail,
}

impl Listeners {
    /// Adds a listener or replaces it.
    pub fn insert_mut(&mut self, id: ServiceInstanceId, spec: Arc<ListenerSpec>) {
        self.transports -= self.by_id.get(&id).map_or(0, |before| before.protocol.transports().len());
        self.transports += spec.protocol.transports().len();
        self.by_id.insert_mut(id.clone(), spec);
        self.trail.push(id);
    }

    /// Removes a listener, if it is there.
    pub fn remove_mut(&mut self, id: &ServiceInstanceId) {
        let Some(before) = self.by_id.get(id) else { return };
        self.transports -= before.protocol.transports().len();
        self.by_id.remove_mut(id);
        self.trail.push(id.clone());
    }

    /// Sockets that all listeners take on each address.
    #[must_use]
    pub const fn transports(&self) -> usize {
        self.transports
    }

    /// Where these may differ from `earlier` ones; `None` when only a look at all of both can tell.
    #[must_use]
    pub fn changed_since(&self, earlier: &Self) -> Option<BTreeSet<ServiceInstanceId>> {
        self.trail.since(&earlier.trail)
    }
}

impl Deref for Listeners {
    type Target = HashTrieMapSync<ServiceInstanceId, Arc<ListenerSpec>>;

    fn deref(&self) -> &Self::Target {
        &self.by_id
    }
}

/// What to bind for a service instance, and how to forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerSpec {
    /// For whom.
    pub service_instance_id: ServiceInstanceId,
    /// Of which pool.
    pub pool: PoolName,
    /// The port.
    pub port: u16,
    /// TCP, UDP, or both.
    pub protocol: Protocol,
    /// Balance, time-outs, limits, `allow` and PROXY protocol, already bounded by the plan's caps.
    pub settings: Settings,
    /// Grows with every change of this listener within this process, also for one that is only tried (see
    /// `control::snapshot`): an observation of the same version speaks of this very spec.
    pub version: u64,
}

/// Live settings of the forwarder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwarderLimits {
    /// How long one connect to a backend may take.
    pub connect_timeout: Duration,
    /// Silence after which a TCP connection ends, where its service instance says nothing.
    pub idle_timeout_tcp: Duration,
    /// Silence after which a UDP session ends, where its service instance says nothing.
    pub idle_timeout_udp: Duration,
    /// TCP connections per port, where its service instance says nothing.
    pub max_connections_per_port: u32,
    /// UDP sessions per port, where its service instance says nothing.
    pub max_udp_sessions_per_port: u32,
    /// Sockets of all ports together; 0: the descriptor limit less [`RESERVED_DESCRIPTORS`].
    pub max_sockets: u32,
    /// Balancers in front whose PROXY header is required and believed.
    pub proxy_from: Vec<IpNet>,
    /// Networks that an operator has blocked: their clients get nowhere.
    pub blocked: Arc<Networks>,
    /// On SIGTERM: how long to accept while not ready.
    pub drain_wait: Duration,
    /// Then: how long connections may take to finish. Also the time a draining backend's connections have.
    pub drain_timeout: Duration,
}

/// Descriptors kept back for the APIs, the store and NATS.
pub const RESERVED_DESCRIPTORS: u32 = 512;

/// A UDP session that never got an answer ends after this time and is the first to go when room is short.
pub const UNANSWERED_SESSION_TIMEOUT: Duration = Duration::from_secs(5);

impl Default for ForwarderLimits {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            idle_timeout_tcp: Duration::from_secs(3600),
            idle_timeout_udp: Duration::from_secs(60),
            max_connections_per_port: 4096,
            max_udp_sessions_per_port: 16384,
            max_sockets: 0,
            proxy_from: Vec::new(),
            blocked: Arc::default(),
            drain_wait: Duration::ZERO,
            drain_timeout: Duration::from_secs(30),
        }
    }
}

impl ForwarderLimits {
    /// Silence after which a flow of `transport` ends, where its service instance says nothing.
    #[must_use]
    pub const fn idle_timeout(&self, transport: Transport) -> Duration {
        match transport {
            Transport::Tcp => self.idle_timeout_tcp,
            Transport::Udp => self.idle_timeout_udp,
        }
    }
}

/// Whether a client address is let in by a list of networks; an empty list lets everyone in. IPv4 clients that come
/// in over a dual-stack socket count as IPv4.
#[must_use]
pub fn allows(networks: &[IpNet], client: IpAddr) -> bool {
    let client = client.to_canonical();
    networks.is_empty() || networks.iter().any(|network| network.contains(&client))
}
