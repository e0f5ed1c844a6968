//! The steps that bring a schema up to date, in order. A step that has been released is never edited: databases remember
//! its checksum.

use sqlx::{
    SqlSafeStr as _,
    migrate::{Migration, MigrationType, Migrator},
};

/// The steps of one engine: number, name, text.
type Steps = &'static [(i64, &'static str, &'static str)];

const SQLITE: Steps = &[
    (1, "init", include_str!("../../migrations/sqlite/0001_init.sql")),
    (2, "nodes", include_str!("../../migrations/sqlite/0002_nodes.sql")),
];

const POSTGRES: Steps = &[
    (1, "init", include_str!("../../migrations/postgres/0001_init.sql")),
    (2, "nodes", include_str!("../../migrations/postgres/0002_nodes.sql")),
];

/// The number of the newest schema that this version knows, on every engine.
pub const SCHEMA_VERSION: i64 = SQLITE[SQLITE.len() - 1].0;

const _: () = assert!(POSTGRES[POSTGRES.len() - 1].0 == SCHEMA_VERSION, "every engine has every step");

/// What runs SQLite's steps.
pub(super) fn sqlite() -> Migrator {
    migrator(SQLITE)
}

/// What runs PostgreSQL's steps.
pub(super) fn postgres() -> Migrator {
    migrator(POSTGRES)
}

fn migrator(steps: Steps) -> Migrator {
    let step = |(number, name, text): &(i64, &'static str, &'static str)| {
        Migration::new(*number, (*name).into(), MigrationType::Simple, text.into_sql_str(), false)
    };
    Migrator::with_migrations(steps.iter().map(step).collect())
}
