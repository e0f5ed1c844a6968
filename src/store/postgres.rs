//! The store on PostgreSQL: many nodes, one database.
//!
//! A transaction that writes locks the revision counter's row with its first statement, so that of all nodes one writes at
//! a time; readers see one snapshot and wait for nobody. Whatever PostgreSQL does or leaves undone, a call ends soon:
//! see [`pool`].

use std::{sync::Arc, time::Duration};

use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection,
    migrate::{MigrateError, Migrator},
};

use super::{
    Feed, Migrated, OpenError, SCHEMA_VERSION,
    engine::{Engine, Sql},
    migrations,
    relational::Relational,
};
use crate::telemetry::metrics::StoreMetrics;

mod advice;
mod feed;
mod link;
mod pool;
mod target;

pub(super) use advice::passes;
use link::{Losses, Silence};
use pool::{Lease, Pool};
pub(super) use target::Target;

/// Connections that read.
const READERS: usize = 4;

/// How long the first connection may take: nobody waits for an answer yet.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Whoever has this advisory lock may change the schema; it goes with the connection. Its number is `harbor` in ASCII.
const LOCK_SCHEMA: &str = "SELECT pg_advisory_lock(114767740170098)";

/// The same without waiting: whether it was free.
const TRY_LOCK_SCHEMA: &str = "SELECT pg_try_advisory_lock(114767740170098)";

/// Begins to read: all of it is of the moment of the first statement.
const BEGIN_READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// Begins to write, in one round trip. Whoever has the row's lock is the only one who writes, and its later statements see
/// all that was committed before it got the lock: that is what READ COMMITTED means, so it is said here, whatever the
/// default of the database is.
const BEGIN_WRITE: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT revision FROM revision_counter FOR UPDATE";

/// Begins to write beside others that do. Its commit waits for no disk of its own, though its notification waits its turn.
const BEGIN_NOTE: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL synchronous_commit = off";

/// How much longer than this process the server goes on with a change of the schema: nobody is to wait for one that was
/// given up.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(1);

/// The tables of the schema that Harbor's would be in, but for those of extensions.
const TABLES: &str = "SELECT c.relname::text FROM pg_catalog.pg_class c \
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p') \
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')";

/// Connections to a PostgreSQL database.
#[derive(Debug)]
pub(super) struct PostgresEngine {
    target: Target,
    /// One connection: the next write of this node waits here, not at the database.
    writer: Arc<Pool>,
    readers: Arc<Pool>,
    losses: Losses,
    silence: Arc<Silence>,
}

impl PostgresEngine {
    fn new(target: Target) -> Self {
        let (losses, silence) = (Losses::default(), Arc::new(Silence::new()));
        let pool = |size| Arc::new(Pool::new(target.clone(), size, losses.clone(), Arc::clone(&silence)));
        Self { writer: pool(1), readers: pool(READERS), target, losses, silence }
    }
}

impl Engine for PostgresEngine {
    const NAME: &'static str = "PostgreSQL";

    const SERVES_MANY: bool = true;

    type Session = Lease;

    async fn read(&self) -> Sql<Lease> {
        self.readers.begin(BEGIN_READ).await
    }

    async fn write(&self) -> Sql<Lease> {
        self.writer.begin(BEGIN_WRITE).await
    }

    async fn note(&self) -> Sql<Lease> {
        self.writer.begin(BEGIN_NOTE).await
    }

    async fn feed(&self) -> Sql<Box<dyn Feed>> {
        feed::listen(&self.target, &self.losses, &self.silence).await
    }

