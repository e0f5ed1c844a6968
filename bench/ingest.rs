//! What an announcement costs, by where it comes from and by how many backends there are, and what a backend takes.
//!
//!     cargo bench --bench ingest [-- --check]
//!
//! Times are of the processor, the least of all rounds: what else the machine does takes caches away and only ever adds.
//! Every number of backends has processes of its own in each round, one after the other. With `--check` it ends with 1
//! when a bound is not met, and says which.

#[path = "src/announcements.rs"]
#[allow(unused, reason = "its tests run with the other package")]
mod announcements;
mod verdict;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
    process::{Command, ExitCode},
    sync::Arc,
    time::{Duration, Instant},
};

use harbor::{
    app::clock::SystemClock,
    backends::{BackendSet, Backends, Counts},
    discovery::{
        Discovery, Settings,
        address::AddressRules,
        authority::statement,
        judge::Rules,
        source::{Action, Source},
        wire::{Announcement, Harbor},
    },
    model::{
        AppId, BindingId, Clock as _, PoolName, Protocol, Revision, ServiceInstanceId, Timestamp,
        binding::Binding,
        directory::{Directory, DirectoryEntry},
        token::{AnnounceSecret, SECRET_BYTES},
    },
    telemetry::metrics::Metrics,
};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;

use announcements::{Guid, Route};
use verdict::{Verdict, say};

/// Numbers of backends; the two that are held against each other come first.
const SIZES: [usize; 5] = [FEW, MANY, 10_000, 300_000, 1_000_000];
const FEW: usize = 1_000;
const MANY: usize = 100_000;
/// As many as the addresses that are remembered of cells have room for, beside as many routes of others.
const MOST_ON_CELLS: usize = 100_000;
/// Of each service instance.
const BACKENDS_EACH: usize = 20;
/// Rounds of the two numbers that are held against each other.
const ROUNDS: usize = 15;
/// Rounds of the others.
const FEW_ROUNDS: usize = 3;
/// Announcements per figure.
const SAMPLES: usize = 50_000;
/// Announcements that are written at once, before the clock is looked at: what fits into a cache.
const BATCH: usize = 256;

/// Routes of a cell, which its route-emitter announces one after the other.
const CELL_ROUTES: usize = 100;
const FIRST_CELL_PORT: u16 = 61_000;
/// Neighbours on a cell are of service instances that are so many apart; prime to the number of them.
const SPREAD: usize = 7_919;

const DOMAIN: &str = "harbor.example.com";
const INT_PORT: u16 = 4100;
const FIRST_PORT: u16 = 1_000;
const STALE_AFTER: Duration = Duration::from_secs(120);

/// Bounds, by figure: at least 100,000 announcements per second of a processor.
const REFRESH_US: f64 = 10.0;
const MANY_OVER_FEW: f64 = 2.0;
const MIB_OF_MANY: f64 = 100.0;

/// What is announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A backend's route.
    Router,
    /// Its internal route.
    ServiceDiscovery,
    /// It, as `harbor announce` and relays say it: with a proof.
    Sidecar,
    /// It, in the least words that make a backend.
    Line,
    /// A route of an app that has nothing to do with Harbor.
    Foreign,
}

impl Kind {
    fn source(self) -> Source {
        match self {
            Self::Router | Self::Foreign => Source::Router,
            Self::ServiceDiscovery => Source::ServiceDiscovery,
            Self::Sidecar | Self::Line => Source::Harbor,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Router => "router.register",
            Self::ServiceDiscovery => "service-discovery.register",
            Self::Sidecar => "harbor.register",
            Self::Line => "harbor.register of a line",
            Self::Foreign => "router.register of others",
        }
    }
}

/// Figures by name.
type Figures = BTreeMap<String, f64>;

/// What one process does with so many backends.
type Part = fn(usize) -> Figures;

/// The processes for each number of backends.
const PARTS: [(&str, Part); 3] = [
    ("cells", measure_cells),
    ("containers", |size| measure_alone(size, Kind::ServiceDiscovery)),
    ("sidecars", |size| measure_alone(size, Kind::Sidecar)),
];

