//! How a listener chooses among its backends.

use super::Transport;

/// A way to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Balance {
    /// Each in turn, exact over all workers.
    RoundRobin,
    /// The one with the fewest open connections.
    LeastConnections,
    /// Any.
    Random,
    /// By the client's address: the same client gets the same backend while the set stays.
    SourceHash,
    /// The first announced while it lives, then the next: the original's rule for UDP, which it called `fifo`.
    Failover,
}

impl Balance {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::RoundRobin, Self::LeastConnections, Self::Random, Self::SourceHash, Self::Failover];

    /// The word used in parameters and rows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::LeastConnections => "least_connections",
            Self::Random => "random",
            Self::SourceHash => "source_hash",
            Self::Failover => "failover",
        }
    }

    /// The value that `word` names; `fifo` is the original's name of [`Balance::Failover`].
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        if word == "fifo" {
            return Some(Self::Failover);
        }
        Self::ALL.into_iter().find(|value| value.as_str() == word)
    }

    /// What holds where a user has set nothing: round robin for TCP, the first announced for UDP, as the original did.
    #[must_use]
    pub const fn default_for(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::RoundRobin,
            Transport::Udp => Self::Failover,
        }
    }
}
