use std::sync::atomic::{AtomicUsize, Ordering};

use axum::{
    Extension,
    routing::{get, put},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
    sync::{Notify, Semaphore as Gate},
    task::JoinHandle,
};

use super::*;
use crate::http::with_fallbacks;

/// A listener on loopback that ends with the test.
struct Served {
    address: SocketAddr,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
}

impl Served {
    async fn new(router: Router, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        Self::on(listener.into_std().expect("it is registered"), router, limits)
    }

    fn on(listener: std::net::TcpListener, router: Router, limits: Limits) -> Self {
        let listener = TcpListener::from_std(listener).expect("it can be registered");
        let address = listener.local_addr().expect("it is bound");
        let shutdown = CancellationToken::new();
        #[expect(clippy::disallowed_methods, reason = "joined by stop()")]
        let server = tokio::spawn(serve(listener, None, with_fallbacks(router), limits, shutdown.clone()));
        Self { address, shutdown, server }
    }

    async fn send(&self, bytes: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.expect("it listens");
        stream.write_all(bytes.as_bytes()).await.expect("it is open");
        stream
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.server.await.expect("the server does not panic");
    }
}

const GET: &str = "GET / HTTP/1.1\r\nhost: harbor\r\n\r\n";
const GET_AND_CLOSE: &str = "GET / HTTP/1.1\r\nhost: harbor\r\nconnection: close\r\n\r\n";

/// All that comes until the connection ends, also by a reset.
async fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    String::from_utf8(bytes).expect("text")
}

/// A route that says it has been entered and answers when the gate lets it.
fn gated() -> (Router, Arc<Notify>, Arc<Gate>, Arc<AtomicUsize>) {
    let (entered, gate, inside) = (Arc::new(Notify::new()), Arc::new(Gate::new(0)), Arc::new(AtomicUsize::new(0)));
    let state = (Arc::clone(&entered), Arc::clone(&gate), Arc::clone(&inside));
    let handler = move || {
        let (entered, gate, inside) = state.clone();
        async move {
            inside.fetch_add(1, Ordering::SeqCst);
            entered.notify_one();
            gate.acquire().await.expect("never closed").forget();
            "done"
        }
    };
    (Router::new().route("/", get(handler)), entered, gate, inside)
}

#[tokio::test]
async fn a_request_head_that_trickles_ends_the_connection() {
    let limits = Limits { header_timeout: Duration::from_millis(50), ..Limits::default() };
    let served = Served::new(Router::new().route("/", get(|| async { "ok" })), limits).await;
    assert_eq!(rest(served.send("").await).await, "");
    assert_eq!(rest(served.send("GET / HTTP/1.1\r\nhost: har").await).await, "");
    let kept_open = rest(served.send(GET).await).await;
    assert!(kept_open.starts_with("HTTP/1.1 200 OK\r\n") && kept_open.ends_with("\r\n\r\nok"), "{kept_open}");
    served.stop().await;
}

#[tokio::test]
async fn whoever_asks_nothing_makes_room_for_whoever_asks() {
    for limits in [
        Limits { max_connections_per_caller: 2, ..Limits::default() },
        Limits { max_connections: 2, ..Limits::default() },
    ] {
        let served = Served::new(Router::new().route("/", get(|| async { "ok" })), limits).await;
        let mut half_asked = Vec::new();
        for _ in 0..8 {
            half_asked.push(served.send("GET").await);
        }
        assert!(rest(served.send(GET_AND_CLOSE).await).await.ends_with("ok"));
        assert_eq!(rest(half_asked.remove(0)).await, "", "the first has made room");
        // One that was answered and is kept open makes room too.
        let mut kept = served.send(GET).await;
        let mut answer = Vec::new();
        while !answer.ends_with(b"ok") {
            assert_ne!(kept.read_buf(&mut answer).await.expect("it is open"), 0);
        }
        for _ in 0..2 {
            half_asked.push(served.send("GET").await);
        }
        assert_eq!(rest(kept).await, "");
        drop(half_asked);
        served.stop().await;
    }
}

#[tokio::test]
async fn one_caller_is_answered_on_no_more_connections_than_its_share() {
    let (router, entered, gate, inside) = gated();
    let served = Served::new(router, Limits { max_connections_per_caller: 2, ..Limits::default() }).await;
    let mut asked = Vec::new();
    for _ in 0..2 {
        asked.push(served.send(GET_AND_CLOSE).await);
        entered.notified().await;
    }
    assert_eq!(rest(served.send(GET_AND_CLOSE).await).await, "", "closed at once");
    assert_eq!(inside.load(Ordering::SeqCst), 2);
    gate.add_permits(3);
    for stream in asked {
        assert!(rest(stream).await.ends_with("done"));
    }
    // Their ends are seen in their own time.
    let answered = async { while rest(served.send(GET_AND_CLOSE).await).await.is_empty() {} };
    tokio::time::timeout(Duration::from_secs(20), answered).await.expect("there is room again");
    served.stop().await;
}

