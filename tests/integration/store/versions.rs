//! Databases that a newer version has changed.

use std::fs;

use harbor::{
    store::{self, AnyStore, Ending, Provision, SCHEMA_VERSION},
    telemetry::metrics::Metrics,
};
use sqlx::Connection as _;

use super::{NOW, by_hand, id, instance, made, open, refusal, sqlite};
use crate::support::postgres::{Postgres, settings};

/// Of SQLite: that a step of a newer version has been done.
const NEWER: &str = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (999, 'later', 1, x'00', 0)";

/// The same of PostgreSQL.
pub const NEWER_ON_POSTGRES: &str = "INSERT INTO _sqlx_migrations (version, description, success, checksum, \
    execution_time) VALUES (999, 'later', true, '\\x00', 0)";

/// What the step does, which only adds; and what a node of the newer version then does to the service instance `new`.
pub const ADDED: [&str; 6] = [
    "ALTER TABLE service_instances ADD COLUMN colour TEXT NOT NULL DEFAULT 'none'",
    "ALTER TABLE nodes ADD COLUMN zone TEXT",
    "CREATE TABLE colours (name TEXT NOT NULL PRIMARY KEY, service_instance_id TEXT REFERENCES service_instances (id))",
    "INSERT INTO colours VALUES ('red', 'new')",
    "UPDATE revision_counter SET revision = revision + 1",
    r#"UPDATE service_instances SET colour = 'red', settings = '{"colour":"red"}',
        revision = (SELECT revision FROM revision_counter) WHERE id = 'new'"#,
];

async fn with_two(store: AnyStore) {
    for (name, port) in [("old", 20_000), ("new", 20_001)] {
        made(&store, &instance(name, port)).await;
    }
    store.close().await;
}

/// That a store with what was [`ADDED`] does what it did.
async fn goes_on(store: AnyStore) {
    let known = store.everything().await.unwrap().instances;
    assert_eq!(known.iter().map(|instance| instance.id.as_str()).collect::<Vec<_>>(), ["old"]);
    made(&store, &instance("next", 20_002)).await;
    assert_eq!(store.provision(&instance("other", 20_001), false, NOW).await.unwrap(), Provision::PortTaken);
    assert!(store.instance(&id("new")).await.is_err(), "what it does not understand it does not change");
    for gone in ["old", "next"] {
        assert!(store.deprovision(&id(gone), NOW, Ending::Unused).await.unwrap().is_some());
    }
    store.close().await;
}

#[tokio::test]
async fn what_a_newer_version_has_added_is_left_alone_and_the_rest_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    with_two(open(directory.path()).await.unwrap()).await;
    let database = fs::canonicalize(directory.path().join("harbor.db")).unwrap();
    let mut connection = by_hand(&database).await;
    for statement in [NEWER].into_iter().chain(ADDED) {
        sqlx::query(statement).execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
    goes_on(open(directory.path()).await.unwrap()).await;
    let mut connection = by_hand(&database).await;
    let colour =
        sqlx::query_scalar::<_, String>("SELECT colour FROM service_instances").fetch_all(&mut connection).await;
    assert_eq!(colour.unwrap(), ["red"]);
    connection.close().await.unwrap();
}

#[tokio::test]
async fn what_a_newer_version_has_added_to_postgresql_is_left_alone_and_the_rest_goes_on() {
    let server = Postgres::shared();
    let settings = settings(server.database());
    let open = async || store::open(&settings, Metrics::new().store.clone(), None).await.unwrap();
    with_two(open().await).await;
    server.sql_at(&settings.url, &format!("{NEWER_ON_POSTGRES}; {}", ADDED.join(";")));
    goes_on(open().await).await;
    assert_eq!(server.sql_at(&settings.url, "SELECT colour FROM service_instances").trim(), "red");
}

#[tokio::test]
async fn a_database_of_a_newer_version_that_leaves_no_room_is_refused_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path()).await.unwrap().close().await;
    let database = fs::canonicalize(directory.path().join("harbor.db")).unwrap();
    let mut connection = by_hand(&database).await;
    for statement in [NEWER, "UPDATE compatibility SET oldest_schema = 999"] {
        sqlx::query(statement).execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
    let expected = format!(
        "{} was made by a newer Harbor (schema 999, this one knows {SCHEMA_VERSION}): install that version, or restore a \
         backup from before the upgrade",
        database.display()
    );
    assert_eq!(refusal(directory.path()).await.to_string(), expected);
    let error = store::migrate(&sqlite(directory.path(), "harbor.db")).await.unwrap_err();
    assert_eq!(error.to_string(), expected);
}
