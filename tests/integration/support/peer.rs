//! Real apps for tests: TCP and UDP servers on a free port of loopback, stopped on drop.

#![allow(dead_code, reason = "each test module uses the helpers it needs")]

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use socket2::{Domain, Socket, Type};

use super::eventually::PATIENCE;

pub const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// A TCP server; each connection has a thread.
#[derive(Debug)]
pub struct TcpPeer {
    pub address: SocketAddr,
    listener: Arc<TcpListener>,
    accepted: Arc<AtomicUsize>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl TcpPeer {
    /// Serves every connection with `serve`.
    pub fn serving(address: IpAddr, serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = Arc::new(TcpListener::bind((address, 0)).expect("a free port of loopback"));
        let address = listener.local_addr().expect("bound");
        let (accepted, streams) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let thread = std::thread::spawn({
            let (listener, accepted, streams) = (Arc::clone(&listener), Arc::clone(&accepted), Arc::clone(&streams));
            move || {
                std::thread::scope(|scope| {
                    while let Ok((stream, _)) = listener.accept() {
                        accepted.fetch_add(1, Ordering::SeqCst);
                        let kept = stream.try_clone().expect("descriptors are left");
                        streams.lock().unwrap().push(stream.try_clone().expect("descriptors are left"));
                        scope.spawn(|| {
                            // A connection that breaks is what some tests are about.
                            let _ = serve(stream);
                            let _ = kept.shutdown(Shutdown::Both);
                            drop(kept);
                        });
                    }
                });
            }
        });
        Self { address, listener, accepted, streams, thread: Some(thread) }
    }

    /// Sends back what comes, to the end.
    pub fn echo(address: IpAddr) -> Self {
        Self::serving(address, |mut stream| {
            let mut bytes = vec![0; 64 * 1024];
            loop {
                match stream.read(&mut bytes)? {
                    0 => return stream.shutdown(Shutdown::Write),
                    read => stream.write_all(&bytes[..read])?,
                }
            }
        })
    }

    /// Says `name` and then does as [`TcpPeer::echo`].
    pub fn named(name: &'static str) -> Self {
        Self::serving(V4, move |mut stream| {
            stream.write_all(name.as_bytes())?;
            io::copy(&mut stream.try_clone()?, &mut stream)?;
            stream.shutdown(Shutdown::Write)
        })
    }

    /// How many connections it has had.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for TcpPeer {
    fn drop(&mut self) {
        // Ends `accept`.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.thread.take().expect("dropped once").join().expect("a peer does not panic");
    }
}

/// A UDP server.
#[derive(Debug)]
pub struct UdpPeer {
    pub address: SocketAddr,
    socket: UdpSocket,
    stop: Arc<AtomicBool>,
    received: Arc<Mutex<Vec<Datagram>>>,
    thread: Option<JoinHandle<()>>,
}

/// Where it came from, and what it was.
pub type Datagram = (SocketAddr, Vec<u8>);

impl UdpPeer {
    /// Answers each datagram with what `answer` makes of it, if anything.
    pub fn answering(address: IpAddr, answer: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static) -> Self {
        let socket = UdpSocket::bind((address, 0)).expect("a free port of loopback");
        let address = socket.local_addr().expect("bound");
        let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let kept = socket.try_clone().expect("descriptors are left");
        let thread = std::thread::spawn({
            let (stop, received) = (Arc::clone(&stop), Arc::clone(&received));
            move || {
                let mut bytes = vec![0; 65536];
                loop {
                    let (length, from) = socket.recv_from(&mut bytes).expect("nothing refuses a server's datagrams");
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    received.lock().unwrap().push((from, bytes[..length].to_vec()));
                    if let Some(answer) = answer(&bytes[..length]) {
                        socket.send_to(&answer, from).expect("loopback takes it");
                    }
                }
            }
        });
        Self { address, socket: kept, stop, received, thread: Some(thread) }
    }

    /// Sends back what comes.
    pub fn echo(address: IpAddr) -> Self {
        Self::answering(address, |datagram| Some(datagram.to_vec()))
    }

