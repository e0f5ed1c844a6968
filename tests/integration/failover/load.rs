//! What clients do while nodes are restarted: short connections, visits, long streams and UDP flows, each written down.

use std::{
    collections::BTreeSet,
    fmt, io, mem,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::support::{
    eventually::{PATIENCE, eventually, eventually_async},
    namespaces::{Machine, Resident},
};

/// How often a connection is opened for one question.
const CALL_EVERY: Duration = Duration::from_millis(5);
/// How often one is opened for a visit, and how many questions that has.
const VISIT_EVERY: Duration = Duration::from_millis(100);
const QUESTIONS_PER_VISIT: usize = 20;
/// Streams that are open at any time, and UDP flows.
pub const STREAMS: usize = 20;
const FLOWS: usize = 20;
/// How often visitors, streams and flows ask.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// How long answers to the last datagrams may take.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// What part of their work clients have to do: on a machine that others use too they miss some of their ticks.
const MOST: f64 = 0.5;
/// What takes longer than this was held up: the kernel repeats a first packet after a second, and others after 0.2 s.
const HELD_UP: Duration = Duration::from_millis(200);

/// The clients; they go on until they are stopped.
pub struct Load {
    ledger: Arc<Mutex<Ledger>>,
    begun: Instant,
    work: Resident,
}

/// What they have seen; connections in the order of their ends.
#[derive(Debug, Default)]
pub struct Ledger {
    /// For how long they went on.
    pub lasted: Duration,
    /// A connection, a question, an answer.
    pub calls: Vec<Conversation>,
    /// A second of questions and answers.
    pub visits: Vec<Conversation>,
    /// Those that went on to the end, and those that broke, in whose places others came.
    pub streams: Vec<Conversation>,
    pub flows: Vec<Flow>,
}

/// One TCP connection.
#[derive(Debug, Clone)]
pub struct Conversation {
    pub begun: Instant,
    pub ended: Instant,
    pub answers: usize,
    /// The longest that it waited: for the connection with its first answer, or for another answer.
    pub slowest: Duration,
    /// Why it ended early.
    pub failure: Option<String>,
}

/// One UDP socket that asks again and again.
#[derive(Debug, Default, Clone)]
pub struct Flow {
    pub sent: u64,
    /// The numbers of the datagrams that have no answer.
    pub unanswered: BTreeSet<u64>,
    /// The longest time between two answers.
    pub silence: Duration,
    /// Who answered.
    pub backends: BTreeSet<String>,
}

impl Load {
    /// Starts on `machine`; all talk to `to`.
    pub fn start(machine: &Machine, to: SocketAddr) -> Self {
        let ledger = Arc::new(Mutex::new(Ledger { flows: vec![Flow::default(); FLOWS], ..Ledger::default() }));
        let kept = Arc::clone(&ledger);
        let load = Self { begun: Instant::now(), work: machine.keep(move |stop| clients(to, kept, stop)), ledger };
        load.wait_for_answers();
        load
    }

    /// Waits until a call and a visit that begin now have ended, and each flow has an answer.
    pub fn wait_for_answers(&self) {
        let now = Instant::now();
        let sent = self.look(|ledger| ledger.flows.iter().map(|flow| flow.sent).collect::<Vec<_>>());
        let ended = |kind: &Vec<Conversation>| kind.last().is_some_and(|last| last.begun > now);
        eventually("clients of all kinds are answered", || {
            let answered = |(flow, sent): (&Flow, &u64)| flow.sent - flow.unanswered.len() as u64 > *sent;
            self.look(|ledger| {
                let flows = ledger.flows.iter().zip(&sent).all(answered);
                (flows && ended(&ledger.calls) && ended(&ledger.visits)).then_some(())
            })
        });
    }

    /// Has all finish what they have begun, and returns what they have seen.
    pub fn stop(self) -> Ledger {
        let lasted = self.begun.elapsed();
        drop(self.work);
        Ledger { lasted, ..mem::take(&mut *self.ledger.lock().unwrap()) }
    }

    fn look<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        look(&self.ledger.lock().unwrap())
    }
}

impl Ledger {
    /// Calls and visits that were not answered to their end.
    pub fn failed(&self) -> Vec<&Conversation> {
        broken(self.calls.iter().chain(&self.visits))
    }

    /// Whether clients of each kind have asked as often as they were to, or most of it: what is not asked does not fail.
    pub fn is_full(&self) -> bool {
        let sent = self.flows.iter().map(|flow| flow.sent).sum::<u64>();
        let work = [
            (self.calls.len() as u64, CALL_EVERY, 1),
            (self.visits.len() as u64, VISIT_EVERY, 1),
            (self.streams.iter().map(|stream| stream.answers as u64).sum(), ASK_EVERY, STREAMS),
            (sent, ASK_EVERY, FLOWS),
        ];
        let wanted = |every, clients: usize| self.lasted.div_duration_f64(every) * clients as f64;
        work.into_iter().all(|(done, every, clients)| done as f64 >= MOST * wanted(every, clients))
    }

    /// Streams that were ended by others.
    pub fn broken_streams(&self) -> Vec<&Conversation> {
        broken(&self.streams)
    }
}

