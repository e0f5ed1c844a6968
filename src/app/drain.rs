//! The end: not ready at once, then no new connections, then no open ones.

use std::time::Duration;

use tokio::time::{Instant, interval};
use tokio_util::sync::CancellationToken;

use crate::{forwarder::Forwarder, model::desired::ForwarderLimits};

/// How often open connections are counted.
const COUNT_EVERY: Duration = Duration::from_millis(20);

/// Lets balancers move away, then `stop_apis`, closes the ports and lets connections finish. `hurry` ends the waiting.
pub(super) async fn drain(
    forwarder: &Forwarder,
    limits: &ForwarderLimits,
    hurry: &CancellationToken,
    stop_apis: impl Future<Output = ()>,
) {
    tracing::info!(wait = ?limits.drain_wait, timeout = ?limits.drain_timeout, "draining");
    hurry.run_until_cancelled(tokio::time::sleep(limits.drain_wait)).await;
    stop_apis.await;
    forwarder.close_listeners();
    let deadline = Instant::now() + limits.drain_timeout;
    let mut ticks = interval(COUNT_EVERY);
    while forwarder.open_flows() > 0 && Instant::now() < deadline {
        if hurry.run_until_cancelled(ticks.tick()).await.is_none() {
            break;
        }
    }
    match forwarder.open_flows() {
        0 => tracing::info!("every connection has finished"),
        open => tracing::warn!(open, "connections did not finish in time and are cut off"),
    }
}
