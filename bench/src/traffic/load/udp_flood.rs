//! Datagrams one way at a rate, in small bursts over some flows; the backend says how many arrived.
//!
//! Each is sent as a datagram of its own, never as one of a train that a proxy with GRO could take as a whole.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Parser;

use super::{Target, rate};
use crate::traffic::{
    events::{Events, Interest, Poll},
    outcome::Outcome,
    protocol::{self, COUNTED, Counted, MESSAGE},
    schedule::Schedule,
    sockets::{self, PATIENCE},
};

/// Datagrams that follow each other on a flow.
const BURST: u64 = 8;
/// How often a burst is sent at least.
const TICK: Duration = Duration::from_micros(200);
/// The most that is made up for after the load was held up; beyond that its rate is lower, which is told.
const CATCH_UP: Duration = Duration::from_millis(2);
/// What has not arrived is lost when nothing has for so long.
const LOST_AFTER: Duration = Duration::from_millis(200);
/// How often it is asked what has arrived.
const ASK_EVERY: Duration = Duration::from_millis(10);
/// How long an answer to a question is waited for before it is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(200);

#[derive(Debug, Parser)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    pub flood: Flows,
    /// Datagrams per second, over all flows.
    #[arg(long, default_value = "50000", value_parser = rate)]
    rate: f64,
}

/// What a flood is made of.
#[derive(Debug, clap::Args)]
pub struct Flows {
    /// Whom to ask how many arrived: the backend itself; the target if it is not given.
    #[arg(long, value_name = "ADDRESS:PORT")]
    backend: Option<SocketAddr>,
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    flows: u16,
    #[arg(long, default_value_t = MESSAGE as u16, value_parser = clap::value_parser!(u16).range(1..=65_507))]
    size: u16,
}

pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    let Target { target, seconds } = args.target;
    let mut flood = Flood::new(&args.flood, target)?;
    flood.warm_up()?;
    let flooded = flood.send(args.rate, seconds)?;
    Ok(Outcome::new("udp-flood", "datagrams", flooded.arrived as f64, flooded.took)
        .datagrams(flooded.sent, flooded.lost())
        .with("rate", flooded.rate()))
}

/// Flows, and the line to the backend.
pub struct Flood {
    flows: Vec<UdpSocket>,
    datagram: Vec<u8>,
    backend: UdpSocket,
    poll: Poll,
    events: Events,
    next_flow: usize,
}

/// What came of sending.
#[derive(Debug, Clone, Copy)]
pub struct Flooded {
    pub sent: u64,
    pub arrived: u64,
    pub took: Duration,
}

impl Flooded {
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.arrived)
    }

    /// Datagrams that were really sent per second.
    pub fn rate(&self) -> f64 {
        self.sent as f64 / self.took.as_secs_f64()
    }
}

impl Flood {
    pub fn new(args: &Flows, target: SocketAddr) -> anyhow::Result<Self> {
        let flows = (0..args.flows).map(|_| sockets::flow(target)).collect::<io::Result<Vec<_>>>()?;
        let backend = sockets::flow(args.backend.unwrap_or(target))?;
        let poll = Poll::new()?;
        poll.add(&backend, 0, Interest::IN)?;
        let datagram = vec![COUNTED; args.size.into()];
        Ok(Self { flows, datagram, backend, poll, events: Events::new(), next_flow: 0 })
    }

    /// Sends one datagram on every flow, so that a proxy's sessions exist before anything is counted.
    pub fn warm_up(&mut self) -> anyhow::Result<()> {
        self.ask(protocol::ZERO)?;
        for flow in &self.flows {
            // Its loss does not matter.
            let _ = sockets::send(flow, &self.datagram);
        }
        self.settle(self.flows.len() as u64)?;
        Ok(())
    }

    /// Sends for a while, then waits for what is on the way.
    pub fn send(&mut self, rate: f64, time: Duration) -> anyhow::Result<Flooded> {
        self.ask(protocol::ZERO)?;
        let start = Instant::now();
        let end = start + time;
        let schedule = Schedule::new(start, rate);
        let most = (rate * CATCH_UP.as_secs_f64()).max(BURST as f64) as u64;
        let (mut sent, mut skipped) = (0, 0);
        loop {
            let now = Instant::now();
            if now >= end {
                break;
            }
            let mut behind = schedule.due(now) - sent - skipped;
            skipped += behind.saturating_sub(most);
            behind = behind.min(most);
            while behind > 0 {
                let burst = behind.min(BURST);
                let gone = sockets::send_copies(&self.flows[self.next_flow], &self.datagram, burst as usize) as u64;
                self.next_flow = (self.next_flow + 1) % self.flows.len();
                sent += gone;
                // What the kernel did not take was never on the way.
                skipped += burst - gone;
                behind -= burst;
            }
            self.poll.wait(&mut self.events, Some(schedule.at(sent + skipped).max(now + TICK)))?;
        }
        let took = start.elapsed();
        let arrived = self.settle(sent)?;
        Ok(Flooded { sent, arrived, took })
    }

    /// Waits until all that were sent have arrived, or no more do. Returns how many have.
    fn settle(&mut self, sent: u64) -> anyhow::Result<u64> {
        let give_up = Instant::now() + PATIENCE;
        let (mut arrived, mut since) = (self.counted()?, Instant::now());
        while arrived < sent && since.elapsed() < LOST_AFTER && Instant::now() < give_up {
            let ask_at = Instant::now() + ASK_EVERY;
            while Instant::now() < ask_at {
                self.poll.wait(&mut self.events, Some(ask_at))?;
                self.drain();
            }
            let now = self.counted()?;
            if now > arrived {
                (arrived, since) = (now, Instant::now());
            }
        }
        Ok(arrived)
    }

    fn counted(&mut self) -> anyhow::Result<u64> {
        let answer = self.ask(protocol::QUERY)?;
        let counted = Counted::from_bytes(&answer);
        Ok(counted.context("the backend's answer is no count: is --backend a harbor-bench backend?")?.datagrams)
    }

    /// Takes answers to questions that were asked twice.
    fn drain(&self) {
        while let Ok(Some(_)) = sockets::receive(&self.backend, &mut [0; 64]) {}
    }

    fn ask(&mut self, question: u8) -> anyhow::Result<Vec<u8>> {
        self.drain();
        let give_up = Instant::now() + PATIENCE;
        let mut answer = [0; 64];
        while Instant::now() < give_up {
            // An error of an earlier question may be told here: it is asked again.
            let _ = sockets::send(&self.backend, &[question]);
            let again = Instant::now() + ASK_AGAIN;
            while Instant::now() < again {
                self.poll.wait(&mut self.events, Some(again))?;
                if let Ok(Some(length)) = sockets::receive(&self.backend, &mut answer) {
                    return Ok(answer[..length].to_vec());
                }
            }
        }
        anyhow::bail!("the backend does not say what arrived: is --backend right, and is it running?")
    }
}
