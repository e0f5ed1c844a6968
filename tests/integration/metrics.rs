//! Metrics of a running node: of each service instance, of no stranger, and what dashboard and alerts ask for.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr, TcpListener as HeldPort},
};

use harbor::model::plan::SERVICE_ID;
use serde_json::json;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use super::end_to_end::{PLAN_BOTH, PLAN_TCP, at, delete, provision, provision_with};
use crate::support::{
    echo::{Echo, tell},
    eventually::eventually_async,
    harbor::{AUTHORIZATION, Harbor, Site},
    http::Client,
    nats::NatsServer,
};

mod manifests;

/// Samples of a scrape: the name and its labels, as they are written, and the value.
type Samples = BTreeMap<String, f64>;

/// What a path of the operators' API shows, each sample once.
async fn scrape(harbor: &Harbor, path: &str) -> Samples {
    let answer = harbor.admin().get(path).await;
    assert_eq!(answer.status, 200);
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);
    let mut samples = Samples::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(samples.insert(series.into(), value.parse().unwrap()).is_none(), "{series} is there twice");
    }
    samples
}

/// A key for an app to announce itself by, and the address of the port.
async fn announce(harbor: &Harbor, id: &str, plan: &str, backend: &Echo) -> SocketAddr {
    let body = json!({"service_id": SERVICE_ID, "plan_id": plan, "parameters": {"announce": true}});
    let answer = harbor.broker().put(&format!("/v2/service_instances/{id}/service_bindings/key"), &body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let credentials = answer.json()["credentials"].clone();
    let token = credentials["announce"]["token"].as_str().unwrap();
    let app = Client::new(harbor.address("announce")).with("authorization", &format!("Bearer {token}"));
    let mut body = json!({"binding_id": "key", "port": backend.tcp.port()});
    if plan == PLAN_BOTH {
        body["udp_port"] = backend.udp.port().into();
    }
    let answer = app.put(&format!("/announce/v1/instances/{id}"), &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    at(&credentials)
}

/// An id with what has a meaning in the format, as it stands in a path and in a label.
const ODD_PATH: &str = "a%22b%5Cc%20%7D%2C%C3%A9";
const ODD_LABEL: &str = "a\\\"b\\\\c },é";

#[tokio::test]
async fn a_service_instance_has_its_series_until_it_goes() {
    let harbor = Site::new("18800-18809", "").serve().await;
    let backend = Echo::start("app").await;
    let requested = json!({"port": 18803});
    provision_with(&harbor, ODD_PATH, PLAN_BOTH, requested).await;
    provision(&harbor, "idle", PLAN_TCP).await;
    let address = announce(&harbor, ODD_PATH, PLAN_BOTH, &backend).await;

    let mut stream = TcpStream::connect(address).await.unwrap();
    assert_eq!(tell(&mut stream, "12345").await.unwrap(), "app: 12345");
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    client.connect(address).await.unwrap();
    let mut answer = [0; 100];
    for _ in 0..3 {
        client.send(b"123").await.unwrap();
        assert_eq!(client.recv(&mut answer).await.unwrap(), 8);
    }
    let its = format!("service_instance=\"{ODD_LABEL}\",pool=\"default\",port=\"18803\"");
    let expected = |open: u32| {
        let samples = [
            ("listener_bound", ",protocol=\"both\"", 1),
            ("backends", ",state=\"up\"", 2),
            ("backends", ",state=\"aside\"", 0),
            ("backends", ",state=\"down\"", 0),
            ("backends", ",state=\"draining\"", 0),
            ("connections_accepted_total", "", 1),
            ("connections_open", "", open),
            ("connections_closed_total", "", 1 - open),
            ("connections_refused_total", "", 0),
            ("sessions_opened_total", "", 1),
            ("sessions_open", "", 1),
            ("datagrams_total", ",direction=\"to_backend\"", 3),
            ("datagrams_total", ",direction=\"to_client\"", 3),
            ("datagrams_dropped_total", "", 0),
            ("tcp_carried_bytes_total", ",direction=\"to_backend\"", 5),
            ("tcp_carried_bytes_total", ",direction=\"to_client\"", 10),
            ("udp_carried_bytes_total", ",direction=\"to_backend\"", 9),
            ("udp_carried_bytes_total", ",direction=\"to_client\"", 24),
        ];
        let series = |(name, more, value): (&str, &str, u32)| {
            (format!("harbor_service_instance_{name}{{{its}{more}}}"), f64::from(value))
        };
        samples.map(series).into_iter().collect::<Samples>()
    };
    let shown = async |open: u32| {
        let samples = scrape(&harbor, "/metrics/instances").await;
        let of_it = samples.into_iter().filter(|(series, _)| series.contains(ODD_LABEL)).collect::<Samples>();
        (of_it == expected(open)).then_some(())
    };
    // What is sent is counted right after.
    eventually_async("all of it is counted", || shown(1)).await;
    drop(stream);
    eventually_async("the connection has ended", || shown(0)).await;

    let all = scrape(&harbor, "/metrics/instances").await;
    assert_eq!(all.len(), expected(0).len() + 11, "and those of the idle one");
    assert!(scrape(&harbor, "/metrics").await.keys().all(|series| !series.contains("service_instance=")));
    delete(&harbor, &format!("{ODD_PATH}/service_bindings/key"), PLAN_BOTH).await;
    delete(&harbor, ODD_PATH, PLAN_BOTH).await;
    assert_eq!(scrape(&harbor, "/metrics/instances").await.len(), 11);
    assert!(harbor.terminate().success());
}

#[tokio::test]
async fn they_are_in_the_other_scrape_too_when_the_operator_wants_them_there() {
    let harbor = Site::new("18810-18811", "").with("admin.metrics_instances", "true").serve().await;
    provision(&harbor, "one", PLAN_TCP).await;
    let (all, own) = (scrape(&harbor, "/metrics").await, scrape(&harbor, "/metrics/instances").await);
    assert_eq!(own.len(), 11);
    assert!(own.keys().all(|series| all.contains_key(series)));
    assert!(all["process_open_fds"] > 10.0 && all["process_open_fds"] < all["process_max_fds"], "{all:?}");
    assert!(all["process_resident_memory_bytes"] > 1e6 && all["process_cpu_seconds_total"] > 0.0);
    assert!(all["process_start_time_seconds"] > 1.7e9);
    assert!(harbor.terminate().success());
}

#[tokio::test]
async fn refused_connections_and_dropped_datagrams_count_for_their_port() {
    let harbor = Site::new("18812-18812", "").serve().await;
    provision_with(&harbor, "closed", PLAN_BOTH, json!({"allow": ["10.9.9.9/32"]})).await;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 18812));
    for _ in 0..3 {
        // Reset at once, perhaps before this end has seen that it was connected.
        drop(TcpStream::connect(address).await);
    }
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    for _ in 0..5 {
        client.send_to(b"hello", address).await.unwrap();
    }
    eventually_async("they are counted", async || {
        let samples = scrape(&harbor, "/metrics/instances").await;
        let of = |name| {
            let labels = "{service_instance=\"closed\",pool=\"default\",port=\"18812\"}";
            samples[&format!("harbor_service_instance_{name}{labels}")] as u32
        };
        let counts = (of("connections_refused_total"), of("datagrams_dropped_total"));
        (counts == (3, 5) && of("connections_accepted_total") == 0 && of("sessions_opened_total") == 0).then_some(())
    })
    .await;
    assert!(harbor.terminate().success());
}

