//! From `store.url` to a store that is ready: which engine, and what can stand in the way.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{AnyStore, Fault, sqlite::SqliteStore};
use crate::telemetry::metrics::StoreMetrics;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL names no engine that is known. The URL itself is not shown: it may hold a password.
    #[error("store.url has an unknown form: write for example \"sqlite:harbor.db\"")]
    UnknownUrl,
    /// The URL names PostgreSQL.
    #[error("store.url names PostgreSQL, which is not in this version: use for example \"sqlite:harbor.db\"")]
    NoPostgres,
    /// A file or its directory cannot be used.
    #[error("{path} cannot be used for the store ({source}): check data_dir, store.url and who owns the files")]
    File {
        /// Which one.
        path: PathBuf,
        /// The system's own words.
        source: io::Error,
    },
    /// Another process has the database.
    #[error(
        "{path} is in use by {holder}: a SQLite database serves one harbor only; stop that one, or set another data_dir"
    )]
    InUse {
        /// The database.
        path: PathBuf,
        /// Who has it, as a phrase.
        holder: String,
    },
    /// A newer version has changed the database.
    #[error(
        "{path} was made by a newer Harbor (schema {found}, this one knows {known}): install that version, or restore a \
         backup from before the upgrade"
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest schema that this version knows.
        known: i64,
    },
    /// The file is a database, but of something else.
    #[error("{path} is a database of another program: set store.url to another file")]
    NotHarbor {
        /// The database.
        path: PathBuf,
    },
    /// The check of the database found something.
    #[error("{path} is damaged ({finding}): restore a backup")]
    Damaged {
        /// The database.
        path: PathBuf,
        /// The first finding.
        finding: String,
    },
    /// The schema could not be brought up to date.
    #[error("{path} could not be migrated: {source}; restore a backup, or report this")]
    Migrate {
        /// The database.
        path: PathBuf,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The engine does not answer.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// What a migration did: the schema's number before and after; 0 is an empty database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrated {
    /// Before.
    pub from: i64,
    /// After.
    pub to: i64,
}

/// Opens the store that `url` names, brought up to date. A relative path is relative to `data_dir`.
///
/// # Errors
/// [`OpenError`].
pub async fn open(url: &str, data_dir: &Path, metrics: Arc<StoreMetrics>) -> Result<AnyStore, OpenError> {
    Ok(Arc::new(SqliteStore::open(&sqlite_path(url, data_dir)?, metrics).await?))
}

/// Brings the store that `url` names up to date, checks it, and closes it again.
///
/// # Errors
/// [`OpenError`], also when the check finds damage.
pub async fn migrate(url: &str, data_dir: &Path) -> Result<Migrated, OpenError> {
    super::sqlite::migrate(&sqlite_path(url, data_dir)?).await
}

fn sqlite_path(url: &str, data_dir: &Path) -> Result<PathBuf, OpenError> {
    let (scheme, rest) = url.split_once(':').ok_or(OpenError::UnknownUrl)?;
    match scheme {
        "sqlite" => {
            let path = rest.strip_prefix("//").unwrap_or(rest);
            // SQLite's own URLs take parameters after these and a memory name; Harbor knows neither.
            if path.is_empty() || path.ends_with('/') || path == ":memory:" || path.contains(['?', '#']) {
                return Err(OpenError::UnknownUrl);
            }
            Ok(data_dir.join(path))
        }
        "postgres" | "postgresql" => Err(OpenError::NoPostgres),
        _ => Err(OpenError::UnknownUrl),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, expected: &str) {
        let shown = match sqlite_path(url, Path::new("/data")) {
            Ok(path) => path.display().to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expected, "{url}");
    }

    #[test]
    fn the_url_names_a_file_under_the_data_directory_or_says_what_to_write() {
        check("sqlite:harbor.db", "/data/harbor.db");
        check("sqlite://harbor.db", "/data/harbor.db");
        check("sqlite:sub/harbor.db", "/data/sub/harbor.db");
        check("sqlite:/var/lib/harbor.db", "/var/lib/harbor.db");
        check("sqlite:///var/lib/harbor.db", "/var/lib/harbor.db");
        let unknown = "store.url has an unknown form: write for example \"sqlite:harbor.db\"";
        for url in
            ["", "harbor.db", "sqlite:", "sqlite::memory:", "sqlite:a.db?mode=ro", "sqlite:a/", "mysql://user:x@h/d"]
        {
            check(url, unknown);
        }
        let postgres = "store.url names PostgreSQL, which is not in this version: use for example \"sqlite:harbor.db\"";
        check("postgres://user:secret@host/db", postgres);
        check("postgresql://user@host/db", postgres);
    }
}
