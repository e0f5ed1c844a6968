//! The reconciler on an engine that only keeps what it is told, and a machine on which ports are held at random.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    os::fd::OwnedFd,
    sync::atomic::{AtomicUsize, Ordering},
};

use rustix::net::{AddressFamily, SocketType, socket};

use super::*;
use crate::{
    forwarder::{
        admission::Admission,
        engine::{Closing, ExportedSession},
        sockets::Connector,
    },
    model::{PoolName, PortSet, Revision, Timestamp, balance::Balance, desired::Listeners, parameters::Settings},
    telemetry::metrics::Metrics,
};

/// Service instances that come and go.
const SERVICE_INSTANCES: usize = 24;
/// Ports that they are on: few, so that one is often wanted by another.
const PORTS: u16 = 30;

#[derive(Debug)]
struct Fixed(Instant);

impl crate::model::Clock for Fixed {
    fn now(&self) -> Instant {
        self.0
    }

    fn wall(&self) -> Timestamp {
        Timestamp::default()
    }
}

/// What is served: by service instance and transport, the port.
type Served = BTreeMap<(ServiceInstanceId, &'static str), u16>;

#[derive(Default)]
struct Ledger {
    served: Mutex<Served>,
    calls: AtomicUsize,
}

impl Engine for Ledger {
    fn open(&self, listener: &Arc<Listener>, sockets: Sockets) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let transport = match sockets {
            Sockets::Tcp(_) => Transport::Tcp,
            Sockets::Udp(_) => Transport::Udp,
        };
        let before = self.served.lock().unwrap().insert((listener.id.clone(), transport.as_str()), listener.port);
        assert_eq!(before, None, "{} is opened twice", listener.id);
    }

    fn spreads_over(&self) -> usize {
        1
    }

    fn spread(&self, _: &Arc<Listener>, _: Vec<Arc<[DatagramSocket]>>, _: Spread) {}

    fn close(&self, id: &ServiceInstanceId, transport: Transport, _: Closing) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.served.lock().unwrap().remove(&(id.clone(), transport.as_str()));
    }

    fn refresh(&self, _: Option<&ServiceInstanceId>) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    fn close_listeners(&self) {
        self.served.lock().unwrap().retain(|(_, transport), _| *transport != Transport::Tcp.as_str());
    }

    fn reopen_listeners(&self) {}

    fn end_flows(&self) {}

    fn settle(&self) {}

    fn hold(&self) {}

    fn go_on(&self) {}

    fn let_go_of_udp(&self) {}

    fn export_sessions(&self) -> Vec<ExportedSession> {
        Vec::new()
    }

    fn import_sessions(&self, _: Vec<(ExportedSession, Arc<crate::backends::Backend>)>) {}

    fn has_failed(&self) -> bool {
        false
    }

    fn stop(&self) -> bool {
        true
    }
}

/// A machine whose sockets have no port, on which some ports are held.
#[derive(Default)]
struct Machine {
    held: Mutex<BTreeSet<u16>>,
    binds: AtomicUsize,
    /// How often it was looked who holds ports.
    looks: AtomicUsize,
}

impl Binder for Machine {
    fn bind(&self, _: IpAddr, port: u16, transport: Transport) -> io::Result<OwnedFd> {
        self.binds.fetch_add(1, Ordering::Relaxed);
        if self.held.lock().unwrap().contains(&port) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let kind = match transport {
            Transport::Tcp => SocketType::STREAM,
            Transport::Udp => SocketType::DGRAM,
        };
        Ok(socket(AddressFamily::INET, kind, None)?)
    }
}

struct Node {
    reconciler: Reconciler,
    ledger: Arc<Ledger>,
    machine: Arc<Machine>,
    published: Arc<Mutex<Arc<Observations>>>,
}

impl Node {
    fn new() -> Self {
        let (ledger, machine) = (Arc::<Ledger>::default(), Arc::<Machine>::default());
        let published = Arc::<Mutex<Arc<Observations>>>::default();
        let reconciler = Reconciler {
            inbox: Arc::default(),
            engine: Arc::<Ledger>::clone(&ledger),
            shared: Arc::new(Shared {
                listeners: Default::default(),
                admission: Arc::new(Admission::default()),
                limits: Default::default(),
                connector: arc_swap::ArcSwap::from_pointee(Connector::new(&PortSet::default())),
                clock: Arc::new(Fixed(Instant::now())),
                metrics: Arc::clone(&Metrics::new().forwarder),
                closed: Box::new(|_| {}),
                outgrown: Box::new(|_| {}),
            }),
            backends: Backends::new(1),
            binder: Arc::<Machine>::clone(&machine),
            listen: vec![Ipv4Addr::UNSPECIFIED.into()],
            holders: Box::new({
                let looks = Arc::clone(&machine);
                move |places| {
                    let look = looks.looks.fetch_add(1, Ordering::Relaxed) + 1;
                    places.iter().map(|(place, _)| Some(format!("{} at look {look}", place.port()))).collect()
                }
            }),
            observe: Box::new({
                let published = Arc::clone(&published);
                move |observations| *published.lock().unwrap() = observations
            }),
            state: State::default(),
        };
        Self { reconciler, ledger, machine, published }
    }

