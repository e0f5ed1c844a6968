//! Whatever the message, a backend enters only by one of the three authorities, and only where backends may be.
//!
//! The oracle is written from the contract and shares no code with what it judges but tokens.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use harbor::{
    backends::Backends,
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
        announcement::{Authority, Registration},
        binding::Binding,
        directory::{Directory, DirectoryEntry},
        token::{AnnounceSecret, SECRET_BYTES},
    },
};
use proptest::prelude::*;

const WALL: Timestamp = Timestamp::from_seconds(1_700_000_000);
const IDS: [&str; 3] = ["a", "b", "c"];
const APPS: [&str; 3] = ["app-1", "app-2", "app-3"];

/// Which apps are bound to which service instance, and which keys there are with whether they may announce.
#[derive(Debug, Clone)]
struct World {
    bound: BTreeSet<(usize, usize)>,
    keys: Vec<(usize, bool)>,
    match_app: Vec<bool>,
    protocols: Vec<Protocol>,
    trusted: Vec<(bool, Option<usize>)>,
    /// To which app the platform has given the ports of the cell.
    given: BTreeMap<u16, usize>,
}

/// A machine whose ports the platform gives to apps.
const CELL: &str = "10.0.2.9";

fn world() -> impl Strategy<Value = World> {
    (
        prop::collection::btree_set((0..APPS.len(), 0..IDS.len()), 0..4),
        prop::collection::vec((0..IDS.len(), any::<bool>()), 0..4),
        prop::collection::vec(any::<bool>(), IDS.len()),
        prop::collection::vec(prop::sample::select(Protocol::ALL.to_vec()), IDS.len()),
        prop::collection::vec((any::<bool>(), prop::option::of(0..IDS.len())), 0..2),
        prop::collection::btree_map(prop::sample::select(&[61_012, 61_013, 23_000][..]), 0..APPS.len(), 0..3),
    )
        .prop_map(|(bound, keys, match_app, protocols, trusted, given)| World {
            bound,
            keys,
            match_app,
            protocols,
            trusted,
            given,
        })
}

impl World {
    fn directory(&self) -> Directory {
        let mut directory = Directory::new(AnnounceSecret::new([7; SECRET_BYTES]));
        for (index, id) in IDS.iter().enumerate() {
            directory.put_instance(DirectoryEntry {
                id: ServiceInstanceId::new(id).unwrap(),
                pool: PoolName::new("default").unwrap(),
                port: port(index),
                protocol: self.protocols[index],
                int_port: 4100,
                match_app: self.match_app[index],
                bindings: BTreeSet::new(),
                apps: BTreeSet::new(),
            });
        }
        for (app, id) in &self.bound {
            put_binding(&mut directory, &format!("{app}@{id}"), IDS[*id], Some(APPS[*app]), true);
        }
        for (index, (id, announce)) in self.keys.iter().enumerate() {
            put_binding(&mut directory, &format!("key-{index}"), IDS[*id], None, *announce);
        }
        directory
    }

    fn rules(&self) -> Rules {
        let trusted = self.trusted.iter().map(|(wide, only)| Trusted {
            networks: vec![if *wide { "10.0.0.0/8" } else { "10.0.16.0/24" }.parse().unwrap()],
            service_instances: only.map(|index| [ServiceInstanceId::new(IDS[index]).unwrap()].into()),
        });
        Rules {
            domain: Some("h.example".into()),
            stale_after: Duration::from_secs(120),
            trusted: trusted.collect(),
            addresses: AddressRules {
                backend_networks: vec!["10.0.0.0/8".parse().unwrap()],
                backend_deny: vec!["10.66.0.0/16".parse().unwrap()],
                cell_networks: vec!["10.0.2.0/24".parse().unwrap()],
                own_hosts: ["10.0.0.5".parse().unwrap()].into(),
                pool_ports: "23000-23999".parse().unwrap(),
                ..AddressRules::default()
            },
        }
    }

    fn attribution(&self) -> Attribution {
        let mut attribution = Attribution::default();
        for (port, app) in &self.given {
            let address = SocketAddr::new(CELL.parse().unwrap(), *port);
            attribution.set(address, Some(Speaker { app: APPS[*app], app_instance: None }), Instant::now()).unwrap();
        }
        attribution
    }

