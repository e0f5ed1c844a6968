//! The clock that holds the worker while a step sends.

use std::{
    io::{self, IoSliceMut},
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use harbor::model::{Clock, Timestamp};
use rustix::event::{EventfdFlags, eventfd};

/// How the worker waits at the gate: a call that the data plane does not make.
pub const SYSTEM_CALL: &str = "readv";

/// What time goes on with each look at it. Slower than real time, so that no timer fires unasked.
const TICK: Duration = Duration::from_nanos(100);

/// A clock that goes on when it is looked at, which the worker does in every turn: there it waits when the gate is closed.
#[derive(Debug)]
pub struct Gate {
    start: Instant,
    elapsed_ns: AtomicU64,
    closed: AtomicBool,
    /// Counts openings. The worker takes them once per closing, whether it has to wait or not: each step costs it the
    /// same.
    openings: OwnedFd,
}

impl Gate {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            start: Instant::now(),
            elapsed_ns: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            openings: eventfd(0, EventfdFlags::CLOEXEC)?,
        })
    }

    /// Holds the worker, in the turn that it begins next, until `send` is through.
    pub fn together<T>(&self, send: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        self.closed.store(true, Ordering::SeqCst);
        let sent = send();
        // Also after an error: the forwarder is to end.
        rustix::io::write(&self.openings, &1_u64.to_ne_bytes())?;
        sent
    }

    /// Puts the time forward.
    pub fn advance(&self, duration: Duration) {
        self.elapsed_ns.fetch_add(nanoseconds(duration), Ordering::SeqCst);
    }

    fn wait(&self) {
        let mut count = [0; 8];
        rustix::io::readv(&self.openings, &mut [IoSliceMut::new(&mut count)]).expect("nothing else takes from it");
    }
}

impl Clock for Gate {
    fn now(&self) -> Instant {
        let worker = || thread::current().name() == Some(super::THREADS[0]);
        if self.closed.load(Ordering::SeqCst) && worker() {
            self.closed.store(false, Ordering::SeqCst);
            self.wait();
        }
        let elapsed = self.elapsed_ns.fetch_add(nanoseconds(TICK), Ordering::SeqCst);
        self.start + Duration::from_nanos(elapsed)
    }

    fn wall(&self) -> Timestamp {
        Timestamp::from_seconds(1_700_000_000)
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("within centuries")
}
