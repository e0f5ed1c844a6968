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

/// One announced address for one transport: an identity that never changes, and a few atomics. In the order written, so
/// that what each announcement is held against is one cache line.
#[derive(Debug)]
#[repr(C)]
pub struct Backend {
    /// Where it is reached.
    pub endpoint: Endpoint,
    /// Why it is believed.
    pub authority: Authority,
    /// Who announced it first.
    pub origin: Origin,
    /// When this process learnt of it.
    since: Instant,
    phase: AtomicU8,
    /// Milliseconds after `since`; 0: no deadline.
    drain_deadline_ms: AtomicU64,
    /// Milliseconds after `since` until which it is passed over; 0: not aside.
    aside_until_ms: AtomicU64,
    /// Times in a row that it was put aside.
    failures: AtomicU32,
    /// What checks have found, a [`Health`].
    health: AtomicU8,
    /// Milliseconds after `since`: when that began.
    health_since_ms: AtomicU64,
    /// Open connections or sessions, over all workers.
    open: Open,
}

/// How long a backend that failed is passed over, at first; twice as long after each further time, up to
/// [`LONGEST_ASIDE`]. Gorouter's first is the same.
const FIRST_ASIDE: Duration = Duration::from_secs(30);

/// How long at the most: one that works again shall not stand idle for long.
const LONGEST_ASIDE: Duration = Duration::from_secs(300);

/// How long after so many failures in a row.
fn aside_after(failures: u32) -> Duration {
    FIRST_ASIDE.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(LONGEST_ASIDE)
}

/// What checks have found of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Health {
    /// Nothing yet, or none is asked for.
    Unchecked = 0,
    /// It takes connections.
    Up = 1,
    /// It does not: it is passed over while there are others.
    Down = 2,
}

impl Health {
    /// The word used in answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unchecked => "unchecked",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

impl Backend {
    /// A backend that serves.
    #[must_use]
    pub fn new(endpoint: Endpoint, authority: Authority, origin: Origin, now: Instant) -> Self {
        Self {
            endpoint,
            authority,
            origin,
            since: now,
            phase: AtomicU8::new(Phase::Serving as u8),
            drain_deadline_ms: AtomicU64::new(0),
            aside_until_ms: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            health: AtomicU8::new(Health::Unchecked as u8),
            health_since_ms: AtomicU64::new(0),
            open: Open::default(),
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

    /// Since when and until when it is passed over because it failed, unless it is the last one left.
    #[must_use]
    pub fn aside(&self, now: Instant) -> Option<(Instant, Instant)> {
        let until = self.moment(&self.aside_until_ms).filter(|until| *until > now)?;
        let failures = self.failures.load(Ordering::Relaxed);
        Some((until.checked_sub(aside_after(failures)).unwrap_or(self.since), until))
    }

    /// It did not work: others come first for a while. Failures while it is aside, of those that came together or of the
    /// last one left, make that no longer.
    pub fn failed(&self, now: Instant) {
        if self.aside(now).is_none() {
            let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
            self.set_moment(&self.aside_until_ms, Some(now + aside_after(failures)));
        }
    }

    /// It works.
    pub fn worked(&self) {
        if self.aside_until_ms.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.set_moment(&self.aside_until_ms, None);
        }
    }

    /// What checks have found, and since when.
    #[must_use]
    pub fn health(&self) -> (Health, Instant) {
        let health = match self.health.load(Ordering::Relaxed) {
            0 => Health::Unchecked,
            1 => Health::Up,
            _ => Health::Down,
        };
        (health, self.since + Duration::from_millis(self.health_since_ms.load(Ordering::Relaxed)))
    }

    /// Notes what a check has found.
    pub fn set_health(&self, health: Health, now: Instant) {
        if self.health.swap(health as u8, Ordering::Relaxed) != health as u8 {
            let ms = u64::try_from(now.saturating_duration_since(self.since).as_millis()).unwrap_or(u64::MAX);
            self.health_since_ms.store(ms, Ordering::Relaxed);
        }
    }

    /// Whether others come first.
    #[must_use]
    pub fn is_passed_over(&self, now: Instant) -> bool {
        self.health.load(Ordering::Relaxed) == Health::Down as u8 || self.aside(now).is_some()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_has_worked_begins_anew_and_one_that_is_aside_stays_no_longer() {
        let start = Instant::now();
        let endpoint = Endpoint { transport: Transport::Tcp, address: "10.0.1.7:61012".parse().unwrap() };
        let backend = Backend::new(endpoint, Authority::Trusted, Origin::default(), start);
        let after = |seconds| start + Duration::from_secs(seconds);
        let aside = |from: u64, to: u64| Some((after(from), after(to)));
        assert_eq!(backend.aside(start), None);
        backend.failed(after(10));
        backend.failed(after(20));
        assert_eq!((backend.aside(after(39)), backend.aside(after(40))), (aside(10, 40), None));
        backend.failed(after(40));
        assert_eq!(backend.aside(after(99)), aside(40, 100));
        backend.worked();
        assert_eq!(backend.aside(after(99)), None);
        backend.failed(after(200));
        assert_eq!(backend.aside(after(200)), aside(200, 230));
        for _ in 0..100 {
            backend.failed(backend.aside(start).map_or(start, |(_, until)| until));
        }
        assert_eq!(backend.aside(start).map(|(since, until)| until - since), Some(LONGEST_ASIDE));
    }
}
