//! `harbor ports check`

use std::{fmt::Write as _, path::PathBuf};

use anyhow::{Context as _, anyhow};
use serde::Serialize;

use crate::{
    app,
    cli::{FINE, FOUND_A_PROBLEM, Failure, Outcome, clean, print, sources},
    config::{self, Config, Sources},
    host::{self, Code, Finding, NotReserved, RESERVED_PORTS, Severity},
    model::PortSet,
};

mod files;

/// Where the machine keeps the setting over a reboot.
const SYSCTL_FILE: &str = "/etc/sysctl.d/60-harbor.conf";

/// Check that nothing on this machine stands in the way of the pools' ports; or that files of reservations agree.
///
/// No node has to run; live settings count where the store can be read. Each finding says how bad it is and what mends it. The exit code is 1 when one is a warning or an
/// error, and 0 else. As another user than root it does not see which processes of others hold ports.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// Print JSON.
    #[arg(long)]
    json: bool,

    /// Add the pools' ports to net.ipv4.ip_local_reserved_ports, as root, then check.
    ///
    /// What is reserved already stays so. It holds until the machine restarts; how to keep it is told.
    #[arg(long, conflicts_with = "file")]
    fix: bool,

    /// Check this file of reservations instead of the machine; several are compared.
    ///
    /// No two entries of them may have one port of one protocol. The same entry in two files is one. With --config they
    /// are compared with its pools too.
    #[arg(long, value_name = "FILE")]
    file: Vec<PathBuf>,
}

/// What `--json` prints of the machine.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    /// Whether none is a warning or worse.
    ok: bool,
    /// The worst first.
    findings: Vec<FindingView<'a>>,
    /// What `--fix` has done.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<Fix>,
}

#[derive(Debug, Serialize)]
struct FindingView<'a> {
    severity: &'static str,
    code: &'static str,
    pool: Option<&'a str>,
    message: &'a str,
    mend: Option<&'a str>,
}

/// What was reserved before and is now, as the kernel writes it, and the command that keeps it over a reboot.
#[derive(Debug, Serialize)]
struct Fix {
    before: String,
    after: String,
    keep: String,
}

impl Check {
    pub fn run(self, config: Option<PathBuf>) -> Outcome {
        if !self.file.is_empty() {
            return files::check(&self.file, config, self.json);
        }
        let (config, unread) = as_it_holds(sources(config))?;
        let fix = if self.fix { Some(fix(&config)?) } else { None };
        let needs = app::machine_needs(&config);
        let mut findings = host::judge(&needs, &host::survey(&needs));
        findings.extend(unread);
        let ok = findings.iter().all(|finding| finding.severity == Severity::Info);
        print(&if self.json {
            let findings = findings.iter().map(FindingView::of).collect();
            json(&Answer { ok, findings, fix })?
        } else {
            fix.map_or_else(String::new, |fix| fix.shown()) + &shown(&config, &findings)
        })?;
        Ok(if ok { FINE } else { FOUND_A_PROBLEM })
    }
}

/// The configuration with the live settings of its store; where they cannot be read, what to say of that.
fn as_it_holds(sources: Sources) -> Result<(Config, Option<Finding>), Failure> {
    let written = config::load(&sources)?;
    let live = app::live_settings(&written)
        .and_then(|settings| config::load(&Sources { settings, ..sources }).context("they do not fit here"));
    Ok(match live {
        Ok(live) => (live, None),
        Err(error) => {
            let says = format!("this is about the configuration alone: live settings cannot be read ({error:#})");
            (written, Some(Finding { severity: Severity::Info, code: Code::NotKnown, pool: None, says, mend: None }))
        }
    })
}

/// An answer for programs.
fn json(answer: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(answer).context("an answer can be written as JSON");
    Ok(text.map_err(Failure::Problem)? + "\n")
}

impl<'a> FindingView<'a> {
    fn of(finding: &'a Finding) -> Self {
        Self {
            severity: finding.severity.as_str(),
            code: finding.code.as_str(),
            pool: finding.pool.as_ref().map(|pool| pool.as_str()),
            message: &finding.says,
            mend: finding.mend.as_deref(),
        }
    }
}

fn fix(config: &Config) -> Result<Fix, Failure> {
    let pools = || config.node.pools.iter().map(|pool| &pool.ports);
    let (before, after) = host::reserve_ports(pools()).map_err(|error| {
        let advice = match &error {
            NotReserved::Refused(_) => advice(pools()),
            NotReserved::TooFewLeft { .. } | NotReserved::TooLong => String::new(),
        };
        Failure::Problem(anyhow!("{error}{advice}"))
    })?;
    let (before, after) = (before.reserved_list(), after.reserved_list());
    let keep = format!("echo '{RESERVED_PORTS} = {after}' > {SYSCTL_FILE}");
    Ok(Fix { before, after, keep })
}

/// What to do where this process may not: where the kernel tells what there is, the command that adds to it.
fn advice<'a>(pools: impl Iterator<Item = &'a PortSet>) -> String {
    let command = host::local_ports().ok().and_then(|local| local.reserving(pools));
    command.map_or_else(String::new, |command| format!("; run as root: {command}"))
}

impl Fix {
    fn shown(&self) -> String {
        let Self { before, after, keep } = self;
        let done = if before == after {
            format!("{RESERVED_PORTS} has all ports of the pools already: {after}")
        } else {
            let before = if before.is_empty() { "nothing" } else { before };
            format!("{RESERVED_PORTS} was {before} and is now {after}")
        };
        format!("{done}\nTo keep it over a reboot:\n    {keep}\n\n")
    }
}

fn shown(config: &Config, findings: &[Finding]) -> String {
    let pools = config.node.pools.iter().map(|pool| format!("{} ({})", pool.name, pool.ports)).collect::<Vec<_>>();
    let pools = format!("{} {}", if pools.len() == 1 { "pool" } else { "pools" }, pools.join(", "));
    if findings.is_empty() {
        return format!("Nothing stands in the way of the {pools}.\n");
    }
    let count =
        |severity, one: &str, many: &str| match findings.iter().filter(|found| found.severity == severity).count() {
            0 => None,
            1 => Some(format!("1 {one}")),
            count => Some(format!("{count} {many}")),
        };
    let counts = [
        count(Severity::Error, "error", "errors"),
        count(Severity::Warning, "warning", "warnings"),
        count(Severity::Info, "note", "notes"),
    ];
    let counts = counts.into_iter().flatten().collect::<Vec<_>>().join(", ");
    let mut text = format!("This machine and the {pools}: {counts}\n");
    for Finding { severity, code, pool, says, mend } in findings {
        let pool = pool.as_ref().map_or_else(String::new, |pool| format!("pool {pool}: "));
        let _ = write!(text, "\n{:<8} {}\n         {pool}{}\n", severity.as_str(), code.as_str(), clean(says));
        if let Some(mend) = mend {
            let _ = writeln!(text, "             {}", clean(mend));
        }
    }
    text
}
