//! Active checks: a connection that ends at once tells whether a backend takes any.
//!
//! Each checked backend has a task, which sleeps but for its checks; [`run`] starts and ends them as service instances and
//! sets change. Passive failures are the forwarder's to note; both only put a backend behind the others.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, watch},
    task::{AbortHandle, JoinSet},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::probe::{Connect, takes_connections};
use crate::{
    backends::{Backend, Backends, Health, Slot},
    model::{Clock, ServiceInstanceId, desired::DesiredState, parameters::TcpCheck},
    telemetry::metrics::HealthMetrics,
};

/// Checks at a time, over all service instances: each has a socket.
pub const MAX_CHECKS: usize = 128;

/// Checks at a time of one service instance: one whose backends do not answer keeps few others waiting.
pub const MAX_CHECKS_EACH: usize = 8;

/// How soon a backend that was announced is checked, at the latest.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How far an interval may be from its length, either way: so that those that came together do not stay together.
const JITTER: f64 = 0.1;

/// Checks backends until `shutdown`.
pub async fn run(
    backends: Backends,
    mut desired: watch::Receiver<Arc<DesiredState>>,
    connect: Arc<Connect>,
    clock: Arc<dyn Clock>,
    metrics: Arc<HealthMetrics>,
    shutdown: CancellationToken,
) {
    let means = Arc::new(Means { permits: Semaphore::new(MAX_CHECKS), connect, clock, metrics });
    let (mut seen, mut instances) = (Arc::<DesiredState>::default(), HashMap::new());
    let mut checks = Checks::default();
    desired.mark_changed();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = desired.changed() => {
                if changed.is_err() {
                    return shutdown.cancelled().await;
                }
                let latest = Arc::clone(&desired.borrow_and_update());
                update(&mut instances, &seen, &latest, &backends);
                seen = latest;
            }
            () = sleep(LOOK_EVERY), if !instances.is_empty() => {}
        }
        checks.follow(&instances, &means);
    }
}

/// A service instance that asks for checks.
struct Checked {
    check: TcpCheck,
    slot: Arc<Slot>,
}

/// Makes of those that `seen` asked for those that `desired` asks for.
fn update(
    instances: &mut HashMap<ServiceInstanceId, Checked>,
    seen: &DesiredState,
    desired: &DesiredState,
    backends: &Backends,
) {
    let checked = |id: &ServiceInstanceId| {
        let check = desired.listeners.get(id)?.settings.health_check?.tcp()?;
        Some(Checked { check, slot: backends.slot(id) })
    };
    let Some(changed) = desired.listeners.changed_since(&seen.listeners) else {
        *instances = desired.listeners.keys().filter_map(|id| Some((id.clone(), checked(id)?))).collect();
        return;
    };
    for id in changed {
        match checked(&id) {
            Some(checked) => _ = instances.insert(id, checked),
            None => _ = instances.remove(&id),
        }
    }
}

/// What every check needs.
struct Means {
    permits: Semaphore,
    connect: Arc<Connect>,
    clock: Arc<dyn Clock>,
    metrics: Arc<HealthMetrics>,
}

/// The tasks that run; they end when this is dropped.
#[derive(Default)]
struct Checks {
    tasks: JoinSet<()>,
    running: HashMap<(ServiceInstanceId, SocketAddr), Running>,
    turns: HashMap<ServiceInstanceId, Arc<Semaphore>>,
}

struct Running {
    check: TcpCheck,
    backend: Weak<Backend>,
    task: AbortHandle,
}

impl Checks {
    /// Starts and ends tasks until there is one for each backend that is to be checked.
    fn follow(&mut self, instances: &HashMap<ServiceInstanceId, Checked>, means: &Arc<Means>) {
        while self.tasks.try_join_next().is_some() {}
        let mut wanted = HashMap::new();
        for (id, Checked { check, slot }) in instances {
            for backend in &slot.load().tcp {
                wanted.insert((id.clone(), backend.endpoint.address), (*check, Arc::clone(backend)));
            }
        }
        self.running.retain(|key, running| {
            let stays = wanted.get(key).is_some_and(|(check, backend)| {
                *check == running.check && running.backend.as_ptr() == Arc::as_ptr(backend)
            });
            if stays {
                wanted.remove(key);
            } else {
                running.task.abort();
                // Whoever is not checked any more is not down for ever.
                running.backend.upgrade().inspect(|backend| backend.set_health(Health::Unchecked, means.clock.now()));
            }
            stays
        });
        for (key, (check, backend)) in wanted {
            let turns = self.turns.entry(key.0.clone()).or_insert_with(|| Arc::new(Semaphore::new(MAX_CHECKS_EACH)));
            let watch = Watch {
                id: key.0.clone(),
                backend: Arc::downgrade(&backend),
                check,
                turns: Arc::clone(turns),
                means: Arc::clone(means),
            };
            let running = Running { check, backend: Weak::clone(&watch.backend), task: self.tasks.spawn(watch.over()) };
            self.running.insert(key, running);
        }
        self.turns.retain(|_, turns| Arc::strong_count(turns) > 1);
    }
}

