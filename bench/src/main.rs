//! Harbor's data plane measured beside its peers: `harbor-bench compare` runs it all, the other commands are its parts.

mod announcements;
mod bus;
mod compare;
mod counts;
mod nats;
mod outages;
mod replay;
mod soak;
mod traffic;

use std::process::ExitCode;

use clap::Parser;

#[derive(Debug, Parser)]
#[command(version, about)]
enum Command {
    /// Answers whatever a load asks for: the app behind the proxies.
    Backend(traffic::backend::Args),
    /// Sends one kind of work to one address and prints what came of it as a line of JSON.
    Load(traffic::load::Args),
    /// The proxy that anyone would write first: tokio and `copy_bidirectional`.
    Naive(traffic::naive::Args),
    /// Measures Harbor, HAProxy, nginx, Envoy, the naive proxy and no proxy, interleaved.
    Compare(compare::Args),
    /// Makes the tables and the chart of a comparison again, without measuring.
    Report(compare::report::Args),
    /// Lets a node work for long with resets, and tells whether it has grown.
    Soak(soak::Args),
    /// Tells what traffic notices of a busy NATS, and whether the node hears all of it.
    Bus(bus::Args),
    /// Kills NATS again and again, and tells whether a backend is lost or stays that should not.
    Outages(outages::Args),
    /// Counts instructions and system calls per unit of work and compares them with those on record.
    Counts(counts::Args),
    /// Does a fixed piece of work in a forwarder of its own, to be counted.
    Replay(replay::Args),
}

fn main() -> anyhow::Result<ExitCode> {
    match Command::parse() {
        Command::Backend(args) => traffic::backend::run(&args)?,
        Command::Load(args) => traffic::load::run(&args)?,
        Command::Naive(args) => traffic::naive::run(&args)?,
        Command::Compare(args) => return compare::run(&args),
        Command::Report(args) => return compare::report::run(&args),
        Command::Soak(args) => return soak::run(&args),
        Command::Bus(args) => return bus::run(&args),
        Command::Outages(args) => return outages::run(&args),
        Command::Counts(args) => return counts::run(&args),
        Command::Replay(args) => replay::run(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}
