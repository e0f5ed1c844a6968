//! Who may come in: which clients, and of those as many as the limits of a port and of the node let in, each port its fair
//! share when sockets are scarce.
//!
//! Counters are shared by all workers. A flow holds a [`Permit`]; dropping it makes room again.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use crate::{
    model::{
        Transport,
        desired::{ForwarderLimits, ListenerSpec, RESERVED_DESCRIPTORS, allows},
    },
    telemetry::metrics::{ConnectionEnd, Refusal},
};

/// Sockets are scarce when less than one in so many is left: from then on a port has at most its share.
const SCARCE_FRACTION: u32 = 4;

/// One in so many of the machine's local ports is left to whatever else opens connections.
const LOCAL_PORTS_LEFT: u32 = 8;
/// Sockets that spread ports may have beside their first ones: one in so many of the descriptors.
const SPREAD_FRACTION: u32 = 8;

/// Sockets that one flow takes.
const fn sockets(transport: Transport) -> u32 {
    match transport {
        Transport::Tcp => 2,
        Transport::Udp => 1,
    }
}

/// Why a client may not come in, whatever room there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Barred {
    /// It is in no network of `allow`.
    NotAllowed,
    /// It is in a network that an operator has blocked.
    Blocked,
}

impl Barred {
    /// Why a client is barred, if it is.
    pub(super) fn why(client: IpAddr, spec: &ListenerSpec, limits: &ForwarderLimits) -> Option<Self> {
        if limits.blocked.contains(client) {
            return Some(Self::Blocked);
        }
        (!allows(&spec.settings.allow, client)).then_some(Self::NotAllowed)
    }
}

impl From<Barred> for Refusal {
    fn from(barred: Barred) -> Self {
        match barred {
            Barred::NotAllowed => Self::NotAllowed,
            Barred::Blocked => Self::Blocked,
        }
    }
}

impl From<Barred> for ConnectionEnd {
    fn from(barred: Barred) -> Self {
        match barred {
            Barred::NotAllowed => Self::NotAllowed,
            Barred::Blocked => Self::Blocked,
        }
    }
}

/// What the machine has for flows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Supply {
    /// How many descriptors this process may have.
    pub descriptors: u32,
    /// Ports for outgoing sockets. The kernel gives each UDP session one that no other socket has.
    pub local_ports: u32,
    /// Ports that are served, and the sockets that they listen on.
    pub listeners: u32,
    pub listening_sockets: u32,
}

/// The node's sockets. On cache lines of its own, as all that every flow of every worker writes to.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Admission {
    /// Most sockets of flows.
    capacity: AtomicU32,
    used: AtomicU32,
    /// Most UDP sessions.
    session_capacity: AtomicU32,
    sessions: AtomicU32,
    /// Most sockets of spread ports beside their first ones.
    spread_capacity: AtomicU32,
    /// Listeners there are, and those with flows.
    listeners: AtomicU32,
    busy_listeners: AtomicU32,
    flows: AtomicU64,
}

/// The flows of one listener.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Usage {
    /// TCP connections in the low half, UDP sessions in the high half, so that both are bounded together.
    flows: AtomicU64,
    /// The next flow's number, per transport.
    tcp_ticket: AtomicU64,
    udp_ticket: AtomicU64,
}

/// What a listener may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PortLimits {
    together: Option<u32>,
    tcp: u32,
    udp: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Flows {
    tcp: u32,
    udp: u32,
}

impl Flows {
    const fn unpack(packed: u64) -> Self {
        Self { tcp: packed as u32, udp: (packed >> 32) as u32 }
    }

    fn pack(self) -> u64 {
        u64::from(self.udp) << 32 | u64::from(self.tcp)
    }

    fn total(self) -> u32 {
        self.tcp.saturating_add(self.udp)
    }

    fn sockets(self) -> u32 {
        self.tcp.saturating_mul(sockets(Transport::Tcp)).saturating_add(self.udp)
    }

    const fn plus(self, transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self { tcp: self.tcp + 1, ..self },
            Transport::Udp => Self { udp: self.udp + 1, ..self },
        }
    }

    const fn minus(self, transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self { tcp: self.tcp - 1, ..self },
            Transport::Udp => Self { udp: self.udp - 1, ..self },
        }
    }
}

