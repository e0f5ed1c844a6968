//! The part of the contract that several nodes need: membership, pools they agree on, operations, hints.

use harbor::{
    model::{
        NodeId, PoolName, Revision, Timestamp,
        member::{Member, PortFailure, Report},
        observed::Mode,
        pool::{Pool, PoolNames},
        setting::BLOCKS,
    },
    store::{AnyStore, Change, Ending, FAILURES_KEPT, Freed, Heard, Hint, Operation, Provision, Release, Reservation},
};

use super::{NOW, QUARANTINE, id, instance, made, pool, reservation, reserve, revision, root, space};

fn node(text: &str) -> NodeId {
    NodeId::new(text).unwrap()
}

pub(super) fn member(id: &str, pools: &[&str]) -> Member {
    Member {
        id: node(id),
        incarnation: "first".into(),
        version: "0.1.0".into(),
        pools: pools.iter().map(|name| PoolName::new(name).unwrap()).collect(),
        report: Report::default(),
        drain: false,
        joined_at: NOW,
        seen_at: NOW,
    }
}

pub(super) async fn a_node_is_known_by_its_last_word(store: AnyStore) {
    let later = NOW.plus(QUARANTINE);
    store.join(&member("b", &["default", "games"])).await.unwrap();
    store.join(&member("a", &["games"])).await.unwrap();
    let anew = Member { incarnation: "second".into(), joined_at: later, seen_at: later, ..member("a", &[]) };
    store.join(&anew).await.unwrap();
    assert_eq!(store.members().await.unwrap(), [anew, member("b", &["default", "games"])]);

    let failure = PortFailure {
        service_instance_id: id("i \0"),
        port: 20_000,
        held: true,
        reason: "TCP port 20000 is held by \"nginx\" ☃".into(),
        since: NOW,
    };
    let report = Report { mode: Mode::Draining, applied: Revision(7), flows: 3, failures: vec![failure], failed: 300 };
    let report = |node: &str, process: &'static str| {
        let (store, report, id) = (store.clone(), report.clone(), self::node(node));
        async move { store.report(&id, process, &report, later).await.unwrap() }
    };
    assert_eq!(report("unknown", "first").await, Heard::Gone);
    assert_eq!(report("a", "first").await, Heard::Superseded);
    let unchanged = store.members().await.unwrap();
    assert_eq!(report("b", "first").await, Heard::Kept);
    let members = store.members().await.unwrap();
    assert_eq!(members[0], unchanged[0]);
    assert_eq!((members[1].report.applied, members[1].report.failed, members[1].seen_at), (Revision(7), 300, later));
    assert_eq!(members[1].report.failures[0].service_instance_id, id("i \0"));
    assert_eq!(revision(&store).await, 0, "nodes are no part of the desired state");
}

pub(super) async fn an_operators_wish_outlives_the_process_and_ends_with_the_node(store: AnyStore) {
    assert!(!store.set_drain(&node("a"), true).await.unwrap());
    store.join(&member("a", &["default"])).await.unwrap();
    assert!(store.set_drain(&node("a"), true).await.unwrap());
    store.join(&Member { incarnation: "second".into(), ..member("a", &["default"]) }).await.unwrap();
    assert!(store.members().await.unwrap()[0].drain);
    assert!(store.remove_node(&node("a")).await.unwrap());
    assert!(!store.remove_node(&node("a")).await.unwrap());
    assert_eq!(store.members().await.unwrap(), []);
    store.join(&member("a", &["default"])).await.unwrap();
    assert!(!store.members().await.unwrap()[0].drain);
}

pub(super) async fn pools_are_defined_for_all_but_not_over_a_change_that_was_not_seen(store: AnyStore) {
    let pool = |name: &str, ports: &str| Pool {
        name: PoolName::new(name).unwrap(),
        ports: ports.parse().unwrap(),
        names: PoolNames {
            host: Some("10.0.0.5".into()),
            hostname_external: Some("ü.example".into()),
            ..Default::default()
        },
        int_port: 4100,
        quarantine: QUARANTINE,
        retired: name == "old",
    };
    let first = [pool("default", "20000-20010, 20020"), pool("old", "30000-30001")];
    assert_eq!(store.define_pools(&first, Revision(0)).await.unwrap(), Some(Revision(1)));
    assert_eq!(store.everything().await.unwrap().pools, first);
    assert_eq!(store.pools().await.unwrap(), (Revision(1), first.to_vec()));
    let moved = [pool("default", "21000-21010")];
    assert_eq!(store.define_pools(&moved, Revision(0)).await.unwrap(), None);
    assert_eq!(store.define_pools(&moved, Revision(1)).await.unwrap(), Some(Revision(2)));
    assert_eq!(store.define_pools(&[pool("more", "40000-40001")], Revision(1)).await.unwrap(), Some(Revision(3)));
    let told = store.changes_since(Revision(1)).await.unwrap().unwrap();
    assert_eq!(told.pools, [pool("default", "21000-21010"), pool("more", "40000-40001")]);
}

