//! Every byte comes back as it was, and ends are passed on.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;

use super::Target;
use crate::traffic::{
    outcome::Outcome,
    protocol::{self, NUMBER, Pattern},
    sockets,
};

const ECHOED: u64 = 5 << 20;
const GIVEN: u64 = 3_000_001;
const SWALLOWED: u64 = 3_000_003;
/// Chunks are of sizes between 1 and this, small ones as often as large ones.
const LARGEST_CHUNK_LOG2: u32 = 18;
const DATAGRAM_SIZES: [usize; 5] = [0, 1, 64, 1400, 8000];
/// How often a datagram is sent before it is taken for lost, and how long each time is waited for it.
const TRIES: usize = 3;
const DATAGRAM_PATIENCE: Duration = Duration::from_millis(500);

#[derive(Debug, Parser)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// UDP too.
    #[arg(long)]
    udp: bool,
}

pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    let Target { target, .. } = args.target;
    let start = Instant::now();
    let pattern = Pattern::new();
    echo(target, &pattern).context("echo")?;
    give(target, &pattern).context("the backend gives and ends first")?;
    swallow(target, &pattern).context("the client ends first, the answer comes after")?;
    if args.udp {
        DATAGRAM_SIZES.iter().try_for_each(|size| datagram(target, &pattern, *size)).context("datagrams")?;
    }
    let bytes = ECHOED * 2 + GIVEN + SWALLOWED;
    Ok(Outcome::new("verify", "MiB", bytes as f64 / f64::from(1 << 20), start.elapsed()))
}

/// Sends in chunks of any size while it reads what comes back, ends, and expects the rest and the end.
fn echo(target: SocketAddr, pattern: &Pattern) -> anyhow::Result<()> {
    let mut stream = sockets::connect(target)?;
    stream.write_all(&[protocol::ECHO])?;
    thread::scope(|scope| {
        let writer = scope.spawn(|| write_chunks(&stream, pattern, ECHOED));
        let read = expect(&stream, pattern, ECHOED);
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        read.and(written)
    })
}

fn give(target: SocketAddr, pattern: &Pattern) -> anyhow::Result<()> {
    let mut stream = sockets::connect(target)?;
    stream.write_all(&protocol::command(protocol::GIVE, GIVEN))?;
    expect(&stream, pattern, GIVEN)
}

fn swallow(target: SocketAddr, pattern: &Pattern) -> anyhow::Result<()> {
    let mut stream = sockets::connect(target)?;
    stream.write_all(&[protocol::SWALLOW])?;
    write_chunks(&stream, pattern, SWALLOWED)?;
    let mut count = [0; NUMBER];
    stream.read_exact(&mut count).context("no answer came after the client's end")?;
    let count = u64::from_be_bytes(count);
    ensure!(count == SWALLOWED, "{count} bytes of {SWALLOWED} arrived");
    expect_end(&stream)
}

fn write_chunks(mut stream: &TcpStream, pattern: &Pattern, bytes: u64) -> anyhow::Result<()> {
    let mut random = fastrand::Rng::with_seed(bytes);
    let mut offset = 0;
    while offset < bytes {
        let order = random.u32(0..=LARGEST_CHUNK_LOG2);
        let most = random.u64(1..=1 << order);
        let chunk = pattern.from(offset, most.min(bytes - offset));
        stream.write_all(chunk).with_context(|| format!("sending stopped at byte {offset}"))?;
        offset += chunk.len() as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(())
}

/// Expects this part of the pattern, then the end.
fn expect(mut stream: &TcpStream, pattern: &Pattern, bytes: u64) -> anyhow::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut offset = 0;
    while offset < bytes {
        let most = buffer.len().min((bytes - offset) as usize);
        let read = stream.read(&mut buffer[..most]).with_context(|| format!("nothing came after byte {offset}"))?;
        ensure!(read > 0, "the end came after byte {offset} of {bytes}");
        ensure!(pattern.matches(offset, &buffer[..read]), "what came is not what was sent, after byte {offset}");
        offset += read as u64;
    }
    expect_end(stream)
}

fn expect_end(mut stream: &TcpStream) -> anyhow::Result<()> {
    let more = stream.read(&mut [0; 64]).context("the end did not come")?;
    ensure!(more == 0, "there is more than was sent");
    Ok(())
}

fn datagram(target: SocketAddr, pattern: &Pattern, size: usize) -> anyhow::Result<()> {
    let mut bytes = pattern.from(0, size as u64).to_vec();
    if let Some(first) = bytes.first_mut() {
        *first = protocol::ECHO;
    }
    let socket = sockets::flow(target)?;
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(DATAGRAM_PATIENCE))?;
    let mut buffer = vec![0; 64 * 1024];
    for _ in 0..TRIES {
        socket.send(&bytes)?;
        match socket.recv(&mut buffer) {
            Ok(length) => {
                ensure!(buffer[..length] == bytes, "a datagram of {} bytes came back changed", bytes.len());
                return Ok(());
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!("a datagram of {} bytes never came back", bytes.len())
}
