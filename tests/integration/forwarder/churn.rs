//! Backends that come, drain, leave and lose their authority at every moment of connections' lives.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, SyncSender},
    },
    time::Duration,
};

use fastrand::Rng;
use harbor::model::{
    AppId, PoolName, Protocol, Timestamp, Transport,
    announcement::{AnnouncedState, Authority, Endpoint, Origin, Registration},
    directory::{Directory, DirectoryEntry},
    parameters::Settings,
    token::AnnounceSecret,
};

use super::node::{Node, id};
use crate::support::{
    eventually::{PATIENCE, eventually},
    peer::{TcpPeer, V4},
};

const PORT: u16 = 22690;
/// Backends, each with an app of its own as its authority.
const BACKENDS: usize = 4;
const CLIENTS: usize = 4;
/// Connections of each client.
const CONNECTIONS: usize = 120;
/// Moments of a connection at which the set changes, besides its beginning.
const PIECES: usize = 4;

/// What may end the connections of each backend: how often it has.
type Endings = [AtomicU64; BACKENDS];

/// The set as it is now, changed by one thread.
struct Churn<'a> {
    node: &'a Node,
    addresses: [std::net::SocketAddr; BACKENDS],
    /// Which backends are announced and do not drain.
    serving: [bool; BACKENDS],
    /// Which may have connections that end when time goes on: they drain or have left, or did when it last went on.
    leaving: [bool; BACKENDS],
    endings: &'a Endings,
    random: Rng,
}

fn app(number: usize) -> AppId {
    AppId::new(format!("app-{number}")).unwrap()
}

/// A directory in which all apps but one are bound.
fn without(unbound: Option<usize>) -> Directory {
    let mut directory = Directory::new(AnnounceSecret::new([0; 32]));
    directory.put_instance(DirectoryEntry {
        id: id(PORT),
        pool: PoolName::new("default").unwrap(),
        port: PORT,
        protocol: Protocol::Tcp,
        int_port: 4100,
        match_app: false,
        bindings: std::collections::BTreeSet::new(),
        apps: (0..BACKENDS).filter(|number| Some(*number) != unbound).map(app).collect(),
    });
    directory
}

impl Churn<'_> {
    fn announce(&self, number: usize, state: AnnouncedState) {
        let registration = Registration {
            service_instance_id: id(PORT),
            endpoints: vec![Endpoint { transport: Transport::Tcp, address: self.addresses[number] }],
            authority: Authority::App(app(number)),
            origin: Origin::default(),
            time_to_live: Duration::from_secs(1_000_000),
            state,
            since: None,
            heard_at: Timestamp::default(),
        };
        self.node.backends.apply(&registration, self.node.now()).expect("there is room");
    }

    /// Something becomes of one of the backends.
    fn change(&mut self) {
        let number = self.random.usize(..BACKENDS);
        match self.random.u8(..10) {
            0..4 => {
                self.serving[number] = true;
                self.announce(number, AnnouncedState::Up);
            }
            4..6 => {
                (self.serving[number], self.leaving[number]) = (false, true);
                self.announce(number, AnnouncedState::Draining);
            }
            6..8 => {
                (self.serving[number], self.leaving[number]) = (false, true);
                self.node.try_withdraw(PORT, Transport::Tcp, self.addresses[number]);
            }
            8 => {
                self.serving[number] = false;
                self.node.backends.retain_authorised(&without(Some(number)));
                self.endings[number].fetch_add(1, Ordering::SeqCst);
            }
            _ => {
                self.node.advance(Duration::from_secs(31));
                for number in (0..BACKENDS).filter(|number| self.leaving[*number]) {
                    self.endings[number].fetch_add(1, Ordering::SeqCst);
                }
                self.leaving = self.serving.map(|serving| !serving);
            }
        }
    }
}

/// How a connection has ended.
#[derive(Debug, Default)]
struct Ends {
    well: usize,
    cut: usize,
    turned_away: usize,
}

