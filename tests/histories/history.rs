//! Random histories of three nodes.

use std::time::Duration;

use fastrand::Rng;
use harbor::model::Transport;

use super::{
    link::Way,
    node::{GAMES, PORTS},
};

/// Nodes that share a store.
pub const NODES: usize = 3;

/// Service instances: most of the pool that all nodes serve, the last two of the other.
pub const INSTANCES: usize = 7;

/// The service instance that asks for this very port.
pub const CHOOSER: usize = 4;
pub const CHOSEN_PORT: u16 = *PORTS.start() + 3;

/// The first service instance of the second pool.
pub const FIRST_GAME: usize = 5;

/// Binding ids of each service instance.
const BINDINGS: usize = 2;

/// What happens, or is asked of a node.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    Provision { node: usize, instance: usize, later: bool },
    Deprovision { node: usize, instance: usize },
    Bind { node: usize, instance: usize, binding: usize },
    Unbind { node: usize, instance: usize, binding: usize },
    Update { node: usize, instance: usize, both: bool },
    Kill { node: usize },
    Start { node: usize },
    CutOff { node: usize, way: Way },
    Heal { node: usize },
    RestartDatabase { down: Duration },
    StrangerComes { node: usize, port: u16, transport: Transport },
    StrangersLeave { node: usize },
    Ail { node: usize, ails: bool },
}

/// The steps of a history, each with how long after the one before it comes.
pub fn steps(random: &mut Rng, count: usize, longest_gap: Duration) -> Vec<(Duration, Step)> {
    (0..count).map(|_| (gap(random, longest_gap), step(random))).collect()
}

/// Mostly next to nothing, so that steps meet; at times long enough for what others wait for.
fn gap(random: &mut Rng, longest: Duration) -> Duration {
    match random.u8(..8) {
        0..3 => Duration::ZERO,
        3..6 => longest.mul_f64(random.f64() / 50.0),
        6 => longest.mul_f64(random.f64() / 5.0),
        _ => longest.mul_f64(random.f64()),
    }
}

fn step(random: &mut Rng) -> Step {
    let (node, instance, binding) = (random.usize(..NODES), random.usize(..INSTANCES), random.usize(..BINDINGS));
    match random.u8(..100) {
        0..26 => Step::Provision { node, instance, later: random.u8(..3) == 0 },
        26..36 => Step::Deprovision { node, instance },
        36..48 => Step::Bind { node, instance, binding },
        48..58 => Step::Unbind { node, instance, binding },
        58..66 => Step::Update { node, instance, both: random.bool() },
        66..71 => Step::Kill { node },
        71..76 => Step::Start { node },
        76..81 => Step::CutOff { node, way: if random.bool() { Way::Refused } else { Way::Silent } },
        81..86 => Step::Heal { node },
        86..88 => Step::RestartDatabase { down: Duration::from_millis(random.u64(100..2_000)) },
        88..94 => {
            let port = if random.u8(..4) == 0 { random.u16(GAMES) } else { random.u16(PORTS) };
            let transport = if random.u8(..3) == 0 { Transport::Udp } else { Transport::Tcp };
            Step::StrangerComes { node, port, transport }
        }
        94..96 => Step::StrangersLeave { node },
        96..98 => Step::Ail { node, ails: true },
        _ => Step::Ail { node, ails: false },
    }
}
