//! A message and its answer over each of some connections, then the next: closed loop.
//!
//! A slow answer delays the next message, so latencies are those of this load, not of one that does not wait: for that
//! there is `open-loop`.

use std::{io, net::TcpStream, time::Instant};

use clap::Parser;

use super::{GRACE, Size, Target};
use crate::traffic::{
    events::{Events, Interest, Poll},
    histogram::Histogram,
    outcome::Outcome,
    sockets,
};

#[derive(Debug, Parser)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    #[command(flatten)]
    size: Size,
}

struct Chatter {
    stream: TcpStream,
    since: Instant,
    received: usize,
}

pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    let Target { target, seconds } = args.target;
    let message = vec![b'm'; args.size.bytes()];
    let mut scratch = vec![0; args.size.bytes()];
    let streams = sockets::connect_echo(target, args.connections.into())?;
    let poll = Poll::new()?;
    let mut chatters = Vec::with_capacity(streams.len());
    let start = Instant::now();
    for (token, stream) in streams.into_iter().enumerate() {
        poll.add(&stream, token as u64, Interest::IN)?;
        send_whole(&stream, &message)?;
        chatters.push(Some(Chatter { stream, since: Instant::now(), received: 0 }));
    }

    let end = start + seconds;
    let (mut waiting, mut errors) = (chatters.len(), 0);
    let mut latency = Histogram::default();
    let mut events = Events::new();
    let mut now = start;
    while waiting > 0 && now < end + GRACE {
        poll.wait(&mut events, Some(end + GRACE))?;
        now = Instant::now();
        for event in events.iter() {
            let place = &mut chatters[event.token as usize];
            let Some(chatter) = place else { continue };
            let mut turn = || -> io::Result<bool> {
                let Some(read) = sockets::receive(&chatter.stream, &mut scratch)? else { return Ok(false) };
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                chatter.received += read;
                if chatter.received < message.len() {
                    return Ok(false);
                }
                now = Instant::now();
                latency.record(now - chatter.since);
                if now >= end {
                    return Ok(true);
                }
                (chatter.since, chatter.received) = (now, 0);
                send_whole(&chatter.stream, &message)?;
                Ok(false)
            };
            let result = turn();
            if !matches!(result, Ok(false)) {
                errors += u64::from(result.is_err());
                waiting -= 1;
                *place = None;
            }
        }
    }
    let units = latency.count() as f64;
    Ok(Outcome::new("exchange", "requests", units, start.elapsed()).errors(errors + waiting as u64).latency(&latency))
}

/// Sends a message on a connection that has nothing else to send, so that there is room for it.
pub fn send_whole(stream: &TcpStream, message: &[u8]) -> io::Result<()> {
    match sockets::send(stream, message)? {
        Some(sent) if sent == message.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}
