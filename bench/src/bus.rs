//! What traffic through a node notices of a busy NATS, and whether the node hears all that is said there.
//!
//! The bus is as a platform's: routes of others, most of all, and among them what keeps this node's own backends alive.
//! Rounds with the node subscribed and with it not, in turn, under the same load of the bus and of the port.

use std::{
    collections::BTreeMap,
    env, fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;

use crate::{
    announcements::{Guid, Route},
    compare::{
        accounting::Cpu,
        arena::{self, BACKEND},
        format, generator, namespace,
        peers::{
            self, Peer as _, Site,
            harbor::{APP, Harbor, bind, metric},
        },
        say,
        statistics::{paired_ratios, summarise},
        wait,
        works::Transport,
    },
    nats::{Publisher, Server},
    traffic::{
        events::{Events, Poll},
        schedule::Schedule,
    },
};

const NATS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 4222);
const FIRST_PORT: u16 = 20_000;
const API_PORT: u16 = 8_000;
/// The node's service instances, of which the first carries the traffic.
const INSTANCES: u16 = 50;
/// Of so many announcements one is `harbor.register` and one `router.register` of a backend of this node's, one is
/// `service-discovery.register` of an app that is no concern of Harbor's, and the others are of such apps' HTTP routes.
const MIX: u64 = 20;
/// Routes of others, each announced again when all have been.
const ROUTES: u64 = 200_000;
/// What is published at once: a millisecond's worth.
const TICK: Duration = Duration::from_millis(1);
/// How long the last announcements may be on their way.
const PATIENCE: Duration = Duration::from_secs(5);
/// All routes are on cells, as on a platform: the node remembers whose each address is.
const DISCOVERY: &str = r#"sources = ["harbor", "router", "service-discovery"]
domain = "harbor.example.com"
cell_networks = ["10.0.0.0/8"]
stale_after = "24h""#;
/// Requests of the traffic, by which its latency is taken.
const LOAD: [&str; 5] = ["open-loop", "--rate", "2000", "--connections", "64"];

#[derive(Debug, Parser)]
pub struct Args {
    /// Rounds, each once with the node subscribed and once with it not
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long the load of each half of a round goes on
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Announcements per second
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// The binary that is put to work
    #[arg(long, default_value = "target/release/harbor")]
    harbor: PathBuf,
    /// The process runs in the namespaces that it was given, with this folder for all that it starts
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
}

/// Announcements by the source that Harbor counts them under.
type Counts = BTreeMap<&'static str, u64>;

/// What came of half a round.
#[derive(Debug)]
struct Half {
    /// Of the traffic's requests, in microseconds.
    p99: f64,
    /// How late the load itself was with requests that had nothing to wait for, p99.
    own_delay: f64,
    requests: f64,
    errors: u64,
    /// Of the node.
    cpu: Duration,
    sent: Counts,
    heard: Counts,
    slow: f64,
}

impl Half {
    fn lost(&self) -> u64 {
        self.sent.iter().map(|(source, sent)| sent - self.heard.get(source).copied().unwrap_or(0).min(*sent)).sum()
    }
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    ensure!(args.harbor.exists(), "{} is not there: `cargo build --release`", args.harbor.display());
    match &args.inside {
        Some(folder) => compare(args, folder),
        None => namespace::run_inside(&[]),
    }
}

fn compare(args: &Args, folder: &Path) -> anyhow::Result<ExitCode> {
    namespace::prepare()?;
    let program = env::current_exe()?;
    let _backend = arena::start_backend(&program, BACKEND, folder)?;
    let _server = Server::start(NATS, folder.join("nats.log"))?;
    let site = Site {
        directory: folder.join("harbor"),
        ports: (FIRST_PORT..FIRST_PORT + INSTANCES).collect(),
        api_port: API_PORT,
        backend: BACKEND,
        udp: false,
    };
    fs::create_dir_all(&site.directory)?;
    let binary = args.harbor.canonicalize()?;
    let peer = |nats| Harbor::new(binary.clone()).with_discovery(DISCOVERY, nats);
    peer(None).prepare(&site)?;

    let mut halves = [true, false].map(|subscribed| (subscribed, BTreeMap::new()));
    for round in 1..=args.rounds {
        // Which comes first takes turns.
        halves.reverse();
        for (subscribed, rounds) in &mut halves {
            let half = half(args, &program, &peer(subscribed.then_some(NATS)), &site, *subscribed)?;
            show(round, *subscribed, &half);
            rounds.insert(round, half);
        }
    }
    halves.sort_by_key(|(subscribed, _)| !subscribed);
    verdict(halves.map(|(_, rounds)| rounds))
}

