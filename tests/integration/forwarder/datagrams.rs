//! Datagrams in runs of any sizes, which kernels and forwarders may join and must take apart again.

use std::{
    collections::HashMap,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    panic::{AssertUnwindSafe, catch_unwind},
    process::Command,
    sync::LazyLock,
};

use fastrand::Rng;
use harbor::model::Transport;
use quinn_udp::{Transmit, UdpSockRef, UdpSocketState};

use super::node::Node;
use crate::support::{
    eventually::{PATIENCE, eventually},
    peer::{V4, V6, hear, udp_client},
};

/// Rounds in a normal run; `HARBOR_ROUNDS` is another number.
const ROUNDS: u64 = 400;
/// Clients at the same time, at most.
const CLIENTS: usize = 4;
/// The largest datagram of IPv4.
const LARGEST: usize = 65507;
/// What one client or its backend sends in a round, at most, as the kernel counts it. A socket's buffer has room for
/// 208 KiB by default, and a datagram takes up to twice its length and something for its own sake.
const ROOM: usize = 192 * 1024;
/// Datagrams of one run, at most; the kernel joins no more.
const MOST_JOINED: usize = 60;
/// Set in the process that lives in a network of its own.
const SMALL_NETWORK: &str = "HARBOR_TEST_SMALL_NETWORK";

/// What all datagrams are parts of.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = vec![0; 4 * LARGEST];
    Rng::with_seed(2).fill(&mut bytes);
    bytes
});

/// Hands runs over joined. Made with a socket of its own, since it lets the kernel join what that one receives.
static JOINING: LazyLock<UdpSocketState> = LazyLock::new(|| {
    let socket = UdpSocket::bind((V4, 0)).expect("a free port of loopback");
    UdpSocketState::new(UdpSockRef::from(&socket)).expect("a socket")
});

/// Datagrams of one length, and then perhaps a shorter one; or of one length each.
#[derive(Debug, Clone)]
struct Run {
    bytes: &'static [u8],
    lengths: Vec<usize>,
    /// Handed to the kernel as one, to be cut there.
    joined: bool,
}

/// A client, where its backend sees it, and what is on its way.
struct Flow {
    client: UdpSocket,
    upstream: SocketAddr,
}

/// A forwarder's port with clients on one side and a backend on the other.
struct Exchange {
    port: SocketAddr,
    backend: UdpSocket,
    flows: Vec<Flow>,
    /// The longest datagram that is handed over joined: the network takes no longer ones that way.
    longest_joined: usize,
}

/// What a datagram of this length takes of a socket's buffer.
const fn cost(length: usize) -> usize {
    2 * length + 1024
}

impl Run {
    /// Any run that takes so much room at most.
    fn random(random: &mut Rng, room: usize, longest_joined: usize) -> Self {
        let length = match random.u8(..10) {
            0 => random.usize(..=2),
            1..=4 => random.usize(1..=1472),
            5 => random.usize(1..=9000),
            6 => random.usize(..=LARGEST),
            7 => LARGEST,
            _ => *random.choice(&[64, 512, 1200, 1400, 1472, 1473, 4096]).expect("there are some"),
        };
        let length = length.min((room - cost(0)) / 2);
        let most = (room / cost(length)).min(MOST_JOINED);
        let mut lengths = vec![length; random.usize(1..=most)];
        match random.u8(..4) {
            // The last is shorter, as a sender's rest is.
            0 if length > 1 && lengths.len() > 1 => *lengths.last_mut().expect("not empty") = random.usize(1..length),
            // Or they are all different.
            1 => lengths.iter_mut().for_each(|length| *length = random.usize(..=*length)),
            _ => {}
        }
        let total = lengths.iter().sum::<usize>();
        let from = random.usize(..PATTERN.len() - total);
        let (last, others) = lengths.split_last().expect("not empty");
        let uniform = others.iter().all(|other| *other == lengths[0]) && (1..=lengths[0]).contains(last);
        let joined = uniform && lengths[0] <= longest_joined && total <= LARGEST && random.bool();
        Self { bytes: &PATTERN[from..from + total], lengths, joined }
    }

    fn of(length: usize, times: usize, joined: bool) -> Self {
        Self { bytes: &PATTERN[..length * times], lengths: vec![length; times], joined }
    }

    fn datagrams(&self) -> impl Iterator<Item = &'static [u8]> {
        let mut left = self.bytes;
        self.lengths.iter().map(move |length| {
            let (datagram, rest) = left.split_at(*length);
            left = rest;
            datagram
        })
    }

    /// Sends it.
    fn send(&self, from: &UdpSocket, destination: SocketAddr) {
        if !self.joined {
            return self.datagrams().for_each(|datagram| {
                assert_eq!(from.send_to(datagram, destination).expect("loopback takes it"), datagram.len());
            });
        }
        let train = Transmit {
            destination,
            ecn: None,
            contents: self.bytes,
            segment_size: Some(self.lengths[0]),
            src_ip: None,
        };
        JOINING.try_send(UdpSockRef::from(from), &train).expect("the kernel cuts it");
    }
}