impl PortLimits {
    fn of(spec: &ListenerSpec, limits: &ForwarderLimits) -> Self {
        Self {
            together: spec.settings.max_connections,
            tcp: limits.max_connections_per_port,
            udp: limits.max_udp_sessions_per_port,
        }
    }

    /// Sessions that may still begin.
    fn session_room(self, flows: Flows) -> u32 {
        match self.together {
            Some(most) => most.saturating_sub(flows.total()),
            None => self.udp.saturating_sub(flows.udp),
        }
    }

    fn admit(self, flows: Flows) -> bool {
        match self.together {
            Some(most) => flows.total() <= most,
            None => flows.tcp <= self.tcp && flows.udp <= self.udp,
        }
    }
}

impl Usage {
    /// A flow's number: it takes one, however many backends it tries.
    pub(super) fn ticket(&self, transport: Transport) -> u64 {
        let ticket = match transport {
            Transport::Tcp => &self.tcp_ticket,
            Transport::Udp => &self.udp_ticket,
        };
        ticket.fetch_add(1, Ordering::Relaxed)
    }

    /// UDP sessions that the port has room for.
    pub(super) fn session_room(&self, spec: &ListenerSpec, limits: &ForwarderLimits) -> u32 {
        PortLimits::of(spec, limits).session_room(Flows::unpack(self.flows.load(Ordering::Relaxed)))
    }
}

/// Whether a port may have `port` of what the node has `used`, both with the one that asks. `busy`: ports with flows;
/// `listeners`: all ports.
fn has_room(capacity: u32, used: u32, port: u32, busy: u32, listeners: u32) -> bool {
    if used > capacity {
        return false;
    }
    let scarce = capacity - used < capacity / SCARCE_FRACTION;
    // One share is kept for a port that has none yet, if there is such a port.
    let shares = busy.saturating_add(1).min(listeners).max(1);
    !scarce || port <= capacity / shares
}

impl Admission {
    /// Takes over limits and what there is.
    pub(super) fn set(&self, limits: &ForwarderLimits, supply: Supply) {
        let Supply { descriptors, local_ports, listeners, listening_sockets } = supply;
        let capacity = match limits.max_sockets {
            0 => descriptors.saturating_sub(RESERVED_DESCRIPTORS).saturating_sub(listening_sockets),
            most => most,
        };
        self.capacity.store(capacity, Ordering::Relaxed);
        self.session_capacity.store(local_ports - local_ports / LOCAL_PORTS_LEFT, Ordering::Relaxed);
        self.spread_capacity.store(descriptors / SPREAD_FRACTION, Ordering::Relaxed);
        self.listeners.store(listeners, Ordering::Relaxed);
    }

    /// Whether spread ports may have so many sockets in all, so many of them new.
    pub(super) fn may_spread(&self, all: u32, new: u32) -> bool {
        let free = self.capacity.load(Ordering::Relaxed).saturating_sub(self.used.load(Ordering::Relaxed));
        all <= self.spread_capacity.load(Ordering::Relaxed) && new <= free
    }

    /// Open connections and sessions.
    pub(super) fn flows(&self) -> u64 {
        self.flows.load(Ordering::Relaxed)
    }

