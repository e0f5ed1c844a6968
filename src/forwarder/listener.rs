//! What all workers know of one listener.

use std::{
    net::IpAddr,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, Guard};

use super::admission::Usage;
use crate::{
    backends::{Backend, Slot},
    model::{
        PoolName, ServiceInstanceId, Transport,
        balance::{self, Balance, Candidate, Draw},
        desired::{ForwarderLimits, ListenerSpec, allows},
    },
    telemetry::metrics::{PortCounts, PortTally},
};

/// One listener: its settings, which change while it is open, and what its workers share.
#[derive(Debug)]
pub(super) struct Listener {
    pub id: ServiceInstanceId,
    pub pool: PoolName,
    pub port: u16,
    pub usage: Arc<Usage>,
    spec: ArcSwap<ListenerSpec>,
    slot: Arc<Slot>,
    /// Threads that take its TCP connections.
    open_at: AtomicUsize,
    /// What each thread has counted of it, from the first that there is to count.
    tallies: Box<[OnceLock<Arc<PortTally>>]>,
}

impl Listener {
    /// One that so many threads may serve.
    pub(super) fn new(spec: Arc<ListenerSpec>, slot: Arc<Slot>, threads: usize) -> Self {
        Self {
            id: spec.service_instance_id.clone(),
            pool: spec.pool.clone(),
            port: spec.port,
            usage: Arc::default(),
            spec: ArcSwap::new(spec),
            slot,
            open_at: AtomicUsize::new(0),
            tallies: (0..threads).map(|_| OnceLock::new()).collect(),
        }
    }

    /// What the thread of that number counts of it. Stays the same, so that whoever counts often keeps it.
    pub(super) fn tally(&self, thread: usize) -> &Arc<PortTally> {
        self.tallies[thread].get_or_init(Arc::default)
    }

    /// What all threads have counted of it.
    pub(super) fn counts(&self) -> PortCounts {
        self.tallies.iter().filter_map(OnceLock::get).map(|tally| tally.counts()).sum()
    }

    /// What holds now.
    pub(super) fn spec(&self) -> Guard<Arc<ListenerSpec>> {
        self.spec.load()
    }

    pub(super) fn set_spec(&self, spec: Arc<ListenerSpec>) {
        self.spec.store(spec);
    }

    /// Silence after which a flow ends.
    pub(super) fn idle_timeout(&self, transport: Transport, limits: &ForwarderLimits) -> Duration {
        self.spec().settings.idle_timeout.unwrap_or(limits.idle_timeout(transport))
    }

    /// Whether it has a backend that is not passed over.
    pub(super) fn has_one_that_works(&self, transport: Transport, now: Instant) -> bool {
        self.slot.load().of(transport).iter().any(|backend| !backend.is_passed_over(now))
    }

    /// One more thread takes its TCP connections.
    pub(super) fn opened(&self) {
        self.open_at.fetch_add(1, Ordering::Relaxed);
    }

    /// One of them no longer does.
    pub(super) fn closed(&self) {
        self.open_at.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether that many do.
    pub(super) fn is_open_at_all(&self, threads: usize) -> bool {
        self.open_at.load(Ordering::Relaxed) == threads
    }
}

/// Whether the client is a balancer whose PROXY header is required and believed.
pub(super) fn speaks_for_others(limits: &ForwarderLimits, client: SocketAddr) -> bool {
    !limits.proxy_from.is_empty() && allows(&limits.proxy_from, client.ip())
}

/// A worker's means to choose: scratch memory and randomness.
#[derive(Debug, Default)]
pub(super) struct Chooser {
    candidates: Vec<Candidate>,
    random: fastrand::Rng,
}

impl Chooser {
    /// The backend for a flow that has tried those in `tried`.
    pub(super) fn choose(
        &mut self,
        listener: &Listener,
        transport: Transport,
        (client, ticket): (IpAddr, u64),
        tried: &[SocketAddr],
        now: Instant,
    ) -> Option<Arc<Backend>> {
        let set = listener.slot.load();
        let backends = set.of(transport);
        self.candidates.clear();
        self.candidates.extend(backends.iter().map(|backend| Candidate {
            address: backend.endpoint.address,
            open: backend.open(),
            aside: backend.is_passed_over(now),
        }));
        let balance = listener.spec().settings.balance.unwrap_or(Balance::default_for(transport));
        let draw = Draw { client, ticket, random: self.random.u64(..) };
        balance::choose(balance, &self.candidates, tried, draw).map(|place| Arc::clone(&backends[place]))
    }
}

/// One flow on a backend; counted there until it is dropped.
#[derive(Debug)]
pub(super) struct OnBackend(Arc<Backend>);

impl OnBackend {
    pub(super) fn new(backend: Arc<Backend>) -> Self {
        backend.opened();
        Self(backend)
    }
}

impl std::ops::Deref for OnBackend {
    type Target = Backend;

    fn deref(&self) -> &Backend {
        &self.0
    }
}

impl Drop for OnBackend {
    fn drop(&mut self) {
        self.0.closed();
    }
}
