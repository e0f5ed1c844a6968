//! Sockets as the forwarder wants them: how they are made, and what is set on them.

mod raw;
mod spread;

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Once,
    time::Duration,
};

pub(super) use quinn_udp::RecvMeta as Received;
use quinn_udp::{UdpSockRef, UdpSocketState};
pub(super) use raw::{MAX_MESSAGES, Message};
use rustix::{
    io::Errno,
    net::{self, AddressFamily, SocketFlags, SocketType, sockopt},
};
pub use spread::Spread;

use crate::model::{PortSet, Transport};

/// Connections that wait to be accepted, per listener; the kernel bounds it by `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// What a burst of datagrams may fill before a worker comes round, in bytes as a socket option has them: the kernel
/// reserves twice as much, for what each takes besides its bytes.
pub const LISTENER_RECEIVE_BUFFER: usize = 4 << 20;
/// What answers may fill before the network has taken them. All sessions of a port share it.
const LISTENER_SEND_BUFFER: usize = 4 << 20;
/// The same for the answers of one session's backend. With [`MAX_MESSAGES`] on the way to it this bounds what a session
/// takes of the kernel's memory; `net.ipv4.udp_mem` bounds all of them together.
const SESSION_RECEIVE_BUFFER: usize = 512 << 10;

/// Silence after which the kernel asks whether the peer is still there, then how often, and how many times.
pub(super) const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// Ports that the kernel chooses from for outgoing sockets, where the machine does not say.
const DEFAULT_LOCAL_PORTS: RangeInclusive<u16> = 32768..=60999;

const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

/// A bound socket that serves `port`: listening for TCP, ready to receive for UDP.
pub(super) fn bind(address: IpAddr, port: u16, transport: Transport) -> io::Result<OwnedFd> {
    let socket = make(address, transport)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, address != Ipv6Addr::UNSPECIFIED)?;
    }
    bind_freely(&socket, address)?;
    match transport {
        // A port whose last connections still linger can be bound again; one that somebody listens on cannot.
        Transport::Tcp => sockopt::set_socket_reuseaddr(&socket, true)?,
        Transport::Udp => set_datagram_buffers(&socket)?,
    }
    net::bind(&socket, &SocketAddr::new(address, port))?;
    if transport == Transport::Tcp {
        net::listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

/// One more UDP socket on the address and port of `first`, which shares them from then on.
pub(super) fn bind_beside(first: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let address = local_address(first).ok_or(io::ErrorKind::AddrNotAvailable)?;
    let socket = make(address.ip(), Transport::Udp)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, sockopt::ipv6_v6only(first)?)?;
    }
    bind_freely(&socket, address.ip())?;
    set_datagram_buffers(&socket)?;
    // Only now: a port that is not shared is taken by nobody else, and nobody else's is.
    sockopt::set_socket_reuseport(first, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    net::bind(&socket, &address)?;
    Ok(socket)
}

/// Lets a socket be bound on an address that is not here yet: a virtual one is on one node of several, and the others
/// are to serve it from the moment on that it moves to them.
fn bind_freely(socket: &OwnedFd, address: IpAddr) -> rustix::io::Result<()> {
    match address {
        IpAddr::V4(_) => sockopt::set_ip_freebind(socket, true),
        IpAddr::V6(_) => sockopt::set_ipv6_freebind(socket, true),
    }
}

/// Makes room for bursts of datagrams: beyond the machine's limit where this process may.
fn set_datagram_buffers(socket: &OwnedFd) -> rustix::io::Result<()> {
    static SAID: Once = Once::new();
    if sockopt::set_socket_recv_buffer_size_force(socket, LISTENER_RECEIVE_BUFFER).is_err() {
        sockopt::set_socket_recv_buffer_size(socket, LISTENER_RECEIVE_BUFFER)?;
        let granted = sockopt::socket_recv_buffer_size(socket)? / 2;
        if granted < LISTENER_RECEIVE_BUFFER {
            SAID.call_once(|| {
                tracing::info!(
                    granted,
                    wanted = LISTENER_RECEIVE_BUFFER,
                    "bursts of datagrams may be lost, as the kernel grants UDP ports small buffers: set the sysctl \
                     net.core.rmem_max to {LISTENER_RECEIVE_BUFFER}"
                );
            });
        }
    }
    if sockopt::set_socket_send_buffer_size_force(socket, LISTENER_SEND_BUFFER).is_err() {
        sockopt::set_socket_send_buffer_size(socket, LISTENER_SEND_BUFFER)?;
    }
    Ok(())
}

