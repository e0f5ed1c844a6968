//! Which histories are run, and how long they are.

use fastrand::Rng;

/// Histories per simulation.
const SEEDS: u64 = 256;

/// Steps of each.
pub const STEPS: u32 = 2_000;

/// Runs `simulate` with each seed, or with the one in `HARBOR_SEED`.
pub fn run(simulate: impl Fn(Rng)) {
    run_many(SEEDS, simulate);
}

/// The same with so many seeds.
pub fn run_many(count: u64, simulate: impl Fn(Rng)) {
    let seeds = match std::env::var("HARBOR_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("HARBOR_SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..count,
    };
    for seed in seeds {
        let history = std::panic::AssertUnwindSafe(|| simulate(Rng::with_seed(seed)));
        assert!(std::panic::catch_unwind(history).is_ok(), "replay it with HARBOR_SEED={seed}");
    }
}

/// One of `choices`, as often as its weight says.
pub fn weighted<T: Copy>(random: &mut Rng, choices: &[(u32, T)]) -> T {
    let all: u32 = choices.iter().map(|(weight, _)| weight).sum();
    let mut ball = random.u32(..all);
    for (weight, choice) in choices {
        if ball < *weight {
            return *choice;
        }
        ball -= weight;
    }
    unreachable!("the ball is below the sum")
}