    fn judge(&self, message: &Announcement, action: Action, source: Source) -> Result<Accepted, Refused> {
        self.judge_by(&self.rules(), message, action, source)
    }

    fn judge_by(
        &self,
        rules: &Rules,
        message: &Announcement,
        action: Action,
        source: Source,
    ) -> Result<Accepted, Refused> {
        let (directory, attribution) = (self.directory(), self.attribution());
        let known = Known { directory: &directory, attribution: &attribution, rules, wall: WALL };
        judge::judge(message, action, source, &known)
    }

    /// Whether the contract lets `registration` in for `message`.
    fn allows(&self, message: &Announcement, registration: &Registration) -> Result<(), String> {
        let index = IDS.iter().position(|id| *id == registration.service_instance_id.as_str()).ok_or("unknown")?;
        let host: IpAddr = message.host.as_deref().unwrap_or_default().parse().map_err(|_| "no address")?;
        let host = host.to_canonical();
        let by_app = APPS.iter().position(|app| message.app.as_deref() == Some(*app));
        let by_app = by_app.is_some_and(|app| self.bound.contains(&(app, index)));
        let is_in = |network: &str| network.parse::<ipnet::IpNet>().unwrap().contains(&host);
        let by_trust = self.trusted.iter().any(|(wide, only)| {
            is_in(if *wide { "10.0.0.0/8" } else { "10.0.16.0/24" }) && only.is_none_or(|only| only == index)
        });
        match &registration.authority {
            Authority::App(app) if by_app && message.app.as_deref() == Some(app.as_str()) => {}
            Authority::Binding(binding) if !by_app && self.proves(message, binding.as_str(), index) => {}
            Authority::Trusted if !by_app && by_trust => {}
            other => return Err(format!("{other:?} does not hold")),
        }
        let app = match &registration.authority {
            Authority::App(app) => Some(app.as_str()),
            // Bindings of apps are called by the number of the app, `@`, and that of the service instance.
            Authority::Binding(binding) => {
                binding.as_str().split_once('@').map(|(app, _)| APPS[app.parse::<usize>().unwrap()])
            }
            Authority::Trusted => None,
        };
        for endpoint in &registration.endpoints {
            let given = self.given.get(&endpoint.address.port()).map(|app| APPS[*app]);
            if host.to_string() == CELL && (app.is_none() || given != app) {
                return Err(format!("{endpoint:?} is not known to be {app:?}'s"));
            }
            if endpoint.address.ip() != host || !is_in("10.0.0.0/8") || is_in("10.66.0.0/16") {
                return Err(format!("{endpoint:?} is no place for a backend"));
            }
            if endpoint.address.ip().to_string() == "10.0.0.5" && (23_000..24_000).contains(&endpoint.address.port()) {
                return Err("it goes in circles".into());
            }
            if !self.protocols[index].has(endpoint.transport) || endpoint.address.port() == 0 {
                return Err(format!("{endpoint:?} is not served"));
            }
        }
        if registration.endpoints.is_empty() || registration.time_to_live > Duration::from_secs(120) {
            return Err("no endpoint, or too long a life".into());
        }
        Ok(())
    }

    fn proves(&self, message: &Announcement, binding: &str, index: usize) -> bool {
        let app_binding = self.bound.iter().any(|(app, id)| *id == index && binding == format!("{app}@{id}"));
        let mut keys = self.keys.iter().enumerate();
        let key = keys.any(|(key, (id, announce))| *announce && *id == index && binding == format!("key-{key}"));
        let Some(harbor) = &message.harbor else { return false };
        let token = AnnounceSecret::new([7; SECRET_BYTES]).token(&BindingId::new(binding).unwrap());
        (app_binding || key)
            && harbor.binding_id.as_deref() == Some(binding)
            && harbor.proof.as_deref() == Some(token.prove(&statement(message, Action::Register)).as_str())
            && harbor.timestamp.is_some_and(|at| (WALL.seconds() - 120..=WALL.seconds() + 5).contains(&at))
    }
}

