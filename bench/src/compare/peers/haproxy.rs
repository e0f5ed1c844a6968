//! HAProxy, as it decides about splicing itself, and with splicing forced.

use std::{fs, process::Command};

use super::{Peer, Process, Site, WORKERS, version_line};

#[derive(Debug)]
pub enum Haproxy {
    /// `splice-auto`: it splices when it thinks that it pays.
    Auto,
    /// `splice-request` and `splice-response`.
    Forced,
}

/// Two descriptors each, and 512 pipes, fit into a limit of 20,000.
const CONNECTIONS: u32 = 9_300;
const PIPES: u32 = 450;

impl Peer for Haproxy {
    fn name(&self) -> &'static str {
        match self {
            Self::Auto => "haproxy",
            Self::Forced => "haproxy-splice",
        }
    }

    fn version(&self) -> anyhow::Result<String> {
        // HAProxy version 2.6.12 2023/12/16 - https://haproxy.org/
        let line = version_line(Command::new("haproxy").arg("-v"))?;
        Ok(line.split(' ').nth(2).unwrap_or(&line).to_owned())
    }

    fn start(&self, site: &Site) -> anyhow::Result<Option<Process>> {
        let splice = match self {
            Self::Auto => "option splice-auto",
            Self::Forced => "option splice-request\n    option splice-response",
        };
        let connections = if site.ports.len() > 1 { 1_000 } else { CONNECTIONS };
        let mut config = format!(
            "global
    nbthread {WORKERS}
    maxconn {connections}
    maxpipes {PIPES}
defaults
    mode tcp
    maxconn {connections}
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    {splice}
"
        );
        for port in &site.ports {
            let backend = site.backend;
            config += &format!("listen p{port}\n    bind 127.0.0.1:{port}\n    server app {backend}\n");
        }
        let path = site.directory.join("haproxy.cfg");
        fs::write(&path, config)?;
        let mut command = Command::new("haproxy");
        Process::start(command.arg("-db").arg("-f").arg(path), &site.directory.join("log")).map(Some)
    }
}
