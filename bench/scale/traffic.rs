//! Exchanges of 64 bytes through one port at a fixed rate, whatever the answers do, over TCP and over UDP.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    http::Client,
    platform::{PLAN_BOTH, PLAN_TCP, provision_by},
    process::Harbor,
};

const PLAN_SERVICE: &str = harbor::model::plan::SERVICE_ID;
const MESSAGE_BYTES: usize = 64;
/// One message every so long.
const EVERY: Duration = Duration::from_millis(1);
/// How long an answer is waited for that may be lost.
const LOST_AFTER: Duration = Duration::from_millis(500);
/// How long an app is known. It is announced once: no benchmark takes longer.
const STALE_AFTER_SECONDS: u32 = 600;

/// A connection through a port of a node to an app that sends everything back.
pub struct Traffic {
    stream: TcpStream,
}

impl Traffic {
    /// Provisions a port, announces an app behind it, and connects.
    pub async fn through(harbor: &Harbor, client: &Client) -> Self {
        let app = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let announced = app.local_addr().expect("bound").port();
        // Ends with the connection.
        thread::spawn(move || echo(&app));
        let port = announce(harbor, client, ("traffic", PLAN_TCP), json!({"port": announced})).await;
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        stream.set_nodelay(true).expect("a socket has it");
        Self { stream }
    }

    /// Exchanges messages for so long. Each takes from when it was due to be sent until its answer is whole, so that one
    /// that waits for another counts that too.
    pub fn exchange(&self, duration: Duration) -> JoinHandle<Vec<Duration>> {
        let (mut sender, mut receiver) =
            (self.stream.try_clone().expect("a descriptor"), self.stream.try_clone().expect("a descriptor"));
        let count = u32::try_from(duration.as_micros() / EVERY.as_micros()).expect("few enough");
        thread::spawn(move || {
            let start = Instant::now();
            let sending = thread::spawn(move || {
                for number in 0..count {
                    let due = start + EVERY * number;
                    #[expect(clippy::disallowed_methods, reason = "the time it waits for is the event")]
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    sender.write_all(&[0; MESSAGE_BYTES]).expect("the connection stands");
                }
            });
            let mut answer = [0; MESSAGE_BYTES];
            let latencies = (0..count)
                .map(|number| {
                    receiver.read_exact(&mut answer).expect("the connection stands");
                    (start + EVERY * number).elapsed()
                })
                .collect();
            sending.join().expect("sending does not panic");
            latencies
        })
    }
}

/// Datagrams through a port of a node to an app that sends them back.
#[allow(dead_code, reason = "not each benchmark has datagrams")]
pub struct Datagrams(UdpSocket);

#[allow(dead_code, reason = "not each benchmark has datagrams")]
impl Datagrams {
    /// Provisions a port, announces an app behind it, and begins a session.
    pub async fn through(harbor: &Harbor, client: &Client) -> Self {
        let app = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let announced = app.local_addr().expect("bound").port();
        // Ends with the process.
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((read, from)) = app.recv_from(&mut buffer) {
                let _ = app.send_to(&buffer[..read], from);
            }
        });
        let port = announce(harbor, client, ("datagrams", PLAN_BOTH), json!({"udp_port": announced})).await;
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        socket.connect(("127.0.0.1", port)).expect("loopback is there");
        socket.set_read_timeout(Some(LOST_AFTER)).expect("a socket has it");
        Self(socket)
    }

    /// As [`Traffic::exchange`]. A datagram that is lost has taken as long as it was waited for.
    pub fn exchange(&self, duration: Duration) -> JoinHandle<Vec<Duration>> {
        let (sender, receiver) = (self.0.try_clone().expect("a descriptor"), self.0.try_clone().expect("a descriptor"));
        let count = u32::try_from(duration.as_micros() / EVERY.as_micros()).expect("few enough");
        thread::spawn(move || {
            let start = Instant::now();
            let sending = thread::spawn(move || {
                for number in 0..count {
                    let due = start + EVERY * number;
                    #[expect(clippy::disallowed_methods, reason = "the time it waits for is the event")]
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    let mut message = [0; MESSAGE_BYTES];
                    message[..4].copy_from_slice(&number.to_be_bytes());
                    sender.send(&message).expect("loopback is there");
                }
            });
            let mut latencies = vec![LOST_AFTER; count as usize];
            let mut answer = [0; MESSAGE_BYTES];
            for _ in 0..count {
                let Ok(_) = receiver.recv(&mut answer) else { break };
                let number = u32::from_be_bytes([answer[0], answer[1], answer[2], answer[3]]);
                if let Some(latency) = latencies.get_mut(number as usize) {
                    *latency = (start + EVERY * number).elapsed();
                }
            }
            sending.join().expect("sending does not panic");
            latencies
        })
    }
}

/// Provisions a port by a plan and announces where an app of this machine is. Returns the port.
async fn announce(harbor: &Harbor, client: &Client, (id, plan): (&str, &str), mut app: Value) -> u16 {
    provision_by(client, id, plan).await;
    let binding = format!("{id}-key");
    let path = format!("/v2/service_instances/{id}/service_bindings/{binding}");
    let body = json!({"service_id": PLAN_SERVICE, "plan_id": plan, "parameters": {"announce": true}});
    let answer = client.put(&path, &body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let credentials = answer.json()["credentials"].clone();
    let token = credentials["announce"]["token"].as_str().expect("it was asked for");
    let announcer = Client::new(harbor.address("announce")).with("authorization", &format!("Bearer {token}"));
    app["binding_id"] = binding.into();
    app["stale_threshold_in_seconds"] = STALE_AFTER_SECONDS.into();
    let answer = announcer.put(&format!("/announce/v1/instances/{id}"), &app).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    credentials["port"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port")
}

fn echo(app: &TcpListener) {
    let (mut stream, _) = app.accept().expect("it is connected to");
    stream.set_nodelay(true).expect("a socket has it");
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
}
