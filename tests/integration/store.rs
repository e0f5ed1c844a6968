//! The contract that every engine keeps, and what is SQLite's own: its lock, its files, its migrations.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use harbor::{
    model::{
        AppId, BindingId, NodeId, OrganizationId, PlanId, PoolName, Protocol, Revision, ServiceInstanceId, SpaceId,
        Timestamp,
        allocation::REUSE_WAIT,
        balance::Balance,
        binding::Binding,
        parameters::{HealthCheck, ProxyProtocol, Settings, TcpCheck},
        service_instance::ServiceInstance,
        setting::By,
    },
    store::{
        self, AnyStore, Bind, CHANGES_KEPT, Change, Changes, Ending, Migrated, OpenError, PortRow, PortState,
        Provision, Release, Reservation, SCHEMA_VERSION, memory::MemoryStore,
    },
    telemetry::metrics::Metrics,
};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::support::postgres::{Postgres, settings};

pub(crate) const NOW: Timestamp = Timestamp::from_seconds(1_700_000_000);
const QUARANTINE: Duration = Duration::from_secs(15 * 60);

mod dumps;
mod members;
mod operators;
pub(crate) mod versions;

use dumps::*;
use members::*;
use operators::*;

/// Runs the contract on an engine: one test a rule, each on a new store.
macro_rules! contract_on {
    ($engine:ident, $start:path) => {
        mod $engine {
            contract_on! {
                @ $start:
                a_new_store_holds_nothing,
                a_service_instance_is_read_back_as_it_was_given,
                a_known_id_is_answered_with_what_is_stored,
                a_port_belongs_to_one_service_instance_of_its_pool,
                a_freed_port_is_nobodys_until_its_quarantine_ends,
                a_port_asked_for_waits_a_day_after_another_space,
                a_reserved_port_is_not_given_out,
                reservations_of_a_pool_neither_overlap_nor_share_a_name,
                a_port_that_was_moved_away_from_is_what_it_was_before,
                a_port_that_was_never_used_is_what_it_was_before,
                a_move_needs_the_port_as_it_was_read_and_a_free_one,
                an_update_changes_plan_protocol_settings_and_name_alone,
                an_update_of_what_has_changed_meanwhile_is_stale,
                a_binding_is_read_back_as_it_was_given,
                a_binding_id_is_unique_among_all_service_instances,
                a_deleted_service_instance_takes_its_bindings_along,
                every_change_raises_the_revision_by_one_and_a_refusal_does_not,
                changes_are_told_from_every_revision_on,
                what_was_deleted_and_made_again_is_not_deleted,
                changes_too_far_back_or_ahead_are_not_told,
                the_announce_secret_is_made_once,
                the_former_announce_secret_counts_until_it_is_dropped,
                reservations_are_changed_together_or_not_at_all,
                a_port_that_was_allocated_meanwhile_is_not_held_back_unsaid,
                what_is_listed_of_a_pool_tells_whose_each_port_is,
                a_live_setting_is_what_was_set_last_and_its_history_is_kept,
                live_settings_are_not_changed_over_a_change_that_was_not_seen,
                a_suspension_ends_with_its_service_instance,
                the_history_keeps_the_last_changes,
                a_node_is_known_by_its_last_word,
                an_operators_wish_outlives_the_process_and_ends_with_the_node,
                pools_are_defined_for_all_but_not_over_a_change_that_was_not_seen,
                a_pool_is_dropped_that_nobody_needs,
                an_operation_is_under_way_until_it_ends,
                an_operation_that_failed_is_told_for_a_day,
                changes_tell_which_ports_were_freed_and_where_some_were_reserved,
                a_change_is_followed_by_a_hint,
                a_dump_holds_all_that_is_kept,
                an_empty_store_goes_on_from_a_dump,
                a_store_that_ever_kept_anything_takes_no_dump,
                parallel_provisions_never_share_a_port,
                parallel_identical_provisions_make_one_service_instance,
                a_call_that_is_dropped_half_way_does_all_or_nothing,
                a_closed_store_answers_with_a_fault,
            }
        }
    };
    (@ $start:path: $($rule:ident),* $(,)?) => {
        $(
            #[tokio::test]
            async fn $rule() {
                let engine = $start().await;
                super::$rule(engine.store.clone()).await;
                engine.store.close().await;
            }
        )*
    };
}

contract_on!(memory, super::start_memory);
contract_on!(sqlite, super::start_sqlite);
contract_on!(postgres, super::start_postgres);

struct Engine {
    store: AnyStore,
    _directory: Option<TempDir>,
}

async fn start_memory() -> Engine {
    Engine { store: Arc::new(MemoryStore::new()), _directory: None }
}

async fn start_postgres() -> Engine {
    let store = store::open(&settings(Postgres::shared().database()), Metrics::new().store.clone(), None).await;
    Engine { store: store.unwrap(), _directory: None }
}

/// In memory where the machine has a directory there: the contract asks nothing of the disk, and waits for it often.
async fn start_sqlite() -> Engine {
    let memory = Path::new("/dev/shm");
    let directory = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    Engine { store: open(directory.path()).await.unwrap(), _directory: Some(directory) }
}

