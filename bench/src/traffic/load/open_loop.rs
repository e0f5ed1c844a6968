//! Messages at scheduled times, evenly over some connections: open loop.
//!
//! A latency counts from when the message was due, not from when it was sent: one that is due while its connection
//! still waits for an answer queues, and its waiting is told. So a proxy that stops for a while cannot hide what it
//! delayed.

use std::{
    io,
    net::TcpStream,
    time::{Duration, Instant},
};

use clap::Parser;

use super::{GRACE, Size, Target, exchange::send_whole, rate};
use crate::traffic::{
    events::{Events, Interest, Poll},
    histogram::Histogram,
    outcome::Outcome,
    schedule::Schedule,
    sockets,
};

#[derive(Debug, Parser)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Messages per second, over all connections.
    #[arg(long, default_value = "10000", value_parser = rate)]
    rate: f64,
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    #[command(flatten)]
    size: Size,
}

/// What became of the messages.
pub struct Answered {
    pub latency: Histogram,
    /// How late messages were sent whose connection was free: the load's own part of the latency.
    pub own_delay: Histogram,
    pub errors: u64,
    pub took: Duration,
}

pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    let Target { target, seconds } = args.target;
    let streams = sockets::connect_echo(target, args.connections.into())?;
    let answered = ask(streams, args.size.bytes(), args.rate, seconds)?;
    Ok(answered.outcome("open-loop"))
}

impl Answered {
    /// Requests, with their latencies.
    pub fn outcome(&self, work: &'static str) -> Outcome {
        Outcome::new(work, "requests", self.latency.count() as f64, self.took)
            .errors(self.errors)
            .latency(&self.latency)
            .with("own_delay_p99_us", self.own_delay.quantiles().map_or(0.0, |own| own.p99))
    }
}

struct Chatter {
    stream: TcpStream,
    /// The number of the message that is or was last on its way.
    current: u64,
    busy: bool,
    /// Messages that are due behind it.
    queued: u64,
    received: usize,
}

/// Sends message number i over connection i modulo their number.
pub fn ask(streams: Vec<TcpStream>, size: usize, rate: f64, time: Duration) -> io::Result<Answered> {
    let message = vec![b'm'; size];
    let mut scratch = vec![0; size];
    let count = streams.len() as u64;
    let poll = Poll::new()?;
    let mut chatters = Vec::with_capacity(streams.len());
    for (token, stream) in streams.into_iter().enumerate() {
        poll.add(&stream, token as u64, Interest::IN)?;
        chatters.push(Some(Chatter { stream, current: 0, busy: false, queued: 0, received: 0 }));
    }

    let start = Instant::now();
    let end = start + time;
    let schedule = Schedule::new(start, rate);
    let total = schedule.due(end);
    let mut answered =
        Answered { latency: Histogram::default(), own_delay: Histogram::default(), errors: 0, took: Duration::ZERO };
    let (mut next, mut left) = (0, total);
    let mut events = Events::new();
    while left > 0 && Instant::now() < end + GRACE {
        let due = schedule.due(Instant::now()).min(total);
        for index in next..due {
            let place = &mut chatters[(index % count) as usize];
            match place {
                None => {
                    answered.errors += 1;
                    left -= 1;
                }
                Some(chatter) if chatter.busy => chatter.queued += 1,
                Some(chatter) => {
                    answered.own_delay.record(schedule.at(index).elapsed());
                    (chatter.current, chatter.busy, chatter.received) = (index, true, 0);
                    if send_whole(&chatter.stream, &message).is_err() {
                        *place = None;
                        answered.errors += 1;
                        left -= 1;
                    }
                }
            }
        }
        next = due;
        poll.wait(&mut events, Some(if next < total { schedule.at(next) } else { end + GRACE }))?;
        for event in events.iter() {
            let place = &mut chatters[event.token as usize];
            let Some(chatter) = place else { continue };
            let result = chatter.receive(&mut scratch).and_then(|whole| {
                if whole {
                    left -= 1;
                    answered.latency.record(schedule.at(chatter.current).elapsed());
                    chatter.send_queued(&message, count)?;
                }
                Ok(())
            });
            if result.is_err() {
                let lost = u64::from(chatter.busy) + chatter.queued;
                answered.errors += lost;
                left -= lost;
                *place = None;
            }
        }
    }
    answered.errors += left;
    answered.took = start.elapsed();
    Ok(answered)
}

impl Chatter {
    /// Returns whether the answer is whole.
    fn receive(&mut self, scratch: &mut [u8]) -> io::Result<bool> {
        let Some(read) = sockets::receive(&self.stream, scratch)? else { return Ok(false) };
        if read == 0 || !self.busy {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.received += read;
        self.busy = self.received < scratch.len();
        Ok(!self.busy)
    }

    /// The answer is there: the connection is free for the message that has waited longest.
    fn send_queued(&mut self, message: &[u8], count: u64) -> io::Result<()> {
        if self.queued > 0 {
            (self.current, self.busy) = (self.current + count, true);
            (self.queued, self.received) = (self.queued - 1, 0);
            send_whole(&self.stream, message)?;
        }
        Ok(())
    }
}
