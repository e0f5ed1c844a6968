//! Metrics of the forwarder, and the closed lists of reasons they are counted by.
//!
//! Each thread that forwards counts in a [`Tally`] of its own; sums are made when the metrics are read.

use std::{
    fmt, iter,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{
        counter::{ConstCounter, Counter},
        gauge::ConstGauge,
    },
    registry::{Registry, Unit},
};

/// A closed list of words: a label's values, or why something ended.
pub trait Words: Copy + Into<usize> + 'static {
    /// The words, in the order of the variants.
    const WORDS: &'static [&'static str];

    /// The word used in metrics and logs.
    fn as_str(self) -> &'static str {
        Self::WORDS[self.into()]
    }
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl From<$name> for usize {
            fn from(value: $name) -> Self {
                value as Self
            }
        }

        impl Words for $name {
            const WORDS: &'static [&'static str] = &[$($word),+];
        }
    };
}

words!(
    /// Why an accepted TCP connection ended.
    ConnectionEnd {
        /// Both sides had said their last.
        Finished = "finished",
        /// The client broke it off.
        ClientGone = "client_gone",
        /// The backend broke it off.
        BackendGone = "backend_gone",
        /// Nothing was carried for the idle time-out.
        Idle = "idle",
        /// There was no backend, or none could be reached.
        NoBackend = "no_backend",
        /// No descriptor or memory was to be had for the connection to a backend.
        Exhausted = "exhausted",
        /// A client that must send a PROXY header did not.
        BadHeader = "bad_header",
        /// Its PROXY header named a client that is not allowed.
        NotAllowed = "not_allowed",
        /// The client is in a network that an operator has blocked: as its PROXY header says, or by now.
        Blocked = "blocked",
        /// The time of its draining backend, or of the draining node, was up.
        Drained = "drained",
        /// Its backend's authority ended.
        Revoked = "revoked",
        /// The listener was removed.
        Removed = "removed",
        /// An operator has suspended the service instance.
        Suspended = "suspended",
        /// The forwarder stopped.
        Stopped = "stopped",
    }
);

words!(
    /// Why a UDP session ended.
    SessionEnd {
        /// No datagram for the idle time-out.
        Idle = "idle",
        /// Never an answer.
        Unanswered = "unanswered",
        /// Room was short, and it had no answer yet.
        Displaced = "displaced",
        /// Its first datagram could not be sent.
        NotBegun = "not_begun",
        /// The backend's machine refused a datagram.
        BackendGone = "backend_gone",
        /// The backend is no longer announced.
        BackendLeft = "backend_left",
        /// The time of its draining backend, or of the draining node, was up.
        Drained = "drained",
        /// Its backend's authority ended.
        Revoked = "revoked",
        /// The client is in a network that an operator has blocked.
        Blocked = "blocked",
        /// The listener was removed.
        Removed = "removed",
        /// An operator has suspended the service instance.
        Suspended = "suspended",
        /// Another process goes on with it.
        HandedOver = "handed_over",
        /// The forwarder stopped.
        Stopped = "stopped",
    }
);

words!(
    /// Why a TCP connection was reset, or a datagram dropped, before anything was spent on it.
    Refusal {
        /// The client is in no network of `allow`.
        NotAllowed = "not_allowed",
        /// The client is in a network that an operator has blocked.
        Blocked = "blocked",
        /// The port has the most flows it may have.
        PortLimit = "port_limit",
        /// UDP: the client's address has the most sessions of the port that it may have.
        SourceLimit = "source_limit",
        /// The node has the most sockets it may have, or the port its share of them.
        NodeLimit = "node_limit",
        /// No descriptor or memory was to be had.
        Exhausted = "exhausted",
        /// UDP: there is no backend, or none can be reached.
        NoBackend = "no_backend",
        /// UDP: the first datagram had no PROXY header where one is required.
        BadHeader = "bad_header",
        /// UDP: too large to be passed on, or there was no room in a socket.
        Undeliverable = "undeliverable",
        /// The node finishes what is open and begins nothing.
        Draining = "draining",
    }
);

