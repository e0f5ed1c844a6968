use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use super::*;
use crate::{
    backends::Phase,
    model::{
        BindingId, PoolName, Protocol, Revision, Timestamp,
        announcement::{AnnouncedState, Endpoint, Origin},
        binding::Binding,
        directory::DirectoryEntry,
        token::{AnnounceSecret, SECRET_BYTES},
    },
};

const TTL: Duration = Duration::from_secs(120);

fn id(text: &str) -> ServiceInstanceId {
    ServiceInstanceId::new(text).unwrap()
}

fn app(text: &str) -> AppId {
    AppId::new(text).unwrap()
}

fn tcp(address: &str) -> Endpoint {
    Endpoint { transport: Transport::Tcp, address: address.parse().unwrap() }
}

fn udp(address: &str) -> Endpoint {
    Endpoint { transport: Transport::Udp, address: address.parse().unwrap() }
}

/// A register of the app "app" for the service instance "one".
fn register(endpoints: &[Endpoint]) -> Registration {
    Registration {
        service_instance_id: id("one"),
        endpoints: endpoints.to_vec(),
        authority: Authority::App(app("app")),
        origin: Origin { app_id: Some(app("app")), ..Origin::default() },
        time_to_live: TTL,
        state: AnnouncedState::Up,
        since: None,
        heard_at: Timestamp::default(),
    }
}

/// The same, heard so many seconds later.
fn heard(seconds: i64, registration: Registration) -> Registration {
    Registration { heard_at: Timestamp::from_seconds(seconds), ..registration }
}

fn withdrawal(of: &Registration) -> Withdrawal {
    Withdrawal {
        service_instance_id: of.service_instance_id.clone(),
        endpoints: of.endpoints.clone(),
        origin: of.origin.clone(),
    }
}

fn at(mut registration: Registration, instance: &str, ns: i64) -> Registration {
    registration.origin.private_instance_id = Some(instance.into());
    registration.origin.updated_at_ns = Some(ns);
    registration
}

/// A table that notes whom it tells of changes.
fn table() -> (Backends, Arc<Mutex<Vec<String>>>) {
    let backends = Backends::new(4);
    let told = Arc::new(Mutex::new(Vec::new()));
    let (probe, notes) = (backends.clone(), Arc::clone(&told));
    backends.on_change(Box::new(move |id| {
        let _ = probe.list(id); // would hang if it were called under the lock
        notes.lock().unwrap().push(id.to_string());
    }));
    (backends, told)
}

fn told(notes: &Mutex<Vec<String>>) -> usize {
    std::mem::take(&mut *notes.lock().unwrap()).len()
}

fn addresses(backends: &[Arc<Backend>]) -> Vec<String> {
    backends.iter().map(|backend| backend.endpoint.address.to_string()).collect()
}

fn directory(protocol: Protocol, apps: &[&str]) -> Directory {
    let mut directory = Directory::new(AnnounceSecret::new([1; SECRET_BYTES]));
    directory.put_instance(DirectoryEntry {
        id: id("one"),
        pool: PoolName::new("default").unwrap(),
        port: 35_000,
        protocol,
        int_port: 4100,
        match_app: false,
        bindings: BTreeSet::new(),
        apps: Default::default(),
    });
    for name in apps {
        directory.put_binding(&Arc::new(Binding {
            id: BindingId::new(format!("of-{name}")).unwrap(),
            service_instance_id: id("one"),
            app_id: Some(app(name)),
            space_id: None,
            announce: true,
            predecessor_id: None,
            created_at: Timestamp::default(),
            revision: Revision(1),
        }));
    }
    directory
}

#[test]
fn a_slot_is_the_same_for_as_long_as_anyone_holds_it() {
    let (backends, _) = table();
    let now = Instant::now();
    let slot = backends.slot(&id("one"));
    backends.apply(&register(&[tcp("10.0.0.1:1")]), now).unwrap();
    backends.sweep(now + TTL);
    assert!(Arc::ptr_eq(&slot, &backends.slot(&id("one"))));
    drop(slot);
    backends.sweep(now + TTL);
    assert!(backends.table().entries.is_empty(), "nobody asks for it, and it has nothing");
}

