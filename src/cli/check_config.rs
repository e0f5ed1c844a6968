//! `harbor check-config`

use std::path::PathBuf;

use super::{FINE, Failure, Outcome, load, print};
use crate::app;

/// Check the configuration and show what it comes to, without secrets.
///
/// All problems are shown at once, each with file, line and column or with the name of its variable.
#[derive(Debug, clap::Args)]
pub struct CheckConfig {}

impl CheckConfig {
    pub fn run(self, file: Option<PathBuf>) -> Outcome {
        let config = load(file)?;
        app::check_store(&config).map_err(|error| Failure::Usage(error.to_string()))?;
        print(&format!("The configuration is valid.\n\n{config}"))?;
        Ok(FINE)
    }
}
