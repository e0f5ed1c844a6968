//! The store on SQLite: one file, one process.
//!
//! One connection writes, in transactions that take the write lock at once; a few others read. A commit is on the disk
//! before it is answered.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use sqlx::{
    Arguments as _, ConnectOptions as _, Connection as _, Sqlite, SqlitePool, Transaction,
    sqlite::{SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{
    Fault, Feed, Hint, Migrated, OpenError, SCHEMA_VERSION,
    engine::{Engine, Row, Session, Sql, Value},
    feed::Bell,
    files,
    lock::{self, Lock},
    migrations,
    relational::Relational,
};
use crate::telemetry::metrics::StoreMetrics;

/// Connections that read.
const READERS: u32 = 4;

/// Memory in which each connection keeps pages of the database, in KiB: what it lacks there it reads again from the
/// kernel's memory.
const PAGE_CACHE_KIB: i64 = 256;

/// How long a call waits for a connection before it is a fault.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long SQLite waits for another program, such as a backup, that has the file locked.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Statements that each connection keeps prepared: more than there are.
const PREPARED_STATEMENTS: usize = 96;

/// Connections to a SQLite file.
#[derive(Debug)]
pub(super) struct SqliteEngine {
    path: PathBuf,
    connections: ArcSwap<Connections>,
    bell: Arc<Bell>,
    /// None once closed, and where the store is only read.
    lock: Mutex<Option<Lock>>,
}

/// Open connections to one database.
#[derive(Debug)]
struct Connections {
    writer: SqlitePool,
    readers: SqlitePool,
}

/// A transaction, and whom to tell of it.
#[derive(Debug)]
pub(super) struct SqliteSession {
    tx: Transaction<'static, Sqlite>,
    bell: Arc<Bell>,
}

/// Opens or makes the database at `path`: takes its lock, or has `inherited` it, then brings its schema up to date.
pub(super) async fn open(
    path: &Path,
    metrics: Arc<StoreMetrics>,
    inherited: Option<OwnedFd>,
) -> Result<Relational<SqliteEngine>, OpenError> {
    let (path, lock, migrated) = lock_and_migrate(path, inherited).await?;
    tracing::info!(path = %path.display(), schema = migrated.to, schema_before = migrated.from, "opened the store");
    let connecting = |source| fault("connecting to the SQLite store", source);
    let connections = ArcSwap::from_pointee(Connections::open(&path).await.map_err(connecting)?);
    let engine = SqliteEngine { path, connections, bell: Arc::default(), lock: Mutex::new(Some(lock)) };
    Ok(Relational::new(engine, metrics))
}

/// Opens the database at `path` to read it, beside the process that may have it: with neither its lock nor a file of its
/// own, but a connection, which SQLite keeps apart from those of others. What it reads is of one moment; the log of the
/// other process grows meanwhile and is folded in later.
pub(super) async fn open_to_read(
    path: &Path,
    metrics: Arc<StoreMetrics>,
) -> Result<Relational<SqliteEngine>, OpenError> {
    if !path.exists() {
        return Err(OpenError::Missing { database: path.display().to_string() });
    }
    migrations::check_is_current(&path.display(), schema_version(path).await?.0)?;
    let connecting = |source| fault("connecting to the SQLite store", source);
    let connections = Connections::open_to_read(path).await.map_err(connecting)?;
    let connections = ArcSwap::from_pointee(connections);
    let engine = SqliteEngine { path: path.into(), connections, bell: Arc::default(), lock: Mutex::default() };
    Ok(Relational::new(engine, metrics))
}

impl Connections {
    async fn open(path: &Path) -> Sql<Self> {
        let writer = pool().max_connections(1).connect_with(options(path)).await?;
        let reading = options(path).pragma("query_only", "ON");
        let readers = pool().max_connections(READERS).connect_with(reading).await?;
        Ok(Self { writer, readers })
    }

    /// One connection, which cannot write.
    async fn open_to_read(path: &Path) -> Sql<Self> {
        let readers = pool().max_connections(1).connect_with(options(path).read_only(true)).await?;
        Ok(Self { writer: readers.clone(), readers })
    }

    async fn close(&self) {
        // The last connection folds the log into the database; a reader could not.
        self.readers.close().await;
        self.writer.close().await;
    }
}

fn pool() -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        // A full disk makes SQLite end a transaction by itself. The driver goes on counting it, and every later one on
        // the connection would fail, or be part of it.
        .before_acquire(|connection, _| Box::pin(async { Ok(!connection.is_in_transaction()) }))
}

impl SqliteEngine {
    fn lock(&self) -> MutexGuard<'_, Option<Lock>> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self, tx: Transaction<'static, Sqlite>) -> SqliteSession {
        SqliteSession { tx, bell: Arc::clone(&self.bell) }
    }
}

impl Engine for SqliteEngine {
    const NAME: &'static str = "SQLite";

    const SERVES_MANY: bool = false;

    type Session = SqliteSession;

    async fn read(&self) -> Sql<SqliteSession> {
        Ok(self.session(self.connections.load_full().readers.begin().await?))
    }

    async fn write(&self) -> Sql<SqliteSession> {
        Ok(self.session(self.connections.load_full().writer.begin_with("BEGIN IMMEDIATE").await?))
    }

    async fn feed(&self) -> Sql<Box<dyn Feed>> {
        Ok(self.bell.listen())
    }

