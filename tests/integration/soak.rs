//! Memory, descriptors and pipes of a node under load: bounded while streams stand still, and the same after a while
//! of mixed work as at its beginning. `harbor-bench soak` does the second for as long as one likes.

use std::{
    io::Write as _,
    iter,
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    time::{Duration, Instant},
};

use fastrand::Rng;
use serde_json::json;

use crate::{
    end_to_end::{PLAN_BOTH, at, bind, provision},
    support::{
        eventually::{eventually, eventually_async},
        footprint::Footprint,
        harbor::{Harbor, Site},
        http::Client,
        life::{Hear, Life, Part, Say, Stage, Until},
        peer::{UdpPeer, V4, ask, connect, read, udp_client},
    },
};

/// How long the load goes on.
const SOAK: Duration = Duration::from_secs(60);
/// How often is looked.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// Samples until everything has been in use, and as many as are compared with as many at the end.
const SETTLED: usize = 15;
const COMPARED: usize = 10;
/// What the process may have more at the end: the rest of what is fragmented and of what happens to be open.
const KIBIBYTES_MORE: usize = 4 * 1024;
const DESCRIPTORS_MORE: usize = 24;
const PIPES_MORE: usize = 16;

/// Ports under load, each with a thread.
const LANES: usize = 2;
/// Between two rounds of a lane.
const PAUSE: Duration = Duration::from_millis(10);
/// Connections of a lane that say something in every round, and some that say nothing until the end.
const CHATTY: usize = 5;
const IDLE: usize = 20;

/// Streams that stand still at the same time, half of them in each direction.
const STALLED: usize = 200;
/// What each may cost the process: one buffer for what a socket did not take, and the connection's state.
const KIBIBYTES_PER_STALLED: usize = 80;
/// Ends of pipes that a process has at most.
const MOST_PIPES: usize = 2 * 128 + 8;

/// UDP sessions at the same time, and bytes that each may take of the process.
const SESSIONS: usize = 4000;
const BYTES_PER_SESSION: usize = 1024;

/// A service instance for TCP and UDP whose backends are these.
async fn announced(harbor: &Harbor, id: &str, tcp: &Stage, udp: &UdpPeer) -> SocketAddr {
    provision(harbor, id, PLAN_BOTH).await;
    let binding = format!("binding-{id}");
    let credentials = bind(harbor, id, &binding, PLAN_BOTH).await;
    let token = credentials["announce"]["token"].as_str().expect("an app gets one");
    let announcer = Client::new(harbor.address("announce")).with("authorization", &format!("Bearer {token}"));
    let port = tcp.backend.local_addr().expect("bound").port();
    let body = json!({ "binding_id": binding, "port": port, "udp_port": udp.address.port() });
    let answer = announcer.put(&format!("/announce/v1/instances/{id}"), &body).await;
    assert!(answer.status.is_success(), "{answer:?}");
    at(&credentials)
}

async fn open_flows(harbor: &Harbor) -> u64 {
    let metrics = String::from_utf8(harbor.admin().get("/metrics").await.body.to_vec()).expect("text");
    let open = ["harbor_connections_open ", "harbor_sessions_open "];
    metrics.lines().filter_map(|line| open.iter().find_map(|name| line.strip_prefix(name)?.parse::<u64>().ok())).sum()
}

/// A port under load, with all that keeps to it.
struct Lane {
    stage: Stage,
    random: Rng,
    chatty: Vec<(TcpStream, TcpStream)>,
    udp: UdpSocket,
    rounds: u64,
}

impl Lane {
    fn new(stage: Stage, number: u64) -> Self {
        let chatty = iter::repeat_with(|| pair(&stage)).take(CHATTY).collect();
        let udp = udp_client(V4, stage.port.port());
        Self { stage, random: Rng::with_seed(number), chatty, udp, rounds: 0 }
    }

