//! Who is let in to which ports, whatever the firewall.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use crate::{
    admin::wire::ports::{Allocated, PortIs, Ports},
    model::{PortSet, Protocol, Transport, protocol::UnknownProtocol},
};

/// All that is let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rules {
    /// When the ports were what they are here.
    pub made_at: String,
    /// Whether only ports that service instances have are in it.
    pub allocated: bool,
    /// By which interface; none: any.
    pub interface: Option<String>,
    /// Of which pools.
    pub pools: Vec<Pool>,
    /// Those for everybody first.
    pub rules: Vec<Rule>,
}

/// A pool and its range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Its ports.
    pub ports: String,
}

/// Ports that the same clients are let in to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// TCP or UDP.
    #[serde(serialize_with = "word")]
    pub transport: Transport,
    /// Which ports, as ranges.
    #[serde(serialize_with = "ranges")]
    pub ports: PortSet,
    /// Networks of clients, none in another; empty: everybody.
    pub from: Vec<IpNet>,
}

fn word<S: Serializer>(transport: &Transport, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(transport.as_str())
}

fn ranges<S: Serializer>(ports: &PortSet, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(ports.ranges().iter().map(crate::cli::ports::shown))
}

impl Rules {
    /// The rules for what a node has listed.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn of(listed: &Ports, allocated: bool, interface: Option<String>, made_at: String) -> Result<Self, String> {
        let pools =
            listed.pools.iter().map(|known| Pool { name: known.pool.name.clone(), ports: known.pool.ports.clone() });
        let mut rules = Self { made_at, allocated, interface, pools: pools.collect(), rules: Vec::new() };
        let mut wanted: BTreeMap<(Vec<IpNet>, Transport), Vec<_>> = BTreeMap::new();
        for port in &listed.ports {
            let PortIs::Allocated(known) = &port.is else { continue };
            let (protocol, from) = match allocated {
                true => {
                    (known.protocol.parse().map_err(|error: UnknownProtocol| error.to_string())?, from(listed, known)?)
                }
                // Its pool's range may have shrunk since it got its port.
                false => (Protocol::Both, Vec::new()),
            };
            for transport in protocol.transports() {
                wanted.entry((from.clone(), *transport)).or_default().push(port.port..=port.last_port);
            }
        }
        for pool in rules.pools.iter().filter(|_| !allocated) {
            let ports = pool.ports.parse::<PortSet>().map_err(|error| error.to_string())?;
            for transport in Transport::ALL {
                wanted.entry((Vec::new(), transport)).or_default().extend(ports.ranges().iter().cloned());
            }
        }
        for ((from, transport), ranges) in wanted {
            let ports = PortSet::from_ranges(ranges).map_err(|error| error.to_string())?;
            rules.rules.push(Rule { transport, ports, from });
        }
        Ok(rules)
    }

    /// What it is for, in a few words.
    pub fn purpose(&self) -> String {
        let pools = self.pools.iter().map(|pool| format!("{} ({})", crate::cli::clean(&pool.name), pool.ports));
        let pools = pools.collect::<Vec<_>>().join(", ");
        let which = if self.allocated {
            format!("the ports that service instances have of {pools}")
        } else {
            format!("all ports of {pools} and those that service instances have beside them")
        };
        format!("Lets clients in to {which}. Made at {} by harbor ports firewall.", self.made_at)
    }
}

