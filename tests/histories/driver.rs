//! Histories of three nodes on one store: the real use cases and the real cluster, on machines and over links of the
//! test's, with requests that meet and parts that fail. Simulated over the store in memory, and run on PostgreSQL.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use harbor::{
    model::{
        Clock, PoolName, PortSet,
        allocation::{Counts, FreePorts},
    },
    store::{self, AnyStore},
    telemetry::metrics::Metrics,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

mod history;
mod ledger;
mod link;
mod machine;
mod node;
mod request;
mod time;

use history::{NODES, Step};
pub use ledger::Answers;
use ledger::{Effect, FIRST_SETTING, Ledger, Thing};
use link::{Link, Ways};
pub use link::{Pace, Way};
use machine::Machine;
use node::{Running, SkewedClock, Start};
use request::{Answer, BEGUN, binding_id, instance_id};
pub use time::pass;

/// By how much the clock of a node is wrong, at the most, in microseconds.
const WRONG_BY: i64 = 120_000_000;

/// How often a node that cannot start is started again.
const START_AGAIN: Duration = Duration::from_millis(500);

/// How often the platform asks what became of an operation.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Where the nodes of a history keep their state.
pub trait Place: Send + Sync + 'static {
    /// A way to it, for a process that starts.
    fn open(&self) -> impl Future<Output = anyhow::Result<AnyStore>> + Send;

    /// Ends it with all that is under way, and starts it again after a while. `server` is its end of the nodes' links.
    fn restart(&self, server: &watch::Sender<Way>, down: Duration) -> impl Future<Output = ()> + Send;
}

/// How long things may take, by the clock of the runtime.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub steps: usize,
    pub longest_gap: Duration,
    pub pace: Pace,
    /// How long what was given up may go on in the store.
    pub grace: Duration,
    /// Until a request is answered, whatever happens.
    pub answer: Duration,
    /// Until all agree, once nothing fails any more.
    pub agree: Duration,
}

/// A node: its machine, its place in the network, and its process, if it has one.
struct Node {
    clock: Arc<SkewedClock>,
    machine: watch::Sender<Machine>,
    /// How its calls fare while it lives.
    way: Way,
    life: Option<Life>,
}

/// A process from its start to its death.
#[derive(Clone)]
struct Life {
    died: CancellationToken,
    way: watch::Sender<Way>,
    /// None until it is ready.
    running: watch::Sender<Option<Arc<Running>>>,
}

/// A history under way.
struct World<P> {
    place: P,
    /// What the checks read, whatever is cut off.
    store: AnyStore,
    limits: Limits,
    seed: u64,
    server: watch::Sender<Way>,
    nodes: Mutex<Vec<Node>>,
    ledger: Mutex<Ledger>,
    metrics: Arc<Metrics>,
    processes: AtomicU64,
    settings: AtomicU32,
    restarting: tokio::sync::Mutex<()>,
    tasks: Mutex<JoinSet<()>>,
}

/// Runs one history, and looks at everything after each of its steps. Returns how often which answer was given.
///
/// # Panics
/// When something is not as users were told, or the nodes do not agree in the end; with the whole history.
pub async fn run<P: Place>(place: P, limits: Limits, mut random: Rng) -> Answers {
    let store = place.open().await.expect("the store can be opened");
    let node = |_| Node {
        clock: Arc::new(SkewedClock::new(random.i64(-WRONG_BY..=WRONG_BY))),
        machine: watch::Sender::default(),
        way: Way::Open,
        life: None,
    };
    let nodes = (0..NODES).map(node).collect();
    let world = Arc::new(World {
        place,
        store,
        limits,
        seed: random.u64(..),
        server: watch::Sender::new(Way::Open),
        nodes: Mutex::new(nodes),
        ledger: Mutex::new(Ledger::new(limits.grace)),
        metrics: Arc::new(Metrics::new()),
        processes: AtomicU64::new(0),
        settings: AtomicU32::new(FIRST_SETTING),
        restarting: tokio::sync::Mutex::default(),
        tasks: Mutex::default(),
    });
    (0..NODES).for_each(|number| world.start(number));
    for (gap, step) in history::steps(&mut random, limits.steps, limits.longest_gap) {
        pass(gap).await;
        // Whoever has drawn more than another time has no say in what is drawn from here on.
        fastrand::seed(random.u64(..));
        world.take(step);
        tokio::task::yield_now().await;
        world.check().await;
    }
    world.heal();
    world.finish().await;
    world.agree().await;
    world.check().await;
    std::mem::take(&mut world.ledger.lock().unwrap().answers)
}

