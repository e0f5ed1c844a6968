//! What the machine is asked at the start, and what the log says where it does not fit.

use std::{
    collections::BTreeSet,
    fs::DirBuilder,
    net::{IpAddr, SocketAddr},
    os::unix::fs::DirBuilderExt as _,
};

use anyhow::Context as _;

use crate::{
    config::Config,
    host,
    model::{Transport, desired::RESERVED_DESCRIPTORS},
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

/// Takes the descriptors this process may have, and warns of what will hurt later.
pub(super) fn prepare(config: &Config) {
    let limit = host::raise_descriptor_limit();
    let ports = config.node.pools.iter().map(|pool| pool.ports.len() as u64).sum::<u64>();
    if ports + u64::from(RESERVED_DESCRIPTORS) > limit.now {
        tracing::warn!(
            descriptors = limit.now,
            ports,
            "the pools have more ports than this process may open descriptors: raise LimitNOFILE"
        );
    }
    let here = addresses();
    let elsewhere = |address: &&IpAddr| !address.is_unspecified() && !address.is_loopback() && !here.contains(*address);
    for address in config.node.listen.iter().filter(elsewhere) {
        tracing::info!(
            %address,
            "this machine does not have an address of harbor_node.listen: its ports are open as soon as it does"
        );
    }
    match host::local_ports() {
        Ok(local) => {
            for pool in &config.node.pools {
                let exposed = local.exposed(&pool.ports);
                if !exposed.is_empty() {
                    tracing::warn!(
                        pool = %pool.name,
                        "ports {exposed} are also given to outgoing connections, which can take one before Harbor does: \
                         add them to net.ipv4.ip_local_reserved_ports"
                    );
                }
            }
        }
        Err(error) => tracing::debug!(%error, "the ports of outgoing connections are not known"),
    }
}

/// Who is in the way of a port, for the reason that a listener failed with.
pub(super) fn holder(place: SocketAddr, transport: Transport) -> Option<String> {
    host::holder(place, transport).ok().flatten().map(|holder| holder.to_string())
}

/// The addresses of this machine: at each of them a port of a pool is Harbor's own.
pub(super) fn addresses() -> BTreeSet<IpAddr> {
    host::own_addresses().unwrap_or_else(|error| {
        tracing::warn!(%error, "the addresses of this machine are not known: backends at them cannot be told from others");
        BTreeSet::new()
    })
}
