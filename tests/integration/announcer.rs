//! `harbor announce` and `harbor env` as a developer and an operator run them: the program beside a real node.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::process::ExitStatusExt as _,
    process::Command,
    time::{Duration, Instant},
};

use async_nats::Subscriber;
use futures_util::StreamExt as _;
use harbor::{
    admin::wire::{Backend, ServiceInstance as Status},
    model::plan::SERVICE_ID,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{
    discovery::logins,
    end_to_end::{PLAN_BOTH, PLAN_TCP, at, bind, delete, served, status, unserved, with_nats},
    support::{
        echo::Echo,
        eventually::{PATIENCE, eventually, eventually_async},
        harbor::{Harbor, Site},
        nats::NatsServer,
        peer::{self, TcpPeer, UdpPeer, V4},
    },
};

mod ways;
mod wire;
mod wrong;

/// A node, and the service instance `game` on it, to which an app is bound as `game-binding`.
struct Bound {
    site: Site,
    harbor: Harbor,
    credentials: Value,
}

impl Bound {
    /// Whose app listens on `int_port`.
    async fn new(site: Site, plan: &str, int_port: u16) -> Self {
        let command = site.command(&["serve"]);
        Self::by(site, command, plan, int_port).await
    }

    /// On a node that is started by a command of the site.
    async fn by(site: Site, serve: Command, plan: &str, int_port: u16) -> Self {
        let harbor = site.start_with(serve);
        harbor.ready().await;
        let credentials = provision(&harbor, "game", plan, int_port).await;
        Self { site, harbor, credentials }
    }

    /// What the platform gives to an app with these service instances.
    fn vcap(&self, credentials: &[&Value]) -> String {
        let announce = format!("http://{}", self.harbor.address("announce"));
        let entry = |credentials: &&Value| {
            let name = credentials["name"].as_str().expect("a name");
            json!({"name": name, "instance_name": name, "binding_guid": format!("{name}-binding"),
                   "label": "harbor", "credentials": credentials})
        };
        let vcap = json!({"harbor": credentials.iter().map(entry).collect::<Vec<_>>()});
        vcap.to_string().replace("http://harbor-announce.example.com", &announce)
    }

    /// `harbor announce` in a container of the app.
    fn announce(&self, arguments: &[&str]) -> Command {
        let mut command = self.site.command(&[&["announce"], arguments].concat());
        command.env("VCAP_SERVICES", self.vcap(&[&self.credentials]));
        command
    }

    fn start(&self, arguments: &[&str]) -> Harbor {
        self.start_in(&[], arguments)
    }

    /// In an environment that has more.
    fn start_in(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Harbor {
        let mut command = self.announce(arguments);
        command.envs(variables.iter().copied());
        self.site.start_with(command)
    }

    /// Where clients come in.
    fn port(&self) -> SocketAddr {
        at(&self.credentials)
    }

    fn token(&self) -> &str {
        self.credentials["announce"]["token"].as_str().expect("a token")
    }

    /// What the node knows of it.
    async fn status(&self) -> Status {
        let all = status(&self.harbor).await["service_instances"].take();
        serde_json::from_value::<Vec<Status>>(all)
            .expect("its own form")
            .into_iter()
            .find(|one| one.id == "game")
            .expect("it is there")
    }

    /// Its backends, `<transport> <address> <state>` each, TCP first: which was announced first is chance.
    async fn backends(&self) -> Vec<String> {
        let text = |backend: &Backend| format!("{} {} {}", backend.transport, backend.address, backend.state);
        let mut backends = self.status().await.backends.iter().map(text).collect::<Vec<_>>();
        backends.sort();
        backends
    }

    /// Waits until its backends are just these.
    async fn has(&self, expect: &[&str]) {
        let what = format!("the backends are {expect:?}");
        eventually_async(&what, || async { (self.backends().await == expect).then_some(()) }).await;
    }
}

async fn provision(harbor: &Harbor, id: &str, plan: &str, int_port: u16) -> Value {
    let body = json!({"service_id": SERVICE_ID, "plan_id": plan, "organization_guid": "o", "space_guid": "s",
                      "parameters": {"int_port": int_port}});
    assert_eq!(harbor.broker().put(&format!("/v2/service_instances/{id}"), &body).await.status, 201);
    bind(harbor, id, &format!("{id}-binding"), plan).await
}

/// What is said on `harbor.register` and `harbor.unregister`.
struct Bus(Subscriber);

impl Bus {
    async fn of(server: &NatsServer) -> Self {
        let client = async_nats::connect(server.url()).await.expect("the server is up");
        let bus = Self(client.subscribe("harbor.*").await.expect("it lets everyone in"));
        client.flush().await.expect("the server is up");
        bus
    }

    /// The next message about a backend, and whether it registers it.
    async fn message(&mut self) -> (bool, String) {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.0.next()).await.expect("a message comes in time");
            let message = message.expect("the subscription stands");
            let registers = message.subject.as_str() == "harbor.register";
            if registers || message.subject.as_str() == "harbor.unregister" {
                return (registers, String::from_utf8(message.payload.to_vec()).expect("JSON"));
            }
        }
    }

    /// The next word about a backend: `up`, `draining` or `gone`.
    async fn word(&mut self) -> String {
        let (registers, message) = self.message().await;
        if !registers {
            return "gone".into();
        }
        let message = serde_json::from_str::<Value>(&message).expect("JSON");
        message["harbor"]["state"].as_str().expect("the sidecar says it").to_owned()
    }
}

