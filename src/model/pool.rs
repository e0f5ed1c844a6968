//! A pool: a port range, the names clients reach it by, and how long a freed port rests.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::{NodeId, PoolName, PortSet, member::Members};

/// How long a freed port rests where nothing is written, also one of a pool that is no longer configured.
pub const DEFAULT_QUARANTINE: Duration = Duration::from_secs(15 * 60);

/// The port an app is told to listen on where nothing is written.
pub const DEFAULT_INT_PORT: u16 = 4100;

/// One pool as every node that serves it must agree on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Its name; `default` is the one that `[harbor_node]` describes.
    pub name: PoolName,
    /// The ports it may give out.
    pub ports: PortSet,
    /// The addresses and names shown in credentials.
    pub names: PoolNames,
    /// The port an app is told to listen on, unless its service instance says otherwise.
    pub int_port: u16,
    /// How long a freed port is kept back before it is given out again.
    pub quarantine: Duration,
    /// Whether it gives out no more ports; what has one keeps it.
    pub retired: bool,
}

/// Where a pool's ports are reached: inside the platform and, when it is public, outside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PoolNames {
    /// Internal address.
    pub host: Option<String>,
    /// Internal name.
    pub hostname: Option<String>,
    /// Public address; absent when the pool is not public.
    pub host_external: Option<String>,
    /// Public name; absent when the pool is not public.
    pub hostname_external: Option<String>,
}

/// What the nodes have agreed on, by name.
pub type Pools = BTreeMap<PoolName, Pool>;

/// Why a node's pools cannot be taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolRefusal {
    /// Another node serves it as something else.
    #[error(
        "the pool {pool} differs from what {node} serves: {differences}; make the files the same, and let a node that \
         runs read a change by SIGHUP"
    )]
    Differs {
        /// Which pool.
        pool: PoolName,
        /// A node that serves it.
        node: NodeId,
        /// In what, with both values.
        differences: Differences,
    },
    /// A node would have one port in two pools.
    #[error("port {port} would be in the ranges of both {pool} and {other} on {node}: change one")]
    Overlaps {
        /// The pool that would change.
        pool: PoolName,
        /// A pool that the same node serves.
        other: PoolName,
        /// That node.
        node: NodeId,
        /// The first port that both have.
        port: u16,
    },
    /// A pool would give out ports of the machine that are for other things.
    #[error("port {port} would be in the ranges of both {pool} and the block {block}: change one")]
    OverlapsBlock {
        /// The pool that would change.
        pool: PoolName,
        /// The block.
        block: PoolName,
        /// The first port that both have.
        port: u16,
    },
}

/// In what two definitions of a pool differ: the key as it is written, here and there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Differences(Vec<(&'static str, String, String)>);

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, here, there)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{key} is {here} here and {there} there")?;
        }
        Ok(())
    }
}

impl Pool {
    /// A block: ports of the machine for names beside the apps. It is a pool that gives nothing out and that no node serves.
    #[must_use]
    pub fn block(name: PoolName, ports: PortSet) -> Self {
        let (names, int_port) = (PoolNames::default(), DEFAULT_INT_PORT);
        Self { name, ports, names, int_port, quarantine: DEFAULT_QUARANTINE, retired: true }
    }

    /// Whether it can be a [`Pool::block`]: it is one when no node serves it besides.
    #[must_use]
    pub fn is_like_a_block(&self) -> bool {
        self.retired && self.names == PoolNames::default()
    }

    /// In what this definition differs from another; `None` where they are the same.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Option<Differences> {
        let name =
            |name: &Option<String>| name.as_ref().map_or_else(|| "absent".to_owned(), |name| format!("{name:?}"));
        let shown = |pool: &Self| {
            [
                ("port_range", format!("\"{}\"", pool.ports)),
                ("host", name(&pool.names.host)),
                ("hostname", name(&pool.names.hostname)),
                ("host_external", name(&pool.names.host_external)),
                ("hostname_external", name(&pool.names.hostname_external)),
                ("int_port", pool.int_port.to_string()),
                ("quarantine", format!("\"{}\"", humantime::format_duration(pool.quarantine))),
                ("retired", pool.retired.to_string()),
            ]
        };
        let pairs = shown(self).into_iter().zip(shown(other));
        let differing = pairs.filter(|((_, here), (_, there))| here != there);
        let differences = differing.map(|((key, here), (_, there))| (key, here, there)).collect::<Vec<_>>();
        (!differences.is_empty()).then_some(Differences(differences))
    }
}

