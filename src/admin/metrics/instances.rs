//! Series of each service instance: thousands of times a dozen, so they are written piece by piece as they are read.

use std::{collections::HashMap, fmt::Write as _, iter};

use crate::{
    admin::{Sources, standing::Standing},
    model::{Protocol, ServiceInstanceId, Transport, observed::ListenerState},
    telemetry::metrics::{Direction, PortCounts, Words as _},
};

/// What is written before others have their turn, in bytes; the last line may go beyond.
const PIECE_BYTES: usize = 32 * 1024;

/// Most samples that one family has of one service instance.
const MAX_SAMPLES: usize = 4;

/// One service instance at one moment.
struct Row {
    /// Which it is, as labels.
    labels: String,
    protocol: Protocol,
    counts: PortCounts,
    /// Backends by [`Standing`].
    backends: [u64; Standing::WORDS.len()],
    bound: bool,
}

/// Some metrics of one name.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    samples: fn(&Row) -> [Option<Sample>; MAX_SAMPLES],
}

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}

/// A label beside those that say which it is, if any, and a value.
type Sample = (Option<(&'static str, &'static str)>, u64);

/// All of them. A service instance shows those of its transports.
const FAMILIES: &[Family] = &[
    Family {
        name: "listener_bound",
        help: "1 while the port of the service instance is open",
        kind: Kind::Gauge,
        samples: |row| only(Some((Some(("protocol", row.protocol.as_str())), u64::from(row.bound)))),
    },
    Family {
        name: "backends",
        help: "Its live backends by their state",
        kind: Kind::Gauge,
        samples: |row| {
            std::array::from_fn(|state| Some((Some(("state", Standing::WORDS[state])), row.backends[state])))
        },
    },
    Family {
        name: "connections_accepted",
        help: "TCP connections that passed `allow` and the limits",
        kind: Kind::Counter,
        samples: |row| of(row, Transport::Tcp, row.counts.connections_accepted),
    },
    Family {
        name: "connections_open",
        help: "Open TCP connections",
        kind: Kind::Gauge,
        samples: |row| of(row, Transport::Tcp, row.counts.connections_open()),
    },
    Family {
        name: "connections_closed",
        help: "TCP connections that ended",
        kind: Kind::Counter,
        samples: |row| of(row, Transport::Tcp, row.counts.connections_closed),
    },
    Family {
        name: "connections_refused",
        help: "TCP connections reset at the door",
        kind: Kind::Counter,
        samples: |row| of(row, Transport::Tcp, row.counts.connections_refused),
    },
    Family {
        name: "sessions_opened",
        help: "UDP sessions begun",
        kind: Kind::Counter,
        samples: |row| of(row, Transport::Udp, row.counts.sessions_opened),
    },
    Family {
        name: "sessions_open",
        help: "Open UDP sessions",
        kind: Kind::Gauge,
        samples: |row| of(row, Transport::Udp, row.counts.sessions_open()),
    },
    Family {
        name: "datagrams",
        help: "Datagrams passed on",
        kind: Kind::Counter,
        samples: |row| each_way(row, Transport::Udp, row.counts.datagrams),
    },
    Family {
        name: "datagrams_dropped",
        help: "Datagrams that were not passed on",
        kind: Kind::Counter,
        samples: |row| of(row, Transport::Udp, row.counts.datagrams_dropped),
    },
    Family {
        name: "tcp_carried_bytes",
        help: "Bytes carried over TCP",
        kind: Kind::Counter,
        samples: |row| each_way(row, Transport::Tcp, row.counts.tcp_bytes),
    },
    Family {
        name: "udp_carried_bytes",
        help: "Bytes carried over UDP",
        kind: Kind::Counter,
        samples: |row| each_way(row, Transport::Udp, row.counts.udp_bytes),
    },
];

const fn only(sample: Option<Sample>) -> [Option<Sample>; MAX_SAMPLES] {
    [sample, None, None, None]
}

fn of(row: &Row, transport: Transport, value: u64) -> [Option<Sample>; MAX_SAMPLES] {
    only(row.protocol.has(transport).then_some((None, value)))
}

fn each_way(row: &Row, transport: Transport, values: [u64; 2]) -> [Option<Sample>; MAX_SAMPLES] {
    let has = row.protocol.has(transport);
    let way = |place: usize| has.then_some((Some(("direction", Direction::WORDS[place])), values[place]));
    [way(0), way(1), None, None]
}

/// The text of this moment in pieces, without its last line.
pub fn pieces(sources: &Sources) -> impl Iterator<Item = String> + Send + use<> {
    write_rows(rows(sources))
}

fn rows(sources: &Sources) -> Vec<Row> {
    let now = sources.clock.now();
    let mut backends = HashMap::<ServiceInstanceId, [u64; Standing::WORDS.len()]>::new();
    for (id, backend) in sources.backends.export() {
        backends.entry(id).or_default()[usize::from(Standing::of(&backend, now).0)] += 1;
    }
    let counts = (sources.port_counts)();
    let desired = sources.control.desired().borrow().clone();
    let observations = sources.observations.borrow().clone();
    let mut specs = desired.listeners.values().collect::<Vec<_>>();
    specs.sort_unstable_by_key(|spec| (&spec.pool, spec.port));
    let row = |spec: &std::sync::Arc<crate::model::desired::ListenerSpec>| {
        let id = &spec.service_instance_id;
        Row {
            labels: labels(id.as_str(), spec.pool.as_str(), spec.port),
            protocol: spec.protocol,
            counts: counts.get(id).copied().unwrap_or_default(),
            backends: backends.get(id).copied().unwrap_or_default(),
            bound: observations.get(id).is_some_and(|observation| observation.state == ListenerState::Bound),
        }
    };
    specs.into_iter().map(row).collect()
}

