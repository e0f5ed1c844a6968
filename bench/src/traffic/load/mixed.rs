//! Messages at scheduled times beside bulk from the backend: how long do the chatty wait for the greedy?
//!
//! The messages are an open loop. Bulk has a thread of its own, so that the load itself does not make messages wait.

use std::thread;

use clap::Parser;

use super::{
    Target,
    bulk::{self, Ways},
    open_loop, rate,
};
use crate::traffic::{
    outcome::{GIB, Outcome},
    protocol::MESSAGE,
    sockets,
};

#[derive(Debug, Parser)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Connections that take as many bytes as they can.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..))]
    bulk: u16,
    /// Connections that send messages.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Messages per second, over all connections.
    #[arg(long, default_value = "2000", value_parser = rate)]
    rate: f64,
}

pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    let Target { target, seconds } = args.target;
    let chatty = sockets::connect_echo(target, args.connections.into())?;
    let greedy = bulk::connect(target, args.bulk)?;
    let (answered, carried) = thread::scope(|scope| {
        let carried = scope.spawn(|| bulk::carry(greedy, Ways::DOWN, None, seconds));
        let answered = open_loop::ask(chatty, MESSAGE, args.rate, seconds);
        (answered, carried.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let (answered, carried) = (answered?, carried?);
    let requests = answered.latency.count() as f64;
    let told = answered.outcome("mixed");
    Ok(Outcome { unit: "GiB", units: carried.bytes as f64 / GIB, seconds: carried.took.as_secs_f64(), ..told }
        .errors(answered.errors + carried.errors)
        .with("requests", requests))
}
