//! Bringing the store up to date without serving.

use super::settings;
use crate::{config::Config, store};

/// Brings the store up to date, and says from which version to which.
///
/// # Errors
/// When it cannot be opened, is in use, or is of a newer version.
pub fn migrate(config: &Config) -> anyhow::Result<store::Migrated> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(store::migrate(&settings::store(config)))?)
}