fn port(index: usize) -> u16 {
    23_000 + u16::try_from(index).unwrap()
}

fn put_binding(directory: &mut Directory, binding: &str, id: &str, app: Option<&str>, announce: bool) {
    directory.put_binding(&Arc::new(Binding {
        id: BindingId::new(binding).unwrap(),
        service_instance_id: ServiceInstanceId::new(id).unwrap(),
        app_id: app.map(|app| AppId::new(app).unwrap()),
        space_id: None,
        announce,
        predecessor_id: None,
        created_at: Timestamp::default(),
        revision: Revision(1),
    }));
}

fn one_of(words: &'static [&'static str]) -> impl Strategy<Value = Option<String>> {
    prop::option::of(prop::sample::select(words).prop_map(String::from))
}

fn id() -> impl Strategy<Value = Option<String>> {
    one_of(&["a", "b", "c", "unknown", ""])
}

/// A message that is likely to come close to being accepted.
fn message() -> impl Strategy<Value = Announcement> {
    let uris = prop::sample::select(
        &["p23000.h.example", "P23001.H.example/x", "b.h.example", "*.h.example", "p9.h.example", "www.example.com"][..],
    );
    let head = (
        prop::option::of(prop::collection::vec(uris.prop_map(String::from), 0..3)),
        one_of(&[
            "10.0.1.7",
            "10.0.16.3",
            "10.66.0.1",
            "10.0.0.5",
            CELL,
            "::ffff:10.0.1.7",
            "127.0.0.1",
            "169.254.169.254",
            "name",
            "",
        ]),
        prop::option::of(prop::sample::select(&[0, 1, 61_012, 23_000][..])),
        one_of(&["app-1", "app-2", "app-3", "stranger", ""]),
        prop::option::of(prop::sample::select(&[-1, 0, 60, 100_000][..])),
    );
    let tags = prop::option::of((id(), one_of(&["tcp", "udp", "both", "sctp"])));
    let harbor = (
        id(),
        one_of(&["tcp", "udp", "both", ""]),
        prop::option::of(prop::sample::select(&[0, 61_013, 23_001][..])),
        one_of(&["up", "draining", "gone"]),
        one_of(&["key-0", "key-1", "key-2", "0@0", "1@2", "nobody"]),
        prop::option::of(prop::sample::select(&[-121, -120, -1, 0, 5, 6][..])),
    );
    (head, tags, prop::option::of(harbor)).prop_map(|((uris, host, port, app, stale), tags, harbor)| Announcement {
        uris,
        host,
        port,
        app,
        stale_threshold_in_seconds: stale,
        tags: tags.map(|(harbor_instance, harbor_protocol)| Tags { harbor_instance, harbor_protocol }),
        harbor: harbor.map(|(instance_id, protocol, udp_port, state, binding_id, age)| Harbor {
            instance_id,
            protocol,
            udp_port,
            state,
            since: None,
            binding_id,
            timestamp: age.map(|age| WALL.seconds() + age),
            proof: None,
        }),
        ..Announcement::default()
    })
}

/// What the sender knows to make a proof with.
#[derive(Debug, Clone, Copy)]
enum Proof {
    None,
    /// The token of the binding that the message names.
    Right,
    /// Another binding's token.
    OfAnother,
    /// The right token, before a field was changed.
    BeforeAChange,
}

