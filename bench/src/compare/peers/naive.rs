//! The proxy that anyone would write first: tokio and `copy_bidirectional`.

use std::{env, process::Command};

use super::{Peer, Process, Site, WORKERS};

#[derive(Debug)]
pub struct Naive;

impl Peer for Naive {
    fn name(&self) -> &'static str {
        "naive"
    }

    fn version(&self) -> anyhow::Result<String> {
        Ok(concat!("harbor-bench ", env!("CARGO_PKG_VERSION")).into())
    }

    fn start(&self, site: &Site) -> anyhow::Result<Option<Process>> {
        let mut command = Command::new(env::current_exe()?);
        command.args(["naive", "--listen", &self.target(site).to_string(), "--backend", &site.backend.to_string()]);
        command.arg("--workers").arg(WORKERS.to_string());
        if site.udp {
            command.arg("--udp");
        }
        Process::start(&mut command, &site.directory.join("log")).map(Some)
    }
}