async fn open(directory: &Path) -> Result<AnyStore, OpenError> {
    store::open(&sqlite(directory, "harbor.db"), Metrics::new().store.clone(), None).await
}

fn sqlite(data_dir: &Path, file: &str) -> store::Settings {
    store::Settings { url: format!("sqlite:{file}"), data_dir: data_dir.to_path_buf(), ..settings(String::new()) }
}

fn pool() -> PoolName {
    PoolName::new("default").unwrap()
}

fn id(text: &str) -> ServiceInstanceId {
    ServiceInstanceId::new(text).unwrap()
}

fn binding_id(text: &str) -> BindingId {
    BindingId::new(text).unwrap()
}

fn space(text: &str) -> SpaceId {
    SpaceId::new(text).unwrap()
}

/// A service instance on a port that chance chose.
pub(crate) fn instance(id: &str, port: u16) -> ServiceInstance {
    ServiceInstance {
        id: self::id(id),
        plan_id: PlanId::new("plan").unwrap(),
        pool: pool(),
        port,
        protocol: Protocol::Tcp,
        requested_port: None,
        settings: Settings::default(),
        organization_id: OrganizationId::new("organization").unwrap(),
        space_id: space("space"),
        name: None,
        node_id: NodeId::new("node").unwrap(),
        created_at: NOW,
        revision: Revision::default(),
    }
}

/// A service instance on a port that the user chose.
fn choosing(id: &str, port: u16, space: &str) -> ServiceInstance {
    ServiceInstance { requested_port: Some(port), space_id: self::space(space), ..instance(id, port) }
}

fn key(id: &str, instance: &str) -> Binding {
    Binding {
        id: binding_id(id),
        service_instance_id: self::id(instance),
        app_id: None,
        space_id: None,
        announce: false,
        predecessor_id: None,
        created_at: NOW,
        revision: Revision::default(),
    }
}

fn reservation(name: &str, first_port: u16, last_port: u16) -> Reservation {
    Reservation { pool: pool(), name: name.into(), first_port, last_port, protocol: Protocol::Both }
}

fn root() -> By {
    By { who: "root".into(), at: NOW }
}

/// Whatever service instances have there, and in a pool that is defined for it where it is not.
async fn reserve(store: &AnyStore, reservation: &Reservation) -> bool {
    let Reservation { pool, first_port, last_port, .. } = reservation;
    define(store, pool).await;
    let known = (*first_port..=*last_port).map(|port| (pool.clone(), port)).collect();
    store.change_reservations(&[], std::slice::from_ref(reservation), &known, &root()).await.unwrap()
}

/// Provisions what must succeed.
pub(crate) async fn made(store: &AnyStore, instance: &ServiceInstance) -> ServiceInstance {
    match store.provision(instance, false, NOW).await.unwrap() {
        Provision::Created(made) => made,
        other => panic!("{} was not provisioned: {other:?}", instance.id),
    }
}

/// Binds what must succeed.
async fn bound(store: &AnyStore, binding: &Binding) -> Binding {
    match store.bind(binding).await.unwrap() {
        Bind::Created(bound) => bound,
        other => panic!("{} was not bound: {other:?}", binding.id),
    }
}

pub(crate) async fn revision(store: &AnyStore) -> u64 {
    store.everything().await.unwrap().revision.0
}

async fn a_new_store_holds_nothing(store: AnyStore) {
    let nothing = Changes { settings: Some(Vec::new()), ..Changes::default() };
    assert_eq!(store.everything().await.unwrap(), nothing);
    assert_eq!(store.changes_since(Revision(0)).await.unwrap(), Some(Changes::default()));
    assert_eq!(store.ports(&pool()).await.unwrap(), []);
    assert_eq!(store.reservations(&pool()).await.unwrap(), []);
    assert_eq!(store.members().await.unwrap(), []);
    assert_eq!(store.instance(&id("i")).await.unwrap(), None);
    assert_eq!(store.binding(&id("i"), &binding_id("b")).await.unwrap(), None);
    assert_eq!(store.deprovision(&id("i"), NOW, Ending::Rest(NOW)).await.unwrap(), None);
    assert_eq!(store.unbind(&id("i"), &binding_id("b")).await.unwrap(), None);
    store.ping().await.unwrap();
}

async fn a_service_instance_is_read_back_as_it_was_given(store: AnyStore) {
    let plain = instance("plain", 20_000);
    let full = ServiceInstance {
        id: id("a/b %2F ü \0 'quoted\"; DROP TABLE bindings; --"),
        protocol: Protocol::Both,
        requested_port: Some(20_001),
        settings: Settings {
            int_port: Some(65_535),
            balance: Some(Balance::SourceHash),
            match_app: Some(true),
            idle_timeout: Some(Duration::from_millis(90_500)),
            max_connections: Some(u32::MAX),
            allow: vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
            proxy_protocol: Some(ProxyProtocol::V1),
            health_check: Some(HealthCheck::Tcp(TcpCheck { fall: 9, ..TcpCheck::default() })),
        },
        name: Some("both-ports ☃".into()),
        created_at: Timestamp(-1),
        ..instance("full", 20_001)
    };
    for (number, given) in [(1, plain), (2, full)] {
        let expected = ServiceInstance { revision: Revision(number), ..given.clone() };
        assert_eq!(store.provision(&given, false, NOW).await.unwrap(), Provision::Created(expected.clone()));
        assert_eq!(store.instance(&given.id).await.unwrap(), Some(expected.clone()));
        assert!(store.everything().await.unwrap().instances.contains(&expected));
    }
}

