//! UDP: flows through the forwarder, both of their ends here.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::Context as _;
use harbor::model::{Transport, desired::ForwarderLimits};
use quinn_udp::{Transmit, UdpSocketState};

use super::{Work, gate::PATIENCE, node::Node, uninterrupted};

const DATAGRAM: usize = 64;
/// Datagrams of a batch, and the size of those that are equal.
const BATCH: usize = 32;
const BATCHED: usize = 1200;
/// Sizes of the others, in turn.
const MIXED: [usize; 5] = [64, 1200, 300, 1200, 700];
/// Sessions that are alive at a time while sessions come and go.
const ALIVE: u32 = 64;

fn socket() -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn read(socket: &UdpSocket) -> anyhow::Result<SocketAddr> {
    let (_, from) = uninterrupted(|| socket.recv_from(&mut [0; BATCHED])).context("a datagram did not arrive")?;
    Ok(from)
}

/// The port, and its backend.
struct Route {
    target: SocketAddr,
    backend: UdpSocket,
}

impl Route {
    fn new(node: &Node) -> anyhow::Result<Self> {
        let backend = socket()?;
        let target = node.serve(Transport::Udp, backend.local_addr()?)?;
        Ok(Self { target, backend })
    }

    /// A new flow; its session begins with its first datagram.
    fn flow(&self) -> anyhow::Result<UdpSocket> {
        let flow = socket()?;
        flow.connect(self.target)?;
        Ok(flow)
    }

    /// A datagram on all flows at once, then all answers at once.
    fn exchange(&self, node: &Node, flows: &[UdpSocket]) -> anyhow::Result<()> {
        node.gate.together(flows, |flow| Ok(flow.send(&[0; DATAGRAM]).map(drop)?))?;
        let from = flows.iter().map(|_| read(&self.backend)).collect::<anyhow::Result<Vec<_>>>()?;
        node.gate.together(from, |to| Ok(self.backend.send_to(&[0; DATAGRAM], to).map(drop)?))?;
        flows.iter().try_for_each(|flow| read(flow).map(drop))
    }
}

/// Exchanges on flows that have their sessions.
struct Exchange {
    route: Route,
    flows: Vec<UdpSocket>,
}

impl Exchange {
    fn start(node: &Node, flows: usize) -> anyhow::Result<Box<dyn Work>> {
        let route = Route::new(node)?;
        let flows = (0..flows).map(|_| route.flow()).collect::<anyhow::Result<_>>()?;
        Ok(Box::new(Self { route, flows }))
    }
}

impl Work for Exchange {
    fn step(&mut self, node: &Node) -> anyhow::Result<()> {
        self.route.exchange(node, &self.flows)
    }
}

pub fn one(node: &Node) -> anyhow::Result<Box<dyn Work>> {
    Exchange::start(node, 1)
}

pub fn many(node: &Node) -> anyhow::Result<Box<dyn Work>> {
    Exchange::start(node, 64)
}

/// Sessions that begin, and with time end.
struct Sessions {
    route: Route,
    pause: Duration,
}

impl Work for Sessions {
    fn step(&mut self, node: &Node) -> anyhow::Result<()> {
        node.gate.advance(self.pause);
        self.route.exchange(node, &[self.route.flow()?])
    }
}

pub fn session(node: &Node) -> anyhow::Result<Box<dyn Work>> {
    let pause = ForwarderLimits::default().idle_timeout(Transport::Udp) / ALIVE;
    Ok(Box::new(Sessions { route: Route::new(node)?, pause }))
}

/// Batches to the backend, on one flow.
struct Batches {
    route: Route,
    flow: UdpSocket,
    batch: Batch,
}

enum Batch {
    /// Of these sizes, one call each.
    Single(Vec<usize>),
    /// As one call: the kernel takes them apart again at the very end.
    Joined(UdpSocketState),
}

impl Batches {
    fn start(node: &Node, batch: impl FnOnce(&UdpSocket) -> anyhow::Result<Batch>) -> anyhow::Result<Box<dyn Work>> {
        let route = Route::new(node)?;
        let flow = route.flow()?;
        let batch = batch(&flow)?;
        route.exchange(node, std::slice::from_ref(&flow))?;
        Ok(Box::new(Self { route, flow, batch }))
    }
}

impl Work for Batches {
    fn step(&mut self, node: &Node) -> anyhow::Result<()> {
        let contents = [0; BATCH * BATCHED];
        match &self.batch {
            Batch::Single(sizes) => {
                node.gate.together(sizes, |size| Ok(self.flow.send(&contents[..*size]).map(drop)?))?;
            }
            Batch::Joined(state) => {
                let transmit = Transmit {
                    destination: self.route.target,
                    ecn: None,
                    contents: &contents,
                    segment_size: Some(BATCHED),
                    src_ip: None,
                };
                node.gate.together([transmit], |transmit| Ok(state.try_send((&self.flow).into(), &transmit)?))?;
            }
        }
        (0..BATCH).try_for_each(|_| read(&self.route.backend).map(drop))
    }
}

pub fn equal(node: &Node) -> anyhow::Result<Box<dyn Work>> {
    Batches::start(node, |_| Ok(Batch::Single(vec![BATCHED; BATCH])))
}

pub fn mixed(node: &Node) -> anyhow::Result<Box<dyn Work>> {
    let sizes = MIXED.into_iter().cycle().take(BATCH).collect();
    Batches::start(node, |_| Ok(Batch::Single(sizes)))
}

pub fn joined(node: &Node) -> anyhow::Result<Box<dyn Work>> {
    Batches::start(node, |flow| {
        let state = UdpSocketState::new(flow.into())?;
        // It does not leave it so.
        flow.set_nonblocking(false)?;
        Ok(Batch::Joined(state))
    })
}
