//! One node with 5,000 TCP service instances: memory, start, adding and removing ports, and what traffic notices of it.
//!
//!     cargo bench --bench scale [-- --check]
//!
//! Prints one line a figure; with `--check` it ends with 1 when a bound is not met, and says which. It needs 5,400 free
//! ports from 26500 and 20,000 descriptors, and a machine that does nothing else.

use std::{
    collections::HashMap,
    process::ExitCode,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use serde_json::Value;

#[path = "../tests/integration/support/eventually.rs"]
mod eventually;
#[path = "../tests/integration/support/http.rs"]
mod http;
mod platform;
#[path = "../tests/integration/support/harbor.rs"]
mod process;
mod sample;
#[path = "scale/traffic.rs"]
mod traffic;
mod verdict;

use eventually::eventually;
use http::Client;
use platform::{deprovision, provision};
use process::{Harbor, Site};
use sample::{Sample, milliseconds};
use traffic::Traffic;
use verdict::{Verdict, say};

/// Service instances of the full node.
const MANY: usize = 5_000;
/// Requests in flight while the node is filled.
const FILLING: usize = 16;
/// Ports added and removed, one after the other, per measured latency.
const SAMPLES: usize = 500;
/// Starts of the full node.
const STARTS: usize = 5;
/// Rounds of traffic with and without changes, in turn, and how long each half is.
const ROUNDS: usize = 5;
const HALF_ROUND: Duration = Duration::from_secs(4);
/// How often a port is added and removed while there is traffic.
const CHANGE_EVERY: Duration = Duration::from_millis(10);

/// Bounds, by figure.
const RESIDENT_MORE_MIB: f64 = 24.0;
const ALL_LISTENING_MS: f64 = 300.0;
const CHANGE_P50_MS: f64 = 2.0;
const CHANGE_P99_MS: f64 = 20.0;
/// What is taken for no effect on an exchange: the median of the rounds' differences.
const EFFECT_P50_MS: f64 = 0.1;
const EFFECT_P99_MS: f64 = 1.0;

/// How long changes took, at the present number of service instances, which stays.
#[derive(Debug)]
struct Changes {
    /// From the commit until the port listens, and until it no longer does: the node's own word.
    opened: Sample,
    closed: Sample,
}

/// Adds and removes ports, and says how long the platform waits for that.
async fn change(harbor: &Harbor, label: &str) -> Changes {
    let client = harbor.broker();
    let (mut provisions, mut deprovisions) = (Vec::with_capacity(SAMPLES), Vec::with_capacity(SAMPLES));
    for sample in 0..SAMPLES {
        let id = format!("at {label}, {sample}").replace(' ', "%20");
        provisions.push(milliseconds(provision(&client, &id).await));
        deprovisions.push(milliseconds(deprovision(&client, &id).await));
    }
    say(&format!("provision at {label}, request to answer: {}", Sample::of(provisions)));
    say(&format!("deprovision at {label}, request to answer: {}", Sample::of(deprovisions)));
    let ours = format!("at {label}, ");
    let told = |key: &str| {
        let sample = logged(harbor).filter(|fields| text(fields, "service_instance").starts_with(&ours));
        Sample::of(sample.filter_map(|fields| fields[key].as_f64()))
    };
    // The log comes by a pipe.
    eventually("all changes are in the log", || (told("closed_after_ms").0.len() == SAMPLES).then_some(()));
    Changes { opened: told("listening_after_ms"), closed: told("closed_after_ms") }
}

/// The fields of each line of the log so far.
fn logged(harbor: &Harbor) -> impl Iterator<Item = Value> {
    let events = harbor.log().lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).collect::<Vec<_>>();
    events.into_iter().map(|event| event["fields"].clone())
}

fn text<'v>(fields: &'v Value, key: &str) -> &'v str {
    fields[key].as_str().unwrap_or_default()
}

/// Resident memory, in MiB.
fn resident(harbor: &Harbor) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", harbor.pid())).expect("the process lives");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("Linux says so");
    let kib: f64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number of KiB");
    kib / 1024.0
}

fn descriptors(harbor: &Harbor) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", harbor.pid())).expect("the process lives").count()
}

/// Starts a node as an operator would: what it logs at `debug` is not what is measured.
async fn serve(site: &Site) -> Harbor {
    let mut command = site.command(&["serve"]);
    command.env("HARBOR_LOG__LEVEL", "info");
    let harbor = site.start_with(command);
    harbor.ready().await;
    harbor
}

/// Milliseconds from the first snapshot until all its ports listened.
fn all_listening(harbor: &Harbor) -> f64 {
    let mut lines = logged(harbor).filter(|fields| text(fields, "message") == "took over the first snapshot");
    lines.find_map(|fields| fields["took_ms"].as_f64()).expect("it is ready")
}

