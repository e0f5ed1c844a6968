//! Mixed load with resets for as long as one likes, and whether memory, descriptors or pipes grow meanwhile.

use std::{
    env, fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Parser;
use serde_json::Value;

use crate::compare::{
    accounting,
    arena::{self, BACKEND},
    generator, namespace,
    peers::{self, Peer as _, Site, harbor::Harbor},
    process::Process,
    say, wait,
};

/// How often is looked.
const SAMPLE_EVERY: Duration = Duration::from_secs(2);
const MINUTE: Duration = Duration::from_secs(60);
/// The first minute brings everything into use; then there is one to compare with, and the last.
const LEAST_MINUTES: u32 = 3;
const MOST_MINUTES: u32 = 24 * 60;
/// What the last minute may have more than the second: what happens to be open.
const KIBIBYTES_MORE: u64 = 4 * 1024;
const DESCRIPTORS_MORE: u64 = 64;
const PIPES_MORE: u64 = 32;
/// How long after the load its last sockets may take to close: sessions end when they are idle.
const FAREWELL: Duration = Duration::from_secs(90);

/// Clients of UDP at once. Each stays for a moment, and its session for the whole idle time-out.
const UDP_FLOWS: &str = "4";

const HARBOR_PORT: u16 = 20_000;
const HARBOR_API_PORT: u16 = 8_000;

#[derive(Debug, Parser)]
pub struct Args {
    /// How long the load goes on
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(i64::from(LEAST_MINUTES)..=i64::from(MOST_MINUTES)))]
    minutes: u32,
    /// Connections that begin per second
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// The binary that is put to work
    #[arg(long, default_value = "target/release/harbor")]
    harbor: PathBuf,
    /// The process runs in the namespaces that it was given, with this folder for all that it starts
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
}

/// What the process takes of the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Footprint {
    kibibytes: u64,
    /// Without those of pipes.
    descriptors: u64,
    /// Ends of pipes.
    pipes: u64,
}

impl Footprint {
    fn of(pid: u32) -> io::Result<Self> {
        let mut footprint = Self { kibibytes: accounting::memory_kib(&[pid])?, ..Self::default() };
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            // One that has been closed meanwhile is none.
            let Ok(target) = fs::read_link(entry?.path()) else { continue };
            let is_pipe = target.to_string_lossy().starts_with("pipe:");
            footprint.pipes += u64::from(is_pipe);
            footprint.descriptors += u64::from(!is_pipe);
        }
        Ok(footprint)
    }

    fn most(self, other: Self) -> Self {
        Self {
            kibibytes: self.kibibytes.max(other.kibibytes),
            descriptors: self.descriptors.max(other.descriptors),
            pipes: self.pipes.max(other.pipes),
        }
    }

    /// What of it has grown since `earlier` by more than happens to be open.
    fn grown_since(self, earlier: Self) -> Vec<&'static str> {
        let mut grown = Vec::new();
        for (what, now, then, more) in [
            ("memory", self.kibibytes, earlier.kibibytes, KIBIBYTES_MORE),
            ("descriptors", self.descriptors, earlier.descriptors, DESCRIPTORS_MORE),
            ("pipes", self.pipes, earlier.pipes, PIPES_MORE),
        ] {
            if now > then + more {
                grown.push(what);
            }
        }
        grown
    }
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    ensure!(args.harbor.exists(), "{} is not there: `cargo build --release`", args.harbor.display());
    if let Some(folder) = &args.inside {
        return soak(args, folder);
    }
    namespace::run_inside(&[])
}

