//! The steps that bring a schema up to date, in order. A step that has been released is never edited: databases remember
//! its checksum.

use sqlx::{
    SqlSafeStr as _,
    migrate::{Migration, MigrationType, Migrator},
};

/// SQLite's steps: number, name, text.
const SQLITE: &[(i64, &str, &str)] = &[
    (1, "init", include_str!("../../migrations/sqlite/0001_init.sql")),
    (2, "nodes", include_str!("../../migrations/sqlite/0002_nodes.sql")),
];

/// The number of the newest schema that this version knows.
pub const SCHEMA_VERSION: i64 = SQLITE[SQLITE.len() - 1].0;

/// What runs SQLite's steps.
pub(super) fn sqlite() -> Migrator {
    let step = |(number, name, text): &(i64, &'static str, &'static str)| {
        Migration::new(*number, (*name).into(), MigrationType::Simple, text.into_sql_str(), false)
    };
    Migrator::with_migrations(SQLITE.iter().map(step).collect())
}