impl Exchange {
    fn new(node: &Node, port: SocketAddr, longest_joined: usize) -> Self {
        let backend = UdpSocket::bind((port.ip(), 0)).expect("a free port of loopback");
        rustix::net::sockopt::set_socket_recv_buffer_size(&backend, 4 << 20).expect("a socket");
        backend.set_read_timeout(Some(PATIENCE)).expect("a socket");
        node.udp(port.port(), backend.local_addr().expect("bound"));
        Self { port, backend, flows: Vec::new(), longest_joined }
    }

    /// A new client, which its backend knows from then on.
    fn greet(&mut self) {
        let client = udp_client(self.port.ip(), self.port.port());
        client.send(b"hello").expect("loopback takes it");
        let (length, upstream) = self.backend.recv_from(&mut [0; 16]).expect("the datagram");
        assert_eq!(length, 5);
        self.flows.push(Flow { client, upstream });
    }

    /// Sends all runs to the backend, flow by flow in turns, and then as many answers back.
    fn round(&self, up: &[Vec<Run>], down: &[Vec<Run>]) {
        for turn in 0..up.iter().map(Vec::len).max().unwrap_or_default() {
            for (flow, runs) in self.flows.iter().zip(up) {
                runs.get(turn).into_iter().for_each(|run| run.send(&flow.client, self.port));
            }
        }
        let mut expected = HashMap::new();
        for (flow, runs) in self.flows.iter().zip(up) {
            expected.insert(flow.upstream, runs.iter().flat_map(Run::datagrams).collect::<Vec<_>>().into_iter());
        }
        let mut bytes = vec![0; LARGEST + 1];
        for number in 0..up.iter().flatten().map(|run| run.lengths.len()).sum() {
            let number: usize = number;
            let received = self.backend.recv_from(&mut bytes);
            let (length, from) = received.unwrap_or_else(|error| panic!("datagram {number} to the backend: {error}"));
            let next = expected.get_mut(&from).and_then(Iterator::next);
            assert_eq!(Some(length), next.map(<[u8]>::len), "length of datagram {number}");
            assert!(next == Some(&bytes[..length]), "contents of datagram {number}");
        }
        for turn in 0..down.iter().map(Vec::len).max().unwrap_or_default() {
            for (flow, runs) in self.flows.iter().zip(down) {
                runs.get(turn).into_iter().for_each(|run| run.send(&self.backend, flow.upstream));
            }
        }
        for (flow, runs) in self.flows.iter().zip(down) {
            for (number, datagram) in runs.iter().flat_map(Run::datagrams).enumerate() {
                let heard = hear(&flow.client);
                assert_eq!(heard.len(), datagram.len(), "length of answer {number}");
                assert!(heard == datagram, "contents of answer {number}");
            }
        }
    }

    /// Runs for each flow.
    fn runs(&self, random: &mut Rng) -> Vec<Vec<Run>> {
        let each = |_: &Flow| {
            let (mut room, mut runs) = (ROOM, Vec::new());
            for _ in 0..random.usize(..4) {
                if room >= cost(0) {
                    let run = Run::random(random, room, self.longest_joined);
                    room -= run.lengths.iter().map(|length| cost(*length)).sum::<usize>();
                    runs.push(run);
                }
            }
            runs
        };
        self.flows.iter().map(each).collect()
    }
}

#[test]
fn every_datagram_arrives_as_it_was_and_in_its_flows_order_whatever_runs_they_come_in() {
    let number = |name| std::env::var(name).ok().map(|number| number.parse::<u64>().expect("a number"));
    let rounds = number("HARBOR_ROUNDS").unwrap_or(ROUNDS) / 2;
    let seeds = number("HARBOR_SEED").map_or(0..rounds, |seed| seed..seed + 1);
    std::thread::scope(|scope| {
        for (port, address) in (22650..).zip([V4, V6]) {
            let seeds = seeds.clone();
            scope.spawn(move || exchange(seeds, SocketAddr::new(address, port)));
        }
    });
}

fn exchange(seeds: std::ops::Range<u64>, port: SocketAddr) {
    for seed in seeds {
        let went_well = catch_unwind(AssertUnwindSafe(|| {
            let mut random = Rng::with_seed(seed);
            let node = Node::start();
            let mut exchange = Exchange::new(&node, port, LARGEST);
            (0..random.usize(1..=CLIENTS)).for_each(|_| exchange.greet());
            for _ in 0..3 {
                let (up, down) = (exchange.runs(&mut random), exchange.runs(&mut random));
                exchange.round(&up, &down);
            }
            assert_eq!(node.sample("harbor_datagrams_dropped_total{reason=\"undeliverable\"}"), 0);
        }));
        assert!(went_well.is_ok(), "replay it with HARBOR_SEED={seed}");
    }
}