impl<P: Place> World<P> {
    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    /// Begins what a step says; requests go on by themselves.
    fn take(self: &Arc<Self>, step: Step) {
        match step {
            Step::Provision { node, .. }
            | Step::Deprovision { node, .. }
            | Step::Bind { node, .. }
            | Step::Unbind { node, .. }
            | Step::Update { node, .. } => {
                if let Some((life, running)) = self.running(node) {
                    let work = Arc::clone(self).request(life, running, step);
                    self.tasks.lock().unwrap().spawn(work);
                }
                return;
            }
            _ => self.ledger().note(format_args!("{step:?}")),
        }
        let mut nodes = self.nodes.lock().unwrap();
        match step {
            Step::Kill { node } => {
                if let Some(life) = nodes[node].life.take() {
                    life.way.send_replace(Way::Dead);
                    life.died.cancel();
                    life.running.send_replace(None);
                }
            }
            Step::Start { node } => {
                drop(nodes);
                self.start(node);
            }
            Step::CutOff { node, way } => nodes[node].goes(way),
            Step::Heal { node } => nodes[node].goes(Way::Open),
            Step::RestartDatabase { down } => {
                let world = Arc::clone(self);
                let restart = async move {
                    let _one = world.restarting.lock().await;
                    world.place.restart(&world.server, down).await;
                };
                self.tasks.lock().unwrap().spawn(restart);
            }
            Step::StrangerComes { node, port, transport } => {
                let running = nodes[node].life.as_ref().and_then(|life| life.running.borrow().clone());
                let taken = running.is_some_and(|r| r.bound.lock().unwrap().contains_key(&(port, transport)));
                if !taken {
                    nodes[node].machine.send_modify(|machine| _ = machine.strangers.insert((port, transport)));
                }
            }
            Step::StrangersLeave { node } => nodes[node].machine.send_modify(|machine| machine.strangers.clear()),
            Step::Ail { node, ails } => nodes[node].machine.send_modify(|machine| machine.ails = ails),
            _ => unreachable!("it is a request"),
        }
    }

    /// Starts a process where there is none, again and again until it is ready.
    fn start(self: &Arc<Self>, number: usize) {
        let mut nodes = self.nodes.lock().unwrap();
        let node = &mut nodes[number];
        if node.life.is_some() {
            return;
        }
        let life = Life {
            died: CancellationToken::new(),
            way: watch::Sender::new(node.way),
            running: watch::Sender::default(),
        };
        node.life = Some(life.clone());
        let (clock, machine, world) = (Arc::clone(&node.clock), node.machine.subscribe(), Arc::clone(self));
        let work = async move {
            let died = life.died.clone();
            let started = async {
                loop {
                    match world.process(number, &life, Arc::clone(&clock), machine.clone()).await {
                        Ok(running) => {
                            world.ledger().note(format_args!("node {number} is ready"));
                            life.running.send_replace(Some(Arc::new(running)));
                            return;
                        }
                        Err(error) => world.ledger().note(format_args!("node {number} does not start: {error}")),
                    }
                    pass(START_AGAIN).await;
                }
            };
            let _ = died.run_until_cancelled(started).await;
        };
        self.tasks.lock().unwrap().spawn(work);
    }

    async fn process(
        &self,
        number: usize,
        life: &Life,
        clock: Arc<SkewedClock>,
        machine: watch::Receiver<Machine>,
    ) -> anyhow::Result<Running> {
        let ways = Ways { own: life.way.subscribe(), server: self.server.subscribe() };
        let process = self.processes.fetch_add(1, Ordering::Relaxed);
        let mut random = Rng::with_seed(self.seed ^ process);
        let store: AnyStore = Arc::new(Link::new(self.place.open().await?, ways, self.limits.pace, random.u64(..)));
        let incarnation = format!("{number}.{process}");
        let (clock, metrics): (Arc<dyn Clock>, _) = (clock, Arc::clone(&self.metrics));
        Start { number, incarnation, store, clock, machine, metrics, random }.run().await
    }

