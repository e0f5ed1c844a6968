//! The machine's own addresses.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

const IPV4_FILE: &str = "/proc/net/fib_trie";
const IPV6_FILE: &str = "/proc/net/if_inet6";

/// Every address that this machine has at this moment, on all its interfaces.
///
/// # Errors
/// When `/proc` cannot be read. A machine without IPv6 has no file for it, and no such addresses.
pub fn own_addresses() -> io::Result<BTreeSet<IpAddr>> {
    let mut addresses = parse_fib_trie(&fs::read_to_string(IPV4_FILE)?);
    match fs::read_to_string(IPV6_FILE) {
        Ok(text) => addresses.extend(parse_if_inet6(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(addresses)
}

/// The routing table as a tree: a leaf `|-- 10.0.0.5` whose next lines say what it is, `/32 host LOCAL` for an address
/// of this machine.
fn parse_fib_trie(text: &str) -> BTreeSet<IpAddr> {
    let mut leaf = None;
    let mut addresses = BTreeSet::new();
    for line in text.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL" {
            addresses.extend(leaf.map(IpAddr::V4));
        }
    }
    addresses
}

/// `fd120000000000000000000000000005 02 40 00 80     eth0`
fn parse_if_inet6(text: &str) -> BTreeSet<IpAddr> {
    let address = |line: &str| u128::from_str_radix(line.split_whitespace().next()?, 16).ok();
    text.lines().filter_map(address).map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))).collect()
}

/// The address that this machine has towards others: the source address of its default route, IPv4 first; loopback
/// when it has none. Nothing is sent: the kernel is only asked which way it would take.
#[must_use]
pub fn own_address() -> IpAddr {
    // Addresses set aside for documentation: never anybody's, always by the default route.
    let elsewhere: [(IpAddr, IpAddr); 2] = [
        (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()),
    ];
    let source = |(any, there): (IpAddr, IpAddr)| {
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
        socket.connect(SocketAddr::new(there, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_unspecified())
    };
    elsewhere.into_iter().find_map(source).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_kernel_writes_them() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     +-- 10.0.0.0/24 2 0 2\n        \
                    |-- 10.0.0.0\n           /24 link UNICAST\n        |-- 10.0.0.5\n           /32 host LOCAL\n        \
                    |-- 10.0.0.255\n           /32 link BROADCAST\n";
        assert_eq!(parse_fib_trie(trie), ["10.0.0.5".parse().unwrap()].into());
        let inet6 = "00000000000000000000000000000001 01 80 10 80       lo\n\
                     fd120000000000000000000000000005 02 40 00 80     eth0\n";
        assert_eq!(parse_if_inet6(inet6), ["::1".parse().unwrap(), "fd12::5".parse().unwrap()].into());
    }

    #[test]
    fn the_own_addresses_hold_loopback_and_the_own_address() {
        let addresses = own_addresses().unwrap();
        assert!(addresses.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)), "{addresses:?}");
        assert!(addresses.contains(&own_address()), "{addresses:?}");
    }

    #[test]
    fn the_own_address_is_one_that_can_be_bound() {
        UdpSocket::bind(SocketAddr::new(own_address(), 0)).expect("it is an address of this machine");
    }
}
