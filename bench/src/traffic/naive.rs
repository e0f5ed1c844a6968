//! The proxy that anyone would write first.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use clap::Parser;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream, UdpSocket},
    runtime::Builder,
    task::JoinSet,
    time::timeout,
};

const DATAGRAM_BYTES: usize = 64 * 1024;
/// Silence after which a client's socket is let go of.
const IDLE: Duration = Duration::from_secs(60);

#[derive(Debug, Parser)]
pub struct Args {
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    #[arg(long, value_name = "ADDRESS:PORT")]
    backend: SocketAddr,
    /// Proxy UDP on that port too.
    #[arg(long)]
    udp: bool,
    /// Threads that carry.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    workers: u16,
}

/// Serves until it is killed.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = Builder::new_multi_thread().worker_threads(args.workers.into()).enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(args.listen).await.context("cannot listen for TCP")?;
        let socket = match args.udp {
            true => Some(UdpSocket::bind(args.listen).await.context("cannot listen for UDP")?),
            false => None,
        };
        serve(listener, socket, args.backend).await
    })
}

async fn serve(listener: TcpListener, socket: Option<UdpSocket>, backend: SocketAddr) -> anyhow::Result<()> {
    let mut services = JoinSet::new();
    services.spawn(streams(listener, backend));
    if let Some(socket) = socket {
        services.spawn(datagrams(Arc::new(socket), backend));
    }
    services.join_next().await.expect("there is a service")?
}

async fn streams(listener: TcpListener, backend: SocketAddr) -> anyhow::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (mut client, _) = listener.accept().await?;
        connections.spawn(async move {
            let mut server = TcpStream::connect(backend).await?;
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            copy_bidirectional(&mut client, &mut server).await
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn datagrams(socket: Arc<UdpSocket>, backend: SocketAddr) -> anyhow::Result<()> {
    let mut upstreams: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut sessions = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        let (length, client) = socket.recv_from(&mut buffer).await?;
        while let Some(ended) = sessions.try_join_next() {
            upstreams.remove(&ended?);
        }
        let upstream = match upstreams.get(&client) {
            Some(upstream) => Arc::clone(upstream),
            None => {
                let any = if backend.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
                let upstream = Arc::new(UdpSocket::bind(SocketAddr::new(any, 0)).await?);
                upstream.connect(backend).await?;
                upstreams.insert(client, Arc::clone(&upstream));
                sessions.spawn(answers(Arc::clone(&socket), Arc::clone(&upstream), client));
                upstream
            }
        };
        // A datagram that cannot be sent is lost.
        let _ = upstream.send(&buffer[..length]).await;
    }
}

/// Passes answers on until there are none for long. Returns whose session that was.
async fn answers(socket: Arc<UdpSocket>, upstream: Arc<UdpSocket>, client: SocketAddr) -> SocketAddr {
    let mut buffer = vec![0; DATAGRAM_BYTES];
    while let Ok(Ok(length)) = timeout(IDLE, upstream.recv(&mut buffer)).await {
        let _ = socket.send_to(&buffer[..length], client).await;
    }
    client
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_and_datagrams_go_there_and_back() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);
        let app = TcpListener::bind(LOOPBACK).await.expect("there is a port");
        let backend = app.local_addr().expect("it is bound");
        let app_datagrams = UdpSocket::bind(backend).await.expect("the same port is free for UDP");
        let listener = TcpListener::bind(LOOPBACK).await.expect("there is a port");
        let target = listener.local_addr().expect("it is bound");
        let socket = UdpSocket::bind(target).await.expect("the same port is free for UDP");
        let mut proxy = JoinSet::new();
        proxy.spawn(serve(listener, Some(socket), backend));

        let mut client = TcpStream::connect(target).await.expect("the proxy listens");
        let (mut server, _) = app.accept().await.expect("the proxy connects");
        client.write_all(b"question").await.expect("it is open");
        client.shutdown().await.expect("it is open");
        let mut question = String::new();
        server.read_to_string(&mut question).await.expect("the end is passed on");
        assert_eq!(question, "question");
        server.write_all(b"answer").await.expect("it is half open");
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("the end is passed on");
        assert_eq!(answer, "answer");

        let client = UdpSocket::bind(LOOPBACK).await.expect("there is a port");
        client.send_to(b"datagram", target).await.expect("the proxy listens");
        let mut buffer = [0; 16];
        let (length, session) = app_datagrams.recv_from(&mut buffer).await.expect("it is bound");
        app_datagrams.send_to(&buffer[..length], session).await.expect("the session is open");
        let (length, from) = client.recv_from(&mut buffer).await.expect("it is bound");
        assert_eq!((&buffer[..length], from), (b"datagram".as_slice(), target));
    }
}