#[test]
fn a_set_is_swapped_once_per_change_and_not_at_all_when_nothing_changes() {
    let (backends, notes) = table();
    let (now, slot) = (Instant::now(), backends.slot(&id("one")));
    let both = register(&[tcp("10.0.0.1:1"), udp("10.0.0.1:2")]);
    assert_eq!((backends.apply(&both, now), told(&notes)), (Ok(Change::Added), 1));
    let first = slot.load_full();
    assert_eq!((addresses(&first.tcp), addresses(&first.udp)), (vec!["10.0.0.1:1".into()], vec!["10.0.0.1:2".into()]));
    assert_eq!((backends.apply(&both, now + TTL / 2), told(&notes)), (Ok(Change::Renewed), 0));
    assert!(Arc::ptr_eq(&first, &slot.load_full()));
    assert_eq!(backends.counts(), Counts { tcp: 1, udp: 1 });
    assert_eq!((backends.withdraw(&withdrawal(&both), now), told(&notes)), (Ok(Change::Removed), 1));
    assert_eq!((first.tcp[0].phase(), slot.load().tcp.len(), slot.load().udp.len()), (Phase::Left, 0, 0));
    assert_eq!(backends.counts(), Counts::default());
    assert!(backends.table().index.by_host.is_empty());
}

#[test]
fn backends_stand_in_the_order_of_their_first_announcement() {
    let (backends, _) = table();
    let now = Instant::now();
    for (seconds, address) in [(0, "10.0.0.9:1"), (1, "10.0.0.5:1"), (2, "10.0.0.7:1"), (3, "10.0.0.9:1")] {
        backends.apply(&heard(seconds, register(&[tcp(address)])), now).unwrap();
    }
    let order = |backends: &Backends| addresses(&backends.slot(&id("one")).load().tcp);
    assert_eq!(order(&backends), ["10.0.0.9:1", "10.0.0.5:1", "10.0.0.7:1"], "a renewal keeps its place");
    backends.withdraw(&withdrawal(&register(&[tcp("10.0.0.9:1")])), now).unwrap();
    backends.apply(&heard(4, register(&[tcp("10.0.0.9:1")])), now).unwrap();
    assert_eq!(order(&backends), ["10.0.0.5:1", "10.0.0.7:1", "10.0.0.9:1"], "one that comes back is last");
}

#[test]
fn the_order_is_the_same_on_every_node_whenever_each_heard_of_what() {
    let since = |seconds: Option<i64>, address: &str| Registration {
        since: seconds.map(Timestamp::from_seconds),
        ..register(&[tcp(address)])
    };
    let messages = [
        since(Some(10), "10.0.0.9:1"),
        since(Some(20), "10.0.0.5:1"),
        since(Some(20), "10.0.0.4:1"),
        since(None, "10.0.0.1:1"),
    ];
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..100 {
        let (backends, _) = table();
        let now = Instant::now();
        let mut heard_at = 100;
        let mut said = messages.iter().chain(&messages).collect::<Vec<_>>();
        random.shuffle(&mut said);
        for message in said {
            heard_at += 1;
            backends.apply(&heard(heard_at, message.clone()), now).unwrap();
        }
        let order = addresses(&backends.slot(&id("one")).load().tcp);
        assert_eq!(order, ["10.0.0.9:1", "10.0.0.4:1", "10.0.0.5:1", "10.0.0.1:1"]);
    }
}

