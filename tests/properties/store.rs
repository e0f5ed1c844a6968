//! Random histories: whatever is done in whatever order, every engine answers as the reference model does and holds the
//! same.

use std::{collections::BTreeSet, fmt::Debug, path::Path, sync::Arc, time::Duration};

use harbor::{
    model::{
        AppId, BindingId, NodeId, OrganizationId, PlanId, PoolName, Protocol, Revision, ServiceInstanceId, SpaceId,
        Timestamp,
        binding::Binding,
        member::{Member, PortFailure, Report},
        observed::Mode,
        parameters::Settings,
        pool::{Pool, PoolNames},
        service_instance::ServiceInstance,
        setting::{self, By, SettingChange},
    },
    store::{self, AnyStore, Dump, Ending, Reservation, memory::MemoryStore},
    telemetry::metrics::Metrics,
};
use proptest::prelude::*;

use crate::support::postgres::{self, Postgres};

const PORTS: std::ops::Range<u16> = 20_100..20_106;

#[derive(Debug, Clone)]
enum Step {
    Provision { instance: u8, pool: u8, port: u16, asked_for: bool, space: u8, open_later: bool },
    Move { instance: u8, to: u16, stale: bool, by: Option<u8> },
    Update { instance: u8, plan: u8, stale: bool },
    Deprovision { instance: u8, ending: EndingOf },
    TakeUp { instance: u8, from: u8, to: u8 },
    Opened { instance: u8, by: u8 },
    Bind { binding: u8, instance: u8, app: bool },
    Unbind { binding: u8, instance: u8 },
    Reserve { pool: u8, name: u8, first_port: u16, more: u16, protocol: u8, released: Option<u8>, known: BTreeSet<u16> },
    Set { scope: u8, key: u8, value: Option<u8>, stale: bool },
    Rotate { end: bool },
    Join { node: u8, pools: BTreeSet<u8> },
    Report { node: u8, process: u8, applied: u64, failures: u8 },
    Drain { node: u8, drain: bool },
    RemoveNode { node: u8 },
    DefinePool { pool: u8, quarantine_minutes: u64, stale: bool },
    DropPools { pools: BTreeSet<u8>, stale: bool },
    Wait { minutes: u64 },
}

#[derive(Debug, Clone, Copy)]
enum EndingOf {
    Rest { minutes: u64 },
    Unused,
    Failed { by: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4_u8, 0..2_u8, PORTS, any::<bool>(), 0..2_u8, any::<bool>()).prop_map(
            |(instance, pool, port, asked_for, space, open_later)| {
                Step::Provision { instance, pool, port, asked_for, space, open_later }
            },
        ),
        2 => (0..4_u8, PORTS, prop::bool::weighted(0.2), prop::option::of(0..2_u8))
            .prop_map(|(instance, to, stale, by)| Step::Move { instance, to, stale, by }),
        2 => (0..4_u8, 0..3_u8, prop::bool::weighted(0.2))
            .prop_map(|(instance, plan, stale)| Step::Update { instance, plan, stale }),
        4 => (0..4_u8, ending()).prop_map(|(instance, ending)| Step::Deprovision { instance, ending }),
        1 => (0..4_u8, 0..2_u8, 0..2_u8).prop_map(|(instance, from, to)| Step::TakeUp { instance, from, to }),
        1 => (0..4_u8, 0..2_u8).prop_map(|(instance, by)| Step::Opened { instance, by }),
        4 => (0..5_u8, 0..4_u8, any::<bool>()).prop_map(|(binding, instance, app)| Step::Bind { binding, instance, app }),
        2 => (0..5_u8, 0..4_u8).prop_map(|(binding, instance)| Step::Unbind { binding, instance }),
        2 => (
            0..2_u8,
            0..3_u8,
            PORTS,
            0..2_u16,
            0..3_u8,
            prop::option::of(0..3_u8),
            prop::collection::btree_set(PORTS, 0..4),
        )
            .prop_map(|(pool, name, first_port, more, protocol, released, known)| {
                Step::Reserve { pool, name, first_port, more, protocol, released, known }
            }),
        2 => (0..2_u8, 0..4_u8, prop::option::of(0..3_u8), prop::bool::weighted(0.2))
            .prop_map(|(scope, key, value, stale)| Step::Set { scope, key, value, stale }),
        1 => any::<bool>().prop_map(|end| Step::Rotate { end }),
        1 => (0..2_u8, prop::collection::btree_set(0..3_u8, 0..4)).prop_map(|(node, pools)| Step::Join { node, pools }),
        1 => (0..2_u8, 0..2_u8, 0..9_u64, 0..3_u8)
            .prop_map(|(node, process, applied, failures)| Step::Report { node, process, applied, failures }),
        1 => (0..2_u8, any::<bool>()).prop_map(|(node, drain)| Step::Drain { node, drain }),
        1 => (0..2_u8).prop_map(|node| Step::RemoveNode { node }),
        1 => (0..2_u8, 0..3_u64, prop::bool::weighted(0.3))
            .prop_map(|(pool, quarantine_minutes, stale)| Step::DefinePool { pool, quarantine_minutes, stale }),
        1 => (prop::collection::btree_set(0..3_u8, 1..3), prop::bool::weighted(0.2))
            .prop_map(|(pools, stale)| Step::DropPools { pools, stale }),
        2 => prop_oneof![Just(1), Just(15), Just(24 * 60)].prop_map(|minutes| Step::Wait { minutes }),
    ]
}

