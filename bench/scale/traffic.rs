//! Exchanges of 64 bytes through one port at a fixed rate, whatever the answers do.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::json;

use super::{http::Client, platform::PLAN_TCP, process::Harbor};

const PLAN_SERVICE: &str = harbor::model::plan::SERVICE_ID;
const MESSAGE_BYTES: usize = 64;
/// One message every so long.
const EVERY: Duration = Duration::from_millis(1);

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

        super::provision(client, "traffic").await;
        let path = "/v2/service_instances/traffic/service_bindings/key";
        let body = json!({"service_id": PLAN_SERVICE, "plan_id": PLAN_TCP, "parameters": {"announce": true}});
        let answer = client.put(path, &body).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        let credentials = answer.json()["credentials"].clone();
        let port = credentials["port"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port");
        let token = credentials["announce"]["token"].as_str().expect("it was asked for");
        let announcer = Client::new(harbor.address("announce")).with("authorization", &format!("Bearer {token}"));
        let body = json!({"binding_id": "key", "port": announced, "stale_threshold_in_seconds": 120});
        let answer = announcer.put("/announce/v1/instances/traffic", &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");

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
