//! Where the app of this container, or of this machine, is reached. Pure.

use std::net::IpAddr;

use serde::Deserialize;

use crate::model::{Protocol, Transport};

/// What Diego tells an app instance of where it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Container {
    /// `CF_INSTANCE_IP`: the cell's address.
    pub ip: Option<IpAddr>,
    /// `CF_INSTANCE_INTERNAL_IP`: the container's own.
    pub internal_ip: Option<IpAddr>,
    /// `CF_INSTANCE_PORTS`: ports of the cell that lead to ports of the container. TCP only.
    pub ports: Vec<Mapping>,
}

/// One of `CF_INSTANCE_PORTS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Mapping {
    /// The cell's port; absent where the platform maps none that is plain.
    pub external: Option<u16>,
    /// The container's.
    pub internal: u16,
}

/// An address that serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its host; none: whoever announces.
    pub host: Option<IpAddr>,
    /// Where TCP is served.
    pub port: Option<u16>,
    /// Where UDP is.
    pub udp_port: Option<u16>,
}

impl Place {
    /// What is served there.
    #[must_use]
    pub const fn protocol(&self) -> Protocol {
        match (self.port, self.udp_port) {
            (Some(_), Some(_)) => Protocol::Both,
            (None, Some(_)) => Protocol::Udp,
            (_, None) => Protocol::Tcp,
        }
    }
}

/// What the user says of it, which wins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Said {
    /// The host.
    pub host: Option<IpAddr>,
    /// Where TCP is served.
    pub port: Option<u16>,
    /// Where UDP is.
    pub udp_port: Option<u16>,
}

/// Where an app that listens on `int_port` is reached: one place, or two where TCP and UDP come to different addresses.
#[must_use]
pub fn places(protocol: Protocol, int_port: u16, container: &Container, said: Said) -> Vec<Place> {
    if said.port.is_some() || said.udp_port.is_some() {
        return vec![Place { host: said.host, port: said.port, udp_port: said.udp_port }];
    }
    let inside = (said.host.or(container.internal_ip), int_port);
    let mapping = container.ports.iter().find(|mapping| mapping.internal == int_port);
    let mapped = mapping.and_then(|mapping| mapping.external).map(|port| (said.host.or(container.ip), port));
    let tcp = protocol.has(Transport::Tcp).then(|| mapped.unwrap_or(inside));
    // Cells map TCP ports only.
    let udp = protocol.has(Transport::Udp).then_some(inside);
    match (tcp, udp) {
        (Some((host, port)), Some((udp_host, udp_port))) if host == udp_host => {
            vec![Place { host, port: Some(port), udp_port: Some(udp_port) }]
        }
        (tcp, udp) => {
            let tcp = tcp.map(|(host, port)| Place { host, port: Some(port), udp_port: None });
            let udp = udp.map(|(host, port)| Place { host, port: None, udp_port: Some(port) });
            tcp.into_iter().chain(udp).collect()
        }
    }
}

/// The app's own port that TCP comes to: the one that a port that was said leads to, else `int_port`.
#[must_use]
pub fn inner_port(int_port: u16, container: &Container, said: Said) -> u16 {
    let Some(port) = said.port else { return int_port };
    container.ports.iter().find(|mapping| mapping.external == Some(port)).map_or(port, |mapping| mapping.internal)
}

/// Reads `CF_INSTANCE_PORTS`.
///
/// # Errors
/// It is not what Diego writes there.
pub fn mappings(cf_instance_ports: &str) -> Result<Vec<Mapping>, serde_json::Error> {
    serde_json::from_str(cf_instance_ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(ports: &str) -> Container {
        Container {
            ip: Some("10.0.1.7".parse().unwrap()),
            internal_ip: Some("10.255.3.9".parse().unwrap()),
            ports: mappings(ports).unwrap(),
        }
    }

    #[track_caller]
    fn check(protocol: Protocol, container: &Container, said: Said, expect: &[&str]) {
        let show = |place: &Place| {
            let host = place.host.map_or_else(|| "caller".to_owned(), |host| host.to_string());
            let port = |port: Option<u16>| port.map_or_else(|| "-".to_owned(), |port| port.to_string());
            format!("{host} {} {}", port(place.port), port(place.udp_port))
        };
        let places = places(protocol, 4100, container, said);
        assert_eq!(places.iter().map(show).collect::<Vec<_>>(), expect);
    }

    #[test]
    fn tcp_comes_by_the_cell_where_it_maps_the_port_and_udp_never_does() {
        let mapped = container(
            r#"[{"external":61012,"internal":8080},{"external":61013,"internal":4100,"external_tls_proxy":61014}]"#,
        );
        check(Protocol::Tcp, &mapped, Said::default(), &["10.0.1.7 61013 -"]);
        check(Protocol::Udp, &mapped, Said::default(), &["10.255.3.9 - 4100"]);
        check(Protocol::Both, &mapped, Said::default(), &["10.0.1.7 61013 -", "10.255.3.9 - 4100"]);
        let unmapped =
            container(r#"[{"external":61012,"internal":8080},{"internal":4100,"external_tls_proxy":61014}]"#);
        check(Protocol::Both, &unmapped, Said::default(), &["10.255.3.9 4100 4100"]);
    }

    #[test]
    fn on_a_machine_it_is_whoever_announces() {
        check(Protocol::Both, &Container::default(), Said::default(), &["caller 4100 4100"]);
    }

    #[test]
    fn what_the_user_says_wins() {
        let host = Some("10.0.16.5".parse().unwrap());
        let mapped = container(r#"[{"external":61013,"internal":4100}]"#);
        check(Protocol::Both, &mapped, Said { port: Some(7777), ..Said::default() }, &["caller 7777 -"]);
        check(Protocol::Both, &mapped, Said { host, udp_port: Some(7), port: Some(8) }, &["10.0.16.5 8 7"]);
        check(Protocol::Tcp, &mapped, Said { host, ..Said::default() }, &["10.0.16.5 61013 -"]);
    }

    #[test]
    fn the_apps_own_port_is_the_one_that_the_announced_one_leads_to() {
        let mapped = container(r#"[{"external":61012,"internal":8080}]"#);
        let inner = |port| inner_port(4100, &mapped, Said { port, ..Said::default() });
        assert_eq!([inner(None), inner(Some(61012)), inner(Some(7777))], [4100, 8080, 7777]);
    }
}
