//! `ports.toml`: the port registry as a file, to be kept beside other files and compared before it is applied.
//!
//! What it means, and its limits, is in `docs/ports.md`.

use std::{ops::RangeInclusive, path::Path, sync::Arc};

use super::{
    ConfigError,
    entry::{self, Entry, Origin, Problem, Value},
    node::{self, is_name},
    read_file,
    section::{Findings, Section},
    value,
};
use crate::model::{
    PoolName, PortSet, Protocol,
    pool::Pool,
    registry::{self, Block, Claim, PortAllocator, Wanted, Wish},
};

/// Most entries of a file.
pub const MAX_ENTRIES: usize = 4096;

/// Most sections of a file.
pub const MAX_SECTIONS: usize = 256;

/// A registry as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortsFile {
    parts: Vec<Part>,
}

/// One section: the names of a pool, or of a block that no pool gives out.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    name: PoolName,
    at: Origin,
    /// Of a block. A pool's is in the configuration.
    range: Option<(PortSet, Origin)>,
    wishes: Vec<(Wish, Origin)>,
}

/// What a file comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolved {
    /// Every name that got its ports, and where it is written.
    pub claims: Vec<(Claim, Origin)>,
    /// The ranges of blocks, and where they are written.
    pub ranges: Vec<(PoolName, PortSet, Origin)>,
    /// All that is wrong.
    pub problems: Vec<Problem>,
}

impl PortsFile {
    /// Reads a file. What its names come to is not looked at yet.
    ///
    /// # Errors
    /// All that is wrong with its form.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = read_file(path, "name a file with port reservations").map_err(|message| ConfigError {
            problems: vec![Problem { at: Origin::File(name.as_str().into()), message }],
        })?;
        Self::check(&text, &name)
    }

    /// The same with the text at hand; `name` is what to call it in messages.
    ///
    /// # Errors
    /// All that is wrong with its form.
    pub fn check(text: &str, name: &str) -> Result<Self, ConfigError> {
        let name: Arc<str> = name.into();
        let table = entry::parse(text, entry::places(&name, text)).map_err(|problems| ConfigError { problems })?;
        let (origin, findings) = (Origin::File(name), Findings::default());
        let root = Section::root(table, origin.clone(), &findings);
        let parts = root.into_sections().into_iter().filter_map(|(name, section)| Part::read(&name, section));
        let parts = parts.collect::<Vec<_>>();
        let entries = parts.iter().map(|part| part.wishes.len()).sum::<usize>();
        for (count, most, of) in [(parts.len(), MAX_SECTIONS, "sections"), (entries, MAX_ENTRIES, "entries")] {
            if count > most {
                let message = format!("it has {count} {of}: at most {most} are taken");
                findings.add(Problem { at: origin.clone(), message });
            }
        }
        match findings.into_problems() {
            problems if problems.is_empty() => Ok(Self { parts }),
            problems => Err(ConfigError { problems }),
        }
    }

    /// The sections as they are written: the pool or block, the range of a block, and its entries.
    pub fn sections(&self) -> impl Iterator<Item = (&PoolName, Option<&PortSet>, Vec<&Wish>)> {
        self.parts.iter().map(|part| {
            let range = part.range.as_ref().map(|(range, _)| range);
            (&part.name, range, part.wishes.iter().map(|(wish, _)| wish).collect())
        })
    }

    /// Gives every name its ports. `pools` are those of the configuration; without one only blocks that have a range
    /// can choose, and whether a pool has a port is not looked at.
    #[must_use]
    pub fn resolve(&self, pools: Option<&[Pool]>) -> Resolved {
        let mut resolved = Resolved::default();
        self.parts.iter().for_each(|part| part.resolve(pools, &mut resolved));
        resolved
    }
}

impl Part {
    fn read(name: &str, mut section: Section<'_>) -> Option<Self> {
        let at = section.place();
        let range = section.get("range", |entry| Ok((value::ports(entry)?, entry.at.clone())));
        let mut part = Self { name: pool_name(name, &section)?, at, range, wishes: Vec::new() };
        for (name, mut section) in section.section("ports").into_sections_or("port") {
            part.wishes.push((wish(name, &mut section), section.place()));
            section.finish();
        }
        section.finish();
        Some(part)
    }

