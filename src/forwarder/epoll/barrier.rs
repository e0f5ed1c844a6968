//! Waiting until every worker has come so far.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, Thread},
};

/// One thread waits until nobody holds this any more: it is dropped by each worker that has come so far, and by one that
/// ends before. It neither locks nor spins, so that waiting costs the same however long it takes.
pub(super) struct Barrier {
    waiting: Thread,
    passed: Arc<AtomicBool>,
}

impl Barrier {
    /// Has `hand_out` give it to whoever is waited for, and waits.
    pub(super) fn wait(hand_out: impl FnOnce(&Arc<Self>)) {
        let passed = Arc::<AtomicBool>::default();
        let barrier = Arc::new(Self { waiting: thread::current(), passed: Arc::clone(&passed) });
        hand_out(&barrier);
        drop(barrier);
        while !passed.load(Ordering::Acquire) {
            thread::park();
        }
    }
}

impl Drop for Barrier {
    fn drop(&mut self) {
        self.passed.store(true, Ordering::Release);
        self.waiting.unpark();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{atomic::AtomicUsize, mpsc};

    use super::*;

    #[test]
    fn it_is_passed_when_the_last_has_come() {
        let arrived = Arc::new(AtomicUsize::new(0));
        for _ in 0..100 {
            arrived.store(0, Ordering::Relaxed);
            Barrier::wait(|barrier| {
                for _ in 0..4 {
                    let (barrier, arrived) = (Arc::clone(barrier), Arc::clone(&arrived));
                    thread::spawn(move || {
                        arrived.fetch_add(1, Ordering::Relaxed);
                        drop(barrier);
                    });
                }
            });
            assert_eq!(arrived.load(Ordering::Relaxed), 4);
        }
    }

    #[test]
    fn whoever_ends_before_is_not_waited_for() {
        Barrier::wait(|_| {});
        let (sender, receiver) = mpsc::sync_channel(1);
        Barrier::wait(|barrier| {
            sender.send(Arc::clone(barrier)).unwrap();
            // A command that nobody takes out any more.
            drop(receiver);
        });
    }
}
