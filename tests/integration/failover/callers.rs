//! A client that opens new connections again and again, and remembers when one succeeded.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::support::{
    echo::tell,
    eventually::eventually,
    namespaces::{Machine, Resident},
};

/// How long one may take from its first packet to its answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// They call until they are dropped.
pub struct Callers {
    answers: Arc<Mutex<Vec<Instant>>>,
    _work: Resident,
}

impl Callers {
    /// One call to `to` every so often, from `machine`.
    pub fn start(machine: &Machine, to: SocketAddr, every: Duration) -> Self {
        let answers = Arc::<Mutex<Vec<Instant>>>::default();
        let heard = Arc::clone(&answers);
        let work = machine.keep(move |stop| call(to, every, heard, stop));
        let callers = Self { answers, _work: work };
        callers.wait_for_answer_after(Instant::now());
        callers
    }

    /// Waits until a call has been answered that late.
    #[track_caller]
    pub fn wait_for_answer_after(&self, moment: Instant) {
        eventually("a call is answered", || {
            self.answers.lock().unwrap().last().filter(|last| **last > moment).map(drop)
        });
    }

    /// The longest time between two answers, the second of which came after `begun`.
    pub fn longest_outage_since(&self, begun: Instant) -> Duration {
        let answers = self.answers.lock().unwrap();
        let gaps = answers.windows(2).filter(|pair| pair[1] > begun).map(|pair| pair[1] - pair[0]);
        gaps.max().expect("calls are answered")
    }
}

async fn call(to: SocketAddr, every: Duration, heard: Arc<Mutex<Vec<Instant>>>, stop: CancellationToken) {
    let (mut ticks, mut calls) = (interval(every), JoinSet::new());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let heard = Arc::clone(&heard);
        calls.spawn(async move {
            if let Ok(Some(())) = timeout(PATIENCE, succeeds(to)).await {
                heard.lock().unwrap().push(Instant::now());
            }
        });
        while calls.try_join_next().is_some() {}
    }
}

/// One call: a connection, a word, its answer.
async fn succeeds(to: SocketAddr) -> Option<()> {
    let mut stream = TcpStream::connect(to).await.ok()?;
    // Leaves no local port behind that lingers: there are thousands of calls.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).ok()?;
    tell(&mut stream, "hello").await.map(drop)
}
