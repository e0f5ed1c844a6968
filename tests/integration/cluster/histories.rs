//! The histories of the simulation on a real PostgreSQL, which is stopped or killed and started again under way.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use fastrand::Rng;
use harbor::{
    store::{self, AnyStore},
    telemetry::metrics::Metrics,
};
use tokio::sync::watch;

use crate::{
    histories::{self, Limits, Pace, Place, Way},
    support::postgres::{Postgres, settings},
};

/// How many histories there are, all at once: most of their time they wait.
const HISTORIES: u64 = 6;

const LIMITS: Limits = Limits {
    steps: 40,
    longest_gap: Duration::from_secs(2),
    pace: Pace { usual: Duration::from_millis(3), slow: Duration::from_millis(300) },
    grace: Duration::from_secs(5),
    answer: Duration::from_secs(120),
    agree: Duration::from_secs(60),
    simulated: false,
};

/// A server of its own, with one database.
struct OnPostgres {
    server: Arc<Mutex<Postgres>>,
    url: String,
}

impl Place for OnPostgres {
    async fn open(&self) -> anyhow::Result<AnyStore> {
        // On a thread of its own: the compiler cannot tell that this future may go from one to another.
        let (url, runtime) = (self.url.clone(), tokio::runtime::Handle::current());
        let open = move || runtime.block_on(store::open(&settings(url), Arc::clone(&Metrics::new().store), None));
        Ok(tokio::task::spawn_blocking(open).await??)
    }

    async fn restart(&self, _: &watch::Sender<Way>, down: Duration) {
        let end = async |change: fn(&mut Postgres)| {
            let server = Arc::clone(&self.server);
            tokio::task::spawn_blocking(move || change(&mut server.lock().unwrap())).await.unwrap();
        };
        // Every other time it has no time to say goodbye.
        end(if down.as_millis().is_multiple_of(2) { Postgres::stop } else { Postgres::kill }).await;
        histories::pass(down).await;
        end(Postgres::start_again).await;
    }
}

#[test]
fn on_postgresql_too_what_users_were_told_holds_and_all_nodes_agree_in_the_end() {
    let seeds = match std::env::var("HARBOR_SEED") {
        Ok(seed) => vec![seed.parse().expect("HARBOR_SEED is a number")],
        Err(_) => (0..HISTORIES).collect(),
    };
    std::thread::scope(|scope| {
        let each = seeds.into_iter().map(|seed| (seed, scope.spawn(move || history(seed)))).collect::<Vec<_>>();
        for (seed, thread) in each {
            assert!(thread.join().is_ok(), "replay it with HARBOR_SEED={seed}");
        }
    });
}

fn history(seed: u64) {
    let server = Postgres::start();
    let url = server.database();
    let place = OnPostgres { server: Arc::new(Mutex::new(server)), url };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(histories::run(place, LIMITS, Rng::with_seed(seed)));
}