#[tokio::test]
async fn a_stranger_on_a_port_shows_whether_it_is_allocated_or_not() {
    let site = Site::new("18814-18815", "");
    let harbor = site.serve().await;
    provision_with(&harbor, "first", PLAN_TCP, json!({"port": 18814})).await;
    assert!(harbor.terminate().success());
    let [allocated, free] = [18814, 18815].map(|port| HeldPort::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
    let harbor = site.start();
    harbor.ready().await;
    let body = json!({"service_id": SERVICE_ID, "plan_id": PLAN_TCP, "organization_guid": "o", "space_guid": "s"});
    let refused = harbor.broker().put("/v2/service_instances/second", &body).await;
    assert!(!refused.status.is_success(), "{refused:?}");
    let samples = scrape(&harbor, "/metrics").await;
    assert_eq!(samples["harbor_listeners{state=\"failed\"}"], 1.0);
    assert_eq!(samples["harbor_pool_ports{pool=\"default\",state=\"in_conflict\"}"], 1.0);
    assert!(scrape(&harbor, "/metrics/instances").await.iter().any(|(series, bound)| {
        series.starts_with("harbor_service_instance_listener_bound{service_instance=\"first\"") && *bound == 0.0
    }));
    drop((allocated, free));
    eventually_async("it is taken as soon as it is free", async || {
        let samples = scrape(&harbor, "/metrics").await;
        (samples["harbor_listeners{state=\"bound\"}"] == 1.0).then_some(())
    })
    .await;
    assert!(harbor.terminate().success());
}

/// Rounds of what strangers could do, and what each has of a kind.
const ROUNDS: u32 = 10;
const OF_A_KIND: u32 = 200;
/// Clients in each turn, all of them with an address of their own: 10,000 in all.
const CLIENTS: u8 = 5;

#[tokio::test]
async fn whatever_callers_say_makes_no_series() {
    let server = NatsServer::start();
    let harbor = Site::new("18820-18829", &format!("[nats]\nservers = [{:?}]\n", server.url())).serve().await;
    let nats = async_nats::connect(server.url()).await.unwrap();
    provision(&harbor, "one", PLAN_BOTH).await;
    let samples = scrape(&harbor, "/metrics/instances").await;
    let port = samples.keys().next().unwrap().split("port=\"").nth(1).unwrap()[..5].parse::<u16>().unwrap();
    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut after_the_second = BTreeSet::new();
    for round in 0..ROUNDS {
        for number in 0..OF_A_KIND {
            let odd = format!("{}-{}", fastrand::u64(..), round * OF_A_KIND + number);
            strange_requests(&harbor, &odd, number).await;
            let message =
                json!({"service_instance_id": odd, "host": "127.0.0.1", "port": fastrand::u16(1..), "app": odd});
            nats.publish("harbor.register", message.to_string().into()).await.unwrap();
            let message = json!({"host": odd, "port": fastrand::u16(1..), "app": odd, "uris": [odd]});
            nats.publish("router.register", message.to_string().into()).await.unwrap();
            for client in 1..=CLIENTS {
                let from = SocketAddr::from((Ipv4Addr::new(127, client, round as u8, number as u8), 0));
                let socket = TcpSocket::new_v4().unwrap();
                socket.bind(from).unwrap();
                // There is no backend: it is reset, perhaps at once.
                drop(socket.connect(target).await);
                UdpSocket::bind(from).await.unwrap().send_to(odd.as_bytes(), target).await.unwrap();
            }
        }
        nats.flush().await.unwrap();
        if round == 1 {
            after_the_second = scrape(&harbor, "/metrics").await.into_keys().collect();
        }
    }
    eventually_async("all announcements have come", async || {
        let samples = scrape(&harbor, "/metrics").await;
        let refused = samples.iter().filter(|(series, _)| series.starts_with("harbor_announcement_refusals_total{"));
        (refused.map(|(_, count)| count).sum::<f64>() >= f64::from(ROUNDS * OF_A_KIND)).then_some(())
    })
    .await;
    let samples = scrape(&harbor, "/metrics").await;
    let clients = f64::from(ROUNDS * OF_A_KIND * u32::from(CLIENTS));
    assert!(samples["harbor_connections_closed_total{reason=\"no_backend\"}"] >= clients * 0.9);
    let after_all = samples.into_keys().collect::<BTreeSet<_>>();
    assert_eq!(after_all.difference(&after_the_second).collect::<Vec<_>>(), Vec::<&String>::new());
    assert!(after_all.len() < 700, "{} series", after_all.len());
    assert_eq!(scrape(&harbor, "/metrics/instances").await.len(), 18);
    assert!(harbor.terminate().success());
}

/// A request to one of the APIs that names what is not there.
async fn strange_requests(harbor: &Harbor, odd: &str, number: u32) {
    let broker = harbor.broker();
    let method = [&format!("M{odd}"), "GET", "DELETE", "PATCH", "PUT"][number as usize % 5].parse().unwrap();
    let answer = match number % 4 {
        0 => broker.send(method, &format!("/v2/service_instances/{odd}?plan_id={odd}&service_id={odd}"), None).await,
        1 => broker.send(method, &format!("/v2/{odd}/{odd}"), None).await,
        2 => {
            Client::new(harbor.address("announce"))
                .with("authorization", &format!("Bearer {odd}"))
                .send(method, &format!("/announce/v1/instances/{odd}"), Some(&json!({"binding_id": odd, "port": 1})))
                .await
        }
        _ => Client::broker(harbor.address("broker"), &format!("{AUTHORIZATION}{odd}")).get(&format!("/{odd}")).await,
    };
    assert!(answer.status.as_u16() >= 400, "{answer:?}");
    assert!(harbor.admin().get(&format!("/metrics/{odd}")).await.status.as_u16() >= 400);
}