/// Where packets for a service instance come from; none: anywhere. A balancer's clients come from the balancer.
fn from(listed: &Ports, known: &Allocated) -> Result<Vec<IpNet>, String> {
    if known.allow.is_empty() {
        return Ok(Vec::new());
    }
    let networks = known.allow.iter().chain(&listed.proxy_from).map(|network| network.parse::<IpNet>());
    let networks = networks.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    Ok(IpNet::aggregate(&networks))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::admin::wire::{
        self,
        ports::{Port, PortPool},
    };

    /// Two pools; ports of all kinds and networks of both families.
    pub fn listed() -> Ports {
        let pool = |name: &str, ports: &str| PortPool {
            pool: wire::Pool {
                name: name.into(),
                ports: ports.into(),
                size: 10,
                free: 10,
                allocated: 0,
                quarantined: 0,
                reserved: 0,
                in_conflict: 0,
                retired: false,
                differences: None,
            },
            served: true,
            free_ports: None,
        };
        let port = |pool: &str, port: u16, protocol: &str, allow: &[&str]| Port {
            pool: pool.into(),
            port,
            last_port: port,
            is: PortIs::Allocated(Box::new(Allocated {
                service_instance: port.to_string(),
                name: None,
                protocol: protocol.into(),
                organization: "o".into(),
                space: "s".into(),
                plan: "p".into(),
                since: "2026-11-21T09:15:18Z".into(),
                allow: allow.iter().map(|network| (*network).into()).collect(),
                listener: None,
                backends_up: 0,
                backends: 0,
                flows: 0,
            })),
        };
        Ports {
            pools: vec![pool("default", "35000-35009, 35020"), pool("games", "50000-50009")],
            ports: vec![
                port("default", 35_000, "tcp", &[]),
                port("default", 35_001, "both", &[]),
                port("default", 35_002, "tcp", &[]),
                port("default", 35_020, "tcp", &[]),
                port("games", 50_000, "udp", &["10.1.0.0/16", "10.0.0.0/8", "fd00::/8"]),
                port("games", 50_001, "tcp", &["192.0.2.7/32"]),
            ],
            proxy_from: vec![],
            next: None,
        }
    }

    pub fn rules(allocated: bool, interface: Option<&str>) -> Rules {
        let made_at = "2026-11-21T09:15:18Z".into();
        Rules::of(&listed(), allocated, interface.map(Into::into), made_at).unwrap()
    }

    #[track_caller]
    fn check(listed: &Ports, allocated: bool, expected: &serde_json::Value) {
        let rules = Rules::of(listed, allocated, None, String::new()).unwrap().rules;
        assert_eq!(serde_json::to_value(rules).unwrap(), *expected);
    }

    #[test]
    fn ports_with_the_same_clients_are_one_rule() {
        check(
            &listed(),
            false,
            &serde_json::json!([
                { "transport": "tcp", "ports": ["35000-35009", "35020", "50000-50009"], "from": [] },
                { "transport": "udp", "ports": ["35000-35009", "35020", "50000-50009"], "from": [] },
            ]),
        );
        check(
            &listed(),
            true,
            &serde_json::json!([
                { "transport": "tcp", "ports": ["35000-35002", "35020"], "from": [] },
                { "transport": "udp", "ports": ["35001"], "from": [] },
                { "transport": "udp", "ports": ["50000"], "from": ["10.0.0.0/8", "fd00::/8"] },
                { "transport": "tcp", "ports": ["50001"], "from": ["192.0.2.7/32"] },
            ]),
        );
    }

    #[test]
    fn who_has_a_port_beside_a_range_that_has_shrunk_is_reached() {
        let mut listed = listed();
        listed.pools[0].pool.ports = "35001-35009".into();
        check(
            &listed,
            false,
            &serde_json::json!([
                { "transport": "tcp", "ports": ["35000-35009", "35020", "50000-50009"], "from": [] },
                { "transport": "udp", "ports": ["35000-35009", "35020", "50000-50009"], "from": [] },
            ]),
        );
    }

    #[test]
    fn balancers_reach_whatever_lets_some_clients_in() {
        let mut listed = listed();
        listed.proxy_from = vec!["10.0.0.31/32".into(), "192.0.2.8/32".into()];
        check(
            &listed,
            true,
            &serde_json::json!([
                { "transport": "tcp", "ports": ["35000-35002", "35020"], "from": [] },
                { "transport": "udp", "ports": ["35001"], "from": [] },
                { "transport": "udp", "ports": ["50000"], "from": ["10.0.0.0/8", "192.0.2.8/32", "fd00::/8"] },
                { "transport": "tcp", "ports": ["50001"], "from": ["10.0.0.31/32", "192.0.2.7/32", "192.0.2.8/32"] },
            ]),
        );
    }
}
