//! One node with 5,000 TCP service instances that is scraped: how large the answers are, how long they take, and what
//! traffic notices of it.
//!
//!     cargo bench --bench metrics [-- --check]
//!
//! Prints one line a figure; with `--check` it ends with 1 when a bound is not met, and says which. It needs 5,002 free
//! ports from 26500 and 20,000 descriptors, and a machine that does nothing else: who scrapes shares its cores.

use std::{
    collections::HashMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};

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

use process::Site;
use sample::{Sample, milliseconds};
use traffic::{Datagrams, Traffic};
use verdict::{Verdict, say};

/// Service instances of the node.
const MANY: usize = 5_000;
/// Requests in flight while it is filled.
const FILLING: usize = 16;
/// Scrapes of each path while nothing else happens.
const SCRAPES: usize = 50;
/// Rounds of traffic, and how long each of their parts is.
const ROUNDS: usize = 9;
const PART: Duration = Duration::from_secs(4);

const NODE: &str = "/metrics";
const INSTANCES: &str = "/metrics/instances";

/// Bounds, by figure.
const NODE_KIB: f64 = 64.0;
const INSTANCES_MIB: f64 = 10.0;
const NODE_P50_MS: f64 = 10.0;
const INSTANCES_P50_MS: f64 = 50.0;
/// What is taken for no effect of a scrape each second on an exchange: the medians of the rounds' differences.
const EFFECT_P50_MS: f64 = 0.1;
const EFFECT_P99_MS: f64 = 2.0;

/// Reads an answer to its end as cheaply as may be. Returns its length and how long it took.
fn scrape(address: SocketAddr, path: &str) -> (usize, Duration) {
    let start = Instant::now();
    let mut stream = TcpStream::connect(address).expect("it listens");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: harbor\r\nconnection: close\r\n\r\n").expect("it reads");
    let (mut buffer, mut length, mut status) = (vec![0; 256 * 1024], 0, None);
    loop {
        let read = stream.read(&mut buffer).expect("it answers");
        status = status.or_else(|| buffer.get(9..12).map(<[u8]>::to_vec));
        if read == 0 {
            break;
        }
        length += read;
    }
    assert_eq!(status.as_deref(), Some(&b"200"[..]), "{path}");
    (length, start.elapsed())
}

/// How often the node is scraped while there is traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Scraping {
    Never,
    /// Both paths.
    EachSecond,
    /// The series of all service instances again and again.
    WithoutPause,
}

impl Scraping {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Never => "nobody scrapes",
            Self::EachSecond => "both paths are scraped each second",
            Self::WithoutPause => "all instances are scraped without a pause",
        }
    }

    /// Scrapes until `over`. Returns how often.
    fn run(self, address: SocketAddr, over: &AtomicBool) -> usize {
        let (start, mut times) = (Instant::now(), 0);
        while !over.load(Ordering::Relaxed) && self != Self::Never {
            if self == Self::EachSecond {
                scrape(address, NODE);
            }
            scrape(address, INSTANCES);
            times += 1;
            if self == Self::EachSecond {
                let due = start + Duration::from_secs(1) * u32::try_from(times).expect("few");
                #[expect(clippy::disallowed_methods, reason = "the time it waits for is the event")]
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        }
        times
    }
}

/// What one part of a round found, over TCP and over UDP.
type Part = [Sample; 2];

