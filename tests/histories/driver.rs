//! Histories of three nodes on one store: the real use cases and the real cluster, on machines and over links of the
//! test's, with requests that meet and parts that fail. Simulated over the store in memory, and run on PostgreSQL.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use harbor::{
    control::NODES_WAIT,
    model::{
        Clock, NodeId, PoolName, PortSet, Transport,
        allocation::{Counts, FreePorts},
        requester::Requester,
        service_instance::ServiceInstance,
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

use history::{Author, INSTANCES, NODES, Request, Step};
pub use ledger::Tally;
use ledger::{Asked, Effect, Entry, FIRST_SETTING, Ledger, Thing};
use link::{Deed, Link, Ways};
pub use link::{Pace, Way};
use machine::Machine;
use node::{Running, SkewedClock, Start};
use request::{Answer, BEGUN, DEPROVISIONED, PROVISIONED, instance_id, pool_of};
pub use time::pass;

/// By how much the clock of a node is wrong, at the most, in microseconds.
const WRONG_BY: i64 = 120_000_000;

/// How often a node that cannot start is started again.
const START_AGAIN: Duration = Duration::from_millis(500);

/// How often the platform asks what became of an operation.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// After so long without a fault, nobody can take a node for dead any more.
const WELL_AFTER: Duration = Duration::from_secs(5);

/// How long what several nodes do takes at the most, as a rule.
const SOON: Duration = Duration::from_secs(1);

/// What is counted beside answers and meetings.
pub const ALL_WELL: &str = "provisioned while all nodes were well";
pub const ALL_WELL_AND_SOON: &str = "provisioned soon while all nodes were well";

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
    /// Whether time is simulated: then nothing is late but what a history delays.
    pub simulated: bool,
}

/// A node: its machine, its place in the network, and its process, if it has one.
struct Node {
    clock: Arc<SkewedClock>,
    machine: watch::Sender<Machine>,
    /// How its calls fare while it lives.
    way: Way,
    life: Option<Life>,
    /// Whether somebody may have wanted it drained, and nobody has had it resumed since.
    drained: bool,
    /// Since when nothing has kept it from taking part.
    well_since: Option<Instant>,
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
    /// Who has nodes drained and resumed, one after the other: otherwise nobody knew which wish came last.
    operator: tokio::sync::Mutex<()>,
    /// Whether the database is down.
    down: AtomicBool,
    tasks: Mutex<JoinSet<()>>,
}

/// Runs one history, and looks at everything after each of its steps. Returns how often what has happened.
///
/// # Panics
/// When something is not as users were told, or the nodes do not agree in the end; with the whole history.
pub async fn run<P: Place>(place: P, limits: Limits, mut random: Rng) -> Tally {
    let store = place.open().await.expect("the store can be opened");
    let node = |_| Node {
        clock: Arc::new(SkewedClock::new(random.i64(-WRONG_BY..=WRONG_BY))),
        machine: watch::Sender::default(),
        way: Way::Open,
        life: None,
        drained: false,
        well_since: None,
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
        operator: tokio::sync::Mutex::default(),
        down: AtomicBool::default(),
        tasks: Mutex::default(),
    });
    (0..NODES).for_each(|number| world.start(number));
    let mut author = Author::new(random.fork(), limits.longest_gap);
    for _ in 0..limits.steps {
        let (gap, step) = author.next(&*world.ledger());
        pass(gap).await;
        // Whoever has drawn more than another time has no say in what is drawn from here on.
        fastrand::seed(random.u64(..));
        world.take(step);
        tokio::task::yield_now().await;
        world.check().await;
    }
    world.heal(random.bool());
    world.finish().await;
    world.agree().await;
    world.check().await;
    world.ledger().tally()
}