    /// The process of a node, if it is ready.
    fn running(&self, node: usize) -> Option<(Life, Arc<Running>)> {
        let life = self.nodes.lock().unwrap()[node].life.clone()?;
        let running = life.running.borrow().clone()?;
        Some((life, running))
    }

    /// Makes a request, and notes what is told.
    async fn request(self: Arc<Self>, life: Life, running: Arc<Running>, step: Step) {
        let (thing, effect) = self.wish(step);
        let entry = self.ledger().begin(thing, effect, format_args!("{step:?}, {effect:?}"));
        let answer = self.answered(&life, running.ask(step, effect)).await;
        drop(running);
        let is_begun = answer.kind == BEGUN;
        self.ledger().end(entry, answer);
        if let Step::Provision { instance, .. } = step
            && is_begun
        {
            self.follow(instance).await;
        }
    }

    /// Asks any node what becomes of an operation, until one knows.
    async fn follow(&self, instance: usize) {
        let thing = || Thing::Instance(instance_id(instance).to_string());
        for node in (0..NODES).cycle().skip(instance) {
            pass(ASK_EVERY).await;
            let Some((life, running)) = self.running(node) else { continue };
            let entry = self.ledger().begin(thing(), Effect::None, format_args!("asks node {node} for {instance}"));
            let answer = self.answered(&life, running.progress(instance)).await;
            let known = answer.saw.is_some();
            self.ledger().end(entry, answer);
            if known {
                return;
            }
        }
    }

    /// An answer, unless its node dies; it must come in time.
    async fn answered(&self, life: &Life, work: impl Future<Output = Answer>) -> Answer {
        match life.died.run_until_cancelled(timeout(self.limits.answer, work)).await {
            Some(Ok(answer)) => answer,
            Some(Err(_)) => self.fail(&[format!("no answer within {:?}", self.limits.answer)]),
            None => Answer::unknown("its node has died"),
        }
    }

    /// What a step asks for.
    fn wish(&self, step: Step) -> (Thing, Effect) {
        let of = |instance| instance_id(instance).to_string();
        match step {
            Step::Provision { instance, .. } => (Thing::Instance(of(instance)), Effect::Make),
            Step::Deprovision { instance, .. } => (Thing::Instance(of(instance)), Effect::Unmake),
            Step::Update { instance, both, .. } => {
                // An odd number is set with the plan `both`, an even one with `tcp`.
                let value = self.settings.fetch_add(2, Ordering::Relaxed) + 2 + u32::from(both);
                (Thing::Instance(of(instance)), Effect::Set(value))
            }
            Step::Bind { instance, binding, .. } => {
                (Thing::Binding(of(instance), binding_id(instance, binding).to_string()), Effect::Make)
            }
            Step::Unbind { instance, binding, .. } => {
                (Thing::Binding(of(instance), binding_id(instance, binding).to_string()), Effect::Unmake)
            }
            _ => unreachable!("it is no request"),
        }
    }

    /// Holds the store against what users were told, and what nodes should have bound against itself.
    async fn check(&self) {
        let read_from = Instant::now();
        // A database that is down is looked at after the next step.
        if let Ok(all) = self.store.everything().await {
            let wrong = self.ledger().contradictions(&all, read_from);
            self.fail_if(&wrong);
        }
        for number in 0..NODES {
            if let Some((_, running)) = self.running(number) {
                let desired = running.desired();
                let sockets = desired.listeners.values().map(|spec| spec.protocol.transports().len()).sum::<usize>();
                if running.wanted().len() < sockets {
                    self.fail(&[format!("node {number} should have one port for two service instances")]);
                }
            }
        }
    }

    /// From here on nothing fails, and every node lives.
    fn heal(self: &Arc<Self>) {
        self.ledger().note("all is well from here on");
        self.nodes.lock().unwrap().iter_mut().for_each(|node| {
            node.machine.send_replace(Machine::default());
            node.goes(Way::Open);
        });
        (0..NODES).for_each(|number| self.start(number));
    }