/// Starts the full node again and again. Returns the milliseconds until all ports listened, and the memory then.
async fn restart(site: &Site) -> (Sample, f64) {
    let (mut listening, mut memory) = (Vec::with_capacity(STARTS), Vec::with_capacity(STARTS));
    for start in 1..=STARTS {
        let began = Instant::now();
        let harbor = serve(site).await;
        let ready = milliseconds(began.elapsed());
        listening.push(all_listening(&harbor));
        memory.push(resident(&harbor));
        say(&format!(
            "start {start} at {MANY}: {:.0} ms from snapshot to all listening, ready after {ready:.0} ms, resident {:.1} MiB",
            listening[start - 1],
            memory[start - 1],
        ));
        harbor.kill();
    }
    (Sample::of(listening), Sample::of(memory).percentile(50))
}

/// What an exchange through one port notices of others that come and go: medians of the differences at p50 and p99.
async fn effect(harbor: &Harbor) -> (f64, f64) {
    let client = harbor.broker();
    let traffic = Traffic::through(harbor, &client).await;
    let (mut middles, mut tails) = (Vec::with_capacity(ROUNDS), Vec::with_capacity(ROUNDS));
    for round in 0..ROUNDS {
        let mut halves: HashMap<bool, Sample> = HashMap::new();
        // Which comes first takes turns.
        for changing in [round % 2 == 0, round % 2 != 0] {
            let exchanges = traffic.exchange(HALF_ROUND);
            if changing {
                keep_changing(&client, round).await;
            }
            let sample = tokio::task::spawn_blocking(|| exchanges.join()).await.expect("it does not panic");
            let sample = Sample::of(sample.expect("the exchange does not panic").into_iter().map(milliseconds));
            let label = if changing { "ports come and go" } else { "nothing changes" };
            say(&format!("exchanges of 64 bytes while {label}: {sample}"));
            halves.insert(changing, sample);
        }
        let difference = |per_cent| halves[&true].percentile(per_cent) - halves[&false].percentile(per_cent);
        middles.push(difference(50));
        tails.push(difference(99));
    }
    (Sample::of(middles).percentile(50), Sample::of(tails).percentile(50))
}

/// Adds and removes a port every [`CHANGE_EVERY`] for a half round.
async fn keep_changing(client: &Client, round: usize) {
    let mut ticks = tokio::time::interval(CHANGE_EVERY);
    let changes = HALF_ROUND.as_millis() / CHANGE_EVERY.as_millis();
    for number in 0..changes {
        ticks.tick().await;
        let id = format!("passing-{round}-{number}");
        provision(client, &id).await;
        deprovision(client, &id).await;
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut verdict = Verdict::default();
    let site = Site::new("26500-31999", "");
    let harbor = serve(&site).await;
    let client = harbor.broker();
    provision(&client, "instance-0").await;
    change(&harbor, "1").await;
    harbor.kill();
    let harbor = serve(&site).await;
    let with_one = resident(&harbor);
    say(&format!("at 1, after a start: resident {with_one:.1} MiB, {} descriptors", descriptors(&harbor)));

    let (client, start) = (harbor.broker(), Instant::now());
    stream::iter(1..MANY)
        .for_each_concurrent(FILLING, |number| {
            let client = client.clone();
            async move {
                provision(&client, &format!("instance-{number}")).await;
            }
        })
        .await;
    let each = milliseconds(start.elapsed()) / (MANY - 1) as f64;
    say(&format!("filled to {MANY} with {FILLING} requests at once: {each:.2} ms each"));
    let filled = resident(&harbor);
    say(&format!("at {MANY}, filled: resident {filled:.1} MiB, {} descriptors", descriptors(&harbor)));
    harbor.kill();

    let (listening, started) = restart(&site).await;
    let harbor = serve(&site).await;
    let changes = change(&harbor, &MANY.to_string()).await;
    say(&format!("commit to listening at {MANY}: {}", changes.opened));
    say(&format!("commit to closed at {MANY}: {}", changes.closed));
    let (middle, tail) = effect(&harbor).await;
    say(&format!("at {MANY}, after all that: resident {:.1} MiB", resident(&harbor)));
    harbor.kill();

    verdict.say("memory more than with one port, filled", filled - with_one, "MiB", RESIDENT_MORE_MIB);
    verdict.say("memory more than with one port, after a start", started - with_one, "MiB", RESIDENT_MORE_MIB);
    verdict.say("snapshot to all listening, median", listening.percentile(50), "ms", ALL_LISTENING_MS);
    for (what, sample) in [("commit to listening", &changes.opened), ("commit to closed", &changes.closed)] {
        verdict.say(&format!("{what}, p50"), sample.percentile(50), "ms", CHANGE_P50_MS);
        verdict.say(&format!("{what}, p99"), sample.percentile(99), "ms", CHANGE_P99_MS);
    }
    verdict.say("p50 of an exchange more while ports come and go", middle, "ms", EFFECT_P50_MS);
    verdict.say("p99 of an exchange more while ports come and go", tail, "ms", EFFECT_P99_MS);
    verdict.end()
}
