//! What a user may set on a service instance, what was set, and what holds in the end.

use std::{ops::RangeInclusive, time::Duration};

use ipnet::IpNet;

use super::{Protocol, Transport, balance::Balance};

/// Most client networks in `allow`.
pub const MAX_ALLOW: usize = 64;

/// Shortest `idle_timeout`: a flow that paused for less would hardly be one.
pub const SHORTEST_IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest `idle_timeout` where the plan sets no cap.
pub const LONGEST_IDLE_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Largest `max_connections` where the plan sets no cap; the node's own limit on sockets holds all the same.
pub const MOST_CONNECTIONS: u32 = 1_000_000;

/// How often a backend may be checked at the most, and how seldom at the least.
pub const CHECK_INTERVALS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// How long a check may take: as long it keeps others of its service instance waiting.
pub const CHECK_TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(5);

/// How many checks in a row may be asked for.
pub const CHECK_STREAKS: RangeInclusive<u8> = 1..=10;

/// Parameters of a provision request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProvisionParameters {
    /// Wins over the plan `free`'s rule.
    pub protocol: Option<Protocol>,
    /// This very port.
    pub port: Option<u16>,
    /// All that can also be changed later.
    pub settings: Settings,
}

/// What a user has set on a service instance; `None` follows the default, also when that changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// What the app listens on; default: the pool's.
    pub int_port: Option<u16>,
    /// How a backend is chosen; default: [`Balance::default_for`] each transport.
    pub balance: Option<Balance>,
    /// Whether `router.register` of the bound app makes backends; default: no.
    pub match_app: Option<bool>,
    /// How long a silent connection or session lives; default: the node's, per transport.
    pub idle_timeout: Option<Duration>,
    /// Most TCP connections and UDP sessions together; default: the node's, per transport.
    pub max_connections: Option<u32>,
    /// Client networks; empty: everyone.
    pub allow: Vec<IpNet>,
    /// The header that backends get before a client's bytes; default: none.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// How backends are looked at beside the traffic; default: not at all.
    pub health_check: Option<HealthCheck>,
}

/// A change of [`Settings`]: a key that is absent stays, `Some(None)` goes back to the default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(clippy::option_option, reason = "absent, null and a value are three different wishes")]
pub struct SettingsPatch {
    /// See [`Settings::int_port`].
    pub int_port: Option<Option<u16>>,
    /// See [`Settings::balance`].
    pub balance: Option<Option<Balance>>,
    /// See [`Settings::match_app`].
    pub match_app: Option<Option<bool>>,
    /// See [`Settings::idle_timeout`].
    pub idle_timeout: Option<Option<Duration>>,
    /// See [`Settings::max_connections`].
    pub max_connections: Option<Option<u32>>,
    /// See [`Settings::allow`].
    pub allow: Option<Option<Vec<IpNet>>>,
    /// See [`Settings::proxy_protocol`].
    pub proxy_protocol: Option<Option<ProxyProtocol>>,
    /// See [`Settings::health_check`].
    pub health_check: Option<Option<HealthCheck>>,
}

impl Settings {
    /// These settings with `patch` applied.
    #[must_use]
    pub fn patched(&self, patch: &SettingsPatch) -> Self {
        let p = patch.clone();
        Self {
            int_port: p.int_port.unwrap_or(self.int_port),
            balance: p.balance.unwrap_or(self.balance),
            match_app: p.match_app.unwrap_or(self.match_app),
            idle_timeout: p.idle_timeout.unwrap_or(self.idle_timeout),
            max_connections: p.max_connections.unwrap_or(self.max_connections),
            allow: p.allow.map_or_else(|| self.allow.clone(), Option::unwrap_or_default),
            proxy_protocol: p.proxy_protocol.unwrap_or(self.proxy_protocol),
            health_check: p.health_check.unwrap_or(self.health_check),
        }
    }

    /// These settings without the change from `before` to `after`: what was changed since then stays.
    #[must_use]
    pub fn without_change(&self, before: &Self, after: &Self) -> Self {
        fn back<T: Clone + PartialEq>(now: &T, before: &T, after: &T) -> T {
            if now == after { before.clone() } else { now.clone() }
        }
        Self {
            int_port: back(&self.int_port, &before.int_port, &after.int_port),
            balance: back(&self.balance, &before.balance, &after.balance),
            match_app: back(&self.match_app, &before.match_app, &after.match_app),
            idle_timeout: back(&self.idle_timeout, &before.idle_timeout, &after.idle_timeout),
            max_connections: back(&self.max_connections, &before.max_connections, &after.max_connections),
            allow: back(&self.allow, &before.allow, &after.allow),
            proxy_protocol: back(&self.proxy_protocol, &before.proxy_protocol, &after.proxy_protocol),
            health_check: back(&self.health_check, &before.health_check, &after.health_check),
        }
    }
}

