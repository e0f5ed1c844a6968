//! What announcements are judged against, and announcements that come close to being accepted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use harbor::{
    discovery::{
        address::AddressRules,
        attribution::{Attribution, Speaker},
        authority::{Trusted, statement},
        judge::{self, Accepted, Known, Refused, Rules},
        source::{Action, Source},
        wire::{Announcement, Harbor, Tags},
    },
    model::{
        AppId, BindingId, PoolName, Protocol, Revision, ServiceInstanceId, Timestamp,
        binding::Binding,
        directory::{Directory, DirectoryEntry},
        token::{AnnounceSecret, SECRET_BYTES},
    },
};
use ipnet::IpNet;
use proptest::{prelude::*, sample::select};

/// Not a whole second, as those of proofs are.
pub const WALL: Timestamp = Timestamp(NOW * 1_000_000 + 500_000);
const NOW: i64 = 1_700_000_000;
const WALL_NS: i64 = WALL.0 * 1000;

pub const ACTIONS: [Action; 2] = [Action::Register, Action::Unregister];

/// One is in capital letters, and one is what another's port may be called by.
const IDS: [&str; 4] = ["a", "b", "C", "p23001"];
const APPS: [&str; 3] = ["app-1", "app-2", "app-3"];

/// A machine whose ports the platform gives to apps.
const CELL: &str = "10.0.2.9";

/// One byte more than an id may have.
const TOO_LONG: &str = match str::from_utf8(&[b'x'; 256]) {
    Ok(text) => text,
    Err(_) => panic!("it is ASCII"),
};

/// Service instances and bindings, to which app the platform has given addresses, and what the operator wants.
#[derive(Debug, Clone)]
pub struct World {
    pub instances: Vec<DirectoryEntry>,
    pub bindings: Vec<Binding>,
    pub given: BTreeMap<SocketAddr, AppId>,
    pub rules: Rules,
}

/// A message that comes into a world, by one way and wanting one thing.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    pub world: &'a World,
    pub message: &'a Announcement,
    pub action: Action,
    pub source: Source,
}

impl World {
    pub fn directory(&self) -> Directory {
        let mut directory = Directory::new(secret());
        self.instances.iter().for_each(|instance| directory.put_instance(instance.clone()));
        self.bindings.iter().for_each(|binding| directory.put_binding(&Arc::new(binding.clone())));
        directory
    }

    fn attribution(&self) -> Attribution {
        let mut attribution = Attribution::default();
        for (address, app) in &self.given {
            let speaker = Speaker { app: app.as_str(), app_instance: None };
            attribution.set(*address, Some(speaker), Instant::now()).unwrap();
        }
        attribution
    }
}

impl<'a> Case<'a> {
    /// Whatever can be made of the message.
    pub fn all(world: &'a World, message: &'a Announcement) -> impl Iterator<Item = Self> {
        let of = move |source| ACTIONS.map(|action| Self { world, message, action, source });
        Source::ALL.into_iter().flat_map(of)
    }

    /// What Harbor says to it.
    pub fn judged(&self) -> Result<Accepted, Refused> {
        let (directory, attribution) = (self.world.directory(), self.world.attribution());
        let known = Known { directory: &directory, attribution: &attribution, rules: &self.world.rules, wall: WALL };
        judge::judge(self.message, self.action, self.source, &known)
    }
}

fn secret() -> AnnounceSecret {
    AnnounceSecret::new([7; SECRET_BYTES])
}

/// The proof that the holder of the binding's token makes of the message.
pub fn prove(message: &Announcement, action: Action, binding: &BindingId) -> String {
    secret().token(binding).prove(&statement(message, action))
}

