//! The link to the server: how it is kept, and how its loss shows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
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

/// The error for what has taken too long.
pub(super) fn timed_out(message: String) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, message))
}