    fn resolve(&self, pools: Option<&[Pool]>, resolved: &mut Resolved) {
        let problem = |at: &Origin, message: String| Problem { at: at.clone(), message };
        let pool = pools.unwrap_or_default().iter().find(|pool| pool.name == self.name);
        let mut ports = match (&self.range, pool) {
            (Some((range, at)), Some(pool)) if *range != pool.ports => {
                resolved.problems.push(problem(
                    at,
                    format!(
                        "{} is a pool, which has {} and not {range}: leave range out, or give the block another name",
                        self.name, pool.ports
                    ),
                ));
                return;
            }
            (Some((range, at)), None) => {
                resolved.ranges.push((self.name.clone(), range.clone(), at.clone()));
                PortAllocator::of(range)
            }
            (_, Some(pool)) => PortAllocator::of(&pool.ports),
            (None, None) if pools.is_some() => {
                resolved.problems.push(problem(
                    &self.at,
                    format!("there is no pool {} in the configuration: write a range, or another name", self.name),
                ));
                return;
            }
            (None, None) => PortAllocator::new(1, u16::MAX),
        };
        // Over all ports a choice would not be the one that is made over the pool's.
        let is_unknown = self.range.is_none() && pool.is_none();
        let mut wishes = self.wishes.clone();
        wishes.retain(|(wish, at)| {
            let waits = is_unknown && matches!(wish.ports, Wanted::Chosen(_));
            if waits {
                let advice = "name the configuration by --config, or write a range or a port";
                let message = format!("{} wants a port of the pool {}: {advice}", wish.name, self.name);
                resolved.problems.push(problem(at, message));
            }
            !waits
        });
        let (wishes, places): (Vec<_>, Vec<_>) = wishes.into_iter().unzip();
        for ((wish, at), block) in wishes.iter().zip(places).zip(registry::resolve(&mut ports, &wishes)) {
            match block {
                Ok(block) => resolved.claims.push((self.claim(&wish.name, block), at)),
                Err(refusal) => resolved.problems.push(problem(&at, refusal.to_string())),
            }
        }
    }

    fn claim(&self, name: &str, block: Block) -> Claim {
        Claim { pool: self.name.clone(), name: name.into(), block }
    }
}

fn pool_name(name: &str, section: &Section<'_>) -> Option<PoolName> {
    if !is_name(name) {
        section.refuse(format!("{name:?} is no name for a pool or block: {}", node::NAME_RULE));
        return None;
    }
    Some(PoolName::new(name).expect("its length was checked"))
}

/// An entry. What of it cannot be read is reported, and the file refused.
fn wish(name: String, section: &mut Section<'_>) -> Wish {
    let given = section.get("port", given);
    let count = section.get("count", value::number(1..=u16::MAX));
    let protocol = section.get("protocol", value::protocol);
    if !registry::is_name(&name) {
        section.refuse(format!("{name:?} is no name for ports: {}", registry::NAME_RULE));
    }
    if section.has("port") && section.has("count") {
        section.problem("count", "this stands beside port: write the ports, or how many are to be chosen");
    }
    let ports = given.map_or(Wanted::Chosen(count.unwrap_or(1)), Wanted::Given);
    Wish { name, ports, protocol: protocol.unwrap_or(Protocol::Both) }
}

