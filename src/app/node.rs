//! One node, from its lock to its last connection.
//!
//! Start: lock and store → snapshot → all ports bound or failed → last-known backends → NATS → ready → broker. A
//! broker that answers therefore has its ports open. The end is the same way back, with time for what is open.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    sync::{mpsc, watch},
    task::block_in_place,
    time::sleep,
};
use uuid::Uuid;

use super::{
    apis::Apis,
    clock::SystemClock,
    drain,
    drained::Drained,
    flows::FlowLines,
    handover::{Estate, Predecessor, Program},
    infrastructure, live, lookout, machine,
    reload::{self, Reloadable},
    settings,
    signals::{Signals, Told},
    sockets::Sockets,
    tasks::Tasks,
};
use crate::{
    admin::{self, RestartRequest, SettingsRequest, wire::ConfigurationKey},
    backends::{Backend, Backends},
    broker,
    cluster::{self, Cluster, Ears},
    config::{self, Config, Sources},
    control::{Control, Disagreement},
    discovery::{self, Discovery, Relays},
    forwarder::{Forwarder, PortSockets, Surroundings},
    health::{checks, last_known, probe::Connect},
    host::{self, ServiceManager},
    model::{
        Clock, PoolName, ServiceInstanceId,
        desired::DesiredState,
        member::{Members, Report},
        observed::{Link, Mode, Observations},
    },
    store::{self, AnyStore},
    telemetry::{log::Log, metrics::Metrics},
};

/// How long it is waited before a store that is away is tried again.
const OPEN_AGAIN: Duration = Duration::from_secs(1);

/// How long a hot restart's new process may take to bring the schema up to date: the APIs of the old one stand still. One
/// that takes longer is for `harbor migrate`, beside the running node.
const SUCCESSOR_MIGRATES_WITHIN: Duration = Duration::from_secs(5);

/// Of so many such attempts one is a warning in the log.
const ATTEMPTS_PER_WARNING: u64 = 30;

/// How long the operators' API may take to finish its requests, after everything else has ended.
const ADMIN_STOPS_WITHIN: Duration = Duration::from_secs(1);

/// Changes of live settings that may wait.
const MAX_SETTINGS_REQUESTS: usize = 8;

/// How long until live settings that could not be taken over are tried once more.
const FOLLOW_AGAIN: Duration = Duration::from_secs(5);

/// How long until a store that could not be opened again is tried once more.
const TAKE_BACK_AGAIN: Duration = Duration::from_secs(1);

mod restart;

use restart::Restart;

/// What a node starts from, besides its configuration.
#[derive(Debug)]
pub(super) struct Start {
    /// What a hot restart runs.
    pub(super) program: Program,
    /// What the service manager has kept of an earlier process that died.
    pub(super) kept: Estate,
}

/// The parts of a node, joined.
struct Node {
    identity: cluster::Settings,
    program: Program,
    manager: Arc<ServiceManager>,
    sockets: Arc<Sockets>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    store: AnyStore,
    backends: Backends,
    forwarder: Arc<Forwarder>,
    flow_lines: Arc<FlowLines>,
    observations: watch::Receiver<Arc<Observations>>,
    control: Arc<Control>,
    ears: Ears,
    discovery: Arc<Discovery>,
    /// Where the parts are that Harbor itself uses.
    infrastructure: BTreeSet<SocketAddr>,
    relays: Option<Relays>,
    passwords: Arc<broker::Passwords>,
    admin_token: admin::Token,
    metrics_token: Option<admin::Token>,
    mode: watch::Sender<Mode>,
}

/// What runs on a node's parts, by when it is ended.
struct Running<'a> {
    config: Config,
    reach: Reloadable<'a>,
    apis: Apis,
    served: watch::Receiver<BTreeSet<PoolName>>,
    store_link: watch::Sender<Link>,
    /// What an operator's wish changes.
    wishes: Tasks,
    /// The APIs that change something.
    doors: Tasks,
    /// What only one process may do on a store and a data directory.
    keepers: Tasks,
    /// The parts behind the APIs.
    parts: Tasks,
    /// The operators' API.
    admin: Tasks,
}

