//! A broker on a store in memory, with an opener that really binds the ports that are wanted.

use std::{
    collections::{BTreeSet, HashMap},
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use harbor::{
    broker,
    control::{self, Control},
    http,
    model::{
        BindingId, Clock, NodeId, PoolName, Protocol, Revision, ServiceInstanceId, Timestamp, Transport,
        binding::Binding,
        desired::{DesiredState, ForwarderLimits},
        member::{Member, Members, PortFailure, Report},
        observed::{ListenerObservation, ListenerState, Observations},
        plan::{Caps, Plan, PlanProtocol, SERVICE_ID},
        pool::{Pool, PoolNames},
        service_instance::ServiceInstance,
        setting::{By, Setting, SettingChange},
        token::AnnounceSecret,
    },
    store::{self, AnyStore, Fault, Store, memory::MemoryStore},
    telemetry::metrics::Metrics,
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::{harbor::AUTHORIZATION, http::Client};

/// Where the service instances of tests live.
pub const INSTANCES: &str = "/v2/service_instances";

/// What ends a delete's path.
pub const QUERY: &str = "service_id=7c1e4a52-8f2b-5d38-9a36-0f1d52c6b0e1&plan_id=e1f6b1f0-57f3-5c0e-8a0b-6d3a6f0c1a02";

/// A broker that listens.
pub struct Site {
    pub client: Client,
    pub address: SocketAddr,
    pub control: Arc<Control>,
    pub store: Arc<Breakable>,
    pub clock: Arc<TestClock>,
    pub opener: Arc<Opener>,
    /// What is known of other nodes.
    pub members: watch::Sender<Arc<Members>>,
    pub metrics: Metrics,
    _shutdown: DropGuard,
}

/// A site whose pool `default` has `ports`, and whose pool `games` has the ones after them: `first..first + 20` and
/// `first + 20..first + 25`.
pub async fn site(first: u16) -> Site {
    site_with(&format!("{first}-{}", first + 19), &format!("{}-{}", first + 20, first + 24)).await
}

/// A site with these two pools.
pub async fn site_with(default: &str, games: &str) -> Site {
    let pool = |name: &str, ports: &str, names: PoolNames| Pool {
        name: PoolName::new(name).unwrap(),
        ports: ports.parse().unwrap(),
        names,
        int_port: 4100,
        quarantine: Duration::from_secs(900),
        retired: false,
    };
    let public = PoolNames {
        host: Some("10.0.0.5".into()),
        hostname: Some("harbor.internal".into()),
        host_external: Some("192.0.43.10".into()),
        hostname_external: Some("ext-services.example.com".into()),
    };
    let internal = PoolNames { host: Some("fd00::5".into()), ..PoolNames::default() };
    let store = Arc::new(Breakable::default());
    let clock = Arc::new(TestClock::default());
    let opener = Arc::new(Opener::default());
    let members = watch::Sender::default();
    let (observations_sender, observations) = watch::channel(Arc::new(Observations::default()));
    let settings = control::Settings {
        node: NodeId::new("harbor_node_1").unwrap(),
        pools: vec![pool("default", default, public), pool("games", games, internal)],
        plans: plans(),
        limits: ForwarderLimits::default(),
        announce_url: Some("https://harbor-announce.example.com/".into()),
    };
    let any: AnyStore = store.clone();
    let metrics = Metrics::new();
    let control = Control::open(
        settings,
        any,
        clock.clone(),
        observations,
        members.subscribe(),
        Arc::clone(&metrics.control),
        async || Ok(()),
    )
    .await
    .unwrap();
    let access = Arc::new(broker::Passwords::new("harbor", &["secret".into(), "n:ew".into()]));
    let router = broker::router(Arc::clone(&control), access, Arc::clone(&metrics.broker));
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let tasks = tokio_util::task::TaskTracker::new();
    tasks.spawn(http::serve(listener, None, router, http::Limits::default(), shutdown.clone()));
    tasks.spawn(Arc::clone(&opener).run(control.desired(), observations_sender, shutdown.clone()));
    let client = Client::broker(address, AUTHORIZATION);
    Site { client, address, control, store, clock, opener, members, metrics, _shutdown: shutdown.drop_guard() }
}

/// The four plans, and two of an operator.
pub fn plans() -> Vec<Plan> {
    let mut plans = Plan::built_in(&PoolName::new("default").unwrap());
    let tcp = plans[1].clone();
    plans.push(Plan {
        id: Plan::derived_id("strict"),
        name: "strict".into(),
        protocol: PlanProtocol::Fixed(Protocol::Tcp),
        choose_port: false,
        match_app: false,
        caps: Caps { max_connections: Some(10), idle_timeout: Some(Duration::from_secs(600)) },
        ..tcp.clone()
    });
    plans.push(Plan {
        id: Plan::derived_id("games"),
        name: "games".into(),
        pool: PoolName::new("games").unwrap(),
        protocol: PlanProtocol::Fixed(Protocol::Both),
        ..tcp
    });
    plans
}

/// The id of a plan by its name.
pub fn plan(name: &str) -> String {
    plans().into_iter().find(|plan| plan.name == name).map(|plan| plan.id.to_string()).expect("a plan of these tests")
}

/// A provision request as the Cloud Controller sends it.
pub fn request(plan_name: &str) -> Value {
    json!({
        "service_id": SERVICE_ID,
        "plan_id": plan(plan_name),
        "organization_guid": "org-1",
        "space_guid": "space-1",
        "context": { "platform": "cloudfoundry", "organization_guid": "org-1", "instance_name": "my-port" },
    })
}

/// The same with parameters.
pub fn request_with(plan_name: &str, parameters: Value) -> Value {
    let mut request = request(plan_name);
    request["parameters"] = parameters;
    request
}

/// A bind request for an app.
pub fn bind_app(app: &str) -> Value {
    json!({
        "service_id": SERVICE_ID,
        "plan_id": plan("tcp"),
        "app_guid": app,
        "bind_resource": { "app_guid": app, "space_guid": "space-1" },
        "context": { "platform": "cloudfoundry" },
    })
}

/// A bind request for a service key.
pub fn bind_key() -> Value {
    json!({ "service_id": SERVICE_ID, "plan_id": plan("tcp"), "bind_resource": {} })
}

/// A refusal without a code.
pub fn refused(description: &str) -> Value {
    json!({ "description": description })
}

impl Site {
    /// Provisions a service instance that must be new.
    pub async fn provision(&self, id: &str, body: &Value) {
        let answer = self.client.put(&format!("{INSTANCES}/{id}"), body).await;
        assert_eq!(answer.parts(), (201, json!({})));
    }

    /// Sends a request that must be answered so.
    #[track_caller]
    pub fn answers(
        &self,
        method: &'static str,
        path: &str,
        body: Value,
        status: u16,
        expected: Value,
    ) -> impl Future<Output = ()> {
        let (client, path, caller) = (self.client.clone(), path.to_owned(), std::panic::Location::caller());
        async move {
            let body = (!body.is_null()).then_some(body);
            let answer = client.send(method.parse().unwrap(), &path, body.as_ref()).await;
            assert_eq!(answer.parts(), (status, expected), "{method} {path} at {caller}");
        }
    }

    /// Another node of the pool `default` says that it has applied this revision, and which ports it could not open, as
    /// somebody else holds them.
    pub fn another_node_says(&self, applied: Revision, held: &[&ServiceInstance]) {
        let failure = |instance: &&ServiceInstance| PortFailure {
            service_instance_id: instance.id.clone(),
            port: instance.port,
            held: true,
            reason: "Address already in use".into(),
            since: Timestamp(0),
        };
        let failures = held.iter().map(failure).collect::<Vec<_>>();
        let member = Member {
            id: NodeId::new("another").unwrap(),
            incarnation: "1".into(),
            version: "0.1.0".into(),
            pools: vec![PoolName::new("default").unwrap()],
            report: Report { applied, failed: failures.len() as u64, failures, ..Report::default() },
            drain: false,
            joined_at: Timestamp(0),
            seen_at: Timestamp(0),
        };
        self.members.send_replace(Arc::new(Members::presumed_alive(vec![member])));
    }

    /// The service instance as it is stored.
    pub async fn stored(&self, id: &str) -> Option<ServiceInstance> {
        self.store.instance(&ServiceInstanceId::new(id).unwrap()).await.unwrap()
    }

    /// The ports on which this listener is bound, by protocol.
    pub fn bound(&self, id: &str) -> Option<(u16, Protocol)> {
        self.opener.bound(&ServiceInstanceId::new(id).unwrap())
    }

    /// All that is stored.
    pub async fn everything(&self) -> store::Changes {
        self.store.everything().await.unwrap()
    }
}

/// Time that stands still until it is told to go on.
#[derive(Debug)]
pub struct TestClock {
    began: Instant,
    wall: AtomicI64,
}

impl Default for TestClock {
    fn default() -> Self {
        Self { began: Instant::now(), wall: AtomicI64::new(1_700_000_000_000_000) }
    }
}

impl TestClock {
    pub fn advance(&self, by: Duration) {
        self.wall.fetch_add(i64::try_from(by.as_micros()).unwrap(), Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Instant {
        self.began
    }

    fn wall(&self) -> Timestamp {
        Timestamp(self.wall.load(Ordering::SeqCst))
    }
}

/// Binds what is desired on loopback, and says what has become of it.
#[derive(Debug, Default)]
pub struct Opener {
    open: Mutex<HashMap<ServiceInstanceId, Open>>,
    broken: Mutex<Option<&'static str>>,
}

#[derive(Debug)]
struct Open {
    port: u16,
    tcp: Option<TcpListener>,
    udp: Option<UdpSocket>,
}

impl Opener {
    /// From now on nothing can be bound, for this reason.
    pub fn break_down(&self, reason: Option<&'static str>) {
        *self.broken.lock().unwrap() = reason;
    }

    fn bound(&self, id: &ServiceInstanceId) -> Option<(u16, Protocol)> {
        let open = self.open.lock().unwrap();
        let open = open.get(id)?;
        let protocol = match (&open.tcp, &open.udp) {
            (Some(_), Some(_)) => Protocol::Both,
            (Some(_), None) => Protocol::Tcp,
            (None, Some(_)) => Protocol::Udp,
            (None, None) => return None,
        };
        Some((open.port, protocol))
    }

    async fn run(
        self: Arc<Self>,
        mut desired: watch::Receiver<Arc<DesiredState>>,
        observations: watch::Sender<Arc<Observations>>,
        shutdown: CancellationToken,
    ) {
        loop {
            let state = desired.borrow_and_update().clone();
            observations.send_replace(Arc::new(self.reconcile(&state)));
            match shutdown.run_until_cancelled(desired.changed()).await {
                Some(Ok(())) => {}
                Some(Err(_)) | None => return,
            }
        }
    }

    fn reconcile(&self, state: &DesiredState) -> Observations {
        let mut open = self.open.lock().unwrap();
        open.retain(|id, open| state.listeners.get(id).is_some_and(|spec| spec.port == open.port));
        let mut observations = Observations::default();
        observations.applied = Some(state.revision);
        for (id, spec) in state.listeners.iter() {
            let broken = *self.broken.lock().unwrap();
            let slot = open.entry(id.clone()).or_insert(Open { port: spec.port, tcp: None, udp: None });
            let state = slot.reconcile(spec.protocol, broken);
            let seen = ListenerObservation { version: spec.version, state, since: Timestamp::default() };
            observations.insert(id.clone(), seen);
        }
        observations
    }
}

impl Open {
    fn reconcile(&mut self, protocol: Protocol, broken: Option<&'static str>) -> ListenerState {
        let address = (Ipv4Addr::LOCALHOST, self.port);
        if !protocol.has(Transport::Tcp) {
            self.tcp = None;
        }
        if !protocol.has(Transport::Udp) {
            self.udp = None;
        }
        let mut bind = || {
            if protocol.has(Transport::Tcp) && self.tcp.is_none() {
                broken.map_or(Ok(()), |reason| Err(std::io::Error::other(reason)))?;
                self.tcp = Some(TcpListener::bind(address)?);
            }
            if protocol.has(Transport::Udp) && self.udp.is_none() {
                broken.map_or(Ok(()), |reason| Err(std::io::Error::other(reason)))?;
                self.udp = Some(UdpSocket::bind(address)?);
            }
            Ok::<_, std::io::Error>(())
        };
        match bind() {
            Ok(()) => ListenerState::Bound,
            Err(error) => ListenerState::Failed {
                held: error.kind() == std::io::ErrorKind::AddrInUse,
                reason: error.to_string().into(),
            },
        }
    }
}

/// The store in memory, with one call that can be made to fail.
#[derive(Debug, Default)]
pub struct Breakable {
    inner: MemoryStore,
    broken: Mutex<Option<&'static str>>,
    shared: AtomicBool,
}

impl Breakable {
    /// From now on it counts as a store of several nodes.
    pub fn share(&self) {
        self.shared.store(true, Ordering::Relaxed);
    }

    /// From now on this call fails; with `panic` every one panics.
    pub fn break_down(&self, call: Option<&'static str>) {
        *self.broken.lock().unwrap() = call;
    }

    fn check(&self, call: &'static str) -> store::Result<()> {
        let broken = *self.broken.lock().unwrap();
        assert_ne!(broken, Some("panic"), "as the test wants it");
        if broken == Some(call) {
            return Err(Fault { doing: call.into(), source: "the disk at /secret/path is full".into() });
        }
        Ok(())
    }
}

#[async_trait]
impl Store for Breakable {
    async fn announce_secret(&self) -> store::Result<AnnounceSecret> {
        self.inner.announce_secret().await
    }

    async fn rotate_announce_secret(&self, by: &By) -> store::Result<bool> {
        self.inner.rotate_announce_secret(by).await
    }

    async fn drop_former_secret(&self, by: &By) -> store::Result<bool> {
        self.inner.drop_former_secret(by).await
    }

    async fn everything(&self) -> store::Result<store::Changes> {
        self.inner.everything().await
    }

    async fn changes_since(&self, revision: Revision) -> store::Result<Option<store::Changes>> {
        self.check("changes_since")?;
        self.inner.changes_since(revision).await
    }

    async fn ports(&self, pool: &PoolName) -> store::Result<Vec<store::PortRow>> {
        self.inner.ports(pool).await
    }

    async fn reservations(&self, pool: &PoolName) -> store::Result<Vec<store::Reservation>> {
        self.inner.reservations(pool).await
    }

    async fn reservation_changes(&self, pool: &PoolName) -> store::Result<Vec<Setting>> {
        self.inner.reservation_changes(pool).await
    }

    async fn instances_at(
        &self,
        pool: &PoolName,
        ports: std::ops::RangeInclusive<u16>,
    ) -> store::Result<Vec<ServiceInstance>> {
        self.inner.instances_at(pool, ports).await
    }

    async fn change_reservations(
        &self,
        released: &[(PoolName, String)],
        made: &[store::Reservation],
        known: &BTreeSet<(PoolName, u16)>,
        by: &By,
    ) -> store::Result<bool> {
        self.inner.change_reservations(released, made, known, by).await
    }

    async fn settings(&self) -> store::Result<(Revision, Vec<Setting>)> {
        self.inner.settings().await
    }

    async fn change_settings(
        &self,
        changes: &[SettingChange],
        by: &By,
        read_at: Revision,
    ) -> store::Result<Option<Revision>> {
        self.inner.change_settings(changes, by, read_at).await
    }

    async fn settings_history(&self, limit: usize) -> store::Result<Vec<Setting>> {
        self.inner.settings_history(limit).await
    }

    async fn instance(&self, id: &ServiceInstanceId) -> store::Result<Option<ServiceInstance>> {
        self.check("instance")?;
        self.inner.instance(id).await
    }

    async fn binding(&self, instance: &ServiceInstanceId, id: &BindingId) -> store::Result<Option<Binding>> {
        self.inner.binding(instance, id).await
    }

    async fn provision(
        &self,
        instance: &ServiceInstance,
        open_later: bool,
        now: Timestamp,
    ) -> store::Result<store::Provision> {
        self.check("provision")?;
        self.inner.provision(instance, open_later, now).await
    }

    async fn move_port(
        &self,
        id: &ServiceInstanceId,
        from: u16,
        to: u16,
        by: Option<&NodeId>,
        now: Timestamp,
    ) -> store::Result<store::Change> {
        self.inner.move_port(id, from, to, by, now).await
    }

    async fn update(&self, instance: &ServiceInstance) -> store::Result<store::Change> {
        self.check("update")?;
        self.inner.update(instance).await
    }

    async fn deprovision(
        &self,
        id: &ServiceInstanceId,
        now: Timestamp,
        ending: store::Ending<'_>,
    ) -> store::Result<Option<ServiceInstance>> {
        self.check("deprovision")?;
        let gone = self.inner.deprovision(id, now, ending).await?;
        self.check("after deprovision")?;
        Ok(gone)
    }

    async fn bind(&self, binding: &Binding) -> store::Result<store::Bind> {
        self.check("bind")?;
        self.inner.bind(binding).await
    }

    async fn unbind(&self, instance: &ServiceInstanceId, id: &BindingId) -> store::Result<Option<Binding>> {
        self.check("unbind")?;
        self.inner.unbind(instance, id).await
    }

    async fn operation(&self, id: &ServiceInstanceId, now: Timestamp) -> store::Result<Option<store::Operation>> {
        self.inner.operation(id, now).await
    }

    async fn operations(&self) -> store::Result<Vec<store::Operation>> {
        self.inner.operations().await
    }

    async fn take_up(&self, id: &ServiceInstanceId, from: &NodeId, to: &NodeId, now: Timestamp) -> store::Result<bool> {
        self.inner.take_up(id, from, to, now).await
    }

    async fn opened(&self, id: &ServiceInstanceId, by: &NodeId) -> store::Result<bool> {
        self.inner.opened(id, by).await
    }

    async fn pools(&self) -> store::Result<(Revision, Vec<Pool>)> {
        self.inner.pools().await
    }

    async fn drop_pools(&self, pools: &[PoolName], by: &By, read_at: Revision) -> store::Result<Option<Revision>> {
        self.inner.drop_pools(pools, by, read_at).await
    }

    async fn define_pools(&self, pools: &[Pool], read_at: Revision) -> store::Result<Option<Revision>> {
        self.inner.define_pools(pools, read_at).await
    }

    async fn export(&self) -> store::Result<store::Dump> {
        self.inner.export().await
    }

    async fn import(&self, dump: &store::Dump) -> store::Result<bool> {
        self.inner.import(dump).await
    }

    async fn join(&self, member: &Member) -> store::Result<()> {
        self.check("join")?;
        self.inner.join(member).await
    }

    async fn report(
        &self,
        node: &NodeId,
        incarnation: &str,
        report: &Report,
        now: Timestamp,
    ) -> store::Result<store::Heard> {
        self.inner.report(node, incarnation, report, now).await
    }

    async fn set_drain(&self, node: &NodeId, drain: bool) -> store::Result<bool> {
        self.inner.set_drain(node, drain).await
    }

    async fn remove_node(&self, node: &NodeId) -> store::Result<bool> {
        self.inner.remove_node(node).await
    }

    async fn members(&self) -> store::Result<Vec<Member>> {
        self.inner.members().await
    }

    async fn feed(&self) -> store::Result<Box<dyn store::Feed>> {
        self.inner.feed().await
    }

    async fn ping(&self) -> store::Result<()> {
        self.inner.ping().await
    }

    fn serves_many(&self) -> bool {
        self.shared.load(Ordering::Relaxed)
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
