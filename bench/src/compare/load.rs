//! Runs the load as a process of its own, and turns what it and the kernel say into metrics.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::{
    accounting::{Cpu, Drops},
    arena::{Arena, Stay},
    metric::Metric,
    works::{Transport, Work},
};

pub type Measured = (BTreeMap<Metric, f64>, Value);

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

pub fn arguments<'a>(work: &Work, arguments: &[&'a str], backend: &'a str) -> Vec<&'a str> {
    let mut all = arguments.to_vec();
    // What arrived of a one-way flood is asked of the backend itself.
    if matches!(work.name, "udp-flood" | "udp-max") {
        all.extend(["--backend", backend]);
    }
    all
}

/// One cell.
pub fn measure(arena: &Arena, work: &Work, peer: &str, given: &[&str], seconds: f64) -> anyhow::Result<Measured> {
    let site = arena.site(peer, Stay::Lasting);
    let backend = site.backend.to_string();
    let command =
        command(arena.program(), &arguments(work, given, &backend), arena.peer(peer).target(&site), Some(seconds));
    let pids = arena.pids(peer);
    let drops = Drops::of(&pids)?;
    let cpu = Cpu::at_rest(&pids);
    let load = run(command)?;
    let cpu = Cpu::at_rest(&pids).since(&cpu);
    let drops = Drops::of(&pids)?.since(&drops);
    let figure = |name: &str| load[name].as_f64().with_context(|| format!("the load said no {name}"));
    let (units, took) = (figure("units")?, figure("seconds")?);
    ensure!(units > 0.0 && took > 0.0, "nothing was carried");
    ensure!(pids.is_empty() || !cpu.is_zero(), "the proxy used no processor: it has ended");
    let is_rate = load["unit"].as_str().is_some_and(|unit| unit.ends_with("/s"));
    let mut metrics = BTreeMap::new();
    for metric in work.metrics {
        let value = match metric {
            Metric::Cpu if pids.is_empty() => None,
            Metric::Cpu => Some(cpu.as_secs_f64() / units * work.per.0),
            Metric::Rate if is_rate => Some(units),
            Metric::Rate => Some(units / took),
            Metric::P50 => load["latency_us"]["p50"].as_f64(),
            Metric::P99 => load["latency_us"]["p99"].as_f64(),
            Metric::OwnDelay => load["own_delay_p99_us"].as_f64(),
            Metric::Drops if pids.is_empty() => None,
            Metric::Drops => Some(drops as f64),
            // Of works with a procedure of their own.
            Metric::IdleMemory5000 | Metric::IdleMemory9000 | Metric::Start | Metric::Bind | Metric::ListenerMemory => {
                None
            }
        };
        metrics.extend(value.map(|value| (*metric, value)));
    }
    Ok((metrics, load))
}
