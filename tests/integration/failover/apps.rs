//! The instances of an app, on machines of their own, announced as a platform does it; and clients that ask them.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use crate::{
    end_to_end::{PLAN_BOTH, bind, provision_with},
    support::{
        echo::Echo,
        eventually::PATIENCE,
        harbor::Harbor,
        namespaces::{Machine, Network, Resident},
        nats::NatsServer,
    },
};

/// The ports of three service instances of TCP and UDP: one as it comes, one that goes by the client's address, and one
/// for a single client.
pub const PORT: u16 = 31_005;
pub const HASHED_PORT: u16 = 31_006;
pub const PRIVATE_PORT: u16 = 31_007;
/// The port of one that comes later.
const LATE_PORT: u16 = 31_008;
/// The range that they are in.
pub const PORTS: &str = "31000-31009";
/// How many backends there are of each, and of either transport.
pub const BACKENDS: usize = 4;

const ANNOUNCE_EVERY: Duration = Duration::from_millis(200);
const SERVICE_INSTANCES: [&str; 3] = ["game", "lobby", "backstage"];

/// Running instances of one app; gone when dropped.
pub struct Apps {
    _work: Vec<Resident>,
}

impl Apps {
    /// Starts two on each of two machines.
    pub fn start(network: &mut Network, nats: &NatsServer) -> Self {
        let [first, second] = ["app-1", "app-2"].map(|name| network.machine(name));
        let places = [(&first, 4100, "one"), (&first, 4101, "two"), (&second, 4100, "three"), (&second, 4101, "four")];
        let mut work = Vec::from(places.map(|(machine, port, name)| serve(machine, port, name)));
        let (url, announced) = (nats.url(), places.map(|(machine, port, _)| SocketAddr::new(machine.address(), port)));
        work.push(first.keep(move |stop| announce(url, announced, stop)));
        Self { _work: work }
    }
}

fn serve(machine: &Machine, port: u16, name: &'static str) -> Resident {
    let address = SocketAddr::new(machine.address(), port);
    machine.keep(move |stop| async move {
        let app = Echo::start_at(address, name).await;
        stop.cancelled().await;
        app.stop().await;
    })
}

/// Says where they are, again and again.
async fn announce(nats: String, places: [SocketAddr; BACKENDS], stop: CancellationToken) {
    let nats = async_nats::connect(nats).await.expect("the server is up");
    let mut ticks = interval(ANNOUNCE_EVERY);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        for (id, place) in SERVICE_INSTANCES.into_iter().flat_map(|id| places.map(|place| (id, place))) {
            let (host, port) = (place.ip(), place.port());
            let message = json!({ "host": host, "port": port, "app": "app", "harbor": { "instance_id": id } });
            // What cannot be said now is said the next time.
            let _ = nats.publish("harbor.register", message.to_string().into()).await;
        }
    }
}

/// Makes the service instances, bound to the app; the last one is for clients in `allow` alone.
pub async fn provision(harbor: &Harbor, allow: &str) {
    let parameters: [Value; 3] = [
        json!({ "port": PORT }),
        json!({ "port": HASHED_PORT, "balance": "source_hash" }),
        json!({ "port": PRIVATE_PORT, "allow": [allow] }),
    ];
    for (id, parameters) in SERVICE_INSTANCES.into_iter().zip(parameters) {
        provision_with(harbor, id, PLAN_BOTH, parameters).await;
        bind(harbor, id, &format!("{id}-binding"), PLAN_BOTH).await;
    }
}

/// Makes one more service instance, which has no app. Returns its port.
pub async fn provision_one_more(harbor: &Harbor) -> u16 {
    provision_with(harbor, "late", PLAN_BOTH, json!({ "port": LATE_PORT })).await;
    LATE_PORT
}

/// Which instance answers a new connection from one address to another; none when it is turned away.
pub fn over_tcp(from: IpAddr, to: SocketAddr) -> Option<String> {
    ask(&mut connect(from, to)?)
}

/// A connection from one address to another; none when nobody takes it.
pub fn connect(from: IpAddr, to: SocketAddr) -> Option<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("descriptors are left");
    socket.bind(&SocketAddr::new(from, 0).into()).expect("the client has this address");
    socket.connect_timeout(&to.into(), PATIENCE).ok()?;
    socket.set_read_timeout(Some(PATIENCE)).expect("it is a duration");
    Some(socket.into())
}

/// Which instance answers on an open connection; none when it has ended.
pub fn ask(stream: &mut TcpStream) -> Option<String> {
    stream.write_all(b"hello").ok()?;
    let mut answer = [0; 64];
    let length = stream.read(&mut answer).ok().filter(|length| *length > 0)?;
    Some(name(&answer[..length]))
}

/// A UDP client of one address that talks to another.
pub fn udp_client(from: IpAddr, to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((from, 0)).expect("the client has this address");
    socket.connect(to).expect("there is a route");
    socket.set_read_timeout(Some(PATIENCE)).expect("it is a duration");
    socket
}

/// Which instance answers its next datagram.
pub fn over_udp(client: &UdpSocket) -> String {
    client.send(b"hello").expect("there is a route");
    let mut answer = [0; 64];
    let length = client.recv(&mut answer).expect("an answer");
    name(&answer[..length])
}

fn name(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer).split(':').next().unwrap_or_default().to_owned()
}
