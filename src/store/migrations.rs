//! The steps that bring a schema up to date, in order. A step that has been released is never edited: databases remember
//! its checksum.

use std::fmt;

use sqlx::{
    SqlSafeStr as _,
    migrate::{Migration, MigrationType, Migrator},
};

use super::OpenError;

/// The steps of one engine: number, name, text.
type Steps = &'static [(i64, &'static str, &'static str)];

const SQLITE: Steps = &[
    (1, "init", include_str!("../../migrations/sqlite/0001_init.sql")),
    (2, "nodes", include_str!("../../migrations/sqlite/0002_nodes.sql")),
    (3, "operators", include_str!("../../migrations/sqlite/0003_operators.sql")),
];

const POSTGRES: Steps = &[
    (1, "init", include_str!("../../migrations/postgres/0001_init.sql")),
    (2, "nodes", include_str!("../../migrations/postgres/0002_nodes.sql")),
    (3, "operators", include_str!("../../migrations/postgres/0003_operators.sql")),
];

/// The number of the newest schema that this version knows, on every engine.
pub const SCHEMA_VERSION: i64 = SQLITE[SQLITE.len() - 1].0;

const _: () = assert!(POSTGRES[POSTGRES.len() - 1].0 == SCHEMA_VERSION, "every engine has every step");

/// What a database that has been migrated tells of itself.
pub(super) const OLDEST_SCHEMA: &str = "SELECT oldest_schema FROM compatibility";

/// Whether the steps have to be run on a database: not when a newer version has done so and leaves room for this one.
/// `oldest` is what [`OLDEST_SCHEMA`] says, where there is that.
pub(super) fn is_to_be_migrated(
    database: &dyn fmt::Display,
    found: i64,
    oldest: Option<i64>,
) -> Result<bool, OpenError> {
    if found <= SCHEMA_VERSION {
        return Ok(true);
    }
    if oldest.is_none_or(|oldest| oldest > SCHEMA_VERSION) {
        return Err(OpenError::Newer { database: database.to_string(), found, known: SCHEMA_VERSION });
    }
    tracing::warn!(
        %database, schema = found, known = SCHEMA_VERSION,
        "a newer Harbor has changed the database, so that this version can still work on it: upgrade this node too"
    );
    Ok(false)
}

/// Whether a database can be read whole as it is: one of another version may keep what this one does not know.
pub(super) fn check_is_current(database: &dyn fmt::Display, found: i64) -> Result<(), OpenError> {
    let (database, known) = (database.to_string(), SCHEMA_VERSION);
    match found {
        0 => Err(OpenError::Missing { database }),
        _ if found < known => Err(OpenError::Older { database, found, known }),
        _ if found > known => Err(OpenError::Newer { database, found, known }),
        _ => Ok(()),
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps that a release has: engine, number, and the beginning of the checksum that databases remember. A step is
    /// added here with the release that has it, and never changed.
    const RELEASED: &[(&str, i64, &str)] = &[("sqlite", 1, "475e7bccf5effe9b55f11d30")];

    #[test]
    fn every_engine_has_every_step_under_the_same_name() {
        let names = |steps: Steps| steps.iter().map(|(number, name, _)| (*number, *name)).collect::<Vec<_>>();
        assert_eq!(names(SQLITE), names(POSTGRES));
        assert!(names(SQLITE).iter().map(|(number, _)| *number).eq(1..=SCHEMA_VERSION));
        for (engine, steps) in [("sqlite", SQLITE), ("postgres", POSTGRES)] {
            let files = std::fs::read_dir(format!("{}/migrations/{engine}", env!("CARGO_MANIFEST_DIR"))).unwrap();
            let mut files = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>();
            files.sort();
            let expected = steps.iter().map(|(number, name, _)| format!("{number:04}_{name}.sql")).collect::<Vec<_>>();
            assert_eq!(files, expected, "{engine}");
        }
    }

    /// What SQLite tells of checks and of conditions of indexes is the text of its statements, and PostgreSQL tells its own:
    /// so it is the steps that are compared. One that has to be written in another way for an engine is compared by what it
    /// then lets in.
    #[test]
    fn every_step_is_the_same_for_every_engine_but_for_how_text_is_sorted() {
        for ((_, name, sqlite), (.., postgres)) in SQLITE.iter().zip(POSTGRES) {
            assert_eq!(*sqlite, postgres.replace(" COLLATE \"C\"", ""), "{name}");
        }
    }

    #[test]
    fn what_was_released_is_as_it_was() {
        for (engine, number, checksum) in RELEASED {
            let migrator = if *engine == "sqlite" { sqlite() } else { postgres() };
            let step = migrator.iter().find(|step| step.version == *number).expect("a step that was released stays");
            let found = step.checksum.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            assert!(found.starts_with(checksum), "{engine} {number}: {found}");
        }
    }
}
