//! What one allocation costs in a pool of 60,000 ports, by how full the pool is: it must not depend on that.
//!
//! `cargo bench --bench allocation`

#![expect(clippy::print_stdout, reason = "the figures are its output")]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use harbor::model::{
    PortSet, SpaceId, Timestamp,
    allocation::{FreePorts, PortRow, PortState, Release},
};

const RANGE: &str = "5000-64999";
const ROUNDS: u32 = 200_000;
const QUARANTINE: Duration = Duration::from_secs(15 * 60);

fn main() {
    let range: PortSet = RANGE.parse().expect("a valid range");
    println!("{} ports, {ROUNDS} rounds; nanoseconds each", range.len());
    println!("{:>9}  {:>7}  {:>8}  {:>20}", "allocated", "propose", "take", "release and wake up");
    for free_in_10_000 in [9_900, 5_000, 100, 1] {
        let free = range.len() * free_in_10_000 / 10_000;
        let taken = range.iter().skip(free).map(|port| PortRow { port, state: PortState::Allocated }).collect();
        let now = Timestamp::from_seconds(1_700_000_000);
        let (propose, take, release) = measure(FreePorts::new(range.clone(), Vec::new(), taken, now), now);
        let percent = 100.0 - 100.0 * free as f64 / range.len() as f64;
        println!("{percent:>8.2}%  {propose:>7}  {take:>8}  {release:>20}");
    }
}

/// Each round a port is proposed, taken and freed, and its quarantine ends: the pool stays as full as it is.
fn measure(mut ports: FreePorts, mut now: Timestamp) -> (u128, u128, u128) {
    let space_id = SpaceId::new("space").expect("a valid id");
    let mut random = fastrand::Rng::with_seed(1);
    let mut spent = [Duration::ZERO; 3];
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let port = black_box(ports.propose(random.u64(..), now)).expect("a port is free");
        let proposed = Instant::now();
        ports.take(port, now);
        let taken = Instant::now();
        let release = Release { space_id: space_id.clone(), at: now, quarantined_until: now.plus(QUARANTINE) };
        ports.release(port, release, now);
        now = now.plus(QUARANTINE);
        black_box(ports.request(port, &space_id, now)).expect("its quarantine is over");
        let released = Instant::now();
        for (sum, more) in spent.iter_mut().zip([proposed - start, taken - proposed, released - taken]) {
            *sum += more;
        }
    }
    let each = |sum: Duration| sum.as_nanos() / u128::from(ROUNDS);
    (each(spent[0]), each(spent[1]), each(spent[2]))
}