#[test]
fn one_that_turns_out_to_be_older_takes_its_place_without_leaving() {
    let (backends, notes) = table();
    let now = Instant::now();
    let slot = backends.slot(&id("one"));
    backends.apply(&heard(10, register(&[tcp("10.0.0.1:1")])), now).unwrap();
    backends.apply(&heard(20, register(&[tcp("10.0.0.2:1")])), now).unwrap();
    let second = Arc::clone(&slot.load().tcp[1]);
    told(&notes);
    let earlier = Registration { since: Some(Timestamp::from_seconds(5)), ..register(&[tcp("10.0.0.2:1")]) };
    assert_eq!((backends.apply(&earlier, now), told(&notes)), (Ok(Change::Altered), 1));
    assert!(Arc::ptr_eq(&second, &slot.load().tcp[0]) && second.phase() == Phase::Serving);
    assert_eq!((backends.apply(&earlier, now), told(&notes)), (Ok(Change::Renewed), 0));
    let later = Registration { since: Some(Timestamp::from_seconds(15)), ..earlier };
    assert_eq!((backends.apply(&later, now), told(&notes)), (Ok(Change::Renewed), 0), "the earliest counts");
}

#[test]
fn of_one_order_the_lower_address_is_first() {
    let (backends, _) = table();
    let now = Instant::now();
    backends.apply(&register(&[tcp("10.0.0.9:1"), tcp("10.0.0.10:1"), tcp("10.0.0.9:0")]), now).unwrap();
    assert_eq!(
        addresses(&backends.slot(&id("one")).load().tcp),
        ["10.0.0.9:0", "10.0.0.9:1", "10.0.0.10:1"],
        "by address, then port"
    );
}

#[test]
fn what_is_not_announced_in_time_leaves_at_the_next_sweep() {
    let (backends, notes) = table();
    let now = Instant::now();
    let short = Registration { time_to_live: TTL / 2, ..register(&[tcp("10.0.0.1:1")]) };
    backends.apply(&short, now).unwrap();
    backends.apply(&register(&[tcp("10.0.0.2:1")]), now).unwrap();
    let first = Arc::clone(&backends.slot(&id("one")).load().tcp[0]);
    told(&notes);
    backends.sweep(now + TTL / 2 - Duration::from_millis(1));
    assert_eq!((backends.counts().tcp, told(&notes)), (2, 0));
    backends.sweep(now + TTL / 2);
    assert_eq!((backends.counts().tcp, told(&notes), first.phase()), (1, 1, Phase::Left));
}

#[test]
fn a_draining_backend_takes_nothing_new_and_has_one_deadline() {
    let (backends, notes) = table();
    backends.set_drain_timeout(Duration::from_secs(7));
    let now = Instant::now();
    let (up, slot) = (register(&[tcp("10.0.0.1:1")]), backends.slot(&id("one")));
    let draining = Registration { state: AnnouncedState::Draining, ..up.clone() };
    backends.apply(&up, now).unwrap();
    let backend = Arc::clone(&slot.load().tcp[0]);
    told(&notes);
    assert_eq!((backends.apply(&draining, now), told(&notes)), (Ok(Change::Altered), 1));
    assert_eq!((backend.phase(), backend.drain_deadline()), (Phase::Draining, Some(now + Duration::from_secs(7))));
    assert_eq!((slot.load().tcp.len(), backends.list(&id("one")).len()), (0, 1));
    assert_eq!(backends.apply(&draining, now + Duration::from_secs(5)), Ok(Change::Renewed));
    assert_eq!(backend.drain_deadline(), Some(now + Duration::from_secs(7)), "saying it again gives no more time");
    assert_eq!(backends.apply(&up, now), Ok(Change::Altered));
    assert_eq!((backend.phase(), backend.drain_deadline(), slot.load().tcp.len()), (Phase::Serving, None, 1));
}

#[test]
fn while_suspended_nothing_expires_and_afterwards_all_have_their_whole_time() {
    let (backends, _) = table();
    let now = Instant::now();
    backends.apply(&register(&[tcp("10.0.0.1:1")]), now).unwrap();
    backends.suspend(now + TTL * 5);
    backends.suspend(now + TTL * 50);
    backends.sweep(now + TTL * 2);
    assert_eq!(backends.counts().tcp, 1);
    backends.resume(now + TTL * 2);
    backends.resume(now + TTL * 4);
    backends.sweep(now + TTL * 3 - Duration::from_millis(1));
    assert_eq!(backends.counts().tcp, 1);
    backends.sweep(now + TTL * 3);
    assert_eq!(backends.counts().tcp, 0);
}