impl<P: Place> World<P> {
    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    /// Begins what a step says; requests go on by themselves.
    fn take(self: &Arc<Self>, step: Step) {
        match step {
            Step::Ask { node, request } => {
                if let Some((life, running)) = self.running(node) {
                    self.spawn(Arc::clone(self).request(node, life, running, request));
                }
                return;
            }
            Step::Drain { node, asked } | Step::Resume { node, asked } => {
                let drain = matches!(step, Step::Drain { .. });
                if let Some((life, running)) = self.running(asked) {
                    self.spawn(Arc::clone(self).drain(life, running, node, drain));
                }
            }
            Step::Kill { node } => self.kill(node),
            Step::Start { node } => self.start(node),
            Step::CutOff { node, way } => {
                if self.running(node).is_some() {
                    self.ledger().count("node cut off");
                }
                self.node(node, |node| node.goes(way));
            }
            Step::Heal { node } => self.node(node, |node| node.goes(Way::Open)),
            Step::RestartDatabase { down } => self.spawn(Arc::clone(self).restart_database(down)),
            Step::StrangersCome { node, first, last, transport } => {
                let bound = self.running(node).map(|(_, running)| running.bound.lock().unwrap().clone());
                let is_free = |place: &_| bound.as_ref().is_none_or(|bound| !bound.contains_key(place));
                let places = (first..=last).map(|port| (port, transport)).filter(is_free);
                self.node(node, |node| node.machine.send_modify(|machine| machine.strangers.extend(places)));
            }
            Step::StrangersLeave { node } => {
                self.node(node, |node| node.machine.send_modify(|machine| machine.strangers.clear()));
            }
            Step::Ail { node, ails } => self.node(node, |node| node.machine.send_modify(|machine| machine.ails = ails)),
        }
        self.ledger().note(format_args!("{step:?}"));
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().unwrap().spawn(work);
    }

    /// Does something to a node, and looks whether it is well then.
    fn node<T>(&self, number: usize, change: impl FnOnce(&mut Node) -> T) -> T {
        let mut nodes = self.nodes.lock().unwrap();
        let outcome = change(&mut nodes[number]);
        nodes[number].look(self.down.load(Ordering::Relaxed));
        outcome
    }

    fn kill(&self, number: usize) {
        let Some(life) = self.node(number, |node| node.life.take()) else { return };
        life.way.send_replace(Way::Dead);
        life.died.cancel();
        if life.running.send_replace(None).is_some() {
            self.ledger().count("node killed");
        }
    }

    async fn restart_database(self: Arc<Self>, down: Duration) {
        let _one = self.restarting.lock().await;
        let goes = |is_down| {
            self.down.store(is_down, Ordering::Relaxed);
            (0..NODES).for_each(|number| self.node(number, |_| ()));
        };
        goes(true);
        self.place.restart(&self.server, down).await;
        goes(false);
        self.ledger().count("database restarted");
    }

    /// Asks a node to have a node drained, or resumed.
    async fn drain(self: Arc<Self>, life: Life, asked: Arc<Running>, number: usize, drain: bool) {
        let _one = self.operator.lock().await;
        self.node(number, |node| node.drained |= drain);
        let name = node::name(number);
        let asking = timeout(self.limits.answer, asked.control.drain(name.as_str(), drain, &Requester::Harbor));
        let Some(Ok(Ok(_))) = life.died.run_until_cancelled(asking).await else { return };
        self.node(number, |node| node.drained = drain);
        self.ledger().count(if drain { "node drained" } else { "node resumed" });
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
                            world.node(number, |_| ());
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
        self: &Arc<Self>,
        number: usize,
        life: &Life,
        clock: Arc<SkewedClock>,
        machine: watch::Receiver<Machine>,
    ) -> anyhow::Result<Running> {
        let ways = Ways { own: life.way.subscribe(), server: self.server.subscribe() };
        let process = self.processes.fetch_add(1, Ordering::Relaxed);
        let mut random = Rng::with_seed(self.seed ^ process);
        let (world, seed) = (Arc::downgrade(self), random.u64(..));
        let witness = Box::new(move |deed: Deed<'_>| {
            if let Some(world) = world.upgrade() {
                world.witness(&deed);
            }
        });
        let store: AnyStore = Arc::new(Link::new(self.place.open().await?, ways, self.limits.pace, seed, witness));
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

