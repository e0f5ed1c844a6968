//! `harbor check-config`

use std::path::PathBuf;

use super::{FINE, Outcome, load, print};

/// Check the configuration and show what it comes to, without secrets.
///
/// All problems are shown at once, each with file, line and column or with the name of its variable.
#[derive(Debug, clap::Args)]
pub struct CheckConfig {}

impl CheckConfig {
    pub fn run(self, file: Option<PathBuf>) -> Outcome {
        print(&format!("The configuration is valid.\n\n{}", load(file)?))?;
        Ok(FINE)
    }
}
