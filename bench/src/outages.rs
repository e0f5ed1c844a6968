//! NATS is killed and started again, again and again, while traffic goes on, apps announce themselves, and one dies.
//!
//! Nothing that an app still announces may be lost meanwhile, nothing that is dead may stay longer than its time to live
//! after NATS is back, and the node must be connected again soon.

use std::{
    env, fs,
    io::{self, Write as _},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Mutex, MutexGuard,
        mpsc::{Receiver, RecvTimeoutError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Parser;
use serde_json::Value;

use crate::{
    announcements::{Guid, Route},
    compare::{
        arena::{self, BACKEND},
        generator, namespace,
        peers::{
            self, Peer as _, Site,
            harbor::{APP, Harbor, bind, status},
        },
        say, wait,
    },
    nats::{Publisher, Server},
};

const NATS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 4222);
/// The ports of both have all living apps behind them; behind the second there is also the one that dies.
const PORTS: [u16; 2] = [20_000, 20_001];
const API_PORT: u16 = 8_000;
/// Last octets of the addresses of apps.
const LIVING: [u8; 2] = [1, 2];
const MORTAL: u8 = 3;

const DISCOVERY: &str = "stale_after = \"2s\"\nprune_every = \"200ms\"\nprune_suspend_max = \"10s\"";
const STALE_AFTER: Duration = Duration::from_secs(2);
const PRUNE_EVERY: Duration = Duration::from_millis(200);
/// How often apps announce themselves, and how often they try to connect.
const ANNOUNCE_EVERY: Duration = Duration::from_millis(400);
/// Outages are shorter and longer than the time to live.
const OUTAGE_MS: std::ops::RangeInclusive<u64> = 200..=3_500;
/// What comes after the end of an outage and still is under load.
const AFTERMATH: Duration = Duration::from_secs(3);
/// How often the node is asked what it knows.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// How long anything may take that is held to no other bound.
const PATIENCE: Duration = Duration::from_secs(20);

/// Bounds. What is noticed late is late by the time between two looks, and by what else the machine does.
const RECONNECTED: Duration = Duration::from_secs(5);
const GONE: Duration = STALE_AFTER.saturating_add(PRUNE_EVERY).saturating_add(Duration::from_millis(500));

/// Connections of every kind, each byte checked, and sessions.
const LOAD: [&str; 5] = ["resets", "--rate", "20", "--udp-flows", "4"];

#[derive(Debug, Parser)]
pub struct Args {
    /// How many outages
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    times: u32,
    /// Repeats a run's choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The binary that is put to work
    #[arg(long, default_value = "target/release/harbor")]
    harbor: PathBuf,
    /// The process runs in the namespaces that it was given, with this folder for all that it starts
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
}

/// What came of one outage.
#[derive(Debug)]
struct Outcome {
    lasted: Duration,
    /// From the return of NATS until the node was connected, and from then until it forgot who had died.
    reconnected: Duration,
    gone: Duration,
    /// Looks in which a living app was missing.
    missing: u32,
    connections: f64,
    errors: u64,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    ensure!(args.harbor.exists(), "{} is not there: `cargo build --release`", args.harbor.display());
    match &args.inside {
        Some(folder) => outages(args, folder),
        None => namespace::run_inside(&[]),
    }
}

fn outages(args: &Args, folder: &Path) -> anyhow::Result<ExitCode> {
    namespace::prepare()?;
    let program = env::current_exe()?;
    let server = Server::start(NATS, folder.join("nats.log"))?;
    let site = Site {
        directory: folder.join("harbor"),
        ports: PORTS.to_vec(),
        api_port: API_PORT,
        backend: BACKEND,
        udp: true,
    };
    fs::create_dir_all(&site.directory)?;
    let peer = Harbor::new(args.harbor.canonicalize()?).with_discovery(DISCOVERY, Some(NATS));
    peer.prepare(&site)?;
    let _node = peers::start(&peer, &site)?.context("Harbor is a process")?;
    bind(&site, PORTS[1], APP)?;
    let living = LIVING.iter().map(|octet| arena::start_backend(&program, address(*octet), folder));
    let _living = living.collect::<anyhow::Result<Vec<_>>>()?;

    let announced = Mutex::new(LIVING.iter().flat_map(|octet| PORTS.map(|port| message(*octet, port))).collect());
    let mut scene = Scene { program, folder, site, server, announced: &announced };
    let mut random = fastrand::Rng::with_seed(args.seed);
    let outcomes = thread::scope(|scope| {
        let (stop, stopped) = sync_channel(1);
        let announcer = scope.spawn({
            let announced = &announced;
            move || announce(announced, &stopped)
        });
        let outcomes = (1..=args.times).map(|time| {
            let outcome = scene.outage(Duration::from_millis(random.u64(OUTAGE_MS)))?;
            say(&format!("outage {time}: {outcome:?}"));
            Ok(outcome)
        });
        let outcomes = outcomes.collect::<anyhow::Result<Vec<_>>>();
        drop(stop);
        announcer.join().expect("announcing does not panic");
        outcomes
    });
    verdict(&outcomes?)
}

/// What is there during all outages.
struct Scene<'a> {
    program: PathBuf,
    folder: &'a Path,
    site: Site,
    server: Server,
    announced: &'a Mutex<Vec<String>>,
}

