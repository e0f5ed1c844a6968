//! Many at once.

use std::collections::BTreeSet;

use serde_json::json;
use tokio::task::JoinSet;

use super::fixture::{INSTANCES, QUERY, bind_app, request, request_with, site_with};

const PARALLEL: usize = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn parallel_provisions_never_share_a_port() {
    let site = site_with("25600-25649", "25650-25650").await;
    let mut requests = JoinSet::new();
    for n in 0..PARALLEL {
        let client = site.client.clone();
        let name = ["tcp", "udp", "both"][n % 3];
        requests.spawn(async move { client.put(&format!("{INSTANCES}/{n}"), &request(name)).await.parts() });
    }
    let answers = requests.join_all().await;
    assert!(answers.iter().all(|answer| *answer == (201, json!({}))), "{answers:?}");
    let everything = site.everything().await;
    let ports = everything.instances.iter().map(|instance| instance.port).collect::<BTreeSet<_>>();
    assert_eq!(ports, (25_600..25_650).collect(), "fifty ports for fifty, each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn parallel_identical_provisions_give_one_service_instance() {
    let site = site_with("25660-25669", "25670-25670").await;
    let mut requests = JoinSet::new();
    for _ in 0..PARALLEL {
        let client = site.client.clone();
        requests.spawn(async move { client.put(&format!("{INSTANCES}/a"), &request("tcp")).await.status.as_u16() });
    }
    let mut answers = requests.join_all().await;
    answers.sort_unstable();
    assert_eq!((answers[0], answers[PARALLEL - 2], answers[PARALLEL - 1]), (200, 200, 201));
    assert_eq!(site.everything().await.instances.len(), 1);
    assert_eq!(site.control.overview().await[0].counts.free, 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_port_that_many_want_goes_to_one_of_them() {
    let site = site_with("25680-25689", "25690-25690").await;
    let mut requests = JoinSet::new();
    for n in 0..PARALLEL {
        let client = site.client.clone();
        let body = request_with("tcp", json!({ "port": 25_685 }));
        requests.spawn(async move { client.put(&format!("{INSTANCES}/{n}"), &body).await.status.as_u16() });
    }
    let mut answers = requests.join_all().await;
    answers.sort_unstable();
    assert_eq!((answers[0], answers[PARALLEL - 1]), (201, 400));
    assert_eq!(answers.iter().filter(|status| **status == 201).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn work_on_one_service_instance_is_done_in_turn() {
    let site = site_with("25700-25729", "25730-25730").await;
    let mut requests = JoinSet::new();
    for n in 0..PARALLEL {
        let client = site.client.clone();
        requests.spawn(async move {
            let path = format!("{INSTANCES}/a");
            let binding = format!("{path}/service_bindings/{n}");
            match n % 5 {
                0 => client.put(&path, &request("tcp")).await,
                1 => client.delete(&format!("{path}?{QUERY}")).await,
                2 => client.put(&binding, &bind_app("app")).await,
                3 => client.get(&path).await,
                _ => client.delete(&format!("{binding}?{QUERY}")).await,
            }
            .status
            .as_u16()
        });
    }
    let answers = requests.join_all().await;
    assert!(answers.iter().all(|status| [200, 201, 404, 410].contains(status)), "{answers:?}");
    let everything = site.everything().await;
    assert!(everything.instances.len() <= 1);
    assert_eq!(site.control.desired().borrow().listeners.size(), everything.instances.len());
    let usage = site.control.overview().await[0].counts;
    assert_eq!(usage.allocated, everything.instances.len());
    assert_eq!(usage.free + usage.quarantined + usage.allocated, 30, "no port is lost");
}
