//! A forwarder with its surroundings, as `app` builds it.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use harbor::{
    backends::Backends,
    forwarder::{
        Binder, ClosingRecord, FlowEnd, Forwarder, InheritedSockets, PortSockets, Settings as ForwarderSettings,
        Surroundings, SystemBinder,
    },
    host,
    model::{
        Clock, PoolName, PortSet, Protocol, Revision, ServiceInstanceId, Timestamp, Transport,
        announcement::{AnnouncedState, Authority, Endpoint, Origin, Registration, Withdrawal},
        desired::{DesiredState, ForwarderLimits, ListenerSpec},
        directory::Directory,
        observed::{ListenerObservation, ListenerState, Observations},
        parameters::Settings,
        token::AnnounceSecret,
    },
    telemetry::metrics::Metrics,
};

use crate::support::eventually::{PATIENCE, eventually};

/// The machine's clock, which tests can put forward.
#[derive(Debug, Default)]
pub struct TestClock {
    ahead_ms: AtomicU64,
    /// Panics the threads that forward when they look at it.
    broken: AtomicBool,
}

impl Clock for TestClock {
    fn now(&self) -> Instant {
        let forwards = || std::thread::current().name().is_some_and(|name| name.starts_with("forward-"));
        assert!(!(self.broken.load(Ordering::SeqCst) && forwards()), "this clock is broken");
        Instant::now() + Duration::from_millis(self.ahead_ms.load(Ordering::SeqCst))
    }

    fn wall(&self) -> Timestamp {
        Timestamp::from_seconds(1_700_000_000).plus(Duration::from_millis(self.ahead_ms.load(Ordering::SeqCst)))
    }
}

/// A forwarder, what it is told and what it says.
pub struct Node {
    pub forwarder: Arc<Forwarder>,
    pub backends: Backends,
    pub metrics: Metrics,
    clock: Arc<TestClock>,
    desired: Mutex<DesiredState>,
    seen: Arc<Seen>,
    closed: Arc<Mutex<Vec<Closed>>>,
    /// How often something was announced: the earlier comes first.
    announced: AtomicI64,
}

/// What a closing record said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    pub id: ServiceInstanceId,
    pub client: SocketAddr,
    pub backend: Option<SocketAddr>,
    pub lasted: Duration,
    pub to_backend: u64,
    pub to_client: u64,
    pub datagrams: Option<[u64; 2]>,
    pub end: FlowEnd,
}

impl From<&ClosingRecord<'_>> for Closed {
    fn from(record: &ClosingRecord<'_>) -> Self {
        let ClosingRecord {
            service_instance_id, client, backend, lasted, to_backend, to_client, datagrams, end, ..
        } = *record;
        Self { id: service_instance_id.clone(), client, backend, lasted, to_backend, to_client, datagrams, end }
    }
}

#[derive(Default)]
struct Seen {
    observations: Mutex<Arc<Observations>>,
    changed: Condvar,
}

impl Node {
    /// A node with two workers and the default limits.
    pub fn start() -> Self {
        Self::with(2, ForwarderLimits::default())
    }

    pub fn with(workers: usize, limits: ForwarderLimits) -> Self {
        Self::with_binder(workers, limits, Arc::new(SystemBinder))
    }

    pub fn with_binder(workers: usize, limits: ForwarderLimits, binder: Arc<dyn Binder>) -> Self {
        Self::with_all(workers, limits, binder, "21000-22999".parse().unwrap(), false)
    }

    /// One that has the sockets of another, and accepts and receives nothing yet.
    pub fn successor(workers: usize, sockets: PortSockets) -> Self {
        let binder = Arc::new(InheritedSockets::new(sockets));
        Self::with_all(workers, ForwarderLimits::default(), binder, "21000-22999".parse().unwrap(), true)
    }

    pub fn with_pool_ports(pool_ports: PortSet) -> Self {
        Self::with_all(2, ForwarderLimits::default(), Arc::new(SystemBinder), pool_ports, false)
    }

