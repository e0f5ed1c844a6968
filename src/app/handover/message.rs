//! What the two processes say to each other: JSON in datagrams that arrive whole and in order, with descriptors.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    cmsg_space,
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
};
use serde::{Deserialize, Serialize};
use tokio::{io::Interest, net::UnixStream};

use crate::{
    forwarder::{
        Carried, ExportedSession,
        sessions::{Past, Source},
    },
    model::ServiceInstanceId,
};

/// The version of what is said after the greetings. Two processes that do not have the same part before anything is
/// handed over.
pub const PROTOCOL: u32 = 1;

/// Descriptors of one message: the kernel takes 253.
pub const MAX_DESCRIPTORS: usize = 250;

/// Bytes of one message: the kernel's usual buffer takes a little more.
const MAX_MESSAGE_BYTES: usize = 128 * 1024;

/// Sessions of one message, however long their ids are.
pub(super) const SESSIONS_AT_ONCE: usize = 64;

/// Ports of one message that says by what rule they are spread.
pub(super) const SPREADS_AT_ONCE: usize = 1000;

/// One step.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// Who speaks; the first of each side. Its form is the same in all versions.
    Hello(Greeting),
    /// The new process cannot go on.
    Refused {
        /// Why not, for whoever asked for the restart.
        reason: String,
    },
    /// Descriptors, and what each is for.
    Sockets(Vec<SocketUse>),
    /// UDP ports that have several sockets for each address: how many, and the seed of the rule by which they share the
    /// clients.
    Spreads(Vec<(u16, usize, u32)>),
    /// That was all but the sessions.
    Estate {
        /// Over how many threads the old process forwards: the new one does too.
        threads: usize,
    },
    /// The new process has all ports and knows the backends.
    Prepared,
    /// UDP sessions; the descriptors are their sockets.
    Sessions(Vec<Session>),
    /// That was all. The old process accepts and receives nothing more.
    Over,
    /// The new process accepts and receives. There is no way back.
    Serving,
}

/// Who speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// Its [`PROTOCOL`].
    pub protocol: u32,
    /// Its version of Harbor.
    pub version: String,
    /// Its process id.
    pub process: u32,
}

/// What a descriptor is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketUse {
    /// What [`Store::hand_over`](crate::store::Store::hand_over) gave.
    Store,
    /// The API of this name listens on it.
    Api(String),
    /// A port is served by it. Which one, and how, the socket says itself.
    Port,
}

/// A UDP session. Times are in microseconds before it was written: the two processes need no common clock.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    service_instance_id: String,
    client: SocketAddr,
    local: Option<IpAddr>,
    address: u8,
    backend: SocketAddr,
    joins: bool,
    source: IpAddr,
    opened: u64,
    active: u64,
    answered: bool,
    to_backend: u64,
    to_client: u64,
    #[serde(default)]
    datagrams_to_backend: u64,
    #[serde(default)]
    datagrams_to_client: u64,
}

impl Greeting {
    /// That of this process.
    #[must_use]
    pub fn own() -> Self {
        Self { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").into(), process: std::process::id() }
    }
}

impl Session {
    pub(super) fn of(session: &ExportedSession, now: Instant) -> Self {
        let before = |moment| u64::try_from(now.saturating_duration_since(moment).as_micros()).unwrap_or(u64::MAX);
        let Past { source, opened_at, active_at, answered } = session.past;
        Self {
            service_instance_id: session.service_instance_id.to_string(),
            client: session.client,
            local: session.local,
            address: session.address,
            backend: session.backend,
            joins: session.joins,
            source: source.address(),
            opened: before(opened_at),
            active: before(active_at),
            answered,
            to_backend: session.to_backend.bytes,
            to_client: session.to_client.bytes,
            datagrams_to_backend: session.to_backend.datagrams,
            datagrams_to_client: session.to_client.datagrams,
        }
    }

    /// The session with its socket, unless it makes no sense.
    pub(super) fn revive(self, upstream: OwnedFd, now: Instant) -> Option<ExportedSession> {
        let moment = |before| now.checked_sub(Duration::from_micros(before));
        Some(ExportedSession {
            service_instance_id: ServiceInstanceId::new(self.service_instance_id).ok()?,
            client: self.client,
            local: self.local,
            address: self.address,
            backend: self.backend,
            upstream,
            joins: self.joins,
            past: Past {
                source: Source::of(self.source),
                opened_at: moment(self.opened)?,
                active_at: moment(self.active)?,
                answered: self.answered,
            },
            to_backend: Carried { bytes: self.to_backend, datagrams: self.datagrams_to_backend },
            to_client: Carried { bytes: self.to_client, datagrams: self.datagrams_to_client },
        })
    }
}

/// One end of the pair. It is no stream: each message is sent and received whole.
#[derive(Debug)]
pub struct Channel(UnixStream);

impl Channel {
    /// A channel, and the end that the other process gets.
    ///
    /// # Errors
    /// The system's.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (own, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self::new(own)?, other))
    }

