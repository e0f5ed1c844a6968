//! The highest rate of datagrams one way with less than 0.1 % lost: doubled until it fails, then bisected.
//!
//! A step that loses is tried again, and so is one that the load could not send fast enough: a moment without a core is
//! not the proxy's limit.

use clap::Parser;

use super::{
    Target,
    udp_flood::{Flood, Flooded, Flows},
};
use crate::traffic::outcome::Outcome;

const FIRST_RATE: f64 = 50_000.0;
/// Steps that double, then steps that bisect: the last halves of an interval that is 1/32 of the rate wide.
const DOUBLINGS: usize = 6;
const BISECTIONS: usize = 5;
/// Part of the datagrams that may be lost.
const MAX_LOSS: f64 = 0.001;
/// A load that sends less than this part of a rate has reached its own limit.
const MIN_ACHIEVED: f64 = 0.95;
/// How often a step is tried until it is carried.
const TRIES: usize = 3;
/// Part of `--seconds` that a step takes.
const STEP: f64 = 0.3;

#[derive(Debug, Parser)]
pub struct Args {
    /// A step takes three tenths of `--seconds`, and there are up to 33.
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    flows: Flows,
}

pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    let Target { target, seconds } = args.target;
    let step = seconds.mul_f64(STEP);
    let mut flood = Flood::new(&args.flows, target)?;
    flood.warm_up()?;
    let mut best: Option<Flooded> = None;
    let (mut sent, mut lost, mut steps) = (0, 0, 0);
    let mut limited_by_load = 0;
    let mut carries = |rate: f64| -> anyhow::Result<bool> {
        for _ in 0..TRIES {
            let flooded = flood.send(rate, step)?;
            (sent, lost, steps) = (sent + flooded.sent, lost + flooded.lost(), steps + 1);
            if flooded.lost() as f64 <= flooded.sent as f64 * MAX_LOSS {
                if best.is_none_or(|best| best.rate() < flooded.rate()) {
                    best = Some(flooded);
                }
                if flooded.rate() >= rate * MIN_ACHIEVED {
                    return Ok(true);
                }
                limited_by_load += 1;
            }
        }
        Ok(false)
    };

    let mut low = 0.0;
    let mut high = FIRST_RATE;
    for _ in 0..DOUBLINGS {
        if !carries(high)? {
            break;
        }
        (low, high) = (high, high * 2.0);
    }
    for _ in 0..BISECTIONS {
        let middle = (low + high) / 2.0;
        if carries(middle)? { low = middle } else { high = middle }
    }
    let (rate, took) = best.map_or((0.0, step), |best| (best.rate(), best.took));
    Ok(Outcome::new("udp-max", "datagrams/s", rate, took)
        .datagrams(sent, lost)
        .with("steps", f64::from(steps))
        .with("steps_limited_by_load", f64::from(limited_by_load)))
}