#[test]
fn a_suspension_ends_by_itself_and_cannot_be_prolonged() {
    let (backends, _) = table();
    let now = Instant::now();
    backends.apply(&register(&[tcp("10.0.0.1:1")]), now).unwrap();
    backends.suspend(now + TTL * 5);
    backends.suspend(now + TTL * 50);
    backends.sweep(now + TTL * 5);
    assert_eq!(backends.counts().tcp, 0);
}

#[test]
fn when_the_authority_ends_so_do_the_backend_and_every_flow_on_it() {
    let (backends, notes) = table();
    let now = Instant::now();
    backends.apply(&register(&[tcp("10.0.0.1:1"), udp("10.0.0.1:1")]), now).unwrap();
    let other = Registration { authority: Authority::App(app("other")), ..register(&[tcp("10.0.0.2:1")]) };
    backends.apply(&other, now).unwrap();
    let set = backends.slot(&id("one")).load_full();
    backends.withdraw(&withdrawal(&register(&[tcp("10.0.0.1:1")])), now).unwrap();
    told(&notes);

    backends.retain_authorised(&directory(Protocol::Both, &["app", "other"]));
    assert_eq!((backends.counts(), told(&notes)), (Counts { tcp: 1, udp: 1 }, 0));
    backends.retain_authorised(&directory(Protocol::Both, &["other"]));
    assert_eq!((backends.counts(), told(&notes)), (Counts { tcp: 1, udp: 0 }, 1));
    assert_eq!(
        (set.tcp[0].phase(), set.udp[0].phase(), set.tcp[1].phase()),
        (Phase::Revoked, Phase::Revoked, Phase::Serving),
        "also the one that had left with its flows still open"
    );
    backends.retain_authorised(&Directory::new(AnnounceSecret::new([1; SECRET_BYTES])));
    assert_eq!((backends.counts(), set.tcp[1].phase()), (Counts::default(), Phase::Revoked));
}

#[test]
fn only_the_service_instances_that_are_named_lose_backends_and_only_theirs_are_told_of() {
    let (backends, notes) = table();
    let now = Instant::now();
    for name in ["one", "two"] {
        let registration = Registration { service_instance_id: id(name), ..register(&[tcp("10.0.0.1:1")]) };
        backends.apply(&registration, now).unwrap();
    }
    told(&notes);
    let nothing = Directory::new(AnnounceSecret::new([1; SECRET_BYTES]));
    let check = |named: &[&str], left: [usize; 2], notified: usize| {
        let named = named.iter().map(|name| id(name)).collect::<Vec<_>>();
        let version = backends.version();
        backends.retain_authorised_of(&named, &nothing);
        let known = ["one", "two"].map(|name| backends.list(&id(name)).len());
        assert_eq!((known, told(&notes)), (left, notified), "{named:?}");
        assert_eq!(backends.version() != version, notified > 0, "{named:?}");
    };
    check(&["three"], [1, 1], 0);
    check(&["two", "three"], [1, 0], 1);
    check(&["two"], [1, 0], 0);
    check(&["one"], [0, 0], 1);
}

#[test]
fn every_authority_has_its_own_end() {
    let one = id("one");
    let all = directory(Protocol::Udp, &["app"]);
    let binding = |name: &str| Authority::Binding(BindingId::new(name).unwrap());
    for (authority, transport, expect) in [
        (Authority::App(app("app")), Transport::Udp, true),
        (Authority::App(app("app")), Transport::Tcp, false),
        (Authority::App(app("other")), Transport::Udp, false),
        (binding("of-app"), Transport::Udp, true),
        (binding("of-other"), Transport::Udp, false),
        (Authority::Trusted, Transport::Udp, true),
        (Authority::Trusted, Transport::Tcp, false),
    ] {
        assert_eq!(stands(&authority, &one, transport, &all), expect, "{authority:?} {transport}");
    }
    assert!(!stands(&Authority::Trusted, &id("two"), Transport::Udp, &all));
    let mut silent = all.clone();
    let of_app = Binding::clone(all.binding("of-app").unwrap());
    silent.put_binding(&Arc::new(Binding { announce: false, ..of_app }));
    assert!(!stands(&binding("of-app"), &one, Transport::Udp, &silent), "its holder may not announce any more");
}