fn ending() -> impl Strategy<Value = EndingOf> {
    let rest = prop_oneof![Just(0), Just(15), Just(60)].prop_map(|minutes| EndingOf::Rest { minutes });
    prop_oneof![3 => rest, 1 => Just(EndingOf::Unused), 1 => (0..2_u8).prop_map(|by| EndingOf::Failed { by })]
}

fn node_id(number: u8) -> NodeId {
    NodeId::new(format!("node-{number}")).unwrap()
}

fn root(now: Timestamp) -> By {
    By { who: "root".into(), at: now }
}

/// Ids hold any character; these sort by the ones that engines treat in their own ways.
const CHARACTERS: [&str; 5] = ["\0", "\u{1}", "\u{1}\u{1}", "%", "☃"];

fn instance_id(number: u8) -> ServiceInstanceId {
    ServiceInstanceId::new(format!("instance{}", CHARACTERS[usize::from(number) % CHARACTERS.len()])).unwrap()
}

fn binding_id(number: u8) -> BindingId {
    BindingId::new(format!("{}binding{number}", CHARACTERS[usize::from(number) % CHARACTERS.len()])).unwrap()
}

fn pool_name(number: u8) -> PoolName {
    PoolName::new(format!("pool-{number}")).unwrap()
}

fn space_id(number: u8) -> SpaceId {
    SpaceId::new(format!("space-{number}")).unwrap()
}

fn plan_id(number: u8) -> PlanId {
    PlanId::new(format!("plan-{number}")).unwrap()
}