#[test]
fn a_run_that_has_many_datagrams_is_carried_whole_both_ways() {
    fn check(address: IpAddr, port: u16, clients: usize) {
        let node = Node::start();
        let mut exchange = Exchange::new(&node, SocketAddr::new(address, port), LARGEST);
        (0..clients).for_each(|_| exchange.greet());
        for length in [1, 64, 512, 1000] {
            for joined in [false, true] {
                let runs = vec![vec![Run::of(length, MOST_JOINED, joined)]; clients];
                exchange.round(&runs, &runs);
            }
        }
        let expected = 1 + 8 * MOST_JOINED;
        let labels = "{direction=\"to_backend\"}";
        assert_eq!(node.sample(&format!("harbor_datagrams_total{labels}")), (clients * expected) as u64);
    }
    check(V4, 22660, 1);
    check(V4, 22661, 3);
    check(V6, 22662, 2);
}

#[test]
fn datagrams_longer_than_the_network_takes_pass_in_fragments() {
    if std::env::var_os(SMALL_NETWORK).is_none() {
        let name = "forwarder::datagrams::datagrams_longer_than_the_network_takes_pass_in_fragments";
        let mut process = Command::new("unshare");
        process.args(["--map-root-user", "--net"]).arg(std::env::current_exe().expect("this is a program"));
        let output = process.args(["--exact", name, "--nocapture"]).env(SMALL_NETWORK, "1").output();
        let output = output.expect("unshare is part of every Debian");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let up = Command::new("ip").args(["link", "set", "lo", "up", "mtu", "1500"]).status().expect("ip is installed");
    assert!(up.success(), "the network's length can be set");
    for (port, address) in (22670..).zip([V4, V6]) {
        let node = Node::start();
        let mut exchange = Exchange::new(&node, SocketAddr::new(address, port), 1400);
        exchange.greet();
        for length in [1400, 1452, 1453, 1472, 1473, 2952, 2953, 9000, 30_000, LARGEST] {
            // Runs of one length that must not be joined, since the kernel cuts nothing longer than the network takes.
            let runs = [vec![Run::of(length, (ROOM / cost(length)).min(8), false)]];
            exchange.round(&runs, &runs);
        }
        for seed in 0..40 {
            let mut random = Rng::with_seed(seed);
            let (up, down) = (exchange.runs(&mut random), exchange.runs(&mut random));
            exchange.round(&up, &down);
        }
    }
}

#[test]
fn a_backend_that_goes_in_the_middle_of_a_burst_takes_nothing_of_the_next_ones_order_along() {
    let number_of = |bytes: &[u8]| u32::from_be_bytes(bytes[..4].try_into().expect("as it was sent"));
    let receive = |socket: &UdpSocket| {
        let mut bytes = [0; 64];
        let length = socket.recv(&mut bytes)?;
        assert_eq!((length, &bytes[4..8]), (8, b"good".as_slice()));
        Ok::<_, std::io::Error>(number_of(&bytes))
    };
    let primary = UdpSocket::bind((V4, 0)).unwrap();
    primary.set_read_timeout(Some(PATIENCE)).unwrap();
    let standby = UdpSocket::bind((V4, 0)).unwrap();
    standby.set_nonblocking(true).unwrap();
    let node = Node::start();
    node.udp(22680, primary.local_addr().unwrap());
    node.announce(22680, Transport::Udp, standby.local_addr().unwrap());
    let client = udp_client(V4, 22680);
    let mut sent = 0_u32;
    let mut send = |times: u32| {
        for _ in 0..times {
            client.send(&[&sent.to_be_bytes(), b"good".as_slice()].concat()).unwrap();
            sent += 1;
        }
    };
    send(100);
    let first = (0..50).map(|_| receive(&primary).unwrap()).collect::<Vec<_>>();
    // It refuses the others' datagrams from now on, and nobody else can have its address.
    primary.connect(primary.local_addr().unwrap()).unwrap();
    let mut second = Vec::new();
    eventually("the other backend has the flow", || {
        send(10);
        loop {
            match receive(&standby) {
                Ok(number) => second.push(number),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    return (second.len() >= 100).then_some(());
                }
            }
        }
    });
    assert_eq!(first, (0..50).collect::<Vec<_>>());
    // What was on its way is lost with the first backend; from there on nothing is.
    assert!(second[0] >= 50, "{second:?}");
    assert!(second.windows(2).all(|two| two[1] == two[0] + 1), "{second:?}");
}
