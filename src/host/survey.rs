//! Looking at the machine: what of it matters to pools of ports.

use std::{fs, str::FromStr, time::Duration};

use super::{
    findings::{Conntrack, Machine, Needs},
    holder::{holders, meet},
    local_ports, own_addresses,
    processes::processes,
    raise_descriptor_limit,
};
use crate::model::Transport;

/// What can be seen now. Reads `/proc` and blocks while it does. This process takes as many descriptors as it may.
#[must_use]
pub fn survey(needs: &Needs) -> Machine {
    let is_of_a_pool = |port| needs.pools.iter().any(|(_, ports)| ports.contains(port));
    let is_of_an_api = |transport, place: std::net::SocketAddr| {
        let mut apis = needs.apis.iter().filter(|_| transport == Transport::Tcp);
        apis.any(|(_, listen)| listen.port() == place.port() && meet(listen.ip(), place.ip()))
    };
    // Some of it may be hidden from this process: then less is found.
    let processes = processes().unwrap_or_default();
    let held = holders(|transport, place| is_of_a_pool(place.port()) || is_of_an_api(transport, place), &processes);
    Machine {
        local_ports: local_ports().ok(),
        unprivileged_start: setting("net/ipv4/ip_unprivileged_port_start"),
        held: held.unwrap_or_default(),
        processes,
        own_process: std::process::id(),
        addresses: own_addresses().ok(),
        descriptors: raise_descriptor_limit().now,
        conntrack: conntrack(),
        receive_buffer: setting("net/core/rmem_max"),
    }
}

/// What connection tracking allows; none where it is not loaded.
fn conntrack() -> Option<Conntrack> {
    Some(Conntrack {
        max: setting("net/netfilter/nf_conntrack_max")?,
        count: setting("net/netfilter/nf_conntrack_count")?,
        udp_stream: Duration::from_secs(setting("net/netfilter/nf_conntrack_udp_timeout_stream")?),
    })
}

/// A setting of the kernel that is one number.
fn setting<T: FromStr>(name: &str) -> Option<T> {
    fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().parse().ok()
}
