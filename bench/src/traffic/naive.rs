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

const WORKERS: usize = 2;
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
}

/// Serves until it is killed.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(args.listen).await.context("cannot listen for TCP")?;
        let mut services = JoinSet::new();
        services.spawn(streams(listener, args.backend));
        if args.udp {
            let socket = UdpSocket::bind(args.listen).await.context("cannot listen for UDP")?;
            services.spawn(datagrams(Arc::new(socket), args.backend));
        }
        services.join_next().await.expect("there is a service")?
    })
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
