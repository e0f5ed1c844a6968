//! Parts that go away and come back.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use harbor::model::plan::SERVICE_ID;
use hyper::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::{
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::trio::{Trio, address, listens, port_of, put, wish};
use crate::{
    end_to_end::{PLAN_BOTH, PLAN_TCP, announce, bind, provision, served, status},
    support::{
        echo::{Echo, over_tcp, tell},
        eventually::{PATIENCE, eventually_async},
        harbor::Harbor,
        http::Answer,
        postgres::Postgres,
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn without_postgresql_traffic_goes_on_and_writes_are_refused_within_a_second() {
    let mut postgres = Postgres::start();
    let trio = Trio::start_with(&postgres, 2, "27240-27249", "cut_off_after = \"2s\"").await;
    assert_eq!(put(&trio.nodes[0], "a", "").await.status, 201);
    let port = port_of(&trio.nodes[0], "a").await;
    let body = json!({ "service_id": SERVICE_ID, "plan_id": PLAN_TCP, "bind_resource": { "app_guid": "app" } });
    let bound = trio.nodes[0].broker().put("/v2/service_instances/a/service_bindings/app", &body).await;
    assert_eq!(bound.status, 201);
    let nats = async_nats::connect(trio.nats.url()).await.unwrap();
    let app = Echo::start("app").await;
    let announce = async |port: u16| {
        let message = json!({ "host": "127.0.0.1", "port": port, "app": "app", "harbor": { "instance_id": "a" } });
        nats.publish("harbor.register", message.to_string().into()).await.unwrap();
        nats.flush().await.unwrap();
    };
    // As apps do, again and again: a node may have to hear of the binding first.
    let serves = async |app: &Echo, name: &str| {
        for number in 0..2 {
            eventually_async(&format!("{name} on {number}"), || async {
                announce(app.tcp.port()).await;
                let answer = over_tcp((address(number), port).into(), "hello").await?;
                (answer == format!("{name}: hello")).then_some(())
            })
            .await;
        }
    };
    serves(&app, "app").await;

    for silent in [false, true] {
        if silent {
            postgres.pause()
        } else {
            postgres.kill()
        }
        for node in &trio.nodes {
            for _ in 0..3 {
                let start = Instant::now();
                let answer = put(node, "b", "").await;
                let took = start.elapsed();
                assert_eq!(answer.status, 503, "{answer:?}");
                assert!(answer.headers.contains_key("retry-after") && took < Duration::from_secs(1), "{took:?}");
            }
            // Also those that wait for one another.
            let start = Instant::now();
            let binds = join_all((0..8).map(async |number| {
                let path = format!("/v2/service_instances/a/service_bindings/late-{number}");
                node.broker().put(&path, &body).await.status.as_u16()
            }));
            assert_eq!(binds.await, [503; 8]);
            assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        }
        eventually_async("it does not pretend to know the others", || async {
            let told = super::trio::nodes(&trio.nodes[0]).await;
            told[0]["problems"].to_string().contains("the store is away").then_some(())
        })
        .await;
        // Announcements go on as traffic does.
        let second = Echo::start("second").await;
        serves(&second, "second").await;
        second.stop().await;
        if silent {
            postgres.resume()
        } else {
            postgres.start_again()
        }
        for (number, node) in trio.nodes.iter().enumerate() {
            let id = format!("back-{silent}-{number}");
            eventually_async("it recovers by itself", || async {
                [200, 201].contains(&put(node, &id, "").await.status.as_u16()).then_some(())
            })
            .await;
        }
        trio.meet().await;
        let port = port_of(&trio.nodes[0], &format!("back-{silent}-1")).await;
        eventually_async("both listen", || async { (listens(0, port).await && listens(1, port).await).then_some(()) })
            .await;
    }
}

/// Tells something in a datagram of a socket that is connected, and hears the answer.
async fn tell_over_udp(socket: &UdpSocket, text: &str) -> String {
    socket.send(text.as_bytes()).await.unwrap();
    let mut answer = [0; 64];
    let length = timeout(PATIENCE, socket.recv(&mut answer)).await.expect("an answer").unwrap();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

/// How soon what is under way is answered when PostgreSQL hangs: the 0.8 s of one wait for it, and what a busy machine adds.
/// Two such waits in a row take longer.
const ANSWERED: Duration = Duration::from_millis(1500);

/// Asks for all that becomes of a service instance, again and again, until something is refused. Returns when each request
/// was made and answered, and how.
async fn live_on(node: &Harbor, name: &str) -> Vec<(Instant, Instant, Answer)> {
    let (broker, mut seen) = (node.broker(), Vec::new());
    let query = format!("service_id={SERVICE_ID}&plan_id={PLAN_TCP}");
    let key = json!({ "service_id": SERVICE_ID, "plan_id": PLAN_TCP });
    let change = json!({ "service_id": SERVICE_ID, "parameters": { "balance": "random" } });
    for round in 0.. {
        let path = format!("/v2/service_instances/{name}-{round}");
        let binding = format!("{path}/service_bindings/{name}-{round}");
        let requests = [
            (Method::PUT, path.clone(), Some(wish(PLAN_TCP, json!({})))),
            (Method::PUT, binding.clone(), Some(key.clone())),
            (Method::PATCH, path.clone(), Some(change.clone())),
            (Method::DELETE, format!("{binding}?{query}"), None),
            (Method::DELETE, format!("{path}?{query}"), None),
        ];
        for (method, path, body) in requests {
            let asked = Instant::now();
            let answer = broker.send(method, &path, body.as_ref()).await;
            let refused = !answer.status.is_success();
            seen.push((asked, Instant::now(), answer));
            if refused {
                return seen;
            }
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_under_way_when_postgresql_hangs_is_answered_as_soon_as_what_comes_later() {
    let postgres = Postgres::start();
    let trio = Trio::start(&postgres, 2, "27530-27599").await;
    let revision = async || status(&trio.nodes[0]).await["revision_desired"].as_u64().expect("a number");
    for cycle in 0..3 {
        let begun = revision().await;
        let hang = async {
            let goes_on = || async { (revision().await > begun + 100).then_some(()) };
            eventually_async("work is under way", goes_on).await;
            postgres.pause();
            Instant::now()
        };
        let names = (0..12).map(|number| format!("i{cycle}-{number}")).collect::<Vec<_>>();
        let work = names.iter().enumerate().map(|(number, name)| live_on(&trio.nodes[number % 2], name));
        let (seen, hung_at) = tokio::join!(join_all(work), hang);
        for (asked, answered, answer) in seen.into_iter().flatten() {
            let took = answered.saturating_duration_since(asked.max(hung_at));
            assert!(took < ANSWERED, "{answer:?} after {took:?}");
            assert!(answer.status == 503 || answer.status.is_success(), "{answer:?}");
        }
        postgres.resume();
        eventually_async("it goes on", || async {
            [200, 201].contains(&put(&trio.nodes[0], &format!("back-{cycle}"), "").await.status.as_u16()).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_cut_off_from_both_goes_on_and_is_not_ready_after_a_while() {
    let mut postgres = Postgres::start();
    let mut trio = Trio::start_with(&postgres, 1, "27250-27259", "cut_off_after = \"1s\"").await;
    provision(&trio.nodes[0], "a", PLAN_BOTH).await;
    bind(&trio.nodes[0], "a", "binding", PLAN_BOTH).await;
    let (to, app) = ((address(0), port_of(&trio.nodes[0], "a").await).into(), Echo::start("app").await);
    let nats = async_nats::connect(trio.nats.url()).await.unwrap();
    announce(&nats, "a", &app).await;
    assert_eq!(served(to).await, "app: hello");
    let udp = async || {
        let socket = UdpSocket::bind((address(0), 0)).await.unwrap();
        socket.connect(to).await.unwrap();
        socket
    };
    let (mut stream, session) = (TcpStream::connect(to).await.unwrap(), udp().await);
    // All of it is answered, over connections and sessions that were there before and over new ones.
    let serves = async |stream: &mut TcpStream| {
        for text in ["one", "two"] {
            let answer = format!("app: {text}");
            assert_eq!(tell(stream, text).await.as_ref(), Some(&answer));
            assert_eq!(over_tcp(to, text).await.as_ref(), Some(&answer));
            assert_eq!(tell_over_udp(&session, text).await, answer);
            assert_eq!(tell_over_udp(&udp().await, text).await, answer);
        }
    };
    serves(&mut stream).await;
    postgres.kill();
    trio.nats.kill();
    serves(&mut stream).await;
    let admin = trio.nodes[0].admin();
    let reasons = eventually_async("it is not ready", || async {
        let answer = admin.get("/readyz").await;
        (answer.status == 503).then(|| answer.json()["reasons"].clone())
    });
    assert_eq!(reasons.await, json!(["neither the store nor NATS has been reached for a while"]));
    serves(&mut stream).await;
    postgres.start_again();
    eventually_async("it is ready again", || async { (admin.get("/readyz").await.status == 200).then_some(()) }).await;
    serves(&mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_without_postgresql_waits_for_it() {
    let mut postgres = Postgres::start();
    let mut trio = Trio::start(&postgres, 1, "27260-27269").await;
    assert_eq!(put(&trio.nodes[0], "a", "").await.status, 201);
    let port = port_of(&trio.nodes[0], "a").await;
    trio.nodes.remove(0).kill();
    postgres.stop();
    let waiting = trio.sites[0].start();
    waiting.logged("waiting for the store");
    waiting.signal(Signal::TERM);
    assert_eq!(waiting.wait().code(), Some(0));
    let waiting = trio.sites[0].start();
    waiting.logged("waiting for the store");
    postgres.start_again();
    waiting.ready().await;
    assert!(listens(0, port).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_take_over_a_store_from_the_past_whatever_it_is_at_by_then() {
    let mut postgres = Postgres::start();
    let trio = Trio::start(&postgres, 2, "27490-27519").await;
    let provision = async |names: &str, count: usize| {
        for number in 0..count {
            let id = format!("{names}-{number}");
            eventually_async("it is provisioned", || async {
                [200, 201].contains(&put(&trio.nodes[0], &id, "").await.status.as_u16()).then_some(())
            })
            .await;
        }
    };
    provision("kept", 2).await;
    postgres.back_up();
    trio.meet().await;
    provision("lost", 3).await;
    let mut file = std::fs::OpenOptions::new().append(true).open(trio.sites[0].config()).unwrap();
    file.write_all(b"[pools.late]\nport_range = \"27520-27529\"\nhost = \"127.0.0.1\"\n").unwrap();
    trio.nodes[0].signal(Signal::HUP);
    trio.nodes[0].logged("the configuration was taken over");
    postgres.restore();
    // The revision is soon beyond the one that nodes had read.
    provision("after", 6).await;
    for number in 0..2 {
        let of = |instance: &Value| instance["id"].as_str().unwrap().split('-').next().unwrap().to_owned();
        eventually_async("it has what the store has", || async {
            let status = trio.nodes[number].admin().get("/admin/v1/status").await.json();
            let names = status["service_instances"].as_array().unwrap().iter().map(of).collect::<Vec<_>>();
            let count = |name: &str| names.iter().filter(|of| *of == name).count();
            (count("kept") == 2 && count("lost") == 0 && count("after") == 6).then_some(())
        })
        .await;
    }
    let defined = || postgres.sql(trio.url.split(['/', '?']).nth(3).unwrap(), "SELECT name FROM pools ORDER BY name");
    eventually_async("the pool is defined anew", || async { (defined() == "default\nlate\n").then_some(()) }).await;
    for number in 0..6 {
        let port = port_of(&trio.nodes[0], &format!("after-{number}")).await;
        assert!(listens(0, port).await && listens(1, port).await, "{port}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_store_goes_away_while_it_starts_waits_for_it() {
    let mut trio = Trio::start(Postgres::shared(), 1, "27480-27489").await;
    trio.nodes.remove(0).kill();
    let mut other = PgConnection::connect(&trio.url.replace("@/", "@localhost/")).await.unwrap();
    // It can be opened, and gives no answers.
    for table in ["pools", "nodes"] {
        other.execute(AssertSqlSafe(format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))).await.unwrap();
        let waiting = trio.sites[0].start();
        waiting.logged("opened the store");
        waiting.logged("nothing is served before it answers");
        other.execute("ROLLBACK").await.unwrap();
        waiting.ready().await;
    }
}
