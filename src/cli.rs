//! The command line: one command a file.
//!
//! Results go to standard output, everything else to standard error. Exit codes: 0 fine, 1 found a problem, 2 usage or
//! configuration.

use std::{
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::{
    config::{Config, ConfigError, Sources},
    host,
    telemetry::log::is_fit,
};

mod announce;
mod check_config;
mod completions;
mod config;
mod data;
mod env;
mod listing;
mod man;
mod migrate;
mod node;
mod operator;
mod ports;
mod restart;
mod restrain;
mod rotate_secret;
mod serve;
mod status;

/// A Cloud Foundry service broker whose service is a TCP or UDP port.
///
/// Harbor gives apps a port of their own, forwards what comes in on it, TCP and UDP, to the app's instances, and learns
/// from NATS or HTTP where those are.
#[derive(Debug, Parser)]
#[command(name = "harbor", version, arg_required_else_help = true, max_term_width = 100, after_long_help = EXIT_CODES)]
struct Cli {
    /// The configuration file; every key can also come from the environment.
    #[arg(long, global = true, value_name = "FILE", env = "HARBOR_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 fine, 1 found a problem, 2 usage or configuration.";

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Status(status::Status),
    Config(config::ConfigCommand),
    Node(node::NodeCommand),
    Ports(ports::Ports),
    Restart(restart::Restart),
    Announce(Box<announce::Announce>),
    Env(env::Env),
    CheckConfig(check_config::CheckConfig),
    Migrate(migrate::Migrate),
    Data(data::Data),
    Completions(completions::Completions),
    Man(man::Man),
}

/// Why a command did not do what was asked.
#[derive(Debug)]
enum Failure {
    /// Something is wrong with what was asked about: exit code 1.
    Problem(anyhow::Error),
    /// Something is wrong with the command line or the configuration: exit code 2.
    Usage(String),
}

/// What a command found: fine, or a problem that it has already told, or what the program said that it ran.
type Outcome = Result<ExitCode, Failure>;

const FINE: ExitCode = ExitCode::SUCCESS;
const FOUND_A_PROBLEM: ExitCode = ExitCode::FAILURE;

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Problem(error.into())
    }
}

/// Runs the program with the arguments and the environment of this process.
#[must_use]
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(message) => {
            // Help and version are answers, everything else is a mistake; clap knows where each is printed.
            let is_answer = !message.use_stderr();
            return match message.print() {
                Ok(()) if is_answer => ExitCode::SUCCESS,
                _ => ExitCode::from(2),
            };
        }
    };
    let outcome = match cli.command {
        Command::Serve(command) => command.run(cli.config),
        Command::Status(command) => command.run(cli.config),
        Command::Config(command) => command.run(cli.config),
        Command::Node(command) => command.run(cli.config),
        Command::Ports(command) => command.run(cli.config),
        Command::Restart(command) => command.run(cli.config),
        Command::Announce(command) => command.run(),
        Command::Env(command) => command.run(),
        Command::CheckConfig(command) => command.run(cli.config),
        Command::Migrate(command) => command.run(cli.config),
        Command::Data(command) => command.run(cli.config),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
    };
    let (text, code) = match outcome {
        Ok(code) => return code,
        // Whoever read the output has seen enough: `harbor man | head`.
        Err(Failure::Problem(error)) if is_broken_pipe(&error) => return ExitCode::SUCCESS,
        Err(Failure::Problem(error)) => (format!("{error:#}"), 1),
        Err(Failure::Usage(text)) => (text, 2),
    };
    complain(&text);
    ExitCode::from(code)
}

/// Says what is wrong on standard error.
fn complain(text: &str) {
    let mut output = io::stderr().lock();
    for line in text.lines() {
        // There is nowhere left to say that this failed.
        let _ = writeln!(output, "harbor: {}", clean(line));
    }
}

/// Writes a whole answer to standard output.
fn print(text: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes())?;
    output.flush()
}

/// Ids and reasons may hold any character; a terminal obeys some of them.
fn clean(text: &str) -> String {
    let shown = |c: char| if c == '\t' || !is_fit(c) { c.escape_default().collect() } else { vec![c] };
    text.chars().flat_map(shown).collect()
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// What the configuration of this process is made of.
fn sources(file: Option<PathBuf>) -> Sources {
    let text = |text: OsString| text.to_string_lossy().into_owned();
    let variables = std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
    Sources { file, variables, settings: Vec::new(), own_address: host::own_address() }
}

fn load(file: Option<PathBuf>) -> Result<Config, ConfigError> {
    crate::config::load(&sources(file))
}

/// What the platform tells of bound services: in `VCAP_SERVICES`, or where an app has chosen that in the file that
/// `VCAP_SERVICES_FILE_PATH` names, which may be longer. None outside of an app's container.
fn vcap_services() -> Result<Option<String>, Failure> {
    let Some(path) = std::env::var_os("VCAP_SERVICES_FILE_PATH").map(PathBuf::from) else {
        return Ok(std::env::var("VCAP_SERVICES").ok());
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) => Err(Failure::Usage(format!("VCAP_SERVICES_FILE_PATH: cannot read {}: {error}", path.display()))),
    }
}

/// The definition of all commands, for completions and manual pages.
fn definition() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_terminal_obeys_nothing_that_is_shown() {
        let text = "a\u{1b}[2J\t\u{9b}31m\u{202e}ü\u{2028}";
        assert_eq!(super::clean(text), r"a\u{1b}[2J\t\u{9b}31m\u{202e}ü\u{2028}");
    }

    #[test]
    fn the_definition_is_sound() {
        super::definition().debug_assert();
    }
}
