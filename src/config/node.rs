//! `[harbor_node]` and `[pools.…]`: this node and the pools it serves.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use super::{
    entry::{Entry, Problem},
    section::Section,
    value,
};
use crate::model::{
    NodeId, PoolName,
    pool::{DEFAULT_INT_PORT, DEFAULT_QUARANTINE, Pool, PoolNames},
};

/// The pool that `[harbor_node]` describes.
pub const DEFAULT_POOL: &str = "default";

/// The pool that a section is of.
#[must_use]
pub fn pool_of(section: &str) -> Option<&str> {
    if section == "harbor_node" { Some(DEFAULT_POOL) } else { section.strip_prefix("pools.") }
}

/// The ports of the pool `default`, where nothing else is written.
const DEFAULT_PORT_RANGE: &str = "35000-40000";

/// For how long a node may reach neither its store nor NATS, where nothing else is written.
const DEFAULT_CUT_OFF: Duration = Duration::from_secs(5 * 60);

/// Most addresses that ports are bound on, and most pools of a node.
const MAX_ITEMS: usize = 64;

/// Longest name of a pool or plan, in characters.
const MAX_NAME: usize = 64;

/// This node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name, unique among the nodes of a store.
    pub id: NodeId,
    /// The pools it serves, `default` first when it is among them. Never empty; no port is in two of them.
    pub pools: Vec<Pool>,
    /// The pools of the file that it does not serve.
    pub other_pools: Vec<Pool>,
    /// The addresses that ports are bound on. Never empty.
    pub listen: Vec<IpAddr>,
    /// Where its state is.
    pub data_dir: PathBuf,
    /// For how long it may reach neither its store nor NATS before it is not ready.
    pub cut_off_after: Duration,
}

impl Node {
    /// The node, and the names of all pools, also of those that it does not serve. `own_address` is what clients are
    /// told when neither a host nor a host name of the pool `default` is written.
    pub(super) fn read(
        mut section: Section<'_>,
        more_pools: Vec<(String, Section<'_>)>,
        own_address: IpAddr,
    ) -> (Self, BTreeSet<String>) {
        let id = section.get("id", node_id);
        let listen = section.get("listen", value::list(MAX_ITEMS, value::address));
        let data_dir = section.get("data_dir", value::path);
        let cut_off_after = section.get("cut_off_after", value::duration(Duration::ZERO));
        let default_ports = || DEFAULT_PORT_RANGE.parse().expect("the default range is one");
        let ports = section.get("port_range", value::ports).unwrap_or_else(default_ports);
        let mut default = pool(&mut section, DEFAULT_POOL, ports);
        if default.names.host.is_none() && default.names.hostname.is_none() {
            default.names.host = Some(own_address.to_string());
        }
        let mut pools = BTreeMap::from([(DEFAULT_POOL.to_owned(), default)]);
        for (name, pool_section) in more_pools {
            if let Some(pool) = named_pool(&name, pool_section) {
                pools.insert(name, pool);
            }
        }
        let all = pools.keys().cloned().collect();
        let (pools, other_pools) = served(&mut section, pools);
        for (index, pool) in pools.iter().enumerate() {
            for other in &pools[..index] {
                if let Some(port) = pool.ports.first_common(&other.ports) {
                    section.problem(
                        "pools",
                        format!(
                            "port {port} is in the ranges of both {} and {}, which this node serves: change one",
                            other.name, pool.name
                        ),
                    );
                }
            }
        }
        if listen.as_ref().is_some_and(Vec::is_empty) {
            section.problem("listen", "this list is empty: write at least one address, or leave the key out");
        }
        section.finish();
        let node = Self {
            id: id.unwrap_or_else(|| NodeId::new("harbor_node_1").expect("it is short")),
            pools,
            other_pools,
            listen: listen.unwrap_or_else(|| vec![Ipv6Addr::UNSPECIFIED.into()]),
            data_dir: data_dir.unwrap_or_else(|| PathBuf::from("./harbor-data")),
            cut_off_after: cut_off_after.unwrap_or(DEFAULT_CUT_OFF),
        };
        (node, all)
    }
}

/// The pools of this node: those that `pools` names, or all, with `default` first. And the others.
fn served(section: &mut Section<'_>, mut pools: BTreeMap<String, Pool>) -> (Vec<Pool>, Vec<Pool>) {
    let names = section.get("pools", value::list(MAX_ITEMS, value::text));
    let Some(mut names) = names else {
        let default = pools.remove(DEFAULT_POOL);
        return (default.into_iter().chain(pools.into_values()).collect(), Vec::new());
    };
    names.sort_by_key(|name| name != DEFAULT_POOL);
    if names.is_empty() {
        section.problem("pools", "this list is empty: write at least one pool, or leave the key out");
    }
    let mut found = Vec::new();
    for name in names {
        match pools.remove(&name) {
            Some(pool) => found.push(pool),
            None if found.iter().any(|pool: &Pool| pool.name.as_str() == name) => {
                section.problem("pools", format!("{name:?} is in this list twice"));
            }
            None => section.problem("pools", format!("there is no pool {name:?}: add [pools.{name}]")),
        }
    }
    (found, pools.into_values().collect())
}

/// A pool of a section of its own.
fn named_pool(name: &str, mut section: Section<'_>) -> Option<Pool> {
    if name == DEFAULT_POOL {
        section.refuse("[harbor_node] describes the pool default: write its keys there");
        return None;
    }
    if !is_name(name) {
        section.refuse(format!("{name:?} is no name for a pool: {NAME_RULE}"));
        return None;
    }
    let ports = section.get("port_range", value::ports);
    if !section.has("port_range") {
        section.missing("port_range", "write for example port_range = \"50000-50999\"");
    }
    if !section.has("host") && !section.has("hostname") {
        section.missing("host", "clients must be told an address or a hostname of the pool");
    }
    let pool = pool(&mut section, name, ports.unwrap_or_default());
    section.finish();
    Some(pool)
}

fn pool(section: &mut Section<'_>, name: &str, ports: crate::model::PortSet) -> Pool {
    Pool {
        name: PoolName::new(name).expect("its length was checked"),
        ports,
        names: PoolNames {
            host: section.get("host", value::host),
            hostname: section.get("hostname", value::host),
            host_external: section.get("host_external", value::host),
            hostname_external: section.get("hostname_external", value::host),
        },
        int_port: section.get("int_port", value::number(1..=u16::MAX)).unwrap_or(DEFAULT_INT_PORT),
        quarantine: section.get("quarantine", value::duration(Duration::ZERO)).unwrap_or(DEFAULT_QUARANTINE),
        retired: section.get("retired", value::flag).unwrap_or_default(),
    }
}

fn node_id(entry: &Entry) -> Result<NodeId, Problem> {
    NodeId::new(value::text(entry)?).map_err(|error| entry.problem(error.to_string()))
}

/// What [`is_name`] takes, for messages.
pub(super) const NAME_RULE: &str = "use 1 to 64 letters, digits, dots, dashes and underscores";

/// Whether a pool or plan may be called so.
pub(super) fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(fits)
}
