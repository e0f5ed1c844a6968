//! Memory of a proxy that holds idle connections.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{
    accounting::{Cpu, memory_kib},
    arena::{Arena, Stay},
    generator,
    load::Measured,
    metric::Metric,
    peers,
    process::Process,
};

/// Connections that are opened first, and in all. A proxy needs two descriptors for each.
const STEPS: [(u32, Metric); 2] = [(5_000, Metric::IdleMemory5000), (9_000, Metric::IdleMemory9000)];
const PER_SECOND: u32 = 10_000;

/// A load that holds its connections until it is dropped.
struct Held(Child);

impl Held {
    /// Ends it. An error when connections had ended before.
    fn let_go(mut self) -> anyhow::Result<()> {
        drop(self.0.stdin.take());
        let told = std::io::read_to_string(self.0.stdout.take().context("it is piped")?)?;
        let outcome = serde_json::from_str::<Value>(&told).context("the load ended before it was told to")?;
        ensure!(outcome["errors"] == 0, "not all connections stayed open: {told}");
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // It ends when its input does.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// On a fresh process, so that what earlier work left behind does not count.
pub fn measure(arena: &Arena, name: &str) -> anyhow::Result<Measured> {
    let site = arena.site(name, Stay::Idle);
    let peer = arena.peer(name);
    let process = peers::start(peer, &site)?.context("there is no process to measure")?;
    generator::warm_up(arena.program(), peer.target(&site))?;
    let before = at_rest(&process)?;
    let (mut metrics, mut absolute, mut holding, mut held) = (BTreeMap::new(), vec![before], 0, Vec::new());
    for (connections, metric) in STEPS {
        held.push(hold(arena, peer.target(&site), connections - holding)?);
        holding = connections;
        let now = at_rest(&process)?;
        absolute.push(now);
        metrics.insert(metric, now.saturating_sub(before) as f64 / f64::from(connections));
    }
    // The load first: its connections shall end as they do in life.
    held.into_iter().try_for_each(Held::let_go)?;
    drop(process);
    Ok((metrics, json!({ "memory_kib": absolute })))
}

/// Memory in KiB of the process and what it has started, once it has nothing left to do.
fn at_rest(process: &Process) -> anyhow::Result<u64> {
    let pids = process.pids();
    Cpu::at_rest(&pids);
    Ok(memory_kib(&pids)?)
}

fn hold(arena: &Arena, target: std::net::SocketAddr, connections: u32) -> anyhow::Result<Held> {
    let (count, rate) = (connections.to_string(), PER_SECOND.to_string());
    let arguments = ["idle", "--connections", &count, "--per-second", &rate];
    let mut command = generator::command(arena.program(), &arguments, target, None);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut held = Held(command.spawn().context("cannot start the load")?);
    let mut line = String::new();
    // Nothing follows the line until the load is told to end: no byte is lost with the reader.
    BufReader::new(held.0.stdout.as_mut().context("it is piped")?).read_line(&mut line)?;
    let holds = line.trim().strip_prefix("holding ").and_then(|count| count.parse().ok());
    ensure!(holds == Some(connections), "the load holds {line:?} instead of {connections} connections");
    Ok(held)
}
