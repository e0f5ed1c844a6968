//! NATS goes and comes back under traffic, while an app dies. `harbor-bench outages` does the same as often as one likes.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use harbor::model::plan::SERVICE_ID;
use serde_json::{Value, json};
use tokio::{
    net::{TcpStream, UdpSocket},
    task::JoinSet,
    time::{interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    end_to_end::{PLAN_BOTH, at, bind, provision, status, with_nats},
    support::{
        echo::{Echo, over_tcp, tell},
        eventually::{PATIENCE, eventually_async},
        harbor::{Harbor, Site},
        nats::NatsServer,
    },
};

const TIMES: usize = 5;
const STALE_AFTER: &str = "2s";
const ANNOUNCE_EVERY: Duration = Duration::from_millis(200);
const ASK_EVERY: Duration = Duration::from_millis(10);
/// How soon the node is to be connected again.
const RECONNECTED: Duration = Duration::from_secs(5);

/// What apps say of themselves, again and again.
type Announced = Arc<Mutex<Vec<Value>>>;

fn message(id: &str, app: &Echo) -> Value {
    let (port, udp_port) = (app.tcp.port(), app.udp.port());
    json!({ "host": "127.0.0.1", "port": port, "app": "app", "harbor": { "instance_id": id, "udp_port": udp_port } })
}

/// Says it until nobody wants to hear it. The client connects again by itself.
async fn announce(server: String, announced: Announced, stop: CancellationToken) {
    let nats = async_nats::connect(server).await.expect("the server is up");
    let mut ticks = interval(ANNOUNCE_EVERY);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let messages = announced.lock().unwrap().clone();
        for message in messages {
            // What cannot be said now is said the next time.
            let _ = nats.publish("harbor.register", message.to_string().into()).await;
        }
    }
}

/// Keeps asking over one connection, over new ones and over UDP, and gets its answer each time. Returns how often.
async fn ask(port: SocketAddr, stop: CancellationToken) -> usize {
    let mut stream = TcpStream::connect(port).await.expect("the port is open");
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    socket.connect(port).await.expect("loopback");
    let mut ticks = interval(ASK_EVERY);
    let mut times = 0;
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        assert_eq!(tell(&mut stream, "still").await.as_deref(), Some("living: still"), "after {times} times");
        assert_eq!(over_tcp(port, "new").await.as_deref(), Some("living: new"), "after {times} times");
        socket.send(b"udp").await.expect("loopback");
        let mut answer = [0; 64];
        let size = timeout(PATIENCE, socket.recv(&mut answer)).await.expect("an answer").expect("loopback");
        assert_eq!(&answer[..size], b"living: udp", "after {times} times");
        times += 1;
    }
    times
}

/// For how many transports the node knows the app.
async fn known(harbor: &Harbor, app: &Echo) -> usize {
    let addresses = [app.tcp, app.udp].map(|address| Value::from(address.to_string()));
    let status = status(harbor).await;
    let instances = status["service_instances"].as_array().expect("a list");
    let backends = instances.iter().flat_map(|instance| instance["backends"].as_array().expect("a list"));
    backends.filter(|backend| addresses.contains(&backend["address"])).count()
}