    /// Counts what a node does in the store. Nobody takes anything up from who lives, as far as anybody can know.
    fn witness(self: &Arc<Self>, deed: &Deed<'_>) {
        if !matches!(deed, Deed::Commits(_)) {
            self.ledger().note(format_args!("{deed:?}"));
        }
        match deed {
            Deed::Commits(instance) => self.be_curious(instance),
            Deed::Moves => self.ledger().count("moved to another port"),
            Deed::TakesUp { from, by } if from == by => self.ledger().count("taken up from its last process"),
            Deed::TakesUp { from, by } => {
                self.ledger().count("taken up from another node");
                let well = self.well_before(Instant::now());
                let is_well = |id: &NodeId| well.iter().any(|number| node::name(*number) == *id);
                if self.limits.simulated && is_well(from) && is_well(by) {
                    self.ledger().blame(format!("{by} takes up the work of {from}, which lives"));
                }
            }
        }
    }

    /// Binds to a service instance that will have to move, before anybody may have been told of it.
    fn be_curious(self: &Arc<Self>, stored: &ServiceInstance) {
        let place = (stored.port, Transport::Tcp);
        let has_stranger = |node: &Node| node.machine.borrow().strangers.contains(&place);
        if !self.nodes.lock().unwrap().iter().any(has_stranger) {
            return;
        }
        let Some(instance) = (0..INSTANCES).find(|number| instance_id(*number) == stored.id) else { return };
        for (binding, node) in (0..NODES).filter(|number| node::name(*number) != stored.node_id).enumerate() {
            if let Some((life, running)) = self.running(node) {
                self.spawn(Arc::clone(self).request(node, life, running, Request::Bind { instance, binding }));
            }
        }
    }

    /// The nodes that everybody must take for alive since that moment.
    fn well_before(&self, moment: Instant) -> Vec<usize> {
        let nodes = self.nodes.lock().unwrap();
        let is_well = |number: &usize| nodes[*number].well_since.is_some_and(|since| since + WELL_AFTER <= moment);
        (0..NODES).filter(is_well).collect()
    }

    /// Makes a request, and notes what is told.
    async fn request(self: Arc<Self>, node: usize, life: Life, running: Arc<Running>, request: Request) {
        let (thing, effect) = self.wish(request);
        let (asked, began) = (Asked { node, verb: request.verb() }, Instant::now());
        let entry = self.ledger().begin(asked, thing, effect, format_args!("node {node}: {request:?}, {effect:?}"));
        let answer = self.answered(&life, running.ask(request, effect)).await;
        drop(running);
        let (kind, port) = (answer.kind, answer.port);
        self.ledger().end(entry, answer);
        match kind {
            PROVISIONED | DEPROVISIONED if self.limits.simulated => {
                self.look_everywhere(entry, node, request.instance(), began, port);
            }
            BEGUN => self.follow(request.instance(), &life).await,
            _ => {}
        }
    }

    /// After an answer that came before anybody may have lost patience: every node that was well has done its part by
    /// then, with the port that was told, or without any.
    fn look_everywhere(&self, entry: Entry, asked: usize, instance: usize, began: Instant, port: Option<u16>) {
        let (took, well) = (began.elapsed(), self.well_before(began));
        if self.well_before(began + WELL_AFTER).len() == NODES && port.is_some() {
            let mut ledger = self.ledger();
            ledger.count(ALL_WELL);
            if took < SOON {
                ledger.count(ALL_WELL_AND_SOON);
            }
        }
        let disturbing = if port.is_some() { Effect::Unmake } else { Effect::Make };
        if took >= NODES_WAIT || !well.contains(&asked) || self.ledger().is_disturbed(entry, disturbing) {
            return;
        }
        let id = instance_id(instance);
        for number in well {
            let Some((_, running)) = self.running(number) else { continue };
            if !running.control.served().contains(&pool_of(instance)) {
                continue;
            }
            let bound =
                running.bound.lock().unwrap().iter().find(|(_, holder)| **holder == id).map(|((port, _), _)| *port);
            self.ledger().count("looked at after an answer");
            if bound != port {
                self.ledger().blame(format!("node {number} has {bound:?} for {id}, and {port:?} was told"));
            }
        }
    }

