//! Where bound sockets come from: the machine, or whoever hands them in.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{BorrowedFd, OwnedFd},
};

use super::sockets;
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