fn prove(message: &mut Announcement, proof: Proof) {
    let Some(binding) = message.harbor.as_ref().and_then(|harbor| harbor.binding_id.clone()) else { return };
    let token = |binding: &str| AnnounceSecret::new([7; SECRET_BYTES]).token(&BindingId::new(binding).unwrap());
    let made = match proof {
        Proof::None => return,
        Proof::Right => token(&binding).prove(&statement(message, Action::Register)),
        Proof::OfAnother => token("another").prove(&statement(message, Action::Register)),
        Proof::BeforeAChange => {
            let made = token(&binding).prove(&statement(message, Action::Register));
            message.port = message.port.map(|port| port.wrapping_add(1));
            made
        }
    };
    message.harbor.as_mut().expect("it names a binding").proof = Some(made);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn a_backend_enters_only_by_one_of_the_three_authorities(
        world in world(),
        mut message in message(),
        proof in prop::sample::select(vec![Proof::None, Proof::Right, Proof::Right, Proof::OfAnother, Proof::BeforeAChange]),
        source in prop::sample::select(Source::ALL.to_vec()),
    ) {
        prove(&mut message, proof);
        let directory = world.directory();
        let judged = world.judge(&message, Action::Register, source);
        if let Ok(Accepted::Register(registration)) = judged {
            if let Err(reason) = world.allows(&message, &registration) {
                return Err(TestCaseError::fail(format!("{reason}: {registration:?}")));
            }
            // And it leaves when the authority does.
            let backends = Backends::new(8);
            backends.apply(&registration, Instant::now()).expect("an empty table has room");
            backends.retain_authorised(&directory);
            prop_assert_eq!(backends.list(&registration.service_instance_id).len(), registration.endpoints.len());
            let mut without = directory.clone();
            match &registration.authority {
                Authority::App(app) => {
                    let entry = directory.instance(registration.service_instance_id.as_str()).unwrap();
                    let of_app = |id: &&BindingId| directory.binding(id.as_str()).unwrap().app_id.as_ref() == Some(app);
                    entry.bindings.iter().filter(of_app).for_each(|id| without.remove_binding(id));
                }
                Authority::Binding(binding) => without.remove_binding(binding),
                Authority::Trusted => without.remove_instance(&registration.service_instance_id),
            }
            backends.retain_authorised(&without);
            prop_assert_eq!(backends.export().len(), 0);
        }
    }

    #[test]
    fn who_may_register_may_withdraw_and_nobody_else(
        world in world(),
        message in message(),
        source in prop::sample::select(Source::ALL.to_vec()),
    ) {
        let mut rules = world.rules();
        // An address that backends may not have can still be withdrawn.
        rules.addresses.backend_networks = vec!["0.0.0.0/0".parse().unwrap()];
        rules.addresses.cell_networks.clear();
        let judge_it = |action| world.judge_by(&rules, &message, action, source);
        match (judge_it(Action::Register), judge_it(Action::Unregister)) {
            (Ok(Accepted::Register(registration)), Ok(Accepted::Unregister(withdrawal))) => {
                prop_assert_eq!(registration.endpoints, withdrawal.endpoints);
                prop_assert_eq!(registration.service_instance_id, withdrawal.service_instance_id);
            }
            (Err(register), Err(unregister)) => prop_assert_eq!(register, unregister),
            (Err(refused), Ok(_)) => {
                let words = ["address_forbidden", "loop"];
                prop_assert!(words.contains(&refused.reason.as_str()), "{:?}", refused);
            }
            (Ok(accepted), _) => return Err(TestCaseError::fail(format!("{accepted:?} can never be withdrawn"))),
        }
    }
}

#[test]
fn an_ipv4_address_in_ipv6_clothes_is_the_same_backend() {
    let world = World {
        bound: [(0, 0)].into(),
        keys: Vec::new(),
        match_app: vec![false; 3],
        protocols: vec![Protocol::Tcp; 3],
        trusted: Vec::new(),
        given: BTreeMap::new(),
    };
    let backends = Backends::new(8);
    for host in ["10.0.1.7", "::ffff:10.0.1.7", "::ffff:a00:107"] {
        let message = Announcement {
            host: Some(host.into()),
            port: Some(61_012),
            app: Some(APPS[0].into()),
            tags: Some(Tags { harbor_instance: Some("a".into()), harbor_protocol: None }),
            ..Announcement::default()
        };
        let judged = world.judge(&message, Action::Register, Source::Harbor);
        let Ok(Accepted::Register(registration)) = judged else { panic!("{host}: {judged:?}") };
        backends.apply(&registration, Instant::now()).unwrap();
    }
    let addresses = backends.export().into_iter().map(|(_, state)| state.backend.endpoint.address).collect::<Vec<_>>();
    assert_eq!(addresses, ["10.0.1.7:61012".parse::<SocketAddr>().unwrap()]);
}
