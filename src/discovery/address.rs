//! Which addresses a backend may have. Pure: nothing is resolved, nothing is asked of the machine.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::IpNet;

use crate::model::{PortSet, announcement::AnnouncementRefusal};

/// The metadata services of Amazon's and Google's clouds over IPv6; over IPv4 they are link-local.
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254), Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254)];

/// What decides whether a backend may have an address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AddressRules {
    /// Networks that backends may be in.
    pub backend_networks: Vec<IpNet>,
    /// Networks taken out of them.
    pub backend_deny: Vec<IpNet>,
    /// Networks of Diego cells: there an address is believed only where the platform has said whose it is.
    pub cell_networks: Vec<IpNet>,
    /// Addresses of the parts that Harbor itself uses, such as the store's and NATS's: a tenant must not reach them
    /// through it.
    pub infrastructure: BTreeSet<SocketAddr>,
    /// Addresses by which Harbor's nodes and pools are reached. Loopback always counts as one.
    pub own_hosts: BTreeSet<IpAddr>,
    /// Ports of all pools: at an own host they lead back into Harbor.
    pub pool_ports: PortSet,
    /// Where Harbor's own APIs listen; an unspecified address stands for every own host.
    pub own_apis: BTreeSet<SocketAddr>,
}

impl AddressRules {
    /// Whether the address is one of a Diego cell.
    #[must_use]
    pub fn is_on_cell(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.cell_networks.iter().any(|network| network.contains(&ip))
    }
}

/// The IP address that a message has as `host`, an IPv4-mapped one as IPv4. Names are never resolved: their owner could
/// change what they mean after they were checked.
///
/// # Errors
/// [`AnnouncementRefusal::HostNotAnAddress`].
pub fn parse_host(host: &str) -> Result<IpAddr, AnnouncementRefusal> {
    let address: IpAddr = host.parse().map_err(|_| AnnouncementRefusal::HostNotAnAddress)?;
    Ok(address.to_canonical())
}

/// Whether a backend may be at `address`.
///
/// # Errors
/// [`AnnouncementRefusal::AddressForbidden`] and [`AnnouncementRefusal::Loop`].
pub fn check(address: SocketAddr, rules: &AddressRules) -> Result<(), AnnouncementRefusal> {
    let ip = address.ip().to_canonical();
    let address = SocketAddr::new(ip, address.port());
    let within = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&ip));
    if is_never_a_backend(ip) || !within(&rules.backend_networks) || within(&rules.backend_deny) {
        return Err(AnnouncementRefusal::AddressForbidden);
    }
    let is_own = ip.is_loopback() || rules.own_hosts.contains(&ip);
    if is_own && rules.pool_ports.contains(address.port()) {
        return Err(AnnouncementRefusal::Loop);
    }
    if leads_to(address, &rules.own_apis, |ip| is_own && ip.is_unspecified()) {
        return Err(AnnouncementRefusal::Loop);
    }
    // What is configured as a loopback address may well listen on every address of this machine.
    let is_here = |ip: IpAddr| ip.is_unspecified() || ip.is_loopback() || rules.own_hosts.contains(&ip);
    if leads_to(address, &rules.infrastructure, |ip| is_own && is_here(ip)) {
        return Err(AnnouncementRefusal::AddressForbidden);
    }
    Ok(())
}

/// Whether something that listens at one of `listening` is reached at `address`; `is_same` says of which other IP
/// addresses it would be.
fn leads_to(address: SocketAddr, listening: &BTreeSet<SocketAddr>, is_same: impl Fn(IpAddr) -> bool) -> bool {
    listening.iter().any(|listening| {
        let ip = listening.ip().to_canonical();
        listening.port() == address.port() && (ip == address.ip() || is_same(ip))
    })
}

