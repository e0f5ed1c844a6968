//! Over TLS, and over NATS.

use std::path::Path;

use super::*;

/// `harbor announce` on a machine of the operator's.
pub(super) fn over_nats(bound: &Bound, urls: &str, arguments: &[&str]) -> Command {
    let said = ["announce", "--instance", "game", "--binding", "game-binding", "--host", "127.0.0.1", "--no-check"];
    let mut command = bound.site.command(&[&said, arguments].concat());
    command.env("HARBOR_ANNOUNCE_NATS", urls).env("HARBOR_ANNOUNCE_TOKEN", bound.token());
    command
}

fn token_file(bound: &Bound) -> String {
    let path = bound.site.path().join("token");
    fs::write(&path, format!("{}\n", bound.token())).unwrap();
    path.to_str().expect("text").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_machine_options_say_it_and_the_token_is_in_a_file() {
    let app = Echo::start("app").await;
    let bound = Bound::new(Site::new("29210-29219", ""), PLAN_BOTH, 4100).await;
    let url = format!("http://{}/announce/v1/instances/game/", bound.harbor.address("announce"));
    let (tcp, udp) = (app.tcp.port().to_string(), app.udp.port().to_string());
    let said = ["announce", "--url", &url, "--binding", "game-binding", "--token-file", &token_file(&bound)];
    let sidecar =
        bound.site.start_with(bound.site.command(&[&said[..], &["--port", &tcp, "--udp-port", &udp]].concat()));
    bound.has(&[&format!("tcp {} up", app.tcp), &format!("udp {} up", app.udp)]).await;
    assert_eq!(served(bound.port()).await, "app: hello");
    let arguments = fs::read_to_string(format!("/proc/{}/cmdline", sidecar.pid())).unwrap();
    assert!(!arguments.contains(bound.token()) && !sidecar.log().contains(bound.token()));
    assert!(sidecar.terminate().success());
    bound.has(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_of_the_announce_listener_is_checked() {
    let site = Site::new("29220-29229", "");
    let (ours, theirs) = (logins::authority(), logins::authority());
    logins::issue(&ours, site.path(), "listener");
    let path = |name: &str| site.path().join(name).to_str().expect("text").to_owned();
    fs::write(path("ours.pem"), ours.pem()).unwrap();
    fs::write(path("theirs.pem"), theirs.pem()).unwrap();
    fs::write(path("none.pem"), "").unwrap();
    let [ours, theirs, none, missing] = ["ours.pem", "theirs.pem", "none.pem", "missing.pem"].map(path);
    let tls = format!(
        "[announce]\ntls = {{ certificate = {:?}, private_key = {:?} }}\n",
        path("listener.pem"),
        path("listener.key")
    );
    let config = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), config.replace("[announce]\n", &tls)).unwrap();
    let app = Echo::start("app").await;
    let bound = Bound::new(site, PLAN_TCP, app.tcp.port()).await;
    let announce = |ca: &str| {
        let mut command = bound.announce(&["--ca", ca]);
        command.env("VCAP_SERVICES", bound.vcap(&[&bound.credentials]).replace("http://", "https://"));
        command
    };

    let sidecar = bound.site.start_with(announce(&theirs));
    sidecar.logged("cannot be asked: invalid peer certificate: ");
    assert!(sidecar.terminate().success());
    for (ca, expect) in [
        (&none, "harbor: this machine has no authorities to check certificates by: name a file by --ca\n".to_owned()),
        (
            &missing,
            format!(
                "harbor: cannot read authorities from {missing}: I/O error: No such file or directory (os error 2)\n"
            ),
        ),
    ] {
        let output = announce(ca).output().unwrap();
        assert_eq!((String::from_utf8(output.stderr).unwrap(), output.status.code()), (expect, Some(2)));
    }

    let sidecar = bound.site.start_with(announce(&ours));
    sidecar.logged("INFO announced service_instance=game");
    assert_eq!(served(bound.port()).await, "app: hello");
    assert!(sidecar.terminate().success());
    unserved(bound.port()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_nats_a_proof_speaks_and_whoever_asks_again_is_answered() {
    let mut server = NatsServer::stopped();
    let app = Echo::start("app").await;
    let bound = Bound::new(Site::new("29230-29239", &with_nats(&server)), PLAN_TCP, 4100).await;
    let tcp = app.tcp.port().to_string();
    let sidecar = bound.site.start_with(over_nats(
        &bound,
        &server.url(),
        &["--port", &tcp, "--interval", "1h", "--", "sh", "-c", LISTENER],
    ));
    sidecar.logged("listens");
    sidecar.logged("WARN not announced, and tried again: NATS takes nothing for 5 s service_instance=game");
    server.restart();
    assert_eq!(served(bound.port()).await, "app: hello");
    sidecar.logged("INFO published service_instance=game");

    let mut bus = Bus::of(&server).await;
    let nats = async_nats::connect(server.url()).await.unwrap();
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_secs(2) {
        nats.publish("harbor.start", "{}".into()).await.unwrap();
        assert_eq!(bus.word().await, "up");
    }
    server.restart();
    let mut bus = Bus::of(&server).await;
    assert_eq!(bus.word().await, "up", "nobody may have heard what it said before");

    sidecar.signal(Signal::TERM);
    let mut words = Vec::new();
    while words.last().map(String::as_str) != Some("gone") {
        words.push(bus.word().await);
        words.dedup();
    }
    words.retain(|word| word != "up");
    assert_eq!(words, ["draining", "gone"]);
    assert_eq!(sidecar.wait().code(), Some(7));
    unserved(bound.port()).await;
    assert_eq!(bound.status().await.refusals, [], "no proof was old");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_nats_it_is_said_as_often_as_a_node_needs_that_was_there_before() {
    let server = NatsServer::start();
    let site = Site::new("29290-29299", &with_nats(&server));
    let mut serve = site.command(&["serve"]);
    let time_to_live = Duration::from_secs(3);
    serve.env("HARBOR_DISCOVERY__STALE_AFTER", "3s").env("HARBOR_DISCOVERY__PRUNE_EVERY", "10ms");
    let bound = Bound::by(site, serve, PLAN_TCP, 4100).await;
    let mut bus = Bus::of(&server).await;
    let _sidecar = bound.site.start_with(over_nats(&bound, &server.url(), &["--port", "7777"]));
    assert_eq!(bus.word().await, "up");
    let began = Instant::now();
    while began.elapsed() < 2 * time_to_live {
        assert_eq!(bus.word().await, "up");
    }
    let metrics = bound.harbor.admin().get("/metrics").await.body;
    let added = "harbor_announcements_total{source=\"harbor\",outcome=\"added\"} 1\n";
    assert!(String::from_utf8_lossy(&metrics).contains(added), "it has been there all the time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_is_not_believed_over_nats_and_harbor_tells_why() {
    let server = NatsServer::start();
    let bound = Bound::new(Site::new("29240-29249", &with_nats(&server)), PLAN_TCP, 4100).await;
    let mut command = over_nats(&bound, &server.url(), &["--port", "7777"]);
    command.env("HARBOR_ANNOUNCE_TOKEN", "wrong");
    let sidecar = bound.site.start_with(command);
    sidecar.logged("INFO published service_instance=game");
    eventually_async("the refusal is shown", || async {
        (bound.status().await.refusals.first()?.reason == "bad_proof").then_some(())
    })
    .await;
    assert_eq!(bound.backends().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_is_shown_who_speaks() {
    let files = tempfile::tempdir().unwrap();
    let authority = logins::authority();
    logins::issue(&authority, files.path(), "server");
    logins::issue(&authority, files.path(), "machine");
    let path = |name: &str| files.path().join(name).to_str().expect("text").to_owned();
    fs::write(path("ca.pem"), authority.pem()).unwrap();
    let server = NatsServer::start_with(&format!(
        "authorization {{ user: harbor, password: hunter2 }}\n\
         tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}",
        path("server.pem"),
        path("server.key"),
        path("ca.pem")
    ));
    let bound = Bound::new(Site::new("29250-29259", ""), PLAN_TCP, 4100).await;
    let [ca, certificate, key] = ["ca.pem", "machine.pem", "machine.key"].map(path);
    let tls = ["--port", "7777", "--ca", &ca, "--nats-certificate", &certificate, "--nats-private-key", &key];
    let sidecar =
        bound.site.start_with(over_nats(&bound, &format!("nats://harbor:hunter2@{}", server.address()), &tls));
    sidecar.logged("INFO published service_instance=game");
    let arguments = fs::read_to_string(Path::new("/proc").join(sidecar.pid().to_string()).join("cmdline")).unwrap();
    assert!(![arguments, sidecar.log()].iter().any(|text| text.contains("hunter2") || text.contains(bound.token())));
    assert!(sidecar.terminate().success());

    let sidecar = bound.site.start_with(over_nats(&bound, &format!("nats://harbor:wrong@{}", server.address()), &tls));
    sidecar.logged("NATS: client error: nats: authorization violation");
    sidecar.kill();
    let missing = path("missing.creds");
    let output =
        over_nats(&bound, &server.url(), &["--port", "7777", "--nats-credentials", &missing]).output().unwrap();
    let expect = format!("harbor: cannot read {missing}: No such file or directory (os error 2)\n");
    assert_eq!((String::from_utf8(output.stderr).unwrap(), output.status.code()), (expect, Some(2)));
}
