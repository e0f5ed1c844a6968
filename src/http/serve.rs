//! The accept loop: one task a connection, all of them joined.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use http_body_util::BodyExt as _;
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::{
    Caller, Limits, Tls,
    callers::{Callers, Counted},
};

/// First pause after an accept that failed because this process is short of something.
const ACCEPT_PAUSE_MIN: Duration = Duration::from_millis(5);

/// Longest such pause.
const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// How long after the end a connection that has come before may take to say all that it wants.
const SAID_WITHIN: Duration = Duration::from_secs(1);

/// Serves `router` on `listener` until `shutdown`; then closes the listener, answers the requests that have come whole, or
/// come in a moment, for [`Limits::shutdown_grace`], and returns when no connection is left.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let callers = Callers::new(limits.max_connections, limits.max_connections_per_caller);
    let mut connections = JoinSet::new();
    loop {
        // Who is accepted is let in at once, so nobody is lost here when the end comes.
        let (stream, caller) = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = accept_with_room(&listener, callers.room()) => accepted,
        };
        while connections.try_join_next().is_some() {}
        let Some(counted) = callers.admit(caller.network()) else {
            tracing::debug!(caller = %caller.0, "a connection is closed: its caller is answered on as many as it may have");
            continue;
        };
        let (tls, router, shutdown) = (tls.clone(), router.clone(), shutdown.clone());
        connections.spawn(async move {
            tokio::select! {
                () = converse(stream, caller, &counted, tls, router, limits, shutdown) => {}
                () = counted.closed() => tracing::debug!(caller = %caller.0, "a connection is closed: it makes room"),
            }
            drop(counted);
        });
    }
    drop(listener);
    let finished = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.shutdown_grace, finished).await.is_err() {
        tracing::warn!(connections = connections.len(), "requests did not finish in time and are cut off");
        connections.shutdown().await;
    }
}

/// The next connection, once there is room for it: until then it stays in the kernel's queue, where a successor of this
/// process finds it.
async fn accept_with_room(listener: &TcpListener, mut room: watch::Receiver<bool>) -> (TcpStream, Caller) {
    const KEPT: &str = "the accept loop keeps who says whether there is room";
    loop {
        room.wait_for(|room| *room).await.expect(KEPT);
        tokio::select! {
            biased;
            full = room.wait_for(|room| !*room) => drop(full.expect(KEPT)),
            accepted = accept(listener) => return accepted,
        }
    }
}

/// The next connection.
async fn accept(listener: &TcpListener) -> (TcpStream, Caller) {
    let mut pause = ACCEPT_PAUSE_MIN;
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                let caller = Caller(SocketAddr::new(address.ip().to_canonical(), address.port()));
                return (stream, caller);
            }
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection: trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(ACCEPT_PAUSE_MAX);
            }
        }
    }
}

/// Whether only the connection that was about to be accepted is lost.
fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// One connection from its TLS handshake to its end.
async fn converse(
    stream: TcpStream,
    caller: Caller,
    counted: &Counted,
    tls: Option<Arc<Tls>>,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) {
    // Answers are small and complete: waiting to fill a segment only delays them. A failure costs only that.
    let _ = stream.set_nodelay(true);
    // The kernel's time for data that is not acknowledged is also that for a window that stays closed (tcp(7)).
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(limits.stall_timeout));
    let Some(tls) = tls else { return exchange(stream, caller, counted, router, limits, shutdown).await };
    let handshake = TlsAcceptor::from(tls.current()).accept(stream);
    let unbegun = CancellationToken::new();
    let outcome = tokio::select! {
        _ = last_call(&shutdown, &unbegun) => return,
        outcome = tokio::time::timeout(limits.header_timeout, handshake) => outcome,
    };
    match outcome {
        Ok(Ok(stream)) => exchange(stream, caller, counted, router, limits, shutdown).await,
        Ok(Err(error)) => tracing::debug!(caller = %caller.0, %error, "the TLS handshake failed"),
        Err(_) => tracing::debug!(caller = %caller.0, "the TLS handshake took too long"),
    }
}

/// Requests and answers of one connection.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    caller: Caller,
    counted: &Counted,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) {
    // Whether the latest request has come whole. It stays so while the answer is written, however long its caller takes: hyper
    // lets none follow it once the end has come, and closes a connection that has been answered.
    let (begun, heard) = (CancellationToken::new(), watch::Sender::new(false));
    let (first, whole) = (begun.clone(), heard.clone());
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        first.cancel();
        whole.send_replace(request.body().is_end_stream());
        let listening = Listening(whole.clone());
        let mut request = request.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _as_long_as_the_body = &listening;
                frame
            }))
        });
        request.extensions_mut().insert(caller);
        let answer = router.clone().oneshot(request);
        async move {
            if !counted.answers() {
                return Err(io::Error::other("it has to make room"));
            }
            let Ok(answer) = answer.await;
            counted.waits();
            Ok(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(limits.max_headers)
        .max_buf_size(limits.max_head_bytes)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        deadline = last_call(&shutdown, &begun) => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                outcome = connection.as_mut() => outcome,
                () = unheard(heard.subscribe(), deadline) => {
                    tracing::debug!(caller = %caller.0, "the connection is closed: its request has not come whole");
                    return;
                }
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(caller = %caller.0, %error, "the connection ended early");
    }
}

/// Goes with a request's body: when that has been read, or nobody wants more of it, the request is being answered.
struct Listening(watch::Sender<bool>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

/// Waits for the end, and a moment longer on a connection whose first request has not `begun`: it was made while there was
/// somebody to answer, and would be closed without an answer. Says when that moment is over.
async fn last_call(shutdown: &CancellationToken, begun: &CancellationToken) -> Instant {
    shutdown.cancelled().await;
    let deadline = Instant::now() + SAID_WITHIN;
    let _ = timeout_at(deadline, begun.cancelled()).await;
    deadline
}

/// Waits until `deadline` where no request has come whole by then: others are not to wait for who sends one by and by.
async fn unheard(mut heard: watch::Receiver<bool>, deadline: Instant) {
    if timeout_at(deadline, heard.wait_for(|heard| *heard)).await.is_ok() {
        // The connection ends with the answer.
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests;
