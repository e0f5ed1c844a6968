//! `kill -9` at random moments under load: what was acknowledged survives, and no port is lost.
//!
//! `HARBOR_CRASH_ROUNDS` sets the rounds (`script/crash` sets 200), `HARBOR_SEED` the history.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::future::join_all;
use hyper::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{
    harbor::{Harbor, Site},
    http::Client,
};

/// The plan `tcp`.
const PLAN_TCP: &str = "e1f6b1f0-57f3-5c0e-8a0b-6d3a6f0c1a02";
/// Ports of the pool: enough for the load never to run out.
const PORTS: u16 = 120;
/// Requests in flight at once.
const WORKERS: u64 = 8;
/// Service instances that one worker keeps at most.
const KEPT_BY_A_WORKER: usize = 10;

/// What the platform may rely on.
#[derive(Debug, Default)]
struct Ledger {
    /// Provisions that were acknowledged and not deprovisioned since.
    alive: BTreeMap<String, u64>,
    /// Requests whose answer never came: either outcome is right, until it is asked for again.
    in_doubt: BTreeSet<String>,
    /// Deprovisions that were acknowledged.
    gone: BTreeSet<String>,
}

fn body() -> Value {
    json!({
        "service_id": harbor::model::plan::SERVICE_ID,
        "plan_id": PLAN_TCP,
        "organization_guid": "org",
        "space_guid": "space",
    })
}

fn path(id: &str) -> String {
    format!("/v2/service_instances/{id}")
}

fn delete_path(id: &str) -> String {
    format!("{}?service_id={}&plan_id={PLAN_TCP}", path(id), harbor::model::plan::SERVICE_ID)
}

/// One worker's load until the process is gone.
async fn load(
    client: &Client,
    worker: u64,
    ledger: &Mutex<Ledger>,
    random: &Mutex<fastrand::Rng>,
    acknowledged: &dyn Fn(),
) {
    loop {
        let (id, provision) = {
            let mut random = random.lock().unwrap();
            let mut ledger = ledger.lock().unwrap();
            let mine = ledger
                .alive
                .iter()
                .filter(|(_, owner)| **owner == worker)
                .map(|(id, _)| id.clone())
                .collect::<Vec<_>>();
            let provision = mine.len() < KEPT_BY_A_WORKER && (mine.is_empty() || random.u8(..10) < 7);
            let id = if provision {
                format!("{worker}-{}", random.u64(..))
            } else {
                mine[random.usize(..mine.len())].clone()
            };
            ledger.alive.remove(&id);
            ledger.in_doubt.insert(id.clone());
            (id, provision)
        };
        let answer = if provision {
            client.try_send(Method::PUT, &path(&id), Some(&body())).await
        } else {
            client.try_send(Method::DELETE, &delete_path(&id), None).await
        };
        let Ok(answer) = answer else { return };
        let mut ledger = ledger.lock().unwrap();
        ledger.in_doubt.remove(&id);
        match (provision, answer.status.as_u16()) {
            (true, 201) => drop(ledger.alive.insert(id, worker)),
            (false, 200) => drop(ledger.gone.insert(id)),
            (_, status) => panic!("{id}: {status} {:?}", String::from_utf8_lossy(&answer.body)),
        }
        drop(ledger);
        acknowledged();
    }
}

/// Holds a restarted process against the ledger, and settles what was in doubt by asking again.
async fn audit(harbor: &Harbor, ledger: &mut Ledger) {
    let client = harbor.broker();
    for id in std::mem::take(&mut ledger.in_doubt) {
        let answer = client.delete(&delete_path(&id)).await;
        assert!(matches!(answer.status.as_u16(), 200 | 410), "{id}: {answer:?}");
        ledger.gone.insert(id);
    }
    for id in ledger.alive.keys() {
        assert_eq!(client.put(&path(id), &body()).await.status, 200, "{id} was acknowledged");
    }
    for id in &ledger.gone {
        assert_eq!(client.get(&path(id)).await.status, 404, "{id} was deprovisioned");
    }
    ledger.gone.clear();
    let pool = &harbor.admin().get("/admin/v1/status").await.json()["pools"][0];
    let counted = (&pool["allocated"], pool["free"].as_u64().unwrap() + pool["quarantined"].as_u64().unwrap());
    assert_eq!(
        counted,
        (&json!(ledger.alive.len()), u64::from(PORTS) - ledger.alive.len() as u64),
        "no port is lost or held twice: {pool}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_by_kill_9_under_load() {
    let rounds: u64 = std::env::var("HARBOR_CRASH_ROUNDS").map_or(20, |rounds| rounds.parse().expect("a number"));
    let seed = std::env::var("HARBOR_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().expect("a number"));
    let random = Mutex::new(fastrand::Rng::with_seed(seed));
    let site = Site::new(&format!("27000-{}", 27000 + PORTS - 1), "");
    let mut ledger = Ledger::default();
    let mut total = 0;
    for round in 0..rounds {
        let harbor = site.serve().await;
        audit(&harbor, &mut ledger).await;
        let (client, shared, killed) =
            (harbor.broker(), Mutex::new(std::mem::take(&mut ledger)), CancellationToken::new());
        let (answered, until) = (AtomicU64::new(0), random.lock().unwrap().u64(1..60));
        let acknowledged = || {
            if answered.fetch_add(1, Ordering::Relaxed) + 1 == until {
                killed.cancel();
            }
        };
        let work = join_all((0..WORKERS).map(|worker| load(&client, worker, &shared, &random, &acknowledged)));
        let kill = async {
            killed.cancelled().await;
            harbor.kill();
        };
        tokio::join!(work, kill);
        ledger = shared.into_inner().unwrap();
        total += answered.into_inner();
        assert!(!ledger.alive.is_empty() || !ledger.in_doubt.is_empty(), "round {round} of seed {seed} had no load");
    }
    let harbor = site.serve().await;
    audit(&harbor, &mut ledger).await;
    let survivors = ledger.alive.len();
    for id in ledger.alive.keys() {
        assert_eq!(harbor.broker().delete(&delete_path(id)).await.parts(), (200, json!({})));
    }
    for number in 0..PORTS {
        assert_eq!(harbor.broker().put(&path(&format!("last-{number}")), &body()).await.status, 201, "no port leaked");
    }
    assert!(harbor.terminate().success());
    assert!(total >= rounds, "{rounds} rounds, {total} acknowledged requests, {survivors} survivors, seed {seed}");
}