pub fn world() -> impl Strategy<Value = World> {
    let instance = (23_000..23_006_u16, select(&Protocol::ALL), select(&[4100, 61_012]), any::<bool>());
    let binding = (select(&[0, 0, 0, 1, 1, 2, 3]), prop::option::of(0..APPS.len()), any::<bool>());
    (
        prop::collection::vec(instance, IDS.len()),
        prop::collection::vec(binding, 0..6),
        prop::collection::btree_map(select(&[61_012, 61_013, 4100]), 0..APPS.len(), 0..4),
        rules(),
    )
        .prop_map(|(instances, bindings, given, rules)| World {
            instances: instances.into_iter().enumerate().map(instance_of).collect(),
            bindings: bindings.into_iter().enumerate().map(binding_of).collect(),
            given: given
                .into_iter()
                .map(|(port, app)| (SocketAddr::new(CELL.parse().unwrap(), port), AppId::new(APPS[app]).unwrap()))
                .collect(),
            rules,
        })
}

/// Each is in a pool of its own, so that several may have one port.
fn instance_of((index, (port, protocol, int_port, match_app)): (usize, (u16, Protocol, u16, bool))) -> DirectoryEntry {
    DirectoryEntry {
        id: ServiceInstanceId::new(IDS[index]).unwrap(),
        pool: PoolName::new(format!("pool-{index}")).unwrap(),
        port,
        protocol,
        int_port,
        match_app,
        bindings: BTreeSet::new(),
        apps: Default::default(),
    }
}

fn binding_of((index, (instance, app, announce)): (usize, (usize, Option<usize>, bool))) -> Binding {
    Binding {
        id: BindingId::new(format!("binding-{index}")).unwrap(),
        service_instance_id: ServiceInstanceId::new(IDS[instance]).unwrap(),
        app_id: app.map(|app| AppId::new(APPS[app]).unwrap()),
        space_id: None,
        announce: announce || app.is_some(),
        predecessor_id: None,
        created_at: Timestamp::default(),
        revision: Revision(1),
    }
}

fn rules() -> impl Strategy<Value = Rules> {
    let trusted = (select(&["10.0.0.0/8", "10.0.16.0/24"]), prop::option::of(0..IDS.len()));
    let trusted = trusted.prop_map(|(network, only)| Trusted {
        networks: vec![network.parse().unwrap()],
        service_instances: only.map(|index| [ServiceInstanceId::new(IDS[index]).unwrap()].into()),
    });
    let backend_networks =
        prop_oneof![1 => Just(networks(&["10.0.0.0/8"])), 2 => Just(networks(&["0.0.0.0/0", "::/0"]))];
    (prop::option::weighted(0.9, Just("h.example")), prop::collection::vec(trusted, 0..2), backend_networks).prop_map(
        |(domain, trusted, backend_networks)| Rules {
            domain: domain.map(String::from),
            stale_after: Duration::from_secs(120),
            trusted,
            addresses: AddressRules {
                backend_networks,
                backend_deny: networks(&["10.66.0.0/16"]),
                cell_networks: networks(&["10.0.2.0/24"]),
                infrastructure: addresses(["10.0.0.9:4222", "127.0.0.1:4223"]),
                own_hosts: ["10.0.0.5", "10.0.2.5"].map(|host| host.parse().unwrap()).into(),
                pool_ports: "23000-23999".parse().unwrap(),
                own_apis: addresses(["0.0.0.0:8082", "10.0.0.6:8081"]),
            },
        },
    )
}

fn networks(networks: &[&str]) -> Vec<IpNet> {
    networks.iter().map(|network| network.parse().unwrap()).collect()
}

fn addresses(addresses: [&str; 2]) -> BTreeSet<SocketAddr> {
    addresses.map(|address| address.parse().unwrap()).into()
}

/// One of `likely` nine times of ten, else one of `odd`.
fn mostly<T: Clone + Debug>(likely: &'static [T], odd: &'static [T]) -> impl Strategy<Value = T> {
    prop_oneof![9 => select(likely), 1 => select(odd)]
}

type Texts = &'static [Option<&'static str>];

fn text(likely: Texts, odd: Texts) -> impl Strategy<Value = Option<String>> {
    mostly(likely, odd).prop_map(|text| text.map(String::from))
}