#[test]
fn an_older_word_of_the_same_app_instance_changes_nothing() {
    let (backends, _) = table();
    let now = Instant::now();
    let base = || register(&[tcp("10.0.0.1:1")]);
    backends.apply(&at(base(), "i", 20), now).unwrap();
    for (registration, expect) in [
        (at(base(), "i", 19), Err(AnnouncementRefusal::OutOfOrder)),
        (at(base(), "i", 20), Ok(Change::Renewed)),
        (at(base(), "j", 19), Ok(Change::Renewed)),
        (base(), Ok(Change::Renewed)),
        (at(base(), "i", 21), Ok(Change::Renewed)),
    ] {
        assert_eq!(backends.apply(&registration, now), expect, "{:?}", registration.origin);
    }
    let late = withdrawal(&at(base(), "i", 20));
    assert_eq!(backends.withdraw(&late, now), Err(AnnouncementRefusal::OutOfOrder));
    let due = withdrawal(&at(base(), "i", 21));
    assert_eq!(backends.withdraw(&due, now), Ok(Change::Removed));
    assert_eq!(
        backends.apply(&at(base(), "i", 20), now),
        Err(AnnouncementRefusal::OutOfOrder),
        "it was withdrawn later"
    );
    assert_eq!(backends.apply(&at(base(), "i", 22), now), Ok(Change::Added));
    backends.withdraw(&withdrawal(&at(base(), "i", 22)), now).unwrap();
    backends.sweep(now + TTL);
    assert_eq!(backends.apply(&at(base(), "i", 20), now + TTL), Ok(Change::Added), "withdrawals are forgotten in time");
}

#[test]
fn only_who_registered_may_withdraw() {
    let now = Instant::now();
    let origin = |app_id: Option<&str>, instance: Option<&str>| Origin {
        app_id: app_id.map(app),
        private_instance_id: instance.map(Into::into),
        updated_at_ns: None,
    };
    for (registered, says, expect) in [
        (origin(Some("a"), Some("i")), origin(Some("a"), Some("i")), Ok(Change::Removed)),
        (origin(Some("a"), Some("i")), origin(None, None), Ok(Change::Removed)),
        (origin(None, None), origin(Some("a"), Some("i")), Ok(Change::Removed)),
        (origin(Some("a"), Some("i")), origin(Some("b"), Some("i")), Err(AnnouncementRefusal::OtherOrigin)),
        (origin(Some("a"), Some("i")), origin(Some("a"), Some("j")), Err(AnnouncementRefusal::OtherOrigin)),
        (origin(None, Some("i")), origin(None, Some("j")), Err(AnnouncementRefusal::OtherOrigin)),
    ] {
        let (backends, _) = table();
        backends.apply(&Registration { origin: registered, ..register(&[tcp("10.0.0.1:1")]) }, now).unwrap();
        let saying = Withdrawal { origin: says, ..withdrawal(&register(&[tcp("10.0.0.1:1")])) };
        assert_eq!(backends.withdraw(&saying, now), expect, "{saying:?}");
    }
    let (backends, notes) = table();
    let unknown = withdrawal(&register(&[tcp("10.0.0.1:1")]));
    assert_eq!(backends.withdraw(&unknown, now), Err(AnnouncementRefusal::UnknownBackend));
    assert_eq!(told(&notes), 0);
}

