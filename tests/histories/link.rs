//! The way from a node to its store: it can be slow, refuse, fall silent, or end with its node. What was asked may have
//! been done all the same.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Mutex,
    time::Duration,
};

use async_trait::async_trait;
use harbor::{
    model::{
        BindingId, NodeId, PoolName, Revision, ServiceInstanceId, Timestamp,
        binding::Binding,
        member::{Member, Report},
        pool::Pool,
        service_instance::ServiceInstance,
        setting::{By, Setting, SettingChange},
        token::AnnounceSecret,
    },
    store::{self, AnyStore, Fault, Feed, Hint, Store},
};
use tokio::{sync::watch, time::timeout};

use super::time::pass;

/// How a call fares; of two ways that are joined, the worse one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// It is answered.
    Open,
    /// It fails at once.
    Refused,
    /// It fails after [`SILENCE`].
    Silent,
    /// Its node has died: nothing goes on.
    Dead,
}

/// How long a node waits for a store that says nothing.
const SILENCE: Duration = Duration::from_millis(750);

/// One call in so many is slow.
const SLOW_ONE_IN: u64 = 16;

/// Every other process has one of these always slow, so that much comes between it and the call before.
const LAME: [&str; 8] = ["instance", "operation", "provision", "move_port", "opened", "update", "bind", "deprovision"];

/// One hint in so many is lost without a word.
const LOST_ONE_IN: u64 = 8;

/// How long calls are on their way, each of the two, at the most.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// As a rule.
    pub usual: Duration,
    /// Slow ones.
    pub slow: Duration,
}

/// What a node does in the store that no answer tells.
#[derive(Debug)]
pub enum Deed<'a> {
    /// A new service instance is stored; nobody may be told of it yet.
    Commits(&'a ServiceInstance),
    /// An unfinished provision is its work from now on.
    TakesUp { from: &'a NodeId, by: &'a NodeId },
    /// A service instance has another port, as somebody else holds the first one.
    Moves,
}