/// Sends so many bytes and expects them back between the backend's name and its last word. Has the set changed at some
/// moments meanwhile.
fn converse(random: &mut Rng, change: &SyncSender<()>, endings: &Endings, ends: &Mutex<Ends>) {
    let before: [u64; BACKENDS] = std::array::from_fn(|number| endings[number].load(Ordering::SeqCst));
    let mut bytes = vec![0; random.usize(1..64)];
    random.fill(&mut bytes);
    let bytes = bytes.repeat(random.usize(1..=40_000));
    let moment = || change.send(()).expect("somebody changes the set until all are done");
    let mut heard = Vec::new();
    moment();
    let result = TcpStream::connect_timeout(&(V4, PORT).into(), PATIENCE).and_then(|mut stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut writer = stream.try_clone()?;
        std::thread::scope(|scope| {
            let written = scope.spawn(|| {
                for piece in bytes.chunks(bytes.len().div_ceil(PIECES)) {
                    writer.write_all(piece)?;
                    moment();
                }
                // What has been broken off cannot be shut down; the read says so.
                let _ = writer.shutdown(Shutdown::Write);
                Ok(())
            });
            let read = stream.read_to_end(&mut heard);
            // What a write has learned, a read need not tell again.
            written.join().expect("it does not panic").and(read)
        })
    });
    let mut ends = ends.lock().expect("nobody panics while counting");
    match result {
        Ok(_) => {
            assert_eq!(heard.len(), bytes.len() + 2, "an end that nobody has said");
            assert!(heard[1..=bytes.len()] == bytes && heard.last() == Some(&b'.'), "a wrong byte");
            ends.well += 1;
        }
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
            let Some((name, echoed)) = heard.split_first() else {
                return ends.turned_away += 1;
            };
            assert!(bytes.starts_with(&echoed[..echoed.len().min(bytes.len())]), "a wrong byte before the cut");
            let number = usize::from(name - b'0');
            // It is counted after it has happened.
            let ended = || (endings[number].load(Ordering::SeqCst) > before[number]).then_some(());
            eventually(&format!("backend {number} has ended, as its connection was cut"), ended);
            ends.cut += 1;
        }
    }
}

/// Says its number, then echoes, then says a last word.
fn backend(number: usize) -> TcpPeer {
    TcpPeer::serving(V4, move |mut stream| {
        stream.write_all(&[b'0' + u8::try_from(number).expect("a digit")])?;
        io::copy(&mut stream.try_clone()?, &mut stream)?;
        stream.write_all(b".")?;
        stream.shutdown(Shutdown::Write)
    })
}

#[test]
fn connections_end_well_or_are_cut_when_their_backend_ends_while_the_set_changes_at_every_moment() {
    let peers: [TcpPeer; BACKENDS] = std::array::from_fn(backend);
    let node = Node::start();
    node.open(PORT, Protocol::Tcp, Settings::default());
    let (endings, ends) = (Endings::default(), Mutex::new(Ends::default()));
    let addresses = peers.each_ref().map(|peer| peer.address);
    let (serving, leaving) = ([true; BACKENDS], [false; BACKENDS]);
    let mut churn = Churn { node: &node, addresses, serving, leaving, endings: &endings, random: Rng::with_seed(1) };
    (0..BACKENDS).for_each(|number| churn.announce(number, AnnouncedState::Up));
    std::thread::scope(|scope| {
        let (change, changes) = mpsc::sync_channel(CLIENTS * PIECES);
        for client in 0..CLIENTS {
            let (change, endings, ends) = (change.clone(), &endings, &ends);
            scope.spawn(move || {
                let mut random = Rng::with_seed(client as u64);
                (0..CONNECTIONS).for_each(|_| converse(&mut random, &change, endings, ends));
            });
        }
        drop(change);
        // A few in the life of each connection: what is cut without a reason shows.
        changes.iter().for_each(|()| churn.change());
    });
    // What is open is cut with the authority; then nothing is left.
    let mut open = Vec::new();
    (0..BACKENDS).for_each(|number| churn.announce(number, AnnouncedState::Up));
    for _ in 0..BACKENDS {
        let mut stream = TcpStream::connect((V4, PORT)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        open.push(stream);
    }
    node.revoke_all();
    for mut stream in open {
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    eventually("no flow is open", || (node.forwarder.open_flows() == 0).then_some(()));
    let ends = ends.into_inner().unwrap();
    assert_eq!(ends.well + ends.cut + ends.turned_away, CLIENTS * CONNECTIONS);
    assert!(ends.well > 0 && ends.cut > 0, "{ends:?}");
}
