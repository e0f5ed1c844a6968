//! Sockets as load and backend want them.

use std::{
    array,
    io::{self, IoSlice, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        self, AddressFamily, MMsgHdr, RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrAny, SocketFlags,
        SocketType, addr::SocketAddrArg as _, sockopt,
    },
};

use super::protocol;

/// Datagrams wait here while load or backend are not on a core; the kernel bounds it by `net.core.rmem_max`.
const DATAGRAM_RECEIVE_BUFFER: usize = 4 << 20;
const BACKLOG: i32 = 4096;
/// How long to wait for what takes no time unless something is wrong.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Datagrams that one system call sends.
pub const SEND_BATCH: usize = 32;

const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

/// A listening socket whose connections send small messages at once.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = net::socket_with(family(address), SocketType::STREAM, FLAGS, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    net::bind(&socket, &address)?;
    net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// A connection that is made when this returns, though a proxy may not have one to its backend yet. It blocks, for
/// [`PATIENCE`] at most.
pub fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, PATIENCE).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot connect to {target}, look whether it listens: {error}"))
    })?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Begins to connect. Over loopback that is done when this returns.
pub fn begin_connect(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = net::socket_with(family(target), SocketType::STREAM, FLAGS, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    match net::connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket.into()),
        Err(error) => Err(error.into()),
    }
}

/// Connections through which a message has been echoed, so that everything on the way is in place. They do not block.
pub fn connect_echo(target: SocketAddr, count: usize) -> io::Result<Vec<TcpStream>> {
    let open = || {
        let mut stream = connect(target)?;
        stream.write_all(&[protocol::ECHO; 1 + protocol::MESSAGE])?;
        stream.read_exact(&mut [0; protocol::MESSAGE])?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    (0..count).map(|_| open()).collect()
}

/// A socket for datagrams, not blocking.
pub fn datagrams(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket: OwnedFd = net::socket_with(family(address), SocketType::DGRAM, FLAGS, None)?;
    sockopt::set_socket_recv_buffer_size(&socket, DATAGRAM_RECEIVE_BUFFER)?;
    net::bind(&socket, &address)?;
    Ok(socket.into())
}

/// A flow to `target`: a socket with a local port of its own.
pub fn flow(target: SocketAddr) -> io::Result<UdpSocket> {
    let any = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = datagrams(SocketAddr::new(any, 0))?;
    socket.connect(target)?;
    Ok(socket)
}

/// Reads what is there; `None` when nothing is.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    waited(net::recv(socket, buffer, RecvFlags::empty()).map(|(_, length)| length))
}

/// Writes what there is room for; `None` when there is none.
pub fn send(socket: impl AsFd, bytes: &[u8]) -> io::Result<Option<usize>> {
    waited(net::send(socket, bytes, SendFlags::NOSIGNAL))
}

fn waited(result: rustix::io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(length) => Ok(Some(length)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Copies of one datagram, sent with few system calls.
///
/// Returns how many left a connected socket; a peer that is gone takes none.
pub fn send_copies(socket: impl AsFd, datagram: &[u8], count: usize) -> usize {
    let slice = [IoSlice::new(datagram)];
    let mut controls: [_; SEND_BATCH] = array::from_fn(|_| SendAncillaryBuffer::default());
    let messages = controls.iter_mut().map(|control| MMsgHdr::new(&slice, control));
    let mut messages = messages.take(count).collect::<Vec<_>>();
    net::sendmmsg(socket, &mut messages, SendFlags::empty()).unwrap_or(0)
}

/// A datagram and where it goes.
pub struct Addressed<'a> {
    to: SocketAddrAny,
    bytes: [IoSlice<'a>; 1],
}

impl<'a> Addressed<'a> {
    pub fn new(to: SocketAddr, bytes: &'a [u8]) -> Self {
        Self { to: to.as_any(), bytes: [IoSlice::new(bytes)] }
    }
}

/// Sends datagrams with few system calls; one that cannot be sent is left out.
pub fn send_addressed(socket: impl AsFd, mut datagrams: &[Addressed<'_>]) {
    while !datagrams.is_empty() {
        let mut controls: [_; SEND_BATCH] = array::from_fn(|_| SendAncillaryBuffer::default());
        let messages = datagrams.iter().zip(&mut controls);
        let messages =
            messages.map(|(datagram, control)| MMsgHdr::new_with_addr(&datagram.to, &datagram.bytes, control));
        let mut messages = messages.collect::<Vec<_>>();
        let sent = net::sendmmsg(socket.as_fd(), &mut messages, SendFlags::empty()).unwrap_or(0);
        datagrams = &datagrams[sent.max(1)..];
    }
}

/// Lets datagrams be sent that are larger than a link takes at once.
pub fn allow_fragments(socket: impl AsFd) -> io::Result<()> {
    sockopt::set_ip_mtu_discover(&socket, sockopt::Ipv4PathMtuDiscovery::WANT)?;
    if sockopt::socket_domain(&socket)? == AddressFamily::INET6 {
        sockopt::set_ipv6_mtu_discover(&socket, sockopt::Ipv6PathMtuDiscovery::WANT)?;
    }
    Ok(())
}

/// Makes the next close a reset instead of an end.
pub fn reset(stream: impl AsFd) {
    // A connection that is gone already has nothing to be reset.
    let _ = sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

fn family(address: SocketAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}
