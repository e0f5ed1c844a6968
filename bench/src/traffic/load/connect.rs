//! Connect, one message and its answer, close: closed loop, with so many connections on the way at once.
//!
//! The backend closes first, so the side that waits in TIME_WAIT is, at every hop, the one that listens: neither load
//! nor proxy runs out of local ports, and every connection has a normal end.

use std::{
    cmp::Ordering,
    io,
    net::{SocketAddr, TcpStream},
    time::Instant,
};

use anyhow::ensure;
use clap::Parser;

use super::{GRACE, Size, Target};
use crate::traffic::{
    events::{Event, Events, Interest, Poll},
    histogram::Histogram,
    outcome::Outcome,
    protocol::{self, NUMBER},
    sockets,
};

/// Connections in a row that fail before it is given up.
const MAX_FAILURES_IN_A_ROW: u64 = 1000;

#[derive(Debug, Parser)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Connections on the way at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    #[command(flatten)]
    size: Size,
}

struct Visit {
    stream: TcpStream,
    since: Instant,
    asked: bool,
    received: usize,
}

pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    let Target { target, seconds } = args.target;
    let message = request(args.size.bytes())?;
    let mut scratch = vec![0; message.len()];
    let poll = Poll::new()?;
    let mut visits = Vec::with_capacity(args.connections.into());
    let start = Instant::now();
    for token in 0..u64::from(args.connections) {
        visits.push(Some(Visit::begin(target, &message, &poll, token)?));
    }

    let end = start + seconds;
    let (mut open, mut errors, mut failures) = (visits.len(), 0, 0);
    let (mut units, mut latency) = (0_u64, Histogram::default());
    let mut events = Events::new();
    while open > 0 && Instant::now() < end + GRACE {
        poll.wait(&mut events, Some(end + GRACE))?;
        for event in events.iter() {
            let place = &mut visits[event.token as usize];
            let Some(visit) = place else { continue };
            match visit.ready(event, &message, &mut scratch, &poll, &mut latency) {
                Ok(false) => continue,
                Ok(true) => (units, failures) = (units + 1, 0),
                Err(_) => (errors, failures) = (errors + 1, failures + 1),
            }
            // Closed before the next is opened, which takes its descriptor.
            *place = None;
            open -= 1;
            if Instant::now() < end && failures < MAX_FAILURES_IN_A_ROW {
                match Visit::begin(target, &message, &poll, event.token) {
                    Ok(visit) => {
                        *place = Some(visit);
                        open += 1;
                    }
                    Err(_) => errors += 1,
                }
            }
        }
    }
    let outcome = Outcome::new("connect", "connections", units as f64, start.elapsed());
    Ok(outcome.errors(errors + open as u64).latency(&latency))
}

/// A message of so many bytes that begins with the command.
fn request(size: usize) -> anyhow::Result<Vec<u8>> {
    ensure!(size > NUMBER, "give --size {} or more: the message says how long it is", NUMBER + 1);
    let mut message = protocol::command(protocol::CLOSE, size as u64).to_vec();
    message.resize(size, b'm');
    Ok(message)
}

impl Visit {
    /// Connects and asks; where connecting takes longer, asking waits for it.
    fn begin(target: SocketAddr, message: &[u8], poll: &Poll, token: u64) -> io::Result<Self> {
        let since = Instant::now();
        let mut visit = Self { stream: sockets::begin_connect(target)?, since, asked: false, received: 0 };
        visit.ask(message)?;
        let interest = if visit.asked { Interest::IN | Interest::RDHUP } else { Interest::OUT };
        poll.add(&visit.stream, token, interest)?;
        Ok(visit)
    }

    fn ask(&mut self, message: &[u8]) -> io::Result<()> {
        self.asked = sockets::send(&self.stream, message)?.is_some();
        Ok(())
    }

    /// Returns whether the answer is whole and the backend has closed.
    fn ready(
        &mut self,
        event: Event,
        message: &[u8],
        scratch: &mut [u8],
        poll: &Poll,
        latency: &mut Histogram,
    ) -> io::Result<bool> {
        if !self.asked {
            self.ask(message)?;
            poll.modify(&self.stream, event.token, Interest::IN | Interest::RDHUP)?;
            return Ok(false);
        }
        let Some(read) = sockets::receive(&self.stream, scratch)? else { return Ok(false) };
        if read > 0 {
            self.received += read;
            if self.received == message.len() {
                latency.record(self.since.elapsed());
            }
        }
        // The event has told of the end already: there is nothing behind a whole answer.
        let ended = read == 0 || event.flags.contains(Interest::RDHUP);
        match self.received.cmp(&message.len()) {
            Ordering::Equal => Ok(ended),
            Ordering::Less if read == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            Ordering::Less => Ok(false),
            Ordering::Greater => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}
