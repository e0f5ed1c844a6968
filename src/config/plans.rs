//! `[plans.…]`: operators' plans beside the built-in ones.

use std::{collections::BTreeSet, time::Duration};

use super::{
    node::{DEFAULT_POOL, NAME_RULE, is_name},
    section::Section,
    value,
};
use crate::model::{
    PoolName, Protocol,
    plan::{Caps, Plan, PlanProtocol},
    pool::Pool,
};

/// The pools that plans can be of.
#[derive(Debug)]
pub struct Offered<'a> {
    /// Those that this node serves; `default` first, when it is among them.
    pub served: &'a [Pool],
    /// The names of all of the file.
    pub defined: &'a BTreeSet<String>,
    /// Whether other nodes may serve the rest: any node then offers what all do.
    pub of_others_too: bool,
}

/// The whole catalog: the built-in plans on the pool `default`, and operators' plans by name. Where no other node can
/// serve it, a plan whose pool this one does not serve is left out with a warning, since no port of it would ever open,
/// and the built-in plans are on the first pool that is served.
pub fn read(sections: Vec<(String, Section<'_>)>, offered: &Offered<'_>, warnings: &mut Vec<String>) -> Vec<Plan> {
    let &Offered { served, defined, of_others_too } = offered;
    let default = PoolName::new(DEFAULT_POOL).expect("it is short");
    let of_built_in = if of_others_too { Some(&default) } else { served.first().map(|pool| &pool.name) };
    let mut plans = of_built_in.map(Plan::built_in).unwrap_or_default();
    for (name, section) in sections {
        if plans.iter().any(|plan| plan.name == name) {
            section.refuse(format!("{name} is a built-in plan: give yours another name"));
        } else if !is_name(&name) {
            section.refuse(format!("{name:?} is no name for a plan: {NAME_RULE}"));
        } else if let Some(plan) = plan(&name, section, defined) {
            if of_others_too || served.iter().any(|pool| pool.name == plan.pool) {
                plans.push(plan);
            } else {
                warnings.push(format!(
                    "plan {name} is not offered, since this node does not serve its pool: add {:?} to \
                     harbor_node.pools",
                    plan.pool
                ));
            }
        }
    }
    plans
}

fn plan(name: &str, mut section: Section<'_>, pools: &BTreeSet<String>) -> Option<Plan> {
    let pool = section.get("pool", value::text).unwrap_or_else(|| DEFAULT_POOL.into());
    let protocol = section.get("protocol", value::protocol);
    let description = section.get("description", value::text);
    let choose_port = section.get("choose_port", value::flag);
    let match_app = section.get("match_app", value::flag);
    let max_connections = section.get("max_connections", value::number(1..=u32::MAX));
    let idle_timeout = section.get("idle_timeout", value::duration(Duration::from_secs(1)));
    let is_defined = pools.contains(&pool);
    if !is_defined {
        section.problem("pool", format!("there is no pool {pool:?}: add [pools.{pool}]"));
    }
    section.finish();
    let what = match protocol {
        Some(Protocol::Tcp) => "A TCP port",
        Some(Protocol::Udp) => "A UDP port",
        Some(Protocol::Both) => "TCP and UDP on one port number",
        None => "A TCP or UDP port",
    };
    is_defined.then(|| Plan {
        id: Plan::derived_id(name),
        name: name.into(),
        description: description.unwrap_or_else(|| format!("{what} of the pool {pool}")),
        pool: PoolName::new(&pool).expect("it is the name of a pool"),
        protocol: protocol.map_or(PlanProtocol::ByName, PlanProtocol::Fixed),
        choose_port: choose_port.unwrap_or(true),
        match_app: match_app.unwrap_or(true),
        caps: Caps { max_connections, idle_timeout },
    })
}
