//! Plans: what a user chooses from the catalog, and what each leaves open.

use std::time::Duration;

use uuid::Uuid;

use super::{
    PlanId, PoolName, Protocol, Transport,
    parameters::{
        LONGEST_IDLE_TIMEOUT, MAX_ALLOW, MOST_CONNECTIONS, ParameterRefusal, ProvisionParameters, ProxyProtocol,
        SHORTEST_IDLE_TIMEOUT, Settings,
    },
};

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

impl Caps {
    /// The largest `max_connections` that may be asked for.
    #[must_use]
    pub fn most_connections(&self) -> u32 {
        self.max_connections.unwrap_or(MOST_CONNECTIONS)
    }

    /// The longest `idle_timeout` that may be asked for.
    #[must_use]
    pub fn longest_idle_timeout(&self) -> Duration {
        self.idle_timeout.unwrap_or(LONGEST_IDLE_TIMEOUT)
    }
}

impl Plan {
    /// What a new service instance of this plan carries: the plan's word, else the parameter's, else what its name says.
    ///
    /// # Errors
    /// [`ParameterRefusal::ProtocolFixed`] when the parameter is given where the plan decides.
    pub fn protocol_for(&self, asked: Option<Protocol>, name: Option<&str>) -> Result<Protocol, ParameterRefusal> {
        match (self.protocol, asked) {
            (PlanProtocol::Fixed(protocol), None) => Ok(protocol),
            (PlanProtocol::Fixed(protocol), Some(_)) => Err(ParameterRefusal::ProtocolFixed(protocol)),
            (PlanProtocol::ByName, Some(protocol)) => Ok(protocol),
            (PlanProtocol::ByName, None) => Ok(Protocol::from_instance_name(name.unwrap_or_default())),
        }
    }

    /// What a service instance carries that changes to this plan: one that decides by name leaves things as they are.
    #[must_use]
    pub fn protocol_after_change(&self, present: Protocol) -> Protocol {
        match self.protocol {
            PlanProtocol::Fixed(protocol) => protocol,
            PlanProtocol::ByName => present,
        }
    }

    /// Whether parameters of a provision request are all within the plan; returns the protocol that they lead to.
    ///
    /// # Errors
    /// [`ParameterRefusal`] for the first that is not.
    pub fn check_provision(
        &self,
        parameters: &ProvisionParameters,
        name: Option<&str>,
    ) -> Result<Protocol, ParameterRefusal> {
        let protocol = self.protocol_for(parameters.protocol, name)?;
        if parameters.port.is_some() && !self.choose_port {
            return Err(ParameterRefusal::PortNotChoosable);
        }
        self.check_settings(&parameters.settings, protocol)?;
        Ok(protocol)
    }

