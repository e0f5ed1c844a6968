//! TCP around the amounts at which the forwarder may change how it carries bytes: copied through memory, or moved
//! through pipes inside the kernel, of which there are only so many.

use std::net::SocketAddr;

use fastrand::Rng;

use super::node::Node;
use crate::support::{
    life::{Hear, Life, Part, Say, Stage, Until},
    peer::{TcpPeer, V4, connect, ping},
};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
/// What one read takes in before the switch.
const BUFFER: usize = 64 * KIB;
/// Lives that are played at the same time.
const BATCH: usize = 12;

/// A node with a port and its stage.
fn stage(port: u16, make: fn(SocketAddr) -> Stage) -> (Node, Stage) {
    let node = Node::start();
    let stage = make(SocketAddr::new(V4, port));
    node.tcp(port, stage.backend.local_addr().unwrap());
    (node, stage)
}

/// Plays all, some at a time, and expects nothing to be left.
fn play_all(port: u16, lives: Vec<Life>) {
    play_all_on(stage(port, Stage::new), lives);
}

fn play_all_on((node, stage): (Node, Stage), mut lives: Vec<Life>) {
    let mut random = Rng::with_seed(u64::from(stage.port.port()));
    // So that the small and the large run beside each other.
    random.shuffle(&mut lives);
    for batch in lives.chunks(BATCH) {
        stage.play(batch, &mut random);
        node.wait_for_flows(0);
    }
}

fn write(bytes: usize, at_once: usize) -> Say {
    Say::Write { bytes, at_once }
}

fn read(bytes: usize) -> Hear {
    Hear::Read { bytes, at_once: 256 * KIB }
}

fn says(says: &[Say]) -> Part {
    Part { says: says.to_vec(), ..Part::default() }
}

fn hears(hears: &[Hear]) -> Part {
    Part { hears: hears.to_vec(), ..Part::default() }
}

/// Amounts at and around the sizes of scratch buffers and pipes.
fn amounts() -> impl Iterator<Item = usize> {
    let units = [(64 * KIB, 6), (256 * KIB, 4), (MIB, 1), (4 * MIB, 1)];
    let multiples = units.into_iter().flat_map(|(unit, times)| (1..=times).map(move |times| unit * times));
    multiples.flat_map(|bytes| [bytes - 2, bytes - 1, bytes, bytes + 1, bytes + 2, bytes + 4096])
}

#[test]
fn ends_at_and_around_the_sizes_of_buffers_and_pipes_are_passed_on_after_all_bytes() {
    let lives = amounts().flat_map(|bytes| {
        [
            Life { client: says(&[write(bytes, MIB)]), backend: Part::default() },
            Life { client: Part::default(), backend: says(&[write(bytes, MIB)]) },
            Life { client: says(&[write(bytes, 64 * KIB)]), backend: says(&[write(bytes, 256 * KIB)]) },
            // The answer comes after the end of what was asked.
            Life { client: says(&[write(bytes, MIB)]), backend: says(&[Say::Wait(Until::Quiet), write(bytes, MIB)]) },
        ]
    });
    play_all(22610, lives.collect());
}

#[test]
fn resets_at_and_around_the_sizes_of_buffers_and_pipes_are_resets_after_what_was_read() {
    let broken_after = |bytes| says(&[write(bytes, MIB), Say::Wait(Until::AllIsRead), Say::BreakOff]);
    let breaks_when_heard = |bytes| hears(&[read(bytes), Hear::BreakOff]);
    let lives = amounts().flat_map(|bytes| {
        [
            Life { client: broken_after(bytes), backend: says(&[write(bytes, 64 * KIB)]) },
            Life { client: says(&[write(bytes, 64 * KIB)]), backend: broken_after(bytes) },
            // With bytes still on their way in both directions.
            Life { client: says(&[write(2 * bytes, MIB)]), backend: breaks_when_heard(bytes) },
            Life { client: breaks_when_heard(bytes), backend: says(&[write(2 * bytes, MIB)]) },
        ]
    });
    play_all(22611, lives.collect());
}

