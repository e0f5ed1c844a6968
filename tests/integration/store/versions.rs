//! Databases that a newer version has changed.

use std::fs;

use harbor::store::{self, Provision, SCHEMA_VERSION};
use sqlx::Connection as _;

use super::{NOW, by_hand, id, instance, made, open, refusal, sqlite};

/// What a newer version does that adds something.
const NEWER: &str = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (999, 'later', 1, x'00', 0)";

#[tokio::test]
async fn what_a_newer_version_has_added_is_left_alone_and_the_rest_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    for (name, port) in [("old", 20_000), ("new", 20_001)] {
        made(&store, &instance(name, port)).await;
    }
    store.close().await;
    let database = fs::canonicalize(directory.path().join("harbor.db")).unwrap();
    let mut connection = by_hand(&database).await;
    for statement in [NEWER, r#"UPDATE service_instances SET settings = '{"colour":"red"}' WHERE id = 'new'"#] {
        sqlx::query(statement).execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
    let store = open(directory.path()).await.unwrap();
    let known = store.everything().await.unwrap().instances;
    assert_eq!(known.iter().map(|instance| instance.id.as_str()).collect::<Vec<_>>(), ["old"]);
    made(&store, &instance("next", 20_002)).await;
    assert_eq!(store.provision(&instance("other", 20_001), false, NOW).await.unwrap(), Provision::PortTaken);
    assert!(store.instance(&id("new")).await.is_err(), "what it does not understand it does not change");
    store.close().await;
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
