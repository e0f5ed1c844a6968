//! Which ports the kernel gives to outgoing connections: it may take any of them at any time, also one of a pool.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read as _},
    ops::RangeInclusive,
};

use crate::model::{PortSet, ports::merged};

const RANGE_FILE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED_FILE: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// The setting that keeps ports from outgoing connections.
pub const RESERVED_PORTS: &str = "net.ipv4.ip_local_reserved_ports";

/// Longest list that the kernel takes at once, in bytes: it would take the rest of a longer one as one more.
const MAX_LIST_BYTES: usize = 4095;

/// Longest list that there can be, in bytes: every other port, with a comma.
const LONGEST_LIST: usize = 256 * 1024;

/// Fewest ports that are left to outgoing connections: without any the machine reaches nobody.
pub const MIN_OUTGOING: usize = 1024;

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
        reserved: parse_reserved(&read_at_once(RESERVED_FILE)?).ok_or_else(|| unknown(RESERVED_FILE))?,
    })
}

/// The kernel answers the first read of a list, with as much as fits, and says that it ends there: one read has to do.
fn read_at_once(file: &str) -> io::Result<String> {
    let mut bytes = vec![0; LONGEST_LIST];
    let length = File::open(file)?.read(&mut bytes)?;
    if length == LONGEST_LIST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{file} is longer than any list of ports")));
    }
    bytes.truncate(length);
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

impl LocalPorts {
    /// The ports of `pool` that an outgoing connection may take; none when all are reserved or out of the range.
    #[must_use]
    pub fn exposed(&self, pool: &PortSet) -> PortSet {
        pool.filter(|port| self.is_outgoing(port))
    }

    /// How many ports outgoing connections may take.
    #[must_use]
    pub fn outgoing(&self) -> usize {
        self.range.clone().filter(|port| self.is_outgoing(*port)).count()
    }

    fn is_outgoing(&self, port: u16) -> bool {
        self.range.contains(&port) && !self.reserved.iter().any(|range| range.contains(&port))
    }

    /// The same with all ports of `pools` reserved too. What is reserved stays so.
    #[must_use]
    pub fn with_reserved<'a>(&self, pools: impl IntoIterator<Item = &'a PortSet>) -> Self {
        let more = pools.into_iter().flat_map(|pool| pool.ranges().iter().cloned());
        let reserved = merged(self.reserved.iter().cloned().chain(more).collect());
        Self { range: self.range.clone(), reserved }
    }

    /// What is reserved, as the kernel writes it: `8080,35000-40000`.
    #[must_use]
    pub fn reserved_list(&self) -> String {
        let mut list = String::new();
        for range in &self.reserved {
            let comma = if list.is_empty() { "" } else { "," };
            let _ = match range.start() == range.end() {
                true => write!(list, "{comma}{}", range.start()),
                false => write!(list, "{comma}{}-{}", range.start(), range.end()),
            };
        }
        list
    }

    /// The command that reserves all ports of `pools` too; none when the kernel would not take the list whole.
    #[must_use]
    pub fn reserving<'a>(&self, pools: impl IntoIterator<Item = &'a PortSet>) -> Option<String> {
        let list = self.with_reserved(pools).reserved_list();
        (list.len() <= MAX_LIST_BYTES).then(|| format!("sysctl -w {RESERVED_PORTS}={list}"))
    }
}

/// Why ports cannot be reserved.
#[derive(Debug, thiserror::Error)]
pub enum NotReserved {
    /// The kernel cannot be asked, or does not let this process.
    #[error("{RESERVED_PORTS} cannot be set: {0}")]
    Refused(#[from] io::Error),
    /// The machine could reach nobody.
    #[error(
        "with all pools reserved outgoing connections would have {left} ports, and they need {MIN_OUTGOING}: make the pools \
         smaller, or net.ipv4.ip_local_port_range larger"
    )]
    TooFewLeft {
        /// How many would be left.
        left: usize,
    },
    /// The kernel would not take it whole.
    #[error("the list of reserved ports would have more than {MAX_LIST_BYTES} bytes: make the pools of fewer ranges")]
    TooLong,
}

/// Reserves all ports of `pools`, and keeps what is reserved already. Returns what was set before and what is now, which
/// is the same when there was nothing to do.
///
/// # Errors
/// [`NotReserved`]; then nothing has changed.
pub fn reserve_ports<'a>(
    pools: impl IntoIterator<Item = &'a PortSet>,
) -> Result<(LocalPorts, LocalPorts), NotReserved> {
    let before = local_ports()?;
    let after = before.with_reserved(pools);
    if after.reserved == before.reserved {
        return Ok((before, after));
    }
    let (list, left) = (after.reserved_list(), after.outgoing());
    if left < MIN_OUTGOING {
        return Err(NotReserved::TooFewLeft { left });
    }
    if list.len() > MAX_LIST_BYTES {
        return Err(NotReserved::TooLong);
    }
    fs::write(RESERVED_FILE, list)?;
    Ok((before, after))
}

/// Two numbers with white space between them.
fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(str::parse);
    let range = numbers.next()?.ok()?..=numbers.next()?.ok()?;
    numbers.next().is_none().then_some(range)
}

/// `8080,35000-40000`, or nothing.
fn parse_reserved(text: &str) -> Option<Vec<RangeInclusive<u16>>> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range: RangeInclusive<u16> = first.parse().ok()?..=last.parse().ok()?;
        (!range.is_empty()).then_some(range)
    };
    let ranges = text.trim().split(',').filter(|part| !part.is_empty()).map(range);
    Some(merged(ranges.collect::<Option<Vec<_>>>()?))
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
        assert_eq!(parse_reserved("20000-2"), None, "it was cut short");
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
    fn reserving_keeps_what_is_reserved() {
        let check = |reserved: &str, pools: &[&str], expect: &str, left: usize| {
            let ports = LocalPorts { range: 32768..=60999, reserved: parse_reserved(reserved).unwrap() };
            let pools = pools.iter().map(|pool| pool.parse().unwrap()).collect::<Vec<PortSet>>();
            let after = ports.with_reserved(&pools);
            assert_eq!((after.reserved_list().as_str(), after.outgoing()), (expect, left));
            assert_eq!(after.with_reserved(&pools), after);
            assert_eq!(parse_reserved(&after.reserved_list()), Some(after.reserved));
        };
        check("", &[], "", 28232);
        check("22,8080,9148", &["35000-40000"], "22,8080,9148,35000-40000", 23231);
        check("35000-36000,40000-40010", &["35500-40000", "2000"], "2000,35000-40010", 23221);
        check("65535", &["1024-65535"], "1024-65535", 0);
    }

    #[test]
    fn no_command_is_told_that_the_kernel_would_take_in_part() {
        let one = |ports: &str| LocalPorts { range: 1..=2, reserved: vec![] }.reserving(&[ports.parse().unwrap()]);
        assert_eq!(one("2000").as_deref(), Some("sysctl -w net.ipv4.ip_local_reserved_ports=2000"));
        let scattered =
            |count: u16| (0..count).map(|index| (10_000 + index * 2).to_string()).collect::<Vec<_>>().join(",");
        assert_eq!((scattered(682).len(), scattered(683).len()), (4_091, 4_097));
        assert!(one(&scattered(682)).is_some());
        assert_eq!(one(&scattered(683)), None);
    }

    #[test]
    fn this_machine_can_be_asked() {
        let ports = local_ports().unwrap();
        assert!(ports.range.start() < ports.range.end());
    }
}