    /// Whether `settings` are within the plan for a port that carries `protocol`.
    ///
    /// # Errors
    /// [`ParameterRefusal`] for the first that is not.
    pub fn check_settings(&self, settings: &Settings, protocol: Protocol) -> Result<(), ParameterRefusal> {
        if settings.int_port == Some(0) {
            return Err(ParameterRefusal::NoIntPort);
        }
        if settings.match_app.is_some() && !self.match_app {
            return Err(ParameterRefusal::MatchAppNotTaken);
        }
        let most = self.caps.most_connections();
        if let Some(asked) = settings.max_connections.filter(|asked| !(1..=most).contains(asked)) {
            return Err(ParameterRefusal::MaxConnections { asked, most });
        }
        let longest = self.caps.longest_idle_timeout();
        let within = SHORTEST_IDLE_TIMEOUT..=longest;
        if let Some(asked) = settings.idle_timeout.filter(|asked| !within.contains(asked)) {
            return Err(ParameterRefusal::IdleTimeout { asked, longest });
        }
        if settings.allow.len() > MAX_ALLOW {
            return Err(ParameterRefusal::TooManyNetworks(settings.allow.len()));
        }
        if settings.proxy_protocol == Some(ProxyProtocol::V1) && protocol.has(Transport::Udp) {
            return Err(ParameterRefusal::ProxyV1WithUdp(protocol));
        }
        settings.health_check.map_or(Ok(()), |check| check.check(protocol))
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(name: &str) -> Plan {
        let pool = PoolName::new("default").unwrap();
        Plan::built_in(&pool).into_iter().find(|plan| plan.name == name).unwrap()
    }

    #[test]
    fn the_ids_of_plans_never_change() {
        let pool = PoolName::new("default").unwrap();
        let ids = Plan::built_in(&pool).iter().map(|plan| plan.id.to_string()).collect::<Vec<_>>();
        assert_eq!(
            ids,
            [
                "e1f6b1f0-57f3-5c0e-8a0b-6d3a6f0c1a01",
                "e1f6b1f0-57f3-5c0e-8a0b-6d3a6f0c1a02",
                "e1f6b1f0-57f3-5c0e-8a0b-6d3a6f0c1a03",
                "e1f6b1f0-57f3-5c0e-8a0b-6d3a6f0c1a04"
            ]
        );
        assert_eq!(Plan::derived_id("big"), Plan::derived_id("big"));
        assert_ne!(Plan::derived_id("big"), Plan::derived_id("small"));
    }

    #[test]
    fn the_plan_then_the_parameter_then_the_name_decides_the_protocol() {
        assert_eq!(plan("udp").protocol_for(None, Some("both-x")), Ok(Protocol::Udp));
        assert_eq!(plan("free").protocol_for(Some(Protocol::Tcp), Some("udp-x")), Ok(Protocol::Tcp));
        assert_eq!(plan("free").protocol_for(None, Some("udp-x")), Ok(Protocol::Udp));
        assert_eq!(plan("free").protocol_for(None, None), Ok(Protocol::Tcp));
        assert_eq!(
            plan("tcp").protocol_for(Some(Protocol::Tcp), None),
            Err(ParameterRefusal::ProtocolFixed(Protocol::Tcp))
        );
    }

    #[test]
    fn what_a_plan_does_not_take_is_refused() {
        let strict = Plan {
            choose_port: false,
            match_app: false,
            caps: Caps { max_connections: Some(10), idle_timeout: Some(Duration::from_secs(600)) },
            ..plan("both")
        };
        let check = |settings: Settings, expected: ParameterRefusal| {
            assert_eq!(strict.check_settings(&settings, Protocol::Both), Err(expected), "{settings:?}");
        };
        check(Settings { int_port: Some(0), ..Settings::default() }, ParameterRefusal::NoIntPort);
        check(Settings { match_app: Some(true), ..Settings::default() }, ParameterRefusal::MatchAppNotTaken);
        for asked in [0, 11] {
            check(
                Settings { max_connections: Some(asked), ..Settings::default() },
                ParameterRefusal::MaxConnections { asked, most: 10 },
            );
        }
        for asked in [Duration::ZERO, Duration::from_secs(601)] {
            check(
                Settings { idle_timeout: Some(asked), ..Settings::default() },
                ParameterRefusal::IdleTimeout { asked, longest: Duration::from_secs(600) },
            );
        }
        check(
            Settings { allow: vec!["10.0.0.0/8".parse().unwrap(); 65], ..Settings::default() },
            ParameterRefusal::TooManyNetworks(65),
        );
        check(
            Settings { proxy_protocol: Some(ProxyProtocol::V1), ..Settings::default() },
            ParameterRefusal::ProxyV1WithUdp(Protocol::Both),
        );
        assert_eq!(
            strict.check_provision(&ProvisionParameters { port: Some(2000), ..Default::default() }, None),
            Err(ParameterRefusal::PortNotChoosable)
        );
        let most = Settings {
            max_connections: Some(10),
            idle_timeout: Some(Duration::from_secs(600)),
            proxy_protocol: Some(ProxyProtocol::V2),
            ..Settings::default()
        };
        assert_eq!(strict.check_settings(&most, Protocol::Both), Ok(()));
    }
}
