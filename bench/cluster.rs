//! Nodes on one PostgreSQL and one NATS, all on this machine: how long a change takes to all of them, and what that costs
//! the platform.
//!
//!     cargo bench --bench cluster [-- --check]
//!
//! Prints one line a figure; with `--check` it ends with 1 when a bound is not met, and says which. It needs PostgreSQL,
//! nats-server, the ports 26000 to 26499 on 127.0.0.11 to 127.0.0.13, and a machine that does nothing else.

use std::process::ExitCode;

use serde_json::Value;

mod platform;
mod sample;
#[path = "cluster/support.rs"]
mod support;
#[allow(dead_code, reason = "tests ask for more")]
#[path = "../tests/integration/cluster/trio.rs"]
mod trio;
mod verdict;

/// Where `trio` looks for its plan.
mod end_to_end {
    pub use super::platform::PLAN_TCP;
}

use platform::{deprovision, provision};
use sample::{Sample, milliseconds};
use support::{eventually::eventually, harbor::Harbor, http, postgres::Postgres};
use trio::Trio;
use verdict::{Verdict, say};

/// Nodes at the most.
const MOST_NODES: u8 = 3;
/// Provisions, and as many deprovisions, with each number of nodes; the first few only warm up.
const SAMPLES: usize = 300;
const WARM_UP: usize = 20;
/// What PostgreSQL has on a machine of its own: what is committed is on the disk.
const DURABLE: &str = "fsync = on\nfull_page_writes = on\nshared_buffers = '128MB'";
/// From the commit on one node until all others have said that they have carried it out.
const ELSEWHERE_P50_MS: f64 = 50.0;

/// What the nodes say took so long, by the key under which they log it.
fn told(nodes: &[Harbor], key: &str) -> Vec<f64> {
    let lines = nodes.iter().flat_map(|node| node.log().lines().map(str::to_owned).collect::<Vec<_>>());
    let fields = lines.filter_map(|line| Some(serde_json::from_str::<Value>(&line).ok()?["fields"].clone()));
    let ours = fields.filter(|fields| fields["service_instance"].as_str().is_some_and(|id| id.starts_with("sample-")));
    ours.filter_map(|fields| fields[key].as_f64()).collect()
}

/// Provisions and deprovisions on each node in turn. Returns how long it took from a commit until every node listened, and
/// until none did, as the node that committed has heard it.
async fn change(trio: &Trio) -> (Sample, Sample) {
    let (mut provisions, mut deprovisions) = (Vec::new(), Vec::new());
    for number in 0..WARM_UP + SAMPLES {
        let node = &trio.nodes[number % trio.nodes.len()];
        let kind = if number < WARM_UP { "warm-up" } else { "sample" };
        let id = format!("{kind}-{number}");
        let client = node.broker();
        let (provisioned, deprovisioned) = (provision(&client, &id).await, deprovision(&client, &id).await);
        if number >= WARM_UP {
            provisions.push(milliseconds(provisioned));
            deprovisions.push(milliseconds(deprovisioned));
        }
    }
    let label = format!("with {} of {MOST_NODES} nodes", trio.nodes.len());
    say(&format!("provision {label}, request to answer: {}", Sample::of(provisions)));
    say(&format!("deprovision {label}, request to answer: {}", Sample::of(deprovisions)));
    // The log comes by a pipe.
    let whole = |key: &str| {
        eventually("all changes are in the log", || {
            let told = told(&trio.nodes, key);
            (told.len() == SAMPLES).then(|| Sample::of(told))
        })
    };
    (whole("listening_after_ms"), whole("closed_after_ms"))
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut verdict = Verdict::default();
    let postgres = Postgres::start_with(DURABLE, &[]);
    for count in 1..=MOST_NODES {
        let trio = Trio::start(&postgres, count, "26000-26499").await;
        let (opened, closed) = change(&trio).await;
        let all = if count == 1 { "that node" } else { "all nodes" };
        say(&format!("commit to listening on {all} of {count}: {opened}"));
        say(&format!("commit to closed on {all} of {count}: {closed}"));
        if count > 1 {
            let bound = ELSEWHERE_P50_MS;
            verdict.say(&format!("commit to listening on all of {count}, p50"), opened.percentile(50), "ms", bound);
            verdict.say(&format!("commit to closed on all of {count}, p50"), closed.percentile(50), "ms", bound);
        }
    }
    verdict.end()
}
