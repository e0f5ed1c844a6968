//! Turns: work on one service instance is done one after the other, work on several side by side.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::OwnedMutexGuard;

use crate::model::ServiceInstanceId;

/// How long one waits for its turn. Well below the minute that the Cloud Controller waits for an answer.
pub(super) const TURN_WAIT: Duration = Duration::from_secs(30);

type Key = Arc<tokio::sync::Mutex<()>>;

/// The service instances that are being worked on: as many entries as use cases under way, at most.
#[derive(Debug)]
pub(super) struct Keys {
    wait: Duration,
    held: Mutex<HashMap<ServiceInstanceId, Key>>,
}

/// The right to work on one service instance, until dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    keys: &'a Keys,
    id: ServiceInstanceId,
    /// `None` only while it is being dropped, or when it never came.
    guard: Option<OwnedMutexGuard<()>>,
}

impl Keys {
    /// `wait`: how long one waits for its turn.
    pub(super) fn new(wait: Duration) -> Self {
        Self { wait, held: Mutex::default() }
    }

    /// Waits for the turn; `None` when it did not come in time.
    pub(super) async fn turn(&self, id: &ServiceInstanceId) -> Option<Turn<'_>> {
        let key = Arc::clone(self.held().entry(id.clone()).or_default());
        // Made before the wait, so that it tidies up whatever the wait comes to.
        let mut turn = Turn { keys: self, id: id.clone(), guard: None };
        turn.guard = tokio::time::timeout(self.wait, key.lock_owned()).await.ok();
        turn.guard.is_some().then_some(turn)
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HashMap<ServiceInstanceId, Key>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(self.guard.take());
        let mut held = self.keys.held();
        // Whoever waits holds the key too.
        if held.get(&self.id).is_some_and(|key| Arc::strong_count(key) == 1) {
            held.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ServiceInstanceId {
        ServiceInstanceId::new(text).unwrap()
    }

    #[tokio::test]
    async fn one_waits_for_the_other_and_nothing_is_left_behind() {
        let keys = Keys::new(TURN_WAIT);
        let first = keys.turn(&id("a")).await.unwrap();
        let other = keys.turn(&id("b")).await.unwrap();
        let same = id("a");
        let second = keys.turn(&same);
        let (second, ()) = tokio::join!(second, async {
            tokio::task::yield_now().await;
            drop(first);
        });
        assert!(second.is_some());
        assert_eq!(keys.held().len(), 2);
        drop((second, other));
        assert_eq!(keys.held().len(), 0);
    }

    #[tokio::test]
    async fn a_turn_that_does_not_come_in_time_is_given_up() {
        let keys = Keys::new(Duration::ZERO);
        let first = keys.turn(&id("a")).await.unwrap();
        assert!(keys.turn(&id("a")).await.is_none());
        assert_eq!(keys.held().len(), 1);
        drop(first);
        assert_eq!(keys.held().len(), 0);
    }
}
