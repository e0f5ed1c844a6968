//! Turns: work on one service instance is done one after the other, work on several side by side.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::ServiceInstanceId;

/// How long one waits for its turn. Well below the minute that the Cloud Controller waits for an answer.
pub(super) const TURN_WAIT: Duration = Duration::from_secs(30);

/// One permit: whoever has it works. Closed when that cannot be done.
type Key = Arc<Semaphore>;

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
    key: Key,
    /// `None` only while it is being dropped, or when it never came.
    permit: Option<OwnedSemaphorePermit>,
}

/// Why a turn did not come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoTurn {
    /// It was waited for too long.
    TooLong,
    /// Whoever had it has given it up for all.
    GivenUp,
}

impl Keys {
    /// `wait`: how long one waits for its turn.
    pub(super) fn new(wait: Duration) -> Self {
        Self { wait, held: Mutex::default() }
    }

    /// Waits for the turn.
    pub(super) async fn turn(&self, id: &ServiceInstanceId) -> Result<Turn<'_>, NoTurn> {
        let key = Arc::clone(self.held().entry(id.clone()).or_insert_with(|| Arc::new(Semaphore::new(1))));
        // Made before the wait, so that it tidies up whatever the wait comes to.
        let mut turn = Turn { keys: self, id: id.clone(), key: Arc::clone(&key), permit: None };
        match tokio::time::timeout(self.wait, key.acquire_owned()).await {
            Ok(Ok(permit)) => turn.permit = Some(permit),
            Ok(Err(_)) => return Err(NoTurn::GivenUp),
            Err(_) => return Err(NoTurn::TooLong),
        }
        Ok(turn)
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HashMap<ServiceInstanceId, Key>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// Gives it up, and with it the turns of those who wait: none of them would get further. Who comes later may try.
    pub(super) fn give_up(self) {
        let mut held = self.keys.held();
        self.key.close();
        if held.get(&self.id).is_some_and(|key| Arc::ptr_eq(key, &self.key)) {
            held.remove(&self.id);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(self.permit.take());
        let mut held = self.keys.held();
        // The map has it, and this turn; whoever waits has it too.
        if held.get(&self.id).is_some_and(|key| Arc::ptr_eq(key, &self.key) && Arc::strong_count(key) == 2) {
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
        assert!(second.is_ok());
        assert_eq!(keys.held().len(), 2);
        drop((second, other));
        assert_eq!(keys.held().len(), 0);
    }

    #[tokio::test]
    async fn a_turn_that_does_not_come_in_time_is_given_up() {
        let keys = Keys::new(Duration::ZERO);
        let first = keys.turn(&id("a")).await.unwrap();
        assert_eq!(keys.turn(&id("a")).await.unwrap_err(), NoTurn::TooLong);
        assert_eq!(keys.held().len(), 1);
        drop(first);
        assert_eq!(keys.held().len(), 0);
    }

    #[tokio::test]
    async fn who_gives_up_gives_up_for_all_that_wait_and_for_nobody_else() {
        let keys = Keys::new(TURN_WAIT);
        let (same, other) = (id("a"), id("b"));
        let (first, elsewhere) = (keys.turn(&same).await.unwrap(), keys.turn(&other).await.unwrap());
        let (second, third, fourth, ()) = tokio::join!(keys.turn(&same), keys.turn(&same), keys.turn(&other), async {
            tokio::task::yield_now().await;
            first.give_up();
            drop(elsewhere);
        });
        assert_eq!((second.unwrap_err(), third.unwrap_err()), (NoTurn::GivenUp, NoTurn::GivenUp));
        assert!(fourth.is_ok());
        assert!(keys.turn(&same).await.is_ok());
        drop(fourth);
        assert_eq!(keys.held().len(), 0);
    }
}