async fn a_known_id_is_answered_with_what_is_stored(store: AnyStore) {
    let first = made(&store, &instance("i", 20_000)).await;
    for port in [20_000, 20_001] {
        let again = ServiceInstance { name: Some("other".into()), ..instance("i", port) };
        assert_eq!(store.provision(&again, false, NOW).await.unwrap(), Provision::Exists(first.clone()));
    }
    assert_eq!(store.everything().await.unwrap().instances, [first]);
}

async fn a_port_belongs_to_one_service_instance_of_its_pool(store: AnyStore) {
    made(&store, &instance("first", 20_000)).await;
    assert_eq!(store.provision(&instance("second", 20_000), false, NOW).await.unwrap(), Provision::PortTaken);
    assert_eq!(store.instance(&id("second")).await.unwrap(), None);
    let elsewhere = ServiceInstance { pool: PoolName::new("games").unwrap(), ..instance("third", 20_000) };
    made(&store, &elsewhere).await;
    assert_eq!(store.ports(&pool()).await.unwrap(), [PortRow { port: 20_000, state: PortState::Allocated }]);
}

async fn a_freed_port_is_nobodys_until_its_quarantine_ends(store: AnyStore) {
    let gone = made(&store, &instance("gone", 20_000)).await;
    let end = NOW.plus(QUARANTINE);
    assert_eq!(store.deprovision(&gone.id, NOW, Ending::Rest(end)).await.unwrap(), Some(gone));
    let state = PortState::Released(Release { space_id: space("space"), at: NOW, quarantined_until: end });
    assert_eq!(store.ports(&pool()).await.unwrap(), [PortRow { port: 20_000, state }]);
    let just_before = Timestamp(end.0 - 1);
    for next in [instance("other", 20_000), choosing("same", 20_000, "space"), instance("gone", 20_000)] {
        assert_eq!(store.provision(&next, false, just_before).await.unwrap(), Provision::PortTaken, "{}", next.id);
    }
    assert!(matches!(store.provision(&instance("other", 20_000), false, end).await.unwrap(), Provision::Created(_)));
}

async fn a_port_asked_for_waits_a_day_after_another_space(store: AnyStore) {
    made(&store, &instance("gone", 20_000)).await;
    made(&store, &instance("gone too", 20_001)).await;
    let end = NOW.plus(QUARANTINE);
    for gone in ["gone", "gone too"] {
        store.deprovision(&id(gone), NOW, Ending::Rest(end)).await.unwrap();
    }
    let stranger = choosing("stranger", 20_000, "another space");
    let a_day_later = NOW.plus(REUSE_WAIT);
    assert_eq!(store.provision(&stranger, false, end).await.unwrap(), Provision::PortTaken);
    assert_eq!(store.provision(&stranger, false, Timestamp(a_day_later.0 - 1)).await.unwrap(), Provision::PortTaken);
    assert!(matches!(store.provision(&stranger, false, a_day_later).await.unwrap(), Provision::Created(_)));
    let owner = choosing("owner", 20_001, "space");
    assert!(matches!(store.provision(&owner, false, end).await.unwrap(), Provision::Created(_)));
}

async fn a_reserved_port_is_not_given_out(store: AnyStore) {
    assert!(reserve(&store, &reservation("block", 20_010, 20_012)).await);
    for port in 20_010..=20_012 {
        for next in [instance("by chance", port), choosing("chosen", port, "space")] {
            assert_eq!(store.provision(&next, false, NOW).await.unwrap(), Provision::PortTaken, "{} {port}", next.id);
        }
    }
    made(&store, &instance("below", 20_009)).await;
    made(&store, &instance("above", 20_013)).await;
    let moved = store.move_port(&id("below"), 20_009, 20_010, None, NOW).await.unwrap();
    assert_eq!(moved, Change::PortTaken);
    assert!(reserve(&store, &reservation("later", 20_009, 20_009)).await);
    assert_eq!(store.instance(&id("below")).await.unwrap().map(|kept| kept.port), Some(20_009));
}

async fn reservations_of_a_pool_neither_overlap_nor_share_a_name(store: AnyStore) {
    let block = reservation("block", 20_010, 20_020);
    assert!(reserve(&store, &block).await);
    for (name, first, last) in [
        ("block", 20_030, 20_030),
        ("same", 20_010, 20_020),
        ("head", 20_005, 20_010),
        ("tail", 20_020, 20_025),
        ("inside", 20_015, 20_015),
        ("around", 20_000, 20_040),
    ] {
        assert!(!reserve(&store, &reservation(name, first, last)).await, "{name}");
    }
    let before = reservation("before", 20_009, 20_009);
    let elsewhere = Reservation { pool: PoolName::new("games").unwrap(), ..block.clone() };
    assert!(reserve(&store, &before).await);
    assert!(reserve(&store, &elsewhere).await);
    assert_eq!(store.reservations(&pool()).await.unwrap(), [before, block]);
    assert_eq!(store.reservations(&elsewhere.pool).await.unwrap(), [elsewhere]);
}

