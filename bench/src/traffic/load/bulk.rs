//! As many bytes as the time takes, over connections that are open throughout.
//!
//! Both ends count, and the counts must agree: what is told has been carried whole. Received bytes are read, as any app
//! reads them, but not looked at; whether they are the right ones is the business of `verify`.

use std::{
    io::{self, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use clap::Parser;

use super::{GRACE, Target};
use crate::traffic::{
    events::{Event, Events, Interest, Poll},
    outcome::{GIB, Outcome},
    protocol::{self, NUMBER, Pattern},
    sockets,
};

/// What is read at once.
const READ_BYTES: usize = 256 * 1024;

#[derive(Debug, Parser)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Stop after so many bytes each way and connection, if that is before the time is over.
    #[arg(long)]
    bytes: Option<u64>,
}

/// Which ways bytes go.
#[derive(Debug, Clone, Copy)]
pub struct Ways {
    up: bool,
    down: bool,
}

impl Ways {
    pub const UP: Self = Self { up: true, down: false };
    pub const DOWN: Self = Self { up: false, down: true };
    pub const BOTH: Self = Self { up: true, down: true };

    fn command(self) -> u8 {
        match self {
            Self { down: false, .. } => protocol::SWALLOW,
            Self { up: false, .. } => protocol::GIVE,
            Self { .. } => protocol::BOTH,
        }
    }
}

/// What was carried.
#[derive(Debug, Default)]
pub struct Carried {
    pub bytes: u64,
    pub errors: u64,
    pub took: Duration,
}

pub fn run(work: &'static str, ways: Ways, args: &Args) -> anyhow::Result<Outcome> {
    let Target { target, seconds } = args.target;
    let streams = connect(target, args.connections)?;
    let carried = carry(streams, ways, args.bytes, seconds)?;
    Ok(Outcome::new(work, "GiB", carried.bytes as f64 / GIB, carried.took).errors(carried.errors))
}

pub fn connect(target: SocketAddr, connections: u16) -> io::Result<Vec<TcpStream>> {
    (0..connections).map(|_| sockets::connect(target)).collect()
}

/// Carries until the time is over or all `bytes` are, then until all that is on the way has arrived.
pub fn carry(streams: Vec<TcpStream>, ways: Ways, bytes: Option<u64>, time: Duration) -> io::Result<Carried> {
    let pattern = Pattern::new();
    let mut scratch = vec![0; READ_BYTES];
    let poll = Poll::new()?;
    let mut flows = Vec::with_capacity(streams.len());
    let start = Instant::now();
    for (token, stream) in streams.into_iter().enumerate() {
        let flow = Flow::begin(stream, ways, bytes)?;
        poll.add(&flow.stream, token as u64, flow.interest())?;
        flows.push(Some(flow));
    }

    let end = start + time;
    let mut ended = false;
    let mut carried = Carried::default();
    let mut open = flows.len();
    let mut events = Events::new();
    while open > 0 {
        let now = Instant::now();
        if now >= end && !ended {
            ended = true;
            for (token, flow) in flows.iter_mut().enumerate() {
                let Some(flow) = flow else { continue };
                flow.end();
                poll.modify(&flow.stream, token as u64, flow.interest())?;
            }
        }
        if now >= end + GRACE {
            carried.errors += open as u64;
            break;
        }
        poll.wait(&mut events, Some(if ended { end + GRACE } else { end }))?;
        for event in events.iter() {
            let Some(flow) = &mut flows[event.token as usize] else { continue };
            let before = flow.interest();
            let done = match flow.ready(event, &pattern, &mut scratch) {
                Ok(done) => done,
                Err(_) => {
                    carried.errors += 1;
                    true
                }
            };
            let interest = flow.interest();
            if done {
                carried.bytes += flow.carried();
                flows[event.token as usize] = None;
                open -= 1;
            } else if interest != before {
                poll.modify(&flow.stream, event.token, interest)?;
            }
        }
    }
    carried.bytes += flows.iter().flatten().map(Flow::carried).sum::<u64>();
    carried.took = start.elapsed();
    Ok(carried)
}

/// One connection.
struct Flow {
    stream: TcpStream,
    ways: Ways,
    /// Bytes that either way is to carry.
    each: u64,
    sent: u64,
    received: u64,
    /// This side has ended; the backend's last bytes are its count.
    ended: bool,
    last: [u8; NUMBER],
}

impl Flow {
    fn begin(mut stream: TcpStream, ways: Ways, bytes: Option<u64>) -> io::Result<Self> {
        let each = bytes.unwrap_or(u64::MAX);
        let command = protocol::command(ways.command(), each);
        stream.write_all(if ways.down { &command } else { &command[..1] })?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, ways, each, sent: 0, received: 0, ended: false, last: [0; NUMBER] })
    }

    fn interest(&self) -> Interest {
        if self.ways.up && !self.ended && self.sent < self.each { Interest::IN | Interest::OUT } else { Interest::IN }
    }

    /// The backend is told that this side has no more, which ends its side too.
    fn end(&mut self) {
        if !self.ended {
            self.ended = true;
            // A connection that is gone says so when it is read.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// Returns whether it is over, and well.
    fn ready(&mut self, event: Event, pattern: &Pattern, scratch: &mut [u8]) -> io::Result<bool> {
        if event.is_readable() {
            let read = sockets::receive(&self.stream, scratch)?;
            match read {
                Some(0) => return self.over(),
                Some(read) => {
                    self.received += read as u64;
                    if self.ended {
                        self.remember_last(&scratch[..read]);
                    }
                }
                None => {}
            }
        }
        if event.is_writable() && self.interest().contains(Interest::OUT) {
            let chunk = pattern.from(self.sent, self.each - self.sent);
            self.sent += sockets::send(&self.stream, chunk)?.unwrap_or(0) as u64;
        }
        if self.ways.up && self.sent == self.each && (!self.ways.down || self.received == self.each) {
            self.end();
        }
        Ok(false)
    }

    fn remember_last(&mut self, bytes: &[u8]) {
        let new = &bytes[bytes.len().saturating_sub(NUMBER)..];
        self.last.copy_within(new.len().., 0);
        self.last[NUMBER - new.len()..].copy_from_slice(new);
    }

    /// The backend has ended its side: it must have got all, and given all that was not cut short.
    fn over(&mut self) -> io::Result<bool> {
        let whole = match self.ways {
            Ways { up: true, .. } => u64::from_be_bytes(self.last) == self.sent,
            Ways { up: false, .. } => self.ended || self.received == self.each,
        };
        if whole { Ok(true) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Bytes, without commands and counts.
    fn carried(&self) -> u64 {
        let given = if self.ways.up { self.received.saturating_sub(NUMBER as u64) } else { self.received };
        if self.ways.down { self.sent + given } else { self.sent }
    }
}
