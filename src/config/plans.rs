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

/// The whole catalog: the built-in plans on the first pool, which is `default` unless this node does not serve it, and
/// operators' plans by name. A plan whose pool is defined but not served is left out with a warning: no port of it
/// would ever open.
pub fn read(
    sections: Vec<(String, Section<'_>)>,
    served: &[Pool],
    defined: &BTreeSet<String>,
    warnings: &mut Vec<String>,
) -> Vec<Plan> {
    let mut plans = served.first().map(|pool| Plan::built_in(&pool.name)).unwrap_or_default();
    for (name, section) in sections {
        if plans.iter().any(|plan| plan.name == name) {
            section.refuse(format!("{name} is a built-in plan: give yours another name"));
        } else if !is_name(&name) {
            section.refuse(format!("{name:?} is no name for a plan: {NAME_RULE}"));
        } else if let Some(plan) = plan(&name, section, defined) {
            if served.iter().any(|pool| pool.name == plan.pool) {
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
