//! The rules of the contract that are about dumps.

use std::sync::Arc;

use harbor::{
    model::{
        NodeId, Revision,
        pool::{Pool, PoolNames},
    },
    store::{AnyStore, Dump, Ending, Hint, Provision, memory::MemoryStore},
};

use super::{
    NOW, QUARANTINE, binding_id, bound, choosing, id, instance, key, made, members::member, pool, reservation, reserve,
};

/// Does something of every kind: what is left is of every kind too.
async fn lead_a_life(store: &AnyStore) {
    store.announce_secret().await.unwrap();
    let pool = Pool {
        name: pool(),
        ports: "20000-20100".parse().unwrap(),
        names: PoolNames { host: Some("10.0.0.5".into()), ..PoolNames::default() },
        int_port: 4100,
        quarantine: QUARANTINE,
        retired: false,
    };
    store.define_pools(&[pool], Revision(0)).await.unwrap();
    assert!(reserve(store, &reservation("sip", 20_060, 20_061)).await);
    for (name, port) in [("used", 20_000), ("used again", 20_001), ("kept", 20_002), ("\0 late", 20_003)] {
        made(store, &instance(name, port)).await;
    }
    let rest = Ending::Rest(NOW.plus(QUARANTINE));
    for name in ["used", "used again"] {
        store.deprovision(&id(name), NOW, rest).await.unwrap();
    }
    let later = NOW.plus(QUARANTINE);
    let again = instance("used again", 20_001);
    assert!(matches!(store.provision(&again, false, later).await.unwrap(), Provision::Created(_)));
    let underway = instance("under way", 20_004);
    assert!(matches!(store.provision(&underway, true, NOW).await.unwrap(), Provision::Created(_)));
    let failed = instance("failed", 20_005);
    assert!(matches!(store.provision(&failed, true, NOW).await.unwrap(), Provision::Created(_)));
    store.deprovision(&failed.id, NOW, Ending::Failed { by: &failed.node_id, why: "it is held" }).await.unwrap();
    bound(store, &key("key", "kept")).await;
    bound(store, &key("unbound", "kept")).await;
    store.unbind(&id("kept"), &binding_id("unbound")).await.unwrap();
}

pub(super) async fn a_dump_holds_all_that_is_kept(store: AnyStore) {
    assert_eq!(store.export().await.unwrap(), Dump::default());
    lead_a_life(&store).await;
    store.join(&member("node", &["default"])).await.unwrap();
    let dump = store.export().await.unwrap();
    assert_eq!(dump.check(), Ok(()));
    assert_eq!(dump.announce_secret, Some(store.announce_secret().await.unwrap()));
    assert_eq!(dump.revision, store.everything().await.unwrap().revision);
    assert_eq!(dump.last_releases.iter().map(|last| last.port).collect::<Vec<_>>(), [20_000, 20_001]);
    assert_eq!((dump.instances.len(), dump.bindings.len(), dump.operations.len()), (4, 1, 2));
    assert_eq!((dump.deleted_instances.len(), dump.deleted_bindings.len()), (2, 1));
    assert_eq!((dump.pools.len(), dump.reservations.len()), (1, 1));

    let reference: AnyStore = Arc::new(MemoryStore::new());
    assert!(reference.import(&dump).await.unwrap());
    assert_eq!(reference.export().await.unwrap(), dump);
    assert_eq!(reference.members().await.unwrap(), [], "nodes say again who they are");
}

pub(super) async fn an_empty_store_goes_on_from_a_dump(store: AnyStore) {
    let reference: AnyStore = Arc::new(MemoryStore::new());
    lead_a_life(&reference).await;
    let dump = reference.export().await.unwrap();
    let mut feed = store.feed().await.unwrap();
    assert!(store.import(&dump).await.unwrap());
    assert_eq!(feed.next().await, Hint::Desired);
    assert_eq!(store.export().await.unwrap(), dump);
    assert_eq!(store.announce_secret().await.unwrap(), reference.announce_secret().await.unwrap());

    for store in [store, reference] {
        // A follower of the first is told by the second what it has missed.
        let since = store.changes_since(Revision(4)).await.unwrap().unwrap();
        assert!(since.deleted_instances.contains(&id("used")));
        let resting = store.provision(&instance("new", 20_000), false, NOW).await.unwrap();
        assert_eq!(resting, Provision::PortTaken);
        let late = NOW.plus(QUARANTINE);
        let waiting = store.provision(&choosing("new", 20_000, "another space"), false, late).await.unwrap();
        assert_eq!(waiting, Provision::PortTaken, "a day has not passed");
        assert!(store.opened(&id("under way"), &NodeId::new("node").unwrap()).await.unwrap());
        assert_eq!(made(&store, &instance("new", 20_010)).await.revision, Revision(dump.revision.0 + 1));
        // A port that was used before it was given back is at rest as it was.
        store.deprovision(&id("used again"), late, Ending::Unused).await.unwrap();
        let ports = store.export().await.unwrap().last_releases;
        assert_eq!(ports, dump.last_releases);
    }
}

pub(super) async fn a_store_that_ever_kept_anything_takes_no_dump(store: AnyStore) {
    let mut dump = Dump::default();
    // Nothing at all is no more than there was.
    assert!(store.import(&dump).await.unwrap());
    store.join(&member("node", &["default"])).await.unwrap();
    assert!(!store.import(&dump).await.unwrap(), "a node has been there");
    store.remove_node(&NodeId::new("node").unwrap()).await.unwrap();

    dump.revision = Revision(7);
    assert!(store.import(&dump).await.unwrap());
    assert!(!store.import(&dump).await.unwrap(), "it has a past, though nothing else");
    assert_eq!(store.export().await.unwrap(), dump);
}
