//! One node, from its lock to its last connection.
//!
//! Start: lock and store → snapshot → all ports bound or failed → last-known backends → NATS → ready → broker. A
//! broker that answers therefore has its ports open. The end is the same way back, with time for what is open.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::{sync::watch, time::sleep};
use uuid::Uuid;

use super::{
    apis::Apis,
    clock::SystemClock,
    drain,
    drained::Drained,
    infrastructure, lookout, machine,
    reload::{self, Reloadable},
    settings,
    signals::{Signals, Told},
    tasks::Tasks,
};
use crate::{
    admin,
    backends::{Backend, Backends},
    broker,
    cluster::{self, Cluster, Ears},
    config::{Config, Sources},
    control::Control,
    discovery::{self, Discovery, Relays},
    forwarder::{ClosingRecord, Forwarder, Surroundings, SystemBinder},
    health::{checks, last_known, probe::Connect},
    model::{
        Clock, PoolName, ServiceInstanceId,
        desired::DesiredState,
        member::Members,
        observed::{Link, Mode, Observations},
    },
    store::{self, AnyStore},
    telemetry::{log::Log, metrics::Metrics},
};

/// How long it is waited before a store that is away is tried again.
const OPEN_AGAIN: Duration = Duration::from_secs(1);

/// Of so many such attempts one is a warning in the log.
const ATTEMPTS_PER_WARNING: u64 = 30;

/// How long the operators' API may take to finish its requests, after everything else has ended.
const ADMIN_STOPS_WITHIN: Duration = Duration::from_secs(1);

/// The parts of a node, joined.
struct Node {
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    store: AnyStore,
    backends: Backends,
    forwarder: Arc<Forwarder>,
    observations: watch::Receiver<Arc<Observations>>,
    control: Arc<Control>,
    ears: Ears,
    discovery: Arc<Discovery>,
    /// Where the parts are that Harbor itself uses.
    infrastructure: BTreeSet<SocketAddr>,
    relays: Option<Relays>,
    passwords: Arc<broker::Passwords>,
    admin_token: admin::Token,
    mode: watch::Sender<Mode>,
}

/// Runs a node until it is told to end.
pub(super) async fn run(config: Config, sources: &Sources, log: &Log, mut signals: Signals) -> anyhow::Result<()> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    machine::prepare(&config);
    machine::make_data_dir(&config)?;
    let metrics = Arc::new(Metrics::new());
    // Its lock keeps a second process on the same data from touching anything.
    let Some(store) = open_store(&config, &metrics, &mut signals).await? else { return Ok(()) };
    let outcome = async {
        let apis = Apis::bind(&config).await?;
        let node = Node::join(&config, sources, Arc::clone(&store), metrics, &apis).await?;
        node.serve(config, sources, log, apis, &mut signals).await
    };
    let outcome = outcome.await;
    store.close().await;
    outcome
}

