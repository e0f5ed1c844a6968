//! A seeded mutator: takes a corpus of valid inputs and damages them.

#![allow(dead_code, reason = "each target uses what it needs")]

use fastrand::Rng;

/// Mutated inputs per target.
pub const ROUNDS: u64 = 10_000;

/// Pieces that parsers stumble over.
const PIECES: &[&[u8]] = &[
    b"\0",
    b"\xff",
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"true",
    b"-1",
    b"0",
    b"65536",
    b"1e999",
    b"99999999999999999999",
    b"\\u0000",
    b"\\ud800",
    b"\xe2\x80\xa8",
    b"=",
    b"#",
    b"\n",
    b"'''",
];

/// Runs `check` on [`ROUNDS`] mutants of `corpus`; `HARBOR_SEED` replays one.
pub fn run(corpus: &[&[u8]], mut check: impl FnMut(&[u8])) {
    for entry in corpus {
        check(entry);
    }
    for seed in seeds() {
        let input = mutant(corpus, &mut Rng::with_seed(seed));
        let shown = input.clone();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&input)));
        assert!(outcome.is_ok(), "HARBOR_SEED={seed} breaks it: {:?}", String::from_utf8_lossy(&shown));
    }
}

/// The seeds of a run; `HARBOR_SEED` replays one.
pub fn seeds() -> std::ops::Range<u64> {
    match std::env::var("HARBOR_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("HARBOR_SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..ROUNDS,
    }
}

/// One to eight damages to one entry of the corpus.
pub fn mutant(corpus: &[&[u8]], random: &mut Rng) -> Vec<u8> {
    let mut bytes = corpus[random.usize(..corpus.len())].to_vec();
    for _ in 0..random.usize(1..=8) {
        let at = random.usize(..=bytes.len());
        match random.u8(..6) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] ^= 1 << random.u8(..8),
            2 if at < bytes.len() => {
                let end = random.usize(at..bytes.len());
                bytes.drain(at..end);
            }
            3 => {
                let other = corpus[random.usize(..corpus.len())];
                let from = random.usize(..=other.len());
                bytes.splice(at..at, other[from..].iter().copied().take(64));
            }
            4 if at < bytes.len() => {
                let end = random.usize(at..bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => {
                let piece = PIECES[random.usize(..PIECES.len())];
                bytes.splice(at..at, piece.iter().copied());
            }
        }
        bytes.truncate(64 * 1024);
    }
    bytes
}
