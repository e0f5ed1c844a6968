//! What is imported: whatever the bytes, they are refused, or are a dump that is written again as it was read.

use std::{collections::BTreeSet, time::Duration};

use fastrand::Rng;
use harbor::{
    model::{
        BindingId, NodeId, OrganizationId, PlanId, PoolName, Protocol, Revision, ServiceInstanceId, SpaceId, Timestamp,
        binding::Binding,
        parameters::Settings,
        pool::Pool,
        service_instance::ServiceInstance,
        setting::{By, SettingChange},
    },
    store::{Dump, Ending, ReadError, Reservation, Store as _, memory::MemoryStore},
};
use ring::digest;

use crate::mutate;

/// What a store holds after a while.
async fn dump() -> Dump {
    let store = MemoryStore::new();
    let now = Timestamp::from_seconds(1_700_000_000);
    let pool = PoolName::new("default").unwrap();
    let root = By { who: "root".into(), at: now };
    store.announce_secret().await.unwrap();
    let ports = "5060-5090".parse().unwrap();
    store.define_pools(&[Pool::block(pool.clone(), ports)], Revision::default()).await.unwrap().unwrap();
    store
        .change_reservations(
            &[],
            &[Reservation {
                pool: pool.clone(),
                name: "sip".into(),
                first_port: 5060,
                last_port: 5061,
                protocol: Protocol::Udp,
            }],
            &BTreeSet::new(),
            &root,
        )
        .await
        .unwrap();
    store.rotate_announce_secret(&root).await.unwrap();
    let change = SettingChange { scope: "forwarder".into(), key: "max_sockets".into(), value: Some("1000".into()) };
    let (read_at, _) = store.settings().await.unwrap();
    store.change_settings(&[change], &root, read_at).await.unwrap();
    for number in 0..4_u16 {
        let id = ServiceInstanceId::new(format!("instance-{number}")).unwrap();
        let instance = ServiceInstance {
            id: id.clone(),
            plan_id: PlanId::new("plan").unwrap(),
            pool: pool.clone(),
            port: 31_000 + number,
            protocol: Protocol::Both,
            requested_port: (number == 0).then_some(31_000),
            settings: Settings { idle_timeout: Some(Duration::from_secs(90)), ..Settings::default() },
            organization_id: OrganizationId::new("organization").unwrap(),
            space_id: SpaceId::new("space").unwrap(),
            name: Some("both-game".into()),
            node_id: NodeId::new("node").unwrap(),
            created_at: now,
            revision: Revision::default(),
        };
        store.provision(&instance, number == 1, now).await.unwrap();
        let binding = Binding {
            id: BindingId::new(format!("binding-{number}")).unwrap(),
            service_instance_id: id,
            app_id: None,
            space_id: None,
            announce: true,
            predecessor_id: None,
            created_at: now,
            revision: Revision::default(),
        };
        store.bind(&binding).await.unwrap();
    }
    let gone = ServiceInstanceId::new("instance-3").unwrap();
    store.deprovision(&gone, now, Ending::Rest(Timestamp(i64::MAX))).await.unwrap();
    store.export().await.unwrap()
}

fn written(dump: &Dump) -> Vec<u8> {
    let mut bytes = Vec::new();
    dump.write(&mut bytes).unwrap();
    bytes
}

/// Lines with the sum that they have, as somebody would write it who has changed them on purpose.
fn sealed(lines: &[u8]) -> Vec<u8> {
    let sum = digest::digest(&digest::SHA256, lines);
    let digits = sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    [lines, format!("{{\"sha256\":\"{digits}\"}}\n").as_bytes()].concat()
}

/// How many were taken, were not understood, and contradicted themselves.
#[derive(Debug, Default)]
struct Outcomes {
    taken: usize,
    misunderstood: usize,
    contradictory: usize,
}

impl Outcomes {
    /// Reads lines that are whole; what is taken can be written, read and imported.
    fn check(&mut self, lines: &[u8]) {
        match Dump::read(&sealed(lines)) {
            Ok(dump) => {
                self.taken += 1;
                assert_eq!(dump.check(), Ok(()));
                assert_eq!(Dump::read(&written(&dump)).unwrap(), dump);
                assert!(block_on(MemoryStore::new().import(&dump)).unwrap());
            }
            Err(ReadError::NotUnderstood { .. }) => self.misunderstood += 1,
            Err(ReadError::Contradiction(_)) => self.contradictory += 1,
            Err(_) => {}
        }
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

#[test]
fn whatever_the_bytes_a_dump_is_refused_or_is_one() {
    let whole = written(&block_on(dump()));
    let end = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    let (lines, last) = whole.split_at(end);
    let mut outcomes = Outcomes::default();
    mutate::run(&[lines], |bytes| {
        assert!(bytes == lines || Dump::read(&[bytes, last].concat()).is_err(), "it was changed");
        outcomes.check(bytes);
    });
    if std::env::var_os("HARBOR_SEED").is_none() {
        assert!(outcomes.taken > 20 && outcomes.misunderstood > 500, "{outcomes:?}");
    }
}

#[test]
fn whatever_the_lines_a_dump_is_refused_or_is_one() {
    let whole = String::from_utf8(written(&block_on(dump()))).unwrap();
    let lines = whole.lines().collect::<Vec<_>>();
    let lines = &lines[..lines.len() - 1];
    let mut outcomes = Outcomes::default();
    for seed in mutate::seeds() {
        let mut random = Rng::with_seed(seed);
        let mut lines = lines.to_vec();
        for _ in 0..random.usize(1..=3) {
            // The first line stays where it is.
            let (one, other) = (random.usize(1..lines.len()), random.usize(1..lines.len()));
            match random.u8(..3) {
                0 => drop(lines.remove(one)),
                1 => lines.insert(one, lines[other]),
                _ => lines.swap(one, other),
            }
        }
        outcomes.check((lines.join("\n") + "\n").as_bytes());
    }
    if std::env::var_os("HARBOR_SEED").is_none() {
        assert!(outcomes.taken > 500 && outcomes.contradictory > 500, "{outcomes:?}");
    }
}