/// They count where no id is said, so that they may be odder than the rest.
fn uris() -> impl Strategy<Value = Vec<String>> {
    let likely =
        ["p23000.h.example", "P23001.H.example/x", "a.h.example", "B.h.example.", "0.a.h.example", "www.example.com"];
    let odd = [
        "C.h.example",
        "c.h.example",
        "*.h.example",
        "*.a.h.example",
        "x.a.h.example",
        "0.0.a.h.example",
        "0..h.example",
        "p9.h.example",
        "p023000.h.example",
        "p+23000.h.example",
        "h.example",
        ".h.example",
        "*.example",
        "a.evilh.example",
        "www.example.com/a.h.example",
        "",
    ];
    let uri = prop_oneof![2 => select(likely.to_vec()), 1 => select(odd.to_vec())];
    prop::collection::vec(uri.prop_map(String::from), 0..3)
}

/// Hosts with ports: of backends, of what is no backend, and of Harbor's own parts and what it uses.
fn place() -> impl Strategy<Value = (Option<String>, Option<u16>)> {
    let backend = || select(&[Some("10.0.1.7"), Some("10.0.16.3"), Some(CELL), Some("::ffff:10.0.1.7")]);
    let port = || mostly(&[Some(61_012), Some(61_013), None], &[Some(0), Some(1), Some(23_000)]);
    let harbor = select(&["10.0.0.5", "10.0.2.5", "10.0.0.6", "10.0.0.9", "127.0.0.1", "::1"]);
    let of_harbor = select(&[23_000, 4222, 4223, 8081, 8082]);
    let odd = select(&[
        None,
        Some(""),
        Some("name"),
        Some("10.0.1.7:61012"),
        Some("[fd12::1]"),
        Some("fd12::1"),
        Some("8.8.8.8"),
        Some("10.66.0.1"),
        Some("0.1.2.3"),
        Some("169.254.169.254"),
        Some("::ffff:169.254.169.254"),
        Some("224.0.0.1"),
        Some("255.255.255.255"),
        Some("::"),
        Some("fe80::1"),
        Some("ff02::1"),
        Some("fd00:ec2::254"),
        Some("fd20:ce::254"),
    ]);
    let place = prop_oneof![
        8 => (backend(), port()),
        3 => (odd, port()),
        1 => (harbor.prop_map(Some), of_harbor.prop_map(Some)),
    ];
    place.prop_map(|(host, port)| (host.map(String::from), port))
}

fn unsigned() -> impl Strategy<Value = Announcement> {
    let route = (
        prop::option::of(uris()),
        place(),
        mostly(&[None], &[Some(0), Some(61_014)]),
        text(&[None, Some("app-1"), Some("app-2")], &[Some(""), Some("app-3"), Some("stranger"), Some(TOO_LONG)]),
        text(&[None, Some("one")], &[Some(""), Some(TOO_LONG)]),
        mostly(&[None, Some(60)], &[Some(i64::MIN), Some(-1), Some(0), Some(120), Some(121), Some(i64::MAX)]),
        mostly(
            &[None, Some(WALL_NS - 1)],
            &[Some(-1), Some(0), Some(WALL_NS + 5_000_000_000), Some(WALL_NS + 5_000_000_001), Some(i64::MAX)],
        ),
    );
    let tags = (id(), text(&[None, Some("both")], &[Some("tcp"), Some("udp"), Some("sctp"), Some("")]));
    (route, prop::option::of(tags), prop::option::weighted(0.8, harbor())).prop_map(
        |((uris, (host, port), tls_port, app, private_instance_id, stale, updated_at), tags, harbor)| Announcement {
            uris,
            host,
            port,
            tls_port,
            app,
            private_instance_id,
            stale_threshold_in_seconds: stale,
            endpoint_updated_at_ns: updated_at,
            tags: tags.map(|(harbor_instance, harbor_protocol)| Tags { harbor_instance, harbor_protocol }),
            harbor,
        },
    )
}

fn id() -> impl Strategy<Value = Option<String>> {
    text(
        &[None, None, Some("a"), Some("a"), Some("b")],
        &[Some(""), Some("A"), Some("C"), Some("p23001"), Some("gone")],
    )
}