async fn part(address: SocketAddr, traffic: &Traffic, datagrams: &Datagrams, scraping: Scraping) -> Part {
    let over = Arc::new(AtomicBool::new(false));
    let exchanges = [traffic.exchange(PART), datagrams.exchange(PART)];
    let scraper = thread::spawn({
        let over = Arc::clone(&over);
        move || scraping.run(address, &over)
    });
    let found = tokio::task::spawn_blocking(move || {
        let found = exchanges.map(|exchange| exchange.join().expect("the exchange does not panic"));
        over.store(true, Ordering::Relaxed);
        (found, scraper.join().expect("scraping does not panic"))
    });
    let (found, times) = found.await.expect("it does not panic");
    let found = found.map(|latencies| Sample::of(latencies.into_iter().map(milliseconds)));
    for (transport, sample) in ["TCP", "UDP"].iter().zip(&found) {
        say(&format!("exchanges over {transport} while {} ({times} times): {sample}", scraping.as_str()));
    }
    found
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut verdict = Verdict::default();
    let site = Site::new("26500-31999", "");
    let mut command = site.command(&["serve"]);
    command.env("HARBOR_LOG__LEVEL", "info");
    let harbor = site.start_with(command);
    harbor.ready().await;
    let client = harbor.broker();
    stream::iter(0..MANY)
        .for_each_concurrent(FILLING, |number| {
            let client = client.clone();
            async move {
                // As long as a platform's.
                let id = format!("{number:08}-58cc-4372-a567-0e02b2c3d479");
                platform::provision(&client, &id).await;
            }
        })
        .await;
    let traffic = Traffic::through(&harbor, &client).await;
    let datagrams = Datagrams::through(&harbor, &client).await;
    let address = harbor.address("admin");
    let mut figures = HashMap::new();
    for path in [NODE, INSTANCES] {
        let (lengths, took): (Vec<_>, Vec<_>) = (0..SCRAPES).map(|_| scrape(address, path)).unzip();
        let took = Sample::of(took.into_iter().map(milliseconds));
        let length = lengths.into_iter().max().expect("some") as f64;
        say(&format!("{path} at {MANY}: {:.0} KiB, {took}", length / 1024.0));
        figures.insert(path, (length, took));
    }

    let mut differences: HashMap<_, Vec<f64>> = HashMap::new();
    for round in 0..ROUNDS {
        let mut parts = [Scraping::Never, Scraping::EachSecond, Scraping::WithoutPause];
        // Which comes first takes turns.
        parts.rotate_left(round % 3);
        let mut found = HashMap::new();
        for scraping in parts {
            found.insert(scraping, part(address, &traffic, &datagrams, scraping).await);
        }
        for scraping in [Scraping::EachSecond, Scraping::WithoutPause] {
            for (place, transport) in ["TCP", "UDP"].into_iter().enumerate() {
                for per_cent in [50, 99] {
                    let of = |scraping| found[&scraping][place].percentile(per_cent);
                    let (with, without) = (of(scraping), of(Scraping::Never));
                    differences.entry((scraping, transport, per_cent, "more")).or_default().push(with - without);
                    differences.entry((scraping, transport, per_cent, "ratio")).or_default().push(with / without);
                }
            }
        }
    }
    harbor.kill();

    let (length, took) = &figures[NODE];
    verdict.say("size of /metrics", length / 1024.0, "KiB", NODE_KIB);
    verdict.say("time of /metrics, median", took.percentile(50), "ms", NODE_P50_MS);
    let (length, took) = &figures[INSTANCES];
    verdict.say("size of /metrics/instances", length / 1024.0 / 1024.0, "MiB", INSTANCES_MIB);
    verdict.say("time of /metrics/instances, median", took.percentile(50), "ms", INSTANCES_P50_MS);
    for transport in ["TCP", "UDP"] {
        for (per_cent, bound) in [(50, EFFECT_P50_MS), (99, EFFECT_P99_MS)] {
            let median = |scraping, kind| {
                Sample::of(differences[&(scraping, transport, per_cent, kind)].iter().copied()).percentile(50)
            };
            let what = format!("p{per_cent} of an exchange over {transport} more");
            say(&format!(
                "p{per_cent} over {transport}, as ratio: {:.2} {}, {:.2} {}",
                median(Scraping::EachSecond, "ratio"),
                Scraping::EachSecond.as_str(),
                median(Scraping::WithoutPause, "ratio"),
                Scraping::WithoutPause.as_str(),
            ));
            say(&format!(
                "{what} while {}: {:.2} ms",
                Scraping::WithoutPause.as_str(),
                median(Scraping::WithoutPause, "more")
            ));
            let what = format!("{what} while {}", Scraping::EachSecond.as_str());
            verdict.say(&what, median(Scraping::EachSecond, "more"), "ms", bound);
        }
    }
    verdict.end()
}