/// Why parameters are not taken. What the schema of a plan can say, it says too; these hold whoever asks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterRefusal {
    /// The plan decides the protocol.
    #[error("the plan fixes the protocol, it is {0}: leave `protocol` out, or choose another plan")]
    ProtocolFixed(Protocol),
    /// The plan gives out ports by chance only.
    #[error("the plan does not let users choose a port: leave `port` out, or choose another plan")]
    PortNotChoosable,
    /// The plan leaves `router.register` alone.
    #[error("the plan does not take `match_app`: leave it out, or choose another plan")]
    MatchAppNotTaken,
    /// No app can listen on port 0.
    #[error("`int_port` cannot be 0: choose the port that the app listens on")]
    NoIntPort,
    /// Out of bounds.
    #[error("`max_connections` must be from 1 to {most}, not {asked}")]
    MaxConnections {
        /// What was asked for.
        asked: u32,
        /// The most that the plan allows.
        most: u32,
    },
    /// Out of bounds.
    #[error(
        "`idle_timeout` must be from {}s to {}s, not {}s",
        SHORTEST_IDLE_TIMEOUT.as_secs(), longest.as_secs_f64(), asked.as_secs_f64()
    )]
    IdleTimeout {
        /// What was asked for.
        asked: Duration,
        /// The longest that the plan allows.
        longest: Duration,
    },
    /// More than [`MAX_ALLOW`].
    #[error("`allow` takes up to {MAX_ALLOW} networks, not {0}: join some")]
    TooManyNetworks(usize),
    /// The text form has no place in a datagram.
    #[error("`proxy_protocol` v1 is for TCP alone, and this port carries {0}: choose v2 or none")]
    ProxyV1WithUdp(Protocol),
    /// Nothing accepts connections there.
    #[error("`health_check` tcp needs TCP, and this port carries udp: leave it out")]
    CheckWithoutTcp,
    /// Out of [`CHECK_INTERVALS`].
    #[error(
        "`health_check.interval` must be from {}s to {}s, not {}s",
        CHECK_INTERVALS.start().as_secs(), CHECK_INTERVALS.end().as_secs(), .0.as_secs_f64()
    )]
    CheckInterval(Duration),
    /// Out of [`CHECK_TIMEOUTS`], or longer than the interval.
    #[error(
        "`health_check.timeout` must be from {}ms to {}s and no longer than the interval, not {}s",
        CHECK_TIMEOUTS.start().as_millis(), CHECK_TIMEOUTS.end().as_secs(), .0.as_secs_f64()
    )]
    CheckTimeout(Duration),
    /// Out of [`CHECK_STREAKS`].
    #[error("`health_check.rise` and `fall` must be from {} to {}, not {}", CHECK_STREAKS.start(), CHECK_STREAKS.end(), .0)]
    CheckStreak(u8),
}

/// How backends are looked at beside the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HealthCheck {
    /// Not at all.
    None,
    /// By a TCP connection that ends at once.
    Tcp(TcpCheck),
}

/// A check by a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TcpCheck {
    /// From one check to the next.
    pub interval: Duration,
    /// How long the connection may take.
    pub timeout: Duration,
    /// So many in a row that work take a backend back.
    pub rise: u8,
    /// So many in a row that fail put it aside.
    pub fall: u8,
}

impl Default for TcpCheck {
    /// HAProxy's streaks, at a pace for hundreds of service instances.
    fn default() -> Self {
        Self { interval: Duration::from_secs(10), timeout: Duration::from_secs(2), rise: 2, fall: 3 }
    }
}

impl HealthCheck {
    /// The check that goes on, if any.
    #[must_use]
    pub const fn tcp(self) -> Option<TcpCheck> {
        match self {
            Self::None => None,
            Self::Tcp(check) => Some(check),
        }
    }

    /// Whether a port of `protocol` can have it.
    ///
    /// # Errors
    /// [`ParameterRefusal`].
    pub fn check(self, protocol: Protocol) -> Result<(), ParameterRefusal> {
        let Self::Tcp(TcpCheck { interval, timeout, rise, fall }) = self else { return Ok(()) };
        if !protocol.has(Transport::Tcp) {
            return Err(ParameterRefusal::CheckWithoutTcp);
        }
        if !CHECK_INTERVALS.contains(&interval) {
            return Err(ParameterRefusal::CheckInterval(interval));
        }
        if !CHECK_TIMEOUTS.contains(&timeout) || timeout > interval {
            return Err(ParameterRefusal::CheckTimeout(timeout));
        }
        match [rise, fall].into_iter().find(|streak| !CHECK_STREAKS.contains(streak)) {
            Some(streak) => Err(ParameterRefusal::CheckStreak(streak)),
            None => Ok(()),
        }
    }
}

/// Which PROXY protocol header backends get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ProxyProtocol {
    /// No header.
    #[default]
    None,
    /// The text form, TCP only.
    V1,
    /// The binary form: at the head of a TCP stream, or before the first datagram of a UDP session.
    V2,
}

impl ProxyProtocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::V1, Self::V2];

    /// The word used in parameters and rows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }

    /// The value that `word` names.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|value| value.as_str() == word)
    }
}