/// Sets what accepted connections inherit.
pub(super) fn prepare_listener(socket: BorrowedFd<'_>) -> io::Result<()> {
    rustix::io::ioctl_fionbio(socket, true)?;
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_oobinline(socket, true)?;
    keep_alive(socket)?;
    Ok(())
}

/// Has the kernel ask whether the peer is still there, counted from when it was last heard.
pub(super) fn keep_alive(socket: BorrowedFd<'_>) -> rustix::io::Result<()> {
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE_AFTER)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_EVERY)?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)
}

/// The next connection of a listener.
pub(super) fn accept(listener: BorrowedFd<'_>) -> rustix::io::Result<(OwnedFd, SocketAddr)> {
    let (socket, address) = net::acceptfrom_with(listener, FLAGS)?;
    let address = address.and_then(|address| SocketAddr::try_from(address).ok()).ok_or(Errno::CONNABORTED)?;
    Ok((socket, address))
}

/// Sends the last segment of a handshake now, for a backend that speaks first.
pub(super) fn acknowledge(socket: BorrowedFd<'_>) {
    // A socket that is gone has nothing to say.
    let _ = sockopt::set_tcp_quickack(socket, true);
}

/// Where a connection arrived.
pub(super) fn local_address(socket: BorrowedFd<'_>) -> Option<SocketAddr> {
    net::getsockname(socket).ok().and_then(|address| SocketAddr::try_from(address).ok())
}

/// What a socket serves: none that is neither bound for UDP nor listening for TCP.
pub(super) fn place(socket: BorrowedFd<'_>) -> Option<(Transport, SocketAddr)> {
    let address = local_address(socket).filter(|address| address.port() != 0)?;
    match sockopt::socket_type(socket).ok()? {
        SocketType::STREAM if sockopt::socket_acceptconn(socket).ok()? => Some((Transport::Tcp, address)),
        SocketType::DGRAM => Some((Transport::Udp, address)),
        _ => None,
    }
}

/// How many descriptors this process may have.
pub(super) fn descriptor_limit() -> u32 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(u32::MAX, |limit| u32::try_from(limit).unwrap_or(u32::MAX))
}

/// Whether a socket could not be made because no descriptor or memory was to be had: no other backend would help.
pub(super) fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::NOSPC)
    )
}

/// Whether a socket could not be made or connected because this machine has run out of something.
pub(super) fn is_own_fault(error: &io::Error) -> bool {
    is_exhaustion(error) || matches!(Errno::from_io_error(error), Some(Errno::ADDRNOTAVAIL | Errno::AGAIN))
}

/// Closes a connection so that its peer sees a reset, not an end.
pub(super) fn reset(socket: OwnedFd) {
    // A connection that is gone already has nothing to be reset.
    let _ = sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
}

/// A UDP socket that says of each datagram where it was sent to, and sends from any address of the machine.
pub(super) struct DatagramSocket {
    pub descriptor: OwnedFd,
    state: UdpSocketState,
}