    /// Lets a flow in, or says what is full.
    pub(super) fn admit(
        self: &Arc<Self>,
        usage: &Arc<Usage>,
        transport: Transport,
        spec: &ListenerSpec,
        limits: &ForwarderLimits,
    ) -> Result<Permit, Refusal> {
        let port_limits = PortLimits::of(spec, limits);
        let before = usage
            .flows
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
                let flows = Flows::unpack(packed).plus(transport);
                port_limits.admit(flows).then(|| flows.pack())
            })
            .map_err(|_| Refusal::PortLimit)?;
        let before = Flows::unpack(before);
        if before.total() == 0 {
            self.busy_listeners.fetch_add(1, Ordering::Relaxed);
        }
        // From here on the permit takes back what was counted.
        let mut permit =
            Permit { admission: Arc::clone(self), usage: Arc::clone(usage), transport, holds: Holds::Nothing };
        let flows = before.plus(transport);
        if transport == Transport::Udp {
            self.take(&self.session_capacity, &self.sessions, 1, flows.udp)?;
            permit.holds = Holds::Session;
        }
        self.take(&self.capacity, &self.used, sockets(transport), flows.sockets())?;
        permit.holds = Holds::Sockets;
        self.flows.fetch_add(1, Ordering::Relaxed);
        Ok(permit)
    }

    /// Takes so much of what all ports share. `port`: what the port then has of it.
    fn take(&self, capacity: &AtomicU32, used: &AtomicU32, amount: u32, port: u32) -> Result<(), Refusal> {
        let (capacity, busy, listeners) = (
            capacity.load(Ordering::Relaxed),
            self.busy_listeners.load(Ordering::Relaxed),
            self.listeners.load(Ordering::Relaxed),
        );
        let taken = used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            let used = used + amount;
            has_room(capacity, used, port, busy, listeners).then_some(used)
        });
        taken.map(drop).map_err(|_| Refusal::NodeLimit)
    }
}

/// What a permit has taken of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    Nothing,
    /// UDP: a session, but no socket yet.
    Session,
    /// All that a flow of its transport takes.
    Sockets,
}

