//! The program `harbor`. All of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    harbor::cli::run()
}
