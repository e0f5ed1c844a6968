//! The data plane: bound ports, and the connections and sessions through them, on threads of its own.
//!
//! A reconciler thread makes the node's listeners what the latest desired state says and reports what became
//! of each. An engine carries the traffic: its threads accept, connect and copy; they read the backends' sets and nothing
//! else of the rest of the process, so traffic waits neither for the store nor for NATS.
//!
//! What a connection or a session does next is decided by cores without sockets ([`relay`], [`sessions`]); an engine
//! makes the system calls. Another engine stands behind the trait in `engine`, and keeps the cores, the reconciler and
//! this interface.

mod admission;
mod binder;
mod engine;
mod epoll;
mod listener;
pub mod proxy_protocol;
mod reconciler;
pub mod relay;
pub mod sessions;
mod shared;
pub mod slab;
mod sockets;

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, SocketAddr},
    num::NonZero,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard},
    thread::{self, JoinHandle},
};

use arc_swap::ArcSwap;

use self::{
    admission::Admission,
    engine::Engine,
    epoll::{Epoll, MAX_ADDRESSES},
    reconciler::{Inbox, Reconciler, State},
    shared::{Roll, Shared},
    sockets::Connector,
};
use crate::{
    backends::Backends,
    model::{
        Clock, PortSet, ServiceInstanceId, Transport, announcement::Endpoint, desired::DesiredState,
        observed::Observations,
    },
    telemetry::metrics::{ForwarderMetrics, PortCounts},
};

pub use binder::{Binder, InheritedSockets, PortSockets, SystemBinder};
pub use engine::{Carried, ClosingRecord, ExportedSession, FlowEnd, OnClose};
pub use sockets::{LISTENER_RECEIVE_BUFFER, Spread};

/// Says who holds each of these ports of this machine, in their order, where it can.
pub type HolderLookup = dyn Fn(&[(SocketAddr, Transport)]) -> Vec<Option<String>> + Send + Sync;

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
    /// Whether ports are bound only, and nothing is accepted or received before [`Forwarder::go_on`].
    pub held: bool,
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
    /// Names the holders of ports that cannot be bound.
    pub holders: Box<HolderLookup>,
    /// Hears what has been bound.
    pub observe: Box<Observe>,
    /// Hears of each flow that ends.
    pub closed: Box<OnClose>,
}

