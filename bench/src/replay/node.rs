//! A forwarder with one worker, and its surroundings.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use anyhow::{Context as _, anyhow, ensure};
use harbor::{
    backends::Backends,
    forwarder::{Forwarder, Settings as ForwarderSettings, Surroundings, SystemBinder},
    model::{
        Clock as _, PoolName, PortSet, Protocol, Revision, ServiceInstanceId, Transport,
        announcement::{AnnouncedState, Authority, Endpoint, Origin, Registration},
        desired::{DesiredState, ListenerSpec},
        observed::{ListenerState, Observations},
        parameters::Settings,
    },
    telemetry::metrics::Metrics,
};

use super::gate::{Gate, PATIENCE};

/// The first port that is listened on; the others follow.
pub const FIRST_PORT: u16 = 30_000;
/// Ports that there may be.
pub const PORTS: u16 = 2_000;

/// A running forwarder.
pub struct Node {
    pub gate: Arc<Gate>,
    forwarder: Forwarder,
    backends: Backends,
    address: IpAddr,
    desired: Mutex<DesiredState>,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    observations: Mutex<Arc<Observations>>,
    changed: Condvar,
}

impl Node {
    pub fn start() -> anyhow::Result<Self> {
        let gate = Arc::new(Gate::new()?);
        let backends = Backends::new(256);
        let address = own_address();
        let last = FIRST_PORT + PORTS - 1;
        let pool_ports: PortSet = format!("{FIRST_PORT}-{last}").parse().context("the ports are a range")?;
        let settings = ForwarderSettings { listen: vec![address], workers: 1, pool_ports, held: false };
        let seen = Arc::<Seen>::default();
        let surroundings = Surroundings {
            binder: Arc::new(SystemBinder),
            backends: backends.clone(),
            clock: Arc::<Gate>::clone(&gate),
            metrics: Arc::clone(&Metrics::new().forwarder),
            holders: Box::new(|places| vec![None; places.len()]),
            observe: Box::new({
                let seen = Arc::clone(&seen);
                move |observations| {
                    *seen.observations.lock().expect("nothing panics while it holds them") = observations;
                    seen.changed.notify_all();
                }
            }),
            closed: Box::new(|_| {}),
        };
        let forwarder = Forwarder::start(settings, surroundings)?;
        Ok(Self { gate, forwarder, backends, address, desired: Mutex::default(), seen })
    }

    /// Where clients reach a port.
    pub fn listener(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }

    /// Listens on the first port, for this backend.
    pub fn serve(&self, transport: Transport, backend: SocketAddr) -> anyhow::Result<SocketAddr> {
        let protocol = if transport == Transport::Tcp { Protocol::Tcp } else { Protocol::Udp };
        self.add(FIRST_PORT..FIRST_PORT + 1, protocol)?;
        let registration = Registration {
            service_instance_id: id(FIRST_PORT)?,
            endpoints: vec![Endpoint { transport, address: backend }],
            authority: Authority::Trusted,
            origin: Origin::default(),
            time_to_live: Duration::from_secs(1_000_000),
            state: AnnouncedState::Up,
            since: None,
            heard_at: self.gate.wall(),
        };
        let applied = self.backends.apply(&registration, self.gate.now());
        applied.map_err(|refusal| anyhow!("the backend is not taken: {refusal:?}"))?;
        Ok(self.listener(FIRST_PORT))
    }

    /// Listens on these ports too.
    pub fn add(&self, ports: std::ops::Range<u16>, protocol: Protocol) -> anyhow::Result<()> {
        let mut desired = self.desired.lock().expect("nothing panics while it holds it");
        for port in ports.clone() {
            let spec = ListenerSpec {
                service_instance_id: id(port)?,
                pool: PoolName::new("default").context("a name")?,
                port,
                protocol,
                settings: Settings::default(),
                version: 1,
            };
            desired.listeners.insert_mut(id(port)?, Arc::new(spec));
        }
        let seen = self.apply(&mut desired)?;
        for port in ports {
            let state = seen.get(&id(port)?).map(|seen| &seen.state);
            ensure!(state == Some(&ListenerState::Bound), "port {port} is not bound: {state:?}");
        }
        Ok(())
    }

    /// Listens on this port no more.
    pub fn remove(&self, port: u16) -> anyhow::Result<()> {
        let mut desired = self.desired.lock().expect("nothing panics while it holds it");
        desired.listeners.remove_mut(&id(port)?);
        self.apply(&mut desired)?;
        Ok(())
    }

    /// Waits until what is desired is there.
    fn apply(&self, desired: &mut DesiredState) -> anyhow::Result<Arc<Observations>> {
        desired.revision = Revision(desired.revision.0 + 1);
        self.forwarder.apply(Arc::new(desired.clone()));
        let seen = self.seen.observations.lock().expect("nothing panics while it holds them");
        let (seen, waited) = self
            .seen
            .changed
            .wait_timeout_while(seen, PATIENCE, |seen| seen.applied != Some(desired.revision))
            .expect("nothing panics while it holds them");
        ensure!(!waited.timed_out(), "the forwarder did not take over {:?} within {PATIENCE:?}", desired.revision);
        Ok(Arc::clone(&seen))
    }
}

/// The service instance of a port.
fn id(port: u16) -> anyhow::Result<ServiceInstanceId> {
    ServiceInstanceId::new(format!("instance-{port}")).context("an id")
}

/// A loopback address for this process alone, so that its ports are free.
fn own_address() -> IpAddr {
    let [_, high, middle, low] = process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 | high, middle, low).into()
}
