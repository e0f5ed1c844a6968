//! Hints between nodes: a commit notifies, a connection of its own listens.
//!
//! Notifications leave with their commit, or not at all. Those that come while nobody listens are lost: after each time
//! without a connection the hint is [`Hint::Everything`].

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{
    Executor as _,
    postgres::{PgListener, PgPoolOptions},
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    Target,
    link::{KEEPALIVES, Losses, Silence, silent},
};
use crate::{
    model::member::HEARTBEAT_EVERY,
    store::{Feed, Hint, engine::Sql},
};

/// The channel that all nodes of a database share.
const CHANNEL: &str = "harbor";

/// After so long without a notification the server is asked whether it is still there: a node that runs hears at least
/// its own heartbeats.
const QUIET: Duration = HEARTBEAT_EVERY.saturating_mul(2);

/// Hints that wait until somebody asks for them; the next ones wait at the server.
const HINTS: usize = 64;

/// The pause between two attempts to connect.
const CONNECT_EVERY: Duration = Duration::from_millis(500);

/// What commits and gives a hint, in one round trip.
pub(super) const fn commit_with(hint: Hint) -> &'static str {
    match hint {
        Hint::Desired => "NOTIFY harbor, 'desired'; COMMIT",
        Hint::Members => "NOTIFY harbor, 'members'; COMMIT",
        Hint::Everything => "NOTIFY harbor, 'everything'; COMMIT",
    }
}

/// Listens from now on.
pub(super) async fn listen(target: &Target, losses: &Losses, silence: &Arc<Silence>) -> Sql<Box<dyn Feed>> {
    let listener = connect(target).await?;
    let (hints, heard) = mpsc::channel(HINTS);
    let mut listening = JoinSet::new();
    listening.spawn(hear(target.clone(), losses.clone(), Arc::clone(silence), listener, hints));
    Ok(Box::new(PostgresFeed { heard, listening }))
}

/// Hears what nodes notify. Whoever waits for a hint may stop waiting at any moment; the task that listens goes on.
struct PostgresFeed {
    heard: mpsc::Receiver<Hint>,
    /// Ended with this.
    listening: JoinSet<()>,
}

#[async_trait]
impl Feed for PostgresFeed {
    async fn next(&mut self) -> Hint {
        if let Some(hint) = self.heard.recv().await {
            return hint;
        }
        // It goes on for ever, unless there is a bug.
        if let Some(Err(failed)) = self.listening.join_next().await
            && let Ok(panic) = failed.try_into_panic()
        {
            std::panic::resume_unwind(panic);
        }
        std::future::pending().await
    }
}

/// Passes on what is notified, and connects again whenever the connection is lost or says nothing.
async fn hear(
    target: Target,
    losses: Losses,
    silence: Arc<Silence>,
    mut listener: PgListener,
    hints: mpsc::Sender<Hint>,
) {
    loop {
        let hint = match timeout(QUIET, listener.try_recv()).await {
            Ok(Ok(Some(notification))) => {
                silence.end();
                hint(notification.payload())
            }
            Err(_) if answers(&mut listener, target.answer_within).await => continue,
            // Lost, which the driver would mend by itself, and wait for as long as it takes.
            Ok(Ok(None) | Err(_)) | Err(_) => {
                losses.add();
                listener = connect_again(&target).await;
                Hint::Everything
            }
        };
        if hints.send(hint).await.is_err() {
            return;
        }
    }
}

async fn answers(listener: &mut PgListener, within: Duration) -> bool {
    matches!(timeout(within, listener.execute("SELECT 1")).await, Ok(Ok(_)))
}

async fn connect_again(target: &Target) -> PgListener {
    loop {
        match connect(target).await {
            Ok(listener) => return listener,
            Err(error) => tracing::debug!(%error, "cannot hear of changes"),
        }
        sleep(CONNECT_EVERY).await;
    }
}

/// A word of a newer version may mean anything.
fn hint(word: &str) -> Hint {
    match word {
        "desired" => Hint::Desired,
        "members" => Hint::Members,
        _ => Hint::Everything,
    }
}

async fn connect(target: &Target) -> Sql<PgListener> {
    // The driver's listener wants its connection from a pool of the driver.
    let pool = PgPoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
    let pool = pool.acquire_timeout(target.answer_within).connect_lazy_with(target.options());
    let listening = async {
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        listener.execute(KEEPALIVES).await?;
        listener.listen(CHANNEL).await?;
        Ok(listener)
    };
    timeout(target.answer_within, listening).await.unwrap_or_else(|_| Err(silent(target.answer_within)))
}