impl Pool {
    /// The pool as it was `agreed` on, but for what has changed here since it was as `before`: who changes one key in a file
    /// that differs otherwise changes that key alone.
    #[must_use]
    pub fn changed(&self, before: &Self, agreed: &Self) -> Self {
        fn pick<T: PartialEq + Clone>(now: &T, before: &T, agreed: &T) -> T {
            if now == before { agreed.clone() } else { now.clone() }
        }
        let (now, was, names) = (&self.names, &before.names, &agreed.names);
        Self {
            name: self.name.clone(),
            ports: pick(&self.ports, &before.ports, &agreed.ports),
            names: PoolNames {
                host: pick(&now.host, &was.host, &names.host),
                hostname: pick(&now.hostname, &was.hostname, &names.hostname),
                host_external: pick(&now.host_external, &was.host_external, &names.host_external),
                hostname_external: pick(&now.hostname_external, &was.hostname_external, &names.hostname_external),
            },
            int_port: pick(&self.int_port, &before.int_port, &agreed.int_port),
            quarantine: pick(&self.quarantine, &before.quarantine, &agreed.quarantine),
            retired: pick(&self.retired, &before.retired, &agreed.retired),
        }
    }
}

/// Which of `wanted` have to be defined so that `agreed` says the same. A pool that another live node serves is changed
/// only when the operator has asked for that by `moving` it: a file that was forgotten changes nothing.
///
/// # Errors
/// [`PoolRefusal`].
pub fn agree(
    own: &NodeId,
    wanted: &[Pool],
    agreed: &Pools,
    members: &Members,
    moving: impl Fn(&PoolName) -> bool,
) -> Result<Vec<Pool>, PoolRefusal> {
    let mut define = Vec::new();
    for pool in wanted {
        let differences = match agreed.get(&pool.name) {
            Some(known) => pool.differences(known),
            None => {
                define.push(pool.clone());
                continue;
            }
        };
        let Some(differences) = differences else { continue };
        let live = members.all.iter().filter(|known| known.alive && known.member.id != *own);
        let served = live.map(|known| &known.member).find(|member| member.pools.contains(&pool.name));
        match served {
            Some(node) if !moving(&pool.name) => {
                let (pool, node) = (pool.name.clone(), node.id.clone());
                return Err(PoolRefusal::Differs { pool, node, differences });
            }
            _ => define.push(pool.clone()),
        }
    }
    overlaps(own, wanted, &define, agreed, members).map_or(Ok(define), Err)
}