async fn reaches(harbor: &Harbor, state: &str) {
    let look = || async { (status(harbor).await["nats"]["state"] == state).then_some(()) };
    eventually_async(&format!("NATS is {state}"), look).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn through_five_outages_of_nats_the_living_stay_the_dead_go_and_traffic_notices_nothing() {
    let mut server = NatsServer::start();
    let site = Site::new("28300-28309", &with_nats(&server));
    let mut command = site.command(&["serve"]);
    command.env("HARBOR_DISCOVERY__STALE_AFTER", STALE_AFTER).env("HARBOR_DISCOVERY__PRUNE_EVERY", "50ms");
    let harbor = site.start_with(command);
    harbor.ready().await;
    let mut ports = Vec::new();
    for id in ["steady", "shared"] {
        provision(&harbor, id, PLAN_BOTH).await;
        ports.push(at(&bind(&harbor, id, &format!("binding-{id}"), PLAN_BOTH).await));
    }
    let living = Echo::start("living").await;
    let announced = Announced::new(Mutex::new(vec![message("steady", &living), message("shared", &living)]));
    let (mut tasks, mut traffic) = (JoinSet::new(), JoinSet::new());
    let stop = CancellationToken::new();
    tasks.spawn(announce(server.url(), Arc::clone(&announced), stop.clone()));
    // Two transports of two service instances.
    eventually_async("the living app is known", || async { (known(&harbor, &living).await == 4).then_some(()) }).await;
    traffic.spawn(ask(ports[0], stop.clone()));

    for _ in 0..TIMES {
        let mortal = Echo::start("mortal").await;
        let last_words = message("shared", &mortal);
        announced.lock().unwrap().push(last_words.clone());
        eventually_async("the other app is known", || async { (known(&harbor, &mortal).await == 2).then_some(()) })
            .await;
        server.kill();
        reaches(&harbor, "down").await;
        announced.lock().unwrap().retain(|message| *message != last_words);
        let (tcp, udp) = (mortal.tcp, mortal.udp);
        mortal.stop().await;
        for _ in 0..4 {
            assert_eq!(over_tcp(ports[1], "hello").await.as_deref(), Some("living: hello"));
        }
        assert_eq!(known(&harbor, &living).await, 4);
        server.restart();
        let back = Instant::now();
        reaches(&harbor, "up").await;
        assert!(back.elapsed() < RECONNECTED, "it took {:?}", back.elapsed());
        eventually_async("the dead app is forgotten", || async {
            assert_eq!(known(&harbor, &living).await, 4);
            let text = status(&harbor).await.to_string();
            (!text.contains(&tcp.to_string()) && !text.contains(&udp.to_string())).then_some(())
        })
        .await;
    }
    stop.cancel();
    let times = traffic.join_next().await.expect("there is one").expect("every answer came");
    assert!(times > 100, "{times} times is no traffic");
    tasks.join_next().await.expect("there is one").expect("announcing does not panic");
    assert!(harbor.terminate().success());
}

/// Fills the file system that holds `directory` of the process's mounts.
fn fill(process: u32, directory: &Path) -> PathBuf {
    let filler = PathBuf::from(format!("/proc/{process}/root{}", directory.display())).join("filler");
    let mut file = File::create(&filler).expect("root may");
    for block in [&[0; 4096][..], &[0]] {
        while file.write_all(block).is_ok() {}
    }
    filler
}

#[tokio::test]
async fn a_full_disk_is_told_and_stops_changes_until_there_is_room() {
    if !rustix::process::getuid().is_root() {
        return writeln!(io::stderr(), "skipped: only root can mount a small file system").expect("there is an output");
    }
    let site = Site::new("27450-27459", "");
    let disk = site.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let site = site.with("store.url", &format!("sqlite:{}/harbor.db", disk.display()));
    let serve = site.command(&["serve"]);
    let mut command = Command::new("unshare");
    let mount = r#"mount -t tmpfs -o size=4m harbor "$1" && exec "$0" serve"#;
    command.args(["--mount", "sh", "-c", mount]).arg(serve.get_program()).arg(&disk);
    command.envs(serve.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let harbor = site.start_with(command);
    harbor.ready().await;
    provision(&harbor, "before", PLAN_BOTH).await;

    let filler = fill(harbor.pid(), &disk);
    let body = json!({
        "service_id": SERVICE_ID, "plan_id": PLAN_BOTH, "organization_guid": "o", "space_guid": "s", "parameters": {}
    });
    let (broker, admin) = (harbor.broker(), harbor.admin());
    eventually_async("a change is refused", || async {
        // What fits into the rest of the last page is kept.
        let id = uuid::Uuid::new_v4();
        let answer = broker.put(&format!("/v2/service_instances/{id}"), &body).await;
        (answer.status == 503).then(|| assert!(answer.headers.contains_key("retry-after"), "{answer:?}"))
    })
    .await;
    eventually_async("the status tells it", || async {
        let degraded = status(&harbor).await["degraded"].to_string();
        (degraded.contains("the store is away") && degraded.contains("full")).then_some(())
    })
    .await;
    assert_eq!(admin.get("/readyz").await.status, 200, "what is there is served");

    fs::remove_file(filler).unwrap();
    eventually_async("the status is well again", || async {
        (status(&harbor).await["degraded"] == json!([])).then_some(())
    })
    .await;
    provision(&harbor, "after", PLAN_BOTH).await;
}
