//! Parts that can fail without a word, looked at from time to time: the store, and the threads that forward.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    forwarder::Forwarder,
    model::{Clock, observed::Link},
    store::AnyStore,
};

/// How often the store is asked.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// How long it may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// How often the threads that forward are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Runs until `shutdown`, or until a thread of the forwarder has failed: a node with unattended ports had better end
/// and be started again.
pub(super) async fn forwarder(forwarder: Arc<Forwarder>, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() && !forwarder.has_failed() {}
}

/// Keeps `link` true until `shutdown`.
pub(super) async fn store(
    store: AnyStore,
    clock: Arc<dyn Clock>,
    link: watch::Sender<Link>,
    shutdown: CancellationToken,
) {
    let mut ticks = tokio::time::interval(ASK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        let fault = match tokio::time::timeout(ANSWER_WITHIN, store.ping()).await {
            Ok(Ok(())) => None,
            Ok(Err(fault)) => Some(fault.to_string()),
            Err(_) => Some(format!("no answer within {ANSWER_WITHIN:?}")),
        };
        link.send_if_modified(|link| match (fault, &*link) {
            (None, Link::Up(_)) | (Some(_), Link::Down(..)) => false,
            (None, _) => {
                tracing::info!("the store answers");
                *link = Link::Up(clock.wall());
                true
            }
            (Some(fault), _) => {
                tracing::error!(fault, "the store is away: ports go on, nothing can be provisioned or bound");
                *link = Link::Down(clock.wall(), fault.into());
                true
            }
        });
    }
}
