//! What holds in the end: a user's settings, bounded by the plan's caps, with the defaults filled in.

use std::{collections::BTreeSet, time::Duration};

use ipnet::IpNet;

use super::{
    Protocol, Transport,
    balance::Balance,
    desired::ForwarderLimits,
    parameters::{HealthCheck, ProxyProtocol, Settings, TcpCheck},
    plan::Caps,
};

/// What settings come to; two requests that ask for the same service instance have the same, however they are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    int_port: u16,
    match_app: bool,
    proxy_protocol: ProxyProtocol,
    allow: BTreeSet<IpNet>,
    health_check: Option<TcpCheck>,
    flows: Vec<(Transport, Balance, Duration)>,
    /// TCP connections and UDP sessions together; `None`: each transport has the node's own limit.
    max_connections: Option<u32>,
}

/// `settings` as a listener has them: nothing above the plan's caps, and a cap where a default would be above it.
///
/// One `idle_timeout` holds for both transports, so that a cap between their defaults lengthens the shorter one up to
/// the cap.
#[must_use]
pub fn bounded(settings: &Settings, protocol: Protocol, caps: Caps, limits: &ForwarderLimits) -> Settings {
    let longest_default = protocol.transports().iter().map(|transport| limits.idle_timeout(*transport)).max();
    Settings {
        max_connections: match (settings.max_connections, caps.max_connections) {
            (Some(asked), Some(cap)) => Some(asked.min(cap)),
            (asked, cap) => asked.or(cap),
        },
        idle_timeout: match (settings.idle_timeout, caps.idle_timeout) {
            (Some(asked), Some(cap)) => Some(asked.min(cap)),
            (None, Some(cap)) if longest_default > Some(cap) => Some(cap),
            (asked, _) => asked,
        },
        ..settings.clone()
    }
}

impl Effective {
    /// What `settings` come to on a port that carries `protocol`. `int_port` is the pool's.
    #[must_use]
    pub fn of(settings: &Settings, protocol: Protocol, int_port: u16, caps: Caps, limits: &ForwarderLimits) -> Self {
        let settings = bounded(settings, protocol, caps, limits);
        let flows = protocol.transports().iter().map(|transport| {
            (
                *transport,
                settings.balance.unwrap_or(Balance::default_for(*transport)),
                settings.idle_timeout.unwrap_or(limits.idle_timeout(*transport)),
            )
        });
        Self {
            int_port: settings.int_port.unwrap_or(int_port),
            match_app: settings.match_app.unwrap_or_default(),
            proxy_protocol: settings.proxy_protocol.unwrap_or_default(),
            allow: settings.allow.iter().map(IpNet::trunc).collect(),
            health_check: settings.health_check.and_then(HealthCheck::tcp),
            flows: flows.collect(),
            max_connections: settings.max_connections.or(match protocol {
                Protocol::Tcp => Some(limits.max_connections_per_port),
                Protocol::Udp => Some(limits.max_udp_sessions_per_port),
                Protocol::Both => None,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn same(a: &Settings, b: &Settings, protocol: Protocol) -> bool {
        let limits = ForwarderLimits::default();
        let of = |settings| Effective::of(settings, protocol, 4100, Caps::default(), &limits);
        of(a) == of(b)
    }

    #[test]
    fn a_default_that_is_written_out_changes_nothing() {
        let none = Settings::default();
        let written = Settings {
            int_port: Some(4100),
            balance: Some(Balance::RoundRobin),
            match_app: Some(false),
            idle_timeout: Some(60 * MINUTE),
            max_connections: Some(4096),
            allow: Vec::new(),
            proxy_protocol: Some(ProxyProtocol::None),
            health_check: Some(HealthCheck::None),
        };
        assert!(same(&none, &written, Protocol::Tcp));
        assert!(!same(&none, &written, Protocol::Udp), "UDP has other defaults");
        assert!(!same(&none, &written, Protocol::Both), "one limit for both together is another wish");
        for other in [
            Settings { int_port: Some(4101), ..Settings::default() },
            Settings { balance: Some(Balance::Random), ..Settings::default() },
            Settings { match_app: Some(true), ..Settings::default() },
            Settings { idle_timeout: Some(MINUTE), ..Settings::default() },
            Settings { max_connections: Some(4095), ..Settings::default() },
            Settings { allow: vec!["10.0.0.0/8".parse().unwrap()], ..Settings::default() },
            Settings { proxy_protocol: Some(ProxyProtocol::V1), ..Settings::default() },
        ] {
            assert!(!same(&none, &other, Protocol::Tcp), "{other:?}");
        }
    }

    #[test]
    fn neither_the_order_of_networks_nor_their_host_bits_count() {
        let allow = |networks: &[&str]| Settings {
            allow: networks.iter().map(|network| network.parse().unwrap()).collect(),
            ..Settings::default()
        };
        assert!(same(
            &allow(&["10.1.2.3/8", "fc00::/7"]),
            &allow(&["fc00::1/7", "10.0.0.0/8", "10.0.0.0/8"]),
            Protocol::Tcp
        ));
    }

    #[test]
    fn caps_bound_what_was_asked_for_and_what_was_not() {
        let limits = ForwarderLimits::default();
        let caps = Caps { max_connections: Some(10), idle_timeout: Some(30 * MINUTE) };
        let check = |settings: &Settings, protocol, connections, idle| {
            let bounded = bounded(settings, protocol, caps, &limits);
            assert_eq!((bounded.max_connections, bounded.idle_timeout), (connections, idle), "{settings:?} {protocol}");
        };
        check(&Settings::default(), Protocol::Tcp, Some(10), Some(30 * MINUTE));
        check(&Settings::default(), Protocol::Udp, Some(10), None);
        check(&Settings::default(), Protocol::Both, Some(10), Some(30 * MINUTE));
        let asked = |connections, idle| Settings {
            max_connections: Some(connections),
            idle_timeout: Some(idle),
            ..Settings::default()
        };
        check(&asked(5, MINUTE), Protocol::Both, Some(5), Some(MINUTE));
        check(&asked(50, 90 * MINUTE), Protocol::Both, Some(10), Some(30 * MINUTE));
    }
}
