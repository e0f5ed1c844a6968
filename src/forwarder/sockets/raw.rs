//! Socket options and calls that no safe wrapper offers. Nothing else in Harbor is unsafe.

#![expect(unsafe_code, reason = "setsockopt(2) and sendmmsg(2), with pointers to what lives through the call")]

use std::{
    ffi::{c_int, c_void},
    io::{self, IoSlice},
    mem::{self, MaybeUninit},
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use rustix::io::Errno;

/// `IP_LOCAL_PORT_RANGE` of Linux 6.3, for IPv6 sockets too.
const IP_LOCAL_PORT_RANGE: c_int = 51;

/// Messages that are sent by one call.
pub(in crate::forwarder) const MAX_MESSAGES: usize = 64;
/// Room for control messages: a source address and a length, each with its header, in words.
const CONTROL_WORDS: usize = 8;

/// Ports that the kernel may choose for this socket when it connects.
pub(super) fn set_local_port_range(socket: BorrowedFd<'_>, ports: &RangeInclusive<u16>) -> io::Result<()> {
    let value = u32::from(*ports.end()) << 16 | u32::from(*ports.start());
    set(socket, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, value)
}

/// Lets datagrams be sent that are larger than a link takes at once.
pub(super) fn allow_ipv6_fragments(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0)
}

/// Lets the kernel hand over datagrams of one sender joined; it says of what length they are.
pub(super) fn join_received(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Asks the kernel not to say of each datagram when it came and with what class of service.
pub(super) fn receive_plainly(socket: BorrowedFd<'_>, ipv6: bool) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 0)?;
    set(socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 0)?;
    if ipv6 { set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 0) } else { Ok(()) }
}

fn set(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: u32) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).expect("four bytes");
    // SAFETY: the descriptor is open while it is borrowed; the kernel reads `length` bytes from `value`, which lives
    // until the call returns, and keeps nothing of it.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets a program of the kernel's packet filter say which of the sockets that share this one's port a datagram is for.
pub(super) fn choose_socket_by(socket: BorrowedFd<'_>, program: &[libc::sock_filter]) -> io::Result<()> {
    let length = libc::c_ushort::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    let size = libc::socklen_t::try_from(size_of_val(&program)).expect("a few bytes");
    // SAFETY: the descriptor is open while it is borrowed; the kernel reads `size` bytes from `program` and `length`
    // steps from where that points to, which both live until the call returns, and keeps a copy.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A datagram to send, or several to one receiver.
#[derive(Debug, Clone, Copy)]
pub(in crate::forwarder) struct Message<'a> {
    /// What it consists of.
    pub parts: &'a [IoSlice<'a>],
    /// The kernel cuts it into datagrams of this length; the last may be shorter.
    pub segment: Option<u16>,
    /// Where it goes, unless the socket is connected.
    pub to: Option<SocketAddr>,
    /// From which address of ours, unless the kernel is to choose.
    pub from: Option<IpAddr>,
}

/// Sends messages, at most [`MAX_MESSAGES`], and says how many have been sent. An error is of the first.
pub(super) fn send<'a>(
    socket: BorrowedFd<'_>,
    messages: impl Iterator<Item = Message<'a>>,
) -> rustix::io::Result<usize> {
    let mut names = [const { MaybeUninit::<Name>::uninit() }; MAX_MESSAGES];
    let mut controls = [const { MaybeUninit::<Control>::uninit() }; MAX_MESSAGES];
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; MAX_MESSAGES];
    let mut count = 0;
    for (((message, name), control), header) in messages.zip(&mut names).zip(&mut controls).zip(&mut headers) {
        // SAFETY: a header consists of numbers and pointers, for which all zeroes are valid: no memory of length none.
        let header = header.write(unsafe { mem::zeroed() });
        let inner = &mut header.msg_hdr;
        // `IoSlice` is an `iovec` in memory, as its documentation promises; the kernel only reads what is sent.
        inner.msg_iov = message.parts.as_ptr().cast_mut().cast();
        inner.msg_iovlen = message.parts.len() as _;
        if let Some(to) = message.to {
            (inner.msg_name, inner.msg_namelen) = name.write(Name::from(to)).raw();
        }
        if message.from.is_some() || message.segment.is_some() {
            let control = control.write(Control::of(&message));
            inner.msg_control = control.words.as_mut_ptr().cast();
            inner.msg_controllen = control.length as _;
        }
        count += 1;
    }
    loop {
        // SAFETY: the first `count` headers are written. What they point to lives until the call returns and is not
        // written to meanwhile: names and controls in the arrays above, parts behind the messages' references. The
        // kernel writes the lengths sent into the headers, and keeps no pointer.
        let sent =
            unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr().cast(), count, libc::MSG_NOSIGNAL) };
        match usize::try_from(sent) {
            Ok(sent) => return Ok(sent),
            Err(_) => match Errno::from_io_error(&io::Error::last_os_error()) {
                Some(Errno::INTR) => {}
                error => return Err(error.unwrap_or(Errno::IO)),
            },
        }
    }
}

