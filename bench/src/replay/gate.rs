//! The clock that holds the worker while a step sends, and the wait for all that a step causes.

use std::{
    fs,
    io::{self, IoSliceMut},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use harbor::model::{Clock, Timestamp};
use rustix::event::{EventfdFlags, eventfd};

/// How long to wait for what takes no time unless something is wrong; everything is slow while it is counted.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How the worker waits at the gate: a call that the data plane does not make.
pub const SYSTEM_CALL: &str = "readv";

/// A thread that is counted, and what it waits in when it has nothing to do: numbers of system calls, of ARM and of x86. It
/// does not wait in what has these numbers on the other machine.
struct Counted {
    name: &'static str,
    waits: &'static [&'static str],
}

/// The worker waits in `epoll_pwait`, `epoll_wait` or `epoll_pwait2`, the reconciler in `futex`.
const COUNTED: [Counted; 2] = [
    Counted { name: super::THREADS[0], waits: &["22", "232", "281", "441"] },
    Counted { name: super::THREADS[1], waits: &["98", "202"] },
];

/// What time goes on with each look at it. Slower than real time, so that no timer fires unasked.
const TICK: Duration = Duration::from_nanos(100);

/// A clock that goes on when it is looked at, which the worker does in every turn: there it waits when the gate is closed.
#[derive(Debug)]
pub struct Gate {
    start: Instant,
    elapsed_ns: AtomicU64,
    closed: AtomicBool,
    /// A semaphore of openings. The worker takes one per closing, whether it has to wait or not: each step costs it the
    /// same.
    openings: OwnedFd,
    /// Where the kernel says what the counted threads wait in.
    waits: OnceLock<[PathBuf; COUNTED.len()]>,
}

impl Gate {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            start: Instant::now(),
            elapsed_ns: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            openings: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::SEMAPHORE)?,
            waits: OnceLock::new(),
        })
    }

    /// Sends each while the worker is held in the turn that the first one wakes it for: which of them it is told of
    /// before it is held would be chance if they were under way together.
    pub fn together<T>(
        &self,
        what: impl IntoIterator<Item = T>,
        mut send: impl FnMut(T) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut what = what.into_iter();
        let Some(first) = what.next() else { return Ok(()) };
        let ((), _held) = self.hold(|| send(first))?;
        what.try_for_each(send)
    }

    /// Waits until the worker has nothing left to do, and holds it in the turn that `wake` makes it begin.
    pub fn hold<T>(&self, wake: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Held<'_>)> {
        self.rest()?;
        self.closed.store(true, Ordering::SeqCst);
        // Opens also after an error: the forwarder is to end.
        let held = Held(self);
        let woken = wake()?;
        let deadline = Instant::now() + PATIENCE;
        while self.closed.load(Ordering::SeqCst) {
            ensure!(Instant::now() < deadline, "the forwarder has not begun a turn within {PATIENCE:?}");
            thread::yield_now();
        }
        Ok((woken, held))
    }

    /// Puts the time forward.
    pub fn advance(&self, duration: Duration) {
        self.elapsed_ns.fetch_add(nanoseconds(duration), Ordering::SeqCst);
    }

    /// Waits until the counted threads have nothing left to do.
    pub fn rest(&self) -> anyhow::Result<()> {
        let waits = self.waits.get_or_init(|| COUNTED.map(|thread| find(thread.name).unwrap_or_default()));
        let deadline = Instant::now() + PATIENCE;
        // Each may have woken another after that one was looked at: all must wait in two looks.
        let mut looks = 0;
        while looks < 2 {
            let calls = waits.iter().map(fs::read_to_string).collect::<io::Result<Vec<_>>>();
            let calls = calls.context("the kernel does not say what threads wait in")?;
            let waits = |(thread, call): (&Counted, &String)| {
                call.split(' ').next().is_some_and(|number| thread.waits.contains(&number))
            };
            looks = if COUNTED.iter().zip(&calls).all(waits) { looks + 1 } else { 0 };
            if Instant::now() > deadline {
                bail!("the forwarder has not come to rest within {PATIENCE:?}: {calls:?}");
            }
            thread::yield_now();
        }
        Ok(())
    }

    fn wait(&self) {
        let mut count = [0; 8];
        rustix::io::readv(&self.openings, &mut [IoSliceMut::new(&mut count)]).expect("nothing else takes from it");
    }
}

/// The worker waits while there is this.
pub struct Held<'a>(&'a Gate);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        rustix::io::write(&self.0.openings, &1_u64.to_ne_bytes())
            .expect("it has room for more openings than there are steps");
    }
}

impl Clock for Gate {
    fn now(&self) -> Instant {
        let worker = || thread::current().name() == Some(COUNTED[0].name);
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

/// Finds a thread of this process.
fn find(name: &str) -> io::Result<PathBuf> {
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.trim() == name {
            return Ok(task.join("syscall"));
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("within centuries")
}