async fn a_port_that_was_moved_away_from_is_what_it_was_before(store: AnyStore) {
    // One that was never allocated, and one that another space has used.
    made(&store, &instance("former", 20_001)).await;
    let end = NOW.plus(QUARANTINE);
    store.deprovision(&id("former"), NOW, Ending::Rest(end)).await.unwrap();
    let used = store.ports(&pool()).await.unwrap();
    for (name, from) in [("new", 20_000), ("used", 20_001)] {
        let given = ServiceInstance { space_id: space("another space"), ..instance(name, from) };
        assert!(matches!(store.provision(&given, false, end).await.unwrap(), Provision::Created(_)));
        let moved = store.move_port(&given.id, from, from + 10, None, end).await.unwrap();
        let revision = Revision(self::revision(&store).await);
        assert_eq!(moved, Change::Done(ServiceInstance { port: from + 10, revision, ..given.clone() }));
        assert_eq!(store.instance(&given.id).await.unwrap().map(|moved| moved.port), Some(from + 10));
    }
    let allocated = |port| PortRow { port, state: PortState::Allocated };
    assert_eq!(store.ports(&pool()).await.unwrap(), [&used[..], &[allocated(20_010), allocated(20_011)]].concat());
    let asked_for = choosing("stranger", 20_001, "another space");
    assert_eq!(store.provision(&asked_for, false, end).await.unwrap(), Provision::PortTaken);
    made(&store, &choosing("next", 20_000, "yet another space")).await;
}

async fn a_port_that_was_never_used_is_what_it_was_before(store: AnyStore) {
    // One that was never allocated, and one that another space has used.
    made(&store, &instance("former", 20_001)).await;
    let end = NOW.plus(QUARANTINE);
    store.deprovision(&id("former"), NOW, Ending::Rest(end)).await.unwrap();
    let before = store.ports(&pool()).await.unwrap();
    for (name, port) in [("new", 20_000), ("used", 20_001)] {
        let given = ServiceInstance { space_id: space("another space"), ..instance(name, port) };
        assert!(matches!(store.provision(&given, false, end).await.unwrap(), Provision::Created(_)));
        let gone = store.deprovision(&given.id, end, Ending::Unused).await.unwrap();
        assert_eq!(gone.map(|gone| gone.id), Some(given.id));
    }
    assert_eq!(store.ports(&pool()).await.unwrap(), before);
    let asked_for = choosing("stranger", 20_001, "another space");
    assert_eq!(store.provision(&asked_for, false, end).await.unwrap(), Provision::PortTaken);
}

async fn a_move_needs_the_port_as_it_was_read_and_a_free_one(store: AnyStore) {
    let kept = made(&store, &instance("kept", 20_000)).await;
    made(&store, &instance("other", 20_001)).await;
    for (what, moved, expected) in [
        ("unknown", store.move_port(&id("unknown"), 20_000, 20_002, None, NOW).await, Change::Stale),
        ("moved meanwhile", store.move_port(&kept.id, 20_005, 20_002, None, NOW).await, Change::Stale),
        ("allocated", store.move_port(&kept.id, 20_000, 20_001, None, NOW).await, Change::PortTaken),
        ("its own", store.move_port(&kept.id, 20_000, 20_000, None, NOW).await, Change::PortTaken),
    ] {
        assert_eq!(moved.unwrap(), expected, "{what}");
    }
    assert_eq!(store.instance(&kept.id).await.unwrap(), Some(kept));
    assert_eq!(revision(&store).await, 2);
}

async fn an_update_changes_plan_protocol_settings_and_name_alone(store: AnyStore) {
    let before = made(&store, &choosing("i", 20_000, "space")).await;
    let wish = ServiceInstance {
        plan_id: PlanId::new("another plan").unwrap(),
        protocol: Protocol::Udp,
        settings: Settings { max_connections: Some(7), ..Settings::default() },
        name: Some("renamed".into()),
        port: 20_005,
        pool: PoolName::new("games").unwrap(),
        requested_port: None,
        organization_id: OrganizationId::new("another organization").unwrap(),
        space_id: space("another space"),
        node_id: NodeId::new("another node").unwrap(),
        created_at: Timestamp(0),
        ..before.clone()
    };
    let expected = ServiceInstance {
        plan_id: wish.plan_id.clone(),
        protocol: wish.protocol,
        settings: wish.settings.clone(),
        name: wish.name.clone(),
        revision: Revision(2),
        ..before
    };
    assert_eq!(store.update(&wish).await.unwrap(), Change::Done(expected.clone()));
    assert_eq!(store.instance(&expected.id).await.unwrap(), Some(expected));
}

