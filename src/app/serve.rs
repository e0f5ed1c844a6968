//! Running a node: `harbor serve`.

use crate::{
    app::{node, signals::Signals},
    config::{Config, Sources},
    telemetry::log,
};

/// Runs a node until SIGTERM or SIGINT. `sources` is read again on SIGHUP.
///
/// # Errors
/// When it cannot start, or a part of it ended that must not.
pub fn serve(config: Config, sources: &Sources) -> anyhow::Result<()> {
    let log = log::start(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("control").build()?;
    let outcome = runtime.block_on(async {
        // Before anything else: a signal that comes while the node starts ends it as cleanly as one that comes later.
        let signals = Signals::listen()?;
        node::run(config, sources, &log, signals).await
    });
    if let Err(error) = &outcome {
        tracing::error!(error = format!("{error:#}"), "the node ends");
    }
    outcome
}
