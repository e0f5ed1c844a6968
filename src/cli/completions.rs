//! `harbor completions`

use clap_complete::{Shell, generate};

use super::{FINE, Outcome, definition, print};

/// Print completions for a shell.
///
/// For bash: harbor completions bash > /etc/bash_completion.d/harbor
#[derive(Debug, clap::Args)]
pub struct Completions {
    /// Which shell.
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> Outcome {
        let mut text = Vec::new();
        generate(self.shell, &mut definition(), "harbor", &mut text);
        print(&String::from_utf8_lossy(&text))?;
        Ok(FINE)
    }
}
