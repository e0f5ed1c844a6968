//! Three nodes that share a store in memory, in time that passes at once: whatever is asked of whom, whoever dies, is cut
//! off or finds its ports taken, all that users were told holds, and in the end all nodes agree.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use harbor::store::{AnyStore, memory::MemoryStore};
use tokio::sync::watch;

use crate::{
    histories::{self, Limits, Pace, Place, Way},
    seeds::run_many,
};

/// How many histories there are.
const HISTORIES: u64 = 1_000;

const LIMITS: Limits = Limits {
    steps: 40,
    longest_gap: Duration::from_secs(6),
    pace: Pace { usual: Duration::from_millis(12), slow: Duration::from_millis(900) },
    grace: Duration::ZERO,
    answer: Duration::from_secs(300),
    agree: Duration::from_secs(30),
};

/// What all histories together must have shown, each more than once or twice.
const ANSWERS: [&str; 19] = [
    "provisioned",
    "provisioned before",
    "begun",
    "in progress",
    "succeeded",
    "failed",
    "not provisioned",
    "not listening",
    "conflict",
    "deprovisioned",
    "gone",
    "bound",
    "bound before",
    "nothing to bind to",
    "unbound",
    "updated",
    "busy",
    "the store is away",
    "its node has died",
];

/// A store that is never lost, and a server before it that can be down.
struct Memory(Arc<MemoryStore>);

impl Place for Memory {
    async fn open(&self) -> anyhow::Result<AnyStore> {
        Ok(self.0.clone())
    }

    async fn restart(&self, server: &watch::Sender<Way>, down: Duration) {
        server.send_replace(Way::Refused);
        histories::pass(down).await;
        server.send_replace(Way::Open);
    }
}

#[test]
fn what_users_were_told_holds_and_all_nodes_agree_in_the_end() {
    let answers = std::sync::Mutex::new(BTreeMap::<&'static str, usize>::new());
    run_many(HISTORIES, |random| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let place = Memory(Arc::new(MemoryStore::shared()));
        for (answer, count) in runtime.block_on(histories::run(place, LIMITS, random)) {
            *answers.lock().unwrap().entry(answer).or_default() += count;
        }
    });
    if std::env::var_os("HARBOR_SEED").is_none() {
        let answers = answers.into_inner().unwrap();
        let rare = ANSWERS.iter().filter(|answer| answers.get(*answer).is_none_or(|count| *count < 5));
        assert_eq!(rare.collect::<Vec<_>>(), [&""; 0], "these histories show too little: {answers:#?}");
    }
}
