//! From `store.url` to a store that is ready: which engine, and what can stand in the way.

use std::{fmt, io, os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Duration};

use super::{
    AnyStore, Fault,
    postgres::{self, Target},
    sqlite,
};
use crate::telemetry::metrics::StoreMetrics;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL names no engine that is known. The URL itself is not shown: it may hold a password.
    #[error("store.url has an unknown form: write for example \"sqlite:harbor.db\"")]
    UnknownUrl,
    /// The URL names PostgreSQL, and something in it cannot be understood.
    #[error("store.url {problem}: write for example \"postgres://harbor@db.example.com/harbor?sslmode=verify-full\"")]
    PostgresUrl {
        /// What, without anything secret.
        problem: String,
    },
    /// PostgreSQL cannot be reached, or does not let Harbor in.
    #[error("{database} cannot be opened ({reason}): {advice}")]
    Unavailable {
        /// The database.
        database: String,
        /// The system's or the server's own words.
        reason: String,
        /// What to do next.
        advice: &'static str,
        /// Whether it may pass by itself, as when the server is being started.
        passes: bool,
    },
    /// The database cannot hold every character.
    #[error(
        "{database} has the encoding {found}, but names hold any character: create one with ENCODING 'UTF8' TEMPLATE \
         template0"
    )]
    Encoding {
        /// The database.
        database: String,
        /// Its encoding.
        found: String,
    },
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
        "{database} was made by a newer Harbor (schema {found}, this one knows {known}): install that version, or restore a \
         backup from before the upgrade"
    )]
    Newer {
        /// The database.
        database: String,
        /// Its schema.
        found: i64,
        /// The newest schema that this version knows.
        known: i64,
    },
    /// There is nothing to read.
    #[error("{database} holds nothing yet: check store.url and data_dir, or make it by `harbor migrate`")]
    Missing {
        /// The database.
        database: String,
    },
    /// What only reads does not bring the database up to date.
    #[error(
        "{database} is of an older Harbor (schema {found}, this one reads {known}): use the version that it is of, or run \
         `harbor migrate` first"
    )]
    Older {
        /// The database.
        database: String,
        /// Its schema.
        found: i64,
        /// The schema that this version reads.
        known: i64,
    },
    /// The database is of something else.
    #[error("{database} is of another program: let store.url name another one")]
    NotHarbor {
        /// The database.
        database: String,
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
    #[error(
        "{database} could not be migrated: {source}; make room where its disk is full, and start again; otherwise restore a backup, or report this"
    )]
    Migrate {
        /// The database.
        database: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The engine does not answer.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl OpenError {
    /// Whether it may pass by itself.
    #[must_use]
    pub fn passes(&self) -> bool {
        matches!(self, Self::Unavailable { passes: true, .. })
    }
}

/// What a migration did: the schema's number before and after; 0 is an empty database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrated {
    /// Before.
    pub from: i64,
    /// After.
    pub to: i64,
}

/// Which store, and how to get in.
#[derive(Clone)]
pub struct Settings {
    /// `sqlite:FILE` or `postgres://…`.
    pub url: String,
    /// Wins over one in the URL; PostgreSQL only.
    pub password: Option<String>,
    /// What a relative path is relative to.
    pub data_dir: PathBuf,
    /// The longest silence of PostgreSQL: connecting, the wait for an answer, and the pause between two rows may each take
    /// so long.
    pub answer_within: Duration,
    /// How long PostgreSQL's schema may take to be brought up to date, including the wait for others that do the same.
    pub migrate_within: Duration,
}

/// The longest silence where nobody says otherwise: the broker then answers within a second.
pub const ANSWER_WITHIN: Duration = Duration::from_millis(800);

/// How long the schema may take where nobody says otherwise: nothing is served before.
pub const MIGRATE_WITHIN: Duration = Duration::from_secs(300);

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}

/// A store before it is opened.
enum Place {
    Sqlite(PathBuf),
    Postgres(Target),
}

