//! The link to the server: how it is kept, and how its loss shows.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, futures::Notified},
    time::Instant,
};

/// What each connection asks of the server about silence, beside what the client sees to itself: that a node which is gone,
/// or was cut off, has no connection for long.
pub(super) const KEEPALIVES: &str = "SET tcp_keepalives_idle = 10; \
    SET tcp_keepalives_interval = 5; \
    SET tcp_keepalives_count = 3; \
    SET tcp_user_timeout = '10s'";

/// How often connections were lost, however that showed.
#[derive(Debug, Clone, Default)]
pub(super) struct Losses(Arc<AtomicU64>);

impl Losses {
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Whether the server says nothing to anybody. Whoever makes several calls in a row, or waits for others that do, is not to
/// wait for the end of each.
#[derive(Debug)]
pub(super) struct Silence {
    state: Mutex<Sound>,
    fallen: Notify,
}

#[derive(Debug)]
struct Sound {
    /// When anybody was answered last.
    heard_at: Instant,
    /// Until then nobody asks.
    silent_until: Option<Instant>,
}

impl Silence {
    pub(super) fn new() -> Self {
        let state = Sound { heard_at: Instant::now(), silent_until: None };
        Self { state: Mutex::new(state), fallen: Notify::new() }
    }

    /// Somebody was answered, or told something.
    pub(super) fn end(&self) {
        *self.state() = Sound { heard_at: Instant::now(), silent_until: None };
    }

    /// Somebody has asked at `asked` and was not answered. If nobody else was either, it is silence, and lasts `pause`:
    /// then whoever asks next finds out whether the server is back.
    pub(super) fn begin(&self, asked: Instant, pause: Duration) {
        let mut state = self.state();
        if state.heard_at <= asked {
            state.silent_until = Some(Instant::now() + pause);
            self.fallen.notify_waiters();
        }
    }

    /// Whether it lasts.
    pub(super) fn lasts(&self) -> bool {
        self.state().silent_until.is_some_and(|until| Instant::now() < until)
    }

    /// Waits until it begins, from this call on.
    pub(super) fn fallen(&self) -> Notified<'_> {
        self.fallen.notified()
    }

    fn state(&self) -> MutexGuard<'_, Sound> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the connection is over.
pub(super) fn is_loss(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => is_farewell(error.code().as_deref()),
        _ => false,
    }
}

/// Whether a server says by this code that the connection is over: it stops, has crashed, or was told to end it.
fn is_farewell(code: Option<&str>) -> bool {
    matches!(code, Some("57P01" | "57P02" | "57P05" | "25P03" | "08003" | "08006"))
}

/// The error for an answer that has not come.
pub(super) fn silent(within: Duration) -> sqlx::Error {
    timed_out(format!("PostgreSQL has not answered for {within:?}"))
}

/// The error for whoever is not to wait for an answer that others wait for in vain.
pub(super) fn silent_to_others() -> sqlx::Error {
    timed_out("PostgreSQL has not answered those who asked before".into())
}

/// The error for what has taken too long.
pub(super) fn timed_out(message: String) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, message))
}