/// What a step did, as text: outcomes of all kinds in one type.
async fn act(store: &AnyStore, step: &Step, now: Timestamp) -> String {
    fn shown<T: Debug>(outcome: store::Result<T>) -> String {
        format!("{:?}", outcome.unwrap())
    }
    match *step {
        Step::Provision { instance, pool, port, asked_for, space, open_later } => {
            let instance = ServiceInstance {
                id: instance_id(instance),
                plan_id: plan_id(0),
                pool: pool_name(pool),
                port,
                protocol: Protocol::Both,
                requested_port: asked_for.then_some(port),
                settings: Settings { max_connections: Some(u32::from(port)), ..Settings::default() },
                organization_id: OrganizationId::new("organization").unwrap(),
                space_id: space_id(space),
                name: asked_for.then(|| "both-game".into()),
                node_id: node_id(space),
                created_at: now,
                revision: Revision::default(),
            };
            shown(store.provision(&instance, open_later, now).await)
        }
        Step::Move { instance, to, stale, by } => {
            let id = instance_id(instance);
            let from = store.instance(&id).await.unwrap().map_or(to, |known| known.port);
            let by = by.map(node_id);
            shown(store.move_port(&id, from + u16::from(stale), to, by.as_ref(), now).await)
        }
        Step::Update { instance, plan, stale } => match store.instance(&instance_id(instance)).await.unwrap() {
            Some(known) => {
                let changed = ServiceInstance {
                    plan_id: plan_id(plan),
                    protocol: Protocol::Udp,
                    settings: Settings { match_app: Some(plan == 0), ..Settings::default() },
                    name: None,
                    revision: Revision(known.revision.0 - u64::from(stale)),
                    ..known
                };
                shown(store.update(&changed).await)
            }
            None => "nothing to update".into(),
        },
        Step::Deprovision { instance, ending } => {
            let node;
            let ending = match ending {
                EndingOf::Rest { minutes } => Ending::Rest(now.plus(Duration::from_secs(60 * minutes))),
                EndingOf::Unused => Ending::Unused,
                EndingOf::Failed { by } => {
                    node = node_id(by);
                    Ending::Failed { by: &node, why: "the port is held" }
                }
            };
            shown(store.deprovision(&instance_id(instance), now, ending).await)
        }
        Step::TakeUp { instance, from, to } => {
            shown(store.take_up(&instance_id(instance), &node_id(from), &node_id(to), now).await)
        }
        Step::Opened { instance, by } => shown(store.opened(&instance_id(instance), &node_id(by)).await),
        Step::Bind { binding, instance, app } => {
            let binding = Binding {
                id: binding_id(binding),
                service_instance_id: instance_id(instance),
                app_id: app.then(|| AppId::new("app").unwrap()),
                space_id: app.then(|| space_id(0)),
                announce: app,
                predecessor_id: (!app).then(|| binding_id(9)),
                created_at: now,
                revision: Revision::default(),
            };
            shown(store.bind(&binding).await)
        }
        Step::Unbind { binding, instance } => shown(store.unbind(&instance_id(instance), &binding_id(binding)).await),
        Step::Reserve { pool, name: number, first_port, more, protocol, released, ref known } => {
            let name = |number| format!("reservation-{number}");
            let reservation = Reservation {
                pool: pool_name(pool),
                name: name(number),
                first_port,
                last_port: first_port + more,
                protocol: Protocol::ALL[usize::from(protocol)],
            };
            let released = released.map(|number| (pool_name(pool), name(number)));
            let known = known.iter().map(|port| (pool_name(pool), *port)).collect();
            shown(store.change_reservations(released.as_slice(), &[reservation], &known, &root(now)).await)
        }
        Step::Set { scope, key, value, stale } => {
            let change = |key: u8, value: Option<u8>| SettingChange {
                scope: if scope == 0 { setting::SUSPENDED.into() } else { "harbor_node".into() },
                key: if scope == 0 { instance_id(key).to_string() } else { format!("key-{key}") },
                value: value.map(|value| format!("value \0 {value}")),
            };
            let read_at = store.settings().await.unwrap().0;
            let read_at = Revision(read_at.0.saturating_sub(5 * u64::from(stale)));
            let changes = [change(key, value), change(key + 1, None)];
            shown(store.change_settings(&changes, &root(now), read_at).await)
        }
        Step::Rotate { end: false } => shown(store.rotate_announce_secret(&root(now)).await),
        Step::Rotate { end: true } => shown(store.drop_former_secret(&root(now)).await),
        Step::Join { node, ref pools } => {
            let member = Member {
                id: node_id(node),
                incarnation: "0".into(),
                version: "0.1.0".into(),
                pools: pools.iter().map(|pool| pool_name(*pool)).collect(),
                report: Report::default(),
                drain: false,
                joined_at: now,
                seen_at: now,
            };
            shown(store.join(&member).await)
        }
        Step::Report { node, process, applied, failures } => {
            let failure = |number| PortFailure {
                service_instance_id: instance_id(number),
                port: 20_100 + u16::from(number),
                held: number == 0,
                reason: "TCP port 20100 is held by \"nginx\"".into(),
                since: now,
            };
            let report = Report {
                mode: Mode::ALL[usize::from(process)],
                applied: Revision(applied),
                flows: applied * 3,
                failures: (0..failures).map(failure).collect(),
                failed: failures.into(),
            };
            shown(store.report(&node_id(node), &process.to_string(), &report, now).await)
        }
        Step::Drain { node, drain } => shown(store.set_drain(&node_id(node), drain).await),
        Step::RemoveNode { node } => shown(store.remove_node(&node_id(node)).await),
        Step::DefinePool { pool, quarantine_minutes, stale } => {
            let pool = Pool {
                name: pool_name(pool),
                ports: "20100-20110, 20200".parse().unwrap(),
                names: PoolNames { host: Some("10.0.0.5".into()), ..PoolNames::default() },
                int_port: 4100,
                quarantine: Duration::from_secs(60 * quarantine_minutes),
                retired: quarantine_minutes == 0,
            };
            let read_at = store.everything().await.unwrap().revision;
            let read_at = Revision(read_at.0.saturating_sub(5 * u64::from(stale)));
            shown(store.define_pools(&[pool], read_at).await)
        }
        Step::DropPools { ref pools, stale } => {
            let pools = pools.iter().map(|pool| pool_name(*pool)).collect::<Vec<_>>();
            let read_at = store.everything().await.unwrap().revision;
            let read_at = Revision(read_at.0.saturating_sub(5 * u64::from(stale)));
            shown(store.drop_pools(&pools, &root(now), read_at).await)
        }
        Step::Wait { .. } => String::new(),
    }
}