#[tokio::test]
async fn a_caller_who_has_its_share_costs_nobody_else_a_connection() {
    let (router, entered, gate, _) = gated();
    let limits = Limits { max_connections: 2, max_connections_per_caller: 1, ..Limits::default() };
    let served = Served::new(router, limits).await;
    let socket = TcpSocket::new_v4().expect("there is room for a socket");
    socket.bind("127.0.0.2:0".parse().expect("an address")).expect("all of 127.0.0.0/8 is loopback");
    let mut other = socket.connect(served.address).await.expect("it listens");
    let asked = served.send(GET_AND_CLOSE).await;
    entered.notified().await;
    for _ in 0..3 {
        assert_eq!(rest(served.send(GET_AND_CLOSE).await).await, "", "closed at once");
    }
    gate.add_permits(2);
    other.write_all(GET_AND_CLOSE.as_bytes()).await.expect("it is open");
    for stream in [asked, other] {
        assert!(rest(stream).await.ends_with("done"));
    }
    served.stop().await;
}

#[tokio::test]
async fn more_connections_than_the_limit_wait_for_their_turn() {
    let (router, entered, gate, inside) = gated();
    let served = Served::new(router, Limits { max_connections: 1, ..Limits::default() }).await;
    let first = served.send(GET_AND_CLOSE).await;
    entered.notified().await;
    let second = served.send(GET_AND_CLOSE).await;
    assert_eq!(inside.load(Ordering::SeqCst), 1);
    gate.add_permits(1);
    assert!(rest(first).await.ends_with("done"));
    entered.notified().await;
    assert_eq!(inside.load(Ordering::SeqCst), 2);
    gate.add_permits(1);
    assert!(rest(second).await.ends_with("done"));
    served.stop().await;
}

#[tokio::test]
async fn whoever_waits_for_room_when_the_end_comes_is_answered_by_the_successor() {
    let (router, entered, gate, _) = gated();
    let limits = Limits { max_connections: 1, ..Limits::default() };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    listener.set_nonblocking(true).expect("sockets can be non-blocking");
    let heir = listener.try_clone().expect("there is room for a socket");
    let served = Served::on(listener, router.clone(), limits);
    let first = served.send(GET_AND_CLOSE).await;
    entered.notified().await;
    let second = served.send(GET_AND_CLOSE).await;
    // While another listener answers, this one takes in whom it would.
    let other = Served::new(Router::new().route("/", get(|| async { "ok" })), Limits::default()).await;
    assert!(rest(other.send(GET_AND_CLOSE).await).await.ends_with("ok"));
    other.stop().await;
    gate.add_permits(2);
    served.shutdown.cancel();
    assert!(rest(first).await.ends_with("done"));
    served.stop().await;
    let successor = Served::on(heir, router, limits);
    assert!(rest(second).await.ends_with("done"));
    successor.stop().await;
}

#[tokio::test]
async fn shutdown_finishes_a_running_request_and_closes_the_rest() {
    let (router, entered, gate, _) = gated();
    let served = Served::new(router, Limits::default()).await;
    let idle = TcpStream::connect(served.address).await.expect("it listens");
    let running = served.send(GET).await;
    entered.notified().await;
    served.shutdown.cancel();
    assert_eq!(rest(idle).await, "");
    gate.add_permits(1);
    let answer = rest(running).await;
    assert!(answer.contains("connection: close\r\n") && answer.ends_with("done"), "{answer}");
    served.stop().await;
}

#[tokio::test]
async fn a_connection_that_was_made_before_the_end_is_answered() {
    let (router, entered, gate, _) = gated();
    let served = Served::new(router, Limits::default()).await;
    let (mut late, first) = (TcpStream::connect(served.address).await.expect("it listens"), served.send(GET).await);
    // Accepted in order: when the second asks something, the first is there.
    entered.notified().await;
    served.shutdown.cancel();
    late.write_all(GET.as_bytes()).await.expect("it is open");
    gate.add_permits(2);
    for stream in [late, first] {
        assert!(rest(stream).await.ends_with("done"));
    }
    served.stop().await;
}

#[tokio::test]
async fn shutdown_waits_for_whole_requests_and_not_for_who_sends_one_by_and_by() {
    const WHOLE: &str = "PUT /body HTTP/1.1\r\nhost: harbor\r\ncontent-length: 3\r\n\r\nall";
    let (router, entered, gate, _) = gated();
    let (read, answers) = (Arc::clone(&entered), Arc::clone(&gate));
    let whole = move |body: String| async move {
        read.notify_one();
        answers.acquire().await.expect("never closed").forget();
        body
    };
    // Nobody waits as long as these are.
    let hour = Duration::from_secs(3600);
    let limits = Limits { header_timeout: hour, shutdown_grace: hour, ..Limits::default() };
    let served = Served::new(router.route("/body", put(whole)), limits).await;
    let mut half = Vec::new();
    for _ in 0..25 {
        half.push(served.send("PUT / HTTP/1.1\r\nHo").await);
        half.push(served.send(WHOLE.trim_end_matches("ll")).await);
    }
    // An earlier answer does not make up for it.
    gate.add_permits(1);
    let mut second = served.send(GET).await;
    let mut answer = Vec::new();
    while !answer.ends_with(b"done") {
        assert!(second.read_buf(&mut answer).await.expect("it is open") > 0);
    }
    second.write_all(b"GET / HT").await.expect("it is open");
    half.push(second);
    entered.notified().await;
    let running = [served.send(GET).await, served.send(WHOLE).await];
    for _ in &running {
        entered.notified().await;
    }
    served.shutdown.cancel();
    for stream in half {
        assert_eq!(rest(stream).await, "");
    }
    gate.add_permits(running.len());
    let [empty, with_body] = running;
    assert!(rest(empty).await.ends_with("done"));
    assert!(rest(with_body).await.ends_with("all"));
    served.stop().await;
}