    /// Works until it is told to stop.
    fn work(mut self, stop: &Receiver<()>) -> u64 {
        let mut idle = iter::repeat_with(|| pair(&self.stage)).take(IDLE).collect::<Vec<_>>();
        while stop.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
            self.round();
        }
        idle.iter_mut().for_each(say);
        self.rounds
    }

    fn round(&mut self) {
        let lives = (0..self.random.usize(1..4)).map(|_| Life::ordinary(&mut self.random)).collect::<Vec<_>>();
        self.stage.play(&lives, &mut self.random);
        let chatty = self.random.usize(..CHATTY);
        say(&mut self.chatty[chatty]);
        let length = *self.random.choice(&[0, 1, 64, 512, 1472, 9000, 65507]).expect("there are some");
        let datagram = vec![self.random.u8(..); length];
        assert!(ask(&self.udp, &datagram) == datagram);
        match self.random.u8(..100) {
            // It goes without its answer.
            0 => drop(udp_client(V4, self.stage.port.port()).send(b"?")),
            1..10 => assert_eq!(ask(&udp_client(V4, self.stage.port.port()), b"!"), b"!"),
            _ => {}
        }
        self.rounds += 1;
    }
}

/// Both ends of a connection through a port.
fn pair(stage: &Stage) -> (TcpStream, TcpStream) {
    let client = connect(V4, stage.port.port());
    let (backend, _) = eventually("a connection to the backend", || stage.backend.accept().ok());
    backend.set_nonblocking(false).expect("a socket");
    (client, backend)
}

/// Says something from one end to the other and back.
fn say((client, backend): &mut (TcpStream, TcpStream)) {
    client.write_all(b"hello").expect("it is open");
    assert_eq!(read(backend, 5), b"hello");
    backend.write_all(b"hello").expect("it is open");
    assert_eq!(read(client, 5), b"hello");
}

/// Looks at a process every second while it works, and returns what was seen.
fn watch(pid: u32, failed: &Receiver<()>) -> Vec<Footprint> {
    let begun = Instant::now();
    let mut samples = Vec::new();
    while begun.elapsed() < SOAK {
        assert_eq!(failed.recv_timeout(SAMPLE_EVERY), Err(RecvTimeoutError::Timeout), "a lane has ended");
        samples.push(Footprint::of(pid));
    }
    samples
}