#[test]
fn bulk_and_small_messages_take_turns_on_one_connection_in_both_directions() {
    let taking_turns = |bulk: usize, small: usize, times: usize| {
        let turn = [write(bulk, MIB), Say::Wait(Until::AllIsRead), write(small, 1), Say::Wait(Until::AllIsRead)];
        says(&turn.repeat(times))
    };
    let stalls = |part: Part, bytes: usize| {
        let hears = [read(bytes), Hear::Wait(Until::Quiet)].repeat(4);
        Part { hears, ..part }
    };
    let mut lives = Vec::new();
    for bulk in [64 * KIB, 256 * KIB, 300_001, 600 * KIB, MIB + 1] {
        lives.push(Life { client: taking_turns(bulk, 1, 4), backend: Part::default() });
        lives.push(Life { client: taking_turns(bulk, 64, 4), backend: taking_turns(70, 1, 12) });
        lives.push(Life { client: taking_turns(bulk, 3, 4), backend: taking_turns(bulk + 1, 5, 4) });
        lives.push(Life { client: stalls(taking_turns(10, 1, 3), bulk), backend: taking_turns(bulk, 1, 6) });
        lives.push(Life { client: taking_turns(bulk, 1, 6), backend: stalls(taking_turns(100, 1, 3), bulk) });
    }
    play_all(22612, lives);
}

#[test]
fn a_stream_may_stop_and_go_on_at_any_byte_around_the_switch() {
    // Each stop leaves something else in the sockets, in memory and in pipes.
    let lives = (0..48).map(|step| {
        let hears = (0..6).flat_map(|turn| [read(60_000 * (turn + 1) + 1009 * step), Hear::Wait(Until::Quiet)]);
        let listener = Part { hears: hears.collect(), receive_buffer: Some(128 * KIB), ..Part::default() };
        let speaker = says(&[write(5 * MIB + step, 100_000 + step)]);
        if step % 2 == 0 {
            Life { client: speaker, backend: listener }
        } else {
            Life { client: listener, backend: speaker }
        }
    });
    // Small segments: the kernel would have room for all of it otherwise.
    play_all_on(stage(22613, Stage::with_small_segments), lives.collect());
}

/// A stream of which so many bytes come first, by themselves: with them moves where it is found to be bulk, and where it is
/// found to be so no more.
fn switches_after(offset: usize) -> Life {
    let all_read = Say::Wait(Until::AllIsRead);
    let start = [write(offset, MIB), all_read, write(6 * BUFFER, MIB), all_read];
    let speaker = says(&[start.as_slice(), &[write(1, 1), all_read].repeat(6), &[write(2, 1)]].concat());
    match offset % 2 {
        0 => Life { client: speaker, backend: Part::default() },
        _ => Life { client: Part::default(), backend: speaker },
    }
}

#[test]
fn the_switch_may_be_at_every_byte_of_a_buffer() {
    play_all(22616, (0..BUFFER).map(switches_after).collect());
}

#[test]
fn more_stalled_streams_than_there_are_pipes_harm_nobody() {
    const STALLED: usize = 300;
    let (node, stage) = stage(22614, Stage::with_small_segments);
    let echo = TcpPeer::echo(V4);
    node.tcp(22615, echo.address);
    let mut bystander = connect(V4, 22615);
    // Each runs until it counts as bulk, and then stands still with its pipe or its remainder full.
    let bytes = 4 * MIB;
    let stops = Part {
        hears: vec![read(384 * KIB), Hear::Wait(Until::Quiet)],
        receive_buffer: Some(64 * KIB),
        ..Part::default()
    };
    let speaks = Part { send_buffer: Some(64 * KIB), ..says(&[write(bytes, 64 * KIB)]) };
    let lives = (0..STALLED).map(|number| match number % 2 {
        0 => Life { client: speaks.clone(), backend: stops.clone() },
        _ => Life { client: stops.clone(), backend: speaks.clone() },
    });
    let mut rests = 0;
    stage.play_watched(&lives.collect::<Vec<_>>(), &mut Rng::with_seed(1), &mut || {
        rests += 1;
        if rests == 1 {
            // The kernel may have taken all of a few.
            let standing = node.forwarder.open_flows();
            assert!(standing > 256, "only {standing} stand still");
        }
        ping(&mut bystander, b"still served");
    });
    assert!(rests >= 1, "they never stood still");
    drop(bystander);
    node.wait_for_flows(0);
}
