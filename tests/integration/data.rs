//! `harbor data`: what one store holds, in a file and in another store; by real processes, on both engines.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use harbor::{
    app::clock::SystemClock,
    model::{Clock as _, plan::SERVICE_ID},
    store::Dump,
};
use hyper::Method;
use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};
use tokio_util::sync::CancellationToken;

use crate::{
    end_to_end::PLAN_TCP,
    support::{
        harbor::{Harbor, Site},
        http::Client,
        postgres::Postgres,
    },
};

/// What a command said: standard output, and standard error where it failed.
fn run(site: &Site, arguments: &[&str]) -> Result<String, String> {
    let output = site.command(arguments).current_dir(site.path()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    match output.status.code() {
        Some(0) => Ok(text(output.stdout)),
        code => Err(format!("{}exit code {}", text(output.stderr), code.unwrap())),
    }
}

fn export(site: &Site, file: &str) -> PathBuf {
    let said = run(site, &["data", "export", "--with-secrets", file]).unwrap();
    assert!(said.ends_with(", with the announce secret: keep it as you keep passwords.\n"), "{said}");
    site.path().join(file)
}

fn import(site: &Site, file: &Path) -> Result<String, String> {
    run(site, &["data", "import", file.to_str().unwrap()])
}

fn body(more: &Value) -> Value {
    let mut body = json!({
        "service_id": SERVICE_ID, "plan_id": PLAN_TCP, "organization_guid": "org", "space_guid": "space",
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn provision(client: &Client, id: &str) {
    let answer = client.put(&format!("/v2/service_instances/{id}"), &body(&json!({}))).await;
    assert_eq!(answer.status, 201, "{answer:?}");
}

async fn deprovision(client: &Client, id: &str) {
    let path = format!("/v2/service_instances/{id}?service_id={SERVICE_ID}&plan_id={PLAN_TCP}");
    assert_eq!(client.send(Method::DELETE, &path, None).await.status, 200);
}

/// The credentials of an app that is bound; the same for who asks again.
async fn credentials(node: &Harbor, id: &str) -> Value {
    let body = body(&json!({ "bind_resource": { "app_guid": "app" } }));
    let answer = node.broker().put(&format!("/v2/service_instances/{id}/service_bindings/of-{id}"), &body).await;
    assert!(answer.status.is_success(), "{answer:?}");
    answer.json()["credentials"].clone()
}

#[tokio::test]
async fn a_store_moves_to_postgresql_and_back_and_is_the_same_to_the_byte() {
    let first = Site::new("30000-30009", "");
    let node = first.serve().await;
    let client = node.broker();
    for id in ["a", "b", "gone"] {
        provision(&client, id).await;
    }
    let told = credentials(&node, "a").await;
    assert!(told["announce"]["token"].is_string());
    deprovision(&client, "gone").await;
    let running = fs::read(export(&first, "running")).unwrap();
    assert!(node.terminate().success());
    assert_eq!(fs::read(export(&first, "stopped")).unwrap(), running, "a node that ends changes nothing");

    let mut connection = SqliteConnectOptions::new().filename(first.data().join("harbor.db")).connect().await.unwrap();
    for statement in [
        "INSERT INTO settings VALUES ('forwarder', 'max_sockets', '1000', 'root', 1, 2)",
        "INSERT INTO settings_history VALUES (1, 'forwarder', 'max_sockets', NULL, 'root', 1)",
    ] {
        sqlx::query(statement).execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
    let moved = export(&first, "moved");

    let second = Site::new("30000-30009", "").with("store.url", &Postgres::shared().database());
    let said = import(&second, &moved).unwrap();
    assert!(said.starts_with("Imported 2 service instances and 1 binding, of revision "), "{said}");
    assert_eq!(fs::read(export(&second, "there")).unwrap(), fs::read(&moved).unwrap());
    let node = second.serve().await;
    assert_eq!(credentials(&node, "a").await, told, "its port, and its token");
    provision(&node.broker(), "c").await;
    assert!(node.terminate().success());
    let there = export(&second, "there");

    let third = Site::new("30000-30009", "");
    let said = import(&third, &there).unwrap();
    assert!(said.starts_with("Imported 3 service instances and 1 binding, of revision "), "{said}");
    assert_eq!(fs::read(export(&third, "back")).unwrap(), fs::read(&there).unwrap());
    let node = third.serve().await;
    assert_eq!(credentials(&node, "a").await, told);
    assert!(node.terminate().success());
}

/// Exports again and again while the node works, at ten moments or more: each is whole and of one of them.
async fn export_under_load(site: &Site) {
    let node = site.serve().await;
    let (client, enough) = (node.broker(), CancellationToken::new());
    let load = async {
        for number in 0.. {
            if enough.is_cancelled() {
                break;
            }
            let id = format!("passing-{number}");
            provision(&client, &id).await;
            credentials(&node, &id).await;
            deprovision(&client, &id).await;
        }
    };
    let exports = async {
        let mut moments = BTreeSet::new();
        while moments.len() < 10 {
            let command = site.command(&["data", "export"]);
            let output = tokio::process::Command::from(command).output().await.unwrap();
            assert!(output.status.success(), "{output:?}");
            let dump = Dump::read(&output.stdout).unwrap();
            assert!(moments.last().is_none_or(|last| dump.revision >= *last), "{} after {moments:?}", dump.revision);
            moments.insert(dump.revision);
        }
        enough.cancel();
    };
    tokio::join!(load, exports);
    assert!(node.terminate().success());
    // This checks the whole of a SQLite database.
    run(site, &["migrate"]).unwrap();
}

#[tokio::test]
async fn a_node_on_sqlite_is_exported_while_it_works() {
    export_under_load(&Site::new("30010-30019", "")).await;
}

#[tokio::test]
async fn nodes_on_postgresql_are_exported_while_they_work() {
    export_under_load(&Site::new("30020-30029", "").with("store.url", &Postgres::shared().database())).await;
}

#[tokio::test]
async fn a_store_that_is_in_use_or_holds_something_is_not_filled() {
    let source = Site::new("30030-30039", "");
    run(&source, &["migrate"]).unwrap();
    let file = export(&source, "nothing");
    for (site, in_use) in [
        (Site::new("30030-30039", ""), "is in use by process"),
        (
            Site::new("30030-30039", "").with("store.url", &Postgres::shared().database()),
            "is not empty (harbor_node_1 was heard on it a moment ago), and was left as it is",
        ),
    ] {
        let node = site.serve().await;
        provision(&node.broker(), "a").await;
        let before = fs::read(export(&site, "before")).unwrap();
        let refusal = import(&site, &file).unwrap_err();
        assert!(refusal.contains(in_use) && refusal.ends_with("exit code 1"), "{refusal}");
        assert!(node.terminate().success());
        let refusal = import(&site, &file).unwrap_err();
        assert!(refusal.contains("is not empty") && refusal.contains("was left as it is"), "{refusal}");
        assert_eq!(fs::read(export(&site, "after")).unwrap(), before);
    }
}

#[tokio::test]
async fn what_is_not_sound_makes_no_store() {
    let source = Site::new("30040-30049", "");
    let node = source.serve().await;
    provision(&node.broker(), "a").await;
    let whole = fs::read(export(&source, "whole")).unwrap();
    let to_read = run(&source, &["data", "export", "--format", "json"]).unwrap();
    assert!(node.terminate().success());
    let secret = String::from_utf8(whole.clone()).unwrap();
    let secret = secret.split_once("\"announce_secret\":\"").unwrap().1.split('"').next().unwrap();
    assert_eq!(serde_json::from_str::<Value>(&to_read).unwrap()["service_instances"][0]["id"], "a");
    assert!(!to_read.contains(secret));

    let site = Site::new("30040-30049", "");
    let file = site.path().join("file");
    for (bytes, expected) in [
        (&whole[..whole.len() / 2], "it was cut short"),
        (&whole[..whole.len() - 1], "it was cut short"),
        (&whole[whole.len() / 2..], "this is no export of Harbor"),
        (to_read.as_bytes(), "this is the form to read"),
    ] {
        fs::write(&file, bytes).unwrap();
        let refusal = import(&site, &file).unwrap_err();
        assert!(refusal.contains(expected) && refusal.ends_with("exit code 1"), "{refusal}");
    }
    assert!(!site.data().exists(), "nothing was opened");
    let refusal = run(&site, &["data", "export"]).unwrap_err();
    assert!(refusal.contains("holds nothing yet"), "{refusal}");
    assert!(!site.data().exists(), "and nothing is made by an export");
}

#[tokio::test]
async fn an_export_that_cannot_be_whole_fails_and_says_which_row_stands_in_the_way() {
    let url = Postgres::shared().database();
    for site in [Site::new("30060-30069", ""), Site::new("30060-30069", "").with("store.url", &url)] {
        let node = site.serve().await;
        for id in ["a", "b"] {
            provision(&node.broker(), id).await;
        }
        credentials(&node, "a").await;
        assert!(node.terminate().success());
        let whole = fs::read(export(&site, "backup")).unwrap();

        let mut sqlite = None;
        if site.data().join("harbor.db").exists() {
            let options = SqliteConnectOptions::new().filename(site.data().join("harbor.db"));
            sqlite = Some(options.connect().await.unwrap());
        }
        for (damage, repair, expected) in [
            (
                r#"UPDATE service_instances SET settings = '{"colour":"red"}' WHERE id = 'b'"#,
                "UPDATE service_instances SET settings = '{}' WHERE id = 'b'",
                r#"the service instance "b" cannot be understood (unknown field `colour`"#,
            ),
            (
                "UPDATE bindings SET app_id = ''",
                "UPDATE bindings SET app_id = 'app'",
                r#"the binding "of-a" cannot be understood (an app id must have"#,
            ),
            (
                "INSERT INTO tombstones VALUES ('binding', '', 1)",
                "DELETE FROM tombstones WHERE id = ''",
                r#"the deletion of "" cannot be understood (a binding id must have"#,
            ),
            (
                r#"INSERT INTO pools VALUES ('later', '{"colour":"red"}', 1)"#,
                "DELETE FROM pools WHERE name = 'later'",
                r#"the pool "later" cannot be understood (unknown field `colour`"#,
            ),
        ] {
            let mut change = async |statement: &'static str| match &mut sqlite {
                Some(connection) => {
                    sqlx::query(statement).execute(connection).await.unwrap();
                }
                None => {
                    Postgres::shared().sql_at(&url, statement);
                }
            };
            change(damage).await;
            let refusal = run(&site, &["data", "export", "backup"]).unwrap_err();
            assert!(refusal.contains(expected) && refusal.ends_with("exit code 1"), "{refusal}");
            assert!(refusal.contains("export by the version of Harbor that wrote it"), "{refusal}");
            assert_eq!(run(&site, &["data", "export"]).unwrap_err(), refusal, "and nothing is put out");
            assert_eq!(fs::read(site.path().join("backup")).unwrap(), whole, "the last backup is left as it was");
            change(repair).await;
        }
        assert_eq!(fs::read(export(&site, "backup")).unwrap(), whole);
        if let Some(connection) = sqlite {
            connection.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_file_is_private_and_takes_its_place_whole() {
    let site = Site::new("30050-30059", "");
    run(&site, &["migrate"]).unwrap();
    let file = export(&site, "backup");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    export(&site, "backup");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600, "also in place of another");
    run(&site, &["data", "export", "bare"]).unwrap();
    let bare = site.path().join("bare");
    assert_eq!(fs::metadata(&bare).unwrap().permissions().mode() & 0o7777, 0o600, "also without secrets");
    fs::remove_file(bare).unwrap();
    let on_output = run(&site, &["data", "export", "-"]).unwrap();
    assert_eq!(on_output.as_bytes(), fs::read(&file).unwrap());

    for (place, expected) in [
        ("data/harbor.db", "there is something that is no export"),
        ("data", "it is not a file"),
        ("nowhere/backup", "No such file or directory"),
    ] {
        let refusal = run(&site, &["data", "export", place]).unwrap_err();
        assert!(refusal.contains(&format!("cannot write {place}: {expected}")), "{refusal}");
    }
    let left = fs::read_dir(site.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(left.len(), 3, "{left:?}");
}

/// Announces by a token; the status of the answer.
async fn announce(node: &Harbor, id: &str, token: &Value) -> u16 {
    let client = Client::new(node.address("announce"));
    let client = client.with("authorization", &format!("Bearer {}", token.as_str().unwrap()));
    let body = json!({ "binding_id": format!("of-{id}"), "port": 1024 });
    client.put(&format!("/announce/v1/instances/{id}"), &body).await.status.as_u16()
}

#[tokio::test]
async fn the_secret_is_exported_only_when_asked_for_and_an_import_without_it_makes_a_new_one() {
    let first = Site::new("30080-30089", "");
    let node = first.serve().await;
    provision(&node.broker(), "a").await;
    let told = credentials(&node, "a").await;
    assert_eq!(announce(&node, "a", &told["announce"]["token"]).await, 200);
    let said = run(&first, &["data", "export", "bare"]).unwrap();
    assert!(said.ends_with(", without the announce secret (--with-secrets).\n"), "{said}");
    let (bare, whole) = (first.path().join("bare"), export(&first, "whole"));
    assert!(node.terminate().success());
    let lines = |file: &Path| fs::read_to_string(file).unwrap().lines().map(String::from).collect::<Vec<_>>();
    let (bare_lines, whole_lines) = (lines(&bare), lines(&whole));
    assert!(!bare_lines.iter().any(|line| line.contains("announce_secret")));
    assert_eq!(bare_lines.len() + 1, whole_lines.len(), "nothing else is left out");
    let refusal = run(&first, &["data", "export", "--with-secrets", "--format", "json"]).unwrap_err();
    assert!(refusal.contains("the form to read never has a secret") && refusal.ends_with("exit code 2"), "{refusal}");

    for site in
        [Site::new("30080-30089", ""), Site::new("30080-30089", "").with("store.url", &Postgres::shared().database())]
    {
        let said = import(&site, &bare).unwrap();
        assert!(said.contains("It came without the announce secret, so a new one is made"), "{said}");
        let node = site.serve().await;
        let new = credentials(&node, "a").await;
        assert_eq!(new["port"], told["port"]);
        assert_ne!(new["announce"]["token"], told["announce"]["token"]);
        assert_eq!(announce(&node, "a", &told["announce"]["token"]).await, 401);
        assert_eq!(announce(&node, "a", &new["announce"]["token"]).await, 200);
        assert!(node.terminate().success());
    }
    let site = Site::new("30080-30089", "");
    let said = import(&site, &whole).unwrap();
    assert!(!said.contains("secret"), "{said}");
    let node = site.serve().await;
    assert_eq!(announce(&node, "a", &told["announce"]["token"]).await, 200);
    assert!(node.terminate().success());
}

/// Asks for a service instance, perhaps with this very port, for another space.
async fn ask_for(client: &Client, id: &str, port: Option<u64>) -> u16 {
    let mut body = body(&json!({ "parameters": {} }));
    body["space_guid"] = json!("another");
    if let Some(port) = port {
        body["parameters"]["port"] = json!(port);
    }
    client.put(&format!("/v2/service_instances/{id}"), &body).await.status.as_u16()
}

#[tokio::test]
async fn what_the_platform_has_deleted_since_a_backup_stays_deleted_and_its_port_rests() {
    let of = |url: Option<String>| {
        let site = Site::new("30070-30073", "").with("harbor_node.quarantine", "1h");
        url.into_iter().fold(site, |site, url| site.with("store.url", &url))
    };
    let first = of(None);
    let node = first.serve().await;
    let mut ports = Vec::new();
    for id in ["rested", "kept", "gone"] {
        provision(&node.broker(), id).await;
        ports.push(credentials(&node, id).await["port"].as_u64().unwrap());
    }
    deprovision(&node.broker(), "rested").await;
    let backup = export(&first, "backup");
    // What becomes of it after that, the backup does not know.
    deprovision(&node.broker(), "gone").await;
    assert!(node.terminate().success());

    let listing = first.path().join("platform.json");
    let write = |total: usize, ids: &[&str], written: SystemTime| {
        let resources = ids.iter().map(|id| json!({ "guid": id })).collect::<Vec<_>>();
        let page = json!({ "pagination": { "total_results": total, "next": null }, "resources": resources });
        fs::write(&listing, page.to_string()).unwrap();
        fs::File::options().write(true).open(&listing).unwrap().set_modified(written).unwrap();
    };
    let now = UNIX_EPOCH + Duration::from_secs(u64::try_from(SystemClock.wall().seconds()).unwrap());
    let later = now + Duration::from_secs(600);
    let import =
        |site: &Site| run(site, &["data", "import", backup.to_str().unwrap(), "--known-to", listing.to_str().unwrap()]);
    for (total, ids, code, expected) in [
        (3, &["kept", "of-another-broker"][..], 2, "it is cut short, with 2 of 3 service instances"),
        (0, &[], 2, "it has no service instance at all"),
        (1, &["of-another-broker"], 1, "the platform knows none of the 2 service instances in it"),
    ] {
        write(total, ids, later);
        let site = of(None);
        let refusal = import(&site).unwrap_err();
        assert!(refusal.contains(expected) && refusal.ends_with(&format!("exit code {code}")), "{refusal}");
        assert!(!site.data().exists(), "nothing was opened");
    }
    // Who was provisioned after the listing was written may be missing there.
    write(1, &["kept"], now);
    let said = import(&of(None)).unwrap();
    assert!(said.contains("1 were kept that ") && said.contains("may be younger than it"), "{said}");

    write(2, &["kept", "of-another-broker"], later);
    for site in [of(None), of(Some(Postgres::shared().database()))] {
        let said = import(&site).unwrap();
        assert!(said.starts_with("Imported 1 service instance and 1 binding, of revision "), "{said}");
        let expected = format!("their ports rest from now on:\n  port {} of default: gone\n", ports[2]);
        assert!(said.contains("1 were left out, as ") && said.ends_with(&expected), "{said}");
        let node = site.serve().await;
        let client = node.broker();
        let status = node.admin().get("/admin/v1/status").await.json();
        assert_eq!((&status["pools"][0]["quarantined"], &status["pools"][0]["allocated"]), (&json!(2), &json!(1)));
        for port in [ports[0], ports[2]] {
            assert_eq!(ask_for(&client, "greedy", Some(port)).await, 400, "port {port}");
        }
        assert_eq!(ask_for(&client, "last", None).await, 201, "one is free");
        assert_ne!(ask_for(&client, "none", None).await, 201, "the others rest");
        assert_eq!(credentials(&node, "kept").await["port"].as_u64(), Some(ports[1]));
        // The platform may ask once more for what it has deleted.
        let path = format!("/v2/service_instances/gone?service_id={SERVICE_ID}&plan_id={PLAN_TCP}");
        assert_eq!(client.send(Method::DELETE, &path, None).await.status, 410);
        assert!(node.terminate().success());
    }

    let site = of(None);
    let said = run(&site, &["data", "import", backup.to_str().unwrap()]).unwrap();
    assert!(
        said.contains("Ports that were freed since the export are allocated again: an import --known-to"),
        "{said}"
    );
}
