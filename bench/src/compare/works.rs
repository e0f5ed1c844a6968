//! The works that proxies are measured at, as data.

use super::metric::Metric;

#[derive(Debug, Clone, Copy)]
pub struct Work {
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    pub kind: Kind,
    pub transport: Transport,
    /// Who does it.
    pub peers: &'static [&'static str],
    pub metrics: &'static [Metric],
    /// What the load counts.
    pub unit: &'static str,
    /// CPU is shown per so many units, and what that is called.
    pub per: (f64, &'static str),
    /// How many times `--seconds` it takes.
    pub lasts: f64,
}

#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// The arguments of `harbor-bench load`, besides target and seconds.
    Load(&'static [&'static str]),
    /// Memory of a proxy that holds idle connections.
    Idle,
    /// Start and memory of a proxy with 5,000 listeners.
    Listeners,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    Tcp,
    Udp,
}

const GIB: (f64, &str) = (1.0, "GiB");
const REQUESTS: (f64, &str) = (1e5, "100k requests");

/// For works whose latencies are held to a bound. In a second one moment without a core, of ten milliseconds, is a
/// hundredth of all: it alone would be the 99th percentile.
const FOR_PERCENTILES: f64 = 3.0;

const BULK_PEERS: &[&str] = &["direct", "haproxy", "haproxy-splice", "nginx", "envoy", "naive", "harbor"];
const TCP_PEERS: &[&str] = &["direct", "haproxy", "nginx", "envoy", "naive", "harbor"];
const UDP_PEERS: &[&str] = &["direct", "nginx", "envoy", "naive", "harbor"];

const BULK: &[Metric] = &[Metric::Cpu, Metric::Rate];
const TIMED: &[Metric] = &[Metric::Cpu, Metric::Rate, Metric::P50, Metric::P99];

const fn bulk(name: &'static str, title: &'static str, arguments: &'static [&'static str]) -> Work {
    let kind = Kind::Load(arguments);
    let transport = Transport::Tcp;
    Work { name, title, kind, transport, peers: BULK_PEERS, metrics: BULK, unit: "GiB", per: GIB, lasts: 1.0 }
}

const fn timed(name: &'static str, title: &'static str, arguments: &'static [&'static str]) -> Work {
    let kind = Kind::Load(arguments);
    let (transport, unit) = (Transport::Tcp, "requests");
    Work { name, title, kind, transport, peers: TCP_PEERS, metrics: TIMED, unit, per: REQUESTS, lasts: 1.0 }
}

const fn udp(name: &'static str, title: &'static str, arguments: &'static [&'static str]) -> Work {
    let (transport, unit, per) = (Transport::Udp, "exchanges", (1e5, "100k exchanges"));
    Work { transport, peers: UDP_PEERS, unit, per, ..timed(name, title, arguments) }
}

pub const WORKS: &[Work] = &[
    bulk("bulk-up", "bulk, 1 connection, up", &["bulk-up", "--connections", "1"]),
    bulk("bulk-down", "bulk, 1 connection, down", &["bulk-down", "--connections", "1"]),
    bulk("bulk-both", "bulk, 1 connection, both ways", &["bulk-both", "--connections", "1"]),
    bulk("bulk-both-16", "bulk, 16 connections, both ways", &["bulk-both", "--connections", "16"]),
    timed("exchange-64", "64 B exchanges, 64 connections", &["exchange", "--connections", "64", "--size", "64"]),
    Work {
        lasts: FOR_PERCENTILES,
        ..timed("exchange-1", "64 B exchanges, 1 connection", &["exchange", "--connections", "1", "--size", "64"])
    },
    Work {
        lasts: FOR_PERCENTILES,
        peers: BULK_PEERS,
        metrics: &[Metric::Cpu, Metric::P50, Metric::P99, Metric::OwnDelay],
        ..timed(
            "open-loop",
            "10,000 requests a second, 64 connections",
            &["open-loop", "--rate", "10000", "--connections", "64", "--size", "64"],
        )
    },
    Work {
        unit: "connections",
        per: (1e5, "100k connections"),
        ..timed("connect", "connect, one exchange, close", &["connect", "--connections", "16"])
    },
    udp("udp-exchange-64", "UDP exchanges, 64 flows", &["udp-exchange", "--flows", "64", "--size", "64"]),
    Work {
        metrics: &[Metric::Cpu, Metric::Rate, Metric::P50, Metric::P99, Metric::Drops],
        ..udp("udp-exchange-1000", "UDP exchanges, 1,000 flows", &["udp-exchange", "--flows", "1000", "--size", "64"])
    },
    Work {
        metrics: &[Metric::Cpu],
        unit: "datagrams",
        per: (1e6, "million datagrams"),
        ..udp(
            "udp-flood",
            "UDP one way, 50,000 a second",
            &["udp-flood", "--rate", "50000", "--flows", "64", "--size", "64"],
        )
    },
    Work {
        metrics: &[Metric::Rate],
        unit: "datagrams",
        per: (1e6, "million datagrams"),
        ..udp("udp-max", "UDP one way, most under 0.1 % loss", &["udp-max", "--flows", "64", "--size", "64"])
    },
    Work {
        peers: BULK_PEERS,
        metrics: &[Metric::Cpu, Metric::Rate, Metric::P50, Metric::P99, Metric::OwnDelay],
        unit: "GiB",
        per: GIB,
        lasts: FOR_PERCENTILES,
        ..timed("mixed", "200 bulk and 200 chatty connections", &["mixed", "--bulk", "200", "--connections", "200"])
    },
    Work {
        name: "idle",
        title: "idle connections",
        kind: Kind::Idle,
        transport: Transport::Tcp,
        peers: &["haproxy", "nginx", "envoy", "naive", "harbor"],
        metrics: &[Metric::IdleMemory5000, Metric::IdleMemory9000],
        unit: "connections",
        per: (1.0, "connection"),
        lasts: 1.0,
    },
    Work {
        name: "listeners",
        title: "5,000 listeners",
        kind: Kind::Listeners,
        transport: Transport::Tcp,
        peers: &["haproxy", "nginx", "envoy", "harbor"],
        metrics: &[Metric::Start, Metric::Bind, Metric::ListenerMemory],
        unit: "listeners",
        per: (1.0, "listener"),
        lasts: 1.0,
    },
];

pub fn find(name: &str) -> Option<&'static Work> {
    WORKS.iter().find(|work| work.name == name)
}
