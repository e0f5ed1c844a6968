//! Announcements of all sources, bindings that come and go, clocks that jump and a NATS that goes away, against a model of
//! what may be behind each port. The model is a flat list that is searched from end to end; it shares no code with what it
//! is held against but the making of proofs.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use fastrand::Rng;
use harbor::{
    backends::Backends,
    discovery::{
        Discovery, Settings,
        address::AddressRules,
        authority::{Trusted, statement},
        judge::Rules,
        source::{Action, Source},
        wire::{Announcement, Harbor},
    },
    model::{
        AppId, BindingId, Clock, PoolName, Protocol, Revision, ServiceInstanceId, Timestamp, Transport,
        announcement::{AnnouncedState, Authority},
        binding::Binding,
        directory::{Directory, DirectoryEntry},
        token::{AnnounceSecret, SECRET_BYTES},
    },
    telemetry::metrics::Metrics,
};
use tokio::sync::watch;

use crate::seeds::{STEPS, run, weighted};

const STALE_AFTER: Duration = Duration::from_secs(120);
const SUSPEND_MAX: Duration = Duration::from_secs(600);
const MAX_BACKENDS: usize = 5;
const DOMAIN: &str = "h.example";
const INT_PORT: u16 = 4100;

/// Service instances: what they carry, and whether the routes of their apps make backends.
const INSTANCES: [(&str, u16, Protocol, bool); 3] = [
    ("tcp-one", 23_001, Protocol::Tcp, true),
    ("both-one", 23_002, Protocol::Both, false),
    ("udp-one", 23_003, Protocol::Udp, false),
];
const APPS: [&str; 3] = ["app-1", "app-2", "app-3"];
const APP_INSTANCES: [&str; 2] = ["one", "two"];

/// A cell, a machine of the operator's, a trusted one, a container.
const HOSTS: [&str; 4] = [CELL, "10.0.1.7", TRUSTED, "10.255.3.9"];
const CELL: &str = "10.0.2.9";
pub const TRUSTED: &str = "10.0.16.3";
const PORTS: [u16; 2] = [61_012, INT_PORT];

/// A clock whose hands are moved, each by itself.
pub struct Hands {
    now: Mutex<Instant>,
    pub wall_micros: AtomicI64,
}

impl Hands {
    pub fn wait(&self, seconds: u64) {
        *self.now.lock().unwrap() += Duration::from_secs(seconds);
        self.wall_micros.fetch_add(i64::try_from(seconds).unwrap() * 1_000_000, Ordering::Relaxed);
    }
}

impl Clock for Hands {
    fn now(&self) -> Instant {
        *self.now.lock().unwrap()
    }

    fn wall(&self) -> Timestamp {
        Timestamp(self.wall_micros.load(Ordering::Relaxed))
    }
}

/// A binding: of an app, or a key where there is none, and of which service instance.
type Whose = (Option<usize>, usize);

pub type Bindings = BTreeSet<Whose>;

fn whose(random: &mut Rng) -> Whose {
    let app = random.usize(..=APPS.len());
    ((app < APPS.len()).then_some(app), random.usize(..INSTANCES.len()))
}

fn binding_id((app, instance): Whose) -> BindingId {
    BindingId::new(format!("{}@{}", app.map_or("key", |app| APPS[app]), INSTANCES[instance].0)).unwrap()
}

fn secret() -> AnnounceSecret {
    AnnounceSecret::new([7; SECRET_BYTES])
}

fn directory(bindings: &Bindings) -> Directory {
    let mut directory = Directory::new(secret());
    for (id, port, protocol, match_app) in INSTANCES {
        directory.put_instance(DirectoryEntry {
            id: ServiceInstanceId::new(id).unwrap(),
            pool: PoolName::new("default").unwrap(),
            port,
            protocol,
            int_port: INT_PORT,
            match_app,
            bindings: BTreeSet::new(),
            apps: Default::default(),
        });
    }
    for binding in bindings {
        directory.put_binding(&Arc::new(Binding {
            id: binding_id(*binding),
            service_instance_id: ServiceInstanceId::new(INSTANCES[binding.1].0).unwrap(),
            app_id: binding.0.map(|app| AppId::new(APPS[app]).unwrap()),
            space_id: None,
            announce: true,
            predecessor_id: None,
            created_at: Timestamp::default(),
            revision: Revision(1),
        }));
    }
    directory
}

