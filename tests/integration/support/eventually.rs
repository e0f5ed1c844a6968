//! Waiting for a state, bounded: level, not edge.

#![allow(dead_code, reason = "each test module uses the helpers it needs")]

use std::time::{Duration, Instant};

/// How long anything may take on a busy machine before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How often the state is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Waits until `look` finds something, and returns it.
///
/// # Panics
/// After [`PATIENCE`], with `what`.
#[track_caller]
pub fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    eventually_for(PATIENCE, what, look)
}

/// The same for what takes its time by itself.
///
/// # Panics
/// After `patience`, with `what`.
#[track_caller]
pub fn eventually_for<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        #[expect(clippy::disallowed_methods, reason = "the one place where tests look again after a pause")]
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The same for asynchronous looks.
///
/// # Panics
/// After [`PATIENCE`], with `what`.
pub async fn eventually_async<T, F: Future<Output = Option<T>>>(what: &str, look: impl FnMut() -> F) -> T {
    eventually_within(PATIENCE, what, look).await
}

/// The same for what takes its time by itself.
///
/// # Panics
/// After `patience`, with `what`.
pub async fn eventually_within<T, F: Future<Output = Option<T>>>(
    patience: Duration,
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