    fn served(&self) -> Served {
        self.ledger.served.lock().unwrap().clone()
    }

    fn seen(&self) -> BTreeMap<ServiceInstanceId, ListenerObservation> {
        let observations = Arc::clone(&self.published.lock().unwrap());
        observations.iter().map(|(id, seen)| (id.clone(), seen.clone())).collect()
    }
}

fn id(number: usize) -> ServiceInstanceId {
    ServiceInstanceId::new(format!("{number:02}")).unwrap()
}

fn spec(id: ServiceInstanceId, port: u16) -> ListenerSpec {
    ListenerSpec {
        service_instance_id: id,
        pool: PoolName::new("default").unwrap(),
        port,
        protocol: Protocol::Tcp,
        settings: Settings::default(),
        version: 1,
    }
}

/// One change of one listener, at random. As in a store, no port is wanted twice.
fn change(desired: &mut DesiredState, version: u64, random: &mut fastrand::Rng) {
    let id = id(random.usize(..SERVICE_INSTANCES));
    let port = 30_000 + random.u16(..PORTS);
    let taken = desired.listeners.values().any(|other| other.port == port && other.service_instance_id != id);
    if taken || random.u8(..4) == 0 {
        desired.listeners.remove_mut(&id);
        return;
    }
    let port = match desired.listeners.get(&id) {
        Some(known) if random.bool() => known.port,
        _ => port,
    };
    let spec = ListenerSpec {
        protocol: *random.choice(&[Protocol::Tcp, Protocol::Udp, Protocol::Both]).unwrap(),
        settings: Settings { balance: random.bool().then_some(Balance::Random), ..Settings::default() },
        version,
        ..spec(id.clone(), port)
    };
    desired.listeners.insert_mut(id, Arc::new(spec));
}

/// The same listeners without a past: whoever reads them has to look at all.
fn without_past(desired: &DesiredState) -> DesiredState {
    let mut listeners = Listeners::default();
    for (id, spec) in desired.listeners.iter() {
        listeners.insert_mut(id.clone(), Arc::clone(spec));
    }
    DesiredState { listeners, ..desired.clone() }
}

#[test]
fn looking_where_changes_were_comes_to_the_same_as_looking_everywhere() {
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut sparing, mut thorough) = (Node::new(), Node::new());
        let (mut desired, mut earlier) = (DesiredState::default(), DesiredState::default());
        let mut version = 0;
        for step in 0..60 {
            // Of most histories a reader sees every state, of some few, and sometimes none for longer than is remembered.
            let unseen = *random.choice(&[1, 1, 1, 2, 5, 100]).unwrap();
            for _ in 0..unseen {
                version += 1;
                change(&mut desired, version, &mut random);
            }
            match random.u8(..12) {
                0 => desired = without_past(&desired),
                // The state forks off from an earlier one.
                1 => std::mem::swap(&mut desired, &mut earlier),
                2 => earlier = desired.clone(),
                _ => {}
            }
            desired.revision = Revision(version);
            if random.u8(..4) == 0 {
                let port = 30_000 + random.u16(..PORTS);
                for node in [&sparing, &thorough] {
                    let mut held = node.machine.held.lock().unwrap();
                    if !held.remove(&port) {
                        held.insert(port);
                    }
                }
            }
            if random.u8(..6) == 0 {
                for node in [&mut sparing, &mut thorough] {
                    if node.reconciler.state.closed {
                        node.reconciler.reopen_listeners();
                    } else {
                        node.reconciler.close_listeners();
                    }
                }
            }
            sparing.reconciler.reconcile(Arc::new(desired.clone()));
            thorough.reconciler.reconcile(Arc::new(without_past(&desired)));
            if random.u8(..3) == 0 {
                sparing.reconciler.retry();
                thorough.reconciler.retry();
            }
            let context = format!("seed {seed}, step {step}");
            assert_eq!(sparing.served(), thorough.served(), "{context}");
            assert_eq!(sparing.seen(), thorough.seen(), "{context}");
            let versions = sparing.seen().into_iter().map(|(id, seen)| (id, seen.version)).collect::<BTreeMap<_, _>>();
            let wanted = desired.listeners.iter().map(|(id, spec)| (id.clone(), spec.version));
            assert_eq!(versions, wanted.collect(), "{context}");
            assert_eq!(sparing.published.lock().unwrap().applied, Some(desired.revision), "{context}");
        }
    }
}

