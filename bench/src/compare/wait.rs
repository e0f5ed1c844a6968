//! Looking again until something is so.

use std::time::{Duration, Instant};

/// Looks every `pause` until `look` gives something, at most for `patience`.
pub fn until<T>(patience: Duration, pause: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        #[expect(clippy::disallowed_methods, reason = "other programs do not say when they are ready")]
        std::thread::sleep(pause);
    }
}
