//! A real nats-server that can be killed and started again on its port.

#![allow(dead_code, reason = "each test module uses the helpers it needs")]

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
};

use serde_json::Value;
use tempfile::TempDir;

use super::{eventually::eventually, namespaces::Machine};

/// Servers get their ports from here, below the range that the system gives out by itself: the port of a server that
/// is down for a moment is nobody else's meanwhile.
const FIRST_PORT: u16 = 23_500;
const LAST_PORT: u16 = 23_999;

static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

/// A server; killed when dropped.
#[derive(Debug)]
pub struct NatsServer {
    directory: TempDir,
    config: PathBuf,
    machine: Option<Machine>,
    port: u16,
    child: Option<Child>,
}

impl NatsServer {
    /// One that lets everyone in.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// One with more lines in its configuration.
    pub fn start_with(more: &str) -> Self {
        Self::stopped_with(more, None).started()
    }

    /// One inside a machine, that the others of its network reach.
    pub fn start_on(machine: &Machine) -> Self {
        Self::stopped_with("", Some(machine.clone())).started()
    }

    fn started(mut self) -> Self {
        let server = &mut self;
        for _ in FIRST_PORT..=LAST_PORT {
            if server.try_start() {
                return self;
            }
            server.port = next_port();
        }
        panic!("nats-server starts on none of the ports from {FIRST_PORT} to {LAST_PORT}:\n{}", server.log());
    }

    /// One that has been running and is down now, so that its port is known.
    pub fn stopped() -> Self {
        let mut server = Self::start();
        server.kill();
        server
    }

    fn stopped_with(more: &str, machine: Option<Machine>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let config = directory.path().join("nats.conf");
        fs::write(&config, more).expect("the directory is ours");
        Self { directory, config, machine, port: next_port(), child: None }
    }

    /// Starts it again on the same port.
    pub fn restart(&mut self) {
        self.kill();
        assert!(self.try_start(), "nats-server does not start again:\n{}", self.log());
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it is our child");
            child.wait().expect("it is our child");
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        let address = self.machine.as_ref().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), Machine::address);
        SocketAddr::new(address, self.port)
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address())
    }

    /// A folder that lives as long as the server.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Whether it came up. It did not when its port is taken.
    fn try_start(&mut self) -> bool {
        let log = self.directory.path().join("log");
        let mut command = Command::new("nats-server");
        command
            .args(["-a", &self.address().ip().to_string(), "-p", &self.port.to_string(), "--ports_file_dir"])
            .arg(self.directory.path())
            .arg("-l")
            .arg(log)
            .arg("-c")
            .arg(&self.config);
        if let Some(machine) = &self.machine {
            command = machine.inside(&command);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server is installed and on the PATH");
        // The server writes this file when it listens.
        let ports = self.directory.path().join(format!("nats-server_{}.ports", child.id()));
        let up = eventually("nats-server listens or has ended", || {
            let listens = fs::read(&ports).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
            if listens.is_some() {
                return Some(true);
            }
            child.try_wait().expect("it is our child").map(|_| false)
        });
        if up {
            self.child = Some(child);
        }
        up
    }

    /// What it has written to its log, over all its runs.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Test processes that run at the same time begin at different places.
fn next_port() -> u16 {
    let count = LAST_PORT - FIRST_PORT + 1;
    let begin = u16::try_from(std::process::id() * 37 % u32::from(count)).expect("less than count");
    FIRST_PORT + (begin + NEXT_PORT.fetch_add(1, Ordering::Relaxed)) % count
}