fn labels(id: &str, pool: &str, port: u16) -> String {
    let mut labels = String::with_capacity(id.len() + pool.len() + 48);
    for (name, value) in [("service_instance", id), (",pool", pool)] {
        labels.extend([name, "=\""]);
        escape(value, &mut labels);
        labels.push('"');
    }
    write!(labels, ",port=\"{port}\"").expect("writing to a String cannot fail");
    labels
}

/// A platform's ids may hold any character; three have a meaning between quotes.
fn escape(value: &str, into: &mut String) {
    for character in value.chars() {
        match character {
            '\\' => into.push_str("\\\\"),
            '"' => into.push_str("\\\""),
            '\n' => into.push_str("\\n"),
            other => into.push(other),
        }
    }
}

/// All samples of one name stand together, as the format wants it.
fn write_rows(rows: Vec<Row>) -> impl Iterator<Item = String> + Send {
    let (mut family, mut next) = (0, 0);
    iter::from_fn(move || {
        let mut text = String::with_capacity(PIECE_BYTES + 1024);
        while text.len() < PIECE_BYTES {
            let Some(of) = FAMILIES.get(family) else { break };
            if next == 0 {
                of.head(&mut text);
            }
            match rows.get(next) {
                Some(row) => of.write(row, &mut text),
                None => family += 1,
            }
            next = if next < rows.len() { next + 1 } else { 0 };
        }
        (!text.is_empty()).then_some(text)
    })
}

impl Family {
    fn head(&self, text: &mut String) {
        let Self { name, help, kind, .. } = self;
        let (kind, unit) = (kind.as_str(), if name.ends_with("_bytes") { "bytes" } else { "" });
        let name = format!("harbor_service_instance_{name}");
        let result = write!(text, "# HELP {name} {help}.\n# TYPE {name} {kind}\n").and_then(|()| match unit {
            "" => Ok(()),
            unit => writeln!(text, "# UNIT {name} {unit}"),
        });
        result.expect("writing to a String cannot fail");
    }

    fn write(&self, row: &Row, text: &mut String) {
        let suffix = self.kind.suffix();
        for (label, value) in (self.samples)(row).into_iter().flatten() {
            text.extend(["harbor_service_instance_", self.name, suffix, "{", &row.labels]);
            if let Some((name, word)) = label {
                text.extend([",", name, "=\"", word, "\""]);
            }
            writeln!(text, "}} {value}").expect("writing to a String cannot fail");
        }
    }
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }

    const fn suffix(self) -> &'static str {
        match self {
            Self::Counter => "_total",
            Self::Gauge => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, port: u16, protocol: Protocol) -> Row {
        let counts = PortCounts { connections_accepted: 3, connections_closed: 1, ..PortCounts::default() };
        let labels = labels(id, "default", port);
        Row { labels, protocol, counts, backends: [1, 0, 0, 2], bound: true }
    }

    #[test]
    fn an_id_of_any_characters_is_one_label() {
        let mut escaped = String::new();
        escape("a\"b\\c\nd}, é=", &mut escaped);
        assert_eq!(escaped, "a\\\"b\\\\c\\nd}, é=");
    }

    #[test]
    fn a_service_instance_shows_a_dozen_series_of_its_transports() {
        for (protocol, most) in [(Protocol::Tcp, 11), (Protocol::Udp, 12), (Protocol::Both, 18)] {
            let text = write_rows(vec![row("a", 1, protocol)]).collect::<String>();
            let series = text.lines().filter(|line| !line.starts_with('#')).count();
            assert_eq!(series, most, "{text}");
        }
    }

    #[test]
    fn what_is_written_piece_by_piece_is_what_would_be_written_at_once() {
        let rows = || (0..1000).map(|number| row(&format!("id-{number}"), number, Protocol::Tcp)).collect::<Vec<_>>();
        let pieces = write_rows(rows()).collect::<Vec<_>>();
        assert!(pieces.len() > 10 && pieces.iter().all(|piece| piece.len() < PIECE_BYTES + 1024));
        let text = pieces.concat();
        assert_eq!(text.matches("# TYPE ").count(), FAMILIES.len());
        let names = text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split('{').next().unwrap());
        let mut names = names.collect::<Vec<_>>();
        names.dedup();
        assert_eq!(names.len(), 7, "each name's samples stand together: {names:?}");
        let open = r#"harbor_service_instance_connections_open{service_instance="id-7",pool="default",port="7"} 2"#;
        assert_eq!(text.lines().filter(|line| *line == open).count(), 1);
        assert_eq!(write_rows(Vec::new()).count(), 1, "only heads");
    }
}