words!(
    /// Where bytes and datagrams go.
    Direction {
        /// From clients to backends.
        ToBackend = "to_backend",
        /// From backends to clients.
        ToClient = "to_client",
    }
);

/// A number that one thread counts up and any thread may read.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// One more. Only the thread that owns the tally may count.
    pub fn one(&self) {
        self.more(1);
    }

    /// So many more. Only the thread that owns the tally may count: nothing is locked for it.
    pub fn more(&self, number: u64) {
        self.0.store(self.get().wrapping_add(number), Ordering::Relaxed);
    }

    /// The number.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Words that a closed list may have.
const MAX_WORDS: usize = 16;

/// A number for each word of a closed list.
#[derive(Debug)]
pub struct CountsBy<W: Words> {
    /// In place, so that no two threads' counts share a cache line.
    counts: [Count; MAX_WORDS],
    words: std::marker::PhantomData<W>,
}

impl<W: Words> Default for CountsBy<W> {
    fn default() -> Self {
        const { assert!(W::WORDS.len() <= MAX_WORDS) };
        Self { counts: Default::default(), words: std::marker::PhantomData }
    }
}

impl<W: Words> CountsBy<W> {
    /// The number of one word.
    #[must_use]
    pub fn of(&self, word: W) -> &Count {
        &self.counts[word.into()]
    }

    fn sum(&self) -> u64 {
        self.counts.iter().map(Count::get).sum()
    }
}

/// What one thread has counted, on cache lines that no other thread writes to.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Tally {
    /// TCP connections that passed `allow` and the limits.
    pub connections_accepted: Count,
    /// Those that have ended.
    pub connections_closed: CountsBy<ConnectionEnd>,
    /// TCP connections reset at the door.
    pub connections_refused: CountsBy<Refusal>,
    /// Connects to backends that failed or took too long.
    pub connects_failed: Count,
    /// UDP sessions begun.
    pub sessions_opened: Count,
    /// Those that have ended.
    pub sessions_closed: CountsBy<SessionEnd>,
    /// Datagrams passed on.
    pub datagrams: CountsBy<Direction>,
    /// Datagrams that were not.
    pub datagrams_dropped: CountsBy<Refusal>,
    /// Bytes carried over TCP.
    pub tcp_bytes: CountsBy<Direction>,
    /// Bytes carried over UDP.
    pub udp_bytes: CountsBy<Direction>,
}

impl Tally {
    /// So many datagrams have been passed on.
    pub fn carried(&self, direction: Direction, datagrams: usize, bytes: usize) {
        self.datagrams.of(direction).more(datagrams as u64);
        self.udp_bytes.of(direction).more(bytes as u64);
    }
}

/// All tallies of the forwarder.
#[derive(Debug, Default)]
pub struct ForwarderMetrics {
    tallies: Mutex<Vec<Arc<Tally>>>,
    /// Flows that ended without a line in the log, as there were too many at once.
    pub flow_lines_left_out: Counter,
}

impl ForwarderMetrics {
    pub(super) fn register(registry: &mut Registry) -> Arc<Self> {
        let metrics = Arc::<Self>::default();
        registry.register_collector(Box::new(Arc::clone(&metrics)));
        metrics
    }

    /// A tally for one more thread; it counts as long as the process runs.
    #[must_use]
    pub fn tally(&self) -> Arc<Tally> {
        let tally = Arc::<Tally>::default();
        self.tallies().push(Arc::clone(&tally));
        tally
    }

    /// The sum of one number over all threads.
    #[must_use]
    pub fn total(&self, count: impl Fn(&Tally) -> u64) -> u64 {
        self.tallies().iter().map(|tally| count(tally)).sum()
    }

    /// One number of each thread.
    #[must_use]
    pub fn by_thread(&self, count: impl Fn(&Tally) -> u64) -> Vec<u64> {
        self.tallies().iter().map(|tally| count(tally)).collect()
    }