/// Defines a pool that is not defined.
pub(super) async fn define(store: &AnyStore, name: &PoolName) {
    let (read_at, pools) = store.pools().await.unwrap();
    if pools.iter().all(|pool| pool.name != *name) {
        let pool = Pool::block(name.clone(), "20000-20100".parse().unwrap());
        store.define_pools(&[pool], read_at).await.unwrap().expect("nobody was faster");
    }
}

pub(super) async fn a_pool_is_dropped_that_nobody_needs(store: AnyStore) {
    let name = |name: &str| PoolName::new(name).unwrap();
    for pool in ["empty", "other", "served", "reserved", "default"] {
        define(&store, &name(pool)).await;
    }
    store.join(&member("a", &["served"])).await.unwrap();
    let held = Reservation { pool: name("reserved"), ..reservation("held", 20_010, 20_010) };
    assert!(reserve(&store, &held).await);
    made(&store, &instance("i", 20_000)).await;
    let read_at = store.pools().await.unwrap().0;
    let drop = async |pools: &[&str], read_at| {
        let pools = pools.iter().map(|pool| name(pool)).collect::<Vec<_>>();
        store.drop_pools(&pools, &root(), read_at).await.unwrap()
    };
    for needed in ["served", "reserved", "default", "nowhere"] {
        assert_eq!(drop(&["empty", needed], read_at).await, None, "{needed}");
    }
    assert_eq!(drop(&["empty"], Revision(0)).await, None, "it was defined after that");
    assert_eq!(store.pools().await.unwrap().0, read_at, "nothing was changed");

    let dropped = drop(&["empty", "other"], read_at).await.unwrap();
    assert_eq!((dropped, drop(&["empty"], dropped).await), (Revision(read_at.0 + 1), None));
    let told = async |since| store.changes_since(since).await.unwrap().unwrap();
    let changes = told(read_at).await;
    assert_eq!(
        (changes.dropped_pools, changes.settings, changes.reserved),
        (vec![name("empty"), name("other")], None, vec![])
    );
    assert_eq!(told(dropped).await.dropped_pools, []);
    let last = store.settings_history(1).await.unwrap().remove(0);
    assert_eq!((&*last.scope, &*last.key, last.value, last.changed_by), (BLOCKS, "empty", None, root().who));

    // Defined again it is none of those that were dropped; one that was used can be dropped once that is over.
    define(&store, &name("empty")).await;
    assert_eq!(told(read_at).await.dropped_pools, [name("other")]);
    store.remove_node(&node("a")).await.unwrap();
    store.deprovision(&id("i"), NOW, Ending::Rest(NOW)).await.unwrap();
    let read_at = store.pools().await.unwrap().0;
    assert!(drop(&["empty", "served", "default"], read_at).await.is_some());
    let left = store.pools().await.unwrap().1.into_iter().map(|pool| pool.name).collect::<Vec<_>>();
    assert_eq!(left, [name("reserved")]);
}

