//! The data plane: bound ports, and the connections and sessions through them, on threads of its own.
//!
//! A reconciler thread makes the node's listeners what the latest desired state says and reports what became
//! of each. Worker threads accept, connect and copy; they read the backends' sets and nothing else of the rest of the
//! process, so traffic waits neither for the store nor for NATS.
//!
//! What a connection or a session does next is decided by cores without sockets ([`tcp::relay`], [`udp::sessions`]);
//! the code around them makes the system calls. Another engine would replace that code and the workers, and keep the
//! cores, the reconciler and this interface.

mod admission;
mod binder;
mod listener;
pub mod proxy_protocol;
mod reconciler;
pub mod slab;
mod sockets;
pub mod tcp;
pub mod udp;
mod worker;

use std::{
    fmt, io,
    net::IpAddr,
    num::NonZero,
    sync::{Arc, Mutex, MutexGuard, mpsc::sync_channel},
    thread::{self, JoinHandle},
};

use arc_swap::ArcSwap;

use self::{
    admission::Admission,
    reconciler::{Inbox, Reconciler, State, WorkerHandle},
    sockets::Connector,
    worker::{Command, MAX_ADDRESSES, MAX_COMMANDS, Shared, Waker, Worker},
};
use crate::{
    backends::Backends,
    model::{Clock, PortSet, Transport, desired::DesiredState, observed::Observations},
    telemetry::metrics::ForwarderMetrics,
};

pub use binder::{Binder, SystemBinder};
pub use udp::ExportedSession;

/// Says who holds a port of this machine, if it can.
pub type HolderLookup = dyn Fn(u16, Transport) -> Option<String> + Send + Sync;

/// Is told what has been bound. Called by one thread, in order.
pub type Observe = dyn Fn(Arc<Observations>) + Send;

/// What holds from the start. What changes while the process runs is in the desired state.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Addresses that ports are bound on; `::` takes IPv4 too.
    pub listen: Vec<IpAddr>,
    /// Threads that forward; 0: one per core.
    pub workers: usize,
    /// Ports that no outgoing socket may take, until [`Forwarder::set_pool_ports`].
    pub pool_ports: PortSet,
}

/// What the forwarder asks of and tells the rest of the process.
pub struct Surroundings {
    /// Binds ports.
    pub binder: Arc<dyn Binder>,
    /// Where flows go.
    pub backends: Backends,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What is counted.
    pub metrics: Arc<ForwarderMetrics>,
    /// Names the holder of a port that cannot be bound.
    pub holder: Box<HolderLookup>,
    /// Hears what has been bound.
    pub observe: Box<Observe>,
}

/// A running forwarder. Dropping it ends everything, as [`Forwarder::stop`] does.
pub struct Forwarder {
    inbox: Arc<Inbox>,
    workers: Vec<WorkerHandle>,
    shared: Arc<Shared>,
    threads: Mutex<Threads>,
}

#[derive(Default)]
struct Threads {
    reconciler: Option<JoinHandle<()>>,
    workers: Vec<JoinHandle<()>>,
}