impl Scene<'_> {
    /// One app more comes, NATS goes, the app dies, and NATS comes back.
    fn outage(&mut self, lasts: Duration) -> anyhow::Result<Outcome> {
        let mortal = arena::start_backend(&self.program, address(MORTAL), self.folder)?;
        let last_words = message(MORTAL, PORTS[1]);
        self.announced().push(last_words.clone());
        look_until("all apps are known", &mut || status(&self.site), |status| {
            all_living_known(status) && known(status, PORTS[1], MORTAL) == 2
        })?;
        thread::scope(|scope| {
            let first = scope.spawn(self.load(PORTS[0], lasts));
            self.server.kill()?;
            let begun = Instant::now();
            self.announced().retain(|message| *message != last_words);
            mortal.kill()?;
            // Before that its own connections would have been broken.
            let second = scope.spawn(self.load(PORTS[1], lasts));
            let mut missing = 0;
            let mut look = || {
                let status = status(&self.site)?;
                missing += u32::from(!all_living_known(&status));
                anyhow::Ok(status)
            };
            look_until("the outage is over, and was noticed", &mut look, |status| {
                begun.elapsed() >= lasts && status["nats"]["state"] == "down"
            })?;
            self.server.restart()?;
            let lasted = begun.elapsed();
            let reconnected = look_until("NATS is connected", &mut look, |status| status["nats"]["state"] == "up")?;
            let gone = look_until("the dead is forgotten", &mut look, |status| known(status, PORTS[1], MORTAL) == 0)?;
            look_until("the load is over", &mut look, |_| first.is_finished() && second.is_finished())?;
            let loads = [first, second].map(|load| load.join().expect("waiting for a load does not panic"));
            let (mut connections, mut errors) = (0.0, 0);
            for load in loads {
                let load = load?;
                connections += load["units"].as_f64().context("the load said no units")?;
                errors += load["errors"].as_u64().context("the load said no errors")?;
            }
            Ok(Outcome { lasted, reconnected, gone, missing, connections, errors })
        })
    }

    /// Traffic through a port, for the outage and what comes after it.
    fn load(&self, port: u16, outage: Duration) -> impl FnOnce() -> anyhow::Result<Value> + use<> {
        let seconds = (outage + AFTERMATH).as_secs_f64();
        let target = (Ipv4Addr::LOCALHOST, port).into();
        let command = generator::command(&self.program, &LOAD, target, Some(seconds));
        || generator::run(command)
    }

    fn announced(&self) -> MutexGuard<'_, Vec<String>> {
        self.announced.lock().expect("nobody panics under the lock")
    }
}

