//! `harbor migrate`

use std::path::PathBuf;

use super::{FINE, Failure, Outcome, load, print};
use crate::app;

/// Bring the store up to date, and check it.
///
/// `serve` does the same at its start. No node may run on a SQLite file meanwhile; nodes on PostgreSQL go on.
#[derive(Debug, clap::Args)]
pub struct Migrate {}

impl Migrate {
    pub fn run(self, file: Option<PathBuf>) -> Outcome {
        let config = load(file)?;
        let migrated = app::migrate(&config).map_err(Failure::Problem)?;
        let said = match (migrated.from, migrated.to) {
            (from, to) if from == to => format!("is at version {to} already: nothing to do"),
            (0, to) => format!("has been made, at version {to}"),
            (from, to) => format!("has been brought from version {from} to {to}"),
        };
        print(&format!("The store {} {said}.\n", config.store))?;
        Ok(FINE)
    }
}