const FIRST: &str = "the first router.register";
const ON_CELLS: &str = ", on cells";
const SWEEP: &str = "a sweep that finds nothing";
const EXPIRY: &str = "expiry";
const BYTES: &str = "bytes";

/// Discovery with so many backends to come.
struct Node {
    discovery: Arc<Discovery>,
    backends: Backends,
    metrics: Metrics,
    /// All numbers of backends in the order in which they are announced: cell by cell, the cells in no order.
    order: Vec<usize>,
}

impl Node {
    fn new(size: usize) -> Self {
        let instances = size / BACKENDS_EACH;
        let mut directory = Directory::new(secret());
        (0..instances).for_each(|instance| put(&mut directory, instance));
        let (_, directory) = watch::channel(Arc::new(directory));
        let (backends, metrics) = (Backends::new(BACKENDS_EACH), Metrics::new());
        let clock = Arc::new(SystemClock);
        let (discovery, _) =
            Discovery::new(settings(&[]), backends.clone(), directory, clock, Arc::clone(&metrics.discovery));
        let mut cells = (0..size / CELL_ROUTES).collect::<Vec<_>>();
        fastrand::Rng::with_seed(1).shuffle(&mut cells);
        let order = cells.into_iter().flat_map(|cell| (0..CELL_ROUTES).map(move |route| cell * CELL_ROUTES + route));
        Self { discovery, backends, metrics, order: order.collect() }
    }

    /// Microseconds of the processor that each of so many announcements takes.
    fn announce(&self, kind: Kind, count: usize) -> f64 {
        let mut numbers = self.order.iter().copied().cycle().take(count);
        let mut spent = Duration::ZERO;
        loop {
            let batch = numbers.by_ref().take(BATCH).map(|number| self.message(kind, number)).collect::<Vec<_>>();
            if batch.is_empty() {
                return spent.as_secs_f64() * 1e6 / count as f64;
            }
            let start = processor_time();
            for message in &batch {
                self.discovery.receive(kind.source(), Action::Register, message.as_bytes());
            }
            spent += processor_time() - start;
        }
    }

    /// Of the backend or the route of that number. Each cell has those of many service instances.
    fn message(&self, kind: Kind, number: usize) -> String {
        let instance = number * SPREAD % (self.order.len() / BACKENDS_EACH);
        let (uri, app) = match kind {
            Kind::Foreign => (format!("route-{number}.apps.example.com"), Guid(2, number as u64)),
            _ => (format!("p{}.{DOMAIN}", usize::from(FIRST_PORT) + instance), app(instance)),
        };
        let cell = number / CELL_ROUTES;
        let cell_port = FIRST_CELL_PORT + 2 * u16::try_from(number % CELL_ROUTES).expect("a cell has fewer");
        let (host, port) = match kind {
            Kind::Router | Kind::Sidecar | Kind::Line => (host(0, cell), cell_port),
            Kind::Foreign => (host(64, cell), cell_port),
            Kind::ServiceDiscovery => (host(128, number), INT_PORT),
        };
        let route = Route {
            host,
            port,
            tls_port: port + 1,
            uri: &uri,
            app: &app.to_string(),
            app_instance: Guid(3, number as u64),
        };
        match kind {
            Kind::Router | Kind::Foreign => route.router_register(),
            Kind::ServiceDiscovery => route.service_discovery_register(),
            Kind::Line => route.harbor_register(service_instance(instance).as_str()),
            Kind::Sidecar => sidecar(instance, route.host, port),
        }
    }

    /// The same of announcements that change nothing.
    fn refresh(&self, kind: Kind) -> f64 {
        assert_eq!(self.backends.counts(), Counts { tcp: self.order.len(), udp: 0 });
        let outcome = if kind == Kind::Foreign { "refused" } else { "renewed" };
        let of_these = || self.metrics.discovery.announcements(kind.source().as_str(), outcome).get();
        let (sets, already) = (self.sets(), of_these());
        let each = self.announce(kind, SAMPLES);
        assert_eq!(of_these() - already, SAMPLES as u64, "{} that are {outcome}", kind.name());
        assert!(self.sets().iter().zip(&sets).all(|(now, then)| Arc::ptr_eq(now, then)), "a set was swapped");
        each
    }

