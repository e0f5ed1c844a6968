//! What the machine is asked at the start, and what the log says where it does not fit.

use std::{
    collections::BTreeSet,
    fs::DirBuilder,
    net::{IpAddr, SocketAddr},
    os::unix::fs::DirBuilderExt as _,
};

use anyhow::Context as _;
use tokio::task::spawn_blocking;

use crate::{
    config::{self, Config},
    forwarder::LISTENER_RECEIVE_BUFFER,
    host::{self, Code, Finding, Needs, Severity},
    model::{PoolName, Transport, pool::Pool},
};

/// Makes the directory of the node's state where it is missing, for the node alone.
///
/// # Errors
/// With the directory, when it cannot be made.
pub(super) fn make_data_dir(config: &Config) -> anyhow::Result<()> {
    let path = &config.node.data_dir;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("{} cannot be made: set harbor_node.data_dir to another directory", path.display()))
}

/// Says in the log what of the machine does not fit, as `harbor ports check` does. Nobody waits for it: where there are
/// many sockets it takes seconds.
pub(super) fn judge(config: &Config) {
    let needs = machine_needs(config);
    drop(spawn_blocking(move || tell(&needs)));
}

fn tell(needs: &Needs) {
    for Finding { severity, code, pool, says, mend } in host::judge(needs, &host::survey(needs)) {
        let (code, pool, mend) = (code.as_str(), pool.as_ref().map(tracing::field::display), mend.as_deref());
        match severity {
            // The configuration has warned of it already.
            _ if code == Code::OwnListener.as_str() => {}
            Severity::Error => tracing::error!(code, pool, mend, "{says}"),
            Severity::Warning => tracing::warn!(code, pool, mend, "{says}"),
            Severity::Info => tracing::info!(code, pool, mend, "{says}"),
        }
    }
}

/// What a configuration wants of its machine.
#[must_use]
pub fn machine_needs(config: &Config) -> Needs {
    let of = |pools: &[Pool]| pools.iter().map(|pool| (pool.name.clone(), pool.ports.clone())).collect();
    let announce = config.announce.as_ref().map(|announce| ("announce.listen", announce.listen));
    let apis = [("broker.listen", config.broker.listen), ("admin.listen", config.admin.listen)];
    let limits = &config.forwarder.limits;
    let ranges = config.settings.iter().filter(|setting| setting.key == "port_range");
    let live_ranges = ranges.filter_map(|setting| PoolName::new(config::pool_of(&setting.scope)?).ok()).collect();
    Needs {
        pools: of(&config.node.pools),
        other_pools: of(&config.node.other_pools),
        live_ranges,
        listen: config.node.listen.clone(),
        apis: apis.into_iter().chain(announce).collect(),
        connections_per_port: limits.max_connections_per_port,
        max_sockets: limits.max_sockets,
        udp_idle: limits.idle_timeout_udp,
        receive_buffer: LISTENER_RECEIVE_BUFFER as u64,
    }
}

/// Who is in the way of ports, for the reasons that listeners failed with.
pub(super) fn holders(places: &[(SocketAddr, Transport)]) -> Vec<Option<String>> {
    let Ok(found) = host::holders_of(places) else { return vec![None; places.len()] };
    found.into_iter().map(|holder| Some(holder?.to_string())).collect()
}

/// The addresses of this machine: at each of them a port of a pool is Harbor's own.
pub(super) fn addresses() -> BTreeSet<IpAddr> {
    host::own_addresses().unwrap_or_else(|error| {
        tracing::warn!(%error, "the addresses of this machine are not known: backends at them cannot be told from others");
        BTreeSet::new()
    })
}