impl Forwarder {
    /// Starts the threads. Nothing is bound before the first [`Forwarder::apply`].
    ///
    /// # Errors
    /// When there is no address to listen on or there are more than 32, or threads and their descriptors cannot be had.
    pub fn start(settings: Settings, surroundings: Surroundings) -> io::Result<Self> {
        if settings.listen.is_empty() || settings.listen.len() > MAX_ADDRESSES {
            let reason = format!("the forwarder listens on 1 to {MAX_ADDRESSES} addresses: change `listen`");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let Surroundings { binder, backends, clock, metrics, holder, observe } = surroundings;
        let shared = Arc::new(Shared {
            admission: Arc::new(Admission::default()),
            limits: ArcSwap::default(),
            metrics,
            clock,
            connector: ArcSwap::from_pointee(Connector::new(&settings.pool_ports)),
        });
        let count = match settings.workers {
            0 => thread::available_parallelism().map_or(1, NonZero::get),
            count => count,
        };
        let inbox = Arc::new(Inbox::default());
        // Made first: whatever fails from here on, dropping it ends the threads that run by then.
        let mut forwarder = Self {
            inbox: Arc::clone(&inbox),
            workers: Vec::with_capacity(count),
            shared: Arc::clone(&shared),
            threads: Mutex::default(),
        };
        for number in 0..count {
            let waker = Arc::new(Waker::new()?);
            let (commands, orders) = sync_channel(MAX_COMMANDS);
            let worker = Worker::new(Arc::clone(&shared), Arc::clone(&waker), orders)?;
            forwarder.workers.push(WorkerHandle { waker, commands });
            let thread = thread::Builder::new().name(format!("forward-{number}")).spawn(|| worker.run())?;
            forwarder.threads().workers.push(thread);
        }
        let wakers = forwarder.workers.iter().map(|worker| Arc::clone(&worker.waker)).collect::<Vec<_>>();
        backends.on_change(Box::new(move |id| wakers.iter().for_each(|waker| waker.backends_changed(id))));
        let reconciler = Reconciler {
            inbox,
            workers: forwarder.workers.clone(),
            shared,
            backends,
            binder,
            listen: settings.listen,
            holder,
            observe,
            state: State::default(),
        };
        let thread = thread::Builder::new().name("reconcile".into()).spawn(|| reconciler.run())?;
        forwarder.threads().reconciler = Some(thread);
        Ok(forwarder)
    }

    /// Makes the node have what `desired` says. Returns at once; the latest call wins.
    pub fn apply(&self, desired: Arc<DesiredState>) {
        self.inbox.apply(desired);
    }

    /// Keeps outgoing sockets that are made from now on out of these ports.
    pub fn set_pool_ports(&self, pool_ports: &PortSet) {
        self.shared.connector.store(Arc::new(Connector::new(pool_ports)));
    }

    /// Lets go of listening TCP sockets and begins no UDP sessions; what is open goes on. There is no way back.
    pub fn close_listeners(&self) {
        self.inbox.close_listeners();
    }

    /// Open TCP connections and UDP sessions.
    #[must_use]
    pub fn open_flows(&self) -> u64 {
        self.shared.admission.flows()
    }

    /// Copies of all UDP sessions, with the descriptors of their sockets. Waits for every worker's turn.
    #[must_use]
    pub fn export_sessions(&self) -> Vec<ExportedSession> {
        let (reply, replies) = sync_channel(self.workers.len());
        for worker in &self.workers {
            // A worker that has stopped has no sessions.
            if worker.commands.send(Command::Export(reply.clone())).is_ok() {
                worker.waker.wake();
            }
        }
        drop(reply);
        replies.iter().flatten().collect()
    }

    /// Whether a thread has ended by itself, which only a bug makes it do. Its flows and ports are unattended then.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        let threads = self.threads();
        threads.reconciler.iter().chain(&threads.workers).any(JoinHandle::is_finished)
    }

    /// Ends all flows, closes all sockets and waits for all threads. Doing it again does nothing.
    ///
    /// # Panics
    /// When one of its threads has: that is a bug, and its message is in the log.
    pub fn stop(&self) {
        let Threads { reconciler, workers } = std::mem::take(&mut *self.threads());
        self.inbox.stop();
        let mut panicked = reconciler.is_some_and(|thread| thread.join().is_err());
        for worker in &self.workers {
            // One that has stopped already needs no telling.
            if worker.commands.send(Command::Stop).is_ok() {
                worker.waker.wake();
            }
        }
        for worker in workers {
            panicked |= worker.join().is_err();
        }
        assert!(!panicked || thread::panicking(), "a thread of the forwarder panicked");
    }

    fn threads(&self) -> MutexGuard<'_, Threads> {
        self.threads.lock().expect("nothing panics while it holds the threads")
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarder").field("workers", &self.workers.len()).finish_non_exhaustive()
    }
}
