//! The proxies, and how each is started as its operators run it.

pub mod direct;
pub mod envoy;
pub mod haproxy;
pub mod harbor;
pub mod naive;
pub mod nginx;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::Context as _;

use super::process::Process;

/// All of them, in the order of columns; Harbor is the last.
pub const NAMES: &[&str] = &["direct", "haproxy", "haproxy-splice", "nginx", "envoy", "naive", "harbor"];

/// Worker threads or processes of each proxy that lets one choose.
pub const WORKERS: u32 = 2;

/// How long a proxy may take to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a proxy runs and what it forwards.
#[derive(Debug, Clone)]
pub struct Site {
    /// Its configuration, logs and state; there, and empty at first.
    pub directory: PathBuf,
    /// What it listens on, all to the same backend.
    pub ports: Vec<u16>,
    /// The first of three ports for APIs.
    pub api_port: u16,
    pub backend: SocketAddr,
    /// Beside TCP, on the same ports.
    pub udp: bool,
}

/// One kind of proxy.
pub trait Peer {
    fn name(&self) -> &'static str;

    /// An error when it is not installed.
    fn version(&self) -> anyhow::Result<String>;

    /// Starts it, without waiting. None: there is no process.
    fn start(&self, site: &Site) -> anyhow::Result<Option<Process>>;

    /// Called before the first start at a site.
    fn prepare(&self, _: &Site) -> anyhow::Result<()> {
        Ok(())
    }

    /// Called when it listens, before traffic.
    fn settle(&self, _: &Site) -> anyhow::Result<()> {
        Ok(())
    }

    /// Where the load goes.
    fn target(&self, site: &Site) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, site.ports[0]).into()
    }

    /// Seconds that it says it took from knowing what to bind until all was bound.
    fn bind_seconds(&self, _: &Site) -> Option<f64> {
        None
    }
}

/// Starts a proxy and waits until it takes connections on its last port.
pub fn start(peer: &dyn Peer, site: &Site) -> anyhow::Result<Option<Process>> {
    let Some(mut process) = peer.start(site)? else { return Ok(None) };
    let last = SocketAddr::from((Ipv4Addr::LOCALHOST, *site.ports.last().context("a site has a port")?));
    let listens = || TcpStream::connect(last).ok().map(drop);
    process
        .until("it listens", PATIENCE, Duration::from_millis(1), listens)
        .and_then(|()| peer.settle(site))
        .with_context(|| format!("see the files in {}", site.directory.display()))?;
    Ok(Some(process))
}

/// The first line that a program says about its version.
fn version_line(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("{} is not installed", command.get_program().display()))?;
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    let line = String::from_utf8_lossy(&text).lines().find(|line| !line.is_empty()).unwrap_or_default().to_owned();
    Ok(line)
}
