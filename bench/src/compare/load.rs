//! Runs the load, and turns what it and the kernel say into metrics.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{
    accounting::{Cpu, Drops},
    arena::{Arena, Stay},
    generator,
    metric::Metric,
    works::Work,
};

pub type Measured = (BTreeMap<Metric, f64>, Value);

/// With what the generator must know besides.
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
    let command = generator::command(
        arena.program(),
        &arguments(work, given, &backend),
        arena.peer(peer).target(&site),
        Some(seconds),
    );
    let pids = arena.pids(peer);
    let drops = Drops::of(&pids)?;
    let cpu = Cpu::at_rest(&pids);
    let load = generator::run(command)?;
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