    /// Asks any node what becomes of an operation, until one knows. `life` is of the one that began it.
    async fn follow(&self, instance: usize, life: &Life) {
        for node in (0..NODES).cycle().skip(instance) {
            pass(ASK_EVERY).await;
            let Some((living, running)) = self.running(node) else { continue };
            let (asked, thing) = (Asked { node, verb: "ask for" }, Thing::instance(instance));
            let words = format!("node {node}: what of {instance}?");
            let entry = self.ledger().begin(asked, thing, Effect::None, words);
            let answer = self.answered(&living, running.progress(instance)).await;
            let (kind, is_known) = (answer.kind, answer.saw.is_some());
            self.ledger().end(entry, answer);
            if is_known {
                if life.died.is_cancelled() {
                    self.ledger().count(format!("{kind} after the death of its node"));
                }
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

    /// What a request may do to what.
    fn wish(&self, request: Request) -> (Thing, Effect) {
        match request {
            Request::Provision { instance, .. } => (Thing::instance(instance), Effect::Make),
            Request::Deprovision { instance } => (Thing::instance(instance), Effect::Unmake),
            Request::Update { instance, both } => {
                // An odd number is set with the plan `both`, an even one with `tcp`.
                let value = self.settings.fetch_add(2, Ordering::Relaxed) + 2 + u32::from(both);
                (Thing::instance(instance), Effect::Set(value))
            }
            Request::Bind { instance, binding } => (Thing::binding(instance, binding), Effect::Make),
            Request::Unbind { instance, binding } => (Thing::binding(instance, binding), Effect::Unmake),
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

    /// From here on nothing fails. The dead come back; or, `without` them, the others finish what they have left.
    fn heal(self: &Arc<Self>, without: bool) {
        self.ledger().note("all is well from here on");
        self.nodes.lock().unwrap().iter_mut().for_each(|node| {
            node.machine.send_replace(Machine::default());
            node.goes(Way::Open);
        });
        if !without || self.living().is_empty() {
            (0..NODES).for_each(|number| self.start(number));
        }
    }

    /// The nodes that have a process, be it ready or not.
    fn living(&self) -> Vec<usize> {
        let nodes = self.nodes.lock().unwrap();
        (0..NODES).filter(|number| nodes[*number].life.is_some()).collect()
    }

    /// Waits until every request is answered, and every node ready, and has all take part.
    async fn finish(&self) {
        let answered = async {
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
        if timeout(self.limits.answer, answered).await.is_err() {
            let open = self.ledger().open();
            self.fail(&[format!("requests without an answer: {open:?}")]);
        }
        for number in 0..NODES {
            // One that has never joined cannot be drained either.
            self.store.set_drain(&node::name(number), false).await.expect("the store is there again");
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
            pass(Duration::from_millis(500)).await;
        }
    }

    async fn disagreements(&self) -> store::Result<Vec<String>> {
        let mut wrong = Vec::new();
        let all = self.store.everything().await?;
        let under_way = self.store.operations().await?;
        wrong.extend(under_way.iter().map(|operation| format!("an operation does not end: {operation:?}")));
        for number in self.living() {
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
            // Last, as it takes the longest.
            let usages = if wrong.is_empty() { running.control.overview().await } else { Vec::new() };
            for usage in usages {
                let counts = self.counts(&usage.name, &usage.ports, &clock).await?;
                if !agrees(usage.counts, counts) {
                    let (counted, pool) = (usage.counts, usage.name);
                    wrong.push(format!("node {number}: counts {counted:?} of {pool}, there are {counts:?}"));
                }
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

    /// Notes that something has changed about it, for better or worse.
    fn look(&mut self, is_down: bool) {
        let is_ready = self.life.as_ref().is_some_and(|life| life.running.borrow().is_some());
        let is_well = is_ready && self.way == Way::Open && !self.drained && !is_down;
        self.well_since = is_well.then(Instant::now);
    }
}

/// What a node has put aside by itself is free or rests, as far as the store knows. And a port that a node took whose
/// clock goes before, and moved away from, rests again by clocks that go after: they are told that it is given back, and
/// would hear of the rest when they wanted it.
fn agrees(own: Counts, stored: Counts) -> bool {
    let unused = |counts: Counts| counts.free + counts.quarantined + counts.in_conflict;
    (own.allocated, own.reserved, unused(own)) == (stored.allocated, stored.reserved, unused(stored))
}
