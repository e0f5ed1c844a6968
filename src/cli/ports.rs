//! `harbor ports …`

use std::{ops::RangeInclusive, path::PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use serde::Serialize;

use super::{Failure, Outcome, print};
use crate::model::PortSet;

mod apply;
mod check;
mod firewall;
mod list;
mod release;
mod reserve;

/// List ports, hold them back under names, check them, and print firewall rules.
#[derive(Debug, clap::Args)]
pub struct Ports {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    List(list::List),
    Check(check::Check),
    Reserve(reserve::Reserve),
    Release(release::Release),
    Apply(apply::ApplyFile),
    Firewall(firewall::Firewall),
}

impl Ports {
    pub fn run(self, config: Option<PathBuf>) -> Outcome {
        // The check asks no node.
        if let Action::Check(command) = self.action {
            return command.run(config);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            match self.action {
                Action::List(command) => command.run(config).await,
                Action::Check(_) => unreachable!("it was run above"),
                Action::Reserve(command) => command.run(config).await,
                Action::Release(command) => command.run(config).await,
                Action::Apply(command) => command.run(config).await,
                Action::Firewall(command) => command.run(config).await,
            }
        })
    }
}

/// Where no pool is named.
const DEFAULT_POOL: &str = "default";

/// An answer as JSON.
fn print_json(answer: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(answer).context("an answer can be written as JSON");
    Ok(print(&(text.map_err(Failure::Problem)? + "\n"))?)
}

/// A port, or a run of ports, of the command line.
fn run_of_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let ports = text.parse::<PortSet>().map_err(|error| error.to_string())?;
    match ports.ranges() {
        [range] => Ok(range.clone()),
        _ => Err(format!("{ports} is not one range: give each a name of its own")),
    }
}

/// `25080`, `25090-25099`
fn shown(ports: &RangeInclusive<u16>) -> String {
    let (first, last) = (ports.start(), ports.end());
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}
