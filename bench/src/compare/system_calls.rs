//! System calls per unit, in a pass of its own: counting costs time, so nothing else is taken from it.

use std::{fs, process::Command};

use anyhow::Context as _;

use super::{
    arena::{Arena, Stay},
    generator, load,
    metric::Metric,
    results::SystemCalls,
    say,
    works::{Kind, Work},
};

const ALL: &str = "raw_syscalls:sys_enter";
const SPLICE: &str = "syscalls:sys_enter_splice";

/// Of every proxy at every work that has a cost per unit.
pub fn count(
    arena: &Arena,
    works: &[&Work],
    seconds: f64,
    left_out: &mut Vec<String>,
) -> anyhow::Result<Vec<SystemCalls>> {
    let mut counts = Vec::new();
    for work in works.iter().filter(|work| work.metrics.contains(&Metric::Cpu)) {
        let Kind::Load(given) = work.kind else { continue };
        for peer in arena.peers_for(work) {
            let pids = arena.pids(peer);
            if pids.is_empty() {
                continue;
            }
            match one(arena, work, peer, given, &pids, seconds) {
                Ok(count) => {
                    let each = count.calls as f64 / count.units;
                    say(&format!("system calls {:<18} {peer:<15} {each:.2} per unit", work.name));
                    counts.push(count);
                }
                Err(error) => left_out.push(format!("system calls of {peer} at {}: {error:#}", work.name)),
            }
        }
    }
    Ok(counts)
}

fn one(
    arena: &Arena,
    work: &Work,
    peer: &str,
    given: &[&str],
    pids: &[u32],
    seconds: f64,
) -> anyhow::Result<SystemCalls> {
    let site = arena.site(peer, Stay::Lasting);
    let backend = site.backend.to_string();
    let arguments = load::arguments(work, given, &backend);
    let load = generator::command(arena.program(), &arguments, arena.peer(peer).target(&site), Some(seconds));
    let counts = site.directory.join("system-calls");
    let pids = pids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    // Attached before it starts the load, and done when that ends.
    let mut command = Command::new("perf");
    command.args(["stat", "-x", ";", "-e", ALL, "-e", SPLICE, "-p", &pids, "-o"]).arg(&counts).arg("--");
    command.arg(load.get_program()).args(load.get_args());
    let said = generator::run(command).context("perf is needed for this")?;
    let text = fs::read_to_string(counts)?;
    let units = said["units"].as_f64().filter(|units| *units > 0.0).context("nothing was carried")?;
    let value = |event| parse(&text, event).with_context(|| format!("perf did not count {event}"));
    Ok(SystemCalls { work: work.name.into(), peer: peer.into(), units, calls: value(ALL)?, splices: value(SPLICE)? })
}

/// The count of an event in what `perf stat -x ';'` says.
fn parse(text: &str, event: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split(';').nth(2) == Some(event))?;
    line.split(';').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_by_event() {
        let text =
            "# started on Sat\n\n29;;raw_syscalls:sys_enter;1;100.00;;\n<not counted>;;syscalls:sys_enter_splice;0;;\n";
        assert_eq!(parse(text, ALL), Some(29));
        assert_eq!(parse(text, SPLICE), None);
    }
}