    fn losses(&self) -> u64 {
        self.losses.count()
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// Opens the database, brought up to date.
pub(super) async fn open(
    target: Target,
    migrate_within: Duration,
    metrics: Arc<StoreMetrics>,
) -> Result<Relational<PostgresEngine>, OpenError> {
    let migrated = migrate(&target, migrate_within).await?;
    tracing::info!(database = %target, schema = migrated.to, schema_before = migrated.from, "opened the store");
    Ok(Relational::new(PostgresEngine::new(target), metrics))
}

/// Opens the database to read it, as it is.
pub(super) async fn open_to_read(
    target: Target,
    metrics: Arc<StoreMetrics>,
) -> Result<Relational<PostgresEngine>, OpenError> {
    let look = async {
        let mut connection = connect(&target).await?;
        let (found, _) = schema_version(&target, &mut connection).await?;
        connection.close().await.map_err(|error| advice::unavailable(&target, &error))?;
        Ok(found)
    };
    let found = tokio::time::timeout(CONNECT_WITHIN, look).await;
    let found = found.unwrap_or_else(|_| Err(silent(&target, CONNECT_WITHIN)))?;
    migrations::check_is_current(&target, found)?;
    Ok(Relational::new(PostgresEngine::new(target), metrics))
}

async fn connect(target: &Target) -> Result<PgConnection, OpenError> {
    match tokio::time::timeout(CONNECT_WITHIN, target.connect()).await {
        Ok(connected) => connected.map_err(|error| advice::unavailable(target, &error)),
        Err(_) => Err(silent(target, CONNECT_WITHIN)),
    }
}

fn silent(target: &Target, within: Duration) -> OpenError {
    advice::unavailable(target, &link::silent(within))
}

/// Brings the database up to date. Of many processes that do so at once, one does it and the others find it done. Where
/// there is nothing to do, nobody is waited for.
pub(super) async fn migrate(target: &Target, within: Duration) -> Result<Migrated, OpenError> {
    let unavailable = |error: &sqlx::Error| advice::unavailable(target, error);
    let mut connection = connect(target).await?;
    let work = async {
        let bound = (within + GIVEN_UP_AFTER).as_millis();
        // That a table is there already is no news.
        let session = format!(
            "SET statement_timeout = {bound}; SET lock_timeout = {bound}; SET idle_in_transaction_session_timeout = {bound}; \
             SET client_min_messages = warning; {}",
            link::KEEPALIVES
        );
        connection.execute(AssertSqlSafe(session)).await.map_err(|e| unavailable(&e))?;
        check_encoding(target, &mut connection).await?;
        let (mut from, mut oldest) = schema_version(target, &mut connection).await?;
        if from < SCHEMA_VERSION {
            lock_schema(target, &mut connection).await?;
            // Whoever had the lock before may have done it.
            (from, oldest) = schema_version(target, &mut connection).await?;
        }
        if migrations::is_to_be_migrated(target, from, oldest)? {
            // Of a schema that is current this compares the checksums alone.
            migrator().run(&mut connection).await.map_err(|error| match sql_error(&error) {
                Some(known) if advice::is_known(known) => unavailable(known),
                _ => OpenError::Migrate { database: target.to_string(), source: error.into() },
            })?;
        }
        connection.close().await.map_err(|e| unavailable(&e))?;
        Ok(Migrated { from, to: from.max(SCHEMA_VERSION) })
    };
    match tokio::time::timeout(within, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(advice::not_migrated(target, within)),
    }
}

/// Waits until no other process changes the schema, and keeps all from doing so.
async fn lock_schema(target: &Target, connection: &mut PgConnection) -> Result<(), OpenError> {
    let unavailable = |error: sqlx::Error| advice::unavailable(target, &error);
    if sqlx::query_scalar(TRY_LOCK_SCHEMA).fetch_one(&mut *connection).await.map_err(unavailable)? {
        return Ok(());
    }
    tracing::warn!(database = %target, "waiting for another process that brings the database up to date");
    connection.execute(LOCK_SCHEMA).await.map_err(unavailable)?;
    Ok(())
}

/// sqlx would take a lock of its own; the one that is taken here also covers the look at the schema before it.
fn migrator() -> Migrator {
    let mut migrator = migrations::postgres();
    migrator.set_locking(false);
    // A newer process may have made another step since this one looked.
    migrator.set_ignore_missing(true);
    migrator
}

/// Ids and names hold any character, so must the database.
async fn check_encoding(target: &Target, connection: &mut PgConnection) -> Result<(), OpenError> {
    let encoding = sqlx::query_scalar::<_, String>("SHOW server_encoding").fetch_one(connection).await;
    match encoding.map_err(|error| advice::unavailable(target, &error))? {
        utf8 if utf8 == "UTF8" => Ok(()),
        found => Err(OpenError::Encoding { database: target.to_string(), found }),
    }
}

/// The schema's number, without changing anything, and the oldest that works with it; 0 for an empty database. Another
/// process may be changing it: what is seen is of one moment.
async fn schema_version(target: &Target, connection: &mut PgConnection) -> Result<(i64, Option<i64>), OpenError> {
    let reading = |error: sqlx::Error| advice::unavailable(target, &error);
    connection.execute(BEGIN_READ).await.map_err(reading)?;
    let found = look(target, connection).await?;
    connection.execute("COMMIT").await.map_err(reading)?;
    Ok(found)
}

async fn look(target: &Target, connection: &mut PgConnection) -> Result<(i64, Option<i64>), OpenError> {
    let reading = |error: sqlx::Error| advice::unavailable(target, &error);
    let tables = sqlx::query_scalar::<_, String>(TABLES).fetch_all(&mut *connection).await.map_err(reading)?;
    let has = |name: &str| tables.iter().any(|table| table == name);
    if has("_sqlx_migrations") {
        let version = sqlx::query_scalar::<_, Option<i64>>("SELECT max(version) FROM _sqlx_migrations")
            .fetch_one(&mut *connection)
            .await
            .map_err(reading)?;
        let oldest = match has("compatibility") {
            true => sqlx::query_scalar(migrations::OLDEST_SCHEMA).fetch_optional(connection).await.map_err(reading)?,
            false => None,
        };
        // Other programs keep their steps under this name too; without any step there can be no table beside it.
        if version.is_none_or(|_| has("revision_counter")) && (version.is_some() || tables.len() == 1) {
            return Ok((version.unwrap_or(0), oldest));
        }
    } else if tables.is_empty() {
        return Ok((0, None));
    }
    Err(OpenError::NotHarbor { database: target.to_string() })
}

/// The error of the database that a migration failed with, if it was that.
fn sql_error(error: &MigrateError) -> Option<&sqlx::Error> {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => Some(error),
        _ => None,
    }
}