/// Puts lanes to work and watches the process meanwhile.
fn soak(pid: u32, stages: Vec<Stage>) -> (Vec<Footprint>, u64) {
    // Nothing is sent: a channel that is closed says that its other end has ended.
    let (alive, failed) = sync_channel::<()>(1);
    std::thread::scope(|scope| {
        let mut stops: Vec<SyncSender<()>> = Vec::new();
        let mut lanes = Vec::new();
        for (number, stage) in (0..).zip(stages) {
            let (stop, stopped) = sync_channel(1);
            stops.push(stop);
            let alive = alive.clone();
            lanes.push(scope.spawn(move || {
                let rounds = Lane::new(stage, number).work(&stopped);
                drop(alive);
                rounds
            }));
        }
        drop(alive);
        let samples = watch(pid, &failed);
        drop(stops);
        (samples, lanes.into_iter().map(|lane| lane.join().expect("no byte was wrong")).sum())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minute_of_mixed_load_with_resets_leaves_memory_descriptors_and_pipes_as_they_were() {
    let harbor = Site::new("28200-28209", "[forwarder]\nidle_timeout_udp = \"2s\"\n").serve().await;
    let udp = UdpPeer::echo(V4);
    let mut stages = Vec::new();
    for number in 0..LANES {
        let mut stage = Stage::new((V4, 0).into());
        stage.port = announced(&harbor, &format!("lane-{number}"), &stage, &udp).await;
        stages.push(stage);
    }
    let before = Footprint::of(harbor.pid());
    let (samples, rounds) = tokio::task::block_in_place(|| soak(harbor.pid(), stages));
    assert!(rounds > 100, "{rounds} rounds are no load");

    let early = Footprint::most(&samples[SETTLED..SETTLED + COMPARED]);
    let late = Footprint::most(&samples[samples.len() - COMPARED..]);
    let grown = format!("from {early:?} to {late:?} after {rounds} rounds");
    assert!(late.kibibytes <= early.kibibytes + KIBIBYTES_MORE, "memory has grown {grown}");
    assert!(late.descriptors <= early.descriptors + DESCRIPTORS_MORE, "descriptors have grown {grown}");
    assert!(late.pipes <= early.pipes + PIPES_MORE, "pipes have grown {grown}");

    eventually_async("no flow is open", || async { (open_flows(&harbor).await == 0).then_some(()) }).await;
    // All that is left are pipes that wait for the next bulk.
    eventually("all sockets are closed", || {
        let after = Footprint::of(harbor.pid());
        (after.descriptors - after.pipes <= before.descriptors - before.pipes).then_some(())
    });
    assert!(harbor.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_stand_still_in_either_direction_take_bounded_memory_and_pipes() {
    let harbor = Site::new("28210-28219", "").serve().await;
    let udp = UdpPeer::echo(V4);
    let mut stage = Stage::with_small_segments((V4, 0).into());
    stage.port = announced(&harbor, "stalled", &stage, &udp).await;
    let speaks = Part {
        says: vec![Say::Write { bytes: 4 << 20, at_once: 1 << 16 }],
        send_buffer: Some(1 << 16),
        ..Part::default()
    };
    let stops = Part {
        hears: vec![Hear::Read { bytes: 384 << 10, at_once: 1 << 16 }, Hear::Wait(Until::Quiet)],
        receive_buffer: Some(1 << 16),
        ..Part::default()
    };
    let lives = (0..STALLED).map(|number| match number % 2 {
        0 => Life { client: speaks.clone(), backend: stops.clone() },
        _ => Life { client: stops.clone(), backend: speaks.clone() },
    });
    let lives = lives.collect::<Vec<_>>();
    let before = Footprint::of(harbor.pid());
    let mut most = before;
    tokio::task::block_in_place(|| {
        stage.play_watched(&lives, &mut Rng::with_seed(1), &mut || {
            most = Footprint::most(&[most, Footprint::of(harbor.pid())]);
        });
    });
    assert!(most.descriptors > before.descriptors + 2 * STALLED * 8 / 10, "they did not stand still together");
    let allowed = before.kibibytes + STALLED * KIBIBYTES_PER_STALLED + 8 * 1024;
    assert!(most.kibibytes <= allowed, "{before:?} before, {most:?} when they stood still");
    assert!(most.pipes <= before.pipes + MOST_PIPES, "{before:?} before, {most:?} when they stood still");
    eventually_async("no flow is open", || async { (open_flows(&harbor).await == 0).then_some(()) }).await;
    assert!(harbor.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_udp_session_takes_less_than_a_kibibyte() {
    let harbor = Site::new("28220-28229", "[forwarder]\ndrain_timeout = \"0s\"\n").serve().await;
    let udp = UdpPeer::echo(V4);
    let stage = Stage::new((V4, 0).into());
    let port = announced(&harbor, "sessions", &stage, &udp).await;
    let begin = |number: usize| -> Vec<UdpSocket> {
        let clients = iter::repeat_with(|| udp_client(V4, port.port())).take(number).collect::<Vec<_>>();
        clients.iter().for_each(|client| assert_eq!(ask(client, b"x"), b"x"));
        clients
    };
    let _first = tokio::task::block_in_place(|| begin(100));
    let before = Footprint::of(harbor.pid());
    let _clients = tokio::task::block_in_place(|| begin(SESSIONS));
    let after = Footprint::of(harbor.pid());
    // Harbor opens files for a moment, as when it looks at the machine.
    let taken = after.descriptors - before.descriptors;
    assert!(taken.abs_diff(SESSIONS) <= 8, "{taken} descriptors for {SESSIONS} sessions");
    let each = (after.kibibytes - before.kibibytes) * 1024 / SESSIONS;
    assert!(each < BYTES_PER_SESSION, "a session takes {each} bytes");
    assert!(harbor.terminate().success());
}
