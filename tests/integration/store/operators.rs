//! The rules of the contract that are about what operators change.

use std::collections::BTreeSet;

use harbor::{
    model::{
        PoolName, Protocol, Revision,
        service_instance::ServiceInstance,
        setting::{By, HISTORY_KEPT, SECRETS, SUSPENDED, Setting, SettingChange, reservations_of},
        token::AnnounceSecret,
    },
    store::{AnyStore, CHANGES_KEPT, Dump, Ending, Reservation},
};

use super::{NOW, define, id, instance, made, pool, reservation, reserve, revision, root};

fn change(scope: &str, key: &str, value: Option<&str>) -> SettingChange {
    SettingChange { scope: scope.into(), key: key.into(), value: value.map(Into::into) }
}

/// Whoever reads before changing.
async fn set(store: &AnyStore, changes: &[SettingChange]) -> Revision {
    let (read_at, _) = store.settings().await.unwrap();
    store.change_settings(changes, &root(), read_at).await.unwrap().expect("nobody was faster")
}

async fn settings(store: &AnyStore) -> Vec<(String, String, Option<String>)> {
    let (_, settings) = store.settings().await.unwrap();
    settings.into_iter().map(|Setting { scope, key, value, .. }| (scope, key, value)).collect()
}

pub(super) async fn reservations_are_changed_together_or_not_at_all(store: AnyStore) {
    let of = |name, first, last, protocol| Reservation { protocol, ..reservation(name, first, last) };
    let web = of("web", 20_010, 20_012, Protocol::Tcp);
    let dns = of("dns", 20_012, 20_013, Protocol::Udp);
    // TCP and UDP may have a number in common, and each of them none with both.
    assert!(reserve(&store, &web).await && reserve(&store, &dns).await);
    assert!(!reserve(&store, &of("both", 20_013, 20_013, Protocol::Both)).await);
    let before = revision(&store).await;

    let release = |name: &str| (pool(), name.to_owned());
    let moved = of("dns", 20_020, 20_021, Protocol::Udp);
    for (released, made) in [
        (vec![release("nobody")], vec![]),
        (vec![release("dns"), release("nobody")], vec![moved.clone()]),
        (vec![release("dns")], vec![moved.clone(), of("overlaps", 20_021, 20_021, Protocol::Udp)]),
        (vec![], vec![moved.clone()]),
        (vec![(PoolName::new("games").unwrap(), "dns".into())], vec![]),
    ] {
        assert!(
            !store.change_reservations(&released, &made, &BTreeSet::new(), &root()).await.unwrap(),
            "{released:?} {made:?}"
        );
    }
    assert!(store.change_reservations(&[], &[], &BTreeSet::new(), &root()).await.unwrap());
    assert_eq!(revision(&store).await, before, "nothing was changed");
    assert_eq!(store.reservations(&pool()).await.unwrap(), [dns, web.clone()]);

    assert!(
        store
            .change_reservations(&[release("dns")], std::slice::from_ref(&moved), &BTreeSet::new(), &root())
            .await
            .unwrap()
    );
    assert_eq!(store.reservations(&pool()).await.unwrap(), [moved, web]);
    assert!(store.change_reservations(&[release("web")], &[], &BTreeSet::new(), &root()).await.unwrap());
    let told = store.changes_since(Revision(before + 1)).await.unwrap().unwrap();
    assert_eq!((told.reserved, told.settings, told.announce_secret), (vec![pool()], None, None));
    // What was held back can be given out.
    made(&store, &instance("free again", 20_010)).await;

    let history = store.settings_history(9).await.unwrap();
    let history = history.iter().map(|change| (change.key.as_str(), change.value.as_deref())).collect::<Vec<_>>();
    let moved = ("dns", Some("20020-20021 udp"));
    assert_eq!(history, [("web", None), moved, ("dns", Some("20012-20013 udp")), ("web", Some("20010-20012 tcp"))]);
    assert_eq!(store.settings_history(1).await.unwrap()[0].scope, reservations_of(&pool()));
}