async fn an_update_of_what_has_changed_meanwhile_is_stale(store: AnyStore) {
    let first = made(&store, &instance("i", 20_000)).await;
    let Change::Done(second) = store.update(&first).await.unwrap() else { panic!("the first update was refused") };
    assert_eq!(store.update(&first).await.unwrap(), Change::Stale);
    assert_eq!(store.update(&instance("unknown", 20_001)).await.unwrap(), Change::Stale);
    store.deprovision(&first.id, NOW, Ending::Rest(NOW)).await.unwrap();
    assert_eq!(store.update(&second).await.unwrap(), Change::Stale);
}

async fn a_binding_is_read_back_as_it_was_given(store: AnyStore) {
    made(&store, &instance("i", 20_000)).await;
    let full = Binding {
        app_id: Some(AppId::new("app").unwrap()),
        space_id: Some(space("another space")),
        announce: true,
        predecessor_id: Some(binding_id("key")),
        ..key("app's ☃", "i")
    };
    for (number, given) in [(2, key("key", "i")), (3, full)] {
        let expected = Binding { revision: Revision(number), ..given.clone() };
        assert_eq!(store.bind(&given).await.unwrap(), Bind::Created(expected.clone()));
        assert_eq!(store.binding(&id("i"), &given.id).await.unwrap(), Some(expected.clone()));
        assert_eq!(store.bind(&given).await.unwrap(), Bind::Exists(expected.clone()));
        assert!(store.everything().await.unwrap().bindings.contains(&expected));
    }
}

async fn a_binding_id_is_unique_among_all_service_instances(store: AnyStore) {
    assert_eq!(store.bind(&key("b", "i")).await.unwrap(), Bind::NoServiceInstance);
    made(&store, &instance("i", 20_000)).await;
    made(&store, &instance("j", 20_001)).await;
    let first = bound(&store, &key("b", "i")).await;
    assert_eq!(store.bind(&key("b", "j")).await.unwrap(), Bind::Exists(first.clone()));
    assert_eq!(store.binding(&id("j"), &first.id).await.unwrap(), None);
    assert_eq!(store.unbind(&id("j"), &first.id).await.unwrap(), None);
    assert_eq!(store.unbind(&id("i"), &first.id).await.unwrap(), Some(first.clone()));
    assert_eq!(store.unbind(&id("i"), &first.id).await.unwrap(), None);
    bound(&store, &key("b", "j")).await;
}

async fn a_deleted_service_instance_takes_its_bindings_along(store: AnyStore) {
    made(&store, &instance("i", 20_000)).await;
    made(&store, &instance("j", 20_001)).await;
    for (binding, of) in [("b", "i"), ("a", "i"), ("c", "j")] {
        bound(&store, &key(binding, of)).await;
    }
    store.deprovision(&id("i"), NOW, Ending::Unused).await.unwrap();
    assert_eq!(store.binding(&id("i"), &binding_id("a")).await.unwrap(), None);
    let changes = store.changes_since(Revision(5)).await.unwrap().unwrap();
    let expected = Changes {
        revision: Revision(6),
        deleted_instances: vec![id("i")],
        deleted_bindings: vec![binding_id("a"), binding_id("b")],
        ..Changes::default()
    };
    assert_eq!(changes, expected);
    assert_eq!(store.everything().await.unwrap().bindings.len(), 1);
}

async fn every_change_raises_the_revision_by_one_and_a_refusal_does_not(store: AnyStore) {
    let mut expected = 0;
    let mut check = async |what: &str, raises: bool| {
        expected += u64::from(raises);
        assert_eq!(revision(&store).await, expected, "{what}");
    };
    let first = made(&store, &instance("i", 20_000)).await;
    check("provision", true).await;
    store.provision(&instance("i", 20_001), false, NOW).await.unwrap();
    check("a known id", false).await;
    store.provision(&instance("j", 20_000), false, NOW).await.unwrap();
    check("a taken port", false).await;
    store.update(&first).await.unwrap();
    check("update", true).await;
    store.update(&first).await.unwrap();
    check("a stale update", false).await;
    store.move_port(&first.id, 20_000, 20_002, None, NOW).await.unwrap();
    check("move", true).await;
    store.move_port(&first.id, 20_000, 20_003, None, NOW).await.unwrap();
    check("a stale move", false).await;
    store.bind(&key("b", "i")).await.unwrap();
    check("bind", true).await;
    store.bind(&key("b", "i")).await.unwrap();
    check("a known binding", false).await;
    store.bind(&key("c", "unknown")).await.unwrap();
    check("a binding of nothing", false).await;
    store.unbind(&id("i"), &binding_id("b")).await.unwrap();
    check("unbind", true).await;
    store.unbind(&id("i"), &binding_id("b")).await.unwrap();
    check("an unknown binding", false).await;
    define(&store, &pool()).await;
    check("define", true).await;
    reserve(&store, &reservation("block", 20_010, 20_011)).await;
    check("reserve", true).await;
    reserve(&store, &reservation("block", 20_020, 20_021)).await;
    check("a taken name", false).await;
    store.join(&member("node", &["default"])).await.unwrap();
    check("join", false).await;
    store.announce_secret().await.unwrap();
    check("the announce secret", false).await;
    store.deprovision(&first.id, NOW, Ending::Rest(NOW)).await.unwrap();
    check("deprovision", true).await;
    store.deprovision(&first.id, NOW, Ending::Rest(NOW)).await.unwrap();
    check("an unknown service instance", false).await;
}

