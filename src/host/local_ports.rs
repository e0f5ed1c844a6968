//! Which ports the kernel gives to outgoing connections: it may take any of them at any time, also one of a pool.

use std::{fs, io, ops::RangeInclusive};

use crate::model::PortSet;

const RANGE_FILE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED_FILE: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// The ports of outgoing connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPorts {
    /// `net.ipv4.ip_local_port_range`.
    pub range: RangeInclusive<u16>,
    /// `net.ipv4.ip_local_reserved_ports`: kept out of the range.
    pub reserved: Vec<RangeInclusive<u16>>,
}

/// What the kernel has set.
///
/// # Errors
/// When `/proc` cannot be read, or says something unknown.
pub fn local_ports() -> io::Result<LocalPorts> {
    let unknown = |file: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{file} has an unknown form"));
    Ok(LocalPorts {
        range: parse_range(&fs::read_to_string(RANGE_FILE)?).ok_or_else(|| unknown(RANGE_FILE))?,
        reserved: parse_reserved(&fs::read_to_string(RESERVED_FILE)?).ok_or_else(|| unknown(RESERVED_FILE))?,
    })
}

impl LocalPorts {
    /// The ports of `pool` that an outgoing connection may take; none when all are reserved or out of the range.
    #[must_use]
    pub fn exposed(&self, pool: &PortSet) -> PortSet {
        let is_exposed =
            |port: &u16| self.range.contains(port) && !self.reserved.iter().any(|range| range.contains(port));
        PortSet::from_ranges(pool.iter().filter(is_exposed).map(|port| port..=port))
            .expect("each is a port of the pool")
    }
}

/// Two numbers with white space between them.
fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(str::parse);
    let range = numbers.next()?.ok()?..=numbers.next()?.ok()?;
    numbers.next().is_none().then_some(range)
}

/// `8080,35000-40000`, or nothing.
fn parse_reserved(text: &str) -> Option<Vec<RangeInclusive<u16>>> {
    let range = |part: &str| match part.split_once('-') {
        Some((first, last)) => Some(first.parse().ok()?..=last.parse().ok()?),
        None => part.parse().ok().map(|port| port..=port),
    };
    text.trim().split(',').filter(|part| !part.is_empty()).map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_range("32768\t60999\n"), Some(32768..=60999));
        assert_eq!(parse_reserved("\n"), Some(vec![]));
        assert_eq!(parse_reserved("8080,35000-40000\n"), Some(vec![8080..=8080, 35000..=40000]));
        for text in ["", "1", "a b", "1 2 3", "1 65536"] {
            assert_eq!(parse_range(text), None, "{text}");
        }
        assert_eq!(parse_reserved("8080,x"), None);
    }

    #[test]
    fn ports_are_exposed_where_they_are_in_the_range_and_not_reserved() {
        let check = |pool: &str, reserved: &str, expect: &str| {
            let ports = LocalPorts { range: 32768..=60999, reserved: parse_reserved(reserved).unwrap() };
            assert_eq!(ports.exposed(&pool.parse().unwrap()).to_string(), expect);
        };
        check("35000-40000", "", "35000-40000");
        check("35000-40000", "35000-40000", "");
        check("35000-40000", "36000-36999,38000", "35000-35999, 37000-37999, 38001-40000");
        check("30000-33000,61000", "", "32768-33000");
        check("20000-29999", "", "");
    }

    #[test]
    fn this_machine_can_be_asked() {
        let ports = local_ports().unwrap();
        assert!(ports.range.start() < ports.range.end());
    }
}