#[test]
fn a_service_instance_has_room_for_so_many_and_takes_all_or_nothing() {
    let (backends, _) = table();
    let now = Instant::now();
    for port in 1..=3 {
        backends.apply(&register(&[tcp(&format!("10.0.0.1:{port}"))]), now).unwrap();
    }
    let two = register(&[tcp("10.0.0.1:9"), udp("10.0.0.1:9")]);
    assert_eq!(backends.apply(&two, now), Err(AnnouncementRefusal::TooManyBackends));
    assert_eq!(backends.counts(), Counts { tcp: 3, udp: 0 });
    assert_eq!(backends.apply(&register(&[tcp("10.0.0.1:3"), udp("10.0.0.1:3")]), now), Ok(Change::Added));
    assert_eq!(backends.apply(&register(&[tcp("10.0.0.1:1")]), now), Ok(Change::Renewed), "known ones still renew");
}

#[test]
fn an_address_that_goes_to_another_app_of_the_service_instance_is_another_backend() {
    let (backends, notes) = table();
    let now = Instant::now();
    backends.apply(&register(&[udp("10.0.0.1:1")]), now).unwrap();
    let first = Arc::clone(&backends.slot(&id("one")).load().udp[0]);
    told(&notes);
    let other = Registration { authority: Authority::App(app("other")), ..register(&[udp("10.0.0.1:1")]) };
    assert_eq!((backends.apply(&other, now), told(&notes)), (Ok(Change::Added), 1));
    assert_eq!((first.phase(), backends.counts().udp), (Phase::Left, 1));
}

#[test]
fn a_lesser_authority_renews_and_changes_nothing_else() {
    let (backends, notes) = table();
    let now = Instant::now();
    let trusted = Registration {
        authority: Authority::Trusted,
        origin: Origin::default(),
        state: AnnouncedState::Draining,
        ..register(&[tcp("10.0.0.1:1")])
    };
    backends.apply(&register(&[tcp("10.0.0.1:1")]), now).unwrap();
    told(&notes);
    assert_eq!((backends.apply(&trusted, now + TTL / 2), told(&notes)), (Ok(Change::Renewed), 0));
    let known = &backends.list(&id("one"))[0];
    assert_eq!((known.state, known.expires_at), (AnnouncedState::Up, now + TTL / 2 + TTL));
    assert_eq!(known.origin.app_id, Some(app("app")));

    let up = Registration { state: AnnouncedState::Up, ..trusted };
    let (backends, _) = table();
    backends.apply(&up, now).unwrap();
    assert_eq!(backends.apply(&register(&[tcp("10.0.0.1:1")]), now), Ok(Change::Added), "a better one takes over");
    assert_eq!(backends.slot(&id("one")).load().tcp[0].authority, Authority::App(app("app")));
}

#[test]
fn an_address_known_to_be_an_apps_is_evicted_from_every_service_instance_but_for_its_own_backends() {
    let (backends, notes) = table();
    let now = Instant::now();
    let address: SocketAddr = "10.0.0.1:1".parse().unwrap();
    backends.apply(&register(&[tcp("10.0.0.1:1"), udp("10.0.0.1:1")]), now).unwrap();
    backends.apply(&register(&[tcp("10.0.0.1:2")]), now).unwrap();
    let nobodys = Registration {
        service_instance_id: id("two"),
        authority: Authority::Trusted,
        origin: Origin::default(),
        ..register(&[tcp("10.0.0.1:1")])
    };
    backends.apply(&nobodys, now).unwrap();
    let elsewhere = Registration { service_instance_id: id("three"), ..register(&[tcp("10.0.0.1:1")]) };
    backends.apply(&elsewhere, now).unwrap();
    // The holder of a token says so for the app, which is not bound itself.
    let binding = Authority::Binding(BindingId::new("key").unwrap());
    let vouched = Registration { service_instance_id: id("four"), authority: binding, ..elsewhere.clone() };
    backends.apply(&vouched, now).unwrap();
    told(&notes);
    let evict = |name: &str| {
        let any = backends.evict(&(address..=address), Some(&app(name)));
        let mut ids = std::mem::take(&mut *notes.lock().unwrap());
        ids.sort();
        (any, ids)
    };
    assert_eq!(evict("app"), (true, vec!["two".into()]));
    assert_eq!(evict("app"), (false, vec![]));
    assert_eq!(evict("newcomer"), (true, vec!["four".into(), "one".into(), "three".into()]));
    assert_eq!(addresses(&backends.slot(&id("one")).load().tcp), ["10.0.0.1:2"]);
    assert_eq!(backends.counts(), Counts { tcp: 1, udp: 0 });
}

