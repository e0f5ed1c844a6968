//! All that connections do to each other, checked byte by byte: what a soak wants.
//!
//! Connections begin at a rate. Each is chatty, with pauses, or bulk, and has all it sends echoed. Most end by a
//! half-close after which the rest of the echo still comes; one in a hundred is reset by the client or by the backend,
//! anywhere. UDP sessions come and go beside them. Resets that were meant are no errors.

mod life;
mod session;

use std::{
    io::{self, Write as _},
    time::{Duration, Instant},
};

use clap::Parser;

use self::{
    life::{Life, Plan},
    session::Session,
};
use super::{Target, rate};
use crate::traffic::{
    events::{Events, Interest, Poll},
    outcome::Outcome,
    protocol::Pattern,
    schedule::Schedule,
};

/// Connections at once; those that are due while there are as many are left out, which is told.
const MAX_LIVES: usize = 512;
/// How often pauses are looked at.
const TICK: Duration = Duration::from_millis(5);
/// How long the last may take to end.
const LAST_GRACE: Duration = Duration::from_secs(15);
/// Errors that are told on stderr; more are only counted.
const MAX_TOLD: u64 = 20;
/// What one read may bring.
const SCRATCH_BYTES: usize = 256 * 1024;

#[derive(Debug, Parser)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Connections that begin per second.
    #[arg(long, default_value = "50", value_parser = rate)]
    rate: f64,
    /// UDP sessions at once; 0 for a target without UDP.
    #[arg(long, default_value_t = 16)]
    udp_flows: u16,
    /// Repeats a run's choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What has happened so far.
#[derive(Debug, Default)]
struct Tally {
    connections: u64,
    bytes: u64,
    resets: u64,
    left_out: u64,
    exchanges: u64,
    lost: u64,
    errors: u64,
}

impl Tally {
    fn fail(&mut self, what: &anyhow::Error) {
        self.errors += 1;
        if self.errors <= MAX_TOLD {
            // Whoever closed stderr does not want to know.
            let _ = writeln!(io::stderr(), "{what:#}");
        }
    }
}

pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    let Target { target, seconds } = args.target;
    let pattern = Pattern::new();
    let mut scratch = vec![0; SCRATCH_BYTES];
    let mut random = fastrand::Rng::with_seed(args.seed);
    // Of their own, so that the same connections are planned however fast they go.
    let mut plans = random.fork();
    let mut tally = Tally::default();
    let poll = Poll::new()?;
    let mut lives: Vec<Option<Life>> = (0..MAX_LIVES).map(|_| None).collect();
    let mut sessions = Vec::with_capacity(args.udp_flows.into());

    let start = Instant::now();
    for index in 0..usize::from(args.udp_flows) {
        sessions.push(Session::begin(target, &poll, MAX_LIVES + index, &mut random)?);
    }
    let end = start + seconds;
    let schedule = Schedule::new(start, args.rate);
    let mut begun = 0;
    let mut events = Events::new();
    loop {
        let now = Instant::now();
        let open = lives.iter().flatten().count();
        if now >= end && (open == 0 || now >= end + LAST_GRACE) {
            tally.errors += open as u64;
            break;
        }
        let due = if now < end { schedule.due(now) } else { begun };
        for _ in begun..due {
            let Some(free) = lives.iter().position(Option::is_none) else {
                tally.left_out += 1;
                continue;
            };
            match Life::begin(target, Plan::random(&mut plans), now) {
                Ok(life) => {
                    poll.add(life.stream(), free as u64, life.interest())?;
                    lives[free] = Some(life);
                }
                Err(error) => tally.fail(&anyhow::Error::new(error).context("a connection cannot be made")),
            }
        }
        begun = due;

        poll.wait(&mut events, Some(now + TICK))?;
        let now = Instant::now();
        for event in events.iter() {
            let index = event.token as usize;
            match index.checked_sub(MAX_LIVES) {
                None => step(&mut lives[index], index, &poll, &mut tally, |life| {
                    life.ready(event, &pattern, &mut scratch, &mut random, now)
                })?,
                Some(index) => {
                    if let Err(error) = sessions[index].receive(&pattern, &mut scratch, &mut tally) {
                        tally.fail(&error);
                    }
                }
            }
        }
        for (index, life) in lives.iter_mut().enumerate() {
            step(life, index, &poll, &mut tally, |life| life.look(&mut random, now))?;
        }
        for (index, session) in sessions.iter_mut().enumerate() {
            if now < end && session.look(&pattern, &mut random, &mut tally, now) {
                *session = Session::begin(target, &poll, MAX_LIVES + index, &mut random)?;
            }
        }
    }
    const MIB: f64 = (1 << 20) as f64;
    Ok(Outcome::new("resets", "connections", tally.connections as f64, start.elapsed())
        .errors(tally.errors)
        .datagrams(tally.exchanges + tally.lost, tally.lost)
        .with("echoed_mib", tally.bytes as f64 / MIB)
        .with("resets", tally.resets as f64)
        .with("left_out", tally.left_out as f64))
}

/// Lets a connection do something, and lets go of it when it is over.
fn step(
    place: &mut Option<Life>,
    index: usize,
    poll: &Poll,
    tally: &mut Tally,
    action: impl FnOnce(&mut Life) -> anyhow::Result<bool>,
) -> io::Result<()> {
    let Some(life) = place else { return Ok(()) };
    let before: Interest = life.interest();
    let over = match action(life) {
        Ok(over) => over,
        Err(error) => {
            tally.fail(&error.context(life.describe()));
            true
        }
    };
    if over {
        tally.connections += 1;
        tally.bytes += life.received();
        tally.resets += u64::from(life.was_reset());
        *place = None;
    } else if life.interest() != before {
        poll.modify(life.stream(), index as u64, life.interest())?;
    }
    Ok(())
}
