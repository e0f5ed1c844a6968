//! Two databases on one PostgreSQL, with 1,000 and with 60,000 service instances in twelve pools: what a change costs at the
//! one and at the other, in turn; how long a node takes to start that serves a pool of the larger one; and how long all of it
//! takes to be exported and imported.
//!
//!     cargo bench --bench postgres [-- --check]
//!
//! Prints one line a figure; with `--check` it ends with 1 when a bound is not met, and says which. It starts a PostgreSQL of
//! its own, and needs the ports 26500-31999 of 127.0.0.11 and 127.0.0.12, 20,000 descriptors, and a machine that does
//! nothing else.

use std::{
    fs,
    path::PathBuf,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use harbor::{
    model::{
        BindingId, NodeId, OrganizationId, PlanId, PoolName, Protocol, Revision, ServiceInstanceId, SpaceId, Timestamp,
        binding::Binding,
        parameters::Settings,
        pool::{Pool, PoolNames},
        service_instance::ServiceInstance,
    },
    store::{self, AnyStore, Dump, Ending, Provision},
    telemetry::metrics::Metrics,
};

#[path = "../tests/integration/support/eventually.rs"]
mod eventually;
#[path = "../tests/integration/support/http.rs"]
mod http;
mod platform;
#[path = "../tests/integration/support/postgres.rs"]
mod postgres;
#[path = "../tests/integration/support/harbor.rs"]
mod process;
mod sample;
mod verdict;

use platform::{PLAN_TCP, deprovision, provision};
use postgres::Postgres;
use process::{Harbor, Site};
use sample::{Sample, milliseconds};
use verdict::{Verdict, say};

/// Pools of each database. The node serves the first of them.
const POOLS: usize = 12;
/// The ports of every pool: as no node serves two of them, they can be the same.
const FIRST_PORT: u16 = 26_500;
const LAST_PORT: u16 = 31_999;
/// Service instances of the two databases.
const FEW: usize = 1_000;
const MANY: usize = 60_000;
/// Changes that are measured at each, one after the other.
const SAMPLES: usize = 1_000;
/// Starts of each node.
const STARTS: usize = 5;
/// What PostgreSQL has on a machine of its own: what is committed is on the disk.
const DURABLE: &str = "fsync = on\nfull_page_writes = on\nshared_buffers = '128MB'";

/// What is taken for flat: the figure at many over that at few.
const P50_RATIO: f64 = 1.2;
const P99_RATIO: f64 = 1.5;
/// The start of a node that serves 5,000 of the 60,000, until it is ready.
const READY_MS: f64 = 5_000.0;

fn pool_name(number: usize) -> PoolName {
    PoolName::new(if number == 0 { "default".into() } else { format!("pool-{number}") }).expect("a short name")
}

fn instance(id: String, pool: usize, port: u16) -> ServiceInstance {
    ServiceInstance {
        id: ServiceInstanceId::new(id).expect("a short id"),
        plan_id: PlanId::new(PLAN_TCP).expect("a short id"),
        pool: pool_name(pool),
        port,
        protocol: Protocol::Tcp,
        requested_port: None,
        settings: Settings::default(),
        organization_id: OrganizationId::new("org").expect("a short id"),
        space_id: SpaceId::new("space").expect("a short id"),
        name: None,
        node_id: NodeId::new("node").expect("a short id"),
        created_at: Timestamp::from_seconds(1_700_000_000),
        revision: Revision::default(),
    }
}

/// So many service instances, each with a binding, the same number in each pool.
fn dump(count: usize) -> Dump {
    let mut dump = Dump::default();
    let raise = |dump: &mut Dump| {
        dump.revision.0 += 1;
        dump.revision
    };
    for number in 0..POOLS {
        let pool = Pool {
            name: pool_name(number),
            ports: format!("{FIRST_PORT}-{LAST_PORT}").parse().expect("a range"),
            names: PoolNames::default(),
            int_port: 4100,
            quarantine: Duration::ZERO,
            retired: false,
        };
        let revision = raise(&mut dump);
        dump.pools.push((pool, revision));
    }
    dump.pools.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
    for number in 0..count {
        let port = FIRST_PORT + u16::try_from(number / POOLS).expect("fewer than ports");
        let instance = instance(format!("instance-{number}"), number % POOLS, port);
        let instance = ServiceInstance { revision: raise(&mut dump), ..instance };
        let binding = Binding {
            id: BindingId::new(format!("binding-{number}")).expect("a short id"),
            service_instance_id: instance.id.clone(),
            app_id: None,
            space_id: None,
            announce: false,
            predecessor_id: None,
            created_at: instance.created_at,
            revision: raise(&mut dump),
        };
        dump.instances.push(instance);
        dump.bindings.push(binding);
    }
    dump
}

/// One of the two databases, and a node's configuration for it.
struct Place {
    label: String,
    url: String,
    site: Site,
}

impl Place {
    fn new(server: &Postgres, count: usize, listen: &str) -> Self {
        let url = server.database();
        let site = Site::new(&format!("{FIRST_PORT}-{LAST_PORT}"), &format!("listen = [{listen:?}]"));
        Self { label: count.to_string(), site: site.with("store.url", &url), url }
    }

    /// Fills the database by way of a file, and looks whether the same comes out again.
    fn fill(&self, count: usize) {
        let (file, again) = (self.site.path().join("dump"), self.site.path().join("again"));
        let mut bytes = Vec::new();
        dump(count).write(&mut bytes).expect("memory can be written to");
        fs::write(&file, &bytes).expect("the site is ours");
        let import = self.run("import", &file);
        let export = self.run("export", &again);
        assert!(fs::read(&again).expect("it was written") == bytes, "the export differs from what was imported");
        let (label, size) = (&self.label, bytes.len() as f64 / 1024.0 / 1024.0);
        say(&format!(
            "{label} with as many bindings, {size:.1} MiB: imported in {import:.1} s, exported in {export:.2} s"
        ));
    }

    fn run(&self, action: &str, file: &PathBuf) -> f64 {
        let start = Instant::now();
        let mut command: Command = self.site.command(&["data", action]);
        let output = command.arg(file).output().expect("it is built with the benchmarks");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        start.elapsed().as_secs_f64()
    }

    async fn open(&self) -> AnyStore {
        let settings = store::Settings { answer_within: store::ANSWER_WITHIN, ..postgres::settings(self.url.clone()) };
        store::open(&settings, Metrics::new().store.clone(), None).await.expect("it has just been filled")
    }

    /// Starts a node as an operator would. Returns it and how long it took to be ready.
    async fn serve(&self) -> (Harbor, f64) {
        let mut command = self.site.command(&["serve"]);
        command.env("HARBOR_LOG__LEVEL", "info");
        let start = Instant::now();
        let node = self.site.start_with(command);
        node.ready().await;
        (node, milliseconds(start.elapsed()))
    }
}

/// What changes took at few and at many, in the order in which they were made.
#[derive(Debug, Default)]
struct Pair {
    few: Vec<f64>,
    many: Vec<f64>,
}

impl Pair {
    fn of(&mut self, place: usize) -> &mut Vec<f64> {
        if place == 0 { &mut self.few } else { &mut self.many }
    }

    /// Says what came out, and how much of it is noise: what half of a sample is over its other half.
    fn judge(self, what: &str, verdict: &mut Verdict) {
        let half =
            |rest| Sample::of(self.few.iter().copied().enumerate().filter(|(n, _)| n % 2 == rest).map(|(_, d)| d));
        let (one, other) = (half(0), half(1));
        let (few, many) = (Sample::of(self.few.iter().copied()), Sample::of(self.many));
        say(&format!("{what} at {FEW}: {few}"));
        say(&format!("{what} at {MANY}: {many}"));
        for (per_cent, bound) in [(50, P50_RATIO), (99, P99_RATIO)] {
            let ratio = many.percentile(per_cent) / few.percentile(per_cent);
            let noise = one.percentile(per_cent) / other.percentile(per_cent);
            let what = format!("{what}, p{per_cent} at {MANY} over {FEW} (half over half at {FEW}: {noise:.2})");
            verdict.say(&what, ratio, "", bound);
        }
    }
}

/// Which place comes first takes turns.
fn turns(number: usize) -> [usize; 2] {
    if number.is_multiple_of(2) { [0, 1] } else { [1, 0] }
}

/// Changes in the store alone, over all pools.
async fn change_stores(places: &[Place; 2], verdict: &mut Verdict) {
    let stores = [places[0].open().await, places[1].open().await];
    let (mut provisions, mut deprovisions) = (Pair::default(), Pair::default());
    let now = Timestamp::from_seconds(1_700_000_000);
    for number in 0..SAMPLES {
        let spare = LAST_PORT - u16::try_from(number % 400).expect("small");
        let new = instance(format!("store-{number}"), number % POOLS, spare);
        for place in turns(number) {
            let start = Instant::now();
            let made = stores[place].provision(&new, false, now).await.expect("PostgreSQL answers");
            provisions.of(place).push(milliseconds(start.elapsed()));
            assert!(matches!(made, Provision::Created(_)), "{made:?}");
        }
        for place in turns(number) {
            let start = Instant::now();
            let gone = stores[place].deprovision(&new.id, now, Ending::Rest(now)).await.expect("PostgreSQL answers");
            deprovisions.of(place).push(milliseconds(start.elapsed()));
            assert!(gone.is_some());
        }
    }
    for store in stores {
        store.close().await;
    }
    provisions.judge("provision in the store", verdict);
    deprovisions.judge("deprovision in the store", verdict);
}

/// Changes that the platform asks a node for, which serves one of the pools.
async fn change_nodes(places: &[Place; 2], verdict: &mut Verdict) {
    let nodes = [places[0].serve().await.0, places[1].serve().await.0];
    let clients = nodes.each_ref().map(Harbor::broker);
    let (mut provisions, mut deprovisions) = (Pair::default(), Pair::default());
    for number in 0..SAMPLES {
        let id = format!("node-{number}");
        for place in turns(number) {
            provisions.of(place).push(milliseconds(provision(&clients[place], &id).await));
        }
        for place in turns(number) {
            deprovisions.of(place).push(milliseconds(deprovision(&clients[place], &id).await));
        }
    }
    for node in nodes {
        node.kill();
    }
    provisions.judge("provision by a node, request to 201", verdict);
    deprovisions.judge("deprovision by a node, request to 200", verdict);
}

/// Starts the nodes in turn. Returns how long that of the larger database took until it was ready.
async fn start_nodes(places: &[Place; 2]) -> Sample {
    let mut took = Pair::default();
    for number in 0..STARTS {
        for place in turns(number) {
            let (node, ready) = places[place].serve().await;
            took.of(place).push(ready);
            node.kill();
        }
    }
    let (few, many) = (Sample::of(took.few), Sample::of(took.many));
    say(&format!("start of a node with {} of {FEW}, until it is ready: {few}", FEW.div_ceil(POOLS)));
    say(&format!("start of a node with {} of {MANY}, until it is ready: {many}", MANY / POOLS));
    many
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut verdict = Verdict::default();
    let server = Postgres::start_with(DURABLE, &[]);
    let places = [Place::new(&server, FEW, "127.0.0.11"), Place::new(&server, MANY, "127.0.0.12")];
    for (place, count) in places.iter().zip([FEW, MANY]) {
        place.fill(count);
    }
    // What the server does by itself within minutes.
    server.sql_at(&places[0].url, "VACUUM ANALYZE");
    server.sql_at(&places[1].url, "VACUUM ANALYZE");
    change_stores(&places, &mut verdict).await;
    let started = start_nodes(&places).await;
    change_nodes(&places, &mut verdict).await;
    verdict.say("start of a node on the larger one, median", started.percentile(50), "ms", READY_MS);
    verdict.end()
}
