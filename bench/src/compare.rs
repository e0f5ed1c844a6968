//! Harbor and its peers, interleaved: what each costs for the same work in the same run.

pub mod accounting;
pub mod arena;
mod bounds;
mod chart;
pub mod format;
pub mod generator;
mod http;
mod idle;
mod listeners;
mod load;
mod metric;
pub mod namespace;
pub mod peers;
pub mod process;
pub mod report;
mod results;
pub mod statistics;
mod system_calls;
pub mod wait;
pub mod works;

use std::{
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;

use self::{
    arena::Arena,
    bounds::Verdict,
    results::{Cell, Machine, Results},
    works::{Kind, WORKS, Work},
};

/// More rounds than anybody waits for.
const MAX_ROUNDS: u32 = 200;

#[derive(Debug, Parser)]
pub struct Args {
    /// How often each proxy does each work
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_ROUNDS)))]
    rounds: u32,
    /// How long each time; three times as long where latencies are held to a bound
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// These works only
    #[arg(long, value_delimiter = ',', value_name = "WORK")]
    only: Vec<String>,
    /// These peers only, beside Harbor
    #[arg(long, value_delimiter = ',', value_name = "PEER")]
    against: Vec<String>,
    /// The binary to measure
    #[arg(long, default_value = "target/release/harbor")]
    harbor: PathBuf,
    /// Where results.json goes
    #[arg(long, default_value = "target/compare")]
    out: PathBuf,
    /// Exit with 1 when a bound is not met
    #[arg(long)]
    check: bool,
    /// The process runs in the namespaces that it was given, with this folder for all that it starts
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
    /// Where Envoy is, when it is there
    #[arg(long, hide = true)]
    envoy: Option<PathBuf>,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let works = choose(&args.only, WORKS.iter().map(|work| work.name), "work")?;
    choose(&args.against, peers::NAMES.iter().copied(), "peer")?;
    ensure!(args.seconds > 0.0 && args.seconds <= 60.0, "--seconds is above 0 and at most 60");
    ensure!(args.harbor.exists(), "{} is not there: `cargo build --release`", args.harbor.display());
    if let Some(folder) = &args.inside {
        return measure(args, &works, folder);
    }
    let envoy = if args.against.is_empty() || args.against.iter().any(|name| name == "envoy") {
        peers::envoy::find_or_install(&cache()?).inspect_err(|error| say(&format!("no Envoy: {error:#}"))).ok()
    } else {
        None
    };
    let envoy = envoy.map(|path| path.display().to_string());
    let more = envoy.iter().flat_map(|path| ["--envoy", path]).collect::<Vec<_>>();
    namespace::run_inside(&more)
}

/// What was asked for, without the paths of a machine.
fn arguments(args: &Args) -> Vec<String> {
    let mut told = vec![format!("--rounds {}", args.rounds), format!("--seconds {}", args.seconds)];
    let lists = [("--only", &args.only), ("--against", &args.against)];
    told.extend(
        lists.iter().filter(|(_, list)| !list.is_empty()).map(|(name, list)| format!("{name} {}", list.join(","))),
    );
    told
}

/// The names that were asked for, or all, in the order of all.
fn choose(asked: &[String], all: impl Iterator<Item = &'static str>, what: &str) -> anyhow::Result<Vec<&'static str>> {
    let all = all.collect::<Vec<_>>();
    if let Some(unknown) = asked.iter().find(|name| !all.contains(&name.as_str())) {
        bail!("there is no {what} {unknown:?}: choose of {}", all.join(", "));
    }
    Ok(all.into_iter().filter(|name| asked.is_empty() || asked.iter().any(|asked| asked == name)).collect())
}

/// Peers that are fetched stay beside the build of this program.
fn cache() -> anyhow::Result<PathBuf> {
    let program = env::current_exe()?;
    let target = program.parent().and_then(Path::parent).context("the program is in a build folder")?;
    Ok(target.join("peers"))
}

fn measure(args: &Args, works: &[&str], folder: &Path) -> anyhow::Result<ExitCode> {
    namespace::prepare()?;
    let works = works.iter().map(|name| works::find(name).expect("it was chosen of these")).collect::<Vec<_>>();
    let mut arena = Arena::open(args, folder)?;
    let mut results = Results {
        started: output("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"])?,
        machine: machine()?,
        revision: output("git", &["describe", "--always", "--dirty", "--abbrev=12"])
            .ok()
            .filter(|told| !told.is_empty()),
        arguments: arguments(args),
        versions: arena.versions().clone(),
        works: works.iter().map(|work| work.name.to_owned()).collect(),
        left_out: Vec::new(),
        cells: Vec::new(),
        system_calls: Vec::new(),
    };
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let file = args.out.join("results.json");
    arena.start_all(&works)?;
    results.left_out = arena.left_out().to_vec();
    results.left_out.iter().for_each(|text| say(text));
    for round in 0..args.rounds {
        for work in &works {
            measure_round(&arena, work, round, args, &mut results);
        }
        results.write(&file)?;
    }
    results.system_calls = system_calls::count(&arena, &works, args.seconds, &mut results.left_out)?;
    results.write(&file)?;
    let mut out = std::io::stdout().lock();
    write!(out, "{}", report::markdown(&results))?;
    fs::write(args.out.join("results.svg"), chart::svg(&results))?;
    say(&format!("raw figures: {}", file.display()));
    let missed = args.check && bounds::of(&results).any(|bound| bound.verdict(&results) != Verdict::Met);
    Ok(ExitCode::from(u8::from(missed)))
}

/// One work by all who do it, one after the other, beginning with another one each round.
fn measure_round(arena: &Arena, work: &Work, round: u32, args: &Args, results: &mut Results) {
    let peers = arena.peers_for(work);
    let first = round as usize % peers.len().max(1);
    for (turn, peer) in peers[first..].iter().chain(&peers[..first]).enumerate() {
        let measured = match work.kind {
            Kind::Load(arguments) => load::measure(arena, work, peer, arguments, args.seconds * work.lasts),
            Kind::Idle => idle::measure(arena, peer),
            Kind::Listeners => listeners::measure(arena, peer),
        };
        let (metrics, load, error) = match measured {
            Ok((metrics, load)) => (metrics, load, None),
            Err(error) => (Default::default(), serde_json::Value::Null, Some(format!("{error:#}"))),
        };
        let shown = metrics.iter().map(|(metric, value)| format!("{} {}", metric.label(), format::number(*value)));
        let shown = error.clone().unwrap_or_else(|| shown.collect::<Vec<_>>().join(", "));
        say(&format!("{:>3}/{} {:<18} {peer:<15} {shown}", round + 1, args.rounds, work.name));
        let (work, peer) = (work.name.into(), (*peer).into());
        results.cells.push(Cell { work, peer, round, turn, metrics, load, error });
    }
}

fn machine() -> anyhow::Result<Machine> {
    let field = |path: &str, name: &str| -> anyhow::Result<String> {
        let text = fs::read_to_string(path)?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
        Ok(value.map(|(_, value)| value.trim().to_owned()).unwrap_or_default())
    };
    let memory = field("/proc/meminfo", "MemTotal")?;
    Ok(Machine {
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        processor: field("/proc/cpuinfo", "model name")?,
        cores: std::thread::available_parallelism()?.get(),
        memory_mib: memory.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024,
        descriptors: rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX),
        receive_buffer_max: namespace::receive_buffer_max()?,
    })
}

fn output(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Progress, beside the result on standard output.
pub fn say(text: &str) {
    // Nobody may be there to read it.
    let _ = writeln!(std::io::stderr(), "{text}");
}
