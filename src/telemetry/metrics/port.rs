//! What is counted of one port beside the node's own counts: as little as tells what goes through it.

use std::iter::Sum;

use super::forwarder::{Count, Direction};

/// A number for each [`Direction`].
type EachWay<T> = [T; 2];

/// What one thread has counted of one port, on cache lines that no other thread writes to.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct PortTally {
    /// TCP connections that passed `allow` and the limits.
    pub connections_accepted: Count,
    /// Those that have ended.
    pub connections_closed: Count,
    /// TCP connections reset at the door.
    pub connections_refused: Count,
    /// UDP sessions begun.
    pub sessions_opened: Count,
    /// Those that have ended.
    pub sessions_closed: Count,
    /// Datagrams that were not passed on.
    pub datagrams_dropped: Count,
    tcp_bytes: EachWay<Count>,
    udp_bytes: EachWay<Count>,
    datagrams: EachWay<Count>,
}

impl PortTally {
    /// So many bytes have been carried over TCP.
    pub fn carried_over_tcp(&self, direction: Direction, bytes: usize) {
        self.tcp_bytes[usize::from(direction)].more(bytes as u64);
    }

    /// So many datagrams have been passed on.
    pub fn carried(&self, direction: Direction, datagrams: usize, bytes: usize) {
        self.datagrams[usize::from(direction)].more(datagrams as u64);
        self.udp_bytes[usize::from(direction)].more(bytes as u64);
    }

    /// The counts of this moment. Ends before beginnings, so that never more have ended than begun.
    #[must_use]
    pub fn counts(&self) -> PortCounts {
        let each = |counts: &EachWay<Count>| counts.each_ref().map(Count::get);
        let (connections_closed, sessions_closed) = (self.connections_closed.get(), self.sessions_closed.get());
        PortCounts {
            connections_accepted: self.connections_accepted.get(),
            connections_closed,
            connections_refused: self.connections_refused.get(),
            sessions_opened: self.sessions_opened.get(),
            sessions_closed,
            datagrams_dropped: self.datagrams_dropped.get(),
            tcp_bytes: each(&self.tcp_bytes),
            udp_bytes: each(&self.udp_bytes),
            datagrams: each(&self.datagrams),
        }
    }
}

/// What has been counted of a port, as in [`PortTally`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are named as in the tally")]
pub struct PortCounts {
    pub connections_accepted: u64,
    pub connections_closed: u64,
    pub connections_refused: u64,
    pub sessions_opened: u64,
    pub sessions_closed: u64,
    pub datagrams_dropped: u64,
    pub tcp_bytes: EachWay<u64>,
    pub udp_bytes: EachWay<u64>,
    pub datagrams: EachWay<u64>,
}

impl PortCounts {
    /// TCP connections that are open.
    #[must_use]
    pub const fn connections_open(&self) -> u64 {
        self.connections_accepted.saturating_sub(self.connections_closed)
    }

    /// UDP sessions that are open. One that has moved to another thread ends there.
    #[must_use]
    pub const fn sessions_open(&self) -> u64 {
        self.sessions_opened.saturating_sub(self.sessions_closed)
    }
}

impl Sum for PortCounts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        let both = |a: EachWay<u64>, b: EachWay<u64>| [a[0] + b[0], a[1] + b[1]];
        all.fold(Self::default(), |a, b| Self {
            connections_accepted: a.connections_accepted + b.connections_accepted,
            connections_closed: a.connections_closed + b.connections_closed,
            connections_refused: a.connections_refused + b.connections_refused,
            sessions_opened: a.sessions_opened + b.sessions_opened,
            sessions_closed: a.sessions_closed + b.sessions_closed,
            datagrams_dropped: a.datagrams_dropped + b.datagrams_dropped,
            tcp_bytes: both(a.tcp_bytes, b.tcp_bytes),
            udp_bytes: both(a.udp_bytes, b.udp_bytes),
            datagrams: both(a.datagrams, b.datagrams),
        })
    }
}
