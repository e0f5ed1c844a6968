//! One backend, and the immutable set that a listener chooses from.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use crate::model::{
    Transport,
    announcement::{Authority, Endpoint, Origin},
};

/// Where a service instance's current set is found. Discovery stores, the forwarder loads.
pub type Slot = ArcSwap<BackendSet>;

/// The backends that new connections and sessions may go to: announced, in the order of their first announcement
/// (ties by address), neither draining nor gone.
#[derive(Debug, Default)]
pub struct BackendSet {
    /// For TCP.
    pub tcp: Vec<Arc<Backend>>,
    /// For UDP.
    pub udp: Vec<Arc<Backend>>,
}

impl BackendSet {
    /// Those for `transport`.
    #[must_use]
    pub fn of(&self, transport: Transport) -> &[Arc<Backend>] {
        match transport {
            Transport::Tcp => &self.tcp,
            Transport::Udp => &self.udp,
        }
    }
}

/// What flows of a backend must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Go on; new ones may come.
    Serving = 0,
    /// It asked for no more: TCP goes on until [`Backend::drain_deadline`], UDP sessions likewise.
    Draining = 1,
    /// It is no longer announced: TCP goes on until it ends by itself, or until [`Backend::drain_deadline`] where it had
    /// drained before; UDP sessions end.
    Left = 2,
    /// Its authority ended: everything ends at once.
    Revoked = 3,
}

/// On a cache line of its own: each flow that opens or ends writes to it, each datagram reads what stands beside it.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Open(AtomicU32);

/// One announced address for one transport: an identity that never changes, and a few atomics.
#[derive(Debug)]
pub struct Backend {
    /// Where it is reached.
    pub endpoint: Endpoint,
    /// Why it is believed.
    pub authority: Authority,
    /// Who announced it first.
    pub origin: Origin,
    /// Place in the order of first announcements within this process.
    pub order: u64,
    /// When it was first announced.
    pub since: Instant,
    phase: AtomicU8,
    /// Milliseconds after `since`; 0: no deadline.
    drain_deadline_ms: AtomicU64,
    /// Open connections or sessions, over all workers.
    open: Open,
    /// Milliseconds after `since` until which it is passed over; 0: not aside.
    aside_until_ms: AtomicU64,
}

impl Backend {
    /// A backend that serves.
    #[must_use]
    pub fn new(endpoint: Endpoint, authority: Authority, origin: Origin, order: u64, now: Instant) -> Self {
        Self {
            endpoint,
            authority,
            origin,
            order,
            since: now,
            phase: AtomicU8::new(Phase::Serving as u8),
            drain_deadline_ms: AtomicU64::new(0),
            open: Open::default(),
            aside_until_ms: AtomicU64::new(0),
        }
    }

    /// What its flows must do.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Serving,
            1 => Phase::Draining,
            2 => Phase::Left,
            _ => Phase::Revoked,
        }
    }

    /// Sets the phase. Only `backends` does, and it wakes the forwarder afterwards.
    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// When the flows of a backend end that drains, or did so until it left.
    #[must_use]
    pub fn drain_deadline(&self) -> Option<Instant> {
        self.moment(&self.drain_deadline_ms)
    }

    pub(super) fn set_drain_deadline(&self, deadline: Option<Instant>) {
        self.set_moment(&self.drain_deadline_ms, deadline);
    }

    /// Counts a connection or session that opens.
    pub fn opened(&self) {
        self.open.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one that ends.
    pub fn closed(&self) {
        let before = self.open.0.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "a flow was closed that was not open");
    }

    /// Open connections or sessions.
    #[must_use]
    pub fn open(&self) -> u32 {
        self.open.0.load(Ordering::Relaxed)
    }

    /// Until when it is passed over because it failed, unless it is the last one left.
    #[must_use]
    pub fn aside_until(&self) -> Option<Instant> {
        self.moment(&self.aside_until_ms)
    }

    /// Puts it aside, or takes it back.
    pub fn put_aside(&self, until: Option<Instant>) {
        self.set_moment(&self.aside_until_ms, until);
    }

    fn moment(&self, milliseconds: &AtomicU64) -> Option<Instant> {
        match milliseconds.load(Ordering::Relaxed) {
            0 => None,
            ms => Some(self.since + Duration::from_millis(ms)),
        }
    }

    fn set_moment(&self, milliseconds: &AtomicU64, moment: Option<Instant>) {
        let ms = moment.map_or(0, |moment| {
            u64::try_from(moment.saturating_duration_since(self.since).as_millis()).unwrap_or(u64::MAX).max(1)
        });
        milliseconds.store(ms, Ordering::Relaxed);
    }
}
