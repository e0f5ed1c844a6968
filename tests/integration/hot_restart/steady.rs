//! Clients that send UDP datagrams at a fixed rate, whether or not they are answered, and backends that answer each.
//!
//! A datagram has its number. What is sent while nobody serves waits in the kernel, in the receive buffer of its port. No
//! buffer on its way can run over, so that one which is lost was lost by Harbor: each socket gets 50 of them a second, which
//! in 5 s, the longest time that a hot restart lets nobody serve, are 250. A small one takes up less than 850 bytes of the
//! kernel's memory, and the default of `net.core.rmem_default` is 212,992 bytes.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    ops::Range,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use time::OffsetDateTime;
use tokio::{
    net::UdpSocket,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::support::eventually::eventually_async;

/// Clients, each with a socket, a port and a backend of its own.
pub const SOCKETS: usize = 60;
/// How many datagrams are sent each millisecond, by one client after the other.
pub const AT_A_TIME: usize = 3;
/// How long answers to the last ones may take.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

/// Backends that answer, until they are dropped.
#[derive(Debug)]
pub struct Backends {
    pub addresses: Vec<SocketAddr>,
    _work: Work,
}

/// Clients that send, until they are stopped.
#[derive(Debug)]
pub struct Clients {
    record: Arc<Mutex<Record>>,
    work: Work,
}

/// What became of each datagram, by its number.
#[derive(Debug, Default)]
pub struct Record {
    datagrams: Vec<Datagram>,
    /// Answers that had come before.
    pub repeated: usize,
}

#[derive(Debug)]
struct Datagram {
    sent: OffsetDateTime,
    answered: Option<OffsetDateTime>,
}

/// A thread that does something until this is dropped.
#[derive(Debug)]
struct Work {
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Backends {
    pub fn start() -> Self {
        let sockets = sockets();
        let addresses = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        let work = Work::start(async move |stop: CancellationToken| {
            let mut answering = JoinSet::new();
            for socket in sockets {
                answering.spawn(async move {
                    let (socket, mut bytes) = (UdpSocket::from_std(socket).unwrap(), [0; 64]);
                    loop {
                        let (length, from) = socket.recv_from(&mut bytes).await.unwrap();
                        socket.send_to(&bytes[..length], from).await.unwrap();
                    }
                });
            }
            stop.cancelled().await;
        });
        Self { addresses, _work: work }
    }
}

impl Clients {
    /// Starts one for each of the ports, all on loopback.
    pub fn start(ports: impl IntoIterator<Item = u16>) -> Self {
        let sockets = sockets();
        for (socket, port) in sockets.iter().zip(ports) {
            socket.connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        }
        let record = Arc::<Mutex<Record>>::default();
        let kept = Arc::clone(&record);
        Self { record, work: Work::start(move |stop| converse(sockets, kept, stop)) }
    }

    /// Has them send no more, and waits for the last answers.
    pub fn stop(self) -> Record {
        drop(self.work);
        Arc::into_inner(self.record).expect("the work has ended").into_inner().unwrap()
    }
}

impl Record {
    /// The numbers of those without an answer.
    pub fn lost(&self) -> Vec<usize> {
        let numbered = self.datagrams.iter().enumerate();
        numbered.filter(|(_, datagram)| datagram.answered.is_none()).map(|(number, _)| number).collect()
    }

    /// How many were sent in each span of time while none was answered: in the longest silence that overlaps it.
    pub fn sent_in_silence(&self, spans: &[Range<OffsetDateTime>]) -> Vec<usize> {
        let mut answers = self.datagrams.iter().filter_map(|datagram| datagram.answered).collect::<Vec<_>>();
        answers.sort();
        let sent_in = |span: &Range<OffsetDateTime>| {
            let silences = answers.windows(2).map(|pair| pair[0].max(span.start)..pair[1].min(span.end));
            let longest = silences.max_by_key(|silence| silence.end - silence.start).expect("there are answers");
            self.datagrams.iter().filter(|datagram| longest.contains(&datagram.sent)).count()
        };
        spans.iter().map(sent_in).collect()
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waits = self.datagrams.iter().filter_map(|datagram| Some(datagram.answered? - datagram.sent));
        let (sent, lost) = (self.datagrams.len(), self.lost().len());
        let longest = waits.max().unwrap_or_default().whole_milliseconds();
        write!(f, "{sent} datagrams sent without waiting: {lost} lost, the last to be answered after {longest} ms")
    }
}

impl Work {
    fn start<F: Future<Output = ()>>(work: impl FnOnce(CancellationToken) -> F + Send + 'static) -> Self {
        let stop = CancellationToken::new();
        let told = stop.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work(told));
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.stop.cancel();
        let ended = self.thread.take().expect("dropped once").join();
        assert!(ended.is_ok() || thread::panicking(), "it panicked");
    }
}

fn sockets() -> Vec<std::net::UdpSocket> {
    let socket = |_| {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    (0..SOCKETS).map(socket).collect()
}

/// Sends until `stop`, and then waits for what has no answer yet.
async fn converse(sockets: Vec<std::net::UdpSocket>, record: Arc<Mutex<Record>>, stop: CancellationToken) {
    let sockets = sockets.into_iter().map(|socket| Arc::new(UdpSocket::from_std(socket).unwrap())).collect::<Vec<_>>();
    let mut hearing = JoinSet::new();
    for socket in &sockets {
        hearing.spawn(hear(Arc::clone(socket), Arc::clone(&record)));
    }
    let mut ticks = interval(Duration::from_millis(1));
    // What could not be sent in time is sent late: the rate stays.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut turns = sockets.iter().cycle();
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        for socket in turns.by_ref().take(AT_A_TIME) {
            let number = {
                let datagrams = &mut record.lock().unwrap().datagrams;
                datagrams.push(Datagram { sent: OffsetDateTime::now_utc(), answered: None });
                datagrams.len() as u64 - 1
            };
            socket.send(&number.to_be_bytes()).await.expect("the port is open");
        }
    }
    let all = eventually_async("each has an answer", async || record.lock().unwrap().lost().is_empty().then_some(()));
    let _ = timeout(LAST_ANSWERS, all).await;
}

async fn hear(socket: Arc<UdpSocket>, record: Arc<Mutex<Record>>) {
    let mut bytes = [0; 8];
    loop {
        let length = socket.recv(&mut bytes).await.expect("the port is open");
        assert_eq!(length, bytes.len(), "it is what was sent");
        let record = &mut *record.lock().unwrap();
        let number = usize::try_from(u64::from_be_bytes(bytes)).unwrap();
        let before = record.datagrams[number].answered.replace(OffsetDateTime::now_utc());
        record.repeated += usize::from(before.is_some());
    }
}
