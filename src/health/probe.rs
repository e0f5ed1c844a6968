//! One look at whether a TCP backend takes connections.

use std::{io, net::SocketAddr, os::fd::OwnedFd, time::Duration};

use tokio::{net::TcpStream, time::timeout};

/// Begins a TCP connection to a backend; its socket, which does not block, becomes writable when that is done, well or not.
/// Whoever forwards makes it: it may take no port of a pool.
pub type Connect = dyn Fn(SocketAddr) -> io::Result<OwnedFd> + Send + Sync;

/// Whether `backend` takes a connection within `limit`; it ends at once.
pub(super) async fn takes_connections(connect: &Connect, backend: SocketAddr, limit: Duration) -> bool {
    let connected = async {
        let stream = TcpStream::from_std(connect(backend)?.into())?;
        stream.writable().await?;
        stream.take_error()?.map_or(Ok(()), Err)
    };
    matches!(timeout(limit, connected).await, Ok(Ok(())))
}
