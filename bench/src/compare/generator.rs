//! The load generator, as a process of its own.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::works::Transport;

/// A load that takes longer than this beyond what it was given is killed.
const PATIENCE_SECONDS: f64 = 30.0;

/// The command of a load that ends, one way or the other; `seconds` where it is to take so long.
pub fn command(program: &Path, arguments: &[&str], target: SocketAddr, seconds: Option<f64>) -> Command {
    let limit = seconds.unwrap_or(0.0) * 10.0 + PATIENCE_SECONDS;
    let mut command = Command::new("timeout");
    command.arg("--foreground").arg("--kill-after=1").arg(limit.to_string());
    command.arg(program).arg("load").args(arguments).arg("--target").arg(target.to_string());
    if let Some(seconds) = seconds {
        command.arg("--seconds").arg(seconds.to_string());
    }
    command
}

/// What it says, as JSON, or why it failed.
pub fn run(mut command: Command) -> anyhow::Result<Value> {
    let command = command.stdin(Stdio::null()).env("RUST_BACKTRACE", "0");
    let output = command.output().context("cannot start the load")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        bail!("the load failed ({}): {words}", output.status);
    }
    serde_json::from_slice(&output.stdout).context("the load said no JSON")
}

/// Puts a proxy to some use, so that what it makes when it is first used is there.
pub fn warm_up(program: &Path, target: SocketAddr) -> anyhow::Result<()> {
    run(command(program, &["connect", "--connections", "16"], target, Some(0.1))).map(drop)
}

/// Bytes come through unharmed, and half-close does.
pub fn verify(program: &Path, target: SocketAddr, transport: Transport) -> anyhow::Result<()> {
    let arguments = match transport {
        Transport::Tcp => ["verify"].as_slice(),
        Transport::Udp => &["verify", "--udp"],
    };
    run(command(program, arguments, target, None)).map(drop)
}