    /// Answers with its name.
    pub fn named(name: &'static str) -> Self {
        Self::answering(V4, move |_| Some(name.as_bytes().to_vec()))
    }

    /// Says nothing.
    pub fn mute() -> Self {
        Self::answering(V4, |_| None)
    }

    /// Ends it, and keeps its address: what is sent there from now on is refused.
    pub fn into_nobody(self) -> Nobody {
        let socket = self.socket.try_clone().expect("descriptors are left");
        drop(self);
        Nobody::refusing(socket)
    }

    /// What it was sent so far.
    pub fn received(&self) -> Vec<Datagram> {
        self.received.lock().unwrap().clone()
    }
}

impl Drop for UdpPeer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let unspecified = if self.address.is_ipv4() { V4 } else { V6 };
        let rouser = UdpSocket::bind((unspecified, 0)).expect("a free port of loopback");
        rouser.send_to(&[], self.address).expect("loopback takes it");
        self.thread.take().expect("dropped once").join().expect("a peer does not panic");
    }
}

/// An address of loopback at which nobody serves, kept while this lives: one that were free again could become
/// another test's. What is sent there is refused.
#[derive(Debug)]
pub struct Nobody {
    pub address: SocketAddr,
    _held: OwnedFd,
}

impl Nobody {
    /// A TCP address: bound, and nobody listens.
    pub fn tcp() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("descriptors are left");
        socket.bind(&SocketAddr::new(V4, 0).into()).expect("a free port of loopback");
        Self::holding(socket)
    }

    /// A UDP address: its socket is connected, to itself, and so is nobody's to all others.
    pub fn udp() -> Self {
        Self::refusing(UdpSocket::bind((V4, 0)).expect("a free port of loopback"))
    }

    fn refusing(socket: UdpSocket) -> Self {
        socket.connect(socket.local_addr().expect("bound")).expect("loopback takes it");
        Self::holding(socket.into())
    }

    fn holding(socket: Socket) -> Self {
        let address = socket.local_addr().expect("bound").as_socket().expect("of the internet");
        Self { address, _held: socket.into() }
    }
}

/// A TCP client that does not wait for ever.
pub fn connect(address: IpAddr, port: u16) -> TcpStream {
    let stream = TcpStream::connect_timeout(&SocketAddr::new(address, port), PATIENCE).expect("somebody listens");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Whether a new connection is reset at once. That may be seen as early as in `connect`.
#[track_caller]
pub fn is_turned_away(address: IpAddr, port: u16) -> bool {
    match TcpStream::connect_timeout(&SocketAddr::new(address, port), PATIENCE) {
        Ok(mut stream) => {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            is_reset(&mut stream)
        }
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

/// Reads exactly so many bytes.
#[track_caller]
pub fn read(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).expect("the other side says so much");
    bytes
}

/// Sends some bytes and expects them back.
#[track_caller]
pub fn ping(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).expect("the connection is open");
    assert_eq!(read(stream, bytes.len()), bytes);
}

/// Whether the other side has broken the connection off, with a reset.
#[track_caller]
pub fn is_reset(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 1024]) {
        Ok(length) => {
            assert_eq!(length, 0, "it said something");
            false
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => true,
        Err(error) => panic!("neither an end nor a reset: {error}"),
    }
}

/// A UDP client that does not wait for ever, connected to a port of `address`.
pub fn udp_client(address: IpAddr, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((if address.is_ipv4() { V4 } else { V6 }, 0)).expect("a free port of loopback");
    socket.connect((address, port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends a datagram and returns the answer.
#[track_caller]
pub fn ask(socket: &UdpSocket, datagram: &[u8]) -> Vec<u8> {
    socket.send(datagram).expect("the port is open");
    hear(socket)
}

/// The next datagram.
#[track_caller]
pub fn hear(socket: &UdpSocket) -> Vec<u8> {
    let mut bytes = vec![0; 65536];
    let length = socket.recv(&mut bytes).expect("an answer");
    bytes.truncate(length);
    bytes
}