/// Opens the store; one that is away is waited for, as after a power failure of everything, unless the process is told to
/// end.
async fn open_store(config: &Config, metrics: &Metrics, signals: &mut Signals) -> anyhow::Result<Option<AnyStore>> {
    let settings = settings::store(config);
    for attempt in 0_u64.. {
        match store::open(&settings, Arc::clone(&metrics.store), None).await {
            Ok(store) => return Ok(Some(store)),
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

/// Each flow that ends is a line at the level `debug`: who came, where it went, how much, why it ended.
fn log_flow(record: &ClosingRecord<'_>) {
    tracing::debug!(
        target: "harbor::forwarder::flow",
        service_instance = %record.service_instance_id,
        transport = record.end.transport().as_str(),
        client = %record.client,
        backend = record.backend.map(tracing::field::display),
        lasted_ms = record.lasted.as_millis(),
        to_backend_bytes = record.to_backend,
        to_client_bytes = record.to_client,
        reason = record.end.as_str(),
        "flow ended"
    );
}

impl Node {
    /// Makes the parts and joins them. The threads that forward run; nothing is bound yet.
    async fn join(
        config: &Config,
        sources: &Sources,
        store: AnyStore,
        metrics: Arc<Metrics>,
        apis: &Apis,
    ) -> anyhow::Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let token_file = config.admin.token_file.clone();
        let token_file = token_file.unwrap_or_else(|| config.node.data_dir.join(admin::wire::TOKEN_FILE_NAME));
        let admin_token = admin::Token::load_or_make(&token_file)?;
        let backends = Backends::new(config.discovery.max_backends);
        let (observe, observations) = watch::channel(Arc::new(Observations::default()));
        let surroundings = Surroundings {
            binder: Arc::new(SystemBinder),
            backends: backends.clone(),
            clock: Arc::clone(&clock),
            metrics: Arc::clone(&metrics.forwarder),
            holder: Box::new(machine::holder),
            observe: Box::new(move |observed| drop(observe.send_replace(observed))),
            closed: Box::new(log_flow),
        };
        let forwarder = Forwarder::start(settings::forwarder(config), surroundings)
            .context("the threads that forward cannot be started")?;
        let members = Arc::new(Members::by_wall_clock(store.members().await?, clock.wall()));
        if members.wants_drained(&config.node.id) {
            // Before anything is bound.
            forwarder.close_listeners();
        }
        let ears = Ears { members: watch::Sender::new(members), changed: watch::Sender::default() };
        let control = Control::open(
            settings::control(config),
            Arc::clone(&store),
            Arc::clone(&clock),
            observations.clone(),
            ears.members.subscribe(),
            Arc::clone(&metrics.control),
        )
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
            clock,
            metrics,
            store,
            backends,
            forwarder: Arc::new(forwarder),
            observations,
            control,
            ears,
            discovery,
            infrastructure,
            relays: Some(relays),
            passwords: Arc::new(broker::Passwords::new(&username, &passwords)),
            admin_token,
            mode: watch::Sender::new(Mode::Starting),
        })
    }

    /// Starts what has to run, does what the process is told, and ends it all in order.
    async fn serve(
        mut self,
        mut config: Config,
        sources: &Sources,
        log: &Log,
        apis: Apis,
        signals: &mut Signals,
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
        };
        // By when they are ended: what an operator's wish changes, the APIs that change something, the parts behind
        // them, the operators' API.
        let (mut wishes, mut doors) = (Tasks::default(), Tasks::default());
        let (mut parts, mut admin) = (Tasks::default(), Tasks::default());
        let Apis { broker: broker_api, announce: announce_api, admin: admin_api } = apis;

        let store_link = watch::Sender::new(Link::Up(self.clock.wall()));
        let nats_link = watch::Sender::new(match config.nats {
            None => Link::Absent,
            Some(_) => Link::Down(self.clock.wall(), "not connected yet".into()),
        });
        admin_api.serve(self.admin_router(&config, store_link.subscribe(), nats_link.subscribe()), &mut admin);
        parts.spawn("store link", |stop| {
            lookout::store(Arc::clone(&self.store), Arc::clone(&self.clock), store_link, stop)
        });
        parts.spawn("forwarder", |stop| lookout::forwarder(Arc::clone(&self.forwarder), stop));
        parts.spawn("refresh", {
            let (control, changed) = (Arc::clone(&self.control), self.ears.changed.subscribe());
            |stop| control.follow(changed, stop)
        });
        parts.spawn("cluster", |stop| self.cluster(&config, served).run(stop));
        parts.spawn("forwarding", |stop| {
            let work = forward(self.control.desired(), Arc::clone(&self.forwarder), self.backends.clone());
            async move {
                let _ = stop.run_until_cancelled(work).await;
            }
        });

        let outcome = tokio::select! {
            () = signals.end() => Ok(()),
            ended = parts.ended() => Err(ended),
            () = self.become_ready(&config) => {
                self.start_discovery(&config, sources, nats_link, &mut parts);
                let drained = self.drained(&config);
                self.mode.send_replace(if drained.is_wanted() { Mode::Draining } else { Mode::Serving });
                wishes.spawn("drain and resume", |stop| drained.run(stop));
                let broker = broker::router(
                    Arc::clone(&self.control), Arc::clone(&self.passwords), Arc::clone(&self.metrics.broker),
                );
                broker_api.serve(broker, &mut doors);
                if let Some(api) = announce_api {
                    api.serve(discovery::announce_router(Arc::clone(&self.discovery)), &mut doors);
                }
                tracing::info!(node = %config.node.id, "ready");
                attend(&mut config, &reach, signals, [&mut doors, &mut parts, &mut admin]).await
            }
        };

        wishes.end().await;
        self.mode.send_replace(Mode::Draining);
        let close_doors = async {
            doors.end().await;
            self.control.close().await;
        };
        drain::drain(&self.forwarder, &config.forwarder.limits, signals, close_doors).await;
        parts.end().await;
        let forwarder = self.forwarder;
        tokio::task::spawn_blocking(move || forwarder.stop()).await.context("the threads that forward have failed")?;
        // Whoever has asked only half by now gets no answer.
        let _ = tokio::time::timeout(ADMIN_STOPS_WITHIN, admin.end()).await;
        tracing::info!("ended");
        outcome
    }

    /// This node's part in the cluster.
    fn cluster(&self, config: &Config, served: watch::Receiver<BTreeSet<PoolName>>) -> Cluster {
        let settings = cluster::Settings {
            node: config.node.id.clone(),
            incarnation: Uuid::new_v4().to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let forwarder = Arc::clone(&self.forwarder);
        let sources = cluster::Sources {
            mode: self.mode.subscribe(),
            observations: self.observations.clone(),
            desired: self.control.desired(),
            served,
            flows: Box::new(move || forwarder.open_flows()),
        };
        let ears = Ears { members: self.ears.members.clone(), changed: self.ears.changed.clone() };
        Cluster::new(settings, Arc::clone(&self.store), Arc::clone(&self.clock), sources, ears)
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

    fn admin_router(&self, config: &Config, store: watch::Receiver<Link>, nats: watch::Receiver<Link>) -> axum::Router {
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
            metrics: Arc::clone(&self.metrics),
            token: self.admin_token.clone(),
            metrics_public: config.admin.metrics_public,
        })
    }

    /// Waits until every port is bound or has failed, and takes back the backends that the last process knew.
    async fn become_ready(&self, config: &Config) {
        let wanted = self.control.desired().borrow().revision;
        let applied = |observed: &Arc<Observations>| observed.applied.is_some_and(|applied| applied >= wanted);
        if self.observations.clone().wait_for(applied).await.is_err() {
            // The forwarder has failed at once: the node ends for that.
            return std::future::pending().await;
        }
        let directory = Arc::clone(&self.control.directory().borrow());
        let path = config.node.data_dir.join(last_known::FILE_NAME);
        let admits = |id: &ServiceInstanceId, backend: &Backend| self.discovery.admits(id, backend);
        let connect = self.connect();
        let restored = last_known::restore(&path, &self.backends, &directory, admits, connect, &*self.clock).await;
        tracing::info!(?restored, "took back the last-known backends");
    }

    /// How backends are tried.
    fn connect(&self) -> Arc<Connect> {
        let forwarder = Arc::clone(&self.forwarder);
        Arc::new(move |backend| forwarder.connect(backend))
    }

    /// Lets announcements in, and backends expire.
    fn start_discovery(&mut self, config: &Config, sources: &Sources, link: watch::Sender<Link>, parts: &mut Tasks) {
        parts.spawn("backends", |stop| discovery::upkeep::run(Arc::clone(&self.discovery), stop));
        parts.spawn("last-known backends", |stop| {
            let path = config.node.data_dir.join(last_known::FILE_NAME);
            last_known::keep(path, self.backends.clone(), Arc::clone(&self.clock), stop)
        });
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

/// Does what the process is told until that is to end, or a task ends by itself.
async fn attend(
    config: &mut Config,
    reach: &Reloadable<'_>,
    signals: &mut Signals,
    [doors, parts, admin]: [&mut Tasks; 3],
) -> anyhow::Result<()> {
    let mut pools = reach.control.pools();
    pools.mark_changed();
    loop {
        tokio::select! {
            Ok(()) = pools.changed() => reload::take_over_pools(config, reach),
            told = signals.next() => match told {
                Told::End => return Ok(()),
                Told::Reload => reload::reload(config, reach).await,
            },
            ended = doors.ended() => return Err(ended),
            ended = parts.ended() => return Err(ended),
            ended = admin.ended() => return Err(ended),
        }
    }
}