/// An address as the kernel has it.
enum Name {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl From<SocketAddr> for Name {
    fn from(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(address) => Self::V4(libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(address) => Self::V6(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: address.scope_id(),
            }),
        }
    }
}

impl Name {
    fn raw(&mut self) -> (*mut c_void, libc::socklen_t) {
        match self {
            Self::V4(name) => ((&raw mut *name).cast(), size_of_val(name) as libc::socklen_t),
            Self::V6(name) => ((&raw mut *name).cast(), size_of_val(name) as libc::socklen_t),
        }
    }
}

/// Control messages, laid out as `cmsg(3)` says: each is a length, a level and a kind, then data, up to a whole word.
struct Control {
    words: [u64; CONTROL_WORDS],
    length: usize,
}

impl Control {
    fn of(message: &Message<'_>) -> Self {
        let mut control = Self { words: [0; CONTROL_WORDS], length: 0 };
        match message.from {
            // An interface, which routing is to choose, then the source. What was sent to is only ever received.
            Some(IpAddr::V4(from)) => {
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&from.octets());
                control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            Some(IpAddr::V6(from)) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&from.octets());
                control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            None => {}
        }
        if let Some(segment) = message.segment {
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
        control
    }

    fn push(&mut self, level: c_int, kind: c_int, data: &[u8]) {
        const WORD: usize = size_of::<u64>();
        const { assert!(size_of::<libc::cmsghdr>() == 2 * WORD, "the layout below is that of 64-bit machines") };
        let words = &mut self.words[self.length / WORD..];
        words[0] = (2 * WORD + data.len()) as u64;
        let (low, high) = if cfg!(target_endian = "little") { (level, kind) } else { (kind, level) };
        words[1] = u64::from(high as u32) << 32 | u64::from(low as u32);
        for (word, bytes) in words[2..].iter_mut().zip(data.chunks(WORD)) {
            let mut whole = [0; WORD];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(whole);
        }
        self.length += (2 + data.len().div_ceil(WORD)) * WORD;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv4Addr, Ipv6Addr, UdpSocket},
        os::fd::AsFd as _,
        time::Duration,
    };

    use super::*;

    /// Sends from all addresses of the machine, and says what arrived from where.
    fn check(bind: &str, from: IpAddr, segment: Option<u16>, expected: &[&str]) {
        let receiver = UdpSocket::bind((from.to_canonical(), 0)).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let sender = UdpSocket::bind(bind).unwrap();
        let to = receiver.local_addr().unwrap();
        let to = match from {
            IpAddr::V6(ip) => SocketAddr::from((ip, to.port())),
            IpAddr::V4(_) => to,
        };
        let parts = [IoSlice::new(b"abcd"), IoSlice::new(b"efg")];
        let message = Message { parts: &parts, segment, to: Some(to), from: Some(from) };
        assert_eq!(send(sender.as_fd(), [message, message].into_iter()), Ok(2));
        for expected in [expected, expected].concat() {
            let mut bytes = [0; 16];
            let (length, source) = receiver.recv_from(&mut bytes).unwrap();
            assert_eq!(&bytes[..length], expected.as_bytes());
            assert_eq!(source, (from.to_canonical(), sender.local_addr().unwrap().port()).into());
        }
    }

    #[test]
    fn messages_leave_from_the_address_asked_for_whole_or_cut() {
        let odd = Ipv4Addr::new(127, 0, 0, 77);
        for (bind, from) in [
            ("0.0.0.0:0", IpAddr::V4(odd)),
            ("[::]:0", IpAddr::V6(odd.to_ipv6_mapped())),
            ("[::]:0", IpAddr::V6(Ipv6Addr::LOCALHOST)),
        ] {
            check(bind, from, None, &["abcdefg"]);
            check(bind, from, Some(3), &["abc", "def", "g"]);
        }
    }

    #[test]
    fn an_error_is_of_the_first_message_and_ends_what_was_sent() {
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = Some(sender.local_addr().unwrap());
        let (small, large) = ([IoSlice::new(b"x")], [IoSlice::new(&[0; 65_508])]);
        let message = |parts| Message { parts, segment: None, to, from: None };
        let send = |messages: &[Message<'_>]| send(sender.as_fd(), messages.iter().copied());
        assert_eq!(send(&[message(&small), message(&large), message(&small)]), Ok(1));
        assert_eq!(send(&[message(&large), message(&small)]), Err(Errno::MSGSIZE));
        assert_eq!(send(&[message(&small); MAX_MESSAGES + 1]), Ok(MAX_MESSAGES));
    }
}