    /// A channel over an end that this process was given.
    ///
    /// # Errors
    /// The system's.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        UnixStream::from_std(socket.into()).map(Self)
    }

    /// Sends a message with copies of at most [`MAX_DESCRIPTORS`] descriptors, once there is room for it: a process that reads
    /// nothing has none at some time, for ever.
    ///
    /// # Errors
    /// The system's; a message that is too long.
    pub async fn send(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = encode(message)?;
        self.0.async_io(Interest::WRITABLE, || send_now(self.0.as_fd(), &bytes, descriptors)).await
    }

    /// The next message, with its descriptors.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] when the other process has ended; the system's; what is no message.
    pub async fn receive(&self) -> io::Result<(Message, Vec<OwnedFd>)> {
        self.0.async_io(Interest::READABLE, || receive_now(self.0.as_fd())).await
    }
}

/// Whether the other process has ended.
pub(super) fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe)
}

fn encode(message: &Message) -> io::Result<Vec<u8>> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a message is too long"));
    }
    Ok(bytes)
}

/// Sends a message that has no descriptors, at once or not at all: for a process that ends.
pub(super) fn say_last(socket: &OwnedFd, message: &Message) -> io::Result<()> {
    send_now(socket.as_fd(), &encode(message)?, &[])
}

fn send_now(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut extras = SendAncillaryBuffer::new(&mut space);
    let room = descriptors.len() <= MAX_DESCRIPTORS;
    if !room || !descriptors.is_empty() && !extras.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a message has too many descriptors"));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut extras, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive_now(socket: BorrowedFd<'_>) -> io::Result<(Message, Vec<OwnedFd>)> {
    let mut bytes = vec![0; MAX_MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut extras = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received = match recvmsg(socket, &mut parts, &mut extras, RecvFlags::CMSG_CLOEXEC) {
        Ok(received) if received.bytes == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
        // It was killed with something unread.
        Err(Errno::CONNRESET) => return Err(io::ErrorKind::UnexpectedEof.into()),
        received => received?,
    };
    let descriptors = extras.drain().flat_map(|extra| match extra {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let descriptors = descriptors.collect();
    // Of descriptors that find no room in this process's limit the kernel leaves out the last.
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::other("a message did not arrive whole: is the limit of descriptors too low?"));
    }
    Ok((serde_json::from_slice(&bytes[..received.bytes])?, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_arrive_whole_with_their_descriptors() {
        let (ours, other) = Channel::pair().unwrap();
        let theirs = Channel::new(other).unwrap();
        let hello = Message::Hello(Greeting::own());
        let many = vec![ours.0.as_fd(); MAX_DESCRIPTORS];
        ours.send(&Message::Sockets(vec![SocketUse::Api("broker".into()), SocketUse::Port]), &many).await.unwrap();
        ours.send(&hello, &[]).await.unwrap();
        let (sockets, descriptors) = theirs.receive().await.unwrap();
        assert_eq!(
            (sockets, descriptors.len()),
            (Message::Sockets(vec![SocketUse::Api("broker".into()), SocketUse::Port]), MAX_DESCRIPTORS)
        );
        assert_eq!(theirs.receive().await.unwrap().0, hello);
        drop((ours, descriptors));
        assert_eq!(theirs.receive().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn what_is_too_large_or_no_message_is_an_error() {
        let (ours, other) = Channel::pair().unwrap();
        let reason = "x".repeat(MAX_MESSAGE_BYTES);
        assert!(ours.send(&Message::Refused { reason }, &[]).await.is_err());
        let many = vec![other.as_fd(); MAX_DESCRIPTORS + 1];
        assert!(ours.send(&Message::Over, &many).await.is_err());
        rustix::net::send(&other, br#"{"later":1}"#, SendFlags::empty()).unwrap();
        assert_eq!(ours.receive().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn the_longest_sessions_and_all_spreads_fit_into_a_message() {
        let session = || Session {
            service_instance_id: "\u{0}".repeat(crate::model::id::MAX_ID_BYTES),
            client: "[1111:1111:1111:1111:1111:1111:1111:1111]:65535".parse().unwrap(),
            local: Some("1111:1111:1111:1111:1111:1111:1111:1111".parse().unwrap()),
            address: 31,
            backend: "[1111:1111:1111:1111:1111:1111:1111:1111]:65535".parse().unwrap(),
            joins: false,
            source: "1111:1111:1111:1111::".parse().unwrap(),
            opened: u64::MAX,
            active: u64::MAX,
            answered: false,
            to_backend: u64::MAX,
            to_client: u64::MAX,
            datagrams_to_backend: u64::MAX,
            datagrams_to_client: u64::MAX,
        };
        assert!(encode(&Message::Sessions((0..SESSIONS_AT_ONCE).map(|_| session()).collect())).is_ok());
        assert!(encode(&Message::Spreads(vec![(u16::MAX, usize::MAX, u32::MAX); SPREADS_AT_ONCE])).is_ok());
        assert!(encode(&Message::Sockets(vec![SocketUse::Api("announce".into()); MAX_DESCRIPTORS])).is_ok());
    }

    #[test]
    fn the_greeting_has_the_form_of_all_versions() {
        let hello = r#"{"hello":{"protocol":9,"version":"9.0.0","process":7,"more":true}}"#;
        let Message::Hello(greeting) = serde_json::from_str(hello).unwrap() else { panic!("no greeting") };
        assert_eq!(greeting, Greeting { protocol: 9, version: "9.0.0".into(), process: 7 });
    }
}
