//! Connections that are opened at a rate, used once, and held until stdin is closed.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Parser;

use super::{Target, rate};
use crate::traffic::{
    events::{Events, Interest, Poll},
    outcome::Outcome,
    protocol,
    schedule::Schedule,
    sockets,
};

/// Nobody holds connections for longer.
const LONGEST: Duration = Duration::from_secs(600);
const STDIN: u64 = u64::MAX;

#[derive(Debug, Parser)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// How many are opened per second.
    #[arg(long, default_value = "2000", value_parser = rate)]
    per_second: f64,
}

pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    let Target { target, .. } = args.target;
    let poll = Poll::new()?;
    poll.add(io::stdin(), STDIN, Interest::IN).context("cannot wait for the end of stdin: give it a pipe")?;
    let start = Instant::now();
    let schedule = Schedule::new(start, args.per_second);
    let mut held = Vec::with_capacity(args.connections.into());
    let (mut errors, mut asked_to_end) = (0, false);
    let mut events = Events::new();
    for index in 0..args.connections {
        while Instant::now() < schedule.at(index.into()) && !asked_to_end {
            poll.wait(&mut events, Some(schedule.at(index.into())))?;
            asked_to_end = look(&events, &poll, &held, &mut errors)?;
        }
        if asked_to_end {
            break;
        }
        match open(target).and_then(|stream| poll.add(&stream, held.len() as u64, Interest::IN).map(|()| stream)) {
            Ok(stream) => held.push(stream),
            Err(_) => errors += 1,
        }
    }
    let opened = start.elapsed();
    {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "holding {}", held.len())?;
        stdout.flush()?;
    }
    while !asked_to_end && start.elapsed() < LONGEST {
        poll.wait(&mut events, Some(start + LONGEST))?;
        asked_to_end = look(&events, &poll, &held, &mut errors)?;
    }
    Ok(Outcome::new("idle", "connections", held.len() as f64, start.elapsed())
        .errors(errors)
        .with("opened_in_seconds", opened.as_secs_f64()))
}

/// A connection that has had one byte echoed.
fn open(target: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = sockets::connect(target)?;
    stream.write_all(&[protocol::ECHO, b'i'])?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// Counts connections that have ended or say something. Returns whether stdin has.
fn look(events: &Events, poll: &Poll, held: &[TcpStream], errors: &mut u64) -> io::Result<bool> {
    let mut ended = false;
    for event in events.iter() {
        if event.token == STDIN {
            ended |= rustix::io::read(io::stdin(), &mut [0; 64])? == 0;
        } else {
            *errors += 1;
            poll.remove(&held[event.token as usize])?;
        }
    }
    Ok(ended)
}