impl Settings {
    /// The host and port of the store's server; none for a file or a socket of this machine.
    ///
    /// # Errors
    /// [`OpenError`] for a URL that cannot be understood.
    pub fn server(&self) -> Result<Option<(String, u16)>, OpenError> {
        Ok(match self.place()? {
            Place::Sqlite(_) => None,
            Place::Postgres(target) => target.address().map(|(host, port)| (host.to_owned(), port)),
        })
    }

    fn place(&self) -> Result<Place, OpenError> {
        let (scheme, rest) = self.url.split_once(':').ok_or(OpenError::UnknownUrl)?;
        match scheme {
            "sqlite" => {
                let path = rest.strip_prefix("//").unwrap_or(rest);
                // SQLite's own URLs take parameters after these and a memory name; Harbor knows neither.
                if path.is_empty() || path.ends_with('/') || path == ":memory:" || path.contains(['?', '#']) {
                    return Err(OpenError::UnknownUrl);
                }
                Ok(Place::Sqlite(self.data_dir.join(path)))
            }
            "postgres" | "postgresql" => {
                Target::new(&self.url, self.password.as_deref(), self.answer_within).map(Place::Postgres)
            }
            _ => Err(OpenError::UnknownUrl),
        }
    }
}

/// Opens a store, brought up to date. `inherited` is what a predecessor on the same store has let go of by
/// [`Store::hand_over`](super::Store::hand_over).
///
/// # Errors
/// [`OpenError`].
pub async fn open(
    settings: &Settings,
    metrics: Arc<StoreMetrics>,
    inherited: Option<OwnedFd>,
) -> Result<AnyStore, OpenError> {
    Ok(match settings.place()? {
        Place::Sqlite(path) => Arc::new(sqlite::open(&path, metrics, inherited).await?),
        Place::Postgres(target) => Arc::new(postgres::open(target, settings.migrate_within, metrics).await?),
    })
}

/// Opens a store to read it, beside whoever has it: nothing is made, locked or brought up to date.
///
/// # Errors
/// [`OpenError`], also when it is not of this version.
pub async fn open_to_read(settings: &Settings, metrics: Arc<StoreMetrics>) -> Result<AnyStore, OpenError> {
    Ok(match settings.place()? {
        Place::Sqlite(path) => Arc::new(sqlite::open_to_read(&path, metrics).await?),
        Place::Postgres(target) => Arc::new(postgres::open_to_read(target, metrics).await?),
    })
}

/// Brings a store up to date, checks it, and closes it again.
///
/// # Errors
/// [`OpenError`], also when the check finds damage.
pub async fn migrate(settings: &Settings) -> Result<Migrated, OpenError> {
    match settings.place()? {
        Place::Sqlite(path) => sqlite::migrate(&path).await,
        Place::Postgres(target) => postgres::migrate(&target, settings.migrate_within).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, expected: &str) {
        let settings = Settings {
            url: url.into(),
            password: None,
            data_dir: "/data".into(),
            answer_within: ANSWER_WITHIN,
            migrate_within: MIGRATE_WITHIN,
        };
        let shown = match settings.place() {
            Ok(Place::Sqlite(path)) => path.display().to_string(),
            Ok(Place::Postgres(target)) => target.to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expected, "{url}");
    }

    #[test]
    fn the_url_names_a_store_or_is_refused_with_what_to_write() {
        check("sqlite:harbor.db", "/data/harbor.db");
        check("sqlite://harbor.db", "/data/harbor.db");
        check("sqlite:sub/harbor.db", "/data/sub/harbor.db");
        check("sqlite:/var/lib/harbor.db", "/var/lib/harbor.db");
        check("sqlite:///var/lib/harbor.db", "/var/lib/harbor.db");
        check("postgres://user:secret@host/db", "the database db at host:5432");
        check("postgresql://user@host:1/db", "the database db at host:1");
        let unknown = "store.url has an unknown form: write for example \"sqlite:harbor.db\"";
        for url in
            ["", "harbor.db", "sqlite:", "sqlite::memory:", "sqlite:a.db?mode=ro", "sqlite:a/", "mysql://user:x@h/d"]
        {
            check(url, unknown);
        }
    }
}
