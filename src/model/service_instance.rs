//! A service instance: one allocated port with its protocol and its settings.

use super::{
    NodeId, OrganizationId, PlanId, PoolName, Protocol, Revision, ServiceInstanceId, SpaceId, Timestamp,
    parameters::Settings,
};

/// A service instance as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceInstance {
    /// Given by the platform.
    pub id: ServiceInstanceId,
    /// Its plan; can be changed within the pool.
    pub plan_id: PlanId,
    /// The pool its port belongs to; never changes.
    pub pool: PoolName,
    /// Its port; never changes once it has been told to anyone.
    pub port: u16,
    /// What it carries; decided once at provision, then changed only with the plan.
    pub protocol: Protocol,
    /// The port that the user asked for, if one was: part of what makes a repeated request identical.
    pub requested_port: Option<u16>,
    /// What the user has set.
    pub settings: Settings,
    /// Whose it is.
    pub organization_id: OrganizationId,
    /// Whose it is.
    pub space_id: SpaceId,
    /// What its user calls it, where the platform says so. It can be changed and decides nothing after provision.
    pub name: Option<String>,
    /// The node that provisioned it, shown in credentials.
    pub node_id: NodeId,
    /// When it was provisioned.
    pub created_at: Timestamp,
    /// The revision of its last change.
    pub revision: Revision,
}
