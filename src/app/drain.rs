//! The end: not ready at once, then no new connections, then no open ones.

use std::time::Duration;

use tokio::time::{Instant, interval, sleep};

use super::signals::Signals;
use crate::{forwarder::Forwarder, model::desired::ForwarderLimits};

/// How often open connections are counted.
const COUNT_EVERY: Duration = Duration::from_millis(20);

/// Lets balancers move away, then awaits `stop_apis`, closes the ports and lets connections finish. A process that is
/// told to end again waits no longer.
pub(super) async fn drain(
    forwarder: &Forwarder,
    limits: &ForwarderLimits,
    signals: &mut Signals,
    stop_apis: impl Future<Output = ()>,
) {
    tracing::info!(wait = ?limits.drain_wait, timeout = ?limits.drain_timeout, "draining");
    let in_haste = tokio::select! {
        () = sleep(limits.drain_wait) => false,
        () = signals.end() => true,
    };
    stop_apis.await;
    forwarder.close_listeners();
    if !in_haste {
        tokio::select! {
            () = finished(forwarder, limits.drain_timeout) => {}
            () = signals.end() => {}
        }
    }
    match forwarder.open_flows() {
        0 => tracing::info!("every connection has finished"),
        open => tracing::warn!(open, "connections did not finish in time and are cut off"),
    }
}

/// Waits until nothing is open, for at most `timeout`.
async fn finished(forwarder: &Forwarder, timeout: Duration) {
    let deadline = Instant::now() + timeout;
    let mut ticks = interval(COUNT_EVERY);
    while forwarder.open_flows() > 0 && Instant::now() < deadline {
        ticks.tick().await;
    }
}