fn rules() -> Rules {
    let network = |text: &str| vec![text.parse().unwrap()];
    Rules {
        domain: Some(DOMAIN.into()),
        stale_after: STALE_AFTER,
        trusted: vec![Trusted { networks: network("10.0.16.0/24"), service_instances: None }],
        addresses: AddressRules {
            backend_networks: network("10.0.0.0/8"),
            cell_networks: network("10.0.2.0/24"),
            ..AddressRules::default()
        },
    }
}

/// A message, in the words of the model.
#[derive(Debug, Clone, Copy)]
struct Said {
    source: Source,
    action: Action,
    /// By id on `harbor.*`, by uri on the others; none: by nothing but the app.
    instance: Option<usize>,
    host: &'static str,
    port: Option<u16>,
    app: Option<usize>,
    app_instance: Option<&'static str>,
    updated_at: Option<Timestamp>,
    since: Option<Timestamp>,
    /// Whose token it is proven with, and when that was done, in seconds.
    proof: Option<(Whose, i64)>,
    draining: bool,
    lives: Option<i64>,
}

impl Said {
    fn random(random: &mut Rng, wall: Timestamp) -> Self {
        let source = weighted(random, &[(5, Source::Harbor), (5, Source::Router), (1, Source::ServiceDiscovery)]);
        let sometimes = |random: &mut Rng, one_in: u32| random.u32(..one_in) == 0;
        let moment = |random: &mut Rng| {
            // Around the time of the last messages; some ahead of this clock, and some too far to be believed.
            let seconds = *random.choice(&[-600, -60, -1, 0, 3, 5, 6, 3600][..]).unwrap();
            Timestamp(wall.0 + seconds * 1_000_000)
        };
        let harbor = source == Source::Harbor;
        let instance = random.usize(..INSTANCES.len());
        Self {
            source,
            action: weighted(random, &[(4, Action::Register), (1, Action::Unregister)]),
            instance: (source != Source::Router || random.bool()).then_some(instance),
            host: if source == Source::ServiceDiscovery { HOSTS[3] } else { HOSTS[random.usize(..HOSTS.len())] },
            port: (source != Source::ServiceDiscovery).then(|| PORTS[random.usize(..PORTS.len())]),
            app: (!sometimes(random, 4)).then(|| random.usize(..APPS.len())),
            app_instance: random.bool().then(|| APP_INSTANCES[random.usize(..APP_INSTANCES.len())]),
            updated_at: sometimes(random, 3).then(|| moment(random)),
            since: (harbor && sometimes(random, 4)).then(|| moment(random)),
            proof: (harbor && sometimes(random, 2))
                .then(|| (whose(random), wall.seconds() - *random.choice(&[0, 100, 121, -5, -6]).unwrap())),
            draining: harbor && sometimes(random, 5),
            lives: sometimes(random, 3).then(|| *random.choice(&[-1, 0, 30, 500]).unwrap()),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let uri = self.instance.map(|instance| format!("p{}.{DOMAIN}", INSTANCES[instance].1));
        let mut message = Announcement {
            uris: (self.source != Source::Harbor).then(|| uri.into_iter().collect()),
            host: Some(self.host.to_owned()),
            port: self.port,
            app: self.app.map(|app| APPS[app].to_owned()),
            private_instance_id: self.app_instance.map(str::to_owned),
            endpoint_updated_at_ns: self.updated_at.map(|at| at.0 * 1000),
            stale_threshold_in_seconds: self.lives,
            ..Announcement::default()
        };
        if self.source == Source::Harbor {
            message.harbor = Some(Harbor {
                instance_id: self.instance.map(|instance| INSTANCES[instance].0.to_owned()),
                state: self.draining.then(|| "draining".to_owned()),
                since: self.since.map(|at| at.0),
                binding_id: self.proof.map(|(whose, _)| binding_id(whose).as_str().to_owned()),
                timestamp: self.proof.map(|(_, at)| at),
                ..Harbor::default()
            });
        }
        if let Some((whose, _)) = self.proof {
            let proof = secret().token(&binding_id(whose)).prove(&statement(&message, self.action));
            message.harbor.get_or_insert_default().proof = Some(proof);
        }
        message.to_bytes()
    }

    fn lives(&self) -> Duration {
        match self.lives {
            Some(30) => Duration::from_secs(30),
            _ => STALE_AFTER,
        }
    }

    fn origin(&self, wall: Timestamp) -> Origin {
        let updated_at = self.updated_at.filter(|at| at.0 <= wall.0 + 5_000_000);
        Origin { app: self.app, app_instance: self.app_instance, updated_at }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Origin {
    app: Option<usize>,
    app_instance: Option<&'static str>,
    updated_at: Option<Timestamp>,
}

impl Origin {
    fn is_same(&self, other: &Self) -> bool {
        (self.app, self.app_instance) == (other.app, other.app_instance)
    }

    fn agrees(&self, other: &Self) -> bool {
        (self.app.is_none() || other.app.is_none() || self.app == other.app)
            && (self.app_instance.is_none() || other.app_instance.is_none() || self.app_instance == other.app_instance)
    }

    fn is_later_than(&self, other: &Self) -> bool {
        self.is_same(other) && self.updated_at.zip(other.updated_at).is_some_and(|(this, other)| this > other)
    }
}

/// The better the lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    App(usize),
    Binding(Whose),
    Trusted,
}

impl Why {
    fn rank(self) -> u8 {
        match self {
            Self::App(_) => 0,
            Self::Binding(_) => 1,
            Self::Trusted => 2,
        }
    }

    fn app(self) -> Option<usize> {
        match self {
            Self::App(app) => Some(app),
            Self::Binding((app, _)) => app,
            Self::Trusted => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    instance: usize,
    transport: Transport,
    address: SocketAddr,
    why: Why,
    origin: Origin,
    draining: bool,
    lives: Duration,
    expires_at: Instant,
    since: Timestamp,
}

impl Member {
    fn is(&self, instance: usize, transport: Transport, address: SocketAddr) -> bool {
        (self.instance, self.transport, self.address) == (instance, transport, address)
    }
}

/// Whose an address of the cell is, and until when that is known.
#[derive(Debug, Clone, Copy)]
struct Given {
    app: usize,
    app_instance: Option<&'static str>,
    expires_at: Instant,
}

#[derive(Debug, Clone)]
struct Withdrawn {
    instance: usize,
    transport: Transport,
    address: SocketAddr,
    origin: Origin,
    forget_at: Instant,
}

/// What may be behind each port.
#[derive(Debug, Default)]
struct Model {
    members: Vec<Member>,
    withdrawn: Vec<Withdrawn>,
    given: BTreeMap<SocketAddr, Given>,
    bindings: Bindings,
    suspended_until: Option<Instant>,
}

impl Model {
    fn hear(&mut self, said: &Said, now: Instant, wall: Timestamp) {
        let host: IpAddr = said.host.parse().unwrap();
        let router =
            (said.source == Source::Router && said.host == CELL).then(|| SocketAddr::new(host, said.port.unwrap()));
        if said.action == Action::Register {
            if let Some(address) = router {
                self.given.remove(&address);
                if let Some(app) = said.app {
                    let given = Given { app, app_instance: said.app_instance, expires_at: now + said.lives() };
                    self.given.insert(address, given);
                }
            }
            if said.source != Source::Harbor && (said.app.is_some() || router.is_some()) {
                // Another's now: what is not known to be that one's goes.
                let is_meant =
                    |address: SocketAddr| address.ip() == host && said.port.is_none_or(|port| address.port() == port);
                self.members.retain(|member| {
                    let known = member.why.app().or(member.origin.app);
                    !is_meant(member.address) || (known.is_some() && known == said.app)
                });
            }
        }
        self.judge(said, host, now, wall);
        if let (Some(address), Some(app), Action::Unregister) = (router, said.app, said.action) {
            let is_theirs = self.given.get(&address).is_some_and(|given| {
                let agree = given.app_instance.is_none() || said.app_instance.is_none();
                given.app == app && (agree || given.app_instance == said.app_instance)
            });
            if is_theirs {
                self.given.remove(&address);
                self.members.retain(|member| member.address != address);
            }
        }
    }

    fn judge(&mut self, said: &Said, host: IpAddr, now: Instant, wall: Timestamp) {
        let by_app = || {
            let app = said.app.filter(|_| said.source == Source::Router)?;
            let bound = self.bindings.iter().filter(|(bound, _)| *bound == Some(app)).map(|(_, instance)| *instance);
            let bound = bound.collect::<Vec<_>>();
            (bound.len() == 1 && INSTANCES[bound[0]].3).then(|| bound[0])
        };
        let Some(instance) = said.instance.or_else(by_app) else { return };
        let is_bound = |app: &usize| self.bindings.contains(&(Some(*app), instance));
        let is_proven = |(whose, at): &(Whose, i64)| {
            let lives = i64::try_from(said.lives().as_secs()).unwrap();
            whose.1 == instance && self.bindings.contains(whose) && (-5..=lives).contains(&(wall.seconds() - at))
        };
        let why = if let Some(app) = said.app.filter(is_bound) {
            Why::App(app)
        } else if let Some((whose, _)) = said.proof.filter(is_proven) {
            Why::Binding(whose)
        } else if said.host == TRUSTED {
            Why::Trusted
        } else {
            return;
        };
        let address = SocketAddr::new(host, said.port.unwrap_or(INT_PORT));
        let transports = INSTANCES[instance].2.transports();
        let mut origin = said.origin(wall);
        origin.app = why.app().or(origin.app);
        if said.action == Action::Unregister {
            return transports.iter().for_each(|transport| self.withdraw(instance, *transport, address, origin, now));
        }
        let owner = self.given.get(&address).map(|given| given.app);
        if said.host == CELL && (owner.is_none() || owner != why.app()) {
            return;
        }
        let mut new = 0;
        for transport in transports {
            let known = self.members.iter().find(|member| member.is(instance, *transport, address));
            let withdrawn = self.withdrawn.iter();
            let mut withdrawn = withdrawn
                .filter(|gone| (gone.instance, gone.transport, gone.address) == (instance, *transport, address));
            if known.is_some_and(|known| known.origin.is_later_than(&origin))
                || withdrawn.any(|gone| gone.origin.is_later_than(&origin))
            {
                return;
            }
            new += usize::from(known.is_none());
        }
        if self.members.iter().filter(|member| member.instance == instance).count() + new > MAX_BACKENDS {
            return;
        }
        let since = said.since.filter(|at| at.0 > 0).or(origin.updated_at).map(|at| at.min(wall));
        for transport in transports {
            self.withdrawn
                .retain(|gone| (gone.instance, gone.transport, gone.address) != (instance, *transport, address));
            let mut member = Member {
                instance,
                transport: *transport,
                address,
                why,
                origin,
                draining: said.draining,
                lives: said.lives(),
                expires_at: now + said.lives(),
                since: since.unwrap_or(wall),
            };
            let known = self.members.iter().position(|known| known.is(instance, *transport, address));
            match known.map(|at| &mut self.members[at]) {
                None => self.members.push(member),
                Some(known) if known.why == why => {
                    if known.origin.is_same(&origin) {
                        member.origin.updated_at = origin.updated_at.or(known.origin.updated_at);
                    }
                    member.since = since.map_or(known.since, |since| since.min(known.since));
                    *known = member;
                }
                Some(known) if known.why.rank() < why.rank() => {
                    known.expires_at = known.expires_at.max(member.expires_at);
                }
                Some(known) => *known = member,
            }
        }
    }

    fn withdraw(&mut self, instance: usize, transport: Transport, address: SocketAddr, origin: Origin, now: Instant) {
        let Some(at) = self.members.iter().position(|member| member.is(instance, transport, address)) else { return };
        let known = &self.members[at];
        if known.origin.agrees(&origin) && !known.origin.is_later_than(&origin) {
            let forget_at = now + known.lives;
            self.members.remove(at);
            if origin.updated_at.is_some() {
                self.withdrawn.push(Withdrawn { instance, transport, address, origin, forget_at });
            }
        }
    }

    fn sweep(&mut self, now: Instant) {
        self.withdrawn.retain(|gone| gone.forget_at > now);
        if self.suspended_until.is_some_and(|until| now < until) {
            return;
        }
        self.members.retain(|member| member.expires_at > now);
        let (known, forgotten) =
            std::mem::take(&mut self.given).into_iter().partition(|(_, given)| given.expires_at > now);
        self.given = known;
        self.members.retain(|member| !forgotten.contains_key(&member.address));
    }

    fn nats_is_back(&mut self, now: Instant) {
        if self.suspended_until.take().is_some() {
            for member in &mut self.members {
                member.expires_at = member.expires_at.max(now + member.lives);
            }
            for given in self.given.values_mut() {
                given.expires_at = given.expires_at.max(now + STALE_AFTER);
            }
        }
    }

    fn hold_against_bindings(&mut self) {
        let bindings = &self.bindings;
        self.members.retain(|member| match member.why {
            Why::App(app) => bindings.contains(&(Some(app), member.instance)),
            Why::Binding(whose) => bindings.contains(&whose),
            Why::Trusted => true,
        });
    }

    /// What the real one must show of a service instance, in order.
    fn shown(&self, instance: usize) -> Vec<&Member> {
        let mut members = self.members.iter().filter(|member| member.instance == instance).collect::<Vec<_>>();
        members.sort_by_key(|member| (member.since, member.transport, member.address));
        members
    }
}

/// The real one, and the clock that it goes by.
pub struct Real {
    pub discovery: Arc<Discovery>,
    pub backends: Backends,
    directory: watch::Sender<Arc<Directory>>,
    pub clock: Arc<Hands>,
}

impl Real {
    pub fn new(bindings: &Bindings) -> Self {
        let clock =
            Arc::new(Hands { now: Mutex::new(Instant::now()), wall_micros: AtomicI64::new(1_700_000_000_000_000) });
        let (directory, receiver) = watch::channel(Arc::new(directory(bindings)));
        let backends = Backends::new(MAX_BACKENDS);
        let settings = Settings {
            rules: rules(),
            prune_every: Duration::from_secs(30),
            prune_suspend_max: SUSPEND_MAX,
            token_networks: Vec::new(),
        };
        let (discovery, _) = Discovery::new(
            settings,
            backends.clone(),
            receiver,
            Arc::clone(&clock) as Arc<dyn Clock>,
            Metrics::new().discovery,
        );
        Self { discovery, backends, directory, clock }
    }

    /// Lets both hear a word.
    fn hear(&self, (said, bytes): &(Said, Vec<u8>), model: &mut Model) {
        model.hear(said, self.clock.now(), self.clock.wall());
        self.discovery.receive(said.source, said.action, bytes);
    }

    /// Brings the bindings of the model into force.
    fn follow(&self, model: &mut Model) {
        model.hold_against_bindings();
        let directory = Arc::new(directory(&model.bindings));
        self.directory.send_replace(Arc::clone(&directory));
        self.discovery.hold_against(&directory, None);
    }

    /// Fails where it shows anything else than the model does.
    fn check(&self, model: &Model) {
        for (index, (id, ..)) in INSTANCES.into_iter().enumerate() {
            let id = ServiceInstanceId::new(id).unwrap();
            let known = model.shown(index);
            let (listed, slot) = (self.backends.list(&id), self.backends.slot(&id));
            let told = |why: Why| match why {
                Why::App(app) => Authority::App(AppId::new(APPS[app]).unwrap()),
                Why::Binding(whose) => Authority::Binding(binding_id(whose)),
                Why::Trusted => Authority::Trusted,
            };
            let expect = known.iter().map(|member| {
                (member.transport, member.address, told(member.why), member.draining, member.expires_at, member.since)
            });
            let shown = listed.iter().map(|state| {
                let (endpoint, draining) = (state.backend.endpoint, state.state == AnnouncedState::Draining);
                let authority = state.backend.authority.clone();
                (endpoint.transport, endpoint.address, authority, draining, state.expires_at, state.since)
            });
            assert_eq!(shown.collect::<Vec<_>>(), expect.collect::<Vec<_>>());
            for transport in [Transport::Tcp, Transport::Udp] {
                let wanted = known.iter().filter(|member| !member.draining && member.transport == transport);
                let wanted = wanted.map(|member| member.address).collect::<Vec<_>>();
                let set = slot.load();
                let set = set.of(transport).iter().map(|backend| backend.endpoint.address).collect::<Vec<_>>();
                assert_eq!(set, wanted, "new flows go to those that are not draining, the first announced first");
            }
        }
        let of = |transport| model.members.iter().filter(|member| member.transport == transport).count();
        let counts = self.backends.counts();
        assert_eq!((counts.tcp, counts.udp), (of(Transport::Tcp), of(Transport::Udp)));
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Say,
    /// A word that was said before comes again, late.
    Repeat,
    Bind,
    Wait,
    MoveWall,
    Sweep,
    LoseNats,
    FindNats,
}

const LIKELIHOODS: [(u32, Step); 8] = [
    (60, Step::Say),
    (10, Step::Repeat),
    (4, Step::Bind),
    (8, Step::Wait),
    (2, Step::MoveWall),
    (8, Step::Sweep),
    (2, Step::LoseNats),
    (3, Step::FindNats),
];

/// Steps of a history: each holds all sets against the model.
const WORDS: u32 = STEPS / 4;

/// Between two announcements, past a short life, past the longest one, past a suspension.
const PAUSES: [u64; 5] = [1, 20, 40, 130, 700];

#[test]
fn behind_each_port_is_what_the_model_says() {
    let most = Cell::new(0);
    run(|mut random| most.set(most.get().max(simulate(&mut random))));
    assert!(most.get() > MAX_BACKENDS, "histories that leave the sets almost empty show nothing: {most:?}");
}

/// Lives through one history. Returns the most backends that there were at a time.
fn simulate(random: &mut Rng) -> usize {
    let mut model = Model::default();
    for instance in 0..INSTANCES.len() {
        model.bindings.extend([(Some(instance), instance), (None, instance)]);
    }
    let real = Real::new(&model.bindings);
    let mut said: Vec<(Said, Vec<u8>)> = Vec::new();
    let mut most = 0;
    for _ in 0..WORDS {
        let (now, wall) = (real.clock.now(), real.clock.wall());
        match weighted(random, &LIKELIHOODS) {
            Step::Say => {
                let word = Said::random(random, wall);
                said.push((word, word.bytes()));
                real.hear(said.last().expect("it was said just now"), &mut model);
            }
            Step::Repeat => {
                let latest = said.len().saturating_sub(50);
                if let Some(again) = random.choice(&said[latest..]) {
                    real.hear(again, &mut model);
                }
            }
            Step::Bind => {
                let binding = whose(random);
                if !model.bindings.remove(&binding) {
                    model.bindings.insert(binding);
                }
                real.follow(&mut model);
            }
            Step::Wait => real.clock.wait(*random.choice(&PAUSES).expect("there are some")),
            Step::MoveWall => {
                let seconds = random.i64(-4000..4000);
                real.clock.wall_micros.fetch_add(seconds * 1_000_000, Ordering::Relaxed);
            }
            Step::Sweep => {
                model.sweep(now);
                real.discovery.sweep();
            }
            Step::LoseNats => {
                model.suspended_until.get_or_insert(now + SUSPEND_MAX);
                real.discovery.nats_is_away();
            }
            Step::FindNats => {
                model.nats_is_back(now);
                real.discovery.nats_is_back();
            }
        }
        real.check(&model);
        most = most.max(model.members.len());
    }
    // Nobody speaks any more.
    real.discovery.nats_is_back();
    model.nats_is_back(real.clock.now());
    real.clock.wait(STALE_AFTER.as_secs());
    real.discovery.sweep();
    model.sweep(real.clock.now());
    real.check(&model);
    assert!(model.members.is_empty() && model.given.is_empty());
    most
}