/// Who is told of it, at the moment when it is done.
pub type Witness = Box<dyn Fn(Deed<'_>) + Send + Sync>;

/// A store as one process of a node reaches it.
pub struct Link {
    store: AnyStore,
    ways: Ways,
    chance: Chance,
    pace: Pace,
    lame: Option<&'static str>,
    witness: Witness,
}

/// The way of the node's own, and the one at the store's end.
#[derive(Debug, Clone)]
pub struct Ways {
    pub own: watch::Receiver<Way>,
    pub server: watch::Receiver<Way>,
}

impl Ways {
    fn now(&self) -> Way {
        (*self.own.borrow()).max(*self.server.borrow())
    }

    /// Waits until the way is no longer `from`.
    async fn leaves(&self, from: Way) {
        let mut ways = self.clone();
        while ways.now() == from {
            tokio::select! {
                biased;
                Ok(()) = ways.own.changed() => {}
                Ok(()) = ways.server.changed() => {}
                else => return std::future::pending().await,
            }
        }
    }

    /// Waits until something gets through.
    async fn carry(&self) {
        loop {
            match self.now() {
                Way::Open => return,
                closed => self.leaves(closed).await,
            }
        }
    }

    /// Waits until a call that is on its way fails.
    async fn fails(&self, doing: &str) -> Fault {
        loop {
            match self.now() {
                Way::Open => self.leaves(Way::Open).await,
                Way::Refused => return fault(doing, "connection refused"),
                Way::Silent => {
                    if timeout(SILENCE, self.leaves(Way::Silent)).await.is_err() {
                        return fault(doing, "no answer");
                    }
                }
                Way::Dead => std::future::pending().await,
            }
        }
    }
}

fn fault(doing: &str, why: &str) -> Fault {
    Fault { doing: doing.into(), source: why.into() }
}

/// What chance makes of the n-th call of a kind, whatever others have been made meanwhile.
#[derive(Debug)]
struct Chance {
    seed: u64,
    calls: Mutex<HashMap<(&'static str, String), u64>>,
}

impl Chance {
    fn draw(&self, doing: &'static str, about: &str) -> fastrand::Rng {
        let mut calls = self.calls.lock().unwrap();
        let count = calls.entry((doing, about.to_owned())).or_default();
        *count += 1;
        let mut hasher = DefaultHasher::new();
        (self.seed, doing, about, *count).hash(&mut hasher);
        fastrand::Rng::with_seed(hasher.finish())
    }
}

impl Link {
    pub fn new(store: AnyStore, ways: Ways, pace: Pace, seed: u64, witness: Witness) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let lame = if random.bool() { random.choice(LAME) } else { None };
        Self { store, ways, pace, lame, chance: Chance { seed, calls: Mutex::default() }, witness }
    }

    async fn call<T>(
        &self,
        doing: &'static str,
        about: impl fmt::Display,
        work: impl Future<Output = store::Result<T>>,
    ) -> store::Result<T> {
        let mut chance = self.chance.draw(doing, &about.to_string());
        let mut delay = || {
            let is_slow = chance.u64(..SLOW_ONE_IN) == 0 || self.lame == Some(doing);
            let most = if is_slow { self.pace.slow } else { self.pace.usual };
            pass(most.mul_f64(chance.f64()))
        };
        let (there, back) = (delay(), delay());
        let whole = async {
            there.await;
            self.ways.carry().await;
            // From here on it is done, whether or not its answer arrives.
            let outcome = work.await;
            back.await;
            self.ways.carry().await;
            outcome
        };
        tokio::select! {
            biased;
            fault = self.ways.fails(doing) => Err(fault),
            outcome = whole => outcome,
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for Link {
    fn losses(&self) -> u64 {
        self.store.losses()
    }

    async fn announce_secret(&self) -> store::Result<AnnounceSecret> {
        self.call("announce_secret", "", self.store.announce_secret()).await
    }

    async fn rotate_announce_secret(&self, by: &By) -> store::Result<bool> {
        self.call("rotate_announce_secret", "", self.store.rotate_announce_secret(by)).await
    }

    async fn drop_former_secret(&self, by: &By) -> store::Result<bool> {
        self.call("drop_former_secret", "", self.store.drop_former_secret(by)).await
    }

    async fn everything(&self) -> store::Result<store::Changes> {
        self.call("everything", "", self.store.everything()).await
    }

    async fn changes_since(&self, revision: Revision) -> store::Result<Option<store::Changes>> {
        self.call("changes_since", "", self.store.changes_since(revision)).await
    }

    async fn ports(&self, pool: &PoolName) -> store::Result<Vec<store::PortRow>> {
        self.call("ports", pool, self.store.ports(pool)).await
    }

    async fn reservations(&self, pool: &PoolName) -> store::Result<Vec<store::Reservation>> {
        self.call("reservations", pool, self.store.reservations(pool)).await
    }

    async fn reservation_changes(&self, pool: &PoolName) -> store::Result<Vec<Setting>> {
        self.call("reservation_changes", pool, self.store.reservation_changes(pool)).await
    }

    async fn instances_at(
        &self,
        pool: &PoolName,
        ports: std::ops::RangeInclusive<u16>,
    ) -> store::Result<Vec<ServiceInstance>> {
        self.call("instances_at", pool, self.store.instances_at(pool, ports)).await
    }

    async fn change_reservations(
        &self,
        released: &[(PoolName, String)],
        made: &[store::Reservation],
        known: &BTreeSet<(PoolName, u16)>,
        by: &By,
    ) -> store::Result<bool> {
        self.call("change_reservations", "", self.store.change_reservations(released, made, known, by)).await
    }

    async fn settings(&self) -> store::Result<(Revision, Vec<Setting>)> {
        self.call("settings", "", self.store.settings()).await
    }

    async fn change_settings(
        &self,
        changes: &[SettingChange],
        by: &By,
        read_at: Revision,
    ) -> store::Result<Option<Revision>> {
        self.call("change_settings", "", self.store.change_settings(changes, by, read_at)).await
    }

    async fn settings_history(&self, limit: usize) -> store::Result<Vec<Setting>> {
        self.call("settings_history", "", self.store.settings_history(limit)).await
    }

    async fn instance(&self, id: &ServiceInstanceId) -> store::Result<Option<ServiceInstance>> {
        self.call("instance", id, self.store.instance(id)).await
    }

    async fn binding(&self, instance: &ServiceInstanceId, id: &BindingId) -> store::Result<Option<Binding>> {
        self.call("binding", id, self.store.binding(instance, id)).await
    }

    async fn provision(
        &self,
        instance: &ServiceInstance,
        open_later: bool,
        now: Timestamp,
    ) -> store::Result<store::Provision> {
        let committing = async {
            let outcome = self.store.provision(instance, open_later, now).await?;
            if let store::Provision::Created(created) = &outcome {
                (self.witness)(Deed::Commits(created));
            }
            Ok(outcome)
        };
        self.call("provision", &instance.id, committing).await
    }

    async fn move_port(
        &self,
        id: &ServiceInstanceId,
        from: u16,
        to: u16,
        by: Option<&NodeId>,
        now: Timestamp,
    ) -> store::Result<store::Change> {
        let moving = async {
            let change = self.store.move_port(id, from, to, by, now).await?;
            if matches!(change, store::Change::Done(_)) {
                (self.witness)(Deed::Moves);
            }
            Ok(change)
        };
        self.call("move_port", id, moving).await
    }

    async fn update(&self, instance: &ServiceInstance) -> store::Result<store::Change> {
        self.call("update", &instance.id, self.store.update(instance)).await
    }

    async fn deprovision(
        &self,
        id: &ServiceInstanceId,
        now: Timestamp,
        ending: store::Ending<'_>,
    ) -> store::Result<Option<ServiceInstance>> {
        self.call("deprovision", id, self.store.deprovision(id, now, ending)).await
    }

    async fn operation(&self, id: &ServiceInstanceId, now: Timestamp) -> store::Result<Option<store::Operation>> {
        self.call("operation", id, self.store.operation(id, now)).await
    }

    async fn operations(&self) -> store::Result<Vec<store::Operation>> {
        self.call("operations", "", self.store.operations()).await
    }

    async fn take_up(&self, id: &ServiceInstanceId, from: &NodeId, to: &NodeId, now: Timestamp) -> store::Result<bool> {
        let taking = async {
            let is_taken = self.store.take_up(id, from, to, now).await?;
            if is_taken {
                (self.witness)(Deed::TakesUp { from, by: to });
            }
            Ok(is_taken)
        };
        self.call("take_up", id, taking).await
    }

    async fn opened(&self, id: &ServiceInstanceId, by: &NodeId) -> store::Result<bool> {
        self.call("opened", id, self.store.opened(id, by)).await
    }

    async fn bind(&self, binding: &Binding) -> store::Result<store::Bind> {
        self.call("bind", &binding.id, self.store.bind(binding)).await
    }

    async fn unbind(&self, instance: &ServiceInstanceId, id: &BindingId) -> store::Result<Option<Binding>> {
        self.call("unbind", id, self.store.unbind(instance, id)).await
    }

    async fn pools(&self) -> store::Result<(Revision, Vec<Pool>)> {
        self.call("pools", "", self.store.pools()).await
    }

    async fn drop_pools(&self, pools: &[PoolName], by: &By, read_at: Revision) -> store::Result<Option<Revision>> {
        self.call("drop_pools", "", self.store.drop_pools(pools, by, read_at)).await
    }

    async fn define_pools(&self, pools: &[Pool], read_at: Revision) -> store::Result<Option<Revision>> {
        self.call("define_pools", "", self.store.define_pools(pools, read_at)).await
    }

    async fn join(&self, member: &Member) -> store::Result<()> {
        self.call("join", &member.id, self.store.join(member)).await
    }

    async fn report(
        &self,
        node: &NodeId,
        incarnation: &str,
        report: &Report,
        now: Timestamp,
    ) -> store::Result<store::Heard> {
        self.call("report", node, self.store.report(node, incarnation, report, now)).await
    }

    async fn set_drain(&self, node: &NodeId, drain: bool) -> store::Result<bool> {
        self.call("set_drain", node, self.store.set_drain(node, drain)).await
    }

    async fn remove_node(&self, node: &NodeId) -> store::Result<bool> {
        self.call("remove_node", node, self.store.remove_node(node)).await
    }

    async fn members(&self) -> store::Result<Vec<Member>> {
        self.call("members", "", self.store.members()).await
    }

    async fn feed(&self) -> store::Result<Box<dyn Feed>> {
        let inner = self.call("feed", "", self.store.feed()).await?;
        let random = self.chance.draw("hints", "");
        Ok(Box::new(LinkFeed { inner, ways: self.ways.clone(), random, broken: false }))
    }

    async fn export(&self) -> store::Result<store::Dump> {
        self.call("export", "", self.store.export()).await
    }

    async fn import(&self, dump: &store::Dump) -> store::Result<bool> {
        self.call("import", "", self.store.import(dump)).await
    }

    async fn ping(&self) -> store::Result<()> {
        self.call("ping", "", self.store.ping()).await
    }

    fn serves_many(&self) -> bool {
        self.store.serves_many()
    }

    async fn close(&self) {
        // Others have the store too.
    }
}

/// Hints that come by such a way: none while it is not open, and then that all is to be read.
struct LinkFeed {
    inner: Box<dyn Feed>,
    ways: Ways,
    random: fastrand::Rng,
    broken: bool,
}

#[async_trait]
impl Feed for LinkFeed {
    async fn next(&mut self) -> Hint {
        loop {
            match self.ways.now() {
                Way::Open if std::mem::take(&mut self.broken) => return Hint::Everything,
                Way::Open => {}
                closed => {
                    self.broken = true;
                    self.ways.leaves(closed).await;
                    continue;
                }
            }
            tokio::select! {
                biased;
                () = self.ways.leaves(Way::Open) => {}
                hint = self.inner.next() => {
                    if self.random.u64(..LOST_ONE_IN) > 0 {
                        return hint;
                    }
                }
            }
        }
    }
}
