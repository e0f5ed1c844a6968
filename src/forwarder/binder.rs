//! Where bound sockets come from: the machine, or whoever hands them in.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{Mutex, MutexGuard},
};

use super::sockets::{self, Spread};
use crate::model::Transport;

/// Binds ports. Tests and a restart that keeps its sockets have their own.
pub trait Binder: Send + Sync {
    /// A socket on `port`: listening for TCP, ready to receive for UDP. `::` takes IPv4 too.
    ///
    /// # Errors
    /// The kernel's: `AddrInUse` when somebody else has the port.
    fn bind(&self, address: IpAddr, port: u16, transport: Transport) -> io::Result<OwnedFd>;

    /// One more UDP socket on the address and port of `first`, for a part of its clients: a port that outgrows one core
    /// is spread over several. Whoever hands sockets in hands them in in the order in which they were bound.
    ///
    /// # Errors
    /// The kernel's.
    fn bind_beside(&self, first: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        sockets::bind_beside(first)
    }

    /// By what rule sockets that are handed in share a UDP port.
    fn spread(&self, _port: u16) -> Option<Spread> {
        None
    }

    /// Hears that these sockets, one for each address, serve a port from now on.
    fn opened(&self, _port: u16, _transport: Transport, _sockets: &[BorrowedFd<'_>]) {}

    /// Hears that a port is no longer wanted. Its sockets are closed after it.
    fn closed(&self, _port: u16, _transport: Transport) {}
}

/// Asks the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemBinder;

impl Binder for SystemBinder {
    fn bind(&self, address: IpAddr, port: u16, transport: Transport) -> io::Result<OwnedFd> {
        match sockets::bind(address, port, transport) {
            // A machine without IPv6: all of it is 0.0.0.0.
            Err(error) if address == Ipv6Addr::UNSPECIFIED && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                sockets::bind(Ipv4Addr::UNSPECIFIED.into(), port, transport)
            }
            result => result,
        }
    }
}

/// The bound sockets of ports, for another process.
#[derive(Debug, Default)]
pub struct PortSockets {
    /// Those of one port and address in the order in which they were bound.
    pub sockets: Vec<OwnedFd>,
    /// The UDP ports that have more than one for an address, and by what rule they share it.
    pub spreads: Vec<(u16, Spread)>,
}

/// Hands in the sockets of another process, and asks the machine for all others.
#[derive(Debug, Default)]
pub struct InheritedSockets {
    sockets: Mutex<HashMap<(Transport, SocketAddr), VecDeque<OwnedFd>>>,
    spreads: HashMap<u16, Spread>,
}

impl InheritedSockets {
    /// What is no bound UDP socket and no listening TCP socket is closed.
    #[must_use]
    pub fn new(inherited: PortSockets) -> Self {
        let mut by_address = HashMap::<_, VecDeque<_>>::new();
        for socket in inherited.sockets {
            if let Some(place) = sockets::place(socket.as_fd()) {
                by_address.entry(place).or_default().push_back(socket);
            }
        }
        Self { sockets: Mutex::new(by_address), spreads: inherited.spreads.into_iter().collect() }
    }

    /// Closes what nobody has asked for, and says what that was.
    pub fn close_rest(&self) -> Vec<(Transport, SocketAddr)> {
        self.sockets().drain().filter(|(_, rest)| !rest.is_empty()).map(|(place, _)| place).collect()
    }

    /// The socket for a port, if there is one.
    #[must_use]
    pub fn take(&self, address: IpAddr, port: u16, transport: Transport) -> Option<OwnedFd> {
        let all = (address == Ipv6Addr::UNSPECIFIED).then_some(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let mut addresses = [Some(address), all].into_iter().flatten();
        addresses.find_map(|address| self.take_at(transport, SocketAddr::new(address, port)))
    }

    fn take_at(&self, transport: Transport, address: SocketAddr) -> Option<OwnedFd> {
        self.sockets().get_mut(&(transport, address))?.pop_front()
    }

    fn sockets(&self) -> MutexGuard<'_, HashMap<(Transport, SocketAddr), VecDeque<OwnedFd>>> {
        self.sockets.lock().expect("nothing panics while it holds the sockets")
    }
}

impl Binder for InheritedSockets {
    fn bind(&self, address: IpAddr, port: u16, transport: Transport) -> io::Result<OwnedFd> {
        self.take(address, port, transport).map_or_else(|| SystemBinder.bind(address, port, transport), Ok)
    }

    fn bind_beside(&self, first: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let inherited = sockets::local_address(first).and_then(|address| self.take_at(Transport::Udp, address));
        inherited.map_or_else(|| SystemBinder.bind_beside(first), Ok)
    }

    fn spread(&self, port: u16) -> Option<Spread> {
        self.spreads.get(&port).copied()
    }
}
