//! One node, from its lock to its last connection.
//!
//! Start: lock and store → snapshot → all ports bound or failed → last-known backends → NATS → ready → broker. A
//! broker that answers therefore has its ports open. The end is the same way back, with time for what is open.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    apis::Apis,
    clock::SystemClock,
    drain, infrastructure, links, machine,
    reload::{self, Reloadable},
    settings,
    signals::{Signals, Told},
};
use crate::{
    admin,
    backends::Backends,
    broker,
    config::{Config, Sources},
    control::Control,
    discovery::{self, Discovery},
    forwarder::{Forwarder, Surroundings, SystemBinder},
    health::last_known,
    model::{
        Clock,
        observed::{Link, Mode, Observations},
    },
    store::{self, AnyStore},
    telemetry::{log::Log, metrics::Metrics},
};

/// Tasks by the name of what they do. One that ends before it is told to is a fault of the node.
type Tasks = JoinSet<&'static str>;

/// Runs a node until it is told to end.
pub(super) async fn run(config: Config, sources: &Sources, log: &Log, signals: Signals) -> anyhow::Result<()> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    machine::prepare(&config);
    let metrics = Arc::new(Metrics::new());
    // Its lock keeps a second process on the same data from touching anything.
    let store = store::open(&config.store_url, &config.node.data_dir, Arc::clone(&metrics.store)).await?;
    let outcome = run_on(Arc::clone(&store), metrics, config, sources, log, signals).await;
    store.close().await;
    outcome
}

async fn run_on(
    store: AnyStore,
    metrics: Arc<Metrics>,
    config: Config,
    sources: &Sources,
    log: &Log,
    mut signals: Signals,
) -> anyhow::Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let apis = Apis::bind(&config).await?;
    let admin_token = admin::Token::load_or_make(&admin_token_file(&config))?;

    let backends = Backends::new(config.discovery.max_backends);
    let (observe, observations) = watch::channel(Arc::new(Observations::default()));
    let surroundings = Surroundings {
        binder: Arc::new(SystemBinder),
        backends: backends.clone(),
        clock: Arc::clone(&clock),
        metrics: Arc::clone(&metrics.forwarder),
        holder: Box::new(machine::holder),
        observe: Box::new(move |observed| drop(observe.send_replace(observed))),
    };
    let forwarder = Forwarder::start(settings::forwarder(&config), surroundings)
        .context("the threads that forward cannot be started")?;
    let forwarder = Arc::new(forwarder);
    let control =
        Control::open(settings::control(&config), Arc::clone(&store), Arc::clone(&clock), observations.clone()).await?;
    let (discovery, relays) = Discovery::new(
        settings::discovery(&config, sources.own_address, apis.addresses(), infrastructure::addresses(&config).await),
        backends.clone(),
        control.directory(),
        Arc::clone(&clock),
        Arc::clone(&metrics.discovery),
    );

    let mode = watch::Sender::new(Mode::Starting);
    let store_link = watch::Sender::new(Link::Up(clock.wall()));
    let nats_link = watch::Sender::new(match config.nats {
        None => Link::Absent,
        Some(_) => Link::Down(clock.wall(), "not connected yet".into()),
    });
    let (username, valid) = settings::login(&config.broker);
    let passwords = Arc::new(broker::Passwords::new(&username, &valid));
    let reach = Reloadable {
        sources,
        log,
        control: Arc::clone(&control),
        passwords: Arc::clone(&passwords),
        certificates: apis.certificates(),
    };
    let Apis { broker: broker_api, announce: announce_api, admin: admin_api } = apis;

    // What is stopped first, second and last.
    let (stop_apis, stop_parts, stop_admin) =
        (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let (mut api_tasks, mut parts, mut admin_tasks) = (Tasks::new(), Tasks::new(), Tasks::new());

    admin_api.serve(
        admin::router(admin::Sources {
            node: config.node.id.clone(),
            started_at: clock.wall(),
            clock: Arc::clone(&clock),
            mode: mode.subscribe(),
            control: Arc::clone(&control),
            observations: observations.clone(),
            backends: backends.clone(),
            store: store_link.subscribe(),
            nats: nats_link.subscribe(),
            metrics: Arc::clone(&metrics),
            token: admin_token,
            metrics_public: config.admin.metrics_public,
        }),
        &mut admin_tasks,
        stop_admin.clone(),
    );
    spawn(&mut parts, "store link", links::watch_store(store, Arc::clone(&clock), store_link, stop_parts.clone()));
    spawn(&mut parts, "control", {
        let (control, stop) = (Arc::clone(&control), stop_parts.clone());
        async move { control.follow(stop).await }
    });
    spawn(&mut parts, "forwarding", {
        forward(control.desired(), Arc::clone(&forwarder), backends.clone(), stop_parts.clone())
    });

    let mut running = config;
    let outcome = tokio::select! {
        () = signals.end() => Ok(()),
        () = ready(&control, observations, &running, &backends, &discovery, &*clock) => {
            spawn(&mut parts, "backends", discovery::upkeep::run(Arc::clone(&discovery), stop_parts.clone()));
            spawn(&mut parts, "last-known backends", {
                let path = running.node.data_dir.join(last_known::FILE_NAME);
                last_known::keep(path, backends.clone(), Arc::clone(&clock), stop_parts.clone())
            });
            if let Some(nats) = &running.nats {
                let settings = settings::nats(&running, nats, sources.own_address);
                let run = discovery::nats::run(
                    Arc::clone(&discovery), relays, settings, nats_link.clone(), stop_parts.clone(),
                );
                spawn(&mut parts, "NATS", run);
            }
            mode.send_replace(Mode::Serving);
            let router = broker::router(Arc::clone(&control), passwords, Arc::clone(&metrics.broker));
            broker_api.serve(router, &mut api_tasks, stop_apis.clone());
            if let Some(api) = announce_api {
                api.serve(discovery::announce_router(discovery), &mut api_tasks, stop_apis.clone());
            }
            tracing::info!(node = %running.node.id, "ready");
            attend(&mut running, &reach, &mut signals, [&mut api_tasks, &mut parts, &mut admin_tasks]).await
        }
    };

    mode.send_replace(Mode::Draining);
    let stop_apis = async {
        stop_apis.cancel();
        join(&mut api_tasks).await;
        control.close().await;
    };
    drain::drain(&forwarder, &running.forwarder.limits, &mut signals, stop_apis).await;
    stop_parts.cancel();
    join(&mut parts).await;
    tokio::task::spawn_blocking(move || forwarder.stop()).await.context("the threads that forward have failed")?;
    stop_admin.cancel();
    join(&mut admin_tasks).await;
    tracing::info!("ended");
    outcome
}