    fn tallies(&self) -> MutexGuard<'_, Vec<Arc<Tally>>> {
        self.tallies.lock().expect("nothing panics while it holds the tallies")
    }

    /// What is open: what was begun less what had ended just before.
    fn open(&self, ended: impl Fn(&Tally) -> u64, begun: impl Fn(&Tally) -> u64) -> u64 {
        let ended = self.total(ended);
        self.total(begun).saturating_sub(ended)
    }
}

/// Writes one family at a time.
struct Families<'m, 'e> {
    metrics: &'m ForwarderMetrics,
    encoder: DescriptorEncoder<'e>,
}

impl Families<'_, '_> {
    fn counter(&mut self, name: &str, help: &str, count: impl Fn(&Tally) -> u64) -> fmt::Result {
        self.count(name, help, self.metrics.total(count))
    }

    fn count(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let counter = ConstCounter::new(value);
        counter.encode(self.encoder.encode_descriptor(name, help, None, counter.metric_type())?)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let gauge = ConstGauge::new(value);
        gauge.encode(self.encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
    }

    /// One counter for each set of labels. The unit becomes the end of the name.
    fn counters<const N: usize>(
        &mut self,
        (name, help, unit): (&str, &str, Option<&Unit>),
        counters: impl Iterator<Item = ([(&'static str, &'static str); N], u64)>,
    ) -> fmt::Result {
        let kind = ConstCounter::new(0_u64).metric_type();
        let mut family = self.encoder.encode_descriptor(name, help, unit, kind)?;
        for (labels, value) in counters {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn by<W: Words>(
        &mut self,
        (name, help, label): (&str, &str, &'static str),
        counts: impl Fn(&Tally) -> &CountsBy<W>,
    ) -> fmt::Result {
        let metrics = self.metrics;
        let each = iter::zip(W::WORDS, 0..)
            .map(|(word, place)| ([(label, *word)], metrics.total(|tally| counts(tally).counts[place].get())));
        self.counters((name, help, None), each)
    }
}

impl Collector for ForwarderMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families { metrics: self, encoder };
        let accepted = |tally: &Tally| tally.connections_accepted.get();
        families.counter("connections_accepted", "TCP connections that passed `allow` and the limits", accepted)?;
        let open = self.open(|tally| tally.connections_closed.sum(), accepted);
        families.gauge("connections_open", "Open TCP connections", open)?;
        families
            .by(("connections_closed", "TCP connections that ended", "reason"), |tally| &tally.connections_closed)?;
        families.by(("connections_refused", "TCP connections reset at the door", "reason"), |tally| {
            &tally.connections_refused
        })?;
        families.counter("connects_failed", "Connects to backends that failed or took too long", |tally| {
            tally.connects_failed.get()
        })?;
        let opened = |tally: &Tally| tally.sessions_opened.get();
        families.counter("sessions_opened", "UDP sessions begun", opened)?;
        let open = self.open(|tally| tally.sessions_closed.sum(), opened);
        families.gauge("sessions_open", "Open UDP sessions", open)?;
        families.by(("sessions_closed", "UDP sessions that ended", "reason"), |tally| &tally.sessions_closed)?;
        families.by(("datagrams", "Datagrams passed on", "direction"), |tally| &tally.datagrams)?;
        families.by(("datagrams_dropped", "Datagrams that were not passed on", "reason"), |tally| {
            &tally.datagrams_dropped
        })?;
        let left_out = self.flow_lines_left_out.get();
        families.count("flow_lines_left_out", "Flows that ended without a line in the log", left_out)?;
        let carried = [Direction::ToBackend, Direction::ToClient].map(|direction| {
            let labels = |transport| [("transport", transport), ("direction", direction.as_str())];
            [
                (labels("tcp"), self.total(|tally| tally.tcp_bytes.of(direction).get())),
                (labels("udp"), self.total(|tally| tally.udp_bytes.of(direction).get())),
            ]
        });
        families.counters(("carried", "Bytes carried", Some(&Unit::Bytes)), carried.into_iter().flatten())
    }
}
