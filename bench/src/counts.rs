//! Instructions and system calls per unit of work, against those on record: a change that makes a hot path dearer is seen.
//!
//! Both are counted, not timed, so a busy machine changes nothing. Each path of the replay runs twice, once with twice
//! the steps; the difference is what the steps cost.

mod callgrind;
mod record;
mod strace;
mod table;

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, bail, ensure};

use self::{
    record::{Figures, Record},
    table::Verdict,
};
use crate::{compare::namespace, replay};

/// The profile that this program is to be built with, and so the folder that it is in.
const PROFILE: &str = "counts";
/// Where callgrind's files stay, beside this program, for `callgrind_annotate`.
const PROFILES: &str = "profiles";

/// What to count, and what for.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these ways through the forwarder.
    path: Vec<&'static replay::Path>,
    /// Put the figures on record instead of comparing them.
    #[arg(long)]
    record: bool,
    /// The record.
    #[arg(long, default_value = "bench/counts.json")]
    file: PathBuf,
    /// The process runs in the namespaces that it was given
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
}

/// How much is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// Every path that there is: what else is on record is of a path that is no more.
    All,
    Some,
}

/// Counts. Fails when something costs more than what is on record allows.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let program = env::current_exe()?;
    let folder = program.parent().context("a program is in a folder")?;
    if folder.file_name().is_none_or(|name| name != PROFILE) {
        bail!(
            "figures are comparable only of the profile they are for: cargo build --profile {PROFILE} -p harbor-bench"
        );
    }
    if args.inside.is_none() {
        // Where a connection is paced by timers it is chance how much has come when it is looked at.
        return namespace::run_inside(&[]);
    }
    namespace::prepare()?;
    let before = read(&args.file)?;
    let (extent, paths) = match args.path.as_slice() {
        [] => (Extent::All, replay::PATHS.iter().collect()),
        some => (Extent::Some, some.to_vec()),
    };
    let profiles = folder.join(PROFILES);
    fs::create_dir_all(&profiles)?;

    let mut now = BTreeMap::new();
    for path in paths {
        say(&format!("counting {}", path.name));
        let figures = count(&program, path, &profiles).with_context(|| format!("cannot count {}", path.name))?;
        now.insert(path.name.to_owned(), figures);
    }
    let now = Record { compiler: compiler()?, target: target(), paths: now };
    if args.record {
        let record = before.updated(now, extent);
        fs::write(&args.file, record.to_json()?).with_context(|| format!("cannot write {}", args.file.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let comparison = table::compare(&before, &now, extent);
    print(&comparison.to_string());
    Ok(if comparison.verdict() >= Verdict::Dearer { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What is on record; nothing where there is no record yet.
fn read(file: &Path) -> anyhow::Result<Record> {
    if !file.exists() {
        return Ok(Record::default());
    }
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no record of counts: record anew", file.display()))
}

fn count(program: &Path, path: &replay::Path, profiles: &Path) -> anyhow::Result<Figures> {
    let units = f64::from(path.steps) * path.units_per_step;
    // The run with more steps is the last one: its profile stays.
    let instructions = |times| callgrind::instructions(program, path, times * path.steps, profiles);
    let calls = |times| strace::system_calls(program, path, times * path.steps, profiles);
    let instructions = [instructions(1)?, instructions(2)?];
    Ok(Figures::new(path.unit, units, instructions, &[calls(1)?, calls(2)?]))
}

/// Runs the replay under a tool.
fn replay_under(tool: &mut Command, program: &Path, path: &replay::Path, steps: u32) -> anyhow::Result<()> {
    let name = tool.get_program().to_string_lossy().into_owned();
    tool.arg(program).args(["replay", path.name, "--steps", &steps.to_string()]);
    let output = tool.stdin(Stdio::null()).output().with_context(|| format!("install {name}: it cannot be started"))?;
    ensure!(output.status.success(), "{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn compiler() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("-V").output().context("rustc cannot be started: install Rust")?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn target() -> String {
    format!("{}-{}", env::consts::ARCH, env::consts::OS)
}

#[expect(clippy::print_stderr, reason = "progress is for whoever waits")]
fn say(line: &str) {
    eprintln!("{line}");
}

#[expect(clippy::print_stdout, reason = "the result goes to standard output")]
fn print(text: &str) {
    println!("{text}");
}