/// Why a node no longer serves.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    /// It was told to end.
    Ended,
    /// Another process serves.
    HandedOver,
}

/// Runs a node until it is told to end, or until another process has taken its place. It takes the place of
/// `predecessor`, which is gone as soon as it has.
pub(super) async fn run(
    config: Config,
    sources: &Sources,
    log: &Log,
    mut signals: Signals,
    start: Start,
    predecessor: &mut Option<Predecessor>,
) -> anyhow::Result<()> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    machine::make_data_dir(&config)?;
    let metrics = Arc::new(Metrics::new());
    let Start { program, kept } = start;
    let estate = match predecessor {
        Some(predecessor) => predecessor.estate().await?,
        None => kept,
    };
    let Estate { store: inherited, apis, ports, threads } = estate;
    // Its lock keeps a second process on the same data from touching anything.
    // A successor that cannot open it leaves the old one serving: that is better than to wait.
    let patient = predecessor.is_none();
    let Some(store) = open_store(&config, &metrics, inherited, patient, &mut signals).await? else { return Ok(()) };
    let outcome = async {
        let (config, told) = tokio::select! {
            config = with_live_settings(&store, sources, patient) => config?,
            () = signals.end() => return Ok(()),
        };
        host::raise_descriptor_limit();
        let manager = Arc::new(ServiceManager::from_environment());
        let apis = Apis::bind(&config, apis, &manager).await?;
        let rest = (program, manager, ports, threads);
        let node = tokio::select! {
            node = Node::join(&config, sources, Arc::clone(&store), patient, metrics, &apis, rest) => node?,
            () = signals.end() => return Ok(()),
        };
        log.set_level(&config.log.level).context("the log level cannot be set")?;
        node.serve((config, told), sources, log, apis, &mut signals, predecessor).await
    };
    let outcome = outcome.await;
    store.close().await;
    outcome
}

/// Opens the store; one that is away is waited for, as after a power failure of everything, unless the process is told to
/// end.
async fn open_store(
    config: &Config,
    metrics: &Metrics,
    mut inherited: Option<OwnedFd>,
    patient: bool,
    signals: &mut Signals,
) -> anyhow::Result<Option<AnyStore>> {
    let mut settings = settings::store(config);
    if !patient {
        settings.migrate_within = SUCCESSOR_MIGRATES_WITHIN;
    }
    for attempt in 0_u64.. {
        let opened = tokio::select! {
            opened = store::open(&settings, Arc::clone(&metrics.store), inherited.take()) => opened,
            () = signals.end() => break,
        };
        match opened {
            Ok(store) => return Ok(Some(store)),
            Err(error) if !patient => return Err(error.into()),
            Err(error) if error.passes() && attempt % ATTEMPTS_PER_WARNING == 0 => {
                tracing::warn!(%error, "waiting for the store: nothing is served before it can be opened");
            }
            Err(error) if error.passes() => {}
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = sleep(OPEN_AGAIN) => {}
            () = signals.end() => break,
        }
    }
    Ok(None)
}

/// The configuration with what operators have set for all nodes, and what each key is.
async fn with_live_settings(
    store: &AnyStore,
    sources: &Sources,
    patient: bool,
) -> anyhow::Result<(Config, (Arc<[ConfigurationKey]>, Option<config::Text>))> {
    let patient = patient && store.serves_many();
    let (_, settings) = ask(patient, store::Fault::passes, async || store.settings().await).await?;
    let text = config::Text::of(sources)?;
    let loaded = config::load_from(text.as_ref(), &live::with_settings(sources, &settings));
    let (config, explained) = loaded.with_context(|| {
        format!(
            "the configuration cannot be used with the live settings of this store ({}): change it so that it can, and start",
            live::told(&settings)
        )
    })?;
    Ok((config, (live::told_keys(explained, &settings, &[]), text)))
}

