//! An app instance: says its name and what it was told, over TCP and UDP.

#![allow(dead_code, reason = "each test module uses the helpers it needs")]

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
};

/// Largest message of a test.
const MESSAGE: usize = 64 * 1024;

/// A running instance; gone when dropped.
#[derive(Debug)]
pub struct Echo {
    pub tcp: SocketAddr,
    pub udp: SocketAddr,
    tasks: JoinSet<()>,
}

impl Echo {
    /// Starts one on free ports of loopback.
    pub async fn start(name: &'static str) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), name).await
    }

    /// Starts one there; on free ports when that is 0.
    pub async fn start_at(address: SocketAddr, name: &'static str) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let socket = UdpSocket::bind(address).await.expect("a free port");
        let (tcp, udp) = (listener.local_addr().expect("bound"), socket.local_addr().expect("bound"));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(converse(stream, name));
            }
        });
        tasks.spawn(async move {
            let mut buffer = vec![0; MESSAGE];
            while let Ok((size, from)) = socket.recv_from(&mut buffer).await {
                // A client that has gone is its own business.
                let _ = socket.send_to(&answer(name, &buffer[..size]), from).await;
            }
        });
        Self { tcp, udp, tasks }
    }

    /// Ends it; its ports are closed then.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn converse(mut stream: TcpStream, name: &str) {
    let mut buffer = vec![0; MESSAGE];
    while let Ok(size @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&answer(name, &buffer[..size])).await.is_err() {
            return;
        }
    }
}

fn answer(name: &str, told: &[u8]) -> Vec<u8> {
    [name.as_bytes(), b": ", told].concat()
}

/// Tells something over an open connection; none when it has ended.
pub async fn tell(stream: &mut TcpStream, text: &str) -> Option<String> {
    stream.write_all(text.as_bytes()).await.ok()?;
    let mut buffer = vec![0; MESSAGE];
    match stream.read(&mut buffer).await {
        Ok(0) | Err(_) => None,
        Ok(size) => Some(String::from_utf8_lossy(&buffer[..size]).into_owned()),
    }
}

/// Tells something over a new connection; none when there is no answer.
pub async fn over_tcp(to: SocketAddr, text: &str) -> Option<String> {
    tell(&mut TcpStream::connect(to).await.ok()?, text).await
}
