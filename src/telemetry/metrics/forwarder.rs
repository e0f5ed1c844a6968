//! Metrics of the forwarder, and the closed lists of reasons they are counted by.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
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
        /// A client that must send a PROXY header did not.
        BadHeader = "bad_header",
        /// Its PROXY header named a client that is not allowed.
        NotAllowed = "not_allowed",
        /// Its draining backend's time was up.
        Drained = "drained",
        /// Its backend's authority ended.
        Revoked = "revoked",
        /// The listener was removed.
        Removed = "removed",
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
        /// Its draining backend's time was up.
        Drained = "drained",
        /// Its backend's authority ended.
        Revoked = "revoked",
        /// The listener was removed.
        Removed = "removed",
        /// The forwarder stopped.
        Stopped = "stopped",
    }
);

words!(
    /// Why a TCP connection was reset, or a datagram dropped, before anything was spent on it.
    Refusal {
        /// The client is in no network of `allow`.
        NotAllowed = "not_allowed",
        /// The port has the most flows it may have.
        PortLimit = "port_limit",
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

/// Counters of one family, one for each of its words: looked up once, at the start.
#[derive(Debug)]
pub struct CountersBy<W: Words> {
    counters: Vec<Counter>,
    words: std::marker::PhantomData<W>,
}

impl<W: Words> CountersBy<W> {
    fn new<L: Clone + std::hash::Hash + Eq>(family: &Family<L, Counter>, label: impl Fn(&'static str) -> L) -> Self {
        let counters = W::WORDS.iter().map(|word| family.get_or_create(&label(word)).clone()).collect();
        Self { counters, words: std::marker::PhantomData }
    }

    /// The counter of one word.
    #[must_use]
    pub fn of(&self, word: W) -> &Counter {
        &self.counters[word.into()]
    }
}

/// Handles of the forwarder.
#[derive(Debug)]
pub struct ForwarderMetrics {
    /// TCP connections that passed `allow` and the limits.
    pub connections_accepted: Counter,
    /// Those that are open.
    pub connections_open: Gauge,
    /// Those that have ended.
    pub connections_closed: CountersBy<ConnectionEnd>,
    /// TCP connections reset at the door.
    pub connections_refused: CountersBy<Refusal>,
    /// Connects to backends that failed or took too long.
    pub connects_failed: Counter,
    /// UDP sessions begun.
    pub sessions_opened: Counter,
    /// Those that are open.
    pub sessions_open: Gauge,
    /// Those that have ended.
    pub sessions_closed: CountersBy<SessionEnd>,
    /// Datagrams passed on.
    pub datagrams: CountersBy<Direction>,
    /// Datagrams from clients that were not.
    pub datagrams_dropped: CountersBy<Refusal>,
    /// Bytes carried over TCP.
    pub tcp_bytes: CountersBy<Direction>,
    /// Bytes carried over UDP.
    pub udp_bytes: CountersBy<Direction>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabel {
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CarriedLabels {
    transport: &'static str,
    direction: &'static str,
}

impl ForwarderMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let mut reasons = |name: &str, help: &str| {
            let family = Family::<ReasonLabel, Counter>::default();
            registry.register(name, help, family.clone());
            family
        };
        let reason = |reason| ReasonLabel { reason };
        let connections_closed = reasons("connections_closed", "TCP connections that ended");
        let connections_refused = reasons("connections_refused", "TCP connections reset at the door");
        let sessions_closed = reasons("sessions_closed", "UDP sessions that ended");
        let datagrams_dropped = reasons("datagrams_dropped", "Datagrams from clients that were not passed on");

        let datagrams = Family::<DirectionLabel, Counter>::default();
        registry.register("datagrams", "Datagrams passed on", datagrams.clone());
        let bytes = Family::<CarriedLabels, Counter>::default();
        registry.register("carried_bytes", "Bytes carried", bytes.clone());

        let metrics = Self {
            connections_accepted: Counter::default(),
            connections_open: Gauge::default(),
            connections_closed: CountersBy::new(&connections_closed, reason),
            connections_refused: CountersBy::new(&connections_refused, reason),
            connects_failed: Counter::default(),
            sessions_opened: Counter::default(),
            sessions_open: Gauge::default(),
            sessions_closed: CountersBy::new(&sessions_closed, reason),
            datagrams: CountersBy::new(&datagrams, |direction| DirectionLabel { direction }),
            datagrams_dropped: CountersBy::new(&datagrams_dropped, reason),
            tcp_bytes: CountersBy::new(&bytes, |direction| CarriedLabels { transport: "tcp", direction }),
            udp_bytes: CountersBy::new(&bytes, |direction| CarriedLabels { transport: "udp", direction }),
        };
        registry.register(
            "connections_accepted",
            "TCP connections that passed `allow` and the limits",
            metrics.connections_accepted.clone(),
        );
        registry.register("connections_open", "Open TCP connections", metrics.connections_open.clone());
        registry.register(
            "connects_failed",
            "Connects to backends that failed or took too long",
            metrics.connects_failed.clone(),
        );
        registry.register("sessions_opened", "UDP sessions begun", metrics.sessions_opened.clone());
        registry.register("sessions_open", "Open UDP sessions", metrics.sessions_open.clone());
        metrics
    }
}