/// Takes over the live settings that the nodes have. What stands in the way may pass: it is tried again, and told once.
async fn follow(running: &mut Running<'_>) {
    let Err(reason) = reload::take_over_settings(&mut running.config, &running.reach).await else { return };
    running.reach.behind.send_if_modified(|known| {
        let is_new = known.as_ref() != Some(&reason);
        if is_new {
            tracing::error!(%reason, "live settings were not taken over: the other nodes go on without this one");
            *known = Some(reason);
        }
        is_new
    });
}

/// Asks a store, and again while it is away and `patient`: one that was there a moment ago can be lost in any call.
async fn ask<T, E: std::fmt::Display>(
    patient: bool,
    passes: impl Fn(&E) -> bool,
    mut question: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, E> {
    let mut attempt = 0_u64;
    loop {
        match question().await {
            Err(error) if patient && passes(&error) => {
                if attempt.is_multiple_of(ATTEMPTS_PER_WARNING) {
                    tracing::warn!(%error, "waiting for the store: nothing is served before it answers");
                }
                attempt += 1;
                sleep(OPEN_AGAIN).await;
            }
            outcome => return outcome,
        }
    }
}

impl Node {
    /// Makes the parts and joins them. The threads that forward run; nothing is bound yet.
    async fn join(
        config: &Config,
        sources: &Sources,
        store: AnyStore,
        patient: bool,
        metrics: Arc<Metrics>,
        apis: &Apis,
        (program, manager, ports, threads): (Program, Arc<ServiceManager>, PortSockets, Option<usize>),
    ) -> anyhow::Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let token_file = config.admin.token_file.clone();
        let token_file = token_file.unwrap_or_else(|| config.node.data_dir.join(admin::wire::TOKEN_FILE_NAME));
        let admin_token = admin::Token::load_or_make(&token_file)?;
        let metrics_token = config.admin.metrics_token_file.as_deref().map(admin::Token::load_or_make).transpose()?;
        let backends = Backends::new(config.discovery.max_backends);
        let (observe, observations) = watch::channel(Arc::new(Observations::default()));
        let sockets = Arc::new(Sockets::new(ports, Arc::clone(&manager)));
        let flow_lines = Arc::new(FlowLines::new(Arc::clone(&metrics.forwarder)));
        let surroundings = Surroundings {
            binder: Arc::<Sockets>::clone(&sockets),
            backends: backends.clone(),
            clock: Arc::clone(&clock),
            metrics: Arc::clone(&metrics.forwarder),
            holders: Box::new(machine::holders),
            observe: Box::new(move |observed| drop(observe.send_replace(observed))),
            closed: Box::new({
                let lines = Arc::clone(&flow_lines);
                move |record| lines.ended(record)
            }),
        };
        let forwarder = Forwarder::start(settings::forwarder(config, threads), surroundings)
            .context("the threads that forward cannot be started")?;
        // What is wrong with a file on this machine does not pass by itself.
        let patient = patient && store.serves_many();
        let members = ask(patient, store::Fault::passes, async || store.members().await).await?;
        let members = Arc::new(Members::presumed_alive(members));
        if members.wants_drained(&config.node.id) {
            // Before anything is bound.
            forwarder.close_listeners();
        }
        let ears = Ears { members: watch::Sender::new(members), changed: watch::Sender::default() };
        let passes = |why: &Disagreement| matches!(why, Disagreement::Fault(fault) if fault.passes());
        let identity = cluster::Settings {
            node: config.node.id.clone(),
            incarnation: Uuid::new_v4().to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let control = ask(patient, passes, async || {
            let pools = config.node.pools.iter().map(|pool| pool.name.clone()).collect();
            let member = identity.member(pools, Report::default(), clock.wall());
            Control::open(
                settings::control(config),
                Arc::clone(&store),
                Arc::clone(&clock),
                observations.clone(),
                ears.members.subscribe(),
                Arc::clone(&metrics.control),
                async || store.join(&member).await,
            )
            .await
        })
        .await?;
        let infrastructure = infrastructure::addresses(config).await;
        let (discovery, relays) = Discovery::new(
            settings::discovery(
                config,
                &control.pools().borrow(),
                sources.own_address,
                apis.addresses(),
                infrastructure.clone(),
            ),
            backends.clone(),
            control.directory(),
            Arc::clone(&clock),
            Arc::clone(&metrics.discovery),
        );
        let (username, passwords) = settings::login(&config.broker);
        Ok(Self {
            identity,
            program,
            manager,
            sockets,
            clock,
            metrics,
            store,
            backends,
            forwarder: Arc::new(forwarder),
            flow_lines,
            observations,
            control,
            ears,
            discovery,
            infrastructure,
            relays: Some(relays),
            passwords: Arc::new(broker::Passwords::new(&username, &passwords)),
            admin_token,
            metrics_token,
            mode: watch::Sender::new(Mode::Starting),
        })
    }

    /// Starts what has to run, does what the process is told, and ends it all in order.
    async fn serve(
        mut self,
        (config, (configuration, text)): (Config, (Arc<[ConfigurationKey]>, Option<config::Text>)),
        sources: &Sources,
        log: &Log,
        apis: Apis,
        signals: &mut Signals,
        predecessor: &mut Option<Predecessor>,
    ) -> anyhow::Result<()> {
        let (serve_pools, served) = watch::channel(self.control.served());
        let reach = Reloadable {
            sources,
            log,
            control: Arc::clone(&self.control),
            discovery: Arc::clone(&self.discovery),
            forwarder: Arc::clone(&self.forwarder),
            own_apis: apis.addresses(),
            infrastructure: self.infrastructure.clone(),
            passwords: Arc::clone(&self.passwords),
            certificates: apis.certificates(),
            served: serve_pools,
            configuration: watch::Sender::new(configuration),
            behind: watch::Sender::default(),
            text: Mutex::new(text),
        };
        let store_link = watch::Sender::new(Link::Up(self.clock.wall()));
        let nats_link = watch::Sender::new(match config.nats {
            None => Link::Absent,
            Some(_) => Link::Down(self.clock.wall(), "not connected yet".into()),
        });
        let (ask_restart, mut requests) = mpsc::channel(1);
        let (ask_settings, mut settings) = mpsc::channel(MAX_SETTINGS_REQUESTS);
        let asks = (ask_restart, ask_settings);
        let router = self.admin_router(&config, store_link.subscribe(), nats_link.subscribe(), &reach, asks);
        let [wishes, doors, keepers, parts, admin] = std::array::from_fn(|_| Tasks::default());
        let mut running = Running { config, reach, apis, served, store_link, wishes, doors, keepers, parts, admin };

        let mut admin_router = Some(router);
        if predecessor.is_none() {
            // Otherwise it is the predecessor that answers until this process serves.
            running.apis.admin.serve(admin_router.take().expect("just made"), &mut running.admin)?;
        }
        self.start_parts(&mut running);
        self.start_keepers(&mut running);
        let ready = tokio::select! {
            () = signals.end() => Ok(false),
            ended = running.parts.ended() => Err(ended),
            ended = running.keepers.ended() => Err(ended),
            ready = self.become_ready(&running.config, predecessor.as_ref()) => ready.map(|()| true),
        };
        let outcome = match ready {
            Ok(true) => {
                let drained = self.drained(&running.config);
                self.mode.send_replace(if drained.is_wanted() { Mode::Draining } else { Mode::Serving });
                running.wishes.spawn("drain and resume", |stop| drained.run(stop));
                if let Some(router) = admin_router {
                    running.apis.admin.serve(router, &mut running.admin)?;
                }
                self.open_doors(&mut running)?;
                if let Some(predecessor) = predecessor.take() {
                    predecessor.serving().await;
                }
                self.start_discovery(&mut running, sources, nats_link);
                self.manager.ready();
                tracing::info!(node = %running.config.node.id, "ready");
                machine::judge(&running.config);
                self.attend(&mut running, signals, &mut requests, &mut settings).await
            }
            Ok(false) => Ok(Left::Ended),
            Err(error) => Err(error),
        };
        // Whoever waits is told that it ends.
        drop((requests, settings));
        self.end(running, signals, outcome).await
    }

    /// Ends it all in order.
    async fn end(
        self,
        running: Running<'_>,
        signals: &mut Signals,
        outcome: anyhow::Result<Left>,
    ) -> anyhow::Result<()> {
        let Running { config, apis, mut wishes, mut doors, mut keepers, mut parts, mut admin, .. } = running;
        wishes.end().await;
        // Whoever serves them still has them open.
        drop(apis);
        let limits = &config.forwarder.limits;
        match outcome {
            Ok(Left::HandedOver) => {
                block_in_place(|| self.forwarder.let_go());
                let others = async {
                    admin.end().await;
                    parts.end().await;
                };
                tokio::join!(others, drain::finish(&self.forwarder, limits, signals));
            }
            _ => {
                self.manager.stopping();
                self.mode.send_replace(Mode::Draining);
                let close_doors = async {
                    doors.end().await;
                    self.control.close().await;
                };
                drain::drain(&self.forwarder, limits, signals, close_doors).await;
                keepers.end().await;
                parts.end().await;
            }
        }
        let forwarder = self.forwarder;
        tokio::task::spawn_blocking(move || forwarder.stop()).await.context("the threads that forward have failed")?;
        self.flow_lines.tell_left_out();
        // Whoever has asked only half by now gets no answer.
        let _ = tokio::time::timeout(ADMIN_STOPS_WITHIN, admin.end()).await;
        tracing::info!("ended");
        outcome.map(drop)
    }

    /// Starts what works on the node's parts from the first moment on.
    fn start_parts(&self, running: &mut Running<'_>) {
        running.parts.spawn("forwarder", |stop| lookout::forwarder(Arc::clone(&self.forwarder), stop));
        running.parts.spawn("flow lines", |stop| Arc::clone(&self.flow_lines).tell(stop));
        running.parts.spawn("forwarding", |stop| {
            let work = forward(self.control.desired(), Arc::clone(&self.forwarder), self.backends.clone());
            async move {
                let _ = stop.run_until_cancelled(work).await;
            }
        });
    }

    /// Starts what only one process may do on a store and a data directory.
    fn start_keepers(&self, running: &mut Running<'_>) {
        let mut keepers = Tasks::default();
        keepers.spawn("store link", |stop| {
            lookout::store(Arc::clone(&self.store), Arc::clone(&self.clock), running.store_link.clone(), stop)
        });
        keepers.spawn("refresh", {
            let (control, changed) = (Arc::clone(&self.control), self.ears.changed.subscribe());
            |stop| control.follow(changed, stop)
        });
        keepers.spawn("cluster", |stop| self.cluster(running.served.clone()).run(stop));
        if *self.mode.borrow() != Mode::Starting {
            self.start_last_known(&running.config, &mut keepers);
        }
        running.keepers = keepers;
    }

    /// Keeps the last-known file, from when it has been read.
    fn start_last_known(&self, config: &Config, keepers: &mut Tasks) {
        keepers.spawn("last-known backends", |stop| {
            let path = config.node.data_dir.join(last_known::FILE_NAME);
            last_known::keep(path, self.backends.clone(), Arc::clone(&self.clock), stop)
        });
    }

    /// Serves the APIs that change something.
    fn open_doors(&self, running: &mut Running<'_>) -> anyhow::Result<()> {
        running.doors = Tasks::default();
        let (control, passwords) = (Arc::clone(&self.control), Arc::clone(&self.passwords));
        let broker = broker::router(control, passwords, Arc::clone(&self.metrics.broker));
        running.apis.broker.serve(broker, &mut running.doors)?;
        if let Some(api) = &running.apis.announce {
            api.serve(discovery::announce_router(Arc::clone(&self.discovery)), &mut running.doors)?;
        }
        Ok(())
    }

    /// Does what the process is told until it no longer is the one that serves, or a task ends by itself.
    async fn attend(
        &self,
        running: &mut Running<'_>,
        signals: &mut Signals,
        requests: &mut mpsc::Receiver<RestartRequest>,
        settings: &mut mpsc::Receiver<SettingsRequest>,
    ) -> anyhow::Result<Left> {
        let (mut live, mut pools) = (running.reach.control.settings(), running.reach.control.pools());
        // Something may have changed since the start began.
        live.mark_changed();
        pools.mark_changed();
        loop {
            let asked = tokio::select! {
                Ok(()) = pools.changed() => {
                    reload::take_over_pools(&running.config, &running.reach);
                    continue;
                }
                Ok(()) = live.changed() => {
                    let wanted = live::of_configuration(&live.borrow_and_update());
                    if wanted != running.config.settings {
                        follow(running).await;
                    }
                    continue;
                }
                () = sleep(FOLLOW_AGAIN), if running.reach.behind.borrow().is_some() => {
                    follow(running).await;
                    continue;
                }
                Some(asked) = settings.recv() => {
                    live::change(asked, &mut running.config, &running.reach).await;
                    continue;
                }
                told = signals.next() => match told {
                    Told::End => return Ok(Left::Ended),
                    Told::Reload => {
                        reload::reload(&mut running.config, &running.reach).await;
                        continue;
                    }
                    Told::Restart => None,
                },
                Some(asked) = requests.recv() => Some(asked),
                ended = running.doors.ended() => return Err(ended),
                ended = running.keepers.ended() => return Err(ended),
                ended = running.parts.ended() => return Err(ended),
                ended = running.admin.ended() => return Err(ended),
            };
            match self.restart(running, signals, requests, asked).await {
                Restart::Done => return Ok(Left::HandedOver),
                Restart::Failed => {}
                Restart::ToldToEnd => return Ok(Left::Ended),
            }
        }
    }

    /// This node's part in the cluster.
    fn cluster(&self, served: watch::Receiver<BTreeSet<PoolName>>) -> Cluster {
        let forwarder = Arc::clone(&self.forwarder);
        let sources = cluster::Sources {
            mode: self.mode.subscribe(),
            observations: self.observations.clone(),
            desired: self.control.desired(),
            served,
            flows: Box::new(move || forwarder.open_flows()),
        };
        let ears = Ears { members: self.ears.members.clone(), changed: self.ears.changed.clone() };
        Cluster::new(self.identity.clone(), Arc::clone(&self.store), Arc::clone(&self.clock), sources, ears)
    }

    fn drained(&self, config: &Config) -> Drained {
        Drained {
            node: config.node.id.clone(),
            members: self.ears.members.subscribe(),
            desired: self.control.desired(),
            mode: self.mode.clone(),
            forwarder: Arc::clone(&self.forwarder),
        }
    }

    fn admin_router(
        &self,
        config: &Config,
        store: watch::Receiver<Link>,
        nats: watch::Receiver<Link>,
        reach: &Reloadable<'_>,
        (restart, change_settings): (mpsc::Sender<RestartRequest>, mpsc::Sender<SettingsRequest>),
    ) -> axum::Router {
        admin::router(admin::Sources {
            node: config.node.id.clone(),
            started_at: self.clock.wall(),
            clock: Arc::clone(&self.clock),
            mode: self.mode.subscribe(),
            control: Arc::clone(&self.control),
            observations: self.observations.clone(),
            members: self.ears.members.subscribe(),
            backends: self.backends.clone(),
            refusals: Box::new({
                let discovery = Arc::clone(&self.discovery);
                move || discovery.all_refusals()
            }),
            store,
            nats,
            cut_off_after: config.node.cut_off_after,
            restart,
            configuration: reach.configuration.subscribe(),
            settings_behind: reach.behind.subscribe(),
            change_settings,
            metrics: Arc::clone(&self.metrics),
            port_counts: Box::new({
                let forwarder = Arc::clone(&self.forwarder);
                move || forwarder.port_counts()
            }),
            token: self.admin_token.clone(),
            metrics_token: self.metrics_token.clone(),
            log_lines_lost: Box::new(reach.log.lost()),
            metrics_public: config.admin.metrics_public,
            metrics_instances: config.admin.metrics_instances,
        })
    }

    /// Waits until every port is bound or has failed, takes back the backends that the last process knew, and its sessions
    /// where it still runs. Then this process accepts and receives.
    async fn become_ready(&self, config: &Config, predecessor: Option<&Predecessor>) -> anyhow::Result<()> {
        let wanted = self.control.desired().borrow().revision;
        let applied = |observed: &Arc<Observations>| observed.applied.is_some_and(|applied| applied >= wanted);
        if self.observations.clone().wait_for(applied).await.is_err() {
            // The forwarder has failed at once: the node ends for that.
            return std::future::pending().await;
        }
        let directory = Arc::clone(&self.control.directory().borrow());
        let path = config.node.data_dir.join(last_known::FILE_NAME);
        let admits = |id: &ServiceInstanceId, backend: &Backend| self.discovery.admits(id, backend);
        // What the predecessor knew a moment ago needs no trying.
        let connect = predecessor.is_none().then(|| self.connect());
        let restored = last_known::restore(&path, &self.backends, &directory, admits, connect, &*self.clock).await;
        tracing::info!(?restored, "took back the last-known backends");
        let sessions = match predecessor {
            Some(predecessor) => predecessor.sessions().await?,
            None => Vec::new(),
        };
        block_in_place(|| {
            let taken = sessions.len();
            self.forwarder.import_sessions(sessions);
            self.forwarder.go_on();
            if predecessor.is_some() {
                tracing::info!(sessions = taken, "took over from a running process");
            }
        });
        self.sockets.close_rest();
        Ok(())
    }

    /// How backends are tried.
    fn connect(&self) -> Arc<Connect> {
        let forwarder = Arc::clone(&self.forwarder);
        Arc::new(move |backend| forwarder.connect(backend))
    }

    /// Lets announcements in, and backends expire.
    fn start_discovery(&mut self, running: &mut Running<'_>, sources: &Sources, link: watch::Sender<Link>) {
        let Running { config, parts, keepers, .. } = running;
        self.start_last_known(config, keepers);
        parts.spawn("backends", |stop| discovery::upkeep::run(Arc::clone(&self.discovery), stop));
        parts.spawn("health checks", |stop| {
            let (desired, clock) = (self.control.desired(), Arc::clone(&self.clock));
            let metrics = Arc::clone(&self.metrics.health);
            checks::run(self.backends.clone(), desired, self.connect(), clock, metrics, stop)
        });
        // Without NATS there is nobody to relay to.
        if let (Some(nats), Some(relays)) = (&config.nats, self.relays.take()) {
            let settings = settings::nats(config, nats, sources.own_address);
            parts.spawn("NATS", |stop| discovery::nats::run(Arc::clone(&self.discovery), relays, settings, link, stop));
        }
    }
}

/// Hands every desired state to the forwarder, for as long as both live.
async fn forward(mut desired: watch::Receiver<Arc<DesiredState>>, forwarder: Arc<Forwarder>, backends: Backends) {
    desired.mark_changed();
    while desired.changed().await.is_ok() {
        let latest = Arc::clone(&desired.borrow_and_update());
        backends.set_drain_timeout(latest.limits.drain_timeout);
        forwarder.apply(latest);
    }
}