/// A port, or a run of ports.
fn given(entry: &Entry) -> Result<RangeInclusive<u16>, Problem> {
    let ports = match &entry.value {
        Value::Integer(_) => {
            let port = value::number(1..=u16::MAX)(entry)?;
            PortSet::from_ranges([port..=port]).map_err(|error| entry.problem(error.to_string()))?
        }
        Value::Text(_) => value::ports(entry)?,
        other => {
            let message =
                format!("this is {}, but must be a port or a range: write 25080 or \"25090-25099\"", other.kind());
            return Err(entry.problem(message));
        }
    };
    match ports.ranges() {
        [range] => Ok(range.clone()),
        _ => Err(entry.problem(format!("{ports} is not one range: give each a name of its own"))),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::config::{Sources, check};

    /// What a file comes to; without `range` there is no configuration, else the pool `default` has it.
    fn shown(text: &str, range: Option<&str>) -> Vec<String> {
        let sources = Sources {
            file: None,
            variables: Vec::new(),
            settings: Vec::new(),
            own_address: IpAddr::from([127, 0, 0, 1]),
        };
        let pools = range.map(|range| {
            let config = format!("broker.password = \"p\"\nharbor_node.port_range = \"{range}\"");
            check(&config, Some("harbor.toml"), &sources).unwrap().node.pools
        });
        let file = match PortsFile::check(text, "ports.toml") {
            Ok(file) => file,
            Err(error) => return error.to_string().lines().map(str::to_owned).collect(),
        };
        let resolved = file.resolve(pools.as_deref());
        let claims = resolved.claims.iter().map(|(claim, at)| format!("{at}: {} {}", claim.name, claim.block));
        claims.chain(resolved.problems.iter().map(ToString::to_string)).collect()
    }

    #[test]
    fn every_way_of_writing_an_entry_is_read() {
        let text = r#"
[infrastructure]
range = "25000-25999"
[infrastructure.ports]
ceph-rgw = 25080
metrics = "25090-25099"
syslog = { protocol = "udp" }
sip = { count = 2 }
dns = { port = "25053", protocol = "tcp" }
plain = {}
[default.ports]
mqtt = 35010
"#;
        assert_eq!(
            shown(text, None),
            [
                "ports.toml:12:1: mqtt 35010 (both)",
                "ports.toml:5:1: ceph-rgw 25080 (both)",
                "ports.toml:9:1: dns 25053 (tcp)",
                "ports.toml:6:1: metrics 25090-25099 (both)",
                "ports.toml:10:1: plain 25087 (both)",
                "ports.toml:8:1: sip 25935-25936 (both)",
                "ports.toml:7:1: syslog 25020 (udp)",
            ]
        );
    }

    #[test]
    fn all_that_is_wrong_with_the_form_is_found_at_once() {
        let text = r#"
stray = 1
["a b"]
[infrastructure]
rnage = "25000-25999"
[infrastructure.ports]
Upper = 25001
low = 80
large = 70000
many = "25010, 25012"
date = true
twice = { port = 25020, count = 2 }
none = { count = 0 }
odd = { protocol = "sctp", prot = 1 }
"#;
        assert_eq!(
            shown(text, None),
            [
                "ports.toml:2:9: stray: this is a whole number, but must be a section",
                "ports.toml:3:2: \"a b\" is no name for a pool or block: use 1 to 64 letters, digits, dots, dashes and \
                 underscores",
                "ports.toml:5:1: [infrastructure] has no key \"rnage\": it has ports, range",
                "ports.toml:7:1: \"Upper\" is no name for ports: use 1 to 63 small letters, digits and dashes, with a \
                 letter or digit at either end",
                "ports.toml:8:7: infrastructure.ports.low.port: port 80 is below 1024: ports 0 to 1023 cannot be given out",
                "ports.toml:9:9: infrastructure.ports.large.port: this must be a number from 1 to 65535",
                "ports.toml:10:8: infrastructure.ports.many.port: 25010, 25012 is not one range: give each a name of its \
                 own",
                "ports.toml:11:8: infrastructure.ports.date.port: this is true or false, but must be a port or a range: \
                 write 25080 or \"25090-25099\"",
                "ports.toml:12:33: infrastructure.ports.twice.count: this stands beside port: write the ports, or how \
                 many are to be chosen",
                "ports.toml:13:18: infrastructure.ports.none.count: this must be a number from 1 to 65535",
                "ports.toml:14:20: infrastructure.ports.odd.protocol: \"sctp\" is not a protocol: use tcp, udp or both",
                "ports.toml:14:28: [infrastructure.ports.odd] has no key \"prot\": it has count, port, protocol",
            ]
        );
        assert_eq!(shown("a = {", None).len(), 1);
        assert!(shown("a = {", None)[0].contains("this is not TOML"));
    }

    #[test]
    fn all_that_is_wrong_with_the_ports_is_found_at_once() {
        let text = r#"
[small]
range = "25000-25003"
[small.ports]
one = 25000
other = "25000-25001"
outside = 25004
wide = { count = 3 }
fits = { count = 2 }
"#;
        assert_eq!(
            shown(text, None),
            [
                "ports.toml:9:1: fits 25001-25002 (both)",
                "ports.toml:5:1: one 25000 (both)",
                "ports.toml:6:1: other overlaps one, which has 25000 (both): choose other ports for one of them",
                "ports.toml:7:1: 25004 is not in 25000-25003: choose other ports for outside",
                "ports.toml:8:1: no 3 ports in a row (both) are left of 25000-25003 for wide: choose a larger range, or \
                 release a name",
            ]
        );
    }

    #[test]
    fn the_range_of_a_pool_is_the_configurations() {
        let mqtt = "[default.ports]\nmqtt = {}\nldap = 36000\n";
        assert_eq!(
            shown(mqtt, None),
            [
                "ports.toml:3:1: ldap 36000 (both)",
                "ports.toml:2:1: mqtt wants a port of the pool default: name the configuration by --config, or write a \
                 range or a port",
            ]
        );
        assert_eq!(
            shown(mqtt, Some("35000-35009")),
            [
                "ports.toml:2:1: mqtt 35007 (both)",
                "ports.toml:3:1: 36000 is not in 35000-35009: choose other ports for ldap",
            ]
        );
        assert_eq!(
            shown("[games.ports]\na = 36000\n", Some("35000-35009")),
            ["ports.toml:1:2: there is no pool games in the configuration: write a range, or another name"]
        );
        assert_eq!(
            shown("[default]\nrange = \"1024-2000\"\n", Some("35000-35009")),
            ["ports.toml:2:9: default is a pool, which has 35000-35009 and not 1024-2000: leave range out, or give \
                 the block another name"]
        );
    }

    #[test]
    fn a_file_has_so_many_entries_at_most() {
        let entries = (0..=MAX_ENTRIES).map(|number| format!("n{number} = {{}}\n")).collect::<String>();
        let text = format!("[a.ports]\n{entries}");
        assert_eq!(shown(&text, None), ["ports.toml: it has 4097 entries: at most 4096 are taken"]);
    }
}