/// One checked backend.
struct Watch {
    id: ServiceInstanceId,
    backend: Weak<Backend>,
    check: TcpCheck,
    /// Those of its service instance.
    turns: Arc<Semaphore>,
    means: Arc<Means>,
}

impl Watch {
    /// Checks it for as long as it is there.
    async fn over(self) {
        let Self { id, check, means, .. } = &self;
        let mut streak = Streak::default();
        // Not all at once when a node starts.
        let mut pause = check.interval.mul_f64(fastrand::f64());
        loop {
            sleep(pause).await;
            let Some(address) = self.backend.upgrade().map(|backend| backend.endpoint.address) else { return };
            let works = {
                // First one's own turn: who waits for the others' does not stand in their way.
                let _turn = self.turns.acquire().await.expect("the semaphore is never closed");
                let _permit = means.permits.acquire().await.expect("the semaphore is never closed");
                takes_connections(&*means.connect, address, check.timeout).await
            };
            let Some(backend) = self.backend.upgrade() else { return };
            means.metrics.checked(works);
            let (before, _) = backend.health();
            if let Some(health) = streak.after(works, before, *check) {
                backend.set_health(health, means.clock.now());
                match health {
                    Health::Down => tracing::warn!(service_instance = %id, %address, "a backend takes no connections"),
                    _ => tracing::info!(service_instance = %id, %address, "a backend takes connections"),
                }
            }
            pause = check.interval.mul_f64(1.0 - JITTER + 2.0 * JITTER * fastrand::f64());
        }
    }
}

/// How often in a row it has worked, or not.
#[derive(Debug, Default)]
struct Streak {
    worked: bool,
    length: u8,
}

impl Streak {
    /// What the backend is from now on, when that changes.
    fn after(&mut self, works: bool, health: Health, check: TcpCheck) -> Option<Health> {
        self.length = if self.worked == works { self.length.saturating_add(1) } else { 1 };
        self.worked = works;
        match (works, health) {
            (true, Health::Unchecked) => Some(Health::Up),
            (true, Health::Down) => (self.length >= check.rise).then_some(Health::Up),
            (false, Health::Unchecked | Health::Up) => (self.length >= check.fall).then_some(Health::Down),
            (true, Health::Up) | (false, Health::Down) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        PoolName, Protocol,
        desired::ListenerSpec,
        parameters::{HealthCheck, Settings},
    };

    #[test]
    fn looking_where_changes_were_finds_all_that_ask_for_checks() {
        let mut random = fastrand::Rng::with_seed(1);
        let (backends, mut desired) = (Backends::new(1), DesiredState::default());
        let (mut instances, mut seen) = (HashMap::new(), DesiredState::default());
        for step in 0..400_u64 {
            // More than a trail remembers, now and then.
            for _ in 0..*random.choice(&[1, 1, 3, 100]).unwrap() {
                let id = ServiceInstanceId::new(random.u8(..20).to_string()).unwrap();
                let spec = ListenerSpec {
                    service_instance_id: id.clone(),
                    pool: PoolName::new("default").unwrap(),
                    port: 30_000,
                    protocol: Protocol::Tcp,
                    settings: Settings {
                        health_check: random
                            .bool()
                            .then(|| HealthCheck::Tcp(TcpCheck { rise: random.u8(1..9), ..TcpCheck::default() })),
                        ..Settings::default()
                    },
                    version: step,
                };
                match random.u8(..3) {
                    0 => desired.listeners.remove_mut(&id),
                    _ => desired.listeners.insert_mut(id, Arc::new(spec)),
                };
            }
            update(&mut instances, &seen, &desired, &backends);
            seen = desired.clone();
            let mut all = HashMap::new();
            update(&mut all, &DesiredState::default(), &desired, &backends);
            assert_eq!(instances.len(), all.len());
            for (id, Checked { check, slot }) in &instances {
                assert_eq!(*check, all[id].check);
                assert!(Arc::ptr_eq(slot, &all[id].slot));
            }
        }
    }

    #[test]
    fn so_many_in_a_row_put_it_down_and_so_many_bring_it_back() {
        use Health::{Down, Unchecked, Up};
        let check = TcpCheck { rise: 2, fall: 3, ..TcpCheck::default() };
        let (mut streak, mut health) = (Streak::default(), Unchecked);
        for (works, expect) in [
            (true, Up),
            (false, Up),
            (false, Up),
            (true, Up),
            (false, Up),
            (false, Up),
            (false, Down),
            (false, Down),
            (true, Down),
            (false, Down),
            (true, Down),
            (true, Up),
        ] {
            health = streak.after(works, health, check).unwrap_or(health);
            assert_eq!(health, expect);
        }
        let (mut streak, mut health) = (Streak::default(), Unchecked);
        for expect in [Unchecked, Unchecked, Down] {
            health = streak.after(false, health, check).unwrap_or(health);
            assert_eq!(health, expect, "one that never worked has its chances too");
        }
    }
}
