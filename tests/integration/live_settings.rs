//! Live settings: set by the command line, held by every node without a restart, and told with who and when.

mod judged;

use std::process::Stdio;

use harbor::{
    config::{Change, KEYS},
    model::plan::SERVICE_ID,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::net::TcpStream;

use crate::{
    cluster::trio::{Trio, port_of, put, reach},
    end_to_end::{PLAN_TCP, at, bind, provision},
    openapi::is_of_the_configuration,
    support::{
        echo::{Echo, over_tcp, tell},
        eventually::eventually_async,
        harbor::{Harbor, Site},
        http::Client,
        postgres::Postgres,
    },
};

/// How often an operator tries again while the store is away.
const PATIENCE: usize = 20;

/// What `harbor config …` says, and with which exit code it ends.
fn config(site: &Site, node: &Harbor, arguments: &[&str]) -> (i32, String, String) {
    let mut command = site.command(&[&["config"], arguments].concat());
    command.env("HARBOR_ADMIN_URL", reach(node)).env("USER", "tester").env_remove("SUDO_USER");
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().expect("it is built");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (output.status.code().expect("it ends"), text(output.stdout), text(output.stderr))
}

/// What it says when all is fine; a database that many tests share may be slow for a moment.
#[track_caller]
fn fine(site: &Site, node: &Harbor, arguments: &[&str]) -> String {
    for _ in 0..PATIENCE {
        match config(site, node, arguments) {
            (0, stdout, stderr) if stderr.is_empty() => return stdout,
            (1, _, stderr) if stderr.contains("The store is away") => {}
            other => panic!("{arguments:?}: {other:?}"),
        }
    }
    panic!("{arguments:?}: the store stays away");
}

#[track_caller]
fn refused(site: &Site, node: &Harbor, arguments: &[&str], code: i32, words: &str) {
    assert_eq!(config(site, node, arguments), (code, String::new(), format!("harbor: {words}\n")), "{arguments:?}");
}

fn json_of(site: &Site, node: &Harbor, arguments: &[&str]) -> Value {
    serde_json::from_str(&fine(site, node, arguments)).expect("JSON")
}

/// What a key is on a node.
async fn key(node: &Harbor, section: &str, key: &str) -> Value {
    let all = node.admin().get("/admin/v1/config").await.json();
    let all = all["keys"].as_array().expect("a list").clone();
    all.into_iter().find(|known| known["section"] == section && known["key"] == key).expect("it is a key")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_setting_holds_at_once_outlives_a_restart_and_is_taken_back() {
    let began = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap();
    let site = Site::new("29600-29604", "");
    let node = site.serve().await;
    assert_eq!(fine(&site, &node, &["get", "harbor_node", "port_range"]), "29600-29604\n");
    assert_eq!(fine(&site, &node, &["get", "harbor_node.int_port"]), "4100\n");
    let section = fine(&site, &node, &["get", "harbor_node"]);
    assert!(section.starts_with("id: harbor_node_1\n") && section.contains("\nport_range: 29600-29604\n"), "{section}");
    is_of_the_configuration("Configuration", &json_of(&site, &node, &["get", "harbor_node", "--json"]));

    let said = fine(&site, &node, &["set", "harbor_node", "port_range", "29605 - 29609"]);
    assert!(said.starts_with("harbor_node.port_range is 29605 - 29609 (live by tester@"), "{said}");
    put(&node, "a", "").await;
    assert!((29_605..=29_609).contains(&port_of(&node, "a").await));
    let named = json_of(&site, &node, &["set", "harbor_node.hostname_external", "new.example.com", "--json"]);
    is_of_the_configuration("ConfigurationChanged", &named);
    let binding = "/v2/service_instances/a/service_bindings/key-a";
    let name = |answer: Value| answer["credentials"]["hostname_external"].clone();
    assert_eq!(name(node.broker().get(binding).await.json()), "new.example.com");

    let node = {
        assert!(node.terminate().success());
        site.serve().await
    };
    assert_eq!(fine(&site, &node, &["get", "harbor_node.port_range"]), "29605 - 29609\n");
    let live = json_of(&site, &node, &["get", "harbor_node.port_range", "--json"]);
    assert_eq!(
        (&live["source"], &live["change"], &live["default"]),
        (&json!("live"), &json!("live"), &json!("35000-40000"))
    );
    assert!(live["changed_by"].as_str().unwrap().starts_with("tester@") && live["changed_at"].is_string(), "{live}");
    is_of_the_configuration("ConfigurationKey", &live);
    is_of_the_configuration("Configuration", &json_of(&site, &node, &["list", "--json"]));

    fine(&site, &node, &["unset", "harbor_node", "hostname_external"]);
    assert_eq!(name(node.broker().get(binding).await.json()), "ext-services.example.com");
    let back = fine(&site, &node, &["unset", "harbor_node.port_range"]);
    assert!(back.starts_with("harbor_node.port_range is 29600-29604 (file "), "{back}");
    put(&node, "b", "").await;
    assert!((29_600..=29_604).contains(&port_of(&node, "b").await));

    let history = json_of(&site, &node, &["history", "--json"]);
    is_of_the_configuration("SettingsHistory", &history);
    let ended = OffsetDateTime::now_utc();
    for change in history["changes"].as_array().unwrap() {
        assert!(change["by"].as_str().unwrap().starts_with("tester@"), "{change}");
        let at = OffsetDateTime::parse(change["at"].as_str().unwrap(), &Rfc3339).unwrap();
        assert!((began..=ended).contains(&at), "{change}, between {began} and {ended}");
    }
    let told =
        |change: &Value| (change["key"].as_str().unwrap().to_owned(), change["value"].as_str().map(str::to_owned));
    let changes = history["changes"].as_array().unwrap().iter().map(told).collect::<Vec<_>>();
    let entry = |key: &str, value: Option<&str>| (key.to_owned(), value.map(str::to_owned));
    let expected = [
        entry("port_range", None),
        entry("hostname_external", None),
        entry("hostname_external", Some("new.example.com")),
        entry("port_range", Some("29605 - 29609")),
    ];
    assert_eq!(changes, expected);
    assert_eq!(fine(&site, &node, &["history", "harbor_node.port_range"]).lines().count(), 3);
    assert_eq!(fine(&site, &node, &["history", "log"]), "Nothing was changed.\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_live_setting_hides_or_makes_questionable_is_told() {
    let site = Site::new("29690-29692", "").with("broker.listen", "127.0.0.1:29693");
    let node = site.serve().await;
    let warned = json_of(&site, &node, &["set", "harbor_node", "port_range", "29690-29694", "--json"]);
    let own = "broker.listen takes port 29693, which is in the range of pool default: nobody can be given it";
    assert_eq!(warned["warnings"], json!([own]));
    let other = json_of(&site, &node, &["set", "harbor_node", "host_external", "192.0.43.11", "--json"]);
    assert_eq!(other["warnings"], json!([]), "they are told once");
    let place = format!("{}:26:17", site.config().display());
    let hidden = |text: &str| json!({ "value": text, "place": place });
    assert_eq!(key(&node, "harbor_node", "host_external").await["beneath"], hidden("192.0.43.10"));
    let edit = |from: &str, to: &str| {
        let text = std::fs::read_to_string(site.config()).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(site.config(), text.replace(from, to)).unwrap();
        node.signal(Signal::HUP);
    };
    edit("192.0.43.10", "192.0.43.12");
    let told = serde_json::from_str::<Value>(&node.logged("harbor_node.host_external is set live")).unwrap();
    let fields = &told["fields"];
    assert_eq!(
        (&told["level"], &fields["written"], &fields["live"]),
        (&json!("WARN"), &json!("192.0.43.12"), &json!("192.0.43.11"))
    );
    let shown = fine(&site, &node, &["list", "harbor_node"]);
    assert!(shown.contains(&format!("; {place} says 192.0.43.12\n")), "{shown}");
    // What was told is not told again.
    edit("ext-services.example.com", "new.example.com");
    eventually_async("the other change is taken over", || async {
        (key(&node, "harbor_node", "hostname_external").await["value"] == "new.example.com").then_some(())
    })
    .await;
    assert_eq!(node.log().matches("harbor_node.host_external is set live").count(), 1);
    fine(&site, &node, &["unset", "harbor_node", "host_external"]);
    let now = key(&node, "harbor_node", "host_external").await;
    assert_eq!((&now["value"], &now["beneath"]), (&json!("192.0.43.12"), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_set_is_refused_with_what_to_do_and_changes_nothing() {
    let site = Site::new("29610-29614", "[pools.games]\nport_range = \"29615-29619\"\nhost = \"10.0.0.5\"\n");
    let node = site.serve().await;
    let before = node.admin().get("/admin/v1/config").await.json();
    let range = "harbor_node.port_range";
    for (arguments, code, words) in [
        (
            &["set", range, "22-80"][..],
            2,
            "Live setting harbor_node.port_range: port 22 is below 1024: ports 0 to 1023 cannot be given out.",
        ),
        (
            &["set", range, "29612-29615"],
            2,
            "port 29615 is in the ranges of both default and games, which this node serves: change one",
        ),
        (
            &["set", "harbor_node", "colour", "red"],
            2,
            "There is no key harbor_node.colour: `harbor config list` shows all.",
        ),
        (
            &["set", "harbor_node.data_dir", "/tmp"],
            2,
            "harbor: harbor_node.data_dir is read at the start alone: change it in the file or the environment, and restart Harbor.",
        ),
        (
            &["set", "broker", "password", "hunter2"],
            2,
            "harbor: broker.password cannot be changed so: change it in the file or the environment, and send SIGHUP.",
        ),
        (
            &["unset", range],
            1,
            "harbor: harbor_node.port_range is not set live: `harbor config get harbor_node port_range` says where it comes from.",
        ),
        (
            &["set", "forwarder.drain_timeout", "soon"],
            2,
            "Live setting forwarder.drain_timeout: \"soon\" is not a duration: write for example \"120s\" or \"15m\".",
        ),
        (
            &["set", "pools.default.int_port", "1"],
            2,
            "The pool default is that of [harbor_node]: set harbor_node.int_port.",
        ),
        (
            &["get", "port_range"],
            2,
            "which key? Write for example `harbor_node port_range` or `harbor_node.port_range`",
        ),
        (&["unset", "harbor_node.colour"], 2, "There is no key harbor_node.colour: `harbor config list` shows all."),
        (&["get", "harbor_node.colour"], 2, "there is no key harbor_node.colour: `harbor config list` shows all"),
        (&["history", "--limit", "0"], 2, "error: invalid value '0' for '--limit <COUNT>'"),
        (&["list", "harbour"], 2, "there is no section \"harbour\": `harbor config list` shows all"),
    ] {
        let (found, stdout, stderr) = config(&site, &node, arguments);
        assert_eq!((found, stdout.as_str()), (code, ""), "{arguments:?}: {stderr}");
        assert!(stderr.contains(words), "{arguments:?}: {stderr}");
    }
    refused(&site, &node, &["list", "harbour"], 2, "there is no section \"harbour\": `harbor config list` shows all");
    assert_eq!(node.admin().get("/admin/v1/config").await.json(), before);
    assert_eq!(json_of(&site, &node, &["history", "--json"]), json!({ "changes": [] }));
    assert!(!fine(&site, &node, &["list"]).contains("secret"), "a password is never shown");

    // Nobody without the token gets an answer, and nothing else than the form is taken.
    let address = node.address("admin");
    let bare = Client::new(address);
    assert_eq!(bare.get("/admin/v1/config").await.status, 401);
    for body in [json!({}), json!({ "changes": [] }), json!({ "changes": [{ "section": "log" }] })] {
        let answer = node.admin().patch("/admin/v1/config", &body).await;
        assert_eq!(answer.status, 400, "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_one_request_hold_together() {
    let site = Site::new("29620-29624", "");
    let node = site.serve().await;
    let set = |key: &str, value: &str| json!({ "section": "harbor_node", "key": key, "value": value });
    let patch = async |changes: Value| node.admin().patch("/admin/v1/config", &json!({ "changes": changes })).await;
    let answer = patch(json!([set("int_port", "4200"), set("quarantine", "never")])).await;
    assert_eq!(answer.status, 422);
    assert_eq!(key(&node, "harbor_node", "int_port").await["source"], "default");
    let answer = patch(json!([set("int_port", "4200"), set("quarantine", "1h")])).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["keys"].as_array().map(Vec::len), Some(2));
    let twice = patch(json!([set("int_port", "1"), set("int_port", "2")])).await;
    assert_eq!(twice.status, 422);
    assert_eq!(key(&node, "harbor_node", "int_port").await["value"], "4200");
    assert_eq!(key(&node, "harbor_node", "int_port").await["changed_by"], "operator", "who does not say is called so");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_takes_a_live_setting_over_and_keeps_what_its_file_has_beside() {
    let mut trio = Trio::start(Postgres::shared(), 2, "29630-29634").await;
    let set = |arguments: &[&str]| fine(&trio.sites[0], &trio.nodes[0], arguments);
    set(&["set", "harbor_node", "port_range", "29635-29639"]);
    set(&["set", "forwarder.idle_timeout_udp", "7s"]);
    for node in &trio.nodes {
        eventually_async("the node has it", || async {
            let (range, idle) = (key(node, "harbor_node", "port_range"), key(node, "forwarder", "idle_timeout_udp"));
            let (range, idle) = (range.await, idle.await);
            (range["value"] == "29635-29639" && range["source"] == "live" && idle["value"] == "7s").then_some(())
        })
        .await;
    }
    put(&trio.nodes[1], "a", "").await;
    assert!((29_635..=29_639).contains(&port_of(&trio.nodes[1], "a").await));

    // One that comes later has it from its start, though its file says otherwise.
    trio.add(2, "29630-29634", "").await;
    assert_eq!(key(&trio.nodes[2], "harbor_node", "port_range").await["value"], "29635-29639");
    let sites = &trio.sites;
    fine(&sites[2], &trio.nodes[2], &["unset", "harbor_node.port_range"]);
    for node in &trio.nodes {
        eventually_async("the file holds again", || async {
            (key(node, "harbor_node", "port_range").await["source"] == "file").then_some(())
        })
        .await;
        assert!(!node.log().contains("is not what the nodes have agreed on"), "{}", node.log());
    }
    put(&trio.nodes[0], "b", "").await;
    assert!((29_630..=29_634).contains(&port_of(&trio.nodes[0], "b").await));
}

#[tokio::test(flavor = "multi_thread")]
async fn options_come_where_they_like_and_a_value_with_a_hyphen_after_two() {
    let site = Site::new("29695-29699", "");
    let node = site.serve().await;
    let file = site.config().display().to_string();
    let said = fine(&site, &node, &["set", "harbor_node.hostname_external", "one.example.com", "--config", &file]);
    assert!(said.starts_with("harbor_node.hostname_external is one.example.com (live by "), "{said}");
    let told = json_of(&site, &node, &["set", "harbor_node", "hostname_external", "two.example.com", "--json"]);
    assert_eq!(told["keys"][0]["value"], "two.example.com");
    for words in [&["forwarder.max_connections_per_port"][..], &["forwarder", "max_connections_per_port"]] {
        let (code, _, stderr) = config(&site, &node, &[&["set"], words, &["-1"]].concat());
        assert!(code == 2 && stderr.contains("unexpected argument '-1'") && stderr.contains("'-- -1'"), "{stderr}");
        let words = [&["set"], words, &["--", "-1"]].concat();
        refused(
            &site,
            &node,
            &words,
            2,
            "Live setting forwarder.max_connections_per_port: this must be a number from 1 to 4294967295.",
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_many_change_at_once_are_all_kept() {
    let trio = Trio::start(Postgres::shared(), 2, "29640-29644").await;
    let keys = ["connect_timeout", "idle_timeout_tcp", "idle_timeout_udp", "drain_wait", "drain_timeout"];
    let change = async |node: &Harbor, key: &str| {
        let body = json!({ "changes": [{ "section": "forwarder", "key": key, "value": "9s" }] });
        eventually_async("it is taken", || async {
            let answer = node.admin().patch("/admin/v1/config", &body).await;
            assert!([200, 409, 503].contains(&answer.status.as_u16()), "{answer:?}");
            (answer.status == 200).then_some(())
        })
        .await;
    };
    let (a, b) = (&trio.nodes[0], &trio.nodes[1]);
    tokio::join!(change(a, keys[0]), change(b, keys[1]), change(a, keys[2]), change(b, keys[3]), change(a, keys[4]),);
    for node in &trio.nodes {
        for name in keys {
            eventually_async("the node has it", || async {
                (key(node, "forwarder", name).await["value"] == "9s").then_some(())
            })
            .await;
        }
    }
}

/// A value of each live key that is not what it is otherwise.
fn other_value(name: &str) -> &'static str {
    match name {
        "harbor_node.port_range" => "29655-29659",
        "pools.NAME.port_range" => "29665-29669",
        "plans.NAME.pool" => "default",
        "plans.NAME.protocol" => "udp",
        "plans.NAME.description" => "A port for games",
        "log.level" => "info,harbor::discovery=debug",
        "discovery.domain" => "other.example.com",
        _ if name.ends_with("_networks") || name.ends_with("_deny") || name.ends_with("proxy_from") => {
            "10.9.0.0/16, 10.10.0.0/16"
        }
        _ if name.contains("host") => "other.example.com",
        _ if name.ends_with("retired") || name.ends_with("choose_port") || name.ends_with("match_app") => "true",
        _ if name.contains("max_") && !name.contains("suspend") => "77",
        _ if name.ends_with("int_port") => "4444",
        _ => "77s",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_live_key_is_taken_over_without_a_restart() {
    let more = "[pools.games]\nport_range = \"29660-29664\"\nhost = \"10.0.0.5\"\n[plans.games]\npool = \"games\"\n\
                choose_port = false\nmatch_app = false\n";
    let site = Site::new("29650-29654", more);
    let node = site.serve().await;
    for known in KEYS.iter().filter(|known| known.change == Change::Live) {
        let (section, name) = known.name.rsplit_once('.').unwrap();
        let section = section.replace("NAME", "games");
        let value = other_value(known.name);
        fine(&site, &node, &["set", &section, name, value]);
        let told = key(&node, &section, name).await;
        assert_eq!((&told["value"], &told["source"]), (&json!(value), &json!("live")), "{}", known.name);
    }
    assert!(!node.log().contains("taken over in part"), "each holds at once");
    assert!(node.log().contains("the configuration was taken over"));
    // What is read at the start alone is told as what waits.
    let text = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), text + "[forwarder]\nworkers = 3\n").unwrap();
    node.signal(rustix::process::Signal::HUP);
    node.logged("taken over in part");
    let workers = key(&node, "forwarder", "workers").await;
    assert_eq!((&workers["value"], &workers["after_restart"]), (&json!("0"), &json!("3")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_live_shows_in_what_the_running_node_does() {
    let more = "[pools.games]\nport_range = \"29675-29679\"\nhost = \"10.0.0.5\"\n[plans.games]\npool = \"games\"\n";
    let site = Site::new("29670-29674", more).with("log.level", "info");
    let node = site.serve().await;
    let set = |key: &str, value: &str| fine(&site, &node, &["set", key, value]);
    let unset = |key: &str| fine(&site, &node, &["unset", key]);
    let games = async || {
        let catalog = node.broker().get("/v2/catalog").await.json();
        let plans = catalog["services"][0]["plans"].as_array().unwrap().clone();
        plans.into_iter().find(|plan| plan["name"] == "games").unwrap()
    };

    // The log: a request is a line at the level debug alone.
    let answered = r#""message":"answered""#;
    let plan = games().await;
    set("log.level", "debug");
    node.logged(r#""setting":"log.level","value":"debug""#);
    assert!(!node.log().contains(answered), "{}", node.log());
    games().await;
    node.logged(answered);

    // A plan, and a pool: what the platform and whoever is bound are told.
    assert_ne!(plan["description"], "A port for games");
    set("plans.games.description", "A port for games");
    assert_eq!(games().await["description"], "A port for games");
    provision(&node, "g", plan["id"].as_str().unwrap()).await;
    let told = bind(&node, "g", "of-g", plan["id"].as_str().unwrap()).await;
    assert_eq!(told.get("hostname_external"), None);
    set("pools.games.hostname_external", "games.example.com");
    let path = "/v2/service_instances/g/service_bindings/of-g";
    let again = json!({ "service_id": SERVICE_ID, "plan_id": plan["id"], "bind_resource": { "app_guid": "app" } });
    let (again, fetched) = (node.broker().put(path, &again).await, node.broker().get(path).await);
    assert_eq!((again.status.as_u16(), fetched.status.as_u16()), (200, 200), "{again:?}");
    for answer in [again, fetched] {
        assert_eq!(answer.json()["credentials"]["hostname_external"], "games.example.com");
    }

    // Discovery: where a backend may be.
    provision(&node, "a", PLAN_TCP).await;
    let credentials = bind(&node, "a", "of-a", PLAN_TCP).await;
    let app = Echo::start("app").await;
    let token = format!("Bearer {}", credentials["announce"]["token"].as_str().unwrap());
    let announcer = Client::new(node.address("announce")).with("authorization", &token);
    let announcement = json!({ "binding_id": "of-a", "port": app.tcp.port() });
    let announce = async || announcer.put("/announce/v1/instances/a", &announcement).await.status.as_u16();
    assert_eq!(announce().await, 200);
    set("discovery.backend_networks", "10.9.0.0/16");
    assert_eq!(announce().await, 403);
    unset("discovery.backend_networks");
    assert_eq!(announce().await, 200);

    // The forwarder: how many connections a port may have.
    let port = at(&credentials);
    let mut first = TcpStream::connect(port).await.unwrap();
    assert_eq!(tell(&mut first, "a").await.as_deref(), Some("app: a"));
    assert_eq!(over_tcp(port, "b").await.as_deref(), Some("app: b"));
    set("forwarder.max_connections_per_port", "1");
    eventually_async("a second connection is refused", || async { over_tcp(port, "c").await.is_none().then_some(()) })
        .await;
    assert_eq!(tell(&mut first, "d").await.as_deref(), Some("app: d"));
    unset("forwarder.max_connections_per_port");
    eventually_async("a second connection is let in", || async { over_tcp(port, "e").await }).await;
}