    /// Waits until every request is answered, and every node ready.
    async fn finish(&self) {
        let all = async {
            loop {
                let next = self.tasks.lock().unwrap().try_join_next();
                match next {
                    Some(Ok(())) => {}
                    Some(Err(failed)) => std::panic::resume_unwind(failed.into_panic()),
                    None if self.tasks.lock().unwrap().is_empty() => return,
                    None => pass(Duration::from_millis(20)).await,
                }
            }
        };
        if timeout(self.limits.answer, all).await.is_err() {
            let open = self.ledger().open();
            self.fail(&[format!("requests without an answer: {open:?}")]);
        }
    }

    /// Waits until all nodes show what the store has.
    async fn agree(&self) {
        let deadline = Instant::now() + self.limits.agree;
        loop {
            let wrong = self.disagreements().await.unwrap_or_else(|fault| vec![fault.to_string()]);
            if wrong.is_empty() {
                return;
            }
            if Instant::now() > deadline {
                self.fail(&wrong);
            }
            pass(Duration::from_millis(100)).await;
        }
    }

    async fn disagreements(&self) -> store::Result<Vec<String>> {
        let mut wrong = Vec::new();
        let all = self.store.everything().await?;
        let under_way = self.store.operations().await?;
        wrong.extend(under_way.iter().map(|operation| format!("an operation does not end: {operation:?}")));
        for number in 0..NODES {
            let Some((_, running)) = self.running(number) else {
                wrong.push(format!("node {number} is not ready"));
                continue;
            };
            let clock = Arc::clone(&self.nodes.lock().unwrap()[number].clock);
            let mut claim = |fine: bool, what: String| {
                if !fine {
                    wrong.push(format!("node {number}: {what}"));
                }
            };
            let (desired, served) = (running.desired(), running.control.served());
            let applied = running.observations.borrow().applied;
            claim(desired.revision == all.revision, format!("wants {}, there is {}", desired.revision, all.revision));
            claim(applied == Some(all.revision), format!("has applied {applied:?}, there is {}", all.revision));
            let own = all.instances.iter().filter(|instance| served.contains(&instance.pool)).collect::<Vec<_>>();
            for instance in &own {
                let spec = desired
                    .listeners
                    .get(&instance.id)
                    .map(|spec| (spec.port, spec.protocol, spec.settings.max_connections));
                let stored = (instance.port, instance.protocol, instance.settings.max_connections);
                claim(spec == Some(stored), format!("wants {spec:?} for {}, there is {stored:?}", instance.id));
            }
            claim(desired.listeners.size() == own.len(), "wants listeners of service instances that are gone".into());
            let (bound, wanted) = (running.bound.lock().unwrap().clone(), running.wanted());
            claim(bound == wanted, format!("has bound {bound:?}, and wants {wanted:?}"));
            let directory = Arc::clone(&running.control.directory().borrow());
            let known = directory.instances().map(|entry| entry.bindings.len()).sum::<usize>();
            let told = all
                .bindings
                .iter()
                .all(|binding| directory.binding(binding.id.as_str()).is_some_and(|b| **b == *binding));
            claim(told && known == all.bindings.len(), format!("knows other bindings than {:?}", all.bindings));
            for usage in running.control.overview().await {
                let counts = self.counts(&usage.name, &usage.ports, &clock).await?;
                claim(
                    alike(usage.counts) == alike(counts),
                    format!("counts {:?} of {}, there are {counts:?}", usage.counts, usage.name),
                );
            }
        }
        Ok(wrong)
    }

    /// The ports of a pool by what the store says of them.
    async fn counts(&self, pool: &PoolName, ports: &PortSet, clock: &SkewedClock) -> store::Result<Counts> {
        let (reservations, rows) = (self.store.reservations(pool).await?, self.store.ports(pool).await?);
        let now = clock.wall();
        Ok(FreePorts::new(ports.clone(), reservations, rows, now).counts(now))
    }

    fn fail_if(&self, wrong: &[String]) {
        if !wrong.is_empty() {
            self.fail(wrong);
        }
    }

    fn fail(&self, wrong: &[String]) -> ! {
        panic!("{}\n\n{}", self.ledger().journal(), wrong.join("\n"))
    }
}

impl Node {
    fn goes(&mut self, way: Way) {
        self.way = way;
        if let Some(life) = &self.life {
            life.way.send_replace(way);
        }
    }
}

/// What a node has put aside by itself counts as free.
fn alike(counts: Counts) -> Counts {
    Counts { free: counts.free + counts.in_conflict, in_conflict: 0, ..counts }
}
