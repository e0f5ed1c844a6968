//! The store without serving: bringing it up to date, and whether its URL can be understood.

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

/// Whether the store that is configured can be understood. It is not asked.
///
/// # Errors
/// With what is wrong in its URL.
pub fn check_store(config: &Config) -> anyhow::Result<()> {
    settings::store(config).server()?;
    Ok(())
}
