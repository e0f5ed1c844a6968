//! A network and a process namespace of our own: ports and sysctls are ours, and no process outlives the run.

use std::{
    env, fs, io,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, bail};
use rustix::process::{Resource, getuid, setrlimit};

/// Receive buffers of UDP listeners, Harbor's and its peers' alike, need this to be allowed.
pub const RECEIVE_BUFFER: u64 = 4 << 20;
const RECEIVE_BUFFER_MAX: &str = "/proc/sys/net/core/rmem_max";

/// Local ports for connections: above every port that a proxy listens on.
const LOCAL_PORTS: &str = "28000 65000";

/// How all connections in the namespace control congestion: the one way that the kernel allows to every namespace. Where
/// BBR is the machine's default, it would pace each connection over loopback by a timer per segment, and one would
/// measure timers.
const CONGESTION_CONTROL: &str = "reno";

/// The option that tells this program that it is where it shall be.
const INSIDE: &str = "--inside";

/// Runs this program again in namespaces of its own, with a folder after [`INSIDE`], and `more`.
pub fn run_inside(more: &[&str]) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Both are put back and removed after all processes have ended, however they did.
    let _limit = ReceiveBufferLimit::raise();
    let folder = tempfile::Builder::new().prefix("harbor-bench-").tempdir()?;
    let mut command = tokio::process::Command::new("setpriv");
    // When we are killed so is `unshare`, and with it process 1 of the namespace and all others in there.
    command.args(["--pdeathsig", "KILL", "unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    if !getuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.arg(env::current_exe()?).args(env::args_os().skip(1)).arg(INSIDE).arg(folder.path()).args(more);
    runtime.block_on(async {
        let mut child = command.spawn().context("`setpriv` and `unshare` of util-linux are needed")?;
        tokio::select! {
            status = child.wait() => Ok(ExitCode::from(status?.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))),
            _ = tokio::signal::ctrl_c() => {
                child.kill().await?;
                bail!("interrupted")
            }
        }
    })
}

/// What is set in the fresh namespace.
pub fn prepare() -> anyhow::Result<()> {
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    if !up.is_ok_and(|status| status.success()) {
        bail!("cannot bring loopback up in a network namespace: run as root, with `ip` of iproute2 installed");
    }
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", LOCAL_PORTS).context("cannot set the local ports")?;
    fs::write("/proc/sys/net/ipv4/tcp_congestion_control", CONGESTION_CONTROL)
        .with_context(|| format!("cannot choose {CONGESTION_CONTROL} for congestion control"))?;
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit of descriptors")
}

/// What the kernel allows now, bytes.
pub fn receive_buffer_max() -> io::Result<u64> {
    read(RECEIVE_BUFFER_MAX.as_ref())
}

/// The sysctl is the machine's, not the namespace's: raised where it is too low and put back when dropped.
struct ReceiveBufferLimit {
    before: Option<u64>,
}

impl ReceiveBufferLimit {
    fn raise() -> Self {
        let path = Path::new(RECEIVE_BUFFER_MAX);
        let before = read(path).ok().filter(|now| *now < RECEIVE_BUFFER);
        let before = before.filter(|before| match fs::write(path, RECEIVE_BUFFER.to_string()) {
            Ok(()) => {
                super::say(&format!("net.core.rmem_max: {RECEIVE_BUFFER} for this run, then {before} again"));
                true
            }
            Err(error) => {
                super::say(&format!("net.core.rmem_max stays {before} ({error}): UDP buffers are smaller than 4 MiB"));
                false
            }
        });
        Self { before }
    }
}

impl Drop for ReceiveBufferLimit {
    fn drop(&mut self) {
        if let Some(before) = self.before
            && let Err(error) = fs::write(RECEIVE_BUFFER_MAX, before.to_string())
        {
            super::say(&format!("net.core.rmem_max could not be set back to {before}: {error}"));
        }
    }
}

fn read(path: &Path) -> io::Result<u64> {
    fs::read_to_string(path)?.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}
