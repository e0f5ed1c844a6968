//! TCP: connections through the forwarder, both of their ends here.

use std::{
    io::{Read as _, Write as _},
    iter,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
};

use anyhow::{Context as _, ensure};
use harbor::model::Transport;
use rustix::net::{SendFlags, send, sockopt};

use super::{Work, gate::PATIENCE, node::Node, uninterrupted};

const MESSAGE: usize = 64;
const LARGE_ANSWER: usize = 16 << 10;
/// What the kernel holds of a sender that nobody reads from, with the usual `net.core.wmem_max`.
const CHUNK: usize = 256 << 10;

/// Both ends of a connection.
struct Pair {
    client: TcpStream,
    backend: TcpStream,
}

/// The port, and the listener of its backend.
struct Route {
    target: SocketAddr,
    backend: TcpListener,
}

impl Route {
    fn new(node: &Node) -> anyhow::Result<Self> {
        let backend = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        // Accepted connections have the same.
        sockopt::set_socket_recv_buffer_size(&backend, 2 * CHUNK)?;
        sockopt::set_socket_send_buffer_size(&backend, 2 * CHUNK)?;
        let target = node.serve(Transport::Tcp, backend.local_addr()?)?;
        Ok(Self { target, backend })
    }

    /// A connection through which one message has gone each way.
    fn connect(&self, node: &Node) -> anyhow::Result<Pair> {
        let (mut client, held) = node.gate.hold(|| Ok(TcpStream::connect(self.target)?))?;
        client.write_all(&[0; MESSAGE])?;
        drop(held);
        let (backend, _) = self.backend.accept()?;
        sockopt::set_socket_send_buffer_size(&client, 2 * CHUNK)?;
        for socket in [&client, &backend] {
            socket.set_nodelay(true)?;
            socket.set_read_timeout(Some(PATIENCE))?;
        }
        let mut pair = Pair { client, backend };
        read(&mut pair.backend, &mut [0; MESSAGE])?;
        exchange(node, iter::once(&mut pair), &[], &[0; MESSAGE])?;
        Ok(pair)
    }
}

fn read(socket: &mut TcpStream, buffer: &mut [u8]) -> anyhow::Result<()> {
    socket.read_exact(buffer).context("what was sent did not arrive")
}

/// Requests on all connections at once, then all answers at once.
fn exchange<'a>(
    node: &Node,
    pairs: impl Iterator<Item = &'a mut Pair>,
    request: &[u8],
    answer: &[u8],
) -> anyhow::Result<()> {
    let mut pairs = pairs.collect::<Vec<_>>();
    let mut buffer = vec![0; request.len().max(answer.len())];
    if !request.is_empty() {
        node.gate.together(&mut pairs, |pair| Ok(pair.client.write_all(request)?))?;
        pairs.iter_mut().try_for_each(|pair| read(&mut pair.backend, &mut buffer[..request.len()]))?;
    }
    node.gate.together(&mut pairs, |pair| Ok(pair.backend.write_all(answer)?))?;
    pairs.iter_mut().try_for_each(|pair| read(&mut pair.client, &mut buffer[..answer.len()]))
}

/// Exchanges on open connections.
struct Exchange {
    pairs: Vec<Pair>,
    answer: Vec<u8>,
}

impl Exchange {
    fn start(node: &Node, connections: usize, answer: usize) -> anyhow::Result<Box<dyn Work>> {
        let route = Route::new(node)?;
        let pairs = (0..connections).map(|_| route.connect(node)).collect::<anyhow::Result<_>>()?;
        Ok(Box::new(Self { pairs, answer: vec![0; answer] }))
    }
}

impl Work for Exchange {
    fn step(&mut self, node: &Node) -> anyhow::Result<()> {
        exchange(node, self.pairs.iter_mut(), &[0; MESSAGE], &self.answer)
    }
}

pub fn one(node: &Node) -> anyhow::Result<Box<dyn Work>> {
    Exchange::start(node, 1, MESSAGE)
}

pub fn many(node: &Node) -> anyhow::Result<Box<dyn Work>> {
    Exchange::start(node, 64, MESSAGE)
}

pub fn large(node: &Node) -> anyhow::Result<Box<dyn Work>> {
    Exchange::start(node, 1, LARGE_ANSWER)
}

/// Connections that end after one exchange: the client ends first, then the backend.
struct Connections(Route);

impl Work for Connections {
    fn step(&mut self, node: &Node) -> anyhow::Result<()> {
        let Pair { mut client, mut backend } = self.0.connect(node)?;
        node.gate.together([&client], |client| Ok(client.shutdown(Shutdown::Write)?))?;
        ensure!(uninterrupted(|| backend.read(&mut [0]))? == 0, "more than was sent");
        node.gate.together([backend], |backend| {
            drop(backend);
            Ok(())
        })?;
        ensure!(uninterrupted(|| client.read(&mut [0]))? == 0, "more than was answered");
        Ok(())
    }
}

pub fn connection(node: &Node) -> anyhow::Result<Box<dyn Work>> {
    Ok(Box::new(Connections(Route::new(node)?)))
}

/// Chunks on one connection, to the backend or both ways.
struct Bulk {
    pair: Pair,
    both: bool,
    chunk: Vec<u8>,
    arrived: Vec<u8>,
}

impl Bulk {
    fn start(node: &Node, both: bool) -> anyhow::Result<Box<dyn Work>> {
        let pair = Route::new(node)?.connect(node)?;
        Ok(Box::new(Self { pair, both, chunk: vec![0; CHUNK], arrived: vec![0; CHUNK] }))
    }
}

/// All at once: nobody reads meanwhile.
fn fill(socket: &TcpStream, chunk: &[u8]) -> anyhow::Result<()> {
    let sent = send(socket, chunk, SendFlags::DONTWAIT)?;
    ensure!(sent == chunk.len(), "the kernel held {sent} bytes at once only: raise net.core.wmem_max");
    Ok(())
}

impl Work for Bulk {
    fn step(&mut self, node: &Node) -> anyhow::Result<()> {
        let Pair { client, backend } = &self.pair;
        // The first part is what the worker is woken by.
        let (first, second) = self.chunk.split_at(CHUNK / 2);
        let back = self.both.then_some((backend, self.chunk.as_slice()));
        let parts = [(client, first), (client, second)].into_iter().chain(back);
        node.gate.together(parts, |(socket, part)| fill(socket, part))?;
        // What it carries at once would depend on how fast it is read.
        node.gate.rest()?;
        read(&mut self.pair.backend, &mut self.arrived)?;
        if self.both { read(&mut self.pair.client, &mut self.arrived) } else { Ok(()) }
    }
}

pub fn bulk(node: &Node) -> anyhow::Result<Box<dyn Work>> {
    Bulk::start(node, false)
}

pub fn bulk_both(node: &Node) -> anyhow::Result<Box<dyn Work>> {
    Bulk::start(node, true)
}