/// A running forwarder. Dropping it ends everything, as [`Forwarder::stop`] does.
pub struct Forwarder {
    inbox: Arc<Inbox>,
    engine: Arc<dyn Engine>,
    shared: Arc<Shared>,
    backends: Backends,
    reconciler: Mutex<Option<JoinHandle<()>>>,
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
        let Surroundings { binder, backends, clock, metrics, holders, observe, closed } = surroundings;
        let inbox = Arc::new(Inbox::default());
        let shared = Arc::new(Shared {
            admission: Arc::new(Admission::default()),
            limits: ArcSwap::default(),
            connector: ArcSwap::from_pointee(Connector::new(&settings.pool_ports)),
            clock,
            metrics,
            listeners: Roll::default(),
            closed,
            outgrown: Box::new({
                let inbox = Arc::clone(&inbox);
                move |id| inbox.outgrown(id)
            }),
        });
        let workers = match settings.workers {
            0 => thread::available_parallelism().map_or(1, NonZero::get),
            count => count,
        };
        let engine: Arc<dyn Engine> = Arc::new(Epoll::start(workers, &shared, &backends, settings.held)?);
        let reconciler = Reconciler {
            inbox: Arc::clone(&inbox),
            engine: Arc::clone(&engine),
            shared: Arc::clone(&shared),
            backends: backends.clone(),
            binder,
            listen: settings.listen,
            holders,
            observe,
            state: State::default(),
        };
        let thread = thread::Builder::new().name("reconcile".into()).spawn(|| reconciler.run())?;
        Ok(Self { inbox, engine, shared, backends, reconciler: Mutex::new(Some(thread)) })
    }

    /// Makes the node have what `desired` says. Returns at once; the latest call wins.
    pub fn apply(&self, desired: Arc<DesiredState>) {
        self.inbox.apply(desired);
    }

    /// Keeps outgoing sockets that are made from now on out of these ports.
    pub fn set_pool_ports(&self, pool_ports: &PortSet) {
        self.shared.connector.store(Arc::new(Connector::new(pool_ports)));
    }

    /// Begins a TCP connection to a backend as those of clients begin, on a local port that no pool has. Its socket does not
    /// block, and becomes writable when that is done, well or not.
    ///
    /// # Errors
    /// There is no socket or no local port to be had, or the backend cannot be reached, and that is known at once.
    pub fn connect(&self, backend: SocketAddr) -> io::Result<OwnedFd> {
        self.shared.connector.load().connect(backend, Transport::Tcp)
    }

    /// Lets go of listening TCP sockets and begins no UDP sessions; what is open goes on. Listeners are observed as closed
    /// until [`Forwarder::reopen_listeners`]; the latest of both calls wins. Returns at once.
    pub fn close_listeners(&self) {
        self.inbox.set_closed(true);
    }

    /// Listens again on all that is wanted by now, and begins UDP sessions. Returns at once.
    pub fn reopen_listeners(&self) {
        self.inbox.set_closed(false);
    }

    /// Ends all flows that are open by now, as a drain whose time is up does. Returns at once: they have ended when
    /// [`Forwarder::open_flows`] says so, unless listeners go on beginning others.
    pub fn end_flows(&self) {
        self.inbox.end_flows();
    }

    /// Open TCP connections and UDP sessions.
    #[must_use]
    pub fn open_flows(&self) -> u64 {
        self.shared.admission.flows()
    }

    /// What has been counted of each port that is wanted, since then.
    #[must_use]
    pub fn port_counts(&self) -> HashMap<ServiceInstanceId, PortCounts> {
        // Of two of one service instance the younger is told: the other is about to go.
        self.shared.listeners.all().into_iter().map(|listener| (listener.id.clone(), listener.counts())).collect()
    }

    /// Over how many threads it forwards.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.engine.spreads_over()
    }

    /// Copies of the sockets of all ports, for another process. Until [`Forwarder::go_on`] none is bound or closed;
    /// traffic goes on.
    #[must_use]
    pub fn export_sockets(&self) -> PortSockets {
        self.inbox.export()
    }

    /// From now on nothing is accepted and no datagram received, until [`Forwarder::go_on`]: it waits in the kernel.
    /// Open connections go on. Waits for every worker's turn.
    pub fn hold(&self) {
        self.engine.hold();
    }

    /// Copies of all UDP sessions, with the descriptors of their sockets. Waits for every worker's turn.
    #[must_use]
    pub fn export_sessions(&self) -> Vec<ExportedSession> {
        self.engine.export_sessions()
    }

    /// Goes on with sessions of another process, on ports that are open here; those whose backend is not known here, or
    /// for which there is no room, end. Waits for every worker's turn.
    pub fn import_sessions(&self, sessions: Vec<ExportedSession>) {
        let with_backend = sessions.into_iter().filter_map(|session| {
            let endpoint = Endpoint { transport: Transport::Udp, address: session.backend };
            let backend = self.backends.find(&session.service_instance_id, &endpoint)?;
            Some((session, backend))
        });
        self.engine.import_sessions(with_backend.collect());
    }

    /// Undoes [`Forwarder::hold`] and [`Forwarder::export_sockets`], and ends a start that was held. What came meanwhile
    /// is taken up. Waits for every worker's turn.
    pub fn go_on(&self) {
        self.inbox.go_on();
    }

    /// Lets go of all ports and all UDP sessions, which another process has; open connections go on. There is no way
    /// back.
    pub fn let_go(&self) {
        self.inbox.let_go();
    }

    /// Whether a thread has ended by itself, which only a bug makes it do. Its flows and ports are unattended then.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.engine.has_failed() || self.reconciler().as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Ends all flows, closes all sockets and waits for all threads. Doing it again does nothing.
    ///
    /// # Panics
    /// When one of its threads has: that is a bug, and its message is in the log.
    pub fn stop(&self) {
        let reconciler = self.reconciler().take();
        self.inbox.stop();
        // First, as it tells the engine what to serve.
        let reconciled = reconciler.is_none_or(|thread| thread.join().is_ok());
        let carried = self.engine.stop();
        assert!(reconciled && carried || thread::panicking(), "a thread of the forwarder panicked");
    }

    fn reconciler(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.reconciler.lock().expect("nothing panics while it holds the thread")
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarder").finish_non_exhaustive()
    }
}