fn broken<'a>(conversations: impl IntoIterator<Item = &'a Conversation>) -> Vec<&'a Conversation> {
    conversations.into_iter().filter(|conversation| conversation.failure.is_some()).collect()
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "in {:.1?}: ", self.lasted)?;
        for (name, kind) in [("calls", &self.calls), ("visits", &self.visits), ("streams", &self.streams)] {
            let held_up = kind.iter().filter(|one| one.slowest > HELD_UP).count();
            let slowest = kind.iter().map(|one| one.slowest).max().unwrap_or_default();
            let broken = broken(kind).len();
            write!(f, "{} {name} ({broken} broken, {held_up} held up, slowest {slowest:.0?}), ", kind.len())?;
        }
        let sent = self.flows.iter().map(|flow| flow.sent).sum::<u64>();
        let unanswered = self.flows.iter().map(|flow| flow.unanswered.len()).sum::<usize>();
        let silence = self.flows.iter().map(|flow| flow.silence).max().unwrap_or_default();
        write!(f, "{sent} datagrams ({unanswered} without an answer, longest silence {silence:.0?})")
    }
}

/// All of them.
async fn clients(to: SocketAddr, ledger: Arc<Mutex<Ledger>>, stop: CancellationToken) {
    let mut work = JoinSet::new();
    for (every, questions, kind) in [
        (CALL_EVERY, 1, (|ledger| &mut ledger.calls) as fn(&mut Ledger) -> &mut Vec<Conversation>),
        (VISIT_EVERY, QUESTIONS_PER_VISIT, |ledger| &mut ledger.visits),
    ] {
        let (ledger, stop) = (Arc::clone(&ledger), stop.clone());
        work.spawn(async move {
            let (mut ticks, mut open) = (interval(every), JoinSet::new());
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            while stop.run_until_cancelled(ticks.tick()).await.is_some() {
                let ledger = Arc::clone(&ledger);
                open.spawn(async move {
                    let ended = converse(to, |answers| answers < questions).await;
                    kind(&mut ledger.lock().unwrap()).push(ended);
                });
                while open.try_join_next().is_some() {}
            }
            open.join_all().await;
        });
    }
    for _ in 0..STREAMS {
        let (ledger, stop) = (Arc::clone(&ledger), stop.clone());
        work.spawn(async move {
            while !stop.is_cancelled() {
                let ended = converse(to, |_| !stop.is_cancelled()).await;
                ledger.lock().unwrap().streams.push(ended);
            }
        });
    }
    for number in 0..FLOWS {
        work.spawn(flow(to, number, Arc::clone(&ledger), stop.clone()));
    }
    work.join_all().await;
}

/// One connection, which asks while it is to go on after so many answers.
async fn converse(to: SocketAddr, goes_on: impl Fn(usize) -> bool) -> Conversation {
    let begun = Instant::now();
    let mut conversation = Conversation { begun, ended: begun, answers: 0, slowest: Duration::ZERO, failure: None };
    let ended = async {
        let mut asked_at = begun;
        let mut stream = wait("connecting", TcpStream::connect(to)).await?;
        // Leaves no local port behind that lingers: there are thousands of them.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).map_err(|error| error.to_string())?;
        loop {
            wait("asking", stream.write_all(b"hello")).await?;
            if wait("waiting for an answer", stream.read(&mut [0; 64])).await? == 0 {
                return Err(String::from("waiting for an answer: the connection has ended"));
            }
            conversation.answers += 1;
            conversation.slowest = conversation.slowest.max(asked_at.elapsed());
            if !goes_on(conversation.answers) {
                return Ok(());
            }
            sleep_until((asked_at + ASK_EVERY).into()).await;
            asked_at = Instant::now();
        }
    };
    conversation.failure = ended.await.err();
    conversation.ended = Instant::now();
    conversation
}

/// What is not done within [`PATIENCE`] has failed.
async fn wait<T>(what: &str, work: impl Future<Output = io::Result<T>>) -> Result<T, String> {
    match timeout(PATIENCE, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(format!("{what}: {error}")),
        Err(_) => Err(format!("{what}: nothing happens")),
    }
}

/// One socket that asks until `stop`, and then waits for what has no answer yet.
async fn flow(to: SocketAddr, number: usize, ledger: Arc<Mutex<Ledger>>, stop: CancellationToken) {
    let any = SocketAddr::new(if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() }, 0);
    let socket = UdpSocket::bind(any).await.expect("ports are left");
    socket.connect(to).await.expect("there is a route");
    let mut ticks = interval(ASK_EVERY);
    let hear = async {
        let (mut last, mut answer) = (Instant::now(), [0; 64]);
        loop {
            // A port that nobody had open is an error at the next call.
            let Ok(length) = socket.recv(&mut answer).await else { continue };
            let text = String::from_utf8_lossy(&answer[..length]);
            let (backend, told) = text.split_once(": ").expect("an answer of an app");
            let flow = &mut ledger.lock().unwrap().flows[number];
            flow.unanswered.remove(&told.parse().expect("a number"));
            flow.silence = flow.silence.max(last.elapsed());
            flow.backends.insert(backend.to_owned());
            last = Instant::now();
        }
    };
    let ask = async {
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let sent = {
                let flow = &mut ledger.lock().unwrap().flows[number];
                flow.sent += 1;
                flow.unanswered.insert(flow.sent);
                flow.sent
            };
            // One that cannot be sent has no answer.
            let _ = socket.send(sent.to_string().as_bytes()).await;
        }
        let rest = eventually_async("all have an answer", || async {
            ledger.lock().unwrap().flows[number].unanswered.is_empty().then_some(())
        });
        let _ = timeout(LAST_ANSWERS, rest).await;
    };
    tokio::select! {
        () = ask => {}
        () = hear => {}
    }
}