#[test]
fn whatever_came_while_listeners_were_closed_holds_when_they_are_open_again() {
    let (mut random, mut node) = (fastrand::Rng::with_seed(2), Node::new());
    let mut desired = DesiredState::default();
    for version in 1..500 {
        change(&mut desired, version, &mut random);
        desired.revision = Revision(version);
        let mut held = node.machine.held.lock().unwrap();
        held.clear();
        held.insert(30_000 + random.u16(..PORTS));
        drop(held);
        match random.u8(..8) {
            0 if !node.reconciler.state.closed => node.reconciler.close_listeners(),
            1 if node.reconciler.state.closed => node.reconciler.reopen_listeners(),
            _ => {}
        }
        node.reconciler.reconcile(Arc::new(desired.clone()));
        if node.reconciler.state.closed {
            assert!(node.served().keys().all(|(_, transport)| *transport == "udp"), "step {version}");
            assert!(node.seen().values().all(|seen| seen.state == ListenerState::Closed), "step {version}");
            assert_eq!(node.reconciler.state.retry_at, None, "step {version}");
        }
    }
    node.machine.held.lock().unwrap().clear();
    if node.reconciler.state.closed {
        node.reconciler.reopen_listeners();
    }
    node.reconciler.retry();
    let wanted = desired.listeners.values().flat_map(|spec| {
        let of = |transport: &Transport| ((spec.service_instance_id.clone(), transport.as_str()), spec.port);
        spec.protocol.transports().iter().map(of)
    });
    assert_eq!(node.served(), wanted.collect());
    assert!(node.seen().values().all(|seen| seen.state == ListenerState::Bound));
}

#[test]
fn what_did_not_change_is_not_touched() {
    let mut node = Node::new();
    let mut random = fastrand::Rng::with_seed(1);
    let mut desired = DesiredState::default();
    for version in 1..200 {
        change(&mut desired, version, &mut random);
    }
    node.reconciler.reconcile(Arc::new(desired.clone()));
    let count = |node: &Node| (node.ledger.calls.load(Ordering::Relaxed), node.machine.binds.load(Ordering::Relaxed));
    let before = count(&node);

    node.reconciler.reconcile(Arc::new(desired.clone()));
    node.reconciler.reconcile(Arc::new(without_past(&desired)));
    assert_eq!(count(&node), before, "nothing has changed");

    let spec = desired.listeners.values().find(|spec| spec.protocol == Protocol::Tcp).unwrap();
    let spec = ListenerSpec { version: 1000, ..ListenerSpec::clone(spec) };
    desired.listeners.insert_mut(spec.service_instance_id.clone(), Arc::new(spec));
    node.reconciler.reconcile(Arc::new(desired));
    assert_eq!(count(&node), (before.0 + 1, before.1), "one listener is refreshed");
}

#[test]
fn one_look_tells_who_holds_all_ports_and_another_one_comes_after_a_while() {
    let mut node = Node::new();
    let mut desired = DesiredState { revision: Revision(1), ..DesiredState::default() };
    for number in [0, 1] {
        let port = 30_000 + u16::try_from(number).unwrap();
        node.machine.held.lock().unwrap().insert(port);
        desired.listeners.insert_mut(id(number), Arc::new(spec(id(number), port)));
    }
    let check = |node: &Node, look: usize| {
        for (number, (_, seen)) in node.seen().into_iter().enumerate() {
            let port = 30_000 + number;
            let reason = format!(
                "TCP port {port} of 0.0.0.0 is held by {port} at look {look}: it is taken as soon as it is free"
            );
            assert_eq!(seen.state, ListenerState::Failed { held: true, reason: reason.into() });
        }
        assert_eq!(node.machine.looks.load(Ordering::Relaxed), look);
    };
    node.reconciler.reconcile(Arc::new(desired));
    assert_eq!(node.seen().len(), 2);
    check(&node, 1);
    node.reconciler.retry();
    check(&node, 1);
    let due = node.reconciler.shared.clock.now();
    assert_eq!(node.reconciler.state.look_at, Some(due + LOOK_EVERY));
    node.reconciler.state.look_at = Some(due);
    node.reconciler.retry();
    check(&node, 2);
    node.reconciler.retry();
    check(&node, 2);
}