pub(super) async fn a_port_that_was_allocated_meanwhile_is_not_held_back_unsaid(store: AnyStore) {
    let games = PoolName::new("games").unwrap();
    define(&store, &pool()).await;
    let elsewhere = ServiceInstance { pool: games.clone(), ..instance("elsewhere", 20_012) };
    for made_of in [elsewhere, instance("first", 20_010), instance("between", 20_020), instance("last", 20_031)] {
        made(&store, &made_of).await;
    }
    let (first, run) = (reservation("first", 20_010, 20_010), reservation("run", 20_030, 20_031));
    let free = reservation("free", 20_011, 20_013);
    let both = [first.clone(), run.clone()];
    let known = |ports: &[u16]| ports.iter().map(|port| (pool(), *port)).collect::<BTreeSet<_>>();
    let before = revision(&store).await;
    for (wanted, known) in [
        (&both[..1], known(&[])),
        (&both[1..], known(&[20_030])),
        (&both[..], known(&[20_010])),
        (&both[..], known(&[20_031])),
        (&both[..1], BTreeSet::from([(games.clone(), 20_010)])),
    ] {
        assert!(!store.change_reservations(&[], wanted, &known, &root()).await.unwrap(), "{wanted:?} {known:?}");
    }
    assert_eq!((revision(&store).await, store.reservations(&pool()).await.unwrap()), (before, vec![]));
    // What is known stays with whoever has it, what is known in vain is nothing, and what is not asked for is in nobody's way.
    let elsewhere = Reservation { pool: games, ..free.clone() };
    assert!(
        !store.change_reservations(&[], &[elsewhere], &known(&[]), &root()).await.unwrap(),
        "there is no such pool"
    );
    let all = [first, run, free];
    assert!(store.change_reservations(&[], &all, &known(&[20_010, 20_030, 20_031]), &root()).await.unwrap());
    assert_eq!(store.instance(&id("last")).await.unwrap().map(|kept| kept.port), Some(20_031));
}

pub(super) async fn what_is_listed_of_a_pool_tells_whose_each_port_is(store: AnyStore) {
    let ana = By { who: "ana@desk".into(), ..root() };
    let block = reservation("block", 20_020, 20_021);
    define(&store, &pool()).await;
    assert!(store.change_reservations(&[], std::slice::from_ref(&block), &BTreeSet::new(), &ana).await.unwrap());
    assert!(reserve(&store, &reservation("a", 20_030, 20_030)).await);
    // What was made anew is told with who has done that.
    assert!(store.change_reservations(&[(pool(), "block".into())], &[block], &BTreeSet::new(), &root()).await.unwrap());
    let who = |changes: Vec<Setting>| {
        let told = changes.into_iter().map(|change| (change.key, change.changed_by, change.value));
        told.collect::<Vec<_>>()
    };
    let (single, run) = (Some("20030 both".to_owned()), Some("20020-20021 both".to_owned()));
    let expected = [("a".to_owned(), root().who, single), ("block".to_owned(), root().who, run)];
    assert_eq!(who(store.reservation_changes(&pool()).await.unwrap()), expected);
    assert_eq!(store.reservation_changes(&PoolName::new("games").unwrap()).await.unwrap(), []);

    let elsewhere = ServiceInstance { pool: PoolName::new("games").unwrap(), ..instance("elsewhere", 20_011) };
    for made_of in [instance("c", 20_012), instance("b", 20_010), elsewhere, instance("d", 20_013)] {
        made(&store, &made_of).await;
    }
    let at = async |ports| {
        let found = store.instances_at(&pool(), ports).await.unwrap();
        found.into_iter().map(|instance| (instance.id.to_string(), instance.port)).collect::<Vec<_>>()
    };
    let told = |ids: &[(&str, u16)]| ids.iter().map(|(id, port)| ((*id).to_owned(), *port)).collect::<Vec<_>>();
    assert_eq!(at(20_010..=20_012).await, told(&[("b", 20_010), ("c", 20_012)]));
    assert_eq!(at(20_013..=u16::MAX).await, told(&[("d", 20_013)]));
    assert_eq!(at(20_014..=20_020).await, []);
}

pub(super) async fn a_live_setting_is_what_was_set_last_and_its_history_is_kept(store: AnyStore) {
    assert_eq!(store.settings().await.unwrap(), (Revision(0), vec![]));
    let range = |value| change("harbor_node", "port_range", value);
    set(&store, &[range(Some("1")), change("log", "level", Some("debug"))]).await;
    set(&store, &[range(Some("2"))]).await;
    let last = set(&store, &[change("log", "level", None)]).await;
    let expected = Setting {
        scope: "harbor_node".into(),
        key: "port_range".into(),
        value: Some("2".into()),
        changed_by: "root".into(),
        changed_at: NOW,
        revision: Revision(2),
    };
    assert_eq!(store.settings().await.unwrap(), (last, vec![expected.clone()]));
    assert_eq!(store.everything().await.unwrap().settings, Some(vec![expected.clone()]));
    for since in 0..3 {
        let told = store.changes_since(Revision(since)).await.unwrap().unwrap();
        assert_eq!((told.settings, told.reserved), (Some(vec![expected.clone()]), vec![]), "since {since}");
    }
    assert_eq!(store.changes_since(last).await.unwrap().unwrap().settings, None);

    let history = store.settings_history(9).await.unwrap();
    let told = |change: &Setting| (change.revision.0, change.key.clone(), change.value.clone());
    let entry = |revision: u64, key: &str, value: Option<&str>| (revision, key.to_owned(), value.map(str::to_owned));
    assert_eq!(
        history.iter().map(told).collect::<Vec<_>>(),
        [
            entry(3, "level", None),
            entry(2, "port_range", Some("2")),
            entry(1, "port_range", Some("1")),
            entry(1, "level", Some("debug")),
        ]
    );
    assert_eq!(store.settings_history(2).await.unwrap(), history[..2]);
}

