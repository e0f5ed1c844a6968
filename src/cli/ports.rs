//! `harbor ports …`

use std::path::PathBuf;

use clap::Subcommand;

use super::Outcome;

mod check;

/// Check that ports are free to be given out.
#[derive(Debug, clap::Args)]
pub struct Ports {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Check(check::Check),
}

impl Ports {
    pub fn run(self, config: Option<PathBuf>) -> Outcome {
        match self.action {
            Action::Check(command) => command.run(config),
        }
    }
}
