//! Start and memory of a proxy with thousands of listeners.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde_json::json;

use super::{
    accounting::{Cpu, listening_ports, memory_kib},
    arena::{Arena, Stay},
    load::Measured,
    metric::Metric,
    process::Process,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// With one port and with all.
pub fn measure(arena: &Arena, name: &str) -> anyhow::Result<Measured> {
    let (_, one) = started(arena, name, Stay::OneListener)?;
    let (seconds, all) = started(arena, name, Stay::Listeners)?;
    let mut metrics =
        BTreeMap::from([(Metric::Start, seconds), (Metric::ListenerMemory, (all as f64 - one as f64) / 1024.0)]);
    let bind = arena.peer(name).bind_seconds(&arena.site(name, Stay::Listeners));
    metrics.extend(bind.map(|seconds| (Metric::Bind, seconds)));
    Ok((metrics, json!({ "memory_kib": [one, all] })))
}

/// Seconds until all ports listen, and memory in KiB once it is at rest.
fn started(arena: &Arena, name: &str, stay: Stay) -> anyhow::Result<(f64, u64)> {
    let site = arena.site(name, stay);
    let begin = Instant::now();
    let mut process = arena.peer(name).start(&site)?.context("there is no process to measure")?;
    // Most bind in order; looking at all sockets again and again would slow the start down.
    let last = SocketAddr::from((Ipv4Addr::LOCALHOST, *site.ports.last().context("a site has a port")?));
    wait(&mut process, Duration::from_millis(1), || TcpStream::connect(last).is_ok())?;
    wait(&mut process, Duration::from_millis(5), || {
        listening_ports().is_ok_and(|listening| site.ports.iter().all(|port| listening.contains(port)))
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    let pids = process.pids();
    Cpu::at_rest(&pids);
    Ok((seconds, memory_kib(&pids)?))
}

fn wait(process: &mut Process, pause: Duration, mut look: impl FnMut() -> bool) -> anyhow::Result<()> {
    process.until("all ports listen", PATIENCE, pause, || look().then_some(()))
}
