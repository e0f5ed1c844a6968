//! The machine's own address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

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
    fn the_own_address_is_one_that_can_be_bound() {
        UdpSocket::bind(SocketAddr::new(own_address(), 0)).expect("it is an address of this machine");
    }
}
