//! A line for each flow that ends, as far as there is room for it: a flood of short connections may cost neither the
//! threads that forward nor the disk.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use crate::{
    forwarder::{ClosingRecord, FlowEnd},
    telemetry::metrics::{ForwarderMetrics, SessionEnd},
};

/// What a filter names to have more or fewer of these lines.
const TARGET: &str = "harbor::forwarder::flow";

/// Lines that are written for long.
const LINES_PER_SECOND: u64 = 100;

/// Lines that are written at once after a quiet while.
const BURST: u64 = 200;

/// How often it is told how many were left out.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// What is written of flows that end.
#[derive(Debug)]
pub(super) struct FlowLines {
    allowance: Allowance,
    metrics: Arc<ForwarderMetrics>,
    /// Of those that were left out, how many the log has told of.
    told: AtomicU64,
}

impl FlowLines {
    pub(super) fn new(metrics: Arc<ForwarderMetrics>) -> Self {
        Self { allowance: Allowance::full(Instant::now()), metrics, told: AtomicU64::new(0) }
    }

    /// Who came, where it went, how much, why it ended. Called by the threads that forward: a line that is not wanted
    /// costs an atomic load, one that is left out one more and a count.
    pub(super) fn ended(&self, record: &ClosingRecord<'_>) {
        // Another process goes on with it, and has a line at its end.
        let goes_on = record.end == FlowEnd::Session(SessionEnd::HandedOver);
        if goes_on || !tracing::enabled!(target: TARGET, tracing::Level::INFO) {
            return;
        }
        if !self.allowance.take(record.at) {
            self.metrics.flow_lines_left_out.inc();
            return;
        }
        let [to_backend, to_client] = record.datagrams.map_or([None; 2], |datagrams| datagrams.map(Some));
        tracing::info!(
            target: TARGET,
            service_instance = record.service_instance_id.as_str(),
            pool = %record.pool,
            port = record.port,
            transport = record.end.transport().as_str(),
            client = %record.client,
            backend = record.backend.map(tracing::field::display),
            duration_ms = u64::try_from(record.lasted.as_millis()).unwrap_or(u64::MAX),
            to_backend_bytes = record.to_backend,
            to_client_bytes = record.to_client,
            to_backend_datagrams = to_backend,
            to_client_datagrams = to_client,
            reason = record.end.as_str(),
            "flow ended"
        );
    }

    /// Tells how many lines were left out, once a second while there are any, until `shutdown`.
    pub(super) async fn tell(self: Arc<Self>, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(TELL_EVERY);
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            self.tell_left_out();
        }
    }

    /// Tells how many lines were left out since it was last told, if any.
    pub(super) fn tell_left_out(&self) {
        let left_out = self.metrics.flow_lines_left_out.get();
        let new = left_out - self.told.swap(left_out, Ordering::Relaxed);
        if new > 0 {
            tracing::info!(target: TARGET, left_out = new, "lines of flows that ended were left out");
        }
    }
}

/// How many lines may be written now. Any thread takes from it, and none waits for another.
#[derive(Debug)]
struct Allowance {
    began: Instant,
    /// When it is full again, in nanoseconds after it began.
    full_at: AtomicU64,
}

impl Allowance {
    /// Until one more line may be written.
    const PER_LINE: u64 = 1_000_000_000 / LINES_PER_SECOND;

    fn full(now: Instant) -> Self {
        Self { began: now, full_at: AtomicU64::new(0) }
    }

    /// Takes a line, if there is one to be had.
    fn take(&self, at: Instant) -> bool {
        let now = u64::try_from(at.saturating_duration_since(self.began).as_nanos()).unwrap_or(u64::MAX / 2);
        let less_one = |full_at: u64| {
            let full_at = full_at.max(now) + Self::PER_LINE;
            (full_at - now <= BURST * Self::PER_LINE).then_some(full_at)
        };
        self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less_one).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_let_through_and_then_so_many_a_second() {
        let began = Instant::now();
        let allowance = Allowance::full(began);
        let taken = |at: Duration, tries: u64| (0..tries).filter(|_| allowance.take(began + at)).count() as u64;
        assert_eq!(taken(Duration::ZERO, 10_000), BURST);
        assert_eq!(taken(Duration::from_millis(5), 10), 0, "not one yet");
        assert_eq!(taken(Duration::from_millis(10), 10), 1);
        assert_eq!(taken(Duration::from_millis(500), 10_000), 49);
        let steady = (500..10_500).map(|ms| taken(Duration::from_millis(ms), 10)).sum::<u64>();
        assert_eq!(steady, 10 * LINES_PER_SECOND - 1);
        assert_eq!(taken(Duration::from_secs(3600), 10_000), BURST, "a long quiet saves no more than a burst");
        assert!(!allowance.take(began), "a thread that is late by its clock takes nothing that is not there");
    }

    #[test]
    fn threads_share_one_allowance() {
        let began = Instant::now();
        let allowance = Allowance::full(began);
        let taken = std::thread::scope(|scope| {
            let each = || (0..BURST).filter(|_| allowance.take(began)).count() as u64;
            let threads = [0; 4].map(|_| scope.spawn(each));
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>()
        });
        assert_eq!(taken, BURST);
    }
}
