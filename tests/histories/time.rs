//! Time that a history lets pass: what it consists of, not what it waits for. Simulated, it passes at once.

use std::time::Duration;

/// Lets so much time pass.
pub async fn pass(duration: Duration) {
    tokio::time::sleep(duration).await;
}
