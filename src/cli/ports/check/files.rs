//! `harbor ports check --file …`

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::json;
use crate::{
    cli::{FINE, FOUND_A_PROBLEM, Failure, Outcome, load, print},
    config::{Origin, PortsFile, Problem, Resolved},
    model::{
        PoolName, PortSet,
        registry::{Claim, ClashReason, clashes},
    },
};

/// Most files that are compared.
const MAX_FILES: usize = 64;

/// What `--json` prints of files.
#[derive(Debug, Serialize)]
struct Answer {
    /// Whether nothing is wrong.
    ok: bool,
    /// All that is wrong.
    problems: Vec<ProblemView>,
    /// What the files come to, by port.
    claims: Vec<ClaimView>,
}

#[derive(Debug, Serialize)]
struct ProblemView {
    /// `ports.toml:5:1`
    place: String,
    message: String,
}

#[derive(Debug, Serialize)]
struct ClaimView {
    pool: String,
    name: String,
    first: u16,
    last: u16,
    protocol: &'static str,
    place: String,
}

pub(super) fn check(paths: &[PathBuf], config: Option<PathBuf>, as_json: bool) -> Outcome {
    if paths.len() > MAX_FILES {
        return Err(Failure::Usage(format!("{} files are too many: at most {MAX_FILES} are compared", paths.len())));
    }
    let pools = match config {
        Some(config) => {
            let node = load(Some(config))?.node;
            Some(node.pools.into_iter().chain(node.other_pools).collect::<Vec<_>>())
        }
        None => None,
    };
    let files = read(paths)?;
    let mut all = Resolved::default();
    for resolved in files.iter().map(|file| file.resolve(pools.as_deref())) {
        all.claims.extend(resolved.claims);
        all.ranges.extend(resolved.ranges);
        all.problems.extend(resolved.problems);
    }
    let ranges = pools.iter().flatten().map(|pool| (pool.name.clone(), pool.ports.clone(), None));
    let blocks = all.ranges.drain(..).map(|(name, ports, at)| (name, ports, Some(at)));
    all.problems.extend(of_ranges(&ranges.chain(blocks).collect::<Vec<_>>()));
    all.problems.extend(of_claims(&all.claims));
    all.problems.sort();
    all.problems.dedup();
    all.claims.sort_by_key(|(claim, _)| claim.block);
    let ok = all.problems.is_empty();
    print(&if as_json { json(&Answer::of(&all))? } else { shown(&all) })?;
    Ok(if ok { FINE } else { FOUND_A_PROBLEM })
}

/// All files, or all that is wrong with their form.
fn read(paths: &[PathBuf]) -> Result<Vec<PortsFile>, Failure> {
    let (mut files, mut wrong) = (Vec::new(), Vec::new());
    for path in paths.iter().map(PathBuf::as_path).map(Path::new) {
        match PortsFile::load(path) {
            Ok(file) => files.push(file),
            Err(error) => wrong.push(error.to_string()),
        }
    }
    if wrong.is_empty() { Ok(files) } else { Err(Failure::Usage(wrong.join("\n"))) }
}

/// Blocks that have a port of one another, or of a pool; and those that several files describe differently. A pool has no
/// place: it is of the configuration, which has been checked.
fn of_ranges(ranges: &[(PoolName, PortSet, Option<Origin>)]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, (name, ports, at)) in ranges.iter().enumerate() {
        let Some(at) = at else { continue };
        for (other, others, there) in &ranges[..index] {
            let whose = match there {
                Some(there) => format!("{other} of {there}"),
                None => format!("the pool {other}"),
            };
            let message = match ports.first_common(others) {
                _ if name == other && ports == others => continue,
                _ if name == other => format!("{name} is {ports} here and {others} in {whose}: make them the same"),
                Some(port) => format!("the range of {name} has port {port}, and so has {whose}: change one"),
                None => continue,
            };
            problems.push(Problem { at: at.clone(), message });
        }
    }
    problems
}

fn of_claims(claims: &[(Claim, Origin)]) -> Vec<Problem> {
    let (compared, places): (Vec<_>, Vec<_>) = claims.iter().cloned().unzip();
    let problem = |clash: crate::model::registry::Clash| {
        let (claim, other, there) = (&compared[clash.claim], &compared[clash.other], &places[clash.other]);
        let message = match clash.reason {
            ClashReason::TwoPlaces => {
                format!("{} has {} here and {} in {there}: make them the same", claim.name, claim.block, other.block)
            }
            ClashReason::OnePort => format!(
                "{} has {}, which overlaps {} of {} in {there}: change one",
                claim.name, claim.block, other.block, other.name
            ),
        };
        Problem { at: places[clash.claim].clone(), message }
    };
    clashes(&compared).into_iter().map(problem).collect()
}

impl Answer {
    fn of(all: &Resolved) -> Self {
        let problem =
            |problem: &Problem| ProblemView { place: problem.at.to_string(), message: problem.message.clone() };
        let claim = |(claim, at): &(Claim, Origin)| ClaimView {
            pool: claim.pool.to_string(),
            name: claim.name.clone(),
            first: claim.block.first,
            last: claim.block.last,
            protocol: claim.block.protocol.as_str(),
            place: at.to_string(),
        };
        Self {
            ok: all.problems.is_empty(),
            problems: all.problems.iter().map(problem).collect(),
            claims: all.claims.iter().map(claim).collect(),
        }
    }
}

/// What is wrong, then what the files come to.
fn shown(all: &Resolved) -> String {
    let mut text = String::new();
    for problem in &all.problems {
        let _ = writeln!(text, "{problem}");
    }
    if !all.problems.is_empty() {
        text.push('\n');
    }
    let width = all.claims.iter().map(|(claim, _)| claim.name.len()).max().unwrap_or(0).max("NAME".len());
    let _ = writeln!(text, "{:<13}{:<10}{:<width$}  POOL            PLACE", "PORTS", "PROTOCOL", "NAME");
    for (claim, at) in &all.claims {
        let (ports, protocol) = (claim.block.shown_ports(), claim.block.protocol.as_str());
        let _ = writeln!(text, "{ports:<13}{protocol:<10}{:<width$}  {:<14}  {at}", claim.name, claim.pool.as_str());
    }
    text
}