/// Whether no configuration makes this the address of a backend.
fn is_never_a_backend(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let is_this_network = ip.octets()[0] == 0;
            is_this_network || ip.is_multicast() || ip.is_link_local() || ip == Ipv4Addr::BROADCAST
        }
        IpAddr::V6(ip) => {
            ip.is_unspecified() || ip.is_multicast() || ip.is_unicast_link_local() || METADATA_V6.contains(&ip)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> AddressRules {
        let networks = ["10.0.0.0/8", "127.0.0.0/8", "fc00::/7", "::1/128"];
        AddressRules {
            backend_networks: networks.map(|network| network.parse().unwrap()).into(),
            backend_deny: vec!["10.66.0.0/16".parse().unwrap()],
            cell_networks: vec!["10.0.2.0/24".parse().unwrap()],
            infrastructure: ["10.0.0.9:4222".parse().unwrap()].into(),
            own_hosts: ["10.0.0.5".parse().unwrap()].into(),
            pool_ports: "35000-40000".parse().unwrap(),
            own_apis: ["0.0.0.0:8082".parse().unwrap(), "[::]:8083".parse().unwrap(), "10.0.0.6:8081".parse().unwrap()]
                .into(),
        }
    }

    #[track_caller]
    fn check_each(rules: &AddressRules, addresses: &[&str], expect: Result<(), AnnouncementRefusal>) {
        for text in addresses {
            assert_eq!(check(text.parse().expect(text), rules), expect, "{text}");
        }
    }

    #[test]
    fn a_backend_is_in_the_networks_that_are_left() {
        check_each(&rules(), &["10.0.1.7:61012", "10.0.0.5:80", "[fd12::1]:80", "[::ffff:10.0.1.7]:80"], Ok(()));
        check_each(
            &rules(),
            &[
                "192.168.0.1:80",
                "8.8.8.8:53",
                "10.66.0.1:80",
                "[2001:db8::1]:80",
                "[::ffff:8.8.8.8]:80",
                "[::ffff:10.66.0.1]:80",
            ],
            Err(AnnouncementRefusal::AddressForbidden),
        );
    }

    #[test]
    fn loopback_is_a_backend_only_where_it_is_asked_for() {
        check_each(&rules(), &["127.0.0.1:9000", "[::1]:9000"], Ok(()));
        let private = AddressRules { backend_networks: vec!["10.0.0.0/8".parse().unwrap()], ..rules() };
        check_each(&private, &["127.0.0.1:9000", "[::1]:9000"], Err(AnnouncementRefusal::AddressForbidden));
    }

    #[test]
    fn some_addresses_are_never_a_backends() {
        let all = ["0.0.0.0/0", "::/0"].map(|network| network.parse().unwrap());
        let anything = AddressRules { backend_networks: all.into(), ..AddressRules::default() };
        check_each(&anything, &["8.8.8.8:1", "[2001:db8::1]:1"], Ok(()));
        check_each(
            &anything,
            &[
                "0.0.0.0:1",
                "0.1.2.3:1",
                "[::]:1",
                "224.0.0.1:1",
                "[ff02::1]:1",
                "169.254.169.254:80",
                "169.254.0.1:1",
                "[fe80::1]:1",
                "[fd00:ec2::254]:80",
                "[fd20:ce::254]:80",
                "255.255.255.255:1",
                "[::ffff:169.254.169.254]:80",
                "[::ffff:0.0.0.0]:1",
            ],
            Err(AnnouncementRefusal::AddressForbidden),
        );
    }

    #[test]
    fn harbors_own_ports_would_go_in_circles() {
        check_each(
            &rules(),
            &[
                "10.0.0.5:35000",
                "127.0.0.1:40000",
                "127.9.9.9:35012",
                "[::1]:35012",
                "[::ffff:10.0.0.5]:35012",
                "10.0.0.5:8082",
                "127.0.0.1:8083",
                "10.0.0.6:8081",
            ],
            Err(AnnouncementRefusal::Loop),
        );
        check_each(&rules(), &["10.0.0.5:34999", "10.0.0.6:35000", "10.0.0.6:8082", "10.0.0.5:8081"], Ok(()));
    }

    #[test]
    fn what_harbor_itself_uses_is_no_backend() {
        check_each(&rules(), &["10.0.0.9:4222", "[::ffff:10.0.0.9]:4222"], Err(AnnouncementRefusal::AddressForbidden));
        check_each(&rules(), &["10.0.0.9:4223", "10.0.0.8:4222", "10.0.0.5:4222"], Ok(()));
        let local = AddressRules { infrastructure: ["127.0.0.1:4222".parse().unwrap()].into(), ..rules() };
        check_each(
            &local,
            &["127.0.0.1:4222", "10.0.0.5:4222", "[::1]:4222"],
            Err(AnnouncementRefusal::AddressForbidden),
        );
        check_each(&local, &["10.0.0.9:4222"], Ok(()));
    }

    #[test]
    fn a_host_is_an_ip_literal() {
        for (host, expect) in [
            ("10.0.1.7", Ok("10.0.1.7".parse().unwrap())),
            ("::ffff:10.0.1.7", Ok("10.0.1.7".parse().unwrap())),
            ("fd12::1", Ok("fd12::1".parse().unwrap())),
            ("", Err(AnnouncementRefusal::HostNotAnAddress)),
            ("app.internal", Err(AnnouncementRefusal::HostNotAnAddress)),
            ("[fd12::1]", Err(AnnouncementRefusal::HostNotAnAddress)),
            ("fe80::1%eth0", Err(AnnouncementRefusal::HostNotAnAddress)),
            ("10.0.1.7:80", Err(AnnouncementRefusal::HostNotAnAddress)),
            ("010.0.1.7", Err(AnnouncementRefusal::HostNotAnAddress)),
            ("10.1", Err(AnnouncementRefusal::HostNotAnAddress)),
            ("0x0a000107", Err(AnnouncementRefusal::HostNotAnAddress)),
            (" 10.0.1.7", Err(AnnouncementRefusal::HostNotAnAddress)),
        ] {
            assert_eq!(parse_host(host), expect, "{host:?}");
        }
    }
}
