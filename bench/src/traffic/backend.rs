//! The app behind the proxies: it does what each connection asks for.
//!
//! One thread accepts, answers small messages and datagrams; another carries bulk, so that who is chatty never waits
//! for bytes of others.

mod connection;
mod datagrams;

use std::{
    io::{self, Write as _},
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, OwnedFd},
    sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    thread,
};

use anyhow::Context as _;
use clap::Parser;
use rustix::{
    event::{EventfdFlags, eventfd},
    io::Errno,
    net::{SocketFlags, accept_with},
};

use self::{
    connection::{Connection, Progress},
    datagrams::Datagrams,
};
use super::{
    events::{Event, Events, Interest, Poll},
    protocol::Pattern,
    sockets,
};

/// Connections that wait for the thread that carries bulk.
const MAX_HANDED_OVER: usize = 1024;
/// Connections that are accepted before others get their turn.
const ACCEPTS_PER_TURN: usize = 64;
/// What one read may bring.
const SCRATCH_BYTES: usize = 256 * 1024;

const STOP: u64 = u64::MAX;
const LISTENER: u64 = u64::MAX - 1;
const DATAGRAMS: u64 = u64::MAX - 2;
const HANDED_OVER: u64 = u64::MAX - 3;

#[derive(Debug, Parser)]
pub struct Args {
    /// Where to serve TCP and UDP.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
}

/// Serves until it is killed or stdin, when that is a pipe or a terminal, is closed.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let backend = Backend::bind(args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;
    writeln!(io::stdout(), "ready")?;
    backend.serve(io::stdin())?;
    Ok(())
}

pub struct Backend {
    listener: TcpListener,
    datagrams: Datagrams,
}

impl Backend {
    /// Takes the same port for TCP and UDP.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = sockets::listen(address)?;
        let datagrams = Datagrams::bind(listener.local_addr()?)?;
        Ok(Self { listener, datagrams })
    }

    #[cfg(test)]
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is closed, when that is something that can be waited for.
    pub fn serve(mut self, stop: impl AsFd) -> io::Result<()> {
        let pattern = Pattern::new();
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let (sender, receiver) = sync_channel(MAX_HANDED_OVER);
        let (pattern, wake) = (&pattern, &wake);
        thread::scope(|scope| {
            let carrier = scope.spawn(move || carry_bulk(pattern, wake, &receiver));
            let served = self.answer(pattern, stop.as_fd(), wake, &sender);
            drop(sender);
            rouse(wake);
            let carried = carrier.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            served.and(carried)
        })
    }

    /// Accepts and answers; connections that turn out to be bulk go to the other thread.
    fn answer(
        &mut self,
        pattern: &Pattern,
        stop: impl AsFd,
        wake: &OwnedFd,
        bulk: &SyncSender<Connection>,
    ) -> io::Result<()> {
        let mut connections = Connections::new(pattern)?;
        match connections.poll.add(stop, STOP, Interest::IN) {
            // A file has no end to wait for.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => {}
            result => result?,
        }
        connections.poll.add(&self.listener, LISTENER, Interest::IN)?;
        connections.poll.add(&self.datagrams, DATAGRAMS, Interest::IN)?;
        let mut events = Events::new();
        loop {
            connections.poll.wait(&mut events, None)?;
            for event in events.iter() {
                match event.token {
                    STOP => return Ok(()),
                    LISTENER => self.accept(&mut connections)?,
                    DATAGRAMS => self.datagrams.answer(),
                    _ => {
                        if let Some(connection) = connections.ready(event)? {
                            bulk.send(connection).map_err(io::Error::other)?;
                            rouse(wake);
                        }
                    }
                }
            }
        }
    }

    fn accept(&self, connections: &mut Connections<'_>) -> io::Result<()> {
        for _ in 0..ACCEPTS_PER_TURN {
            match accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => connections.insert(Connection::new(socket))?,
                Err(Errno::AGAIN) => break,
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn carry_bulk(pattern: &Pattern, wake: &OwnedFd, handed_over: &Receiver<Connection>) -> io::Result<()> {
    let mut connections = Connections::new(pattern)?;
    connections.poll.add(wake, HANDED_OVER, Interest::IN)?;
    let mut events = Events::new();
    loop {
        connections.poll.wait(&mut events, None)?;
        for event in events.iter() {
            if event.token != HANDED_OVER {
                connections.ready(event)?;
                continue;
            }
            rustix::io::read(wake, &mut [0; 8])?;
            loop {
                match handed_over.try_recv() {
                    Ok(connection) => connections.insert(connection)?,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
            }
        }
    }
}

fn rouse(wake: &OwnedFd) {
    // Full means that it is awake.
    let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
}

/// The connections of one thread. An event of a connection that is gone may reach the next one in its place, which then
/// finds nothing to read.
struct Connections<'a> {
    poll: Poll,
    pattern: &'a Pattern,
    scratch: Box<[u8]>,
    slots: Vec<Option<Connection>>,
    free: Vec<usize>,
}

impl<'a> Connections<'a> {
    fn new(pattern: &'a Pattern) -> io::Result<Self> {
        let scratch = vec![0; SCRATCH_BYTES].into();
        Ok(Self { poll: Poll::new()?, pattern, scratch, slots: Vec::new(), free: Vec::new() })
    }

    fn insert(&mut self, connection: Connection) -> io::Result<()> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.poll.add(connection.socket(), slot as u64, connection.interest())?;
        self.slots[slot] = Some(connection);
        Ok(())
    }

    /// Does what an event allows. Returns a connection that has become bulk; whoever answers has no more of it.
    fn ready(&mut self, event: Event) -> io::Result<Option<Connection>> {
        let slot = event.token as usize;
        let Some(connection) = &mut self.slots[slot] else { return Ok(None) };
        let before = connection.interest();
        match connection.ready(event, &mut self.scratch, self.pattern) {
            Ok(Progress::Open) => {
                let interest = connection.interest();
                if interest != before {
                    self.poll.modify(connection.socket(), event.token, interest)?;
                }
                Ok(None)
            }
            Ok(Progress::Bulk) => {
                self.poll.remove(connection.socket())?;
                self.free.push(slot);
                Ok(self.slots[slot].take())
            }
            // Who resets a connection does it on purpose.
            Ok(Progress::Done) | Err(_) => {
                self.free.push(slot);
                self.slots[slot] = None;
                Ok(None)
            }
        }
    }
}