#[tokio::test]
async fn shutdown_waits_for_an_answer_that_its_caller_takes_slowly() {
    // More than the kernel takes at once.
    const LENGTH: usize = 32 << 20;
    let at_once = || async { "#".repeat(LENGTH) };
    let by_and_by = || async {
        let pieces = (0..LENGTH >> 16).map(|_| Ok::<_, io::Error>("#".repeat(1 << 16)));
        Body::from_stream(futures_util::stream::iter(pieces))
    };
    let router = Router::new().route("/", get(at_once)).route("/pieces", get(by_and_by));
    // Nobody waits as long as these are.
    let hour = Duration::from_secs(3600);
    let limits = Limits { header_timeout: hour, shutdown_grace: hour, ..Limits::default() };
    let served = Served::new(router, limits).await;
    let half = served.send("GET / HTTP/1.1\r\nHo").await;
    let mut slow = Vec::new();
    for path in ["/", "/pieces"] {
        let mut stream = served.send(&GET.replacen('/', path, 1)).await;
        // The handler has returned: its answer has begun.
        assert_ne!(stream.read_u8().await.expect("it is open"), 0);
        slow.push(stream);
    }
    served.shutdown.cancel();
    assert_eq!(rest(half).await, "", "the moment is over");
    for stream in slow {
        let answer = rest(stream).await;
        assert_eq!(answer.bytes().filter(|byte| *byte == b'#').count(), LENGTH);
    }
    served.stop().await;
}

#[tokio::test]
async fn whoever_takes_nothing_of_an_answer_is_cut_off_and_what_it_holds_with_it() {
    /// Says when it is dropped.
    struct Held(Arc<Notify>);
    impl Drop for Held {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let dropped = Arc::new(Notify::new());
    let told = Arc::clone(&dropped);
    let endless = move || {
        let held = Held(Arc::clone(&told));
        async move {
            let pieces = std::iter::repeat_with(move || {
                let _as_long_as_there_is_more = &held;
                Ok::<_, io::Error>("#".repeat(1 << 16))
            });
            Body::from_stream(futures_util::stream::iter(pieces))
        }
    };
    let limits = Limits { stall_timeout: Duration::from_millis(200), ..Limits::default() };
    let served = Served::new(Router::new().route("/", get(endless)), limits).await;
    let stalled = served.send(GET).await;
    tokio::time::timeout(Duration::from_secs(20), dropped.notified()).await.expect("it is given up");
    drop(stalled);
    served.stop().await;
}

#[tokio::test]
async fn shutdown_cuts_off_what_does_not_finish_in_time() {
    let (router, entered, _gate, _) = gated();
    let served = Served::new(router, Limits { shutdown_grace: Duration::ZERO, ..Limits::default() }).await;
    let running = served.send(GET).await;
    entered.notified().await;
    served.stop().await;
    assert_eq!(rest(running).await, "");
}

#[tokio::test]
async fn a_handler_that_panics_costs_one_answer_only() {
    async fn broken() -> &'static str {
        panic!("as the test wants it")
    }
    let router = Router::new().route("/", get(broken)).route("/fine", get(|| async { "fine" }));
    let served = Served::new(router, Limits::default()).await;
    let both = format!("{GET}{}", GET_AND_CLOSE.replacen('/', "/fine", 1));
    let answers = rest(served.send(&both).await).await;
    assert!(answers.starts_with("HTTP/1.1 500 Internal Server Error\r\n"), "{answers}");
    assert!(answers.contains(r#"{"description":"Harbor made a mistake: its log says more."}"#), "{answers}");
    assert!(answers.ends_with("\r\n\r\nfine"), "{answers}");
    served.stop().await;
}

#[tokio::test]
async fn heads_beyond_the_limits_are_refused() {
    let limits = Limits { max_headers: 4, max_head_bytes: 8192, ..Limits::default() };
    let served = Served::new(Router::new(), limits).await;
    for head in [format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(5)), format!("GET /{} ", "x".repeat(9000))] {
        let answer = rest(served.send(&head).await).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    served.stop().await;
}

#[tokio::test]
async fn the_caller_is_known_to_handlers() {
    let router =
        Router::new().route("/", get(|Extension(caller): Extension<Caller>| async move { caller.0.to_string() }));
    let served = Served::new(router, Limits::default()).await;
    let stream = served.send(GET_AND_CLOSE).await;
    let own = stream.local_addr().expect("it is connected").to_string();
    assert!(rest(stream).await.ends_with(&own));
    served.stop().await;
}