/// One node, from its start to its end, under load.
fn half(args: &Args, program: &Path, peer: &Harbor, site: &Site, subscribed: bool) -> anyhow::Result<Half> {
    let node = peers::start(peer, site)?.context("Harbor is a process")?;
    for port in &site.ports[1..] {
        bind(site, *port, &app(*port).to_string())?;
    }
    let target = peer.target(site);
    generator::verify(program, target, Transport::Tcp)?;
    let (pids, seconds) = (node.pids(), f64::from(args.seconds));
    let before = Cpu::at_rest(&pids);
    let (sent, load) = thread::scope(|scope| {
        let bus = scope.spawn(|| announce(f64::from(args.rate), Duration::from_secs(args.seconds.into())));
        let load = generator::run(generator::command(program, &LOAD, target, Some(seconds)));
        (bus.join().expect("announcing does not panic"), load)
    });
    let (sent, load) = (sent?, load?);
    let heard = || {
        let of = |source| metric(site, &format!("harbor_announcements_total{{source=\"{source}\""));
        sent.keys().map(|source| Ok((*source, of(source)? as u64))).collect::<anyhow::Result<Counts>>()
    };
    if subscribed {
        wait::until(PATIENCE, Duration::from_millis(20), || heard().is_ok_and(|heard| heard == sent).then_some(()));
    }
    let cpu = Cpu::at_rest(&pids).since(&before);
    let figure = |value: &serde_json::Value| value.as_f64().context("the load left something out");
    Ok(Half {
        p99: figure(&load["latency_us"]["p99"])?,
        own_delay: figure(&load["own_delay_p99_us"])?,
        requests: figure(&load["units"])?,
        errors: load["errors"].as_u64().context("the load said no errors")?,
        cpu,
        heard: heard()?,
        sent,
        slow: metric(site, "harbor_nats_slow_consumer_total")?,
    })
}

/// Announces at a rate. Returns what was published.
fn announce(rate: f64, time: Duration) -> anyhow::Result<Counts> {
    let mut publisher = Publisher::connect(NATS)?;
    let mut sent = Counts::from([("harbor", 0), ("router", 0), ("service_discovery", 0)]);
    let start = Instant::now();
    let schedule = Schedule::new(start, rate);
    let total = schedule.due(start + time);
    let (poll, mut events) = (Poll::new()?, Events::new());
    let mut next = 0;
    while next < total {
        let due = schedule.due(Instant::now()).min(total);
        for number in next..due {
            let source = publish(&mut publisher, number);
            *sent.get_mut(source).expect("it is one of them") += 1;
        }
        next = due;
        publisher.flush()?;
        poll.wait(&mut events, Some(Instant::now() + TICK))?;
    }
    publisher.sync()?;
    Ok(sent)
}

/// Publishes one announcement of the mix. Returns its source.
fn publish(publisher: &mut Publisher, number: u64) -> &'static str {
    let port = FIRST_PORT + (number / MIX % u64::from(INSTANCES)) as u16;
    // The others of the node's backends are nowhere, which nobody tries.
    let (app, host) = match port {
        FIRST_PORT => (APP.to_owned(), Ipv4Addr::LOCALHOST),
        _ => (app(port).to_string(), Ipv4Addr::new(127, 0, 1, (port - FIRST_PORT) as u8)),
    };
    let (uri, id) = (format!("p{port}.harbor.example.com"), format!("p{port}"));
    let own =
        Route { host, port: BACKEND.port(), tls_port: 0, uri: &uri, app: &app, app_instance: Guid(2, port.into()) };
    match number % MIX {
        0 => {
            publisher.publish("harbor.register", &own.harbor_register(&id));
            "harbor"
        }
        1 => {
            publisher.publish("router.register", &own.router_register());
            "router"
        }
        _ => {
            let route = number % ROUTES;
            let uri = format!("route-{route}.apps.example.com");
            let [_, a, b, c] = (route as u32).to_be_bytes();
            let others = Route {
                host: Ipv4Addr::new(10, a, b, c),
                port: 61_012,
                tls_port: 61_013,
                uri: &uri,
                app: &Guid(3, route).to_string(),
                app_instance: Guid(4, route),
            };
            if number % MIX == 2 {
                publisher.publish("service-discovery.register", &others.service_discovery_register());
                return "service_discovery";
            }
            publisher.publish("router.register", &others.router_register());
            "router"
        }
    }
}