impl DatagramSocket {
    pub(super) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        let state = UdpSocketState::new(UdpSockRef::from(&descriptor))?;
        // The state is made for QUIC, which finds out how much a path takes; datagrams of apps must pass whatever
        // their size.
        sockopt::set_ip_mtu_discover(&descriptor, sockopt::Ipv4PathMtuDiscovery::WANT)?;
        let ipv6 = sockopt::socket_domain(&descriptor)? == AddressFamily::INET6;
        if ipv6 {
            sockopt::set_ipv6_mtu_discover(&descriptor, sockopt::Ipv6PathMtuDiscovery::WANT)?;
            raw::allow_ipv6_fragments(descriptor.as_fd())?;
        }
        raw::receive_plainly(descriptor.as_fd(), ipv6)?;
        Ok(Self { descriptor, state })
    }

    /// Receives from this socket, or from another one, what waits there: a datagram in each buffer, or several of one
    /// sender that the kernel has joined.
    pub(super) fn receive(
        &self,
        from: impl AsFd,
        buffers: &mut [IoSliceMut<'_>],
        received: &mut [Received],
    ) -> io::Result<usize> {
        self.state.recv(UdpSockRef::from(&from), buffers, received)
    }

    /// Sends messages, at most [`MAX_MESSAGES`], and says how many have been sent. An error is of the first.
    pub(super) fn send<'a>(&self, messages: impl Iterator<Item = Message<'a>>) -> rustix::io::Result<usize> {
        raw::send(self.descriptor.as_fd(), messages)
    }
}

/// Lets the kernel join what a session's backend answers.
pub(super) fn join_received(socket: impl AsFd) {
    // A kernel that cannot join hands over each datagram by itself.
    let _ = raw::join_received(socket.as_fd());
}

/// Sends datagrams of one length, of which the last may be shorter, by one call over a connected socket.
pub(super) fn send_joined(socket: impl AsFd, parts: &[IoSlice<'_>], segment: u16) -> rustix::io::Result<()> {
    let message = Message { parts, segment: Some(segment), to: None, from: None };
    raw::send(socket.as_fd(), std::iter::once(message)).map(drop)
}

/// Below which length datagrams may still be joined, after the kernel has refused to cut some of this one.
pub(super) fn joinable_after(refusal: Errno, length: u16) -> u16 {
    // A device or a route that cuts nothing, or one that takes only shorter datagrams.
    if refusal == Errno::IO { 0 } else { length }
}

/// Whether the kernel does not cut datagrams of some length for this socket: they go one by one then.
pub(super) fn refuses_to_cut(error: Errno) -> bool {
    matches!(error, Errno::MSGSIZE | Errno::INVAL | Errno::IO)
}

/// Makes sockets to backends, on local ports that no pool has.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    local_ports: Option<RangeInclusive<u16>>,
    /// How many ports the kernel chooses from.
    port_count: u32,
}

impl Connector {
    /// Stays out of `pool_ports`.
    pub(super) fn new(pool_ports: &PortSet) -> Self {
        let machine_ports = machine_ports();
        let local_ports = largest_gap(&machine_ports, pool_ports);
        let port_count = u32::try_from(local_ports.as_ref().unwrap_or(&machine_ports).len()).expect("at most 65,536");
        let connector = Self { local_ports, port_count };
        if let Some(ports) = &connector.local_ports
            && let Err(error) = connector.try_range(ports)
        {
            tracing::warn!(
                %error,
                "outgoing connections may take ports of the pools: this kernel cannot keep them out (it needs Linux \
                 6.3), so reserve the pools' ports with the sysctl net.ipv4.ip_local_reserved_ports"
            );
        }
        connector
    }

    /// How many local ports there are for outgoing sockets.
    pub(super) const fn port_count(&self) -> u32 {
        self.port_count
    }

    fn try_range(&self, ports: &RangeInclusive<u16>) -> io::Result<()> {
        let socket = net::socket_with(AddressFamily::INET, SocketType::DGRAM, FLAGS, None)?;
        raw::set_local_port_range(socket.as_fd(), ports)
    }

