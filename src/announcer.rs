//! The sidecar behind `harbor announce`: keeps backends announced for as long as they serve.
//!
//! [`vcap`] and [`places`] say what is to be announced: pure. [`way`] says a [`word`] once, over [`http`] with a token or over
//! [`nats`] with a proof; [`keep`] says it again and again and takes it back; [`child`] is the process whose life that
//! is tied to. Inside an app's container there is only HTTP: whoever may publish on the platform's NATS may speak for
//! every app, so no app has its credentials.

use std::{io, sync::Arc, time::Duration};

use rustix::process::Signal;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

mod child;
mod http;
mod keep;
mod nats;
pub mod places;
pub mod vcap;
mod way;
mod word;

pub use crate::discovery::nats::{Login, Tls};
pub use child::Ended;
pub use http::{Client, ClientError};
pub use keep::{Pace, Target};
pub use nats::{Publisher, PublisherError, Server};
pub use way::Way;

use child::{Child, Signals, Told};
use keep::Stage;

/// How long withdrawing may take at the end: the platform kills what lingers.
const FAREWELL: Duration = Duration::from_secs(5);

/// What to do.
#[derive(Debug)]
pub struct Job {
    /// What is announced, and by which way.
    pub targets: Vec<(Target, Arc<Way>)>,
    /// How often.
    pub pace: Pace,
    /// How long before the end nothing new shall come: between the word `draining` and the child's signal.
    pub drain: Duration,
    /// The process whose life it is tied to: program and arguments.
    pub command: Vec<std::ffi::OsString>,
}

/// Does it until the child ends, or until it is told to end.
///
/// # Errors
/// The child cannot be started, or signals cannot be listened to.
pub async fn run(job: Job) -> io::Result<Ended> {
    let mut signals = Signals::listen()?;
    let mut child = Child::start(&job.command)?;
    let (stage, _) = watch::channel(Stage::Serving);
    let mut keepers = JoinSet::new();
    for (target, way) in job.targets {
        keepers.spawn(keep::keep(target, way, job.pace, stage.subscribe()));
    }
    let mut held = None;
    let ended = loop {
        tokio::select! {
            ended = child.ended() => break ended?,
            told = signals.next() => match told {
                Told::End(signal) => {
                    // A second one means it.
                    let again = stage.send_replace(Stage::Draining) == Stage::Draining;
                    held = Some((signal, Instant::now() + if again { Duration::ZERO } else { job.drain }));
                }
                Told::Other(signal) => drop(child.signal(signal)),
            },
            signal = due(held) => {
                held = None;
                if !child.signal(signal) {
                    break Ended::Told;
                }
            }
        }
    };
    stage.send_replace(Stage::Ended);
    let farewell = async { while keepers.join_next().await.is_some() {} };
    if timeout(FAREWELL, farewell).await.is_err() {
        tracing::warn!("the announcements could not all be withdrawn: they end by themselves");
    }
    Ok(ended)
}

/// The signal that is held back, when its time has come.
async fn due(held: Option<(Signal, Instant)>) -> Signal {
    let Some((signal, at)) = held else { return std::future::pending().await };
    sleep_until(at).await;
    signal
}
