//! Running a node.

use crate::config::{Config, Sources};

/// Runs a node until it is told to end. `sources` is read again on SIGHUP.
///
/// # Errors
/// When it cannot start.
pub fn serve(config: Config, sources: &Sources) -> anyhow::Result<()> {
    let _ = (config, sources);
    anyhow::bail!("nothing is put together here")
}
