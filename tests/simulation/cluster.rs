//! Three nodes that share a store in memory, in time that passes at once: whatever is asked of whom, whoever dies, is cut
//! off or finds its ports taken, all that users were told holds, and in the end all nodes agree.

use std::{sync::Arc, time::Duration};

use harbor::store::{AnyStore, memory::MemoryStore};
use tokio::sync::watch;

use crate::{
    histories::{self, Limits, Pace, Place, Tally, Way},
    seeds::run_many,
};

/// How many histories there are.
const HISTORIES: u64 = 1_000;

const LIMITS: Limits = Limits {
    steps: 56,
    longest_gap: Duration::from_secs(5),
    pace: Pace { usual: Duration::from_millis(12), slow: Duration::from_millis(900) },
    grace: Duration::ZERO,
    answer: Duration::from_secs(300),
    agree: Duration::from_secs(30),
    simulated: true,
};

/// What must have happened how often in all histories together: some half of what does.
const AT_LEAST: [(&str, usize); 45] = [
    // What changed something.
    ("provisioned", 2_000),
    ("begun", 2_000),
    ("succeeded", 1_700),
    ("deprovisioned", 1_500),
    ("bound", 1_500),
    ("unbound", 400),
    ("updated", 1_700),
    // What could not, or had been done before.
    ("provisioned before", 1_200),
    ("in progress", 800),
    ("failed", 40),
    ("not provisioned", 300),
    ("not listening", 60),
    ("conflict", 120),
    ("gone", 600),
    ("bound before", 150),
    ("nothing to bind to", 700),
    ("not bound", 900),
    ("nothing to update", 600),
    ("busy", 900),
    ("the store is away", 2_500),
    ("its node has died", 1_200),
    // What failed.
    ("node killed", 1_000),
    ("node cut off", 1_000),
    ("database restarted", 1_000),
    ("node drained", 180),
    ("node resumed", 180),
    // What came of it.
    ("moved to another port", 170),
    ("taken up from another node", 200),
    ("taken up from its last process", 500),
    ("succeeded after the death of its node", 350),
    // What was asked on two nodes at the same time.
    ("bind meets bind", 150),
    ("bind meets deprovision", 300),
    ("bind meets provision", 200),
    ("bind meets unbind", 150),
    ("bind meets update", 300),
    ("deprovision meets deprovision", 150),
    ("deprovision meets provision", 250),
    ("deprovision meets unbind", 180),
    ("deprovision meets update", 350),
    ("provision meets provision", 400),
    ("provision meets update", 200),
    ("update meets update", 180),
    // What was looked at on all nodes, and how soon it was there.
    ("looked at after an answer", 600),
    (histories::ALL_WELL, 250),
    (histories::ALL_WELL_AND_SOON, 120),
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
    let tally = std::sync::Mutex::new(Tally::new());
    run_many(HISTORIES, |random| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let place = Memory(Arc::new(MemoryStore::shared()));
        for (what, count) in runtime.block_on(histories::run(place, LIMITS, random)) {
            *tally.lock().unwrap().entry(what).or_default() += count;
        }
    });
    if std::env::var_os("HARBOR_SEED").is_none() {
        let tally = tally.into_inner().unwrap();
        let count = |what: &str| tally.get(what).copied().unwrap_or_default();
        let rare = AT_LEAST.iter().filter(|(what, least)| count(what) < *least).collect::<Vec<_>>();
        assert!(rare.is_empty(), "these histories show too little of {rare:?}: {tally:#?}");
        // Nodes that read only from time to time take seconds.
        let (soon, all) = (count(histories::ALL_WELL_AND_SOON), count(histories::ALL_WELL));
        assert!(soon * 2 > all, "the other nodes are late: {soon} of {all} provisions were done within a second");
    }
}
