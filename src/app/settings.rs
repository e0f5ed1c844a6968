//! From the configuration to each part's own settings.

use std::net::SocketAddr;

use crate::{
    broker,
    config::{self, Config},
    control, discovery, forwarder,
    model::PortSet,
};

pub(super) fn broker(config: &config::Broker) -> broker::Settings {
    broker::Settings { username: config.username.clone(), passwords: passwords(config) }
}

pub(super) fn passwords(config: &config::Broker) -> Vec<String> {
    config.passwords.iter().map(|password| password.expose().to_owned()).collect()
}

pub(super) fn control(config: &Config) -> control::Settings {
    control::Settings {
        node: config.node.id.clone(),
        pools: config.node.pools.clone(),
        plans: config.plans.clone(),
        limits: config.forwarder.limits.clone(),
        announce_url: config.announce.as_ref().map(|announce| announce.public_url.clone()),
    }
}

pub(super) fn forwarder(config: &Config) -> forwarder::Settings {
    let ranges = config.node.pools.iter().flat_map(|pool| pool.ports.ranges().to_vec());
    forwarder::Settings {
        listen: config.node.listen.clone(),
        workers: config.forwarder.workers,
        pool_ports: PortSet::from_ranges(ranges).expect("a configuration's ranges have been checked"),
    }
}