async fn changes_are_told_from_every_revision_on(store: AnyStore) {
    let i = made(&store, &instance("i", 20_000)).await; // 1
    let j = made(&store, &instance("j", 20_001)).await; // 2
    let b = bound(&store, &key("b", "i")).await; // 3
    store.deprovision(&j.id, NOW, Ending::Unused).await.unwrap(); // 4
    let Change::Done(i) = store.update(&i).await.unwrap() else { panic!("the update was refused") }; // 5
    store.unbind(&i.id, &b.id).await.unwrap(); // 6
    let changes = |instances: &[&ServiceInstance], deleted: &[&ServiceInstance], unbound: &[&Binding]| Changes {
        revision: Revision(6),
        instances: instances.iter().map(|i| (*i).clone()).collect(),
        bindings: Vec::new(),
        deleted_instances: deleted.iter().map(|i| i.id.clone()).collect(),
        deleted_bindings: unbound.iter().map(|b| b.id.clone()).collect(),
        ..Changes::default()
    };
    for (since, expected) in [
        (0, changes(&[&i], &[&j], &[&b])),
        (3, changes(&[&i], &[&j], &[&b])),
        (4, changes(&[&i], &[], &[&b])),
        (5, changes(&[], &[], &[&b])),
        (6, changes(&[], &[], &[])),
    ] {
        assert_eq!(store.changes_since(Revision(since)).await.unwrap(), Some(expected), "since {since}");
    }
    let everything = Changes { settings: Some(Vec::new()), ..changes(&[&i], &[], &[]) };
    assert_eq!(store.everything().await.unwrap(), everything);
}

async fn what_was_deleted_and_made_again_is_not_deleted(store: AnyStore) {
    made(&store, &instance("i", 20_000)).await;
    bound(&store, &key("b", "i")).await;
    store.deprovision(&id("i"), NOW, Ending::Unused).await.unwrap();
    let i = made(&store, &instance("i", 20_001)).await;
    let b = bound(&store, &key("b", "i")).await;
    let expected = Changes { revision: Revision(5), instances: vec![i], bindings: vec![b], ..Changes::default() };
    assert_eq!(store.changes_since(Revision(2)).await.unwrap(), Some(expected));
    store.deprovision(&id("i"), NOW, Ending::Unused).await.unwrap();
    let changes = store.changes_since(Revision(5)).await.unwrap().unwrap();
    assert_eq!((changes.deleted_instances, changes.deleted_bindings), (vec![id("i")], vec![binding_id("b")]));
}

async fn changes_too_far_back_or_ahead_are_not_told(store: AnyStore) {
    define(&store, &pool()).await;
    made(&store, &instance("i", 20_000)).await;
    bound(&store, &key("old", "i")).await;
    store.unbind(&id("i"), &binding_id("old")).await.unwrap(); // 4
    assert!(reserve(&store, &reservation("block", 20_010, 20_010)).await);
    while revision(&store).await < 3 + CHANGES_KEPT {
        bound(&store, &key("b", "i")).await;
        store.unbind(&id("i"), &binding_id("b")).await.unwrap();
    }
    let told = async |since: u64| store.changes_since(Revision(since)).await.unwrap();
    let current = revision(&store).await;
    let oldest = current - CHANGES_KEPT;
    assert_eq!(oldest, 3);
    assert_eq!(told(oldest - 1).await, None);
    assert_eq!(told(oldest).await.unwrap().deleted_bindings, [binding_id("old"), binding_id("b")]);
    assert_eq!(told(current + 1).await, None);
    assert_eq!(told(u64::MAX).await, None);
    bound(&store, &key("b", "i")).await;
    store.unbind(&id("i"), &binding_id("b")).await.unwrap();
    assert_eq!(told(oldest).await, None);
    assert_eq!(told(oldest + 2).await.unwrap().deleted_bindings, [binding_id("b")]);
}

async fn the_announce_secret_is_made_once(store: AnyStore) {
    let mut calls = JoinSet::new();
    for _ in 0..8 {
        let store = store.clone();
        calls.spawn(async move { store.announce_secret().await.unwrap() });
    }
    let secrets = calls.join_all().await;
    assert!(secrets.iter().all(|secret| *secret == secrets[0]));
    assert_ne!(secrets[0].expose(), &[0; 32]);
}

async fn parallel_provisions_never_share_a_port(store: AnyStore) {
    let mut calls = JoinSet::new();
    for number in 0..50_u16 {
        let store = store.clone();
        calls.spawn(async move {
            let wish = instance(&format!("i{number}"), 20_000 + number % 10);
            store.provision(&wish, false, NOW).await.unwrap()
        });
    }
    let mut ports = Vec::new();
    for outcome in calls.join_all().await {
        match outcome {
            Provision::Created(made) => ports.push(made.port),
            Provision::PortTaken => {}
            Provision::Exists(other) => panic!("{} was there before", other.id),
        }
    }
    ports.sort_unstable();
    assert_eq!(ports, (20_000..20_010).collect::<Vec<_>>());
    assert_eq!(revision(&store).await, 10);
}