/// The room that one flow takes, given back on drop.
#[derive(Debug)]
pub(super) struct Permit {
    admission: Arc<Admission>,
    usage: Arc<Usage>,
    transport: Transport,
    holds: Holds,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let taken = |packed| Some(Flows::unpack(packed).minus(self.transport).pack());
        let before = self
            .usage
            .flows
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken)
            .expect("the closure never declines");
        if Flows::unpack(before).total() == 1 {
            self.admission.busy_listeners.fetch_sub(1, Ordering::Relaxed);
        }
        if self.transport == Transport::Udp && self.holds != Holds::Nothing {
            self.admission.sessions.fetch_sub(1, Ordering::Relaxed);
        }
        if self.holds == Holds::Sockets {
            self.admission.used.fetch_sub(sockets(self.transport), Ordering::Relaxed);
            self.admission.flows.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PoolName, Protocol, ServiceInstanceId, parameters::Settings};

    fn spec(max_connections: Option<u32>) -> ListenerSpec {
        ListenerSpec {
            service_instance_id: ServiceInstanceId::new("id").unwrap(),
            pool: PoolName::new("default").unwrap(),
            port: 35000,
            protocol: Protocol::Both,
            settings: Settings { max_connections, ..Settings::default() },
            version: 1,
        }
    }

    fn limits(max_sockets: u32) -> ForwarderLimits {
        ForwarderLimits {
            max_connections_per_port: 3,
            max_udp_sessions_per_port: 2,
            max_sockets,
            ..ForwarderLimits::default()
        }
    }

    fn node(limits: &ForwarderLimits, listeners: u32) -> Arc<Admission> {
        let admission = Arc::new(Admission::default());
        admission.set(limits, Supply { descriptors: 10_000, local_ports: 800, listeners, listening_sockets: 0 });
        admission
    }

    #[test]
    fn each_transport_has_its_own_limit_unless_one_is_set_for_both() {
        let limits = limits(0);
        let node = node(&limits, 1);
        let check = |max_connections, order: &[Transport], admitted: usize| {
            let usage = Arc::default();
            let spec = spec(max_connections);
            let permits = order.iter().map(|transport| node.admit(&usage, *transport, &spec, &limits));
            let permits = permits.collect::<Vec<_>>();
            assert_eq!(
                permits.iter().filter(|permit| permit.is_ok()).count(),
                admitted,
                "{max_connections:?} {order:?}"
            );
            assert!(permits.iter().flat_map(|permit| permit.as_ref().err()).all(|why| *why == Refusal::PortLimit));
        };
        check(None, &[Transport::Tcp; 5], 3);
        check(None, &[Transport::Udp; 5], 2);
        check(None, &[[Transport::Tcp; 5], [Transport::Udp; 5]].concat(), 5);
        check(Some(4), &[[Transport::Tcp; 3], [Transport::Udp; 3]].concat(), 4);
        check(Some(4), &[Transport::Tcp; 5], 4);
        assert_eq!((node.flows(), node.used.load(Ordering::Relaxed)), (0, 0), "dropped permits make room");
        assert_eq!(node.busy_listeners.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_port_alone_may_have_all_sockets_and_one_of_many_only_its_share() {
        fn check(listeners: u32, expected: usize) {
            let limits = ForwarderLimits { max_sockets: 100, ..ForwarderLimits::default() };
            let node = node(&limits, listeners);
            let (greedy, other) = (Arc::default(), Arc::default());
            let spec = spec(None);
            let admit = |usage: &Arc<Usage>| node.admit(usage, Transport::Tcp, &spec, &limits);
            let greedy = (0..100).map_while(|_| admit(&greedy).ok()).collect::<Vec<_>>();
            assert_eq!(greedy.len(), expected, "{listeners}");
            assert_eq!(admit(&other).is_ok(), listeners > 1, "{listeners}");
        }
        check(1, 50);
        check(2, 37);
        check(5000, 37);
    }

    #[test]
    fn one_port_of_many_has_only_its_share_of_the_local_ports_that_sessions_take() {
        let limits = ForwarderLimits { max_sockets: 100_000, ..ForwarderLimits::default() };
        let node = node(&limits, 9);
        let spec = spec(None);
        let (greedy, other) = (Arc::default(), Arc::default());
        let admit = |usage: &Arc<Usage>, transport| node.admit(usage, transport, &spec, &limits);
        let held = (0..800).map_while(|_| admit(&greedy, Transport::Udp).ok()).collect::<Vec<_>>();
        // Of 700 three quarters, as long as none is short.
        assert_eq!(held.len(), 525);
        assert_eq!(admit(&greedy, Transport::Udp).err(), Some(Refusal::NodeLimit));
        assert!(admit(&other, Transport::Udp).is_ok());
        assert!(admit(&greedy, Transport::Tcp).is_ok(), "connections share local ports");
        drop(held);
        assert_eq!([&node.sessions, &node.used].map(|count| count.load(Ordering::Relaxed)), [0, 0]);
        // What was taken before the node had no socket left is given back.
        let full = ForwarderLimits::default();
        node.set(&full, Supply { descriptors: 0, local_ports: 800, listeners: 9, listening_sockets: 0 });
        assert_eq!(admit(&other, Transport::Udp).err(), Some(Refusal::NodeLimit));
        assert_eq!(node.sessions.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn ports_are_spread_only_while_there_are_sockets_to_spare() {
        let node = node(&ForwarderLimits { max_sockets: 100, ..ForwarderLimits::default() }, 9);
        assert!(node.may_spread(10_000 / SPREAD_FRACTION, 100));
        assert!(!node.may_spread(10_000 / SPREAD_FRACTION + 1, 1));
        assert!(!node.may_spread(101, 101));
    }

    #[test]
    fn the_node_is_never_over_its_capacity() {
        for capacity in 1..200 {
            for used in 0..300 {
                for port in [1, 2, used] {
                    assert!(used <= capacity || !has_room(capacity, used, port, 3, 9));
                }
            }
        }
        assert!(has_room(100, 75, 75, 1, 2), "not scarce yet");
        assert!(!has_room(100, 76, 76, 1, 2));
        assert!(has_room(100, 76, 50, 1, 2));
        assert!(!has_room(0, 1, 1, 0, 1));
    }

    #[test]
    fn the_descriptor_limit_is_the_capacity_where_none_is_set() {
        let admission = Admission::default();
        let supply = Supply { descriptors: 20_000, local_ports: 0, listeners: 5000, listening_sockets: 5000 };
        admission.set(&ForwarderLimits::default(), supply);
        assert_eq!(admission.capacity.load(Ordering::Relaxed), 20_000 - 512 - 5000);
        let supply = Supply { descriptors: 256, local_ports: 0, listeners: 1, listening_sockets: 1 };
        admission.set(&ForwarderLimits::default(), supply);
        assert_eq!(admission.capacity.load(Ordering::Relaxed), 0);
    }
}
