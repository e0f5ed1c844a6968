//! Plans: what a user chooses from the catalog, and what each leaves open.

use std::time::Duration;

use uuid::Uuid;

use super::{PlanId, PoolName, Protocol};

/// The id of the service `harbor`. Fixed for ever: the Cloud Controller takes another id for another service.
pub const SERVICE_ID: &str = "7c1e4a52-8f2b-5d38-9a36-0f1d52c6b0e1";

/// The name of the service.
pub const SERVICE_NAME: &str = "harbor";

/// Under which the ids of operators' plans are derived from their names, so that they never change either.
const PLAN_NAMESPACE: Uuid = Uuid::from_u128(0x7c1e_4a52_8f2b_5d38_9a36_0f1d_52c6_b0e2);

/// One plan of the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Fixed for the built-in plans, derived from the name for operators' plans.
    pub id: PlanId,
    /// As shown by `cf marketplace`.
    pub name: String,
    /// One line for the marketplace.
    pub description: String,
    /// Which pool its ports come from.
    pub pool: PoolName,
    /// The protocol it fixes, or how it is left open.
    pub protocol: PlanProtocol,
    /// Whether a user may ask for a particular port.
    pub choose_port: bool,
    /// Whether a user may let `router.register` of a bound app make backends.
    pub match_app: bool,
    /// The most that parameters may ask for.
    pub caps: Caps,
}

/// How a plan decides the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanProtocol {
    /// The plan fixes it; the parameter `protocol` is not known there.
    Fixed(Protocol),
    /// The parameter `protocol`, else the rule of [`Protocol::from_instance_name`].
    ByName,
}

/// Upper bounds on parameters; `None` leaves a parameter to the node's own limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caps {
    /// Largest `max_connections`; also what a service instance gets that asks for none.
    pub max_connections: Option<u32>,
    /// Longest `idle_timeout`; also bounds the default.
    pub idle_timeout: Option<Duration>,
}

impl Plan {
    /// The four plans that every catalog has.
    #[must_use]
    pub fn built_in(pool: &PoolName) -> Vec<Self> {
        let plan = |id: &str, name: &str, description: &str, protocol| Self {
            id: PlanId::new(id).expect("the built-in ids are GUIDs"),
            name: name.into(),
            description: description.into(),
            pool: pool.clone(),
            protocol,
            choose_port: true,
            match_app: true,
            caps: Caps::default(),
        };
        vec![
            plan(
                "e1f6b1f0-57f3-5c0e-8a0b-6d3a6f0c1a01",
                "free",
                "A port whose protocol follows the name of the service instance: udp…, both-…, multi-…, else TCP",
                PlanProtocol::ByName,
            ),
            plan("e1f6b1f0-57f3-5c0e-8a0b-6d3a6f0c1a02", "tcp", "A TCP port", PlanProtocol::Fixed(Protocol::Tcp)),
            plan("e1f6b1f0-57f3-5c0e-8a0b-6d3a6f0c1a03", "udp", "A UDP port", PlanProtocol::Fixed(Protocol::Udp)),
            plan(
                "e1f6b1f0-57f3-5c0e-8a0b-6d3a6f0c1a04",
                "both",
                "TCP and UDP on one port number",
                PlanProtocol::Fixed(Protocol::Both),
            ),
        ]
    }

    /// The id of an operator's plan of that name: the same on every node and after every restart.
    #[must_use]
    pub fn derived_id(name: &str) -> PlanId {
        PlanId::new(Uuid::new_v5(&PLAN_NAMESPACE, name.as_bytes()).to_string()).expect("a GUID is a valid id")
    }
}
