//! Says one thing again and again, and takes it back.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpStream, sync::watch, time::timeout};

use super::{
    places::Place,
    way::Way,
    word::{NotHeard, Word},
};

/// By how much of its length a pause may be longer: so that many that started together do not stay together.
const JITTER: f64 = 0.2;

/// The first pause after something failed; each further one is twice as long, up to the interval.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// How often at least it is said within the time that it holds: one may be lost.
const PER_TIME_TO_LIVE: f64 = 3.0;

/// The shortest pause, however soon Harbor forgets: a token makes ten requests a second.
const SHORTEST_PAUSE: Duration = Duration::from_millis(300);

/// The longest that Harbor's word to wait is followed.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What asked for everything again is answered within this, so that not all answer at once.
const MAX_ANSWER_PAUSE: Duration = Duration::from_secs(1);

/// How long the app may take to accept when its port is looked at.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// What is announced.
#[derive(Debug, Clone)]
pub struct Target {
    /// For messages: the service instance's name.
    pub name: String,
    /// Where it is reached.
    pub place: Place,
    /// What must accept a connection before it is announced.
    pub check: Option<SocketAddr>,
}

/// How often.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between two heartbeats; less where Harbor forgets sooner.
    pub interval: Duration,
}

/// Where in its life the backend is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Serving,
    Draining,
    Ended,
}

/// Keeps it announced until [`Stage::Ended`], then withdraws it: first as draining, so that nothing new is on its way to it.
pub(super) async fn keep(target: Target, way: Arc<Way>, pace: Pace, mut stage: watch::Receiver<Stage>) {
    let mut keeper = Keeper { target, way, announced: None, failures: 0, told: None };
    loop {
        let now = *stage.borrow_and_update();
        if now == Stage::Ended {
            return keeper.end().await;
        }
        let pause = keeper.beat(now, pace).await;
        tokio::select! {
            changed = stage.changed() => if changed.is_err() { return keeper.end().await },
            () = keeper.way.asked_again() => tokio::time::sleep(MAX_ANSWER_PAUSE.mul_f64(fastrand::f64())).await,
            () = tokio::time::sleep(jittered(pause)) => {}
        }
    }
}

struct Keeper {
    target: Target,
    way: Arc<Way>,
    /// What somebody may believe, though no answer has come.
    announced: Option<Word>,
    /// In a row.
    failures: u32,
    /// What was said to the user last, who hears nothing twice.
    told: Option<String>,
}

impl Keeper {
    /// One heartbeat. Returns how long to wait for the next.
    async fn beat(&mut self, stage: Stage, pace: Pace) -> Duration {
        if let Err(why) = self.check().await {
            match self.withdraw().await {
                Ok(_) => self.tell(&format!("{why}: it is not announced until it does")),
                Err(not) => self.warn(&format!("{why}, and it could not be withdrawn: {not}")),
            }
            return FIRST_PAUSE.min(pace.interval);
        }
        let word = if stage == Stage::Serving { Word::Up } else { Word::Draining };
        let before = self.announced.replace(word);
        match self.way.say(&self.target.place, word).await {
            Ok(holds) => {
                self.failures = 0;
                self.tell(self.way.done(word));
                pause(pace.interval, holds)
            }
            Err(why) => {
                self.failures += 1;
                if !matches!(why, NotHeard::Failed(_)) {
                    self.announced = before;
                }
                self.warn(&format!("not announced, and tried again: {why}"));
                match why {
                    NotHeard::TooMany(wait) => wait.clamp(FIRST_PAUSE, LONGEST_WAIT),
                    _ => (FIRST_PAUSE * 2_u32.saturating_pow(self.failures - 1)).min(pace.interval),
                }
            }
        }
    }

    async fn check(&self) -> Result<(), String> {
        let Some(address) = self.target.check else { return Ok(()) };
        match timeout(CHECK_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("nothing accepts connections at {address} ({error})")),
            Err(_) => Err(format!("{address} does not accept a connection within {CHECK_TIMEOUT:?}")),
        }
    }

    /// Takes back what somebody may believe. Returns whether there was anything.
    async fn withdraw(&mut self) -> Result<bool, NotHeard> {
        let Some(word) = self.announced else { return Ok(false) };
        if word == Word::Up {
            // What comes of it does not matter: the next word says more.
            let _ = self.way.say(&self.target.place, Word::Draining).await;
            self.announced = Some(Word::Draining);
        }
        let said = self.way.say(&self.target.place, Word::Gone).await;
        // A refusal stays one: who asks again hears the same.
        if matches!(said, Ok(_) | Err(NotHeard::Refused(_))) {
            self.announced = None;
        }
        said.map(|_| true)
    }

    async fn end(&mut self) {
        match self.withdraw().await {
            Ok(true) => self.tell(self.way.done(Word::Gone)),
            Ok(false) => {}
            Err(why) => self.warn(&format!("not withdrawn, it ends by itself: {why}")),
        }
    }

    fn tell(&mut self, what: &str) {
        if self.is_new(what) {
            tracing::info!(service_instance = %self.target.name, "{what}");
        }
    }

    fn warn(&mut self, what: &str) {
        if self.is_new(what) {
            tracing::warn!(service_instance = %self.target.name, "{what}");
        }
    }

    fn is_new(&mut self, what: &str) -> bool {
        let new = self.told.as_deref() != Some(what);
        if new {
            self.told = Some(what.to_owned());
        }
        new
    }
}

/// How long it is until the next word, before jitter, when the last one holds so long.
fn pause(interval: Duration, holds: Option<Duration>) -> Duration {
    let longest = holds.map(|holds| holds.div_f64(PER_TIME_TO_LIVE * (1.0 + JITTER)).max(SHORTEST_PAUSE));
    longest.map_or(interval, |longest| longest.min(interval))
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(1.0 + JITTER * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_three_times_while_it_holds_whatever_the_jitter() {
        let seconds = Duration::from_secs;
        let pause = |holds: Option<u64>| super::pause(seconds(20), holds.map(seconds));
        assert_eq!([pause(None), pause(Some(120)), pause(Some(0))], [seconds(20), seconds(20), SHORTEST_PAUSE]);
        for holds in [3, 15, 60, 71] {
            let longest = pause(Some(holds)).mul_f64(1.0 + JITTER);
            assert!(longest * 3 <= seconds(holds) && longest * 4 > seconds(holds), "{holds}: {longest:?}");
        }
    }
}