/// A child that tells what it hears, and ends with 3 by SIGUSR1 and with 7 by SIGTERM.
const LISTENER: &str = r#"
trap 'kill -9 $!; exit 3' USR1
trap 'kill -9 $!; echo heard TERM; exit 7' TERM
trap 'echo heard HUP' HUP
trap 'echo heard USR2' USR2
sleep 60 &
echo listens
while kill -0 $! 2> /dev/null; do wait $!; done
"#;

/// One that makes nothing of SIGTERM, and tells its id.
const DEAF: &str = "trap '' TERM; echo \"deaf as $$.\"; exec sleep 60";

/// Kills the child that a sidecar started with [`DEAF`].
fn kill_deaf(sidecar: &Harbor) {
    let line = sidecar.logged("deaf as ");
    let pid = line.trim_start_matches("deaf as ").trim_end_matches('.').parse().expect("an id");
    kill_process(Pid::from_raw(pid).expect("not zero"), Signal::KILL).expect("it runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_container_everything_is_found_in_the_environment() {
    let site = Site::new("29100-29109", "");
    let mut serve = site.command(&["serve"]);
    serve.env("HARBOR_DISCOVERY__TOKEN_NETWORKS", "127.0.0.2/32");
    let cell = "127.0.0.2".parse().unwrap();
    let (tcp, udp) = (TcpPeer::echo(cell), UdpPeer::named("over UDP"));
    let bound = Bound::by(site, serve, PLAN_BOTH, udp.address.port()).await;
    let mapped = json!([{"external": tcp.address.port(), "internal": udp.address.port()},
                        {"external": null, "internal": 2222, "external_tls_proxy": 61_003}]);
    let (mapped, check) = (mapped.to_string(), tcp.address.to_string());
    let container =
        [("CF_INSTANCE_IP", "127.0.0.2"), ("CF_INSTANCE_INTERNAL_IP", "127.0.0.1"), ("CF_INSTANCE_PORTS", &mapped)];
    let sidecar = bound.start_in(&container, &["--check", &check]);
    let (over_tcp, over_udp) = (format!("tcp {} up", tcp.address), format!("udp {} up", udp.address));
    bound.has(&[&over_tcp, &over_udp]).await;
    peer::ping(&mut peer::connect(V4, bound.port().port()), b"hello");
    assert_eq!(peer::ask(&peer::udp_client(V4, bound.port().port()), b"hello"), b"over UDP");
    sidecar.signal(Signal::INT);
    sidecar.logged("INFO withdrawn service_instance=game");
    bound.has(&[]).await;
    assert!(sidecar.wait().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bound_service_instance_is_announced_or_only_the_named_one() {
    let (one, two) = (Echo::start("one").await, Echo::start("two").await);
    let bound = Bound::new(Site::new("29110-29119", ""), PLAN_TCP, one.tcp.port()).await;
    let other = provision(&bound.harbor, "other", PLAN_TCP, two.tcp.port()).await;
    // One of them is bound twice.
    let vcap = bound.vcap(&[&bound.credentials, &other, &bound.credentials]);
    let vcap = [("VCAP_SERVICES", vcap.as_str())];
    let sidecar = bound.start_in(&vcap, &[]);
    assert_eq!(served(bound.port()).await, "one: hello");
    assert_eq!(served(at(&other)).await, "two: hello");
    sidecar.signal(Signal::TERM);
    for name in ["game", "other"] {
        sidecar.logged(&format!("withdrawn service_instance={name}"));
        let announced = format!("INFO announced service_instance={name}");
        assert_eq!(sidecar.log().matches(&announced).count(), 1);
    }
    assert!(sidecar.wait().success());
    unserved(at(&other)).await;
    let sidecar = bound.start_in(&vcap, &["--service", "other"]);
    assert_eq!(served(at(&other)).await, "two: hello");
    bound.has(&[]).await;
    assert!(!sidecar.log().contains("service_instance=game"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_says_draining_before_it_withdraws() {
    let server = NatsServer::start();
    let app = Echo::start("app").await;
    let bound = Bound::new(Site::new("29120-29129", &with_nats(&server)), PLAN_TCP, app.tcp.port()).await;
    let mut bus = Bus::of(&server).await;
    let sidecar = bound.start(&[]);
    assert_eq!(served(bound.port()).await, "app: hello");
    sidecar.signal(Signal::TERM);
    assert_eq!([bus.word().await, bus.word().await, bus.word().await], ["up", "draining", "gone"]);
    assert!(sidecar.wait().success());
    unserved(bound.port()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_outlive_the_time_to_live_and_without_them_it_ends() {
    let server = NatsServer::start();
    let site = Site::new("29130-29139", &with_nats(&server));
    let mut serve = site.command(&["serve"]);
    let time_to_live = Duration::from_secs(1);
    serve.env("HARBOR_DISCOVERY__STALE_AFTER", "1s").env("HARBOR_DISCOVERY__PRUNE_EVERY", "10ms");
    let app = Echo::start("app").await;
    let bound = Bound::by(site, serve, PLAN_TCP, app.tcp.port()).await;
    let mut bus = Bus::of(&server).await;
    let sidecar = bound.start(&[]);
    assert_eq!(bus.word().await, "up");
    let (since, began) = (bound.status().await.backends[0].since.clone(), Instant::now());
    while began.elapsed() < 2 * time_to_live {
        assert_eq!(bus.word().await, "up");
    }
    assert_eq!(bound.status().await.backends[0].since, since, "it has been there all the time");
    sidecar.kill();
    bound.has(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_ends_by_itself_ends_the_announcement_and_its_code_is_passed_on() {
    let app = Echo::start("app").await;
    let bound = Bound::new(Site::new("29140-29149", ""), PLAN_TCP, app.tcp.port()).await;
    let sidecar = bound.start(&["--", "sh", "-c", LISTENER]);
    sidecar.logged("listens");
    assert_eq!(served(bound.port()).await, "app: hello");
    sidecar.signal(Signal::USR1);
    assert_eq!(sidecar.wait().code(), Some(3));
    assert_eq!(bound.backends().await, [""; 0], "by then it is withdrawn");

    let sidecar = bound.start(&["--", "sh", "-c", DEAF]);
    assert_eq!(served(bound.port()).await, "app: hello");
    kill_deaf(&sidecar);
    assert_eq!(sidecar.wait().code(), Some(128 + 9), "as a shell tells of a signal");
    assert_eq!(bound.backends().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_reach_the_child_and_the_one_to_end_after_the_drain_or_when_it_is_repeated() {
    let app = Echo::start("app").await;
    let bound = Bound::new(Site::new("29150-29159", ""), PLAN_TCP, app.tcp.port()).await;
    let sidecar = bound.start(&["--drain", "1h", "--", "sh", "-c", LISTENER]);
    sidecar.logged("listens");
    let address = format!("tcp {}", app.tcp);
    bound.has(&[&format!("{address} up")]).await;
    sidecar.signal(Signal::HUP);
    sidecar.logged("heard HUP");
    sidecar.signal(Signal::TERM);
    bound.has(&[&format!("{address} draining")]).await;
    sidecar.signal(Signal::USR2);
    sidecar.logged("heard USR2");
    assert!(!sidecar.log().contains("heard TERM"), "it is held back until nothing new comes");
    sidecar.signal(Signal::TERM);
    sidecar.logged("heard TERM");
    assert_eq!(sidecar.wait().code(), Some(7));
    bound.has(&[]).await;

    let sidecar = bound.start(&["--drain", "10ms", "--", "sh", "-c", LISTENER]);
    sidecar.logged("listens");
    assert_eq!(sidecar.terminate().code(), Some(7), "one is enough where the drain is short");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_ignores_sigterm_is_draining_until_it_ends() {
    let app = Echo::start("app").await;
    let bound = Bound::new(Site::new("29160-29169", ""), PLAN_TCP, app.tcp.port()).await;
    let draining = format!("tcp {} draining", app.tcp);
    for drain in ["0s", "1h"] {
        let sidecar = bound.start(&["--drain", drain, "--", "sh", "-c", DEAF]);
        sidecar.logged("deaf as ");
        assert_eq!(served(bound.port()).await, "app: hello");
        sidecar.signal(Signal::TERM);
        bound.has(&[&draining]).await;
        kill_deaf(&sidecar);
        assert_eq!(sidecar.wait().code(), Some(128 + 9), "its end is seen at once, with a drain of {drain}");
        bound.has(&[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_sidecar_leaves_its_child_running() {
    let bound = Bound::new(Site::new("29320-29329", ""), PLAN_TCP, 4100).await;
    let sidecar = bound.start(&["--no-check", "--", "sh", "-c", DEAF]);
    sidecar.logged("deaf as ");
    sidecar.signal(Signal::KILL);
    let state = format!("/proc/{}/stat", sidecar.pid());
    eventually("the sidecar is dead", || fs::read_to_string(&state).ok()?.contains(") Z ").then_some(()));
    kill_deaf(&sidecar);
    assert_eq!(sidecar.wait().signal(), Some(9));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_child_other_signals_do_nothing_and_a_second_sigterm_ends_the_drain() {
    let app = Echo::start("app").await;
    let bound = Bound::new(Site::new("29170-29179", ""), PLAN_TCP, app.tcp.port()).await;
    let sidecar = bound.start(&["--drain", "1h"]);
    assert_eq!(served(bound.port()).await, "app: hello");
    for signal in [Signal::HUP, Signal::USR1, Signal::USR2, Signal::TERM] {
        sidecar.signal(signal);
    }
    bound.has(&[&format!("tcp {} draining", app.tcp)]).await;
    let status = sidecar.terminate();
    assert_eq!((status.code(), status.signal()), (Some(0), None));
    bound.has(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_accept_connections_is_not_announced() {
    // The port is below those that the system gives out: it is nobody's while nobody listens.
    let address = "127.0.0.1:29189";
    let bound = Bound::new(Site::new("29180-29188", ""), PLAN_TCP, 29189).await;
    let sidecar = bound.start(&["--interval", "1s"]);
    sidecar.logged(
        "INFO nothing accepts connections at 127.0.0.1:29189 (Connection refused (os error 111)): it is not announced \
         until it does service_instance=game",
    );
    let up = format!("tcp {address} up");
    for _ in 0..2 {
        assert_eq!(bound.backends().await, [""; 0]);
        let listener = TcpListener::bind(address).unwrap();
        bound.has(&[&up]).await;
        drop(listener);
        bound.has(&[]).await;
    }
    eventually_async("each turn is told once", || async {
        let log = sidecar.log();
        (log.matches("nothing accepts").count() == 3 && log.matches("announced serv").count() == 2).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn udp_alone_is_not_checked_by_a_tcp_connection() {
    let udp = UdpPeer::named("over UDP");
    let bound = Bound::new(Site::new("29190-29199", ""), PLAN_BOTH, 1).await;
    let sidecar = bound.start(&["--udp-port", &udp.address.port().to_string()]);
    bound.has(&[&format!("udp {} up", udp.address)]).await;
    assert_eq!(peer::ask(&peer::udp_client(V4, bound.port().port()), b"hello"), b"over UDP");
    assert!(sidecar.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_away_is_asked_again() {
    let site = Site::new("29200-29208", "");
    let config = fs::read_to_string(site.config()).unwrap();
    // Where the node is to be again after its restart.
    fs::write(
        site.config(),
        config.replacen("[announce]\nlisten = \"127.0.0.1:0\"", "[announce]\nlisten = \"127.0.0.1:29209\"", 1),
    )
    .unwrap();
    let app = Echo::start("app").await;
    let mut bound = Bound::new(site, PLAN_TCP, app.tcp.port()).await;
    let command = bound.announce(&["--interval", "1s", "--", "sh", "-c", LISTENER]);
    bound.harbor.signal(Signal::TERM);
    bound.harbor.logged("ended");
    let sidecar = bound.site.start_with(command);
    sidecar.logged("listens");
    sidecar.logged(
        "WARN not announced, and tried again: 127.0.0.1:29209 cannot be asked: Connection refused (os error 111) \
         service_instance=game",
    );
    bound.harbor = bound.site.serve().await;
    assert_eq!(served(bound.port()).await, "app: hello");
    sidecar.logged("INFO announced service_instance=game");
    bound.harbor.signal(Signal::KILL);
    assert_eq!(sidecar.terminate().code(), Some(7), "nor does its end wait for a node");
}
