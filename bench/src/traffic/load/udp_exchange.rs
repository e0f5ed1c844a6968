//! A datagram and its answer over each of some flows, then the next: closed loop.

use std::{
    io,
    net::UdpSocket,
    time::{Duration, Instant},
};

use clap::Parser;

use super::Target;
use crate::traffic::{
    events::{Events, Interest, Poll},
    histogram::Histogram,
    outcome::Outcome,
    protocol::MESSAGE,
    sockets,
};

/// When an answer has not come by then, its exchange is lost and the next one begins.
const LOST_AFTER: Duration = Duration::from_millis(200);
/// How often it is looked for what is lost.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Exchange number, then which of the flow's exchanges at once, behind the first byte.
const NUMBER_AT: usize = 1;
const SLOT_AT: usize = NUMBER_AT + 8;

#[derive(Debug, Parser)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    flows: u16,
    /// Exchanges of a flow that are on the way at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    window: u8,
    #[arg(long, default_value_t = MESSAGE as u16, value_parser = clap::value_parser!(u16).range(16..=65_507))]
    size: u16,
}

/// One exchange of a flow.
#[derive(Clone, Copy)]
struct Slot {
    number: u64,
    since: Instant,
    waits: bool,
}

struct Load {
    sockets: Vec<UdpSocket>,
    slots: Vec<Slot>,
    window: usize,
    message: Vec<u8>,
    sent: u64,
    lost: u64,
    errors: u64,
    waiting: usize,
    latency: Histogram,
}

pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    let Target { target, seconds } = args.target;
    let window = usize::from(args.window);
    let sockets = (0..args.flows).map(|_| sockets::flow(target)).collect::<io::Result<Vec<_>>>()?;
    let poll = Poll::new()?;
    for (token, socket) in sockets.iter().enumerate() {
        poll.add(socket, token as u64, Interest::IN)?;
    }
    let start = Instant::now();
    let slots = vec![Slot { number: 0, since: start, waits: false }; sockets.len() * window];
    let mut load = Load {
        sockets,
        slots,
        window,
        message: vec![b'm'; args.size.into()],
        sent: 0,
        lost: 0,
        errors: 0,
        waiting: 0,
        latency: Histogram::default(),
    };
    (0..load.slots.len()).for_each(|slot| load.send(slot, Instant::now()));

    let end = start + seconds;
    let mut scratch = vec![0; load.message.len() + 1];
    let mut events = Events::new();
    let mut look_at = start + LOOK_EVERY;
    while load.waiting > 0 {
        poll.wait(&mut events, Some(look_at))?;
        for event in events.iter() {
            load.receive(event.token as usize, &mut scratch, end);
        }
        let now = Instant::now();
        if now >= look_at {
            look_at = now + LOOK_EVERY;
            load.give_up(now, end);
        }
    }
    let outcome = Outcome::new("udp-exchange", "exchanges", load.latency.count() as f64, start.elapsed());
    Ok(outcome.errors(load.errors).latency(&load.latency).datagrams(load.sent, load.lost))
}

impl Load {
    fn send(&mut self, index: usize, now: Instant) {
        let slot = &mut self.slots[index];
        *slot = Slot { number: slot.number + 1, since: now, waits: true };
        self.message[NUMBER_AT..SLOT_AT].copy_from_slice(&slot.number.to_be_bytes());
        self.message[SLOT_AT] = (index % self.window) as u8;
        self.waiting += 1;
        self.sent += 1;
        // What cannot be sent is found missing later.
        self.errors += u64::from(sockets::send(&self.sockets[index / self.window], &self.message).is_err());
    }

    /// Takes one answer. One that was given up already counts for nothing.
    fn receive(&mut self, flow: usize, scratch: &mut [u8], end: Instant) {
        let length = match sockets::receive(&self.sockets[flow], scratch) {
            Ok(Some(length)) => length,
            Ok(None) => return,
            Err(_) => {
                self.errors += 1;
                return;
            }
        };
        let index = flow * self.window + usize::from(scratch[SLOT_AT]) % self.window;
        let slot = &mut self.slots[index];
        let number = scratch[NUMBER_AT..SLOT_AT].try_into().map(u64::from_be_bytes).expect("eight bytes");
        if length != self.message.len() || number > slot.number {
            self.errors += 1;
        } else if slot.waits && number == slot.number {
            let now = Instant::now();
            self.latency.record(now - slot.since);
            slot.waits = false;
            self.waiting -= 1;
            if now < end {
                self.send(index, now);
            }
        }
    }

    fn give_up(&mut self, now: Instant, end: Instant) {
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if slot.waits && now - slot.since >= LOST_AFTER {
                slot.waits = false;
                self.waiting -= 1;
                self.lost += 1;
                if now < end {
                    self.send(index, now);
                }
            }
        }
    }
}
