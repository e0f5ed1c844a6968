//! Lives of TCP connections at random: chunks, pauses, stalls, ends and resets on either side.

use std::{
    net::{IpAddr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind},
};

use fastrand::Rng;
use harbor::model::desired::ForwarderLimits;

use super::node::Node;
use crate::support::{
    life::{Life, Stage},
    peer::{V4, V6},
};

/// Rounds in a normal run; `HARBOR_ROUNDS` is another number.
const ROUNDS: u64 = 1600;
/// Lives in a round, at most.
const AT_ONCE: usize = 4;
/// Where each of the nodes that run beside each other listens: most of a life is waiting.
const LANES: [IpAddr; 4] = [V4, V6, V4, V6];

#[test]
fn every_byte_arrives_in_order_and_ends_and_resets_are_what_they_were_whatever_both_sides_do() {
    let number = |name| std::env::var(name).ok().map(|number| number.parse::<u64>().expect("a number"));
    let seeds = match number("HARBOR_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("HARBOR_ROUNDS").unwrap_or(ROUNDS) / LANES.len() as u64,
    };
    std::thread::scope(|scope| {
        for (lane, address) in (0..).zip(LANES) {
            let seeds = seeds.clone();
            scope.spawn(move || live(seeds, lane, address));
        }
    });
}

/// Plays lives on a node of their own, all on one worker.
fn live(seeds: std::ops::Range<u64>, lane: u16, address: IpAddr) {
    let port = 22600 + lane;
    let node = Node::with(1, ForwarderLimits::default());
    let make = if lane < 2 { Stage::new } else { Stage::with_small_segments };
    let stage = make(SocketAddr::new(address, port));
    node.tcp(port, stage.backend.local_addr().unwrap());
    let mut played = seeds.start;
    while played < seeds.end {
        let played_well = catch_unwind(AssertUnwindSafe(|| {
            let mut random = Rng::with_seed(played << 2 | u64::from(lane));
            let lives = (0..random.usize(1..=AT_ONCE)).map(|_| Life::random(&mut random)).collect::<Vec<_>>();
            stage.play(&lives, &mut random);
            // Both sockets of each are gone.
            node.wait_for_flows(0);
            lives.len()
        }));
        assert!(played_well.is_ok(), "replay it with HARBOR_SEED={played}");
        played += 1;
    }
}