pub(super) async fn an_operation_is_under_way_until_it_ends(store: AnyStore) {
    let under_way =
        |by: &str, changed_at| Operation { service_instance_id: id("i"), node_id: node(by), failure: None, changed_at };
    assert_eq!(store.operation(&id("i"), NOW).await.unwrap(), None);
    let made = store.provision(&instance("i", 20_000), true, NOW).await.unwrap();
    assert!(matches!(made, Provision::Created(_)), "{made:?}");
    assert_eq!(store.operation(&id("i"), NOW).await.unwrap(), Some(under_way("node", NOW)));
    assert_eq!(store.operations().await.unwrap(), [under_way("node", NOW)]);
    let later = NOW.plus(QUARANTINE);
    assert!(!store.take_up(&id("i"), &node("other"), &node("third"), later).await.unwrap());
    assert!(store.take_up(&id("i"), &node("node"), &node("other"), later).await.unwrap());
    assert_eq!(store.operation(&id("i"), later).await.unwrap(), Some(under_way("other", later)));
    assert!(!store.opened(&id("i"), &node("node")).await.unwrap());
    let moved = async |by: &str, from| store.move_port(&id("i"), from, from + 1, Some(&node(by)), later).await.unwrap();
    assert_eq!(moved("node", 20_000).await, Change::Stale, "it is the work of another node");
    assert!(matches!(moved("other", 20_000).await, Change::Done(_)));
    assert!(store.opened(&id("i"), &node("other")).await.unwrap());
    let failed = Ending::Failed { by: &node("other"), why: "it is too late for that" };
    assert_eq!(store.deprovision(&id("i"), later, failed).await.unwrap(), None);
    assert_eq!(moved("other", 20_001).await, Change::Stale, "its port has been told");
    assert!(!store.opened(&id("i"), &node("other")).await.unwrap());
    assert_eq!(store.operation(&id("i"), later).await.unwrap(), None);
    assert_eq!(revision(&store).await, 2, "an operation is no part of the desired state");
}

pub(super) async fn an_operation_that_failed_is_told_for_a_day(store: AnyStore) {
    for (name, port) in [("i", 20_000), ("j", 20_001), ("k", 20_002)] {
        store.provision(&instance(name, port), true, NOW).await.unwrap();
    }
    let why = "port 20000 is held";
    let fails = async |by: &str| store.deprovision(&id("i"), NOW, Ending::Failed { by: &node(by), why }).await.unwrap();
    assert_eq!(fails("other").await, None, "it is the work of another node");
    assert!(fails("node").await.is_some());
    store.deprovision(&id("j"), NOW, Ending::Unused).await.unwrap();
    let end = NOW.plus(FAILURES_KEPT);
    let failed = store.operation(&id("i"), Timestamp(end.0 - 1)).await.unwrap().unwrap();
    assert_eq!((failed.failure.as_deref(), failed.changed_at), (Some("port 20000 is held"), NOW));
    assert!(!store.opened(&id("i"), &node("node")).await.unwrap());
    assert!(!store.take_up(&id("i"), &node("node"), &node("other"), NOW).await.unwrap());
    assert_eq!(store.operation(&id("i"), end).await.unwrap(), None);
    assert_eq!(store.operation(&id("j"), NOW).await.unwrap(), None);
    assert_eq!(store.operations().await.unwrap().len(), 1, "that of k");
    made(&store, &instance("i", 20_003)).await;
    assert_eq!(store.operation(&id("i"), NOW).await.unwrap(), None, "it was provisioned anew");
}

pub(super) async fn changes_tell_which_ports_were_freed_and_where_some_were_reserved(store: AnyStore) {
    for (name, port) in [("used", 20_000), ("unused", 20_001), ("used again", 20_002)] {
        made(&store, &instance(name, port)).await;
    }
    let end = NOW.plus(QUARANTINE);
    for (name, ending) in [("used", Ending::Rest(end)), ("unused", Ending::Unused), ("used again", Ending::Rest(NOW))] {
        store.deprovision(&id(name), NOW, ending).await.unwrap();
    }
    made(&store, &instance("next", 20_002)).await;
    assert!(reserve(&store, &reservation("block", 20_010, 20_012)).await);
    let freed = Freed {
        pool: pool(),
        port: 20_000,
        release: Release { space_id: space("space"), at: NOW, quarantined_until: end },
    };
    let told = async |since| store.changes_since(Revision(since)).await.unwrap().unwrap();
    assert_eq!((told(3).await.freed, told(3).await.reserved), (vec![freed], vec![pool()]));
    assert_eq!((told(4).await.freed, told(9).await.reserved), (vec![], vec![]));
    let all = store.everything().await.unwrap();
    assert_eq!((all.freed, all.reserved), (vec![], vec![]));
}

pub(super) async fn a_change_is_followed_by_a_hint(store: AnyStore) {
    let mut feed = store.feed().await.unwrap();
    let mut hint = async |wanted| {
        // What went before may be told once more.
        while feed.next().await != wanted {}
    };
    made(&store, &instance("i", 20_000)).await;
    hint(Hint::Desired).await;
    store.join(&member("a", &["default"])).await.unwrap();
    hint(Hint::Members).await;
    store.deprovision(&id("i"), NOW, Ending::Unused).await.unwrap();
    hint(Hint::Desired).await;
    store.report(&node("a"), "first", &Report::default(), NOW).await.unwrap();
    hint(Hint::Members).await;
}
