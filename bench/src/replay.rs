//! The fixed work that instructions and system calls are counted of (`harbor-bench counts`): a forwarder with one
//! worker, and its client and backend in one thread that goes in lock-step with it.
//!
//! Twice the steps minus the steps is what the steps cost: start, set-up and end are the same in both. So that each step
//! costs the same, whatever arrives together is sent while the worker is held ([`gate::Gate`]), time is what the gate
//! says, and the next step begins when all of the last one has arrived.

mod gate;
mod node;
mod provision;
mod tcp;
mod udp;

use std::{io, sync::LazyLock};

use clap::{ValueEnum, builder::PossibleValue};

use self::node::Node;

/// System calls of the gate, which are not Harbor's.
pub use self::gate::SYSTEM_CALL as GATE_SYSTEM_CALL;

/// The threads that are counted, in the order in which they start, right after the first one.
pub const THREADS: [&str; 2] = ["forward-0", "reconcile"];

/// A piece of work that repeats.
trait Work {
    fn step(&mut self, node: &Node) -> anyhow::Result<()>;
}

/// A way through the forwarder.
#[derive(Debug, Clone, Copy)]
pub struct Path {
    pub name: &'static str,
    /// What the figures are per.
    pub unit: &'static str,
    pub units_per_step: f64,
    /// Enough of them that what the start costs more or less by chance, some 50,000 instructions, is little in each.
    pub steps: u32,
    start: fn(&Node) -> anyhow::Result<Box<dyn Work>>,
}

/// All that is counted.
pub const PATHS: &[Path] = &[
    Path { name: "exchange-1", unit: "request and answer of 64 B", units_per_step: 1.0, steps: 4000, start: tcp::one },
    Path {
        name: "exchange-64",
        unit: "request and answer of 64 B, 64 at once",
        units_per_step: 64.0,
        steps: 60,
        start: tcp::many,
    },
    Path {
        name: "exchange-16k",
        unit: "request of 64 B, answer of 16 KiB",
        units_per_step: 1.0,
        steps: 1000,
        start: tcp::large,
    },
    Path {
        name: "connection",
        unit: "connect, exchange, end",
        units_per_step: 1.0,
        steps: 600,
        start: tcp::connection,
    },
    Path { name: "bulk", unit: "MiB one way", units_per_step: 0.25, steps: 3200, start: tcp::bulk },
    Path { name: "bulk-both", unit: "MiB each way", units_per_step: 0.25, steps: 3200, start: tcp::bulk_both },
    Path { name: "udp-exchange-1", unit: "datagram and answer", units_per_step: 1.0, steps: 1000, start: udp::one },
    Path {
        name: "udp-exchange-64",
        unit: "datagram and answer, 64 flows at once",
        units_per_step: 64.0,
        steps: 60,
        start: udp::many,
    },
    Path { name: "udp-session", unit: "session of one exchange", units_per_step: 1.0, steps: 600, start: udp::session },
    Path { name: "udp-batch", unit: "datagram of 32 equal ones", units_per_step: 32.0, steps: 100, start: udp::equal },
    Path {
        name: "udp-batch-mixed",
        unit: "datagram of 32 of several sizes",
        units_per_step: 32.0,
        steps: 100,
        start: udp::mixed,
    },
    Path {
        name: "udp-batch-joined",
        unit: "datagram of 32 that the sender's kernel joined",
        units_per_step: 32.0,
        steps: 400,
        start: udp::joined,
    },
    Path {
        name: "provision",
        unit: "port more and less, beside 1,000",
        units_per_step: 1.0,
        steps: 500,
        start: provision::start,
    },
];

impl ValueEnum for &'static Path {
    fn value_variants<'a>() -> &'a [Self] {
        static ALL: LazyLock<Vec<&Path>> = LazyLock::new(|| PATHS.iter().collect());
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name).help(self.unit))
    }
}

/// Again when `strace` came between: it interrupts whoever waits when it takes up a thread.
fn uninterrupted<T>(mut wait: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match wait() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// What to do.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which way through the forwarder.
    path: &'static Path,
    /// How often.
    #[arg(long)]
    steps: u32,
}

/// Does the work.
pub fn run(args: &Args) -> anyhow::Result<()> {
    // Before any other thread is started, so that its threads have the same numbers each time.
    let node = Node::start()?;
    let mut work = (args.path.start)(&node)?;
    for _ in 0..args.steps {
        work.step(&node)?;
    }
    Ok(())
}