    async fn hand_over(&self) -> Sql<Option<OwnedFd>> {
        self.connections.load_full().close().await;
        Ok(self.lock().as_mut().map(Lock::lend).transpose()?)
    }

    async fn take_back(&self) -> Sql<()> {
        self.lock().as_mut().map(Lock::take_back).transpose()?;
        // The schema is not looked at: migrations are additive, so that what a successor has done can be worked with.
        self.connections.store(Arc::new(Connections::open(&self.path).await?));
        Ok(())
    }

    async fn close(&self) {
        self.connections.load_full().close().await;
        drop(self.lock().take());
    }
}

impl Session for SqliteSession {
    async fn rows<R: Row>(&mut self, statement: &'static str, values: &[Value<'_>]) -> Sql<Vec<R>> {
        sqlx::query_as_with::<_, R, _>(statement, arguments(values)?).fetch_all(&mut *self.tx).await
    }

    async fn execute(&mut self, statement: &'static str, values: &[Value<'_>]) -> Sql<u64> {
        Ok(sqlx::query_with(statement, arguments(values)?).execute(&mut *self.tx).await?.rows_affected())
    }

    async fn commit(self, hint: Option<Hint>) -> Sql<()> {
        self.tx.commit().await?;
        if let Some(hint) = hint {
            self.bell.ring(hint);
        }
        Ok(())
    }

    async fn roll_back(self) -> Sql<()> {
        self.tx.rollback().await
    }
}

fn arguments(values: &[Value<'_>]) -> Sql<SqliteArguments> {
    let mut arguments = SqliteArguments::default();
    for value in values {
        match *value {
            Value::Text(text) => arguments.add(text.map(str::to_owned)),
            Value::Number(number) => arguments.add(number),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

/// Brings the database at `path` up to date, and checks all of it.
pub(super) async fn migrate(path: &Path) -> Result<Migrated, OpenError> {
    let (path, _lock, migrated) = lock_and_migrate(path, None).await?;
    let checking = |source| fault("checking the SQLite store", source);
    let mut connection = options(&path).connect().await.map_err(checking)?;
    let findings = sqlx::query_scalar::<_, String>("PRAGMA integrity_check(1)")
        .fetch_all(&mut connection)
        .await
        .map_err(checking)?;
    let strays = sqlx::query("PRAGMA foreign_key_check").fetch_all(&mut connection).await.map_err(checking)?.len();
    connection.close().await.map_err(checking)?;
    let stray = match strays {
        0 => None,
        1 => Some("1 row refers to one that is not there".to_owned()),
        more => Some(format!("{more} rows refer to some that are not there")),
    };
    match findings.into_iter().find(|finding| finding != "ok").or(stray) {
        Some(finding) => Err(OpenError::Damaged { path, finding }),
        None => Ok(migrated),
    }
}

/// In this order: a second process is refused before it touches the database, and a newer database before it is changed.
async fn lock_and_migrate(path: &Path, inherited: Option<OwnedFd>) -> Result<(PathBuf, Lock, Migrated), OpenError> {
    let path = files::place(path)?;
    let lock = lock::take(&path, inherited)?;
    files::prepare(&path)?;
    let (from, oldest) = schema_version(&path).await?;
    if !migrations::is_to_be_migrated(&path.display(), from, oldest)? {
        return Ok((path, lock, Migrated { from, to: from }));
    }
    let connecting = |source| fault("connecting to the SQLite store", source);
    let mut connection = options(&path).connect().await.map_err(connecting)?;
    if let Err(error) = migrations::sqlite().run(&mut connection).await {
        return Err(OpenError::Migrate { database: path.display().to_string(), source: error.into() });
    }
    connection.close().await.map_err(connecting)?;
    Ok((path, lock, Migrated { from, to: SCHEMA_VERSION }))
}

/// The schema's number, without changing anything, and the oldest that works with it; 0 for an empty database.
async fn schema_version(path: &Path) -> Result<(i64, Option<i64>), OpenError> {
    let reading = |source| fault("reading the schema of the SQLite store", source);
    let read_only = SqliteConnectOptions::new().filename(path).read_only(true).disable_statement_logging();
    let mut connection = read_only.connect().await.map_err(reading)?;
    let tables = sqlx::query_scalar::<_, String>("SELECT name FROM sqlite_master WHERE type = 'table'")
        .fetch_all(&mut connection)
        .await
        .map_err(reading)?;
    let version = if tables.iter().any(|name| name == "_sqlx_migrations") {
        sqlx::query_scalar::<_, Option<i64>>("SELECT max(version) FROM _sqlx_migrations")
            .fetch_one(&mut connection)
            .await
            .map_err(reading)?
            .unwrap_or(0)
    } else if tables.is_empty() {
        0
    } else {
        return Err(OpenError::NotHarbor { database: path.display().to_string() });
    };
    let oldest = match tables.iter().any(|name| name == "compatibility") {
        true => sqlx::query_scalar(migrations::OLDEST_SCHEMA).fetch_optional(&mut connection).await.map_err(reading)?,
        false => None,
    };
    connection.close().await.map_err(reading)?;
    Ok((version, oldest))
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .pragma("cache_size", format!("-{PAGE_CACHE_KIB}"))
        .statement_cache_capacity(PREPARED_STATEMENTS)
        .disable_statement_logging()
}

fn fault(doing: &'static str, source: sqlx::Error) -> Fault {
    Fault { doing: doing.into(), source: source.into() }
}

#[cfg(test)]
mod tests;