/// Waits until every port is bound or has failed, and takes back the backends that the last process knew.
async fn ready(
    control: &Control,
    mut observations: watch::Receiver<Arc<Observations>>,
    config: &Config,
    backends: &Backends,
    discovery: &Discovery,
    clock: &dyn Clock,
) {
    let wanted = control.desired().borrow().revision;
    let applied = |observed: &Arc<Observations>| observed.applied.is_some_and(|applied| applied >= wanted);
    if observations.wait_for(applied).await.is_err() {
        // The forwarder is gone: whoever attends to the tasks says so.
        return;
    }
    let directory = Arc::clone(&control.directory().borrow());
    let path = config.node.data_dir.join(last_known::FILE_NAME);
    let restored = last_known::restore(&path, backends, &directory, |address| discovery.admits(address), clock).await;
    tracing::info!(?restored, "took back the last-known backends");
}

/// Hands every desired state to the forwarder until `stop`.
async fn forward(
    mut desired: watch::Receiver<Arc<crate::model::desired::DesiredState>>,
    forwarder: Arc<Forwarder>,
    backends: Backends,
    stop: CancellationToken,
) {
    desired.mark_changed();
    while let Some(Ok(())) = stop.run_until_cancelled(desired.changed()).await {
        let latest = Arc::clone(&desired.borrow_and_update());
        backends.set_drain_timeout(latest.limits.drain_timeout);
        forwarder.apply(latest);
    }
}

/// Does what the process is told until that is to end, or a task ends by itself.
async fn attend(
    running: &mut Config,
    reach: &Reloadable<'_>,
    signals: &mut Signals,
    [apis, parts, admin]: [&mut Tasks; 3],
) -> anyhow::Result<()> {
    loop {
        let ended = tokio::select! {
            told = signals.next() => match told {
                Told::End => return Ok(()),
                Told::Reload => {
                    reload::reload(running, reach).await;
                    continue;
                }
            },
            Some(ended) = apis.join_next() => ended,
            Some(ended) = parts.join_next() => ended,
            Some(ended) = admin.join_next() => ended,
        };
        let part = ended.context("a part of the node has failed")?;
        anyhow::bail!("a part of the node has ended by itself: {part}");
    }
}

fn spawn(tasks: &mut Tasks, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
    tasks.spawn(async move {
        work.await;
        name
    });
}

async fn join(tasks: &mut Tasks) {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a part of the node has failed");
        }
    }
}

fn admin_token_file(config: &Config) -> std::path::PathBuf {
    config.admin.token_file.clone().unwrap_or_else(|| config.node.data_dir.join(admin::wire::TOKEN_FILE_NAME))
}
