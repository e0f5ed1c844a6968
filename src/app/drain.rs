//! The end: not ready at once, then no new connections, then no open ones.

use std::time::Duration;

use tokio::time::{Instant, interval, sleep, timeout};

use super::signals::Signals;
use crate::{forwarder::Forwarder, model::desired::ForwarderLimits};

/// How often open connections are counted.
const COUNT_EVERY: Duration = Duration::from_millis(20);

/// How long the ports wait for the APIs: what they have begun is to find its port open.
const APIS_STOP_WITHIN: Duration = Duration::from_secs(1);

/// Lets balancers move away, then awaits `stop_apis`, closes the ports and lets connections finish. A process that is
/// told to end again waits no longer.
pub(super) async fn drain(
    forwarder: &Forwarder,
    limits: &ForwarderLimits,
    signals: &mut Signals,
    stop_apis: impl Future<Output = ()>,
) {
    tracing::info!(wait = ?limits.drain_wait, timeout = ?limits.drain_timeout, "draining");
    tokio::select! {
        () = sleep(limits.drain_wait) => {}
        () = signals.end() => return forwarder.close_listeners(),
    }
    tokio::pin!(stop_apis);
    let stopped = tokio::select! {
        () = &mut stop_apis => true,
        // Ports do not wait for a client that never ends its request.
        () = sleep(APIS_STOP_WITHIN) => false,
        () = signals.end() => return forwarder.close_listeners(),
    };
    forwarder.close_listeners();
    let rest = async {
        let apis = async {
            if !stopped {
                // A request that is not whole by then gets no answer.
                let _ = timeout(limits.drain_timeout, stop_apis).await;
            }
        };
        tokio::join!(finished(forwarder, limits.drain_timeout), apis);
    };
    tokio::select! {
        () = rest => {}
        () = signals.end() => {}
    }
    report(forwarder);
}

/// Lets open connections finish, after everything else has been handed over.
pub(super) async fn finish(forwarder: &Forwarder, limits: &ForwarderLimits, signals: &mut Signals) {
    tokio::select! {
        () = finished(forwarder, limits.drain_timeout) => {}
        () = signals.end() => {}
    }
    report(forwarder);
}

fn report(forwarder: &Forwarder) {
    match forwarder.open_flows() {
        0 => tracing::info!("every connection has finished"),
        open => tracing::warn!(open, "connections did not finish in time and are cut off"),
    }
}

/// Waits until nothing is open, for at most `timeout`.
pub(super) async fn finished(forwarder: &Forwarder, timeout: Duration) {
    let deadline = Instant::now() + timeout;
    let mut ticks = interval(COUNT_EVERY);
    while forwarder.open_flows() > 0 && Instant::now() < deadline {
        ticks.tick().await;
    }
}
