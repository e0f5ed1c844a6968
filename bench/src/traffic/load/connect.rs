//! Connect, one message and its answer, close: closed loop, with so many connections on the way at once.
//!
//! The backend closes first, so the side that waits in TIME_WAIT is, at every hop, the one that listens: neither load
//! nor proxy runs out of local ports, and every connection has a normal end.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    time::Instant,
};

use clap::Parser;

use super::{GRACE, Target};
use crate::traffic::{
    events::{Event, Events, Interest, Poll},
    histogram::Histogram,
    outcome::Outcome,
    protocol::{self, MESSAGE},
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
}

struct Visit {
    stream: TcpStream,
    since: Instant,
    asked: bool,
    received: usize,
}

pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    let Target { target, seconds } = args.target;
    let poll = Poll::new()?;
    let mut visits = Vec::with_capacity(args.connections.into());
    let start = Instant::now();
    for token in 0..u64::from(args.connections) {
        visits.push(Some(Visit::begin(target, &poll, token)?));
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
            match visit.ready(event, &poll, &mut latency) {
                Ok(false) => continue,
                Ok(true) => (units, failures) = (units + 1, 0),
                Err(_) => (errors, failures) = (errors + 1, failures + 1),
            }
            // Closed before the next is opened, which takes its descriptor.
            *place = None;
            open -= 1;
            if Instant::now() < end && failures < MAX_FAILURES_IN_A_ROW {
                match Visit::begin(target, &poll, event.token) {
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

impl Visit {
    /// Connects and asks; where connecting takes longer, asking waits for it.
    fn begin(target: SocketAddr, poll: &Poll, token: u64) -> io::Result<Self> {
        let since = Instant::now();
        let mut visit = Self { stream: sockets::begin_connect(target)?, since, asked: false, received: 0 };
        visit.ask()?;
        let interest = if visit.asked { Interest::IN | Interest::RDHUP } else { Interest::OUT };
        poll.add(&visit.stream, token, interest)?;
        Ok(visit)
    }

    fn ask(&mut self) -> io::Result<()> {
        self.asked = sockets::send(&self.stream, &[protocol::CLOSE; MESSAGE])?.is_some();
        Ok(())
    }

    /// Returns whether the answer is whole and the backend has closed.
    fn ready(&mut self, event: Event, poll: &Poll, latency: &mut Histogram) -> io::Result<bool> {
        if !self.asked {
            self.ask()?;
            poll.modify(&self.stream, event.token, Interest::IN | Interest::RDHUP)?;
            return Ok(false);
        }
        let mut answer = [0; MESSAGE];
        let Some(read) = sockets::receive(&self.stream, &mut answer)? else { return Ok(false) };
        if read > 0 {
            self.received += read;
            if self.received == MESSAGE {
                latency.record(self.since.elapsed());
            }
        }
        // The event has told of the end already: there is nothing behind a whole answer.
        let ended = read == 0 || event.flags.contains(Interest::RDHUP);
        match self.received {
            MESSAGE if ended => Ok(true),
            0..MESSAGE if read == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            0..=MESSAGE => Ok(false),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}