    fn with_all(
        workers: usize,
        limits: ForwarderLimits,
        binder: Arc<dyn Binder>,
        pool_ports: PortSet,
        held: bool,
    ) -> Self {
        let (backends, metrics, clock) = (Backends::new(256), Metrics::new(), Arc::new(TestClock::default()));
        let (seen, closed) = (Arc::new(Seen::default()), Arc::<Mutex<Vec<Closed>>>::default());
        let listen = vec![IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let settings = ForwarderSettings { listen, workers, pool_ports, held };
        let surroundings = Surroundings {
            binder,
            backends: backends.clone(),
            clock: Arc::<TestClock>::clone(&clock),
            metrics: Arc::clone(&metrics.forwarder),
            holders: Box::new(|places| {
                let found = host::holders_of(places).expect("/proc can be read");
                found.into_iter().map(|holder| Some(holder?.to_string())).collect()
            }),
            observe: Box::new({
                let seen = Arc::clone(&seen);
                move |observations| {
                    *seen.observations.lock().unwrap() = observations;
                    seen.changed.notify_all();
                }
            }),
            closed: Box::new({
                let closed = Arc::clone(&closed);
                move |record| closed.lock().unwrap().push(record.into())
            }),
        };
        let forwarder = Arc::new(Forwarder::start(settings, surroundings).expect("threads can be had"));
        let desired = DesiredState { limits: Arc::new(limits), ..DesiredState::default() };
        Self {
            forwarder,
            backends,
            metrics,
            clock,
            desired: Mutex::new(desired),
            seen,
            closed,
            announced: AtomicI64::new(0),
        }
    }

    /// Changes what is desired and waits until it is applied.
    pub fn change(&self, change: impl FnOnce(&mut DesiredState)) {
        let mut desired = self.desired.lock().unwrap();
        change(&mut desired);
        desired.revision = Revision(desired.revision.0 + 1);
        self.forwarder.apply(Arc::new(desired.clone()));
        self.wait_for(&format!("revision {}", desired.revision), |seen| seen.applied == Some(desired.revision));
    }

    /// Wants this port, with these settings from now on.
    pub fn want(&self, port: u16, protocol: Protocol, settings: Settings) {
        self.change(|desired| {
            let id = id(port);
            let version = desired.listeners.get(&id).map_or(1, |before| before.version + 1);
            let pool = PoolName::new("default").unwrap();
            let spec = ListenerSpec { service_instance_id: id.clone(), pool, port, protocol, settings, version };
            desired.listeners.insert_mut(id, Arc::new(spec));
        });
    }

    /// The same, and waits until it is bound. A process that another test is just starting may have a copy of a socket
    /// that was here before, for some milliseconds.
    #[track_caller]
    pub fn open(&self, port: u16, protocol: Protocol, settings: Settings) {
        self.want(port, protocol, settings);
        self.wait_for(&format!("port {port} is open"), |seen| {
            seen.get(&id(port)).is_some_and(|seen| seen.state == ListenerState::Bound)
        });
    }

    /// A TCP port with a backend.
    pub fn tcp(&self, port: u16, backend: SocketAddr) {
        self.open(port, Protocol::Tcp, Settings::default());
        self.announce(port, Transport::Tcp, backend);
    }

    /// A UDP port with a backend.
    pub fn udp(&self, port: u16, backend: SocketAddr) {
        self.open(port, Protocol::Udp, Settings::default());
        self.announce(port, Transport::Udp, backend);
    }

    /// No longer wants it.
    pub fn remove(&self, port: u16) {
        self.change(|desired| {
            desired.listeners.remove_mut(&id(port));
        });
    }

    pub fn limit(&self, change: impl FnOnce(&mut ForwarderLimits)) {
        self.change(|desired| change(Arc::make_mut(&mut desired.limits)));
    }

    pub fn announce(&self, port: u16, transport: Transport, backend: SocketAddr) {
        self.announce_state(port, transport, backend, AnnouncedState::Up);
    }

    pub fn announce_state(&self, port: u16, transport: Transport, backend: SocketAddr, state: AnnouncedState) {
        let registration = Registration {
            service_instance_id: id(port),
            endpoints: vec![Endpoint { transport, address: backend }],
            authority: Authority::Trusted,
            origin: Origin::default(),
            time_to_live: Duration::from_secs(1_000_000),
            state,
            since: None,
            heard_at: Timestamp(self.announced.fetch_add(1, Ordering::Relaxed)),
        };
        self.backends.apply(&registration, self.clock.now()).expect("there is room");
    }

    pub fn withdraw(&self, port: u16, transport: Transport, backend: SocketAddr) {
        let endpoints = vec![Endpoint { transport, address: backend }];
        let withdrawal = Withdrawal { service_instance_id: id(port), endpoints, origin: Origin::default() };
        self.backends.withdraw(&withdrawal, self.clock.now()).expect("it was announced");
    }

    /// The same, where it may have left already.
    pub fn try_withdraw(&self, port: u16, transport: Transport, backend: SocketAddr) {
        let endpoints = vec![Endpoint { transport, address: backend }];
        let withdrawal = Withdrawal { service_instance_id: id(port), endpoints, origin: Origin::default() };
        // That nobody has it is no fault.
        let _ = self.backends.withdraw(&withdrawal, self.clock.now());
    }

    /// What is desired now.
    pub fn desired(&self) -> DesiredState {
        self.desired.lock().unwrap().clone()
    }

    pub fn clock(&self) -> Arc<TestClock> {
        Arc::clone(&self.clock)
    }

    /// What its clock shows.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Ends the authority of all backends.
    pub fn revoke_all(&self) {
        self.backends.retain_authorised(&Directory::new(AnnounceSecret::new([0; 32])));
    }

    /// Puts the clock forward; the workers look at it at once.
    pub fn advance(&self, duration: Duration) {
        self.clock.ahead_ms.fetch_add(u64::try_from(duration.as_millis()).unwrap(), Ordering::SeqCst);
        // One turn fires the timers, and the next one begins after it.
        self.change(|_| {});
        self.change(|_| {});
    }

    /// Lets every worker panic.
    pub fn break_clock(&self) {
        self.clock.broken.store(true, Ordering::SeqCst);
        // Rouses them; whoever has panicked has no sessions.
        assert_eq!(self.forwarder.export_sessions().len(), 0);
    }

    pub fn observation(&self, port: u16) -> Option<ListenerObservation> {
        self.seen.observations.lock().unwrap().get(&id(port)).cloned()
    }

    pub fn state(&self, port: u16) -> ListenerState {
        self.observation(port).expect("it is wanted").state
    }

    /// Waits until what was observed is as it should be.
    #[track_caller]
    pub fn wait_for(&self, what: &str, mut arrived: impl FnMut(&Observations) -> bool) {
        let seen = self.seen.observations.lock().unwrap();
        let waited = self.seen.changed.wait_timeout_while(seen, PATIENCE, |seen| !arrived(seen)).unwrap();
        assert!(!waited.1.timed_out(), "not within {PATIENCE:?}: {what}");
    }

    /// Waits until so many connections and sessions are open.
    #[track_caller]
    pub fn wait_for_flows(&self, flows: u64) {
        eventually(&format!("{flows} open flows"), || (self.forwarder.open_flows() == flows).then_some(()));
    }

    /// The records of so many flows that have ended, once they have.
    #[track_caller]
    pub fn closed(&self, flows: usize) -> Vec<Closed> {
        let records = || self.closed.lock().unwrap().clone();
        eventually(&format!("{flows} closing records"), || (records().len() == flows).then(records))
    }

    /// A sample of the metrics, by its name with labels.
    #[track_caller]
    pub fn sample(&self, name: &str) -> u64 {
        let text = self.metrics.encode();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no sample {name} in\n{text}")).parse().expect("a number")
    }
}

/// The service instance of a port.
pub fn id(port: u16) -> ServiceInstanceId {
    ServiceInstanceId::new(format!("instance-{port}")).unwrap()
}

/// A binder that has no descriptors, or whatever else is wrong.
pub struct FailingBinder<F>(pub F);

impl<F: Fn(u16, Transport) -> Option<io::Error> + Send + Sync> Binder for FailingBinder<F> {
    fn bind(&self, address: IpAddr, port: u16, transport: Transport) -> io::Result<OwnedFd> {
        match (self.0)(port, transport) {
            Some(error) => Err(error),
            None => SystemBinder.bind(address, port, transport),
        }
    }
}
