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

impl ServiceInstance {
    /// This service instance without the update from `before` to `after`: what was updated since then stays. A plan and the
    /// protocol that it has led to go together. Where the settings that come of it are not `within` the plan, they are
    /// those that the plan came with.
    #[must_use]
    pub fn without_update(&self, before: &Self, after: &Self, within: impl FnOnce(&Self) -> bool) -> Self {
        let mut without = self.clone();
        let mut with_plan = self;
        if (&self.plan_id, self.protocol) == (&after.plan_id, after.protocol) {
            without.plan_id = before.plan_id.clone();
            without.protocol = before.protocol;
            with_plan = before;
        }
        if self.name == after.name {
            without.name.clone_from(&before.name);
        }
        without.settings = self.settings.without_change(&before.settings, &after.settings);
        if !within(&without) {
            without.settings = with_plan.settings.clone();
        }
        without
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{balance::Balance, parameters::ProxyProtocol, plan::Plan};

    fn instance(plan: &str, protocol: Protocol, name: &str, settings: Settings) -> ServiceInstance {
        ServiceInstance {
            id: ServiceInstanceId::new("i").unwrap(),
            plan_id: PlanId::new(plan).unwrap(),
            pool: PoolName::new("default").unwrap(),
            port: 1024,
            protocol,
            requested_port: None,
            settings,
            organization_id: OrganizationId::new("organization").unwrap(),
            space_id: SpaceId::new("space").unwrap(),
            name: Some(name.into()),
            node_id: NodeId::new("node").unwrap(),
            created_at: Timestamp(0),
            revision: Revision(1),
        }
    }

    #[test]
    fn an_update_is_taken_back_and_a_later_one_stays() {
        let settings =
            |int_port, balance| Settings { int_port, balance, max_connections: Some(7), ..Settings::default() };
        let before = instance("tcp", Protocol::Tcp, "old", settings(None, None));
        let after = instance("both", Protocol::Both, "new", settings(Some(5000), None));
        assert_eq!(after.without_update(&before, &after, |_| true), before);
        for (latest, expected) in [
            (
                instance("both", Protocol::Both, "newer", settings(Some(5000), Some(Balance::Random))),
                instance("tcp", Protocol::Tcp, "newer", settings(None, Some(Balance::Random))),
            ),
            (
                instance("udp", Protocol::Udp, "new", settings(Some(6000), None)),
                instance("udp", Protocol::Udp, "old", settings(Some(6000), None)),
            ),
        ] {
            assert_eq!(latest.without_update(&before, &after, |_| true), expected);
        }
    }

    #[test]
    fn settings_go_back_to_those_that_their_plan_came_with_where_the_plan_does_not_take_what_is_left() {
        let settings = |int_port, proxy_protocol| Settings { int_port, proxy_protocol, ..Settings::default() };
        let plans = Plan::built_in(&PoolName::new("default").unwrap());
        let instance = |name: &str, protocol, settings| {
            let plan = plans.iter().find(|plan| plan.name == name).unwrap();
            instance(plan.id.as_str(), protocol, "name", settings)
        };
        let within = |instance: &ServiceInstance| {
            let plan = plans.iter().find(|plan| plan.id == instance.plan_id).unwrap();
            plan.check_settings(&instance.settings, instance.protocol).is_ok()
        };
        let (udp, tcp) = (Protocol::Udp, Protocol::Tcp);
        let (v1, v2) = (Some(ProxyProtocol::V1), Some(ProxyProtocol::V2));
        // The plan goes back, and with it the transport that another node's setting was right for.
        let (before, after) =
            (instance("udp", udp, settings(Some(1), None)), instance("tcp", tcp, settings(Some(2), None)));
        for (left, expected) in
            [(settings(Some(3), v1), settings(Some(1), None)), (settings(Some(3), v2), settings(Some(3), v2))]
        {
            let latest = instance("tcp", tcp, left);
            assert_eq!(latest.without_update(&before, &after, within), instance("udp", udp, expected));
        }
        // Another node's plan stays, and does not take the setting that was there before.
        let (before, after) =
            (instance("tcp", tcp, settings(Some(1), v1)), instance("both", Protocol::Both, settings(Some(1), v2)));
        let latest = instance("udp", udp, settings(Some(3), v2));
        assert_eq!(latest.without_update(&before, &after, within), latest);
    }
}
