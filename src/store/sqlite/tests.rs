use sqlx::{Executor as _, Row as _, SqlSafeStr as _};

use super::*;
use crate::{
    model::{
        NodeId, OrganizationId, PlanId, PoolName, Protocol, Revision, ServiceInstanceId, SpaceId, Timestamp,
        parameters::Settings, service_instance::ServiceInstance,
    },
    store::{Provision, Store as _, sql},
    telemetry::metrics::Metrics,
};

#[tokio::test]
async fn every_statement_can_be_prepared() {
    let directory = tempfile::tempdir().unwrap();
    let (path, _lock, migrated) = lock_and_migrate(&directory.path().join("harbor.db"), None).await.unwrap();
    assert_eq!(migrated, Migrated { from: 0, to: SCHEMA_VERSION });
    let mut connection = options(&path).connect().await.unwrap();
    for (name, text) in sql::ALL {
        let prepared = connection.prepare(text.into_sql_str()).await;
        assert!(prepared.is_ok(), "{name}: {:?}", prepared.err());
    }
    assert!(sql::ALL.len() < PREPARED_STATEMENTS);
}

#[tokio::test]
async fn reading_changes_does_not_look_at_what_has_not_changed() {
    let directory = tempfile::tempdir().unwrap();
    let (path, _lock, _) = lock_and_migrate(&directory.path().join("harbor.db"), None).await.unwrap();
    let mut connection = options(&path).connect().await.unwrap();
    for name in ["INSTANCES_AFTER", "BINDINGS_AFTER", "TOMBSTONES_AFTER", "DROP_TOMBSTONES"] {
        let (_, text) = sql::ALL.iter().find(|(known, _)| *known == name).unwrap();
        let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {text}"));
        let plan = sqlx::query(explain).bind(1_i64).fetch_all(&mut connection).await.unwrap();
        let first_step = plan[0].get::<String, _>("detail");
        assert!(first_step.starts_with("SEARCH") && first_step.contains("_by_revision"), "{name}: {first_step}");
    }
}

#[tokio::test]
async fn a_disk_that_is_full_is_a_fault_that_passes() {
    let directory = tempfile::tempdir().unwrap();
    let metrics = Metrics::new().store.clone();
    let store = open(&directory.path().join("harbor.db"), metrics, None).await.unwrap();
    let pages = sqlx::query_scalar::<_, i64>("PRAGMA page_count")
        .fetch_one(&store.engine.connections.load().writer)
        .await
        .unwrap();
    let large = instance("a", 20_000, &"x".repeat(100_000));
    for _ in 0..3 {
        // To SQLite the same as a write that finds no room. Only the present connection has the limit.
        let full = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {pages}"));
        sqlx::query(full).fetch_one(&store.engine.connections.load().writer).await.unwrap();
        let fault = store.provision(&large, false, Timestamp::default()).await.unwrap_err();
        assert!(fault.source.to_string().contains("database or disk is full"), "{fault}");
        assert_eq!(store.everything().await.unwrap().revision, Revision(0), "nothing has changed");
    }
    for (id, port) in [("a", 20_000), ("b", 20_001)] {
        let made = store.provision(&instance(id, port, "x"), false, Timestamp::default()).await.unwrap();
        assert!(matches!(made, Provision::Created(_)), "{made:?}");
    }
    store.close().await;
}

#[tokio::test]
async fn after_a_fault_a_ping_tells_whether_changes_are_taken() {
    let directory = tempfile::tempdir().unwrap();
    let metrics = Metrics::new().store.clone();
    let store = open(&directory.path().join("harbor.db"), metrics, None).await.unwrap();
    let read_only =
        async |flag: &'static str| sqlx::query(flag).execute(&store.engine.connections.load().writer).await.unwrap();
    store.ping().await.unwrap();
    read_only("PRAGMA query_only = ON").await;
    store.provision(&instance("a", 20_000, "x"), false, Timestamp::default()).await.unwrap_err();
    for _ in 0..2 {
        let fault = store.ping().await.unwrap_err();
        assert!(fault.source.to_string().contains("attempt to write a readonly database"), "{fault}");
    }
    read_only("PRAGMA query_only = OFF").await;
    store.ping().await.unwrap();
    assert_eq!(store.everything().await.unwrap().revision, Revision(0));
    store.close().await;
}

fn instance(id: &str, port: u16, name: &str) -> ServiceInstance {
    ServiceInstance {
        id: ServiceInstanceId::new(id).unwrap(),
        plan_id: PlanId::new("plan").unwrap(),
        pool: PoolName::new("default").unwrap(),
        port,
        protocol: Protocol::Tcp,
        requested_port: None,
        settings: Settings::default(),
        organization_id: OrganizationId::new("organization").unwrap(),
        space_id: SpaceId::new("space").unwrap(),
        name: Some(name.into()),
        node_id: NodeId::new("node").unwrap(),
        created_at: Timestamp::default(),
        revision: Revision::default(),
    }
}

#[tokio::test]
async fn commits_reach_the_disk_and_readers_cannot_write() {
    let directory = tempfile::tempdir().unwrap();
    let metrics = Metrics::new().store.clone();
    let store = open(&directory.path().join("harbor.db"), metrics, None).await.unwrap();
    for (pragma, expected) in
        [("PRAGMA journal_mode", "wal"), ("PRAGMA synchronous", "2"), ("PRAGMA foreign_keys", "1")]
    {
        let row = sqlx::query(pragma).fetch_one(&store.engine.connections.load().writer).await.unwrap();
        let value = row.try_get::<String, _>(0).or_else(|_| row.try_get::<i64, _>(0).map(|number| number.to_string()));
        assert_eq!(value.unwrap(), expected, "{pragma}");
    }
    assert!(sqlx::query(sql::RAISE_REVISION).fetch_one(&store.engine.connections.load().readers).await.is_err());
    store.close().await;
}

#[tokio::test]
async fn a_store_that_is_handed_over_is_its_successors_alone_and_can_be_taken_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("harbor.db");
    let open = |inherited| open(&path, Metrics::new().store.clone(), inherited);
    let provision = async |store: &Relational<SqliteEngine>, id, port| {
        store.provision(&instance(id, port, "x"), false, Timestamp::default()).await
    };
    let old = open(None).await.unwrap();
    provision(&old, "a", 20_000).await.unwrap();

    let lent = old.hand_over().await.unwrap();
    assert!(lent.is_some());
    assert!(old.everything().await.is_err() && provision(&old, "b", 20_001).await.is_err());
    assert!(matches!(open(None).await, Err(OpenError::InUse { .. })), "nobody else gets it");
    // A successor that fails: its copy of the lock goes with it.
    drop(lent);
    old.take_back().await.unwrap();
    provision(&old, "b", 20_001).await.unwrap();
    assert!(matches!(open(None).await, Err(OpenError::InUse { .. })));

    let new = open(old.hand_over().await.unwrap()).await.unwrap();
    provision(&new, "c", 20_002).await.unwrap();
    // The predecessor's end leaves the lock where it is.
    old.close().await;
    drop(old);
    assert!(matches!(open(None).await, Err(OpenError::InUse { .. })));
    assert_eq!(new.everything().await.unwrap().instances.len(), 3);
    let holder = std::fs::read_to_string(files::beside(&path, ".lock")).unwrap();
    assert_eq!(holder, format!("{}\n", std::process::id()));

    // The lock of another database opens none.
    let other = super::open(&directory.path().join("other.db"), Metrics::new().store.clone(), None).await.unwrap();
    let error = open(other.hand_over().await.unwrap()).await.unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    new.close().await;
    open(None).await.unwrap();
}
