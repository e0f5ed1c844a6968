//! One kind of work, sent to one address.

mod bulk;
mod connect;
mod exchange;
mod idle;
mod mixed;
mod open_loop;
mod resets;
mod udp_exchange;
mod udp_flood;
mod udp_max;
mod verify;

use std::{net::SocketAddr, num::NonZeroU64, time::Duration};

use anyhow::ensure;
use clap::{Parser, Subcommand};
use rustix::thread::set_current_timer_slack;

use self::bulk::Ways;
use super::{outcome::Outcome, protocol::MESSAGE};

/// How long answers may be late that were asked for in time.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, Parser)]
pub struct Args {
    #[command(subcommand)]
    work: Work,
}

#[derive(Debug, Subcommand)]
enum Work {
    /// Every byte comes back as it was, and ends are passed on; fails when not.
    Verify(verify::Args),
    /// As many bytes to the backend as the time takes.
    BulkUp(bulk::Args),
    /// As many bytes from the backend as the time takes.
    BulkDown(bulk::Args),
    /// As many bytes both ways at once as the time takes.
    BulkBoth(bulk::Args),
    /// A message and its answer, then the next: closed loop.
    Exchange(exchange::Args),
    /// Messages at scheduled times, whatever becomes of those before.
    OpenLoop(open_loop::Args),
    /// Connect, one message and its answer, close.
    Connect(connect::Args),
    /// Connections that are opened, then held until stdin is closed.
    Idle(idle::Args),
    /// A datagram and its answer, then the next: closed loop.
    UdpExchange(udp_exchange::Args),
    /// Datagrams one way at a rate; how many arrive?
    UdpFlood(udp_flood::Args),
    /// The highest rate of datagrams one way with less than 0.1 % lost.
    UdpMax(udp_max::Args),
    /// Messages at scheduled times beside bulk.
    Mixed(mixed::Args),
    /// All that connections do to each other, checked byte by byte: what a soak wants.
    Resets(resets::Args),
}

/// Where, and how long.
#[derive(Debug, Clone, Copy, clap::Args)]
struct Target {
    #[arg(long, value_name = "ADDRESS:PORT")]
    target: SocketAddr,
    /// How long to work. `verify` takes as long as it takes, `idle` until stdin is closed.
    #[arg(long, default_value = "1", value_parser = seconds)]
    seconds: Duration,
}

/// Sizes of messages: what fits into a socket's buffers.
#[derive(Debug, Clone, Copy, clap::Args)]
struct Size {
    #[arg(long, default_value_t = MESSAGE as u16, value_parser = clap::value_parser!(u16).range(1..))]
    size: u16,
}

impl Size {
    fn bytes(self) -> usize {
        usize::from(self.size)
    }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    outcome(&args.work)?.print()?;
    Ok(())
}

fn outcome(work: &Work) -> anyhow::Result<Outcome> {
    // Scheduled work is to be sent when it is due, not up to 50 us later.
    set_current_timer_slack(NonZeroU64::new(1))?;
    match work {
        Work::Verify(args) => verify::run(args),
        Work::BulkUp(args) => bulk::run("bulk-up", Ways::UP, args),
        Work::BulkDown(args) => bulk::run("bulk-down", Ways::DOWN, args),
        Work::BulkBoth(args) => bulk::run("bulk-both", Ways::BOTH, args),
        Work::Exchange(args) => exchange::run(args),
        Work::OpenLoop(args) => open_loop::run(args),
        Work::Connect(args) => connect::run(args),
        Work::Idle(args) => idle::run(args),
        Work::UdpExchange(args) => udp_exchange::run(args),
        Work::UdpFlood(args) => udp_flood::run(args),
        Work::UdpMax(args) => udp_max::run(args),
        Work::Mixed(args) => mixed::run(args),
        Work::Resets(args) => resets::run(args),
    }
}

/// A time to work for, between 10 ms and a day.
fn seconds(text: &str) -> anyhow::Result<Duration> {
    let seconds: f64 = text.parse()?;
    ensure!((0.01..=86_400.0).contains(&seconds), "give seconds between 0.01 and 86400");
    Ok(Duration::from_secs_f64(seconds))
}

/// A rate per second, above zero and at most ten million.
fn rate(text: &str) -> anyhow::Result<f64> {
    let rate: f64 = text.parse()?;
    ensure!(rate > 0.0 && rate <= 1e7, "give a rate per second above 0 and up to 10000000");
    Ok(rate)
}

#[cfg(test)]
mod tests;