fn harbor() -> impl Strategy<Value = Harbor> {
    (
        id(),
        text(&[None, Some("both")], &[Some("tcp"), Some("udp"), Some("TCP"), Some("")]),
        mostly(&[None, Some(61_013)], &[Some(0), Some(23_001), Some(4222)]),
        text(&[None, Some("up"), Some("draining")], &[Some(""), Some("gone")]),
        mostly(&[None, Some(WALL.0 - 1)], &[Some(-1), Some(0), Some(WALL.0 + 1), Some(i64::MAX)]),
        text(&[Some("binding-0"), Some("binding-1"), Some("binding-2")], &[None, Some(""), Some("nobody")]),
        made_at(),
    )
        .prop_map(|(instance_id, protocol, udp_port, state, since, binding_id, timestamp)| Harbor {
            instance_id,
            protocol,
            udp_port,
            state,
            since,
            binding_id,
            timestamp,
            proof: None,
        })
}

/// Around what is too old, by the longest time to live and by a minute, and what is too far ahead.
fn made_at() -> impl Strategy<Value = Option<i64>> {
    let odd = [i64::MIN, NOW - 120, NOW - 119, NOW - 60, NOW + 5, NOW + 6, i64::MAX];
    prop_oneof![3 => select(vec![Some(NOW), Some(NOW - 59)]), 2 => select(odd.to_vec()).prop_map(Some), 1 => Just(None)]
}

/// What a message is proven with.
#[derive(Debug, Clone)]
enum Proof {
    /// Nothing.
    None,
    /// The token of the binding that it names.
    Right,
    /// The token of another binding.
    OfAnother(&'static str),
    /// The right token, before the message was changed: in what is signed, or in what is not.
    BeforeAChange(fn(&mut Announcement)),
    /// Something else than a proof.
    Guessed(&'static str),
}

const CHANGES: [fn(&mut Announcement); 10] = [
    |message| message.host = Some("10.0.16.3".into()),
    |message| message.port = Some(61_013),
    |message| message.app = Some("stranger".into()),
    |message| message.stale_threshold_in_seconds = Some(90),
    |message| message.harbor.get_or_insert_default().instance_id = Some("b".into()),
    |message| message.harbor.get_or_insert_default().protocol = Some("udp".into()),
    |message| message.harbor.get_or_insert_default().udp_port = Some(61_012),
    |message| message.harbor.get_or_insert_default().state = Some("up".into()),
    |message| message.harbor.get_or_insert_default().binding_id = Some("binding-0".into()),
    |message| message.harbor.get_or_insert_default().timestamp = Some(NOW - 1),
];

/// A message with a proof that was made for one of the two actions.
pub fn message() -> impl Strategy<Value = Announcement> {
    let proof = prop_oneof![
        4 => Just(Proof::None),
        8 => Just(Proof::Right),
        1 => select(&["binding-0", "binding-1"]).prop_map(Proof::OfAnother),
        2 => select(&CHANGES).prop_map(Proof::BeforeAChange),
        1 => select(&["", "00"]).prop_map(Proof::Guessed),
    ];
    (unsigned(), proof, select(&ACTIONS)).prop_map(|(mut message, proof, action)| {
        sign(&mut message, &proof, action);
        message
    })
}

fn sign(message: &mut Announcement, proof: &Proof, action: Action) {
    let Some(mut harbor) = message.harbor.clone() else { return };
    let by = |binding: Option<&str>| Some(prove(message, action, &BindingId::new(binding?).ok()?));
    harbor.proof = match proof {
        Proof::None => None,
        Proof::Right | Proof::BeforeAChange(_) => by(harbor.binding_id.as_deref()),
        Proof::OfAnother(binding) => by(Some(binding)),
        Proof::Guessed(text) => Some((*text).into()),
    };
    message.harbor = Some(harbor);
    if let Proof::BeforeAChange(change) = proof {
        change(message);
    }
}
