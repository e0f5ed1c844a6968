//! The PROXY protocol, versions 1 and 2: the header that tells a backend who its client is.
//!
//! Built for backends, and parsed from balancers in front. Bytes in, values out; nothing here waits or decides whom to
//! believe.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::model::Transport;

/// The longest header that is read: a version 2 header with room for its optional fields.
pub const MAX_HEADER_BYTES: usize = 1024;

/// The longest version 1 header, its line end included, as the protocol says.
const MAX_V1_BYTES: usize = 107;

const V1_START: &[u8] = b"PROXY ";
const V2_START: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Start, version and command, family and transport, length.
const V2_FIXED_BYTES: usize = 16;

const V2_LOCAL: u8 = 0x20;
const V2_PROXY: u8 = 0x21;
const V2_IPV4: u8 = 0x10;
const V2_IPV6: u8 = 0x20;
const V2_STREAM: u8 = 0x01;
const V2_DATAGRAM: u8 = 0x02;

/// Two ends of a connection or session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The client.
    pub source: SocketAddr,
    /// What it connected to.
    pub destination: SocketAddr,
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// The balancer speaks for this client.
    Proxied(Ends),
    /// The balancer speaks for itself, as in a health check, or does not know the client.
    Own,
}

/// What the bytes so far come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// A header of so many bytes.
    Whole(Header, usize),
    /// The beginning of one.
    Incomplete,
    /// No header.
    Bad,
}

impl Ends {
    /// Both in the same family: IPv4 where both are, also behind a dual-stack socket; else IPv6.
    fn aligned(self) -> Self {
        let canonical = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        let (source, destination) = (canonical(self.source), canonical(self.destination));
        if source.is_ipv4() == destination.is_ipv4() {
            return Self { source, destination };
        }
        let mapped = |end: SocketAddr| match end.ip() {
            IpAddr::V4(address) => SocketAddr::new(address.to_ipv6_mapped().into(), end.port()),
            IpAddr::V6(_) => end,
        };
        Self { source: mapped(source), destination: mapped(destination) }
    }

    /// The text form.
    #[must_use]
    pub fn v1(self) -> Vec<u8> {
        let Self { source, destination } = self.aligned();
        let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
        let mut header = Vec::with_capacity(MAX_V1_BYTES);
        write!(
            header,
            "PROXY {family} {} {} {} {}\r\n",
            source.ip(),
            destination.ip(),
            source.port(),
            destination.port()
        )
        .expect("writing to a Vec cannot fail");
        header
    }

    /// The binary form.
    #[must_use]
    pub fn v2(self, transport: Transport) -> Vec<u8> {
        let Self { source, destination } = self.aligned();
        let mut addresses = Vec::with_capacity(36);
        for end in [source, destination] {
            match end.ip() {
                IpAddr::V4(address) => addresses.extend(address.octets()),
                IpAddr::V6(address) => addresses.extend(address.octets()),
            }
        }
        for end in [source, destination] {
            addresses.extend(end.port().to_be_bytes());
        }
        let family = if source.is_ipv4() { V2_IPV4 } else { V2_IPV6 };
        let kind = match transport {
            Transport::Tcp => V2_STREAM,
            Transport::Udp => V2_DATAGRAM,
        };
        let length = u16::try_from(addresses.len()).expect("at most 36 bytes");
        let mut header = Vec::with_capacity(V2_FIXED_BYTES + addresses.len());
        header.extend(V2_START);
        header.extend([V2_PROXY, family | kind]);
        header.extend(length.to_be_bytes());
        header.extend(addresses);
        header
    }
}

/// Reads a header off the beginning of `bytes`. Over UDP there is only version 2.
#[must_use]
pub fn parse(bytes: &[u8], transport: Transport) -> Parsed {
    let common = |start: &[u8]| bytes.iter().zip(start).all(|(a, b)| a == b);
    if common(V2_START) {
        if bytes.len() < V2_START.len() { Parsed::Incomplete } else { parse_v2(bytes, transport) }
    } else if transport == Transport::Tcp && common(V1_START) {
        if bytes.len() < V1_START.len() { Parsed::Incomplete } else { parse_v1(bytes) }
    } else {
        Parsed::Bad
    }
}

fn parse_v1(bytes: &[u8]) -> Parsed {
    let line = &bytes[..bytes.len().min(MAX_V1_BYTES)];
    let Some(end) = line.windows(2).position(|pair| pair == b"\r\n") else {
        return if line.len() < MAX_V1_BYTES { Parsed::Incomplete } else { Parsed::Bad };
    };
    let header = std::str::from_utf8(&line[V1_START.len()..end]).ok().and_then(parse_v1_fields);
    header.map_or(Parsed::Bad, |header| Parsed::Whole(header, end + 2))
}

fn parse_v1_fields(fields: &str) -> Option<Header> {
    let mut fields = fields.split(' ');
    let family = fields.next()?;
    if family == "UNKNOWN" {
        return Some(Header::Own);
    }
    let mut address = || match family {
        "TCP4" => fields.next()?.parse().ok().map(IpAddr::V4),
        "TCP6" => fields.next()?.parse().ok().map(IpAddr::V6),
        _ => None,
    };
    let (source, destination) = (address()?, address()?);
    let mut port = || {
        let text = fields.next()?;
        let number = text.parse().ok()?;
        // A sign or a leading zero is read by `parse`, but is not in the protocol.
        (u16::to_string(&number) == text).then_some(number)
    };
    let (source_port, destination_port) = (port()?, port()?);
    let source = SocketAddr::new(source, source_port);
    let destination = SocketAddr::new(destination, destination_port);
    fields.next().is_none().then_some(Header::Proxied(Ends { source, destination }))
}

fn parse_v2(bytes: &[u8], transport: Transport) -> Parsed {
    let Some((fixed, rest)) = bytes.split_first_chunk::<V2_FIXED_BYTES>() else { return Parsed::Incomplete };
    let [.., command, kind, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if V2_FIXED_BYTES + length > MAX_HEADER_BYTES || !matches!(command, V2_LOCAL | V2_PROXY) {
        return Parsed::Bad;
    }
    let Some(body) = rest.get(..length) else { return Parsed::Incomplete };
    let whole = |header| Parsed::Whole(header, V2_FIXED_BYTES + length);
    if command == V2_LOCAL || kind == 0 {
        return whole(Header::Own);
    }
    let expected = match transport {
        Transport::Tcp => V2_STREAM,
        Transport::Udp => V2_DATAGRAM,
    };
    if kind & 0x0f != expected {
        return Parsed::Bad;
    }
    let ends = match kind & 0xf0 {
        V2_IPV4 => ends::<4>(body, |octets| Ipv4Addr::from(octets).into()),
        V2_IPV6 => ends::<16>(body, |octets| Ipv6Addr::from(octets).into()),
        _ => None,
    };
    ends.map_or(Parsed::Bad, |ends| whole(Header::Proxied(ends)))
}

/// Two addresses of `N` bytes, then their two ports; what follows are optional fields.
fn ends<const N: usize>(body: &[u8], address: impl Fn([u8; N]) -> IpAddr) -> Option<Ends> {
    let (source, rest) = body.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let (source_port, rest) = rest.split_first_chunk::<2>()?;
    let (destination_port, _) = rest.split_first_chunk::<2>()?;
    Some(Ends {
        source: SocketAddr::new(address(*source), u16::from_be_bytes(*source_port)),
        destination: SocketAddr::new(address(*destination), u16::from_be_bytes(*destination_port)),
    })
}

#[cfg(test)]
mod tests;
