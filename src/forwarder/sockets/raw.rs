//! Two socket options that no safe wrapper offers. Nothing else in Harbor is unsafe.

#![expect(unsafe_code, reason = "setsockopt(2), with a pointer to a number that lives through the call")]

use std::{
    ffi::c_int,
    io,
    ops::RangeInclusive,
    os::fd::{AsRawFd as _, BorrowedFd},
};

/// `IP_LOCAL_PORT_RANGE` of Linux 6.3, for IPv6 sockets too.
const IP_LOCAL_PORT_RANGE: c_int = 51;

/// Ports that the kernel may choose for this socket when it connects.
pub(super) fn set_local_port_range(socket: BorrowedFd<'_>, ports: &RangeInclusive<u16>) -> io::Result<()> {
    let value = u32::from(*ports.end()) << 16 | u32::from(*ports.start());
    set(socket, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, value)
}

/// Lets datagrams be sent that are larger than a link takes at once.
pub(super) fn allow_ipv6_fragments(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0)
}

fn set(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: u32) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).expect("four bytes");
    // SAFETY: the descriptor is open while it is borrowed; the kernel reads `length` bytes from `value`, which lives
    // until the call returns, and keeps nothing of it.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
