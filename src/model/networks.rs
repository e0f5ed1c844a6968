//! Networks: a set of them that is asked for each client, and how one is written.

use std::net::IpAddr;

use ipnet::IpNet;

/// A set of networks. To ask it costs the logarithm of their number; to ask an empty one, a look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Networks {
    /// First and last addresses, in order, no two of which touch one another's. IPv4 comes first.
    ranges: Vec<(IpAddr, IpAddr)>,
}

impl Networks {
    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether a client is in one of them. IPv4 clients that come in over a dual-stack socket count as IPv4.
    #[must_use]
    pub fn contains(&self, client: IpAddr) -> bool {
        !self.is_empty() && {
            let client = client.to_canonical();
            self.meets(client, client)
        }
    }

    /// Whether a network has an address in common with one of them.
    #[must_use]
    pub fn overlaps(&self, network: IpNet) -> bool {
        self.meets(network.network(), network.broadcast())
    }

    fn meets(&self, first: IpAddr, last: IpAddr) -> bool {
        let after = self.ranges.partition_point(|(begin, _)| *begin <= last);
        after > 0 && self.ranges[after - 1].1 >= first
    }
}

impl FromIterator<IpNet> for Networks {
    fn from_iter<T: IntoIterator<Item = IpNet>>(networks: T) -> Self {
        let mut all = networks.into_iter().map(canonical).collect::<Vec<_>>();
        all.sort_by_key(IpNet::network);
        let mut ranges: Vec<(IpAddr, IpAddr)> = Vec::with_capacity(all.len());
        // Of two networks that meet, one is within the other.
        for network in all {
            match ranges.last_mut() {
                Some((_, last)) if network.network() <= *last => *last = network.broadcast().max(*last),
                _ => ranges.push((network.network(), network.broadcast())),
            }
        }
        Self { ranges }
    }
}

/// What is written as a network, or as an address alone, which is a network of one.
#[must_use]
pub fn parse(text: &str) -> Option<IpNet> {
    let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    network.map(canonical)
}

/// The network without what follows its prefix. One of IPv4 addresses that is written in IPv6's way means those: all
/// addresses that it is asked for are written in the other.
fn canonical(network: IpNet) -> IpNet {
    let network = network.trunc();
    match (network.addr().to_canonical(), network.prefix_len().checked_sub(96)) {
        (v4 @ IpAddr::V4(_), Some(prefix)) if network.addr().is_ipv6() => {
            IpNet::new(v4, prefix).expect("a prefix of IPv6 less 96 is one of IPv4")
        }
        _ => network,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(of: &[&str]) -> Networks {
        of.iter().map(|text| parse(text).unwrap()).collect()
    }

    #[test]
    fn a_client_is_in_a_set_as_it_is_in_one_of_its_networks() {
        let written =
            ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.7", "192.0.2.8/31", "255.255.255.255", "2001:db8::/32", "::"];
        let (set, each) = (networks(&written), written.map(|text| parse(text).unwrap()));
        for client in [
            "9.255.255.255",
            "10.0.0.0",
            "10.1.2.3",
            "10.255.255.255",
            "11.0.0.0",
            "192.0.2.6",
            "192.0.2.7",
            "192.0.2.8",
            "192.0.2.9",
            "192.0.2.10",
            "0.0.0.0",
            "255.255.255.254",
            "255.255.255.255",
            "::",
            "::1",
            "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
            "2001:db8::",
            "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
            "2001:db9::",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ] {
            let client = client.parse::<IpAddr>().unwrap();
            let expected = each.iter().any(|network| network.contains(&client));
            assert_eq!(set.contains(client), expected, "{client}");
            assert_eq!(set.overlaps(client.into()), expected, "{client}");
        }
        assert!(!Networks::default().contains([10, 0, 0, 1].into()));
    }

    #[test]
    fn a_network_meets_the_set_by_any_of_its_addresses() {
        let set = networks(&["10.1.0.0/16", "2001:db8::1"]);
        for (network, expected) in [
            ("10.0.0.0/8", true),
            ("10.1.2.0/24", true),
            ("10.2.0.0/16", false),
            ("2001:db8::/64", true),
            ("::/1", true),
        ] {
            assert_eq!(set.overlaps(parse(network).unwrap()), expected, "{network}");
        }
    }

    #[test]
    fn ipv4_is_ipv4_however_it_is_written() {
        for (written, read) in [
            ("10.1.2.3/8", Some("10.0.0.0/8")),
            ("192.0.2.7", Some("192.0.2.7/32")),
            ("::ffff:10.0.0.0/104", Some("10.0.0.0/8")),
            ("::ffff:10.0.0.1", Some("10.0.0.1/32")),
            ("fc00::1", Some("fc00::1/128")),
            ("10.0.0.0/33", None),
            ("example.com", None),
            ("", None),
        ] {
            assert_eq!(parse(written).map(|network| network.to_string()).as_deref(), read, "{written:?}");
        }
        let mapped = "::ffff:10.1.2.3".parse().unwrap();
        assert!(networks(&["10.0.0.0/8"]).contains(mapped));
        assert!(networks(&["::ffff:10.0.0.0/104"]).contains([10, 1, 2, 3].into()));
    }
}
