//! What is refused, by Harbor or before it is asked, and what is printed then.

use super::*;
use crate::{cli, support::http::Client};

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_printed_once_with_its_reason_and_asked_about_again() {
    let app = Echo::start("app").await;
    let bound = Bound::new(Site::new("29260-29269", ""), PLAN_TCP, app.tcp.port()).await;
    let sidecar = bound.start(&["--host", "10.0.0.9"]);
    sidecar.logged(
        "WARN not announced, and tried again: A token announces its caller, 127.0.0.1, or a host in \
         discovery.token_networks: leave host out. service_instance=game",
    );
    sidecar.kill();

    let sidecar = bound.start(&["--interval", "1s"]);
    assert_eq!(served(bound.port()).await, "app: hello");
    delete(&bound.harbor, "game/service_bindings/game-binding", PLAN_TCP).await;
    unserved(bound.port()).await;
    sidecar.logged(
        "WARN not announced, and tried again: No such service instance and binding, or not its token: use what the \
         credentials have under announce. service_instance=game",
    );
    bind(&bound.harbor, "game", "game-binding", PLAN_TCP).await;
    assert_eq!(served(bound.port()).await, "app: hello", "a binding made anew under its id has the same token");
    assert!(sidecar.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_waits_as_long_as_it_is_asked_to() {
    let app = Echo::start("app").await;
    let bound = Bound::new(Site::new("29270-29279", ""), PLAN_TCP, app.tcp.port()).await;
    let sidecar = bound.start(&["--interval", "1s"]);
    let asked = "WARN not announced, and tried again: Harbor asks to wait for 1 s service_instance=game";
    let holder = Client::new(bound.harbor.address("announce"));
    let holder = holder.with("authorization", &format!("Bearer {}", bound.token()));
    eventually_async("the token has asked too often", || async {
        for _ in 0..50 {
            holder.get("/announce/v1/instances/game?binding_id=game-binding").await;
        }
        sidecar.log().contains(asked).then_some(())
    })
    .await;
    assert_eq!(served(bound.port()).await, "app: hello");
    eventually_async("it is announced again", || async {
        let log = sidecar.log();
        (log.rfind("INFO announced")? > log.find(asked)?).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_run_is_not_announced() {
    let app = Echo::start("app").await;
    let bound = Bound::new(Site::new("29280-29289", ""), PLAN_TCP, app.tcp.port()).await;
    for (program, reason) in [
        ("/nowhere/server", "No such file or directory (os error 2)"),
        ("/etc/passwd", "Permission denied (os error 13)"),
    ] {
        let output = bound.announce(&["--", program, "argument"]).output().unwrap();
        let expect = format!("harbor: cannot run {program}: {reason}\n");
        assert_eq!((String::from_utf8(output.stderr).unwrap(), output.status.code()), (expect, Some(2)));
    }
    assert_eq!(bound.backends().await, [""; 0]);
}

/// A service of Harbor as `VCAP_SERVICES` has it.
fn entry(name: &str, int_port: u16) -> Value {
    json!({"name": name, "binding_guid": "b", "credentials": {
        "name": format!("{name}-id"), "protocol": "tcp", "int_port": int_port, "port": 35_012,
        "announce": {"url": format!("http://127.0.0.1:1/announce/v1/instances/{name}-id"), "token": "hunter2"}}})
}

fn vcap(entries: &[Value]) -> String {
    json!({"harbor": entries, "postgres": [{"name": "db", "credentials": {"uri": "postgres://db"}}]}).to_string()
}

#[track_caller]
fn refused(variables: &[(&str, &str)], arguments: &[&str], stderr: &str) {
    cli::check(variables, &[&["announce"], arguments].concat(), 2, "", &format!("harbor: {stderr}\n"));
}

#[test]
fn what_is_missing_or_wrong_in_the_environment_is_told_at_once() {
    refused(
        &[],
        &["--", "true"],
        "what shall be announced? There is no VCAP_SERVICES: say it by --url, --binding and --port",
    );
    refused(
        &[("VCAP_SERVICES", "garbage")],
        &[],
        "VCAP_SERVICES is not what Cloud Foundry writes there: expected value at line 1 column 1",
    );
    refused(&[("VCAP_SERVICES", "{}")], &[], "no service of Harbor's is bound: cf bind-service, then restage");
    let (game, chat) = (entry("game", 4100), entry("chat", 4101));
    let (one, both) = (vcap(std::slice::from_ref(&game)), vcap(&[game.clone(), chat]));
    refused(&[("VCAP_SERVICES", &one)], &["--service", "db"], "\"db\" is not bound, or not a service of Harbor's");
    refused(
        &[("VCAP_SERVICES", &both)],
        &["--port", "7777"],
        "which one is meant? Name it by --service: one of chat, game",
    );
    let without = |key: &str| {
        let mut entry = game.clone();
        entry.as_object_mut().unwrap().remove(key);
        entry["credentials"].as_object_mut().unwrap().remove(key);
        vcap(&[entry])
    };
    refused(
        &[("VCAP_SERVICES", &without("announce"))],
        &[],
        "game takes no announcements over HTTP: the operator sets [announce], then it is bound anew",
    );
    refused(
        &[("VCAP_SERVICES", &without("binding_guid"))],
        &[],
        "this platform does not tell the id of game's binding: name it by --binding",
    );
    let mut empty = game.clone();
    empty["credentials"]["announce"]["token"] = "".into();
    refused(
        &[("VCAP_SERVICES", &vcap(&[empty]))],
        &[],
        "VCAP_SERVICES has a service of Harbor whose credentials are not Harbor's (an empty token): bind it anew",
    );
    refused(
        &[("VCAP_SERVICES", &without("int_port"))],
        &[],
        "VCAP_SERVICES has a service of Harbor whose credentials are not Harbor's (missing field `int_port`): bind it \
         anew",
    );
    let nowhere = [("VCAP_SERVICES", one.as_str()), ("CF_INSTANCE_IP", "nowhere")];
    refused(&nowhere, &[], "CF_INSTANCE_IP is \"nowhere\", and no IP address");
    let ports = [("VCAP_SERVICES", one.as_str()), ("CF_INSTANCE_PORTS", "[{}]")];
    refused(
        &ports,
        &[],
        "CF_INSTANCE_PORTS is not what Diego writes there: missing field `internal` at line 1 column 3",
    );
}

#[test]
fn what_is_missing_or_wrong_among_the_options_is_told_at_once() {
    let url = "http://127.0.0.1:1/announce/v1/instances/x";
    let token = [("HARBOR_ANNOUNCE_TOKEN", "hunter2")];
    refused(
        &token,
        &["--url", url, "--port", "1"],
        "whose token is it? Name the binding by --binding: see harbor announce --help",
    );
    refused(
        &token,
        &["--url", url, "--binding", "b"],
        "where does it serve? Say so by --port or --udp-port: see harbor announce --help",
    );
    refused(
        &[],
        &["--url", url, "--binding", "b", "--port", "1"],
        "there is no token: name its file by --token-file, or set HARBOR_ANNOUNCE_TOKEN: see harbor announce --help",
    );
    refused(
        &[],
        &["--url", url, "--binding", "b", "--port", "1", "--token-file", "nowhere"],
        "cannot read the token in nowhere: No such file or directory (os error 2)",
    );
    refused(
        &token,
        &["--url", "ftp://x", "--binding", "b", "--port", "1"],
        "\"ftp://x\" is not the URL of a service instance: take it from the credentials, announce.url",
    );
    refused(
        &token,
        &["--url", "http://127.0.0.1:1/", "--binding", "b", "--port", "1"],
        "\"http://127.0.0.1:1/\" is not the URL of a service instance: take it from the credentials, announce.url",
    );
    refused(
        &[("HARBOR_ANNOUNCE_TOKEN", " ")],
        &["--url", url, "--binding", "b", "--port", "1"],
        "there is no token: name its file by --token-file, or set HARBOR_ANNOUNCE_TOKEN: see harbor announce --help",
    );
    refused(
        &token,
        &["--url", url, "--binding", "b", "--port", "1", "--token-file", "/dev/null"],
        "there is no token in /dev/null: it is empty",
    );
    let over_nats = ["--nats", "nats://127.0.0.1:1", "--instance", "game", "--binding", "b", "--port", "1"];
    refused(
        &token,
        &over_nats,
        "over NATS nobody sees who announces: name the address by --host: see harbor announce --help",
    );
}

#[test]
fn options_that_do_not_go_together_are_refused() {
    #[track_caller]
    fn refused(arguments: &[&str], expect: &str) {
        let output = Command::new(env!("CARGO_BIN_EXE_harbor")).arg("announce").args(arguments).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!((told.split("\n\n").next(), output.status.code()), (Some(expect), Some(2)), "{arguments:?}");
    }
    refused(
        &["--interval", "0s"],
        "error: invalid value '0s' for '--interval <DURATION>': it is shorter than a second",
    );
    for (option, with_its_value) in [("--port", "--port <PORT>"), ("--udp-port", "--udp-port <PORT>")] {
        let expect = format!("error: invalid value '0' for '{with_its_value}': 0 is not in 1..=65535");
        refused(&[option, "0"], &expect);
    }
    refused(&["--drain", "2h"], "error: invalid value '2h' for '--drain <DURATION>': it is longer than an hour");
    refused(
        &["--url", "http://x", "--nats", "nats://x", "--instance", "x"],
        "error: the argument '--url <URL>' cannot be used with '--nats <URL>'",
    );
    refused(
        &["--service", "x", "--url", "http://x"],
        "error: the argument '--service <NAME>' cannot be used with:\n  --url <URL>\n  --nats <URL>",
    );
    refused(&["--nats", "nats://x"], "error: the following required arguments were not provided:\n  --instance <ID>");
    refused(
        &["--token-file", "x"],
        "error: the following required arguments were not provided:\n  <--url <URL>|--nats <URL>>",
    );
}

#[test]
fn env_prints_what_a_shell_evaluates() {
    let env = |vcap_services: &str, arguments: &[&str], stdout: &str| {
        cli::check(&[("VCAP_SERVICES", vcap_services)], &[&["env"], arguments].concat(), 0, stdout, "");
    };
    cli::check(&[], &["env"], 0, "", "");
    env("{}", &[], "");
    env("{}", &["--json"], "{}\n");
    let (ldap, game) = (entry("ldap-port", 4100), entry("my game", 4101));
    env(&vcap(std::slice::from_ref(&ldap)), &[], "export STACKATO_HARBOR=4100\n");
    env(&vcap(&[ldap.clone(), ldap.clone()]), &[], "export STACKATO_HARBOR=4100\n");
    let alike = vcap(&[ldap.clone(), game.clone(), entry("ldap_port", 4102)]);
    cli::check(
        &[("VCAP_SERVICES", &alike)],
        &["env"],
        0,
        "export STACKATO_HARBOR_MY_GAME=4101\n",
        "harbor: STACKATO_HARBOR_LDAP_PORT is not set, as it would stand for each of ldap-port, ldap_port: rename one\n",
    );
    let both = vcap(&[game, ldap]);
    env(&both, &[], "export STACKATO_HARBOR_LDAP_PORT=4100\nexport STACKATO_HARBOR_MY_GAME=4101\n");
    env(&both, &["--json"], "{\"STACKATO_HARBOR_LDAP_PORT\":4100,\"STACKATO_HARBOR_MY_GAME\":4101}\n");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &both).unwrap();
    let path = [("VCAP_SERVICES_FILE_PATH", file.path().to_str().unwrap())];
    cli::check(&path, &["env"], 0, "export STACKATO_HARBOR_LDAP_PORT=4100\nexport STACKATO_HARBOR_MY_GAME=4101\n", "");
    cli::check(
        &[("VCAP_SERVICES_FILE_PATH", "/nowhere/vcap")],
        &["env"],
        2,
        "",
        "harbor: VCAP_SERVICES_FILE_PATH: cannot read /nowhere/vcap: No such file or directory (os error 2)\n",
    );
    cli::check(
        &[("VCAP_SERVICES", "[]")],
        &["env"],
        2,
        "",
        "harbor: VCAP_SERVICES is not what Cloud Foundry writes there: invalid type: sequence, expected a map at line \
         1 column 0\n",
    );
}
