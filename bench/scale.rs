//! One node with 5,000 TCP service instances: provision latency at 10 and at 5,000, memory, and start to ready.
//!
//!     cargo bench --bench scale
//!
//! Prints one line a figure. It needs 5,300 free ports from 26500 and 20,000 descriptors.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use hyper::Method;
use serde_json::{Value, json};

#[path = "../tests/integration/support/eventually.rs"]
mod eventually;
#[path = "../tests/integration/support/http.rs"]
mod http;
#[path = "../tests/integration/support/harbor.rs"]
mod process;

use http::Client;
use process::{Harbor, Site};

/// The plan `tcp`.
const PLAN_TCP: &str = "e1f6b1f0-57f3-5c0e-8a0b-6d3a6f0c1a02";
/// Service instances of the full node.
const MANY: usize = 5_000;
/// Requests in flight while the node is filled.
const FILLING: usize = 16;
/// Provisions, one after the other, per measured latency.
const SAMPLES: usize = 300;

fn body() -> Value {
    json!({
        "service_id": harbor::model::plan::SERVICE_ID,
        "plan_id": PLAN_TCP,
        "organization_guid": "org",
        "space_guid": "space",
    })
}

async fn provision(client: &Client, id: &str) -> Duration {
    let start = Instant::now();
    let answer = client.put(&format!("/v2/service_instances/{id}"), &body()).await;
    assert_eq!(answer.status, 201, "{id}: {answer:?}");
    start.elapsed()
}

async fn deprovision(client: &Client, id: &str) {
    let query = format!("service_id={}&plan_id={PLAN_TCP}", harbor::model::plan::SERVICE_ID);
    let answer = client.send(Method::DELETE, &format!("/v2/service_instances/{id}?{query}"), None).await;
    assert_eq!(answer.status, 200, "{id}: {answer:?}");
}

/// Latencies of provisions at the present number of service instances, which stays.
async fn latency(client: &Client, label: &str) {
    let mut latencies = Vec::with_capacity(SAMPLES);
    for sample in 0..SAMPLES {
        let id = format!("sample-{sample}");
        latencies.push(provision(client, &id).await);
        deprovision(client, &id).await;
    }
    latencies.sort();
    say(&format!(
        "provision at {label}: p50 {:.2} ms, p99 {:.2} ms, maximum {:.2} ms",
        milliseconds(latencies[SAMPLES / 2]),
        milliseconds(latencies[SAMPLES * 99 / 100]),
        milliseconds(latencies[SAMPLES - 1]),
    ));
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn memory(harbor: &Harbor) -> String {
    let status = std::fs::read_to_string(format!("/proc/{}/status", harbor.pid())).expect("the process lives");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("Linux says so");
    let kib: f64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number of KiB");
    format!("{:.1} MiB", kib / 1024.0)
}

fn descriptors(harbor: &Harbor) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", harbor.pid())).expect("the process lives").count()
}

fn say(line: &str) {
    // A closed output is no reason to stop measuring.
    let _ = writeln!(std::io::stdout(), "{line}");
}

#[tokio::main]
async fn main() {
    let site = Site::new("26500-31999", "");
    let harbor = site.serve().await;
    let client = harbor.broker();
    for number in 0..10 {
        provision(&client, &format!("instance-{number}")).await;
    }
    say(&format!("at 10: resident {}, {} descriptors", memory(&harbor), descriptors(&harbor)));
    latency(&client, "10").await;

    let start = Instant::now();
    stream::iter(10..MANY)
        .for_each_concurrent(FILLING, |number| {
            let client = client.clone();
            async move {
                provision(&client, &format!("instance-{number}")).await;
            }
        })
        .await;
    let each = start.elapsed() / u32::try_from(MANY - 10).expect("few enough");
    say(&format!("filled to {MANY} with {FILLING} requests at once: {:.2} ms each", milliseconds(each)));
    say(&format!("at {MANY}: resident {}, {} descriptors", memory(&harbor), descriptors(&harbor)));
    latency(&client, "5,000").await;
    harbor.kill();

    for round in 1..=3 {
        let start = Instant::now();
        let harbor = site.serve().await;
        let took = start.elapsed();
        say(&format!("restart {round}: ready after {:.0} ms, resident {}", milliseconds(took), memory(&harbor)));
        harbor.kill();
    }
}
