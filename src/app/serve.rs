//! Running a node: `harbor serve`.

use super::handover::{Estate, Predecessor, Program};
use crate::{
    app::{apis, node, signals::Signals, sockets},
    config::{Config, Sources},
    telemetry::log,
};

/// Runs a node until SIGTERM or SIGINT, or until another process has taken its place. `sources` is read again on SIGHUP;
/// `predecessor` is the process whose place this one takes, if there is one.
///
/// # Errors
/// When it cannot start, or a part of it ended that must not.
pub fn serve(config: Config, sources: &Sources, mut predecessor: Option<Predecessor>) -> anyhow::Result<()> {
    let outcome = run(config, sources, &mut predecessor);
    if let (Err(error), Some(predecessor)) = (&outcome, &predecessor) {
        predecessor.refuse(&format!("{error:#}"));
    }
    outcome
}

fn run(config: Config, sources: &Sources, predecessor: &mut Option<Predecessor>) -> anyhow::Result<()> {
    let log = log::start(&config.log)?;
    let start = node::Start { program: Program::own()?, kept: kept() };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("control").build()?;
    let outcome = runtime.block_on(async {
        // Before anything else: a signal that comes while the node starts ends it as cleanly as one that comes later.
        let signals = Signals::listen()?;
        node::run(config, sources, &log, signals, start, predecessor).await
    });
    if let Err(error) = &outcome {
        tracing::error!(error = format!("{error:#}"), "the node ends");
    }
    outcome
}

/// What the service manager has kept of an earlier process that died.
fn kept() -> Estate {
    let (apis, ports) = sockets::kept(&apis::NAMES);
    if !apis.is_empty() || !ports.sockets.is_empty() {
        tracing::info!(apis = apis.len(), sockets = ports.sockets.len(), "the service manager has kept sockets");
    }
    Estate { apis, ports, ..Estate::default() }
}
