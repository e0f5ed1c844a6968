//! `harbor man`

use std::path::PathBuf;

use anyhow::Context as _;
use clap_mangen::{Man as Page, generate_to};

use super::{FINE, Failure, Outcome, definition, print};

/// Print the manual page, or write one for each command.
///
/// To read it: harbor man | man -l -
#[derive(Debug, clap::Args)]
pub struct Man {
    /// Write harbor.1, harbor-serve.1 and so on to this directory instead.
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

impl Man {
    pub fn run(self) -> Outcome {
        match self.directory {
            Some(directory) => generate_to(definition(), &directory)
                .with_context(|| format!("cannot write manual pages to {}", directory.display()))
                .map_err(Failure::Problem)?,
            None => {
                let mut text = Vec::new();
                Page::new(definition()).render(&mut text)?;
                print(&String::from_utf8_lossy(&text))?;
            }
        }
        Ok(FINE)
    }
}
