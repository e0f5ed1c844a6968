//! Sets of port numbers, as operators write them: `35000-40000`, `35000 - 40000`, `35000-35999, 37000`.

use std::{fmt, ops::RangeInclusive, str::FromStr};

/// The lowest port a pool may hold: those below need privileges and belong to well-known services.
pub const LOWEST_PORT: u16 = 1024;

/// Ports in ascending, disjoint, non-adjacent ranges.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortSet {
    ranges: Vec<RangeInclusive<u16>>,
}

/// Why a text is not a set of ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPorts {
    /// Nothing in it.
    #[error("a port range is empty: write for example \"35000-40000\"")]
    Empty,
    /// A part that is neither a port nor a range.
    #[error("{0:?} is neither a port nor a range: write for example \"35000-40000\" or \"37000\"")]
    NotANumber(String),
    /// Ends before it begins.
    #[error("the range {0}-{1} ends before it begins")]
    Reversed(u16, u16),
    /// Contains a port below [`LOWEST_PORT`].
    #[error("port {0} is below {LOWEST_PORT}: ports 0 to 1023 cannot be given out")]
    Privileged(u16),
}

impl PortSet {
    /// The union of `ranges`.
    ///
    /// # Errors
    /// [`BadPorts`] when one is reversed or reaches below [`LOWEST_PORT`].
    pub fn from_ranges(ranges: impl IntoIterator<Item = RangeInclusive<u16>>) -> Result<Self, BadPorts> {
        let ranges = ranges.into_iter().collect::<Vec<_>>();
        for range in &ranges {
            if range.start() > range.end() {
                return Err(BadPorts::Reversed(*range.start(), *range.end()));
            }
            if *range.start() < LOWEST_PORT {
                return Err(BadPorts::Privileged(*range.start()));
            }
        }
        Ok(Self { ranges: merged(ranges) })
    }

    /// Those of its ports that `keep` says yes to.
    #[must_use]
    pub fn filter(&self, keep: impl Fn(u16) -> bool) -> Self {
        Self { ranges: merged(self.iter().filter(|port| keep(*port)).map(|port| port..=port).collect()) }
    }

    /// Parses several texts, each of which may hold several ranges, into one set.
    ///
    /// # Errors
    /// [`BadPorts`], also when there is no port at all.
    pub fn parse_all<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, BadPorts> {
        let parts = texts.into_iter().flat_map(|text| text.split(',')).map(str::trim);
        let ranges = parts.map(parse_range).collect::<Result<Vec<_>, _>>()?;
        if ranges.is_empty() {
            return Err(BadPorts::Empty);
        }
        Self::from_ranges(ranges)
    }

    /// Its ranges: ascending, disjoint and not adjacent.
    #[must_use]
    pub fn ranges(&self) -> &[RangeInclusive<u16>] {
        &self.ranges
    }

    /// Every port, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.ranges.iter().cloned().flatten()
    }

    /// Whether `port` is in it.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.ranges.iter().any(|range| range.contains(&port))
    }

    /// How many ports it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ranges.iter().map(|range| usize::from(*range.end() - *range.start()) + 1).sum()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The first port that both sets hold.
    #[must_use]
    pub fn first_common(&self, other: &Self) -> Option<u16> {
        self.ranges
            .iter()
            .flat_map(|a| other.ranges.iter().map(move |b| (*a.start()).max(*b.start())..=(*a.end()).min(*b.end())))
            .filter(|common| common.start() <= common.end())
            .map(|common| *common.start())
            .min()
    }
}

/// The same ports in ascending, disjoint, non-adjacent ranges. None of `ranges` is reversed.
#[must_use]
pub fn merged(mut ranges: Vec<RangeInclusive<u16>>) -> Vec<RangeInclusive<u16>> {
    ranges.sort_by_key(|range| *range.start());
    let mut merged: Vec<RangeInclusive<u16>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => {
                *last = *last.start()..=(*last.end()).max(*range.end());
            }
            _ => merged.push(range),
        }
    }
    merged
}

fn parse_range(text: &str) -> Result<RangeInclusive<u16>, BadPorts> {
    if text.is_empty() {
        return Err(BadPorts::Empty);
    }
    let number = |part: &str| part.trim().parse::<u16>().map_err(|_| BadPorts::NotANumber(text.into()));
    match text.split_once('-') {
        Some((from, to)) => Ok(number(from)?..=number(to)?),
        None => number(text).map(|port| port..=port),
    }
}

impl FromStr for PortSet {
    type Err = BadPorts;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse_all([text])
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.ranges.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            if range.start() == range.end() {
                write!(f, "{comma}{}", range.start())?;
            } else {
                write!(f, "{comma}{}-{}", range.start(), range.end())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, shown: &str, len: usize) {
        let set: PortSet = text.parse().unwrap();
        assert_eq!((set.to_string().as_str(), set.len(), set.iter().count()), (shown, len, len), "{text}");
    }

    #[test]
    fn every_way_of_writing_a_range_is_read() {
        check("35000-40000", "35000-40000", 5001);
        check("35000 - 40000", "35000-40000", 5001);
        check("35000-35999, 37000", "35000-35999, 37000", 1001);
        check("37000,35000-35999,36000-36001", "35000-36001, 37000", 1003);
        check("65535,1024", "1024, 65535", 2);
        check("2000-2010,2005-2020", "2000-2020", 21);
        assert_eq!(PortSet::parse_all(["2000-2001", "2002"]).unwrap().to_string(), "2000-2002");
    }

    #[test]
    fn what_is_not_a_range_says_why() {
        for (text, error) in [
            ("", BadPorts::Empty),
            ("35000,", BadPorts::Empty),
            ("a-b", BadPorts::NotANumber("a-b".into())),
            ("35000-70000", BadPorts::NotANumber("35000-70000".into())),
            ("35000-36000-37000", BadPorts::NotANumber("35000-36000-37000".into())),
            ("40000-35000", BadPorts::Reversed(40000, 35000)),
            ("1023", BadPorts::Privileged(1023)),
            ("1-65535", BadPorts::Privileged(1)),
            ("0", BadPorts::Privileged(0)),
        ] {
            assert_eq!(text.parse::<PortSet>(), Err(error), "{text}");
        }
        assert_eq!(PortSet::parse_all([]), Err(BadPorts::Empty));
    }

    #[test]
    fn overlap_names_the_first_common_port() {
        let set = |text: &str| text.parse::<PortSet>().unwrap();
        assert_eq!(set("2000-3000").first_common(&set("2500-2600,1500-2000")), Some(2000));
        assert_eq!(set("2000-3000").first_common(&set("3001-4000")), None);
        assert!(set("2000-3000").contains(3000) && !set("2000-3000").contains(3001));
    }
}