fn app(port: u16) -> Guid {
    Guid(1, port.into())
}

fn show(round: u32, subscribed: bool, half: &Half) {
    let (sent, heard) = (half.sent.values().sum::<u64>(), half.heard.values().sum::<u64>());
    say(&format!(
        "round {round}, {}: {} requests, {} errors, p99 {} µs; {:.2} s of the processor; {heard} of {sent} announcements heard",
        if subscribed { "subscribed" } else { "not subscribed" },
        format::number(half.requests),
        half.errors,
        format::number(half.p99),
        half.cpu.as_secs_f64(),
    ));
}

fn verdict([subscribed, alone]: [BTreeMap<u32, Half>; 2]) -> anyhow::Result<ExitCode> {
    let p99 = |halves: &BTreeMap<u32, Half>| halves.iter().map(|(round, half)| (*round, half.p99)).collect();
    let of = |halves: &BTreeMap<u32, Half>, figure: fn(&Half) -> f64| halves.values().map(figure).collect();
    let (with, without): (BTreeMap<_, _>, BTreeMap<_, _>) = (p99(&subscribed), p99(&alone));
    let cpu: fn(&Half) -> f64 = |half| half.cpu.as_secs_f64();
    let mut text = String::new();
    for (what, unit, values) in [
        ("p99 of requests, subscribed", "µs", of(&subscribed, |half| half.p99)),
        ("p99 of requests, not subscribed", "µs", of(&alone, |half| half.p99)),
        ("p99, subscribed over not, by round", "times", paired_ratios(&with, &without)),
        ("the load's own delay, p99, subscribed", "µs", of(&subscribed, |half| half.own_delay)),
        ("the load's own delay, p99, not subscribed", "µs", of(&alone, |half| half.own_delay)),
        ("the node's processor time, subscribed", "s", of(&subscribed, cpu)),
        ("the node's processor time, not subscribed", "s", of(&alone, cpu)),
    ] {
        let summary = summarise(values).context("there was no round")?;
        text += &format!("{what}: {} {unit}; {}\n", format::range(&summary), format::interval(&summary));
    }
    let errors: u64 = subscribed.values().chain(alone.values()).map(|half| half.errors).sum();
    let lost: u64 = subscribed.values().map(Half::lost).sum();
    let slow: f64 = subscribed.values().map(|half| half.slow).sum();
    let heard: u64 = subscribed.values().flat_map(|half| half.heard.values()).sum();
    text += &format!("{heard} announcements heard, {lost} lost, messages dropped for being late {slow} times\n");
    text += &format!("{errors} requests failed\n");
    let fine = errors == 0 && lost == 0 && slow == 0.0;
    text += if fine { "fine: nothing was lost\n" } else { "not fine\n" };
    io::Write::write_all(&mut io::stdout(), text.as_bytes())?;
    if alone.values().any(|half| half.heard.values().any(|heard| *heard > 0)) {
        bail!("a node without NATS has heard of it");
    }
    Ok(ExitCode::from(u8::from(!fine)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_heard_is_lost_by_source() {
        let half = |heard: Counts| Half {
            p99: 1.0,
            own_delay: 1.0,
            requests: 1.0,
            errors: 0,
            cpu: Duration::ZERO,
            sent: Counts::from([("harbor", 10), ("router", 90)]),
            heard,
            slow: 0.0,
        };
        assert_eq!(half(Counts::from([("harbor", 10), ("router", 90)])).lost(), 0);
        assert_eq!(half(Counts::from([("harbor", 12), ("router", 85)])).lost(), 5);
        assert_eq!(half(Counts::new()).lost(), 100);
    }
}