    fn sets(&self) -> Vec<Arc<BackendSet>> {
        let instances = 0..self.order.len() / BACKENDS_EACH;
        instances.map(|instance| self.backends.slot(&service_instance(instance)).load_full()).collect()
    }
}

/// The address of that number in a part of 10.0.0.0/8.
fn host(part: u8, number: usize) -> Ipv4Addr {
    let [_, a, b, c] = u32::try_from(number).expect("there are not that many").to_be_bytes();
    Ipv4Addr::new(10, part + a, b, c)
}

fn put(directory: &mut Directory, instance: usize) {
    let id = service_instance(instance);
    directory.put_instance(DirectoryEntry {
        id: id.clone(),
        pool: PoolName::new("default").expect("a valid name"),
        port: FIRST_PORT + u16::try_from(instance).expect("there are that many ports"),
        protocol: Protocol::Tcp,
        int_port: INT_PORT,
        match_app: false,
        bindings: [].into(),
        apps: Default::default(),
    });
    directory.put_binding(&Arc::new(Binding {
        id: binding(instance),
        service_instance_id: id,
        app_id: Some(AppId::new(app(instance).to_string()).expect("a valid id")),
        space_id: None,
        announce: true,
        predecessor_id: None,
        created_at: Timestamp::default(),
        revision: Revision(1),
    }));
}

/// What `harbor announce` publishes, when it does so now.
fn sidecar(instance: usize, host: Ipv4Addr, port: u16) -> String {
    let binding = binding(instance);
    let mut message = Announcement {
        host: Some(host.to_string()),
        port: Some(port),
        harbor: Some(Harbor {
            instance_id: Some(service_instance(instance).as_str().into()),
            binding_id: Some(binding.as_str().into()),
            protocol: Some("tcp".into()),
            state: Some("up".into()),
            since: Some(1_700_000_000_000_000),
            timestamp: Some(SystemClock.wall().seconds()),
            ..Harbor::default()
        }),
        ..Announcement::default()
    };
    let proof = secret().token(&binding).prove(&statement(&message, Action::Register));
    message.harbor.get_or_insert_default().proof = Some(proof);
    String::from_utf8(message.to_bytes()).expect("JSON")
}

fn secret() -> AnnounceSecret {
    AnnounceSecret::new([1; SECRET_BYTES])
}

fn binding(instance: usize) -> BindingId {
    BindingId::new(Guid(4, instance as u64).to_string()).expect("a valid id")
}

fn service_instance(instance: usize) -> ServiceInstanceId {
    ServiceInstanceId::new(Guid(5, instance as u64).to_string()).expect("a valid id")
}

fn app(instance: usize) -> Guid {
    Guid(1, instance as u64)
}

fn settings(cells: &[&str]) -> Settings {
    let network = |text: &&str| text.parse().expect("a network");
    Settings {
        rules: Rules {
            domain: Some(DOMAIN.into()),
            stale_after: STALE_AFTER,
            trusted: Vec::new(),
            addresses: AddressRules {
                backend_networks: ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"]
                    .iter()
                    .map(network)
                    .collect(),
                cell_networks: cells.iter().map(network).collect(),
                own_hosts: [IpAddr::from([192, 168, 0, 5])].into(),
                pool_ports: "35000-40000".parse().expect("a range"),
                ..AddressRules::default()
            },
        },
        prune_every: Duration::from_secs(30),
        prune_suspend_max: Duration::from_secs(600),
        token_networks: Vec::new(),
    }
}

/// Of this thread.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).expect("less than a second"))
}

/// Resident memory in bytes.
fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux says so");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says so");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number of KiB") * 1024.0
}