fn soak(args: &Args, folder: &Path) -> anyhow::Result<ExitCode> {
    namespace::prepare()?;
    let program = env::current_exe()?;
    let _backend = arena::start_backend(&program, BACKEND, folder)?;
    let peer = Harbor::new(args.harbor.canonicalize()?);
    let site = Site {
        directory: folder.join("harbor"),
        ports: vec![HARBOR_PORT],
        api_port: HARBOR_API_PORT,
        backend: BACKEND,
        udp: true,
    };
    fs::create_dir_all(&site.directory)?;
    peer.prepare(&site)?;
    let harbor = peers::start(&peer, &site)?.context("Harbor is a process")?;
    let pid = harbor.pids()[0];
    let before = Footprint::of(pid)?;

    let seconds = f64::from(args.minutes) * MINUTE.as_secs_f64();
    let rate = args.rate.to_string();
    let mut command = generator::command(
        &program,
        &["resets", "--rate", &rate, "--udp-flows", UDP_FLOWS],
        peer.target(&site),
        Some(seconds),
    );
    let log = folder.join("load.log");
    let started = Instant::now();
    let mut load = Process::start(&mut command, &log)?;
    let mut minutes = Vec::new();
    let patience = MINUTE * (args.minutes + 2);
    let outcome = load.until("it has said what came of it", patience, SAMPLE_EVERY, || {
        let minute = (started.elapsed().as_secs() / MINUTE.as_secs()) as usize;
        // A process that is gone takes nothing; the load says that it failed then.
        note(&mut minutes, minute, Footprint::of(pid).unwrap_or_default());
        outcome(&log)
    });
    let told = fs::read_to_string(&log).unwrap_or_default();
    let outcome = outcome.with_context(|| format!("the load failed:\n{told}"))?;
    say(&format!("the load: {outcome}"));
    verdict(&minutes[..args.minutes as usize], &outcome, pid, before)
}

/// Keeps the most of each minute, and shows each that is over.
fn note(minutes: &mut Vec<Footprint>, minute: usize, sample: Footprint) {
    if minutes.len() <= minute {
        if let Some(Footprint { kibibytes, descriptors, pipes }) = minutes.last() {
            let number = minutes.len();
            say(&format!(
                "minute {number:>4}: {kibibytes:>7} KiB, {descriptors:>5} descriptors, {pipes:>4} ends of pipes"
            ));
        }
        minutes.resize(minute + 1, sample);
    }
    let most = &mut minutes[minute];
    *most = most.most(sample);
}

/// What the load says in the end.
fn outcome(log: &Path) -> Option<Value> {
    let text = fs::read_to_string(log).ok()?;
    text.lines().find_map(|line| serde_json::from_str::<Value>(line).ok().filter(Value::is_object))
}

fn verdict(minutes: &[Footprint], outcome: &Value, pid: u32, before: Footprint) -> anyhow::Result<ExitCode> {
    let mut bad = minutes[minutes.len() - 1].grown_since(minutes[1]);
    if outcome["errors"] != 0 {
        bad.push("errors of the load");
    }
    let closed = wait::until(FAREWELL, SAMPLE_EVERY, || {
        Footprint::of(pid).is_ok_and(|now| now.descriptors <= before.descriptors).then_some(())
    });
    if closed.is_none() {
        bad.push("sockets that stay open");
    }
    let verdict =
        if bad.is_empty() { "fine: nothing has grown".to_owned() } else { format!("not fine: {}", bad.join(", ")) };
    writeln!(io::stdout(), "{verdict}")?;
    Ok(ExitCode::from(u8::from(!bad.is_empty())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_grown_by_more_than_happens_to_be_open_is_told() {
        let earlier = Footprint { kibibytes: 20_000, descriptors: 200, pipes: 10 };
        let check = |kibibytes, descriptors, pipes, expect: &[&str]| {
            assert_eq!(Footprint { kibibytes, descriptors, pipes }.grown_since(earlier), expect);
        };
        check(20_000, 200, 10, &[]);
        check(1, 1, 1, &[]);
        check(20_000 + KIBIBYTES_MORE, 200 + DESCRIPTORS_MORE, 10 + PIPES_MORE, &[]);
        check(20_001 + KIBIBYTES_MORE, 200, 10, &["memory"]);
        check(20_000, 201 + DESCRIPTORS_MORE, 11 + PIPES_MORE, &["descriptors", "pipes"]);
    }

    #[test]
    fn of_each_minute_the_most_is_kept() {
        let footprint = |kibibytes, pipes| Footprint { kibibytes, descriptors: 1, pipes };
        let mut minutes = Vec::new();
        for (minute, sample) in [(0, footprint(5, 1)), (0, footprint(3, 2)), (1, footprint(4, 0)), (1, footprint(4, 1))]
        {
            note(&mut minutes, minute, sample);
        }
        assert_eq!(minutes, [footprint(5, 2), footprint(4, 1)]);
    }
}
