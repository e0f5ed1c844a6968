//! What systemd, or whoever speaks its protocol, is told of this process: how it is, and which sockets to keep for the next
//! one.

use std::{
    env,
    ffi::OsStr,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use rustix::{
    cmsg_space,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    time::{ClockId, clock_gettime},
};

/// Descriptors of one message: the kernel takes 253.
const MAX_DESCRIPTORS: usize = 250;

/// How long it may take a message. One that reads none does not hold up ports.
const TAKES_WITHIN: Duration = Duration::from_millis(100);

/// The service manager, if there is one that wants to be told.
#[derive(Debug, Default)]
pub struct ServiceManager {
    socket: Option<UnixDatagram>,
}

impl ServiceManager {
    /// The one that `NOTIFY_SOCKET` names.
    #[must_use]
    pub fn from_environment() -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Self::default() };
        match connect(&name) {
            Ok(socket) => Self { socket: Some(socket) },
            Err(error) => {
                tracing::warn!(?name, %error, "the service manager cannot be told anything");
                Self::default()
            }
        }
    }

    /// This process serves.
    pub fn ready(&self) {
        self.tell("READY=1\nSTATUS=Serving", &[]);
    }

    /// It does what it is doing until it is ready again.
    pub fn reloading(&self, what: &str) {
        let now = clock_gettime(ClockId::Monotonic);
        let microseconds = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}\nSTATUS={what}"), &[]);
    }

    /// It is about to end.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=Draining", &[]);
    }

    /// Another process is the service from now on.
    pub fn succeeded_by(&self, process: u32) {
        self.tell(&format!("MAINPID={process}\nREADY=1\nSTATUS=Serving"), &[]);
    }

    /// Keeps sockets under a name: the next process gets them when this one dies.
    pub fn keep(&self, name: &str, sockets: &[BorrowedFd<'_>]) {
        for sockets in sockets.chunks(MAX_DESCRIPTORS) {
            // Not watched: what is wrong with a socket is no reason to let it go.
            self.tell(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), sockets);
        }
    }

    /// Lets go of what is kept under a name.
    pub fn let_go(&self, name: &str) {
        self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]);
    }

    fn tell(&self, state: &str, sockets: &[BorrowedFd<'_>]) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = send(socket, state, sockets) {
            tracing::warn!(state, %error, "the service manager was not told");
        }
    }
}

fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match name.as_bytes() {
        [b'@', name @ ..] => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        _ => socket.connect(name)?,
    }
    socket.set_write_timeout(Some(TAKES_WITHIN))?;
    Ok(socket)
}

fn send(socket: &UnixDatagram, state: &str, sockets: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut extras = SendAncillaryBuffer::new(&mut space);
    let fits = sockets.is_empty() || extras.push(SendAncillaryMessage::ScmRights(sockets));
    debug_assert!(fits, "there is room for so many");
    sendmsg(socket, &[IoSlice::new(state.as_bytes())], &mut extras, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The sockets of an earlier process of this service that the manager has kept, with the names they were kept under. To be
/// asked once, before there are threads.
#[must_use]
pub fn kept_sockets() -> Vec<(String, OwnedFd)> {
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut kept = listenfd::ListenFd::from_env();
    let names = names.split(':').chain(std::iter::repeat(""));
    let sockets = (0..kept.len()).zip(names).filter_map(|(number, name)| {
        let tcp = kept.take_tcp_listener(number).ok().flatten().map(OwnedFd::from);
        let socket = tcp.or_else(|| kept.take_udp_socket(number).ok().flatten().map(OwnedFd::from))?;
        rustix::io::ioctl_fionbio(&socket, true).ok()?;
        Some((name.to_owned(), socket))
    });
    sockets.collect()
}