/// All that can be read but nodes, as text.
async fn all(store: &AnyStore, now: Timestamp) -> String {
    let everything = store.everything().await.unwrap();
    let mut shown = format!("{everything:#?}");
    for back in [0, 1, 5, 20] {
        let since = Revision(everything.revision.0.saturating_sub(back));
        shown += &format!("\nsince {since}: {:#?}", store.changes_since(since).await.unwrap());
    }
    let ahead = Revision(everything.revision.0 + 1);
    shown += &format!("\nsince {ahead}: {:#?}", store.changes_since(ahead).await.unwrap());
    for pool in 0..2 {
        let pool = pool_name(pool);
        shown += &format!("\n{:#?}", store.ports(&pool).await.unwrap());
        shown += &format!("\n{:#?}", store.reservations(&pool).await.unwrap());
    }
    for instance in 0..4 {
        shown += &format!("\n{:?}", store.operation(&instance_id(instance), now).await.unwrap());
    }
    shown += &format!("\n{:#?}", store.settings().await.unwrap());
    shown += &format!("\n{:#?}", store.settings_history(7).await.unwrap());
    shown += &format!("\n{:#?}", store.operations().await.unwrap());
    shown + &format!("\n{:#?}", store.export().await.unwrap())
}

/// A directory in memory where there is one: what is on the disk does not matter here, and 2,000 commits wait for it.
fn fast_directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// Takes every step on `store` and on the reference model, and looks at all of both after each. Then moves it to `empty`.
async fn agree(store: AnyStore, empty: AnyStore, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let reference: AnyStore = Arc::new(MemoryStore::new());
    let mut now = Timestamp::from_seconds(1_700_000_000);
    // There is a pool to reserve of from the beginning.
    let first = Step::DefinePool { pool: 0, quarantine_minutes: 0, stale: false };
    for step in std::iter::once(first).chain(steps) {
        if let Step::Wait { minutes } = step {
            now = now.plus(Duration::from_secs(60 * minutes));
        }
        prop_assert_eq!(act(&store, &step, now).await, act(&reference, &step, now).await, "{:?}", step);
        prop_assert_eq!(all(&store, now).await, all(&reference, now).await, "after {:?}", step);
        prop_assert_eq!(store.members().await.unwrap(), reference.members().await.unwrap(), "after {:?}", step);
    }
    // By way of a file, all of it fills an empty store of the same engine and the reference model.
    let all_of_it = all(&store, now).await;
    let mut file = Vec::new();
    store.export().await.unwrap().write(&mut file).unwrap();
    let dump = Dump::read(&file).map_err(|error| TestCaseError::fail(error.to_string()))?;
    for filled in [empty, Arc::new(MemoryStore::new())] {
        prop_assert!(filled.import(&dump).await.unwrap());
        prop_assert_eq!(all(&filled, now).await, all_of_it.clone(), "after it was moved");
        filled.close().await;
    }
    store.close().await;
    Ok(())
}

async fn open(url: String, data_dir: &Path) -> AnyStore {
    let settings = store::Settings { data_dir: data_dir.into(), ..postgres::settings(url) };
    store::open(&settings, Metrics::new().store.clone(), None).await.unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sqlite_agrees_with_the_reference_model_on_every_history(steps in prop::collection::vec(step(), 1..60)) {
        let directory = fast_directory();
        runtime().block_on(async {
            let open = async |file: &str| open(format!("sqlite:{file}"), directory.path()).await;
            agree(open("harbor.db").await, open("other.db").await, steps).await
        })?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn postgresql_agrees_with_the_reference_model_on_every_history(steps in prop::collection::vec(step(), 1..60)) {
        let (url, other) = (Postgres::shared().database(), Postgres::shared().database());
        runtime().block_on(async {
            agree(open(url, Path::new("")).await, open(other, Path::new("")).await, steps).await
        })?;
    }
}
