//! The new process's side: what it gets from the old one.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::net::{AddressFamily, SocketType, sockopt};
use tokio::{sync::OnceCell, time::timeout};

use super::{
    STARTS_WITHIN,
    message::{Channel, Greeting, Message, PROTOCOL, SocketUse, is_end, say_last},
};
use crate::forwarder::{ExportedSession, PortSockets, Spread};

/// How long the old process may take to finish what it has begun before it hands out what it has.
const HANDS_OUT_WITHIN: Duration = Duration::from_secs(60);

/// The process that this one is to follow.
#[derive(Debug)]
pub struct Predecessor {
    socket: OwnedFd,
    /// Made where there is a runtime.
    channel: OnceCell<Channel>,
}

/// What it hands over, but its sessions.
#[derive(Debug, Default)]
pub struct Estate {
    /// For [`store::open`](crate::store::open).
    pub store: Option<OwnedFd>,
    /// What each API listens on, by its name.
    pub apis: HashMap<String, OwnedFd>,
    /// The bound sockets of all ports.
    pub ports: PortSockets,
    /// Over how many threads it forwards, if it still does.
    pub threads: Option<usize>,
}

impl Predecessor {
    /// The one that has started this process, if one has: standard input is an end of a pair then, as nobody else gives a
    /// process one. A mark in the environment would go on to whatever is started later. Nobody reads from there any more.
    ///
    /// # Errors
    /// The system's.
    pub fn find() -> io::Result<Option<Self>> {
        if !is_end_of_a_pair(io::stdin().as_fd()) {
            return Ok(None);
        }
        let socket = io::stdin().as_fd().try_clone_to_owned()?;
        rustix::stdio::dup2_stdin(&File::open("/dev/null")?)?;
        Ok(Some(Self { socket, channel: OnceCell::new() }))
    }

    /// Says that this process cannot go on.
    pub fn refuse(&self, reason: &str) {
        // One that does not hear it sees that this process ends.
        let _ = say_last(&self.socket, &Message::Refused { reason: reason.chars().take(4096).collect() });
    }

    /// Greets, and waits for all but the sessions.
    ///
    /// # Errors
    /// When the predecessor has ended, does not speak as this process does, or takes too long.
    pub async fn estate(&self) -> anyhow::Result<Estate> {
        let channel = self.channel().await?;
        channel.send(&Message::Hello(Greeting::own()), &[]).await?;
        match timeout(STARTS_WITHIN, channel.receive()).await.context("the old process does not greet")?? {
            (Message::Hello(Greeting { protocol: PROTOCOL, version, process }), _) => {
                tracing::info!(process, version, "a running process hands over to this one");
            }
            (Message::Hello(Greeting { protocol, version, .. }), _) => bail!(
                "the running harbor {version} hands over by protocol {protocol}, and this version knows {PROTOCOL}: \
                 restart without a hand-over"
            ),
            (other, _) => bail!("the old process says {other:?} where it should greet"),
        }
        let mut estate = Estate::default();
        loop {
            match timeout(HANDS_OUT_WITHIN, channel.receive()).await.context("the old process hands nothing out")?? {
                (Message::Sockets(uses), sockets) => {
                    if uses.len() != sockets.len() {
                        bail!("the old process names {} descriptors and sends {}", uses.len(), sockets.len());
                    }
                    for (what, socket) in uses.into_iter().zip(sockets) {
                        match what {
                            SocketUse::Store => estate.store = Some(socket),
                            SocketUse::Api(name) => drop(estate.apis.insert(name, socket)),
                            SocketUse::Port => estate.ports.sockets.push(socket),
                        }
                    }
                }
                (Message::Spreads(spreads), _) => {
                    let spreads = spreads.into_iter().map(|(port, sockets, seed)| (port, Spread::new(sockets, seed)));
                    estate.ports.spreads.extend(spreads);
                }
                (Message::Estate { threads }, _) => {
                    estate.threads = Some(threads);
                    return Ok(estate);
                }
                (other, _) => bail!("the old process says {other:?} where it should hand out sockets"),
            }
        }
    }

    /// Says that this process is prepared, and waits for the sessions. From then on nobody else serves.
    ///
    /// When the predecessor ends instead, the sockets are still here, and nobody else serves either: there are no sessions.
    ///
    /// # Errors
    /// When the predecessor does not speak as this process does.
    pub async fn sessions(&self) -> anyhow::Result<Vec<ExportedSession>> {
        let channel = self.channel().await?;
        let mut sessions = Vec::new();
        let outcome = async {
            channel.send(&Message::Prepared, &[]).await?;
            loop {
                match channel.receive().await? {
                    (Message::Sessions(notes), sockets) => {
                        let now = Instant::now();
                        let revived =
                            notes.into_iter().zip(sockets).filter_map(|(note, socket)| note.revive(socket, now));
                        sessions.extend(revived);
                    }
                    (Message::Over, _) => return Ok(()),
                    (other, _) => {
                        let said = format!("the old process says {other:?} where it should hand over sessions");
                        return Err(io::Error::new(io::ErrorKind::InvalidData, said));
                    }
                }
            }
        };
        match outcome.await {
            Err(error) if is_end(&error) => {
                tracing::warn!("the old process has ended before it had handed over all sessions: going on without");
            }
            outcome => outcome?,
        }
        Ok(sessions)
    }

    /// Says that this process serves.
    pub async fn serving(&self) {
        let said = async { self.channel().await?.send(&Message::Serving, &[]).await };
        if let Err(error) = said.await {
            tracing::warn!(%error, "the old process has ended before it heard that this one serves");
        }
    }

    async fn channel(&self) -> io::Result<&Channel> {
        self.channel.get_or_try_init(|| async { Channel::new(self.socket.try_clone()?) }).await
    }
}

/// Whether it is a socket such as [`Channel::pair`] makes.
fn is_end_of_a_pair(descriptor: BorrowedFd<'_>) -> bool {
    sockopt::socket_domain(descriptor) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(descriptor) == Ok(SocketType::SEQPACKET)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn a_predecessor_is_told_from_whatever_else_standard_input_may_be() {
        let (_ours, theirs) = Channel::pair().unwrap();
        assert!(is_end_of_a_pair(theirs.as_fd()));
        let (stream, _other) = UnixStream::pair().unwrap();
        assert!(!is_end_of_a_pair(stream.as_fd()));
        assert!(!is_end_of_a_pair(File::open("/dev/null").unwrap().as_fd()));
        assert!(Predecessor::find().unwrap().is_none());
    }
}