/// Looks until it is `so`. Returns how long that took.
fn look_until(
    what: &str,
    look: &mut impl FnMut() -> anyhow::Result<Value>,
    so: impl Fn(&Value) -> bool,
) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let found = wait::until(PATIENCE, LOOK_EVERY, || match look() {
        Ok(status) => so(&status).then_some(Ok(())),
        Err(error) => Some(Err(error)),
    });
    found.with_context(|| format!("not within {PATIENCE:?}: {what}"))??;
    Ok(begun.elapsed())
}

/// What apps do: they say that they are there, again and again, and connect when they are not connected.
fn announce(announced: &Mutex<Vec<String>>, stopped: &Receiver<()>) {
    let mut publisher = None;
    while stopped.recv_timeout(ANNOUNCE_EVERY) == Err(RecvTimeoutError::Timeout) {
        publisher = publisher.or_else(|| Publisher::connect(NATS).ok()).and_then(|mut publisher| {
            let messages = announced.lock().expect("nobody panics under the lock").clone();
            messages.iter().for_each(|message| publisher.publish("harbor.register", message));
            publisher.flush().is_ok().then_some(publisher)
        });
    }
}

/// What the app at an address says of itself for a port.
fn message(octet: u8, port: u16) -> String {
    let SocketAddr::V4(address) = address(octet) else { unreachable!("it is made of four octets") };
    let route = Route {
        host: *address.ip(),
        port: address.port(),
        tls_port: 0,
        uri: "",
        app: APP,
        app_instance: Guid(1, octet.into()),
    };
    route.harbor_register(&format!("p{port}"))
}

fn address(octet: u8) -> SocketAddr {
    (Ipv4Addr::new(127, 0, 0, octet), BACKEND.port()).into()
}

/// For how many transports the node has the app at an address behind a port.
fn known(status: &Value, port: u16, octet: u8) -> usize {
    let (id, address) = (format!("p{port}"), address(octet).to_string());
    let instances = status["service_instances"].as_array().into_iter().flatten().filter(|known| known["id"] == id);
    let backends = instances.flat_map(|known| known["backends"].as_array().into_iter().flatten());
    backends.filter(|backend| backend["address"] == address).count()
}

fn all_living_known(status: &Value) -> bool {
    LIVING.iter().all(|octet| PORTS.iter().all(|port| known(status, *port, *octet) == 2))
}

fn verdict(outcomes: &[Outcome]) -> anyhow::Result<ExitCode> {
    let longest = |of: fn(&Outcome) -> Duration| outcomes.iter().map(of).max().unwrap_or_default();
    let (reconnected, gone) = (longest(|outcome| outcome.reconnected), longest(|outcome| outcome.gone));
    let missing: u32 = outcomes.iter().map(|outcome| outcome.missing).sum();
    let errors: u64 = outcomes.iter().map(|outcome| outcome.errors).sum();
    let connections: f64 = outcomes.iter().map(|outcome| outcome.connections).sum();
    let mut bad = Vec::new();
    for (is_bad, what) in [
        (missing > 0, "a backend was lost that its app announced"),
        (errors > 0, "traffic failed"),
        (reconnected > RECONNECTED, "it took too long to connect again"),
        (gone > GONE, "the dead stayed too long"),
    ] {
        bad.extend(is_bad.then_some(what));
    }
    let text = format!(
        "{} outages of up to {:?}: connected again after {reconnected:?} at the most (bound {RECONNECTED:?}), the dead \
         forgotten {gone:?} after that at the most (bound {GONE:?}); {missing} times a living one was missing; \
         {connections} connections, {errors} errors\n{}\n",
        outcomes.len(),
        longest(|outcome| outcome.lasted),
        if bad.is_empty() {
            "fine: nothing was lost, nothing stayed".to_owned()
        } else {
            format!("not fine: {}", bad.join(", "))
        },
    );
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::from(u8::from(!bad.is_empty())))
}
