//! Random histories: whatever is done in whatever order, SQLite answers as the reference model does and holds the same.

use std::{fmt::Debug, path::Path, sync::Arc, time::Duration};

use harbor::{
    model::{
        AppId, BindingId, NodeId, OrganizationId, PlanId, PoolName, Protocol, Revision, ServiceInstanceId, SpaceId,
        Timestamp, binding::Binding, parameters::Settings, service_instance::ServiceInstance,
    },
    store::{self, AnyStore, Reservation, memory::MemoryStore},
    telemetry::metrics::Metrics,
};
use proptest::prelude::*;

const PORTS: std::ops::Range<u16> = 20_100..20_106;

#[derive(Debug, Clone)]
enum Step {
    Provision { instance: u8, pool: u8, port: u16, asked_for: bool, space: u8 },
    Move { instance: u8, to: u16, stale: bool },
    Update { instance: u8, plan: u8, stale: bool },
    Deprovision { instance: u8, quarantine_minutes: Option<u64> },
    Bind { binding: u8, instance: u8, app: bool },
    Unbind { binding: u8, instance: u8 },
    Reserve { pool: u8, name: u8, first_port: u16, more: u16 },
    Join { node: u8, pools: Vec<u8> },
    Wait { minutes: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4_u8, 0..2_u8, PORTS, any::<bool>(), 0..2_u8).prop_map(|(instance, pool, port, asked_for, space)| {
            Step::Provision { instance, pool, port, asked_for, space }
        }),
        2 => (0..4_u8, PORTS, prop::bool::weighted(0.2)).prop_map(|(instance, to, stale)| Step::Move { instance, to, stale }),
        2 => (0..4_u8, 0..3_u8, prop::bool::weighted(0.2))
            .prop_map(|(instance, plan, stale)| Step::Update { instance, plan, stale }),
        4 => (0..4_u8, prop_oneof![Just(None), Just(Some(0)), Just(Some(15)), Just(Some(60))])
            .prop_map(|(instance, quarantine_minutes)| Step::Deprovision { instance, quarantine_minutes }),
        4 => (0..5_u8, 0..4_u8, any::<bool>()).prop_map(|(binding, instance, app)| Step::Bind { binding, instance, app }),
        2 => (0..5_u8, 0..4_u8).prop_map(|(binding, instance)| Step::Unbind { binding, instance }),
        1 => (0..2_u8, 0..2_u8, PORTS, 0..2_u16)
            .prop_map(|(pool, name, first_port, more)| Step::Reserve { pool, name, first_port, more }),
        1 => (0..2_u8, prop::collection::vec(0..3_u8, 0..4)).prop_map(|(node, pools)| Step::Join { node, pools }),
        2 => prop_oneof![Just(1), Just(15), Just(24 * 60)].prop_map(|minutes| Step::Wait { minutes }),
    ]
}

fn instance_id(number: u8) -> ServiceInstanceId {
    ServiceInstanceId::new(format!("instance/{number}")).unwrap()
}

fn binding_id(number: u8) -> BindingId {
    BindingId::new(format!("binding %{number}")).unwrap()
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
        Step::Provision { instance, pool, port, asked_for, space } => {
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
                node_id: NodeId::new("node").unwrap(),
                created_at: now,
                revision: Revision::default(),
            };
            shown(store.provision(&instance, now).await)
        }
        Step::Move { instance, to, stale } => {
            let id = instance_id(instance);
            let from = store.instance(&id).await.unwrap().map_or(to, |known| known.port);
            shown(store.move_port(&id, from + u16::from(stale), to, now).await)
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
        Step::Deprovision { instance, quarantine_minutes } => {
            let until = quarantine_minutes.map(|minutes| now.plus(Duration::from_secs(60 * minutes)));
            shown(store.deprovision(&instance_id(instance), now, until).await)
        }
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
        Step::Reserve { pool, name, first_port, more } => {
            let reservation = Reservation {
                pool: pool_name(pool),
                name: format!("reservation-{name}"),
                first_port,
                last_port: first_port + more,
            };
            shown(store.reserve(&reservation).await)
        }
        Step::Join { node, ref pools } => {
            let pools = pools.iter().map(|pool| pool_name(*pool)).collect::<Vec<_>>();
            shown(store.join(&NodeId::new(format!("node-{node}")).unwrap(), &pools, now).await)
        }
        Step::Wait { .. } => String::new(),
    }
}

/// All that can be read, as text.
async fn all(store: &AnyStore) -> String {
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
    shown + &format!("\n{:#?}", store.nodes().await.unwrap())
}

/// A directory in memory where there is one: what is on the disk does not matter here, and 2,000 commits wait for it.
fn fast_directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sqlite_agrees_with_the_reference_model_on_every_history(steps in prop::collection::vec(step(), 1..60)) {
        let directory = fast_directory();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let reference: AnyStore = Arc::new(MemoryStore::new());
            let metrics = Metrics::new().store.clone();
            let sqlite = store::open("sqlite:harbor.db", directory.path(), metrics).await.unwrap();
            let mut now = Timestamp::from_seconds(1_700_000_000);
            for step in steps {
                if let Step::Wait { minutes } = step {
                    now = now.plus(Duration::from_secs(60 * minutes));
                }
                prop_assert_eq!(act(&sqlite, &step, now).await, act(&reference, &step, now).await, "{:?}", step);
                prop_assert_eq!(all(&sqlite).await, all(&reference).await, "after {:?}", step);
            }
            sqlite.close().await;
            Ok(())
        })?;
    }
}