/// What one process does: everything with so many backends on cells.
fn measure_cells(size: usize) -> Figures {
    let mut figures = Figures::new();
    let node = Node::new(size);
    let before = resident();
    figures.insert(FIRST.into(), node.announce(Kind::Router, size));
    figures.insert(BYTES.into(), (resident() - before) / size as f64);
    for kind in [Kind::Router, Kind::Line, Kind::Foreign] {
        figures.insert(kind.name().into(), node.refresh(kind));
    }
    if size <= MOST_ON_CELLS {
        node.discovery.set_settings(settings(&["10.0.0.0/8"]));
        for kind in [Kind::Router, Kind::Foreign, Kind::Line] {
            node.announce(kind, size);
            figures.insert(format!("{}{ON_CELLS}", kind.name()), node.refresh(kind));
        }
        assert_eq!(node.metrics.discovery.attributions_dropped.get(), 0);
    }

    let start = processor_time();
    node.backends.sweep(Instant::now());
    figures.insert(SWEEP.into(), (processor_time() - start).as_secs_f64() * 1e6 / size as f64);
    let start = processor_time();
    node.backends.sweep(Instant::now() + STALE_AFTER);
    figures.insert(EXPIRY.into(), (processor_time() - start).as_secs_f64() * 1e6 / size as f64);
    assert_eq!(node.backends.counts(), Counts::default());
    figures
}

/// What the other processes do: backends that are announced in one way alone.
fn measure_alone(size: usize, kind: Kind) -> Figures {
    let node = Node::new(size);
    node.announce(kind, size);
    [(kind.name().into(), node.refresh(kind))].into()
}

/// All of it in processes of their own: memory that was used before is slower.
fn measure_apart(size: usize) -> Figures {
    let program = std::env::current_exe().expect("this program is a file");
    let part = |name: &str| {
        let output = Command::new(&program).args([name, &size.to_string()]).output().expect("it can be started again");
        assert!(output.status.success(), "{size} backends: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Figures>(&output.stdout).expect("figures as JSON")
    };
    PARTS.iter().flat_map(|(name, _)| part(name)).collect()
}

fn main() -> ExitCode {
    let arguments = std::env::args().skip(1).collect::<Vec<_>>();
    if let [part, size] = arguments.as_slice()
        && let Some((_, measure)) = PARTS.iter().find(|(name, _)| name == part)
    {
        let figures = measure(size.parse().expect("a number of backends"));
        say(&serde_json::to_string(&figures).expect("names and numbers"));
        return ExitCode::SUCCESS;
    }
    let mut rounds = SIZES.map(|_| Vec::new());
    for round in 0..ROUNDS {
        for (size, measured) in SIZES.into_iter().zip(&mut rounds) {
            if round < FEW_ROUNDS || [FEW, MANY].contains(&size) {
                measured.push(measure_apart(size));
            }
        }
    }
    let mut verdict = Verdict::default();
    let figure = |place: usize, name: &str| {
        rounds[place].iter().map(|figures| figures[name]).min_by(f64::total_cmp).expect("there are rounds")
    };
    for (place, size) in SIZES.iter().enumerate() {
        say(&format!("{size} backends, {BACKENDS_EACH} of each service instance:"));
        for name in rounds[place][0].keys() {
            let unit = if name == BYTES { "a backend" } else { "µs each" };
            say(&format!("  {name}: {:.3} {unit}", figure(place, name)));
        }
    }
    for name in rounds[0][0].keys().filter(|name| name.contains("register") && *name != FIRST) {
        for place in [0, 1] {
            verdict.say(&format!("{name}, with {} backends", SIZES[place]), figure(place, name), "µs", REFRESH_US);
        }
        let what = format!("{name}, with {MANY} backends over with {FEW}");
        verdict.say(&what, figure(1, name) / figure(0, name), "times", MANY_OVER_FEW);
    }
    verdict.say(&format!("memory of {MANY}"), figure(1, BYTES) * MANY as f64 / f64::from(1 << 20), "MiB", MIB_OF_MANY);
    verdict.end()
}