pub(super) async fn live_settings_are_not_changed_over_a_change_that_was_not_seen(store: AnyStore) {
    let (read_at, _) = store.settings().await.unwrap();
    let first = [change("log", "level", Some("debug"))];
    assert_eq!(store.change_settings(&first, &root(), read_at).await.unwrap(), Some(Revision(1)));
    let second = [change("log", "format", Some("json"))];
    assert_eq!(store.change_settings(&second, &root(), read_at).await.unwrap(), None);
    assert_eq!(settings(&store).await.len(), 1);
    // Changes of other things are no obstacle.
    made(&store, &instance("i", 20_000)).await;
    assert!(reserve(&store, &reservation("block", 20_010, 20_010)).await);
    store.rotate_announce_secret(&root()).await.unwrap();
    assert!(store.change_settings(&second, &root(), Revision(1)).await.unwrap().is_some());
}

pub(super) async fn a_suspension_ends_with_its_service_instance(store: AnyStore) {
    made(&store, &instance("gone", 20_000)).await;
    made(&store, &instance("kept", 20_001)).await;
    let suspend = |id| change(SUSPENDED, id, Some("abuse"));
    let suspended = set(&store, &[suspend("gone"), suspend("kept")]).await;
    store.deprovision(&id("gone"), NOW, Ending::Unused).await.unwrap();
    let kept = vec![(SUSPENDED.to_owned(), "kept".to_owned(), Some("abuse".to_owned()))];
    assert_eq!(settings(&store).await, kept);
    let told = store.changes_since(suspended).await.unwrap().unwrap();
    assert_eq!(told.settings.map(|all| all.len()), Some(1));
    let last = store.settings_history(1).await.unwrap().remove(0);
    assert_eq!((last.key.as_str(), last.value, last.changed_by), ("gone", None, By::deprovision(NOW).who));
}

pub(super) async fn the_history_keeps_the_last_changes(store: AnyStore) {
    let noted = |revision: usize| Setting {
        scope: "log".into(),
        key: "level".into(),
        value: None,
        changed_by: "root".into(),
        changed_at: NOW,
        revision: Revision(revision as u64),
    };
    let all = HISTORY_KEPT + 5;
    let dump =
        Dump { revision: Revision(all as u64), settings_history: (1..=all).map(noted).collect(), ..Dump::default() };
    assert!(store.import(&dump).await.unwrap());
    assert_eq!(store.settings_history(usize::MAX).await.unwrap().len(), all);
    set(&store, &[change("log", "level", Some("debug"))]).await;
    let kept = store.settings_history(usize::MAX).await.unwrap();
    assert_eq!((kept.len(), kept[0].revision.0 as usize), (HISTORY_KEPT, all + 1));

    // Those that whoever follows has to be told stay, however many they are.
    let many = (0..HISTORY_KEPT).map(|number| change("scope", &number.to_string(), Some("1"))).collect::<Vec<_>>();
    set(&store, &many).await;
    let told = store.settings_history(usize::MAX).await.unwrap();
    assert_eq!(told.len(), HISTORY_KEPT + CHANGES_KEPT as usize - 1, "of the last revisions all");
}

pub(super) async fn the_former_announce_secret_counts_until_it_is_dropped(store: AnyStore) {
    assert!(!store.drop_former_secret(&root()).await.unwrap());
    let first = store.announce_secret().await.unwrap();
    assert_eq!(first.former(), None);
    let before = Revision(revision(&store).await);
    assert!(store.rotate_announce_secret(&root()).await.unwrap());
    assert!(!store.rotate_announce_secret(&root()).await.unwrap(), "tokens of the first would no longer count");
    let second = store.announce_secret().await.unwrap();
    assert!(second.former() == Some(first.clone()) && second.expose() != first.expose());
    assert_eq!(store.changes_since(before).await.unwrap().unwrap().announce_secret, Some(second.clone()));
    assert_eq!(store.everything().await.unwrap().announce_secret, Some(second.clone()));
    assert_eq!(store.export().await.unwrap().announce_secret, Some(second.clone()));
    assert!(store.drop_former_secret(&root()).await.unwrap());
    let alone = AnnounceSecret::new(*second.expose());
    assert_eq!(store.announce_secret().await.unwrap(), alone);
    assert!(store.rotate_announce_secret(&root()).await.unwrap());
    assert_eq!(store.announce_secret().await.unwrap().former(), Some(alone));
    let history = store.settings_history(9).await.unwrap();
    let told = history.iter().map(|change| (change.scope.as_str(), change.value.as_deref().unwrap()));
    let (rotated, dropped) = ((SECRETS, "rotated"), (SECRETS, "former dropped"));
    assert_eq!(told.collect::<Vec<_>>(), [rotated, dropped, rotated]);
}
