//! `harbor serve`

use std::path::PathBuf;

use super::{FINE, Failure, Outcome, sources};
use crate::{app, config};

/// Run a node: broker, port forwarding, announcements and operators' API.
///
/// It runs until SIGTERM or SIGINT: then it takes no new connections and lets the open ones finish for
/// forwarder.drain_timeout. SIGHUP reads the configuration, certificates and log files again. SIGUSR2 starts the program
/// anew and hands over to it, and what is open may finish: see harbor restart.
#[derive(Debug, clap::Args)]
pub struct Serve {}

impl Serve {
    pub fn run(self, file: Option<PathBuf>) -> Outcome {
        let predecessor = app::handover::Predecessor::find()?;
        let sources = sources(file);
        let config = config::load(&sources).inspect_err(|error| {
            if let Some(predecessor) = &predecessor {
                predecessor.refuse(&error.to_string());
            }
        })?;
        app::serve(config, &sources, predecessor).map_err(Failure::Problem)?;
        Ok(FINE)
    }
}