/// The first port that a node would have in two pools, or that a block has too, were `define` agreed on; this node serves what
/// it wants.
fn overlaps(own: &NodeId, wanted: &[Pool], define: &[Pool], agreed: &Pools, members: &Members) -> Option<PoolRefusal> {
    let others = members.all.iter().filter(|known| known.alive && known.member.id != *own);
    let others = others.map(|known| (&known.member.id, known.member.pools.iter().collect::<Vec<_>>()));
    let own = (own, wanted.iter().map(|pool| &pool.name).collect());
    let find = |name: &PoolName| define.iter().find(|pool| pool.name == *name).or_else(|| agreed.get(name));
    for (node, served) in others.chain([own]) {
        for pool in define.iter().filter(|pool| served.contains(&&pool.name)) {
            for other in served.iter().filter(|name| ***name != pool.name).filter_map(|name| find(name)) {
                if let Some(port) = pool.ports.first_common(&other.ports) {
                    let (pool, other) = (pool.name.clone(), other.name.clone());
                    return Some(PoolRefusal::Overlaps { pool, other, node: node.clone(), port });
                }
            }
        }
    }
    let is_served = |name: &PoolName| {
        wanted.iter().any(|pool| pool.name == *name)
            || members.all.iter().any(|known| known.member.pools.contains(name))
    };
    for block in agreed.values().filter(|pool| pool.is_like_a_block() && !is_served(&pool.name)) {
        for pool in define {
            if let Some(port) = pool.ports.first_common(&block.ports) {
                let (pool, block) = (pool.name.clone(), block.name.clone());
                return Some(PoolRefusal::OverlapsBlock { pool, block, port });
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Timestamp,
        member::{Known, Member, Report},
    };

    fn name(name: &str) -> PoolName {
        PoolName::new(name).unwrap()
    }

    fn pool(name: &str, ports: &str) -> Pool {
        Pool {
            name: self::name(name),
            ports: ports.parse().unwrap(),
            names: PoolNames { host: Some("10.0.0.5".into()), ..PoolNames::default() },
            int_port: 4100,
            quarantine: DEFAULT_QUARANTINE,
            retired: false,
        }
    }

    fn member(id: &str, alive: bool, pools: &[&str]) -> Known {
        let member = Member {
            id: NodeId::new(id).unwrap(),
            incarnation: String::new(),
            version: String::new(),
            pools: pools.iter().map(|pool| name(pool)).collect(),
            report: Report::default(),
            drain: false,
            joined_at: Timestamp(0),
            seen_at: Timestamp(0),
        };
        Known { member, alive, behind_since: None }
    }

    fn check(wanted: &[Pool], members: Vec<Known>, moving: bool, expected: Result<&[&str], &str>) {
        let block = Pool::block(name("machine"), "5000-5099".parse().unwrap());
        let agreed = [pool("default", "2000-2999"), pool("games", "3000-3999"), block];
        let agreed = agreed.into_iter().map(|pool| (pool.name.clone(), pool)).collect();
        let own = NodeId::new("own").unwrap();
        let outcome = agree(&own, wanted, &agreed, &Members { all: members, ..Members::default() }, |_| moving);
        let shown = outcome.map(|define| define.iter().map(|pool| pool.name.to_string()).collect::<Vec<_>>());
        let expected = expected.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(shown.map_err(|refusal| refusal.to_string()), expected.map_err(str::to_owned));
    }

    #[test]
    fn a_pool_is_defined_by_the_first_and_changed_when_nobody_else_serves_it_or_by_intent() {
        let moved = Pool { quarantine: Duration::ZERO, ..pool("default", "2000-2100") };
        let others = || vec![member("own", true, &["default"]), member("b", true, &["default", "games"])];
        check(&[pool("new", "4000")], others(), false, Ok(&["new"]));
        check(&[pool("default", "2000-2999")], others(), false, Ok(&[]));
        check(
            std::slice::from_ref(&moved),
            others(),
            false,
            Err(
                "the pool default differs from what b serves: port_range is \"2000-2100\" here and \"2000-2999\" there, \
                 quarantine is \"0s\" here and \"15m\" there; make the files the same, and let a node that runs read a change \
                 by SIGHUP",
            ),
        );
        check(std::slice::from_ref(&moved), others(), true, Ok(&["default"]));
        check(std::slice::from_ref(&moved), vec![member("b", false, &["default"])], false, Ok(&["default"]));
        check(&[moved], vec![member("b", true, &["games"])], false, Ok(&["default"]));
    }

    #[test]
    fn what_is_not_changed_stays_as_it_was_agreed_on() {
        let before = pool("default", "2000-2999");
        let agreed = Pool { int_port: 1, retired: true, ..pool("default", "3000") };
        let changed = Pool { ports: "2000-2100".parse().unwrap(), retired: true, ..before.clone() };
        let expected = Pool { ports: "2000-2100".parse().unwrap(), ..agreed.clone() };
        assert_eq!(changed.changed(&before, &agreed), expected);
        assert_eq!(before.changed(&before, &agreed), agreed);
        assert_eq!(changed.changed(&agreed, &before).ports, changed.ports);
    }

    #[test]
    fn no_pool_gets_a_port_of_a_block() {
        let refused =
            |pool: &str| format!("port 5099 would be in the ranges of both {pool} and the block machine: change one");
        check(&[pool("default", "5099-5200")], vec![], false, Err(&refused("default")));
        check(&[pool("new", "5099-5200")], vec![], false, Err(&refused("new")));
        check(&[pool("new", "5100-5200")], vec![], false, Ok(&["new"]));
        // It is none where a node serves it, and its own range moves by its own definition.
        check(&[pool("new", "5099-5200")], vec![member("b", true, &["machine"])], false, Ok(&["new"]));
        check(&[pool("machine", "5000-5200")], vec![], false, Ok(&["machine"]));
    }

    #[test]
    fn no_node_gets_a_port_in_two_pools() {
        let refused = "port 3000 would be in the ranges of both default and games on b: change one";
        let wanted = [pool("default", "2500-3000")];
        check(&wanted, vec![member("b", true, &["default", "games"])], true, Err(refused));
        check(&wanted, vec![member("b", true, &["default"]), member("c", true, &["games"])], true, Ok(&["default"]));
        check(&wanted, vec![member("b", false, &["default", "games"])], true, Ok(&["default"]));
    }
}
