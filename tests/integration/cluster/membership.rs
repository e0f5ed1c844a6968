//! Who takes part: joins, dies, is drained, resumed and removed.

use std::{sync::Arc, time::Duration};

use harbor::{
    cluster::{Cluster, Ears, Settings, Sources},
    model::{
        NodeId, Timestamp,
        member::{Member, Report},
    },
    store::Store as _,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::trio::{Trio, listens, name, node, nodes, port_of, put, reach, told};
use crate::{
    broker::fixture::{Breakable, TestClock},
    support::{eventually::eventually_async, harbor::Site, postgres::Postgres},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_is_not_ready_and_takes_nothing_new_until_it_is_resumed() {
    let mut trio =
        Trio::start_with(Postgres::shared(), 2, "27160-27169", "[forwarder]\ndrain_timeout = \"100ms\"").await;
    assert_eq!(put(&trio.nodes[0], "a", "").await.status, 201);
    let port = port_of(&trio.nodes[0], "a").await;
    let (asked, id) = (reach(&trio.nodes[0]), name(1));
    let (code, drained) = told(&trio.sites[0], &["drain", &id, "--admin", &asked]);
    assert_eq!((code, &drained["nodes"][0]["drain"]), (0, &json!(true)), "{drained}");
    let other = trio.nodes[1].admin();
    eventually_async("it is not ready", || async { (other.get("/readyz").await.status == 503).then_some(()) }).await;
    eventually_async("it takes nothing new", || async { (!listens(1, port).await).then_some(()) }).await;
    assert!(listens(0, port).await);
    // It is not waited for, and can be asked all the same.
    assert_eq!(put(&trio.nodes[1], "b", "").await.status, 201);
    let second = port_of(&trio.nodes[1], "b").await;
    assert!(listens(0, second).await && !listens(1, second).await);

    // The wish outlives the process.
    let before = trio.nodes.remove(1);
    before.signal(Signal::TERM);
    assert_eq!(before.wait().code(), Some(0));
    let again = trio.sites[1].start();
    eventually_async("it has joined again", || async {
        (again.admin().get("/admin/v1/status").await.json()["mode"] == "draining").then_some(())
    })
    .await;
    assert_eq!(again.admin().get("/readyz").await.status, 503);
    assert!(!listens(1, port).await);
    // Whoever is asked to resume it knows that it is there.
    let known = || async { (node(&trio.nodes[0], 1).await["mode"] == "draining").then_some(()) };
    eventually_async("the other one sees it drained", known).await;

    let (code, resumed) = told(&trio.sites[0], &["resume", &id, "--admin", &asked]);
    let resumed = &resumed["nodes"][0];
    assert_eq!((code, &resumed["drain"], &resumed["mode"]), (0, &json!(false), &json!("serving")), "{resumed}");
    again.ready().await;
    for port in [port, second] {
        eventually_async("it listens again", || async { listens(1, port).await.then_some(()) }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_is_waited_for_no_more_and_can_be_removed() {
    let mut trio = Trio::start(Postgres::shared(), 2, "27170-27179").await;
    let (asked, id) = (reach(&trio.nodes[0]), name(1));
    let (code, _) = told(&trio.sites[0], &["remove", &id, "--admin", &asked]);
    assert_eq!(code, 1, "it lives");
    trio.nodes.remove(1).kill();
    eventually_async("it is dead", || async { (node(&trio.nodes[0], 1).await["alive"] == false).then_some(()) }).await;
    let (code, list) = told(&trio.sites[0], &["list", "--admin", &asked]);
    assert_eq!((code, list["nodes"].as_array().map(Vec::len)), (1, Some(2)), "{list}");
    let start = std::time::Instant::now();
    assert_eq!(put(&trio.nodes[0], "a", "").await.status, 201);
    assert!(start.elapsed() < Duration::from_secs(3), "nobody was waited for");
    let removed = trio.sites[0].command(&["node", "remove", &id, "--admin", &asked]).output().unwrap();
    let words = String::from_utf8(removed.stdout).unwrap();
    assert!(removed.status.success() && words.contains(&format!("{id} is forgotten")), "{words}");
    eventually_async("it is forgotten", || async { (nodes(&trio.nodes[0]).await.len() == 1).then_some(()) }).await;
    let (code, _) = told(&trio.sites[0], &["list", "--admin", &asked]);
    assert_eq!(code, 0);
    let (code, _) = told(&trio.sites[0], &["remove", &id, "--admin", &asked]);
    assert_eq!(code, 1, "there is none any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_of_the_same_name_speaks_for_it_and_the_first_says_so() {
    let trio = Trio::start(Postgres::shared(), 1, "27180-27189").await;
    // Another address, the same name.
    let site = trio.site(0, "27180-27189", "");
    let text = std::fs::read_to_string(site.config()).unwrap().replace("127.0.0.11", "127.0.0.12");
    std::fs::write(site.config(), text).unwrap();
    let second = site.serve().await;
    trio.nodes[0].logged("another process has joined as this node");
    assert_eq!(nodes(&second).await.len(), 1);
    let first = &trio.nodes[0];
    let told = async || {
        let status = first.admin().get("/admin/v1/status").await.json();
        status["degraded"].to_string().contains("another process has joined as node-0 and speaks for it")
    };
    eventually_async("its status says so", || async { told().await.then_some(()) }).await;
    // It speaks again when the other one is gone.
    second.kill();
    eventually_async("it speaks for itself", || async { (!told().await).then_some(()) }).await;
    assert_eq!(put(first, "a", "").await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_hands_over_to_a_new_process_stays_one_node() {
    let trio = Trio::start_with(Postgres::shared(), 2, "27190-27199", "[forwarder]\ndrain_timeout = \"100ms\"").await;
    assert_eq!(put(&trio.nodes[0], "a", "").await.status, 201);
    let port = port_of(&trio.nodes[0], "a").await;
    let before = node(&trio.nodes[1], 0).await["joined_at"].clone();
    trio.nodes[0].restart();
    assert!(listens(0, port).await);
    for (asked, id) in [(0, "b"), (1, "c")] {
        assert_eq!(put(&trio.nodes[asked], id, "").await.parts(), (201, json!({})));
        let port = port_of(&trio.nodes[1], id).await;
        assert!(listens(0, port).await && listens(1, port).await, "{id}");
    }
    let seen = nodes(&trio.nodes[1]).await;
    assert!(seen.len() == 2 && seen.iter().all(|node| node["alive"] == true), "{seen:?}");
    assert!(!trio.nodes[0].log().contains("another process has joined"));
    assert_ne!(before, Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_store_of_its_own_is_drained_and_resumed_too() {
    let site = Site::new("27270-27279", "[forwarder]\ndrain_timeout = \"100ms\"");
    let alone = site.serve().await;
    assert_eq!(put(&alone, "a", "").await.status, 201);
    let port = port_of(&alone, "a").await;
    let at = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let admin = reach(&alone);
    let (code, drained) = told(&site, &["drain", "--admin", &admin]);
    assert_eq!((code, &drained["nodes"][0]["drain"]), (0, &json!(true)), "{drained}");
    eventually_async("it takes nothing new", || async {
        tokio::net::TcpStream::connect(at)
            .await
            .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
            .then_some(())
    })
    .await;
    assert_eq!(alone.admin().get("/readyz").await.status, 503);
    let refused = put(&alone, "b", "").await;
    assert_eq!(refused.status, 503);
    let words = refused.json()["description"].to_string();
    assert!(words.contains("every node of the pool default is dead or drained"), "{words}");
    assert_eq!(told(&site, &["resume", "--admin", &admin]).0, 0);
    alone.ready().await;
    assert_eq!(put(&alone, "b", "").await.status, 201);
    assert_eq!(told(&site, &["list", "--admin", &admin]).0, 0);
}

#[tokio::test]
async fn a_node_that_could_not_join_as_the_store_was_away_joins_when_it_is_back() {
    let store = Arc::new(Breakable::default());
    store.share();
    let id = NodeId::new("node-1").unwrap();
    let before = Member {
        id: id.clone(),
        incarnation: "the process before".into(),
        version: "0.1.0".into(),
        pools: Vec::new(),
        report: Report::default(),
        drain: false,
        joined_at: Timestamp::default(),
        seen_at: Timestamp::default(),
    };
    store.join(&before).await.unwrap();

    store.break_down(Some("join"));
    let (members, mut heard) = watch::channel(Arc::default());
    let sources = Sources {
        mode: watch::Sender::default().subscribe(),
        observations: watch::Sender::default().subscribe(),
        desired: watch::Sender::default().subscribe(),
        served: watch::Sender::default().subscribe(),
        flows: Box::new(|| 0),
    };
    let settings = Settings { node: id, incarnation: "this process".into(), version: "0.1.0".into() };
    let ears = Ears { members, changed: watch::Sender::default() };
    let cluster = Cluster::new(settings, store.clone(), Arc::new(TestClock::default()), sources, ears);
    let stop = CancellationToken::new();
    let mut running = JoinSet::new();
    running.spawn(cluster.run(stop.clone()));
    heard.changed().await.unwrap();
    assert_eq!(store.members().await.unwrap()[0].incarnation, "the process before", "it has tried by now");

    store.break_down(None);
    eventually_async("it has joined", || async {
        (store.members().await.unwrap()[0].incarnation == "this process").then_some(())
    })
    .await;
    stop.cancel();
    running.join_all().await;
}
