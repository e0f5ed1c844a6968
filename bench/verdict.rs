//! Figures of a benchmark, as lines, and which of them are not within their bounds.

use std::{io::Write as _, process::ExitCode};

/// What was measured against a bound.
#[derive(Debug, Default)]
pub struct Verdict {
    missed: Vec<String>,
}

impl Verdict {
    /// Prints a figure and its bound.
    pub fn say(&mut self, what: &str, figure: f64, unit: &str, at_most: f64) {
        say(&format!("{what}: {figure:.2} {unit} (at most {at_most})"));
        if figure > at_most {
            self.missed.push(format!("{what} is {figure:.2} {unit} and may be at most {at_most}"));
        }
    }

    /// How the benchmark ends: with `--check`, as a failure that says which bounds are not met.
    pub fn end(self) -> ExitCode {
        if std::env::args().all(|argument| argument != "--check") || self.missed.is_empty() {
            return ExitCode::SUCCESS;
        }
        self.missed.iter().for_each(|missed| say(&format!("not met: {missed}")));
        ExitCode::FAILURE
    }
}

/// Prints a line.
pub fn say(line: &str) {
    // A closed output is no reason to stop measuring.
    let _ = writeln!(std::io::stdout(), "{line}");
}
