//! A node: what `app` joins, less the listeners of its APIs and with a machine of the test's.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use harbor::{
    cluster::{self, Cluster, Ears},
    control::{self, Control},
    model::{
        Clock, NodeId, PoolName, Timestamp,
        desired::{DesiredState, ForwarderLimits},
        member::Members,
        observed::{Mode, Observations},
        plan::{Caps, Plan, PlanProtocol},
        pool::{Pool, PoolNames},
        protocol::Protocol,
    },
    store::AnyStore,
    telemetry::metrics::Metrics,
};
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::machine::{Bound, Machine, Opener};

/// The ports of the pool that all nodes serve, of the plans `tcp` and `both`.
pub const PORTS: std::ops::RangeInclusive<u16> = 20_100..=20_109;

/// Those of the pool that the first node does not serve, of the plan `games`.
pub const GAMES: std::ops::RangeInclusive<u16> = 20_110..=20_113;

/// How long a freed port rests.
const QUARANTINE: Duration = Duration::from_secs(3);

/// The clock of a node: it goes as the runtime's does, and shows a time of its own.
#[derive(Debug)]
pub struct SkewedClock {
    began: Instant,
    shows: Timestamp,
}

impl SkewedClock {
    /// One that is wrong by so many microseconds.
    pub fn new(wrong_by: i64) -> Self {
        Self { began: Instant::now(), shows: Timestamp(1_700_000_000_000_000 + wrong_by) }
    }
}

impl Clock for SkewedClock {
    fn now(&self) -> std::time::Instant {
        Instant::now().into_std()
    }

    fn wall(&self) -> Timestamp {
        self.shows.plus(self.began.elapsed())
    }
}

/// A process that is ready.
pub struct Running {
    pub control: Arc<Control>,
    pub bound: Arc<Mutex<Bound>>,
    pub observations: watch::Receiver<Arc<Observations>>,
    /// What runs beside the requests; ends with it.
    _tasks: JoinSet<()>,
}

/// What a process is started with.
pub struct Start {
    pub number: usize,
    pub incarnation: String,
    pub store: AnyStore,
    pub clock: Arc<dyn Clock>,
    pub machine: watch::Receiver<Machine>,
    pub metrics: Arc<Metrics>,
    pub random: fastrand::Rng,
}

impl Start {
    /// Starts it, as far as its being ready.
    pub async fn run(self) -> anyhow::Result<Running> {
        let Self { number, incarnation, store, clock, machine, metrics, random } = self;
        let members = Arc::new(Members::presumed_alive(store.members().await?));
        let closed = watch::Sender::new(members.wants_drained(&name(number)));
        let ears = Ears { members: watch::Sender::new(members), changed: watch::Sender::default() };
        let (observe, observations) = watch::channel(Arc::new(Observations::default()));
        let control = Control::open(
            settings(number),
            Arc::clone(&store),
            Arc::clone(&clock),
            observations.clone(),
            ears.members.subscribe(),
            Arc::clone(&metrics.control),
            async || Ok(()),
        )
        .await?;
        let (mode, bound) = (watch::Sender::new(Mode::Starting), Arc::<Mutex<Bound>>::default());
        let sources = cluster::Sources {
            mode: mode.subscribe(),
            observations: observations.clone(),
            desired: control.desired(),
            served: watch::channel(control.served()).1,
            flows: Box::new(|| 0),
        };
        let identity = cluster::Settings { node: name(number), incarnation, version: "0.1.0".into() };
        let wishes = ears.members.subscribe();
        let opener = Opener {
            machine,
            closed: closed.subscribe(),
            desired: control.desired(),
            observe,
            bound: Arc::clone(&bound),
            clock: Arc::clone(&clock),
            random,
        };
        let (mut tasks, never) = (JoinSet::new(), CancellationToken::new());
        tasks.spawn(Arc::clone(&control).follow(ears.changed.subscribe(), never.clone()));
        tasks.spawn(Cluster::new(identity, store, clock, sources, ears).run(never));
        tasks.spawn(opener.run());
        let wanted = control.desired().borrow().revision;
        observations.clone().wait_for(|seen| seen.applied.is_some_and(|applied| applied >= wanted)).await?;
        tasks.spawn(drain_as_wished(name(number), wishes, closed, mode));
        Ok(Running { control, bound, observations, _tasks: tasks })
    }
}

impl Running {
    /// What it should have bound.
    pub fn desired(&self) -> Arc<DesiredState> {
        Arc::clone(&self.control.desired().borrow())
    }

    /// Which ports are whose, by what it should have bound.
    pub fn wanted(&self) -> Bound {
        let desired = self.desired();
        let each = desired.listeners.values().flat_map(|spec| {
            let transports = spec.protocol.transports().iter();
            transports.map(|transport| ((spec.port, *transport), spec.service_instance_id.clone()))
        });
        each.collect::<BTreeMap<_, _>>()
    }
}

/// Closes all ports while somebody wants the node drained, and opens them when nobody does.
async fn drain_as_wished(
    node: NodeId,
    mut members: watch::Receiver<Arc<Members>>,
    closed: watch::Sender<bool>,
    mode: watch::Sender<Mode>,
) {
    loop {
        let wished = members.borrow_and_update().wants_drained(&node);
        let now = if wished { Mode::Draining } else { Mode::Serving };
        mode.send_if_modified(|mode| std::mem::replace(mode, now) != now);
        closed.send_if_modified(|closed| std::mem::replace(closed, wished) != wished);
        if members.changed().await.is_err() {
            return;
        }
    }
}

/// The name of a node.
pub fn name(number: usize) -> NodeId {
    NodeId::new(format!("node-{number}")).unwrap()
}

fn settings(number: usize) -> control::Settings {
    let pool = |name: &str, ports: std::ops::RangeInclusive<u16>| Pool {
        name: PoolName::new(name).unwrap(),
        ports: format!("{}-{}", ports.start(), ports.end()).parse().unwrap(),
        names: PoolNames { host: Some("10.0.0.5".into()), ..PoolNames::default() },
        int_port: 4100,
        quarantine: QUARANTINE,
        retired: false,
    };
    let mut pools = vec![pool("default", PORTS), pool("games", GAMES)];
    if number == 0 {
        pools.pop();
    }
    control::Settings {
        node: name(number),
        pools,
        plans: plans(),
        limits: ForwarderLimits::default(),
        announce_url: None,
    }
}

/// The built-in plans, and `games`.
pub fn plans() -> Vec<Plan> {
    let mut plans = Plan::built_in(&PoolName::new("default").unwrap());
    plans.push(Plan {
        id: Plan::derived_id("games"),
        name: "games".into(),
        pool: PoolName::new("games").unwrap(),
        protocol: PlanProtocol::Fixed(Protocol::Tcp),
        caps: Caps::default(),
        ..plans[1].clone()
    });
    plans
}