    /// Begins to connect; the socket becomes writable when that is done, well or not.
    pub(super) fn connect(&self, backend: SocketAddr, transport: Transport) -> io::Result<OwnedFd> {
        let socket = make(backend.ip(), transport)?;
        if let Some(ports) = &self.local_ports {
            // Kernels before 6.3 do not know it; `new` has said so.
            let _ = raw::set_local_port_range(socket.as_fd(), ports);
        }
        match transport {
            Transport::Tcp => {
                // Urgent bytes are passed on as what they are in the stream, not lost: from the first on.
                sockopt::set_socket_oobinline(&socket, true)?;
                // The last segment of the handshake waits for what is sent first, or for `acknowledge`.
                sockopt::set_tcp_quickack(&socket, false)?;
            }
            Transport::Udp => sockopt::set_socket_recv_buffer_size(&socket, SESSION_RECEIVE_BUFFER)?,
        }
        match net::connect(&socket, &backend) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
            Err(error) => Err(error.into()),
        }
    }
}

fn make(address: IpAddr, transport: Transport) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match transport {
        Transport::Tcp => SocketType::STREAM,
        Transport::Udp => SocketType::DGRAM,
    };
    Ok(net::socket_with(family, kind, FLAGS, None)?)
}

/// What the kernel chooses outgoing ports from.
fn machine_ports() -> RangeInclusive<u16> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = text.split_whitespace().map_while(|number| number.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(first), Some(last)) => first..=last,
        _ => DEFAULT_LOCAL_PORTS,
    }
}

/// The longest run of `machine` ports that are not in `pools`; none when nothing has to be kept out, or nothing is left.
fn largest_gap(machine: &RangeInclusive<u16>, pools: &PortSet) -> Option<RangeInclusive<u16>> {
    let (first, last) = (u32::from(*machine.start()), u32::from(*machine.end()));
    let taken = pools.ranges().iter().map(|range| (u32::from(*range.start()), u32::from(*range.end())));
    let taken = taken.filter(|(start, end)| *start <= last && first <= *end).collect::<Vec<_>>();
    if taken.is_empty() {
        return None;
    }
    let mut from = first;
    let mut gaps = Vec::with_capacity(taken.len() + 1);
    for (start, end) in taken {
        gaps.push(from..start);
        from = from.max(end + 1);
    }
    gaps.push(from..last + 1);
    let gap = gaps.into_iter().filter(|gap| !gap.is_empty()).max_by_key(|gap| gap.end - gap.start)?;
    let port = |number| u16::try_from(number).expect("within the machine's range");
    Some(port(gap.start)..=port(gap.end - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outgoing_ports_are_the_largest_part_of_the_machines_range_that_no_pool_has() {
        fn check(pools: &str, expected: Option<RangeInclusive<u16>>) {
            assert_eq!(largest_gap(&(32768..=60999), &pools.parse().unwrap()), expected, "{pools}");
        }
        check("35000-40000", Some(40001..=60999));
        check("50000-60999", Some(32768..=49999));
        check("35000-40000, 55000-65535", Some(40001..=54999));
        check("20000-30000", None);
        check("61000-65535", None);
        check("1024-65535", None);
        check("1024-60998", Some(60999..=60999));
        check("32769-65535", Some(32768..=32768));
    }

    #[test]
    fn an_address_that_is_elsewhere_can_be_bound() {
        // Set aside for documentation: never this machine's.
        for address in ["192.0.2.1", "2001:db8::1"].map(|address| address.parse::<IpAddr>().unwrap()) {
            for transport in [Transport::Tcp, Transport::Udp] {
                let socket = bind(address, 0, transport).unwrap();
                let bound = local_address(socket.as_fd()).unwrap();
                assert_eq!(bound.ip(), address);
                if transport == Transport::Udp {
                    let beside = bind_beside(socket.as_fd()).unwrap();
                    assert_eq!(local_address(beside.as_fd()), Some(bound));
                }
            }
        }
    }

    #[test]
    fn outgoing_sockets_stay_in_their_range() {
        for (address, transport) in [("[::1]:9", Transport::Udp), ("127.0.0.1:9", Transport::Udp)] {
            for _ in 0..20 {
                let connector = Connector { local_ports: Some(40000..=40099), port_count: 100 };
                let socket = connector.connect(address.parse().unwrap(), transport).unwrap();
                let port = local_address(socket.as_fd()).unwrap().port();
                assert!((40000..=40099).contains(&port), "{address} from {port}");
            }
        }
    }
}
