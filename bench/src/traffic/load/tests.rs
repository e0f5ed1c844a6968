//! Every work against a real backend, in one process over loopback.

use std::{net::SocketAddr, thread};

use clap::Parser as _;
use rustix::pipe::{PipeFlags, pipe_with};

use super::{Args, outcome};
use crate::traffic::{backend::Backend, outcome::Outcome};

/// Does `test` while a backend serves.
fn with_backend(test: impl FnOnce(SocketAddr)) {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let backend = Backend::bind(loopback).expect("loopback has a port");
    let address = backend.address().expect("it is bound");
    let (stop, stopper) = pipe_with(PipeFlags::CLOEXEC).expect("there are descriptors");
    thread::scope(|scope| {
        let served = scope.spawn(|| backend.serve(stop));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(address)));
        drop(stopper);
        served.join().expect("it does not panic").expect("it serves to the end");
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn load(target: SocketAddr, arguments: &str) -> anyhow::Result<Outcome> {
    let target = target.to_string();
    let arguments = ["load"].into_iter().chain(arguments.split(' ')).chain(["--target", &target]);
    outcome(&Args::try_parse_from(arguments)?.work)
}

/// Works without an error, and tells units and, where it measures them, latencies.
fn check(arguments: &str, has_latency: bool) {
    with_backend(|target| {
        let outcome = load(target, arguments).unwrap_or_else(|error| panic!("{arguments}: {error:#}"));
        assert_eq!(outcome.errors, 0, "{arguments}: {outcome:?}");
        assert!(outcome.units > 0.0, "{arguments}: {outcome:?}");
        assert_eq!(outcome.latency_us.is_some(), has_latency, "{arguments}: {outcome:?}");
    });
}

#[test]
fn all_bytes_and_ends_are_verified() {
    check("verify --udp", false);
}

#[test]
fn bulk_is_carried_for_a_time() {
    for way in ["bulk-up", "bulk-down", "bulk-both"] {
        check(&format!("{way} --seconds 0.05 --connections 3"), false);
    }
}

#[test]
fn bulk_of_so_many_bytes_is_carried_exactly() {
    with_backend(|target| {
        for (way, bytes) in [("bulk-up", 1_000_001.0), ("bulk-down", 1_000_001.0), ("bulk-both", 2_000_002.0)] {
            let outcome = load(target, &format!("{way} --bytes 1000001")).expect("the backend serves");
            assert_eq!((outcome.units * f64::from(1 << 30), outcome.errors), (bytes, 0), "{way}");
        }
    });
}

#[test]
fn messages_are_exchanged_in_closed_and_open_loops() {
    check("exchange --seconds 0.05 --connections 4 --size 300", true);
    check("connect --seconds 0.05 --connections 4", true);
    with_backend(|target| {
        let outcome = load(target, "open-loop --seconds 0.1 --rate 1000 --connections 3").expect("the backend serves");
        assert_eq!((outcome.units, outcome.errors), (101.0, 0), "those due from the first instant to the last");
    });
}

#[test]
fn chatty_and_greedy_connections_go_side_by_side() {
    check("mixed --seconds 0.1 --bulk 3 --connections 3 --rate 100", true);
}

#[test]
fn datagrams_are_exchanged_over_many_flows() {
    check("udp-exchange --seconds 0.05 --flows 10", true);
    check("udp-exchange --seconds 0.05 --flows 2 --window 4", true);
}

#[test]
fn datagrams_of_a_flood_are_counted_by_the_backend() {
    with_backend(|target| {
        let outcome = load(target, "udp-flood --seconds 0.1 --rate 2000 --flows 3").expect("the backend serves");
        assert_eq!((outcome.sent, outcome.lost), (Some(outcome.units as u64), Some(0)), "{outcome:?}");
    });
}

#[test]
fn resets_are_expected_where_they_are_made() {
    with_backend(|target| {
        let outcome = load(target, "resets --seconds 0.5 --rate 400 --udp-flows 3").expect("the backend serves");
        assert_eq!(outcome.errors, 0, "{outcome:?}");
        assert!(outcome.more["resets"] > 0.0 && outcome.more["left_out"] == 0.0, "{outcome:?}");
    });
}

#[test]
fn a_load_without_a_backend_says_where_it_looked() {
    let gone = SocketAddr::from(([127, 0, 0, 1], 1));
    let error = load(gone, "exchange").expect_err("nobody listens on port 1");
    assert!(error.to_string().starts_with("cannot connect to 127.0.0.1:1, look whether it listens"), "{error}");
}
