//! What is PostgreSQL's own: how a node gets in, what it does when the server does not answer, migrations by many at once.
//! The contract that it shares with every engine is in `store.rs`.

use std::{
    collections::BTreeSet,
    pin::pin,
    process::Stdio,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use harbor::{
    model::{Revision, ServiceInstanceId, plan::SERVICE_ID},
    store::{self, ANSWER_WITHIN, AnyStore, Ending, Hint, Migrated, OpenError, Provision, SCHEMA_VERSION, STATEMENTS},
    telemetry::metrics::Metrics,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use rustix::process::Signal;
use serde_json::json;
use sqlx::{
    ConnectOptions as _, Connection as _, Executor as _, PgConnection, SqlSafeStr as _, sqlite::SqliteConnectOptions,
};
use tokio::{task::JoinSet, time::timeout};

use crate::{
    discovery::logins::{authority, issue},
    end_to_end::{PLAN_TCP, at, bind, provision, served, status},
    store::{NOW, instance, made, revision, versions::NEWER_ON_POSTGRES},
    support::{
        echo::{Echo, over_tcp},
        eventually::{PATIENCE, eventually_async},
        harbor::Site,
        http::{Answer, Client},
        postgres::{PASSWORD, Postgres, USER, settings},
    },
};

/// How soon a broker has to answer, whatever PostgreSQL does. Of several attempts one must show it: on a machine that has
/// others to serve, any single one may be late.
const ANSWERED: Duration = Duration::from_secs(1);

/// How often what a stall of the machine can spoil is tried.
const ATTEMPTS: u16 = 10;

/// How late it may be then: a queue in which each waits for its turn to be given up would take longer.
const LATE: Duration = Duration::from_secs(3);

async fn open(url: &str) -> Result<AnyStore, OpenError> {
    store::open(&settings(url.into()), Metrics::new().store.clone(), None).await
}

/// The same as a node has it.
async fn open_as_a_node(url: &str) -> AnyStore {
    let settings = store::Settings { answer_within: ANSWER_WITHIN, ..settings(url.into()) };
    store::open(&settings, Metrics::new().store.clone(), None).await.unwrap()
}

/// Checks what several attempts took.
#[track_caller]
fn check(attempts: &[Duration]) {
    assert!(attempts.iter().any(|took| *took < ANSWERED) && attempts.iter().all(|took| *took < LATE), "{attempts:?}");
}

/// What opening says.
async fn refusal(url: &str) -> String {
    open(url).await.expect_err("it should be refused").to_string()
}

/// The name of the database of a URL that [`Postgres::database`] gave.
fn name(url: &str) -> &str {
    url.split(['/', '?']).find(|part| part.starts_with('d') && part[1..].parse::<u32>().is_ok()).unwrap()
}

#[tokio::test]
async fn every_statement_can_be_prepared() {
    let url = Postgres::shared().database();
    open(&url).await.unwrap().close().await;
    let mut connection = PgConnection::connect(&url.replace("@/", "@localhost/")).await.unwrap();
    for (name, text) in STATEMENTS {
        let prepared = (&mut connection).prepare(text.into_sql_str()).await;
        assert!(prepared.is_ok(), "{name}: {:?}", prepared.err());
    }
}

/// Columns with their defaults, indexes, references with what becomes of them, and how many checks there are, a line each.
/// What is checked, and of which rows a partial index is, SQLite has only as the text of its statements: the steps of both
/// engines are compared for that, where they are listed.
#[tokio::test]
async fn both_engines_have_the_same_schema() {
    let directory = tempfile::tempdir().unwrap();
    let sqlite = store::Settings { data_dir: directory.path().into(), ..settings("sqlite:harbor.db".into()) };
    store::migrate(&sqlite).await.unwrap();
    let mut connection =
        SqliteConnectOptions::new().filename(directory.path().join("harbor.db")).connect().await.unwrap();
    let of_sqlite =
        "WITH tables AS (SELECT name FROM sqlite_master WHERE type = 'table' AND name <> '_sqlx_migrations')
        SELECT t.name || '.' || c.name || ' ' || c.type || CASE c.\"notnull\" WHEN 1 THEN ' NOT NULL' ELSE '' END
            || coalesce(' DEFAULT ' || c.dflt_value, '')
            FROM tables t, pragma_table_info(t.name) c
        UNION ALL SELECT t.name || ' INDEX ' || (SELECT group_concat(name) FROM pragma_index_info(i.name))
            || CASE i.\"unique\" WHEN 1 THEN ' UNIQUE' ELSE '' END || CASE i.partial WHEN 1 THEN ' PARTIAL' ELSE '' END
            FROM tables t, pragma_index_list(t.name) i
        UNION ALL SELECT t.name || '.' || f.\"from\" || ' REFERENCES ' || f.\"table\" || '.' || f.\"to\"
            || ' ON UPDATE ' || f.on_update || ' ON DELETE ' || f.on_delete
            FROM tables t, pragma_foreign_key_list(t.name) f
        UNION ALL SELECT name || ' CHECKS ' || ((length(sql) - length(replace(sql, 'CHECK (', 'CHECK'))) / 2)
            FROM sqlite_master WHERE type = 'table' AND name <> '_sqlx_migrations'";
    let mut of_sqlite = sqlx::query_scalar::<_, String>(of_sqlite).fetch_all(&mut connection).await.unwrap();
    connection.close().await.unwrap();

    let server = Postgres::shared();
    let url = server.database();
    store::migrate(&settings(url.clone())).await.unwrap();
    let of_postgres = "WITH tables AS (SELECT oid, relname AS name FROM pg_class WHERE relkind = 'r'
            AND relnamespace = 'public'::regnamespace AND relname <> '_sqlx_migrations')
        SELECT t.name || '.' || c.attname || ' ' || upper(format_type(c.atttypid, NULL))
            || CASE WHEN c.attnotnull THEN ' NOT NULL' ELSE '' END
            || coalesce(' DEFAULT ' || replace(pg_get_expr(d.adbin, d.adrelid), '::text', ''), '')
            FROM tables t JOIN pg_attribute c ON c.attrelid = t.oid AND c.attnum > 0 AND NOT c.attisdropped
            LEFT JOIN pg_attrdef d ON d.adrelid = t.oid AND d.adnum = c.attnum
        UNION ALL SELECT t.name || ' INDEX ' || (SELECT string_agg(c.attname, ',' ORDER BY c.attnum) FROM pg_attribute c
                WHERE c.attrelid = i.indexrelid) || CASE WHEN i.indisunique THEN ' UNIQUE' ELSE '' END
            || CASE WHEN i.indpred IS NOT NULL THEN ' PARTIAL' ELSE '' END
            FROM tables t JOIN pg_index i ON i.indrelid = t.oid
        UNION ALL SELECT t.name || '.' || c.attname || ' REFERENCES ' || f.confrelid::regclass || '.' || r.attname
            || ' ON UPDATE ' || a.name[position(f.confupdtype::text IN 'arcnd')]
            || ' ON DELETE ' || a.name[position(f.confdeltype::text IN 'arcnd')]
            FROM tables t JOIN pg_constraint f ON f.conrelid = t.oid AND f.contype = 'f'
            JOIN pg_attribute c ON c.attrelid = t.oid AND c.attnum = f.conkey[1]
            JOIN pg_attribute r ON r.attrelid = f.confrelid AND r.attnum = f.confkey[1],
            (SELECT '{NO ACTION,RESTRICT,CASCADE,SET NULL,SET DEFAULT}'::text[] AS name) a
        UNION ALL SELECT t.name || ' CHECKS ' || (SELECT count(*) FROM pg_constraint c WHERE c.conrelid = t.oid
            AND c.contype = 'c') FROM tables t";
    let of_postgres = server.sql(name(&url), of_postgres);
    let mut of_postgres = of_postgres.lines().map(str::to_owned).collect::<Vec<_>>();
    of_sqlite.sort();
    of_postgres.sort();
    for line in [
        "allocations.revision BIGINT NOT NULL DEFAULT 0",
        "allocations CHECKS 4",
        "bindings.service_instance_id REFERENCES service_instances.id ON UPDATE NO ACTION ON DELETE NO ACTION",
    ] {
        assert!(of_sqlite.contains(&line.to_owned()), "{line}: {of_sqlite:#?}");
    }
    assert!(of_sqlite.len() > 70, "{of_sqlite:?}");
    assert_eq!(of_sqlite, of_postgres);
    // Ids sort by their bytes, as they do everywhere else in Harbor.
    let collations = "SELECT DISTINCT collation_name FROM information_schema.columns WHERE table_schema = 'public' \
        AND data_type = 'text' AND table_name <> '_sqlx_migrations'";
    assert_eq!(server.sql(name(&url), collations).trim(), "C");
}

#[tokio::test]
async fn reading_changes_does_not_look_at_what_has_not_changed() {
    let server = Postgres::shared();
    let url = server.database();
    open(&url).await.unwrap().close().await;
    for statement in [
        "INSTANCES_AFTER",
        "BINDINGS_AFTER",
        "TOMBSTONES_AFTER",
        "DROP_TOMBSTONES",
        "FREED_AFTER",
        "INSTANCE",
        "BINDING",
    ] {
        let (_, text) = STATEMENTS.iter().find(|(name, _)| *name == statement).unwrap();
        let text = text.replace("$1", if statement.contains('_') { "7" } else { "'7'" });
        // Tables of tests are so small that reading them whole is cheaper.
        let plan = server.sql(name(&url), &format!("SET enable_seqscan = off; EXPLAIN {text}"));
        assert!(!plan.contains("Seq Scan"), "{statement}: {plan}");
    }
}

#[tokio::test]
async fn of_many_that_open_an_empty_database_at_once_one_makes_the_schema() {
    let url = Postgres::shared().database();
    let openers = (0..8).map(async |number| {
        let store = open(&url).await.unwrap();
        made(&store, &instance(&format!("i{number}"), 20_000 + number)).await;
        store.close().await;
    });
    // Other processes do the same.
    let site = Site::new("23400-23409", "");
    let mut commands = Vec::new();
    for _ in 0..3 {
        let mut command = site.command(&["migrate"]);
        command.env("HARBOR_STORE__URL", &url).stdout(Stdio::piped()).stderr(Stdio::piped());
        commands.push(command.spawn().unwrap());
    }
    join_all(openers).await;
    for command in commands {
        let output = command.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let store = open(&url).await.unwrap();
    assert_eq!(store.everything().await.unwrap().instances.len(), 8);
    store.close().await;
    let steps = Postgres::shared().sql(name(&url), "SELECT count(*) FROM _sqlx_migrations WHERE success");
    assert_eq!(steps.trim(), SCHEMA_VERSION.to_string());
}

/// A session that has the lock of the schema, as one that changes it.
async fn lock_schema(url: &str) -> PgConnection {
    let mut other = PgConnection::connect(&url.replace("@/", "@localhost/")).await.unwrap();
    other.execute("SELECT pg_advisory_lock(114767740170098)").await.unwrap();
    other
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_schema_is_current_waits_for_nobody_who_has_its_lock() {
    let url = Postgres::shared().database();
    store::migrate(&settings(url.clone())).await.unwrap();
    let other = lock_schema(&url).await;
    let harbor = Site::new("23440-23449", &section(&url)).serve().await;
    harbor.restart();
    harbor.ready().await;
    provision(&harbor, "a", PLAN_TCP).await;
    other.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_waits_for_the_lock_of_the_schema_says_so_and_can_be_ended() {
    let url = Postgres::shared().database();
    let other = lock_schema(&url).await;
    let site = Site::new("23450-23459", &section(&url));
    let harbor = site.start();
    harbor.logged("waiting for another process that brings the database up to date");
    assert!(harbor.terminate().success());
    let harbor = site.start();
    harbor.logged("waiting for another process that brings the database up to date");
    other.close().await.unwrap();
    harbor.ready().await;
    assert!(harbor.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_restart_gives_up_soon_when_the_schema_cannot_be_brought_up_to_date() {
    let server = Postgres::shared();
    let url = server.database();
    let harbor = Site::new("23460-23469", &section(&url)).serve().await;
    let process = harbor.pid();
    // As for a new version with another step.
    server.sql(name(&url), "DELETE FROM _sqlx_migrations WHERE version > 1");
    let other = lock_schema(&url).await;
    harbor.signal(Signal::USR2);
    let said = harbor.logged("the hot restart failed: going on as before");
    assert!(
        said.contains("its schema was not brought up to date within 5s") && said.contains("harbor migrate"),
        "{said}"
    );
    eventually_async("the old process answers", || async {
        let (_, answer) = ask(&harbor.broker(), "a").await;
        (answer.status == 201 || answer.status == 200).then_some(())
    })
    .await;
    assert_eq!(status(&harbor).await["process"], process);
    other.close().await.unwrap();
}

#[tokio::test]
async fn migrating_tells_the_versions() {
    let settings = settings(Postgres::shared().database());
    let last = SCHEMA_VERSION;
    assert_eq!(store::migrate(&settings).await.unwrap(), Migrated { from: 0, to: last });
    assert_eq!(store::migrate(&settings).await.unwrap(), Migrated { from: last, to: last });
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_taken_when_that_leaves_room_and_else_refused_unchanged() {
    let server = Postgres::shared();
    let url = server.database();
    open(&url).await.unwrap().close().await;
    server.sql(name(&url), NEWER_ON_POSTGRES);
    let store = open(&url).await.unwrap();
    store.ping().await.unwrap();
    store.close().await;
    server.sql(name(&url), "UPDATE compatibility SET oldest_schema = 999");
    let said = refusal(&url).await;
    assert!(
        said.contains(&format!("was made by a newer Harbor (schema 999, this one knows {SCHEMA_VERSION})")),
        "{said}"
    );
}

#[tokio::test]
async fn what_is_not_harbors_database_is_refused_unchanged() {
    let server = Postgres::shared();
    let tables = "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relnamespace = 'public'::regnamespace \
        AND relkind = 'r'";
    for theirs in [
        "CREATE TABLE customers (id bigint)",
        "CREATE TABLE _sqlx_migrations (version bigint); INSERT INTO _sqlx_migrations VALUES (1)",
        "CREATE TABLE _sqlx_migrations (version bigint); CREATE TABLE customers (id bigint)",
    ] {
        let url = server.database();
        server.sql(name(&url), theirs);
        let before = server.sql(name(&url), tables);
        let said = refusal(&url).await;
        assert!(said.ends_with("is of another program: let store.url name another one"), "{said}");
        assert_eq!(server.sql(name(&url), tables), before);
    }
}

#[tokio::test]
async fn a_migration_that_was_edited_after_its_release_is_noticed() {
    let server = Postgres::shared();
    let url = server.database();
    open(&url).await.unwrap().close().await;
    server.sql(name(&url), "UPDATE _sqlx_migrations SET checksum = '\\x00'");
    let error = open(&url).await.unwrap_err();
    assert!(matches!(error, OpenError::Migrate { .. }), "{error}");
}

#[tokio::test]
async fn whoever_cannot_get_in_is_told_what_to_do() {
    let server = Postgres::shared();
    server.sql("postgres", "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'");
    server.sql("postgres", "CREATE ROLE guest LOGIN");
    server.sql("postgres", "CREATE DATABASE closed");
    let over_tcp = |login: &str| format!("postgres://{login}@127.0.0.1:{}/closed?sslmode=disable", server.port());
    for (url, reason, advice) in [
        (over_tcp(&format!("{USER}:wrong")), "password authentication failed", "correct user and password"),
        (server.url_of("missing"), "database \"missing\" does not exist", "create it: CREATE DATABASE"),
        (server.url_of("latin"), "has the encoding LATIN1", "create one with ENCODING 'UTF8'"),
        (
            server.url_of("closed").replace("harbor@", "guest@"),
            "permission denied for schema public",
            "GRANT USAGE, CREATE",
        ),
        ("postgres://harbor@127.0.0.1:1/d".into(), "Connection refused", "start PostgreSQL, or correct host and port"),
        ("postgres://harbor@/d?host=/nowhere".into(), "No such file or directory", "start PostgreSQL"),
        ("postgres://harbor@no-such-host.invalid/d".into(), "lookup address", "correct the host in store.url, or DNS"),
        (over_tcp(USER).replace("disable", "require"), "server does not support TLS", "check sslmode"),
    ] {
        let said = refusal(&url).await;
        assert!(said.contains(reason) && said.contains(advice), "{url}: {said}");
        assert!(!said.contains("wrong") && said.lines().count() == 1, "{said}");
    }
}

#[tokio::test]
async fn the_password_of_the_file_wins_over_the_one_of_the_url() {
    let server = Postgres::shared();
    server.sql("postgres", "CREATE DATABASE guarded");
    let url = format!("postgres://{USER}:wrong@127.0.0.1:{}/guarded", server.port());
    let right = store::Settings { password: Some(PASSWORD.into()), ..settings(url) };
    store::open(&right, Metrics::new().store.clone(), None).await.unwrap().close().await;
}

/// Does something that changes and something that reads, and says how long each took until it failed.
async fn times_to_fault(store: &AnyStore) -> [Duration; 2] {
    let start = Instant::now();
    store.provision(&instance("never", 20_900), false, NOW).await.expect_err("PostgreSQL is away");
    let write = start.elapsed();
    let start = Instant::now();
    store.changes_since(Revision(0)).await.expect_err("PostgreSQL is away");
    [write, start.elapsed()]
}

#[tokio::test]
async fn a_server_that_is_stopped_is_a_fault_within_a_second_and_passes_by_itself() {
    let mut server = Postgres::start();
    let store = open_as_a_node(&server.database()).await;
    made(&store, &instance("i", 20_000)).await;
    for kill in [false, true] {
        if kill {
            server.kill()
        } else {
            server.stop()
        }
        for _ in 0..3 {
            check(&times_to_fault(&store).await);
        }
        server.start_again();
        // The very next call, on connections of which each has died meanwhile.
        let number = if kill { 2 } else { 1 };
        made(&store, &instance(&format!("i{number}"), 20_000 + number)).await;
        assert_eq!(store.everything().await.unwrap().instances.len(), 1 + usize::from(number));
        store.ping().await.unwrap();
    }
    store.close().await;
}

#[tokio::test]
async fn a_server_that_hangs_is_a_fault_within_a_second_for_everyone_who_waits() {
    let server = Postgres::start();
    let store = open_as_a_node(&server.database()).await;
    made(&store, &instance("i", 20_000)).await;
    server.pause();
    // Far more than there are connections: nobody stands in a queue of time-outs.
    let mut calls = JoinSet::new();
    for number in 0..50_u16 {
        let store = store.clone();
        calls.spawn(async move {
            let start = Instant::now();
            if number % 2 == 0 {
                let outcome = store.provision(&instance(&format!("n{number}"), 20_100 + number), false, NOW).await;
                outcome.expect_err("PostgreSQL hangs");
            } else {
                store.everything().await.expect_err("PostgreSQL hangs");
            }
            start.elapsed()
        });
    }
    check(&calls.join_all().await);
    check(&times_to_fault(&store).await);
    server.resume();
    answers_again(&store).await;
    let everything = store.everything().await.unwrap();
    // Whatever was under way at the pause is done whole or not at all.
    assert_eq!(everything.revision.0, everything.instances.len() as u64);
    store.close().await;
}

/// Waits until a change succeeds: for a moment nobody asks a server that was silent to all.
async fn answers_again(store: &AnyStore) {
    let new = instance("again", 20_001);
    eventually_async("the store answers again", || async { store.provision(&new, false, NOW).await.ok() }).await;
}

#[tokio::test]
async fn of_calls_in_a_row_one_alone_waits_for_a_server_that_hangs() {
    let server = Postgres::start();
    let store = open_as_a_node(&server.database()).await;
    made(&store, &instance("i", 20_000)).await;
    server.pause();
    let mut rows = JoinSet::new();
    for number in 0..8 {
        let store = store.clone();
        rows.spawn(async move {
            let start = Instant::now();
            // Half of them ask while the others have waited for a while.
            if number % 2 == 0 {
                timeout(ANSWER_WITHIN / 2, store.everything()).await.expect_err("PostgreSQL hangs");
            }
            for _ in 0..3 {
                times_to_fault(&store).await;
            }
            start.elapsed()
        });
    }
    check(&rows.join_all().await);
    server.resume();
    answers_again(&store).await;
    store.close().await;
}

#[tokio::test]
async fn a_server_that_is_silent_to_one_and_answers_others_is_asked_on() {
    let server = Postgres::start();
    let url = server.database();
    let store = open_as_a_node(&url).await;
    let made_before = made(&store, &instance("i", 20_000)).await;
    server.pause_who_was_asked(name(&url), "NOTIFY harbor, ''desired''; COMMIT");
    let new = instance("j", 20_001);
    let mut change = pin!(store.provision(&new, false, NOW));
    let outcome = loop {
        tokio::select! {
            outcome = &mut change => break outcome,
            found = store.instance(&made_before.id) => assert_eq!(found.unwrap().as_ref(), Some(&made_before)),
        }
    };
    outcome.expect_err("the one that it asks hangs");
    assert_eq!(store.instance(&made_before.id).await.unwrap(), Some(made_before));
    made(&store, &new).await;
    store.close().await;
}

#[tokio::test]
async fn a_busy_server_is_no_fault_however_long_the_queue() {
    let store = open(&Postgres::shared().database()).await.unwrap();
    let mut calls = JoinSet::new();
    for number in 0..400_u16 {
        let store = store.clone();
        calls
            .spawn(async move { store.provision(&instance(&format!("i{number}"), 20_000 + number), false, NOW).await });
    }
    let outcomes = calls.join_all().await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(Provision::Created(_)))));
    assert_eq!(revision(&store).await, 400);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_has_six_connections_at_most_however_much_it_is_asked() {
    let url = Postgres::shared().database();
    let node = Site::new("28400-28449", &section(&url)).serve().await;
    let mut looking = PgConnection::connect(&url.replace("@/", "@localhost/")).await.unwrap();
    let mut count = async || {
        let connections = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
            AND application_name = 'harbor'";
        sqlx::query_scalar::<_, i64>(connections).fetch_one(&mut looking).await.unwrap()
    };
    let mut calls = JoinSet::new();
    for number in 0..50 {
        let broker = node.broker();
        calls.spawn(async move {
            let id = format!("i{number}");
            assert_eq!(ask(&broker, &id).await.1.status, 201);
            assert_eq!(broker.get(&format!("/v2/service_instances/{id}")).await.status, 200);
        });
    }
    let mut most = 0;
    while !calls.is_empty() {
        while calls.try_join_next().map(|call| call.expect("a call does not panic")).is_some() {}
        most = most.max(count().await);
    }
    // One that writes, one that listens, and four that read.
    assert!((5..=6).contains(&most), "{most}");
}

#[tokio::test]
async fn the_server_knows_the_bounds_of_a_nodes_session() {
    let (server, url) = (Postgres::shared(), Postgres::shared().database());
    let store = open_as_a_node(&url).await;
    // Whoever writes notes what holds for it.
    server.sql(
        name(&url),
        "CREATE TABLE noted (name TEXT, setting TEXT);
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO noted SELECT s.name, s.setting || s.unit FROM pg_settings s WHERE s.name LIKE '%_timeout';
            RETURN NULL; END $$;
        CREATE TRIGGER note AFTER UPDATE ON revision_counter EXECUTE FUNCTION note();",
    );
    made(&store, &instance("i", 20_000)).await;
    for (bound, expected) in [
        ("statement_timeout", Duration::from_secs(10)),
        ("lock_timeout", ANSWER_WITHIN * 3 / 4),
        ("idle_in_transaction_session_timeout", Duration::from_millis(400)),
    ] {
        let noted = server.sql(name(&url), &format!("SELECT DISTINCT setting FROM noted WHERE name = '{bound}'"));
        assert_eq!(noted.trim(), format!("{}ms", expected.as_millis()), "{bound}");
    }
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stands_still_in_a_transaction_is_ended_by_the_server_and_holds_up_nobody() {
    let server = Postgres::start();
    let url = server.database();
    let (node, store) = (Site::new("28450-28459", &section(&url)).serve().await, open_as_a_node(&url).await);
    let mut other = PgConnection::connect(&url.replace("@/", "@localhost/")).await.unwrap();
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'harbor' AND wait_event_type = 'Lock'";
    let is_ended = || server.log().contains("terminating connection due to idle-in-transaction timeout");
    // It waits for the lock, stands still, and gets it: unless it waits no more by then.
    for number in 0..ATTEMPTS {
        other.execute("BEGIN; SELECT * FROM revision_counter FOR UPDATE").await.unwrap();
        let (broker, mut calls) = (node.broker(), JoinSet::new());
        let call = calls.spawn(async move { ask(&broker, &format!("i{number}")).await });
        eventually_async("it waits, or has waited", || async {
            (server.sql("postgres", waits).trim() == "1" || call.is_finished()).then_some(())
        })
        .await;
        node.signal(Signal::STOP);
        other.execute("ROLLBACK").await.unwrap();
        eventually_async("others can write", || async {
            store.provision(&instance(&format!("other{number}"), 20_000 + number), false, NOW).await.ok()
        })
        .await;
        node.signal(Signal::CONT);
        calls.join_all().await;
        if is_ended() {
            break;
        }
    }
    assert!(is_ended(), "{}", server.log());
    store.close().await;
}

#[tokio::test]
async fn another_who_holds_the_lock_is_a_fault_within_a_second_and_cannot_hold_it_for_long() {
    let url = Postgres::shared().database();
    let store = open_as_a_node(&url).await;
    // As a node would that was cut off half-way: it has a bound on that, which is its own.
    let mut other = PgConnection::connect(&url.replace("@/", "@localhost/")).await.unwrap();
    other
        .execute("SET idle_in_transaction_session_timeout = '2s'; BEGIN; SELECT * FROM revision_counter FOR UPDATE")
        .await
        .unwrap();
    let start = Instant::now();
    let fault = store.provision(&instance("i", 20_000), false, NOW).await.unwrap_err();
    assert!(start.elapsed() < LATE, "{:?}", start.elapsed());
    assert!(fault.source.to_string().contains("lock timeout"), "{}", fault.source);
    store.everything().await.expect("readers wait for nobody");
    eventually_async("the lock is free", || async { store.provision(&instance("i", 20_000), false, NOW).await.ok() })
        .await;
    store.close().await;
}

#[tokio::test]
async fn changes_of_several_nodes_never_share_a_port_or_a_revision() {
    let url = Postgres::shared().database();
    let nodes = (0..4_u16).map(async |node| {
        let store = open(&url).await.unwrap();
        let mut revisions = Vec::new();
        for number in 0..25_u16 {
            let wish = instance(&format!("i{node}/{number}"), 20_000 + number);
            match store.provision(&wish, false, NOW).await.unwrap() {
                Provision::Created(made) => revisions.push(made.revision),
                Provision::PortTaken => {}
                Provision::Exists(other) => panic!("{} was there before", other.id),
            }
        }
        store.close().await;
        revisions
    });
    let revisions = join_all(nodes).await.concat();
    assert_eq!(revisions.len(), 25);
    assert_eq!(revisions.iter().collect::<BTreeSet<_>>().len(), 25);
}

#[tokio::test]
async fn a_change_of_one_node_is_heard_by_others_and_so_is_a_loss_of_the_connection() {
    let mut server = Postgres::start();
    let url = server.database();
    let (one, other) = (open(&url).await.unwrap(), open(&url).await.unwrap());
    let mut feed = other.feed().await.unwrap();
    let mut next = async || timeout(PATIENCE, feed.next()).await.expect("a hint");
    made(&one, &instance("i", 20_000)).await;
    assert_eq!(next().await, Hint::Desired);
    assert_eq!(other.everything().await.unwrap().instances.len(), 1);
    // What is refused tells nobody, what is done does.
    one.provision(&instance("j", 20_000), false, NOW).await.unwrap();
    one.set_drain(&harbor::model::NodeId::new("n").unwrap(), true).await.unwrap();
    assert_eq!(next().await, Hint::Members);
    server.stop();
    server.start_again();
    assert_eq!(next().await, Hint::Everything);
    one.deprovision(&ServiceInstanceId::new("i").unwrap(), NOW, Ending::Unused).await.unwrap();
    assert_eq!(next().await, Hint::Desired);
    server.pause();
    server.kill();
    server.start_again();
    assert_eq!(next().await, Hint::Everything);
    one.close().await;
    other.close().await;
}

#[tokio::test]
async fn a_feed_that_has_gone_silent_is_noticed_however_often_one_stops_to_wait_for_it() {
    let server = Postgres::start();
    let url = server.database();
    let (one, other) = (open(&url).await.unwrap(), open_as_a_node(&url).await);
    let mut feed = other.feed().await.unwrap();
    server.pause_who_was_asked(name(&url), "LISTEN \"harbor\"");
    let before = other.losses();
    made(&one, &instance("i", 20_000)).await;
    let heard = async {
        loop {
            if let Ok(hint) = timeout(Duration::from_millis(100), feed.next()).await {
                return hint;
            }
        }
    };
    assert_eq!(timeout(PATIENCE, heard).await.expect("a hint"), Hint::Everything);
    assert!(other.losses() > before, "what comes now may be another database");
    one.close().await;
    other.close().await;
}

/// What a node is configured with to use a store there.
fn section(url: &str) -> String {
    format!("[store]\nurl = {url:?}\n")
}

/// Asks for a service instance; how long that took, and the answer.
async fn ask(client: &Client, id: &str) -> (Duration, Answer) {
    let start = Instant::now();
    let body = json!({ "service_id": SERVICE_ID, "plan_id": PLAN_TCP, "organization_guid": "o", "space_guid": "s" });
    let answer = client.put(&format!("/v2/service_instances/{id}"), &body).await;
    (start.elapsed(), answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn while_postgresql_is_away_traffic_goes_on_and_the_broker_asks_to_try_again() {
    let mut server = Postgres::start();
    let site = Site::new("23400-23419", &section(&server.database()));
    let harbor = site.serve().await;
    provision(&harbor, "a", PLAN_TCP).await;
    let credentials = bind(&harbor, "a", "binding", PLAN_TCP).await;
    let announcer = Client::new(harbor.address("announce"));
    let token = credentials["announce"]["token"].as_str().unwrap();
    let announcer = announcer.with("authorization", &format!("Bearer {token}"));
    let app = Echo::start("app").await;
    let announce = async || {
        let body = json!({ "binding_id": "binding", "port": app.tcp.port() });
        assert!(announcer.put("/announce/v1/instances/a", &body).await.status.is_success());
    };
    announce().await;
    assert_eq!(served(at(&credentials)).await, "app: hello");

    for (number, hang) in [(0, false), (1, true)] {
        if hang {
            server.pause()
        } else {
            server.stop()
        }
        let mut attempts = Vec::new();
        for _ in 0..3 {
            let (took, answer) = ask(&harbor.broker(), "b").await;
            attempts.push(took);
            let away = json!({ "description": "The store is away: try again in a few seconds." });
            assert_eq!((answer.parts(), &answer.headers["retry-after"]), ((503, away), &"5".parse().unwrap()));
        }
        check(&attempts);
        announce().await;
        assert_eq!(over_tcp(at(&credentials), "hello").await.as_deref(), Some("app: hello"));
        let state = async |expected: &str| {
            let look = || async { (status(&harbor).await["store"]["state"] == expected).then_some(()) };
            eventually_async(expected, look).await;
        };
        state("down").await;
        if hang {
            server.resume()
        } else {
            server.start_again()
        }
        state("up").await;
        provision(&harbor, &format!("after {number}").replace(' ', "%20"), PLAN_TCP).await;
    }
    let (_, answer) = ask(&harbor.broker(), "b").await;
    assert_eq!(answer.status, 201, "nothing half-done stands in the way");
    assert!(harbor.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_on_one_database_agree() {
    let url = Postgres::shared().database();
    let sites = [("23420-23429", "node_1"), ("23420-23429", "node_2")].map(|(ports, id)| {
        let site = Site::new(ports, &section(&url));
        let config = std::fs::read_to_string(site.config()).unwrap();
        // On one machine each binds the port on an address of its own.
        let listen = format!("id = {id:?}\nlisten = [\"127.0.0.{}\"]", &id[5..]);
        std::fs::write(site.config(), config.replace("id = \"harbor_node_1\"", &listen)).unwrap();
        site
    });
    let (one, other) = (sites[0].serve().await, sites[1].serve().await);
    provision(&one, "a", PLAN_TCP).await;
    let (_, answer) = ask(&other.broker(), "a").await;
    assert_eq!(answer.status, 200, "the other node knows it");
    eventually_async("the other node listens too", || async {
        (status(&other).await["listeners"]["bound"] == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_shown_nowhere() {
    let server = Postgres::shared();
    server.sql("postgres", "CREATE DATABASE secret");
    let password = percent_encoding::utf8_percent_encode(PASSWORD, percent_encoding::NON_ALPHANUMERIC).to_string();
    let url = format!("postgres://{USER}:{password}@127.0.0.1:{}/secret?sslmode=prefer", server.port());
    let site = Site::new("23430-23439", &section(&url));
    let config = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), config.replace("\"debug\"", "\"trace\"")).unwrap();
    let shown = format!("postgres://{USER}@127.0.0.1:{}/secret", server.port());
    let mut texts = Vec::new();
    for (command, database) in [("migrate", "secret"), ("check-config", "secret"), ("migrate", "missing")] {
        let url = url.replace("secret", database);
        let output = site.command(&[command]).env("HARBOR_STORE__URL", &url).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(database == "missing" || text.contains(&shown), "{text}");
        texts.push(text);
    }
    assert_eq!(texts[0], format!("The store {shown} has been made, at version {SCHEMA_VERSION}.\n"));
    let harbor = site.serve().await;
    provision(&harbor, "a", PLAN_TCP).await;
    texts.push(status(&harbor).await.to_string());
    texts.push(harbor.log());
    assert!(harbor.terminate().success());
    for text in texts {
        assert!(!text.contains(&password) && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn a_url_that_would_not_mean_what_it_says_is_found_before_it_is_used() {
    let site = Site::new("23440-23449", "");
    for command in ["check-config", "migrate"] {
        let mut command = site.command(&[command]);
        let url = "postgres://harbor:hunter2@db.example.com/harbor?connect_timeout=5";
        let output = command.env("HARBOR_STORE__URL", url).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.starts_with("harbor: store.url has the parameter \"connect_timeout\", which is none of "),
            "{said}"
        );
        assert!(!output.status.success() && !said.contains("hunter2"), "{said}");
    }
}

#[tokio::test]
async fn over_tls_each_shows_the_other_who_it_is() {
    let files = tempfile::tempdir().unwrap();
    let authority = authority();
    for name in ["server", "node"] {
        issue(&authority, files.path(), name);
    }
    let read = |name: &str| std::fs::read_to_string(files.path().join(name)).unwrap();
    std::fs::write(files.path().join("ca.pem"), authority.pem()).unwrap();
    let server = Postgres::start_with(
        "ssl = on\nssl_cert_file = 'server.pem'\nssl_key_file = 'server.key'\nssl_ca_file = 'ca.pem'",
        &[
            ("server.pem", &read("server.pem")),
            ("server.key", &read("server.key")),
            ("ca.pem", &authority.pem()),
            ("pg_hba.conf", "local all all trust\nhostssl all all 127.0.0.1/32 trust clientcert=verify-ca\n"),
        ],
    );
    server.sql("postgres", "CREATE DATABASE d");
    let path = |name: &str| files.path().join(name).display().to_string();
    let (ca, identity) = (
        format!("&sslrootcert={}", path("ca.pem")),
        format!("&sslcert={}&sslkey={}", path("node.pem"), path("node.key")),
    );
    let url = |host: &str, mode: &str, more: &str| {
        format!("postgres://{USER}@{host}:{}/d?sslmode={mode}{more}", server.port())
    };
    let right = url("127.0.0.1", "verify-full", &format!("{ca}{identity}"));
    let store = open(&right).await.unwrap();
    made(&store, &instance("i", 20_000)).await;
    let encrypted = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl AND \
        application_name = 'harbor' AND version LIKE 'TLSv1.%'";
    assert!(server.sql("postgres", encrypted).trim().parse::<u32>().unwrap() >= 1);
    let mut feed = store.feed().await.unwrap();
    made(&store, &instance("j", 20_001)).await;
    assert_eq!(feed.next().await, Hint::Desired);
    store.close().await;
    // The certificate is for 127.0.0.1.
    open(&url("localhost", "verify-ca", &format!("{ca}{identity}"))).await.unwrap().close().await;
    for (url, reason) in [
        (url("localhost", "verify-full", &format!("{ca}{identity}")), "not valid for name"),
        (url("127.0.0.1", "verify-full", &identity), "UnknownIssuer"),
        (url("127.0.0.1", "require", &format!("&sslrootcert={}{identity}", path("node.pem"))), "UnknownIssuer"),
        (url("127.0.0.1", "verify-full", &ca), "certificate"),
        (url("127.0.0.1", "disable", ""), "no pg_hba.conf entry"),
        (
            url("127.0.0.1", "verify-full", &format!("&sslrootcert=/no/ca.pem{identity}")),
            "(/no/ca.pem: No such file or directory (os error 2)): correct the name of this file in store.url",
        ),
        (
            url("127.0.0.1", "verify-full", &format!("{ca}&sslcert={}&sslkey=/tmp", path("node.pem"))),
            "(/tmp: Is a directory (os error 21)): correct the name of this file in store.url",
        ),
    ] {
        let said = refusal(&url).await;
        assert!(said.contains(reason), "{url}: {said}");
    }
}

#[tokio::test]
async fn a_certificate_that_signs_itself_is_believed_unless_it_is_that_of_an_authority() {
    let files = tempfile::tempdir().unwrap();
    let certificate = files.path().join("server.pem").display().to_string();
    for (is_ca, refused) in [(IsCa::NoCa, false), (IsCa::Ca(BasicConstraints::Unconstrained), true)] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.is_ca = is_ca;
        let pem = params.self_signed(&key).unwrap().pem();
        std::fs::write(&certificate, &pem).unwrap();
        let server = Postgres::start_with(
            "ssl = on\nssl_cert_file = 'server.pem'\nssl_key_file = 'server.key'",
            &[
                ("server.pem", &pem),
                ("server.key", &key.serialize_pem()),
                ("pg_hba.conf", "local all all trust\nhostssl all all 127.0.0.1/32 trust\n"),
            ],
        );
        server.sql("postgres", "CREATE DATABASE d");
        let (port, mode) = (server.port(), "sslmode=verify-full");
        let opened = open(&format!("postgres://{USER}@127.0.0.1:{port}/d?{mode}&sslrootcert={certificate}")).await;
        match opened {
            Ok(store) => {
                assert!(!refused);
                store.close().await;
            }
            Err(error) => {
                let said = error.to_string();
                assert!(refused && said.contains("CaUsedAsEndEntity") && said.contains("CA:FALSE"), "{said}");
            }
        }
    }
}
