//! Hints between nodes: a commit notifies, a connection of its own listens.
//!
//! Notifications leave with their commit, or not at all. Those that come while nobody listens are lost: after each time
//! without a connection the hint is [`Hint::Everything`].

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{
    Executor as _,
    postgres::{PgListener, PgPoolOptions},
};
use tokio::time::{sleep, timeout};

use super::{Target, pool::silent};
use crate::store::{Feed, Hint, engine::Sql};

/// The channel that all nodes of a database share.
const CHANNEL: &str = "harbor";

/// After so long without a notification the server is asked whether it is still there.
const QUIET: Duration = Duration::from_secs(5);

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
pub(super) async fn listen(target: &Target) -> Sql<Box<dyn Feed>> {
    let listener = Some(connect(target).await?);
    Ok(Box::new(PostgresFeed { target: target.clone(), listener }))
}

/// Hears what nodes notify.
struct PostgresFeed {
    target: Target,
    /// None while there is no connection.
    listener: Option<PgListener>,
}

#[async_trait]
impl Feed for PostgresFeed {
    async fn next(&mut self) -> Hint {
        loop {
            let Some(listener) = &mut self.listener else {
                match connect(&self.target).await {
                    Ok(listener) => {
                        self.listener = Some(listener);
                        return Hint::Everything;
                    }
                    Err(error) => tracing::debug!(%error, "cannot hear of changes"),
                }
                sleep(CONNECT_EVERY).await;
                continue;
            };
            match timeout(QUIET, listener.try_recv()).await {
                Ok(Ok(Some(notification))) => return hint(notification.payload()),
                // The connection is lost, which the driver would mend by itself, and wait for as long as it takes.
                Ok(Ok(None) | Err(_)) => self.listener = None,
                Err(_) => {
                    if !matches!(timeout(self.target.answer_within, listener.execute("SELECT 1")).await, Ok(Ok(_))) {
                        self.listener = None;
                    }
                }
            }
        }
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
        listener.listen(CHANNEL).await?;
        Ok(listener)
    };
    timeout(target.answer_within, listening).await.unwrap_or_else(|_| Err(silent(target.answer_within)))
}