#[test]
fn a_refresh_that_changes_nothing_allocates_nothing_and_swaps_no_set() {
    let (backends, notes) = table();
    let (now, owner) = (Instant::now(), app("app"));
    let address: SocketAddr = "10.0.0.1:1".parse().unwrap();
    let known = at(register(&[tcp("10.0.0.1:1"), udp("10.0.0.1:1")]), "i", 20);
    let lesser = Registration { authority: Authority::Trusted, ..known.clone() };
    let draining = Registration { state: AnnouncedState::Draining, ..register(&[tcp("10.0.0.1:2")]) };
    for registration in [&known, &draining] {
        assert_eq!(backends.apply(registration, now), Ok(Change::Added));
    }
    let before = backends.slot(&id("one")).load_full();
    told(&notes);
    let other_instance = at(known.clone(), "j", 21);
    for again in [&known, &lesser, &draining, &other_instance, &at(known.clone(), "j", 22)] {
        let mut outcome = None;
        let made = allocation_counter::measure(|| {
            // Route-emitters say with each refresh that the address is the app's.
            assert!(!backends.evict(&(address..=address), Some(&owner)));
            outcome = Some(backends.apply(again, now + TTL / 2));
        });
        assert_eq!((outcome, made.count_total), (Some(Ok(Change::Renewed)), 0), "{again:?}");
    }
    assert!(Arc::ptr_eq(&before, &backends.slot(&id("one")).load_full()));
    assert_eq!(told(&notes), 0);
}

#[test]
fn backends_of_an_earlier_process_come_first_and_keep_their_deadlines() {
    let (backends, notes) = table();
    let now = Instant::now();
    let earlier = Backends::new(4);
    for (seconds, address) in [(1, "10.0.0.9:1"), (2, "10.0.0.5:1")] {
        earlier.apply(&heard(seconds, register(&[tcp(address)])), now).unwrap();
    }
    earlier.apply(&Registration { state: AnnouncedState::Draining, ..register(&[udp("10.0.0.9:1")]) }, now).unwrap();
    backends.restore(earlier.export());
    assert_eq!(told(&notes), 3);
    backends.apply(&heard(3, register(&[tcp("10.0.0.1:1")])), now + TTL / 2).unwrap();
    backends.restore(earlier.export());
    let slot = backends.slot(&id("one"));
    assert_eq!(addresses(&slot.load().tcp), ["10.0.0.9:1", "10.0.0.5:1", "10.0.0.1:1"]);
    assert_eq!(slot.load().udp.len(), 0);
    backends.sweep(now + TTL);
    assert_eq!(addresses(&slot.load().tcp), ["10.0.0.1:1"]);
}

#[test]
fn the_version_tells_whether_an_export_would_differ() {
    let (backends, _) = table();
    let now = Instant::now();
    let one = register(&[tcp("10.0.0.1:1")]);
    let mut last = backends.version();
    let mut differs = |backends: &Backends| std::mem::replace(&mut last, backends.version()) != backends.version();
    backends.apply(&one, now).unwrap();
    assert!(differs(&backends));
    backends.apply(&one, now + TTL / 2).unwrap();
    assert!(differs(&backends), "its deadline has moved");
    backends.sweep(now);
    let _ = backends.withdraw(&withdrawal(&register(&[udp("10.0.0.1:1")])), now);
    assert!(!differs(&backends));
    backends.withdraw(&withdrawal(&one), now).unwrap();
    assert!(differs(&backends));
}