async fn parallel_identical_provisions_make_one_service_instance(store: AnyStore) {
    let mut calls = JoinSet::new();
    for number in 0..50_u16 {
        let store = store.clone();
        calls.spawn(async move { store.provision(&instance("i", 20_000 + number), false, NOW).await.unwrap() });
    }
    let outcomes = calls.join_all().await;
    let stored = store.instance(&id("i")).await.unwrap().unwrap();
    let count = |expected: &Provision| outcomes.iter().filter(|outcome| *outcome == expected).count();
    assert_eq!(count(&Provision::Created(stored.clone())), 1);
    assert_eq!(count(&Provision::Exists(stored)), 49);
    assert_eq!(store.ports(&pool()).await.unwrap().len(), 1);
}

async fn a_call_that_is_dropped_half_way_does_all_or_nothing(store: AnyStore) {
    for number in 0..100_u16 {
        let wish = instance(&format!("i{number}"), 20_000 + number);
        // From too short for the first statement to long enough for the last.
        let patience = Duration::from_micros(20 * u64::from(number));
        let _ = tokio::time::timeout(patience, store.provision(&wish, false, NOW)).await;
    }
    // The writer is free again, and every port has its service instance.
    made(&store, &instance("last", 20_500)).await;
    let everything = store.everything().await.unwrap();
    let mut held = everything.instances.iter().map(|made| made.port).collect::<Vec<_>>();
    held.sort_unstable();
    let ports = store.ports(&pool()).await.unwrap();
    assert_eq!(ports.iter().map(|row| row.port).collect::<Vec<_>>(), held);
    assert_eq!(everything.revision.0, held.len() as u64);
}

async fn a_closed_store_answers_with_a_fault(store: AnyStore) {
    store.close().await;
    assert!(store.ping().await.is_err());
    assert!(store.everything().await.is_err());
    let fault = store.provision(&instance("i", 20_000), false, NOW).await.unwrap_err();
    assert!(fault.to_string().contains("store"), "{fault}");
    store.close().await;
}

#[tokio::test]
async fn all_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    made(&store, &instance("i", 20_000)).await;
    made(&store, &instance("j", 20_001)).await;
    bound(&store, &key("b", "i")).await;
    store.deprovision(&id("j"), NOW, Ending::Rest(NOW.plus(QUARANTINE))).await.unwrap();
    reserve(&store, &reservation("block", 20_010, 20_011)).await;
    store.join(&member("node", &["default"])).await.unwrap();
    let read = async |store: &AnyStore| {
        (
            store.announce_secret().await.unwrap(),
            store.everything().await.unwrap(),
            store.changes_since(Revision(1)).await.unwrap(),
            store.ports(&pool()).await.unwrap(),
            store.reservations(&pool()).await.unwrap(),
            store.members().await.unwrap(),
        )
    };
    let before = read(&store).await;
    store.close().await;
    let store = open(directory.path()).await.unwrap();
    assert_eq!(read(&store).await, before);
    store.close().await;
}

#[tokio::test]
async fn a_second_handle_in_the_same_process_is_refused_and_harms_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let error = open(directory.path()).await.unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    let error = store::migrate(&sqlite(directory.path(), "harbor.db")).await.unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    made(&store, &instance("i", 20_000)).await;
    store.close().await;
    open(directory.path()).await.unwrap().close().await;
}

#[tokio::test]
async fn a_link_to_the_database_is_under_the_same_lock() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    symlink(directory.path().join("harbor.db"), directory.path().join("other.db")).unwrap();
    let metrics = Metrics::new().store.clone();
    let error = store::open(&sqlite(directory.path(), "other.db"), metrics, None).await.unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    store.close().await;
}

/// Where the process of [`another_process_that_holds_a_store`] finds its data directory.
const HELD_DIRECTORY: &str = "HARBOR_TEST_HELD_DIRECTORY";

/// Not a test of its own: the tests below run it in another process, which holds a store until its input ends.
#[tokio::test]
#[ignore = "started by other tests"]
async fn another_process_that_holds_a_store() {
    let Some(directory) = std::env::var_os(HELD_DIRECTORY) else { return };
    let store = open(Path::new(&directory)).await.unwrap();
    made(&store, &instance("i", 20_000)).await;
    writeln!(std::io::stdout(), "\nholding").unwrap();
    std::io::stdin().lines().for_each(drop);
    store.close().await;
}

/// Starts that process under an umask that takes nothing away, and waits until it holds the store.
fn start_holder(data_dir: &Path) -> Child {
    let mut holder = Command::new("sh")
        .args([
            "-c",
            "umask 000 && exec \"$0\" --exact store::another_process_that_holds_a_store --ignored --nocapture",
        ])
        .arg(std::env::current_exe().unwrap())
        .env(HELD_DIRECTORY, data_dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(holder.stdout.take().unwrap());
    assert!(output.lines().any(|line| line.unwrap() == "holding"), "the other process could not open the store");
    holder
}

#[tokio::test]
async fn a_second_process_is_refused_by_name_until_the_first_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let mut holder = start_holder(directory.path());
    let error = open(directory.path()).await.unwrap_err();
    let database = fs::canonicalize(directory.path()).unwrap().join("harbor.db");
    assert_eq!(
        error.to_string(),
        format!(
            "{} is in use by process {}: a SQLite database serves one harbor only; stop that one, or set another data_dir",
            database.display(),
            holder.id()
        )
    );
    holder.kill().unwrap();
    holder.wait().unwrap();
    let store = open(directory.path()).await.unwrap();
    assert_eq!(store.instance(&id("i")).await.unwrap().map(|kept| kept.port), Some(20_000));
    store.close().await;
}

#[tokio::test]
async fn nobody_else_can_read_the_files_whatever_the_umask() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("made/here");
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let check = |names: &[&str]| {
        for name in names {
            assert_eq!(mode(data_dir.join(name)), 0o600, "{name}");
        }
    };
    let mut holder = start_holder(&data_dir);
    assert_eq!(mode(data_dir.clone()), 0o700);
    check(&["harbor.db", "harbor.db-wal", "harbor.db-shm", "harbor.db.lock"]);
    // A killed process leaves all its files; whoever comes next closes those that somebody opened meanwhile.
    holder.kill().unwrap();
    holder.wait().unwrap();
    for name in ["harbor.db", "harbor.db-wal", "harbor.db-shm", "harbor.db.lock"] {
        fs::set_permissions(data_dir.join(name), fs::Permissions::from_mode(0o666)).unwrap();
    }
    let store = open(&data_dir).await.unwrap();
    store.announce_secret().await.unwrap();
    check(&["harbor.db", "harbor.db-wal", "harbor.db-shm", "harbor.db.lock"]);
    store.close().await;
    check(&["harbor.db", "harbor.db.lock"]);
}

/// A connection beside Harbor, as somebody with `sqlite3` would have it.
async fn by_hand(database: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(database).create_if_missing(true).foreign_keys(false).connect().await.unwrap()
}

/// What opening says, and that it leaves the database's bytes alone.
async fn refusal(directory: &Path) -> OpenError {
    let before = fs::read(directory.join("harbor.db")).unwrap();
    let error = open(directory).await.unwrap_err();
    assert_eq!(fs::read(directory.join("harbor.db")).unwrap(), before, "{error}");
    error
}

#[tokio::test]
async fn what_is_not_harbors_database_is_refused_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    let mut connection = by_hand(&directory.path().join("harbor.db")).await;
    sqlx::query("CREATE TABLE customers (id)").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let error = refusal(directory.path()).await;
    assert!(matches!(error, OpenError::NotHarbor { .. }), "{error}");
    fs::write(directory.path().join("harbor.db"), [b'x'; 4096]).unwrap();
    let error = refusal(directory.path()).await;
    assert!(matches!(error, OpenError::Fault(_)) && error.to_string().contains("not a database"), "{error}");
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_named() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "").unwrap();
    let error = open(&directory.path().join("file")).await.unwrap_err();
    assert!(matches!(&error, OpenError::File { path, .. } if path.ends_with("file/harbor.db")), "{error}");
}

#[tokio::test]
async fn migrating_tells_the_versions_and_finds_damage() {
    let directory = tempfile::tempdir().unwrap();
    let migrate = async || store::migrate(&sqlite(directory.path(), "harbor.db")).await;
    assert_eq!(migrate().await.unwrap(), Migrated { from: 0, to: SCHEMA_VERSION });
    assert_eq!(migrate().await.unwrap(), Migrated { from: SCHEMA_VERSION, to: SCHEMA_VERSION });
    let store = open(directory.path()).await.unwrap();
    made(&store, &instance("i", 20_000)).await;
    store.close().await;
    let mut connection = by_hand(&directory.path().join("harbor.db")).await;
    sqlx::query("DELETE FROM service_instances").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let error = migrate().await.unwrap_err();
    assert!(
        error.to_string().ends_with("is damaged (1 row refers to one that is not there): restore a backup"),
        "{error}"
    );
}

#[tokio::test]
async fn a_migration_that_was_edited_after_its_release_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path()).await.unwrap().close().await;
    let mut connection = by_hand(&directory.path().join("harbor.db")).await;
    sqlx::query("UPDATE _sqlx_migrations SET checksum = x'00'").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let error = open(directory.path()).await.unwrap_err();
    assert!(matches!(error, OpenError::Migrate { .. }), "{error}");
}

#[tokio::test]
async fn commits_and_faults_are_measured() {
    let directory = tempfile::tempdir().unwrap();
    let metrics = Metrics::new();
    let store = store::open(&sqlite(directory.path(), "harbor.db"), metrics.store.clone(), None).await.unwrap();
    made(&store, &instance("i", 20_000)).await;
    store.provision(&instance("j", 20_000), false, NOW).await.unwrap();
    let text = metrics.encode();
    assert!(text.contains("harbor_store_commit_duration_seconds_count 1\n"), "{text}");
    assert!(text.contains("harbor_store_faults_total 0\n"), "{text}");
    store.close().await;
    assert!(store.ping().await.is_err());
    assert!(metrics.encode().contains("harbor_store_faults_total 1\n"));
}
