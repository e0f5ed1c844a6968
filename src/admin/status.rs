//! `/admin/v1/status`: the node and what is around it, and what of that is wrong.

use std::{collections::HashMap, time::Instant};

use super::{
    Sources, nodes, restraints, secret,
    standing::Standing,
    wire::{self, rfc3339},
};
use crate::{
    backends::{BackendState, Phase},
    control::PoolUsage,
    model::{
        Revision, ServiceInstanceId, Transport,
        announcement::{AnnouncedState, Authority, Refusal},
        desired::ListenerSpec,
        observed::{Link, ListenerObservation, ListenerState, Observations},
    },
};

/// Most ports that are told one by one among what is wrong.
const MAX_FAILED_TOLD: usize = 5;

/// The status of this moment.
pub async fn status(sources: &Sources) -> wire::Status {
    tell(sources, |_| true).await
}

/// The same, but of the service instances only those whose port is not open: the others are counted, as there may be
/// thousands.
pub async fn summary(sources: &Sources) -> wire::Status {
    tell(sources, |state| matches!(state, Some(ListenerState::Failed { .. }))).await
}

/// The status, with those service instances one by one whose listener is in such a state.
async fn tell(sources: &Sources, one_by_one: impl Fn(Option<&ListenerState>) -> bool) -> wire::Status {
    let usage = sources.control.overview().await;
    let desired = sources.control.desired().borrow().clone();
    let observations = sources.observations.borrow().clone();
    let mut backends: HashMap<ServiceInstanceId, Vec<BackendState>> = HashMap::new();
    for (id, backend) in sources.backends.export() {
        backends.entry(id).or_default().push(backend);
    }
    let (now, wall) = (sources.clock.now(), sources.clock.wall());
    let mut backend_counts = wire::BackendCounts::default();
    for backend in backends.values().flatten() {
        match backend.backend.endpoint.transport {
            Transport::Tcp => backend_counts.tcp += 1,
            Transport::Udp => backend_counts.udp += 1,
        }
        let states = &mut backend_counts.states;
        let (standing, since) = Standing::of(backend, now);
        let state = match standing {
            Standing::Up => &mut states.up,
            Standing::Aside => &mut states.aside,
            Standing::Down => &mut states.down,
            Standing::Draining => &mut states.draining,
        };
        state.count += 1;
        state.longest_seconds = state.longest_seconds.max(now.saturating_duration_since(since).as_secs());
    }
    let past = |moment: Instant| rfc3339(wall.minus(now.saturating_duration_since(moment)));
    let mut refusals = (sources.refusals)();
    let backend = |state: &BackendState| wire::Backend {
        transport: state.backend.endpoint.transport.as_str().into(),
        address: state.backend.endpoint.address.to_string(),
        authority: match &state.backend.authority {
            Authority::App(app) => format!("app {app}"),
            Authority::Binding(binding) => format!("binding {binding}"),
            Authority::Trusted => "trusted".into(),
        },
        state: match (state.state, state.backend.phase()) {
            (AnnouncedState::Up, Phase::Serving) => "up".into(),
            _ => "draining".into(),
        },
        state_since: past(state.state_since),
        open: state.backend.open(),
        since: rfc3339(state.since),
        aside: state.backend.aside(now).is_some(),
        aside_since: state.backend.aside(now).map(|(since, _)| past(since)),
        health: state.backend.health().0.as_str().into(),
        health_since: past(state.backend.health().1),
        expires_in_seconds: state.expires_at.saturating_duration_since(now).as_secs(),
    };
    let mut listeners = wire::ListenerCounts::default();
    for spec in desired.listeners.values() {
        match state_of(spec, &observations) {
            Some(ListenerState::Bound) => listeners.bound += 1,
            Some(ListenerState::Failed { .. }) => listeners.failed += 1,
            Some(ListenerState::Closed) => listeners.closed += 1,
            None => listeners.pending += 1,
        }
    }
    let (directory, served) = (sources.control.directory().borrow().clone(), sources.control.served());
    let suspended = desired.restraints.suspended.iter().filter_map(|(id, restraint)| {
        let entry = directory.instance(id.as_str()).filter(|entry| served.contains(&entry.pool))?;
        let at = (&entry.pool, entry.port, entry.protocol);
        Some((id, at, wire::Listener::Suspended(restraints::told(restraint))))
    });
    let suspended = suspended.collect::<Vec<_>>();
    listeners.suspended = suspended.len();
    let all = desired.listeners.keys().chain(suspended.iter().map(|(id, ..)| *id));
    backend_counts.service_instances_without = all.filter(|id| !backends.contains_key(*id)).count();
    let listening = desired.listeners.values().filter(|spec| one_by_one(state_of(spec, &observations)));
    let listening = listening.map(|spec| {
        let at = (&spec.pool, spec.port, spec.protocol);
        (&spec.service_instance_id, at, listener(spec, &observations))
    });
    let mut service_instances: Vec<_> = listening
        .chain(suspended)
        .map(|(id, (pool, port, protocol), listener)| wire::ServiceInstance {
            id: id.to_string(),
            pool: pool.to_string(),
            port,
            protocol: protocol.as_str().into(),
            listener,
            backends: backends.get(id).into_iter().flatten().map(backend).collect(),
            refusals: refused(refusals.remove(&Some(id.clone()))),
        })
        .collect();
    service_instances.sort_by(|a, b| {
        let place = |instance: &wire::ServiceInstance| match instance.listener {
            wire::Listener::Failed { .. } => 0,
            wire::Listener::Suspended(_) => 1,
            _ => 2,
        };
        (place(a), &a.pool, a.port).cmp(&(place(b), &b.pool, b.port))
    });
    let mut status = wire::Status {
        degraded: Vec::new(),
        node: sources.node.to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
        process: std::process::id(),
        mode: wire::Mode::of(*sources.mode.borrow()),
        started_at: rfc3339(sources.started_at),
        revision_desired: desired.revision.0,
        revision_applied: observations.applied.map(|Revision(number)| number),
        store: link(&sources.store.borrow()),
        nats: link(&sources.nats.borrow()),
        nodes: nodes::nodes(sources),
        pools: usage.into_iter().map(pool).collect(),
        listeners,
        secret_rotation: secret::rotation(&sources.control),
        networks_blocked: desired.restraints.blocked.len(),
        backends: backend_counts,
        refusals: refused(refusals.remove(&None)),
        service_instances,
    };
    let behind = sources.settings_behind.borrow();
    status.degraded = degraded(&status, sources.members.borrow().superseded, behind.as_deref());
    status
}

fn refused(refusals: Option<Vec<Refusal>>) -> Vec<wire::Refusal> {
    let refusal = |refusal: Refusal| wire::Refusal {
        at: rfc3339(refusal.at),
        first_at: rfc3339(refusal.first_at),
        count: refusal.count,
        source: refusal.source.as_str().into(),
        reason: refusal.reason.as_str().into(),
        named: refusal.of.named,
        app: refusal.of.app,
        host: refusal.of.host,
        port: refusal.of.port,
        udp_port: refusal.of.udp_port,
        detail: refusal.of.detail,
    };
    refusals.unwrap_or_default().into_iter().map(refusal).collect()
}

fn state_of<'o>(spec: &ListenerSpec, observations: &'o Observations) -> Option<&'o ListenerState> {
    observations.get(&spec.service_instance_id).map(|observation| &observation.state)
}

/// Whether a listener is open.
pub(super) fn listener(spec: &ListenerSpec, observations: &Observations) -> wire::Listener {
    match observations.get(&spec.service_instance_id) {
        None => wire::Listener::Pending,
        Some(ListenerObservation { state: ListenerState::Bound, since, .. }) => {
            wire::Listener::Bound { since: rfc3339(*since) }
        }
        Some(ListenerObservation { state: ListenerState::Closed, since, .. }) => {
            wire::Listener::Closed { since: rfc3339(*since) }
        }
        Some(ListenerObservation { state: ListenerState::Failed { reason, .. }, since, .. }) => {
            wire::Listener::Failed { since: rfc3339(*since), reason: reason.to_string() }
        }
    }
}

/// How a pool is.
pub(super) fn pool(usage: PoolUsage) -> wire::Pool {
    wire::Pool {
        name: usage.name.to_string(),
        size: usage.ports.len(),
        ports: usage.ports.to_string(),
        free: usage.counts.free,
        allocated: usage.counts.allocated,
        quarantined: usage.counts.quarantined,
        reserved: usage.counts.reserved,
        in_conflict: usage.counts.in_conflict,
        retired: usage.retired,
        differences: usage.differences.map(|differences| differences.to_string()),
    }
}

fn link(link: &Link) -> wire::Link {
    match link {
        Link::Absent => wire::Link::Absent,
        Link::Up(since) => wire::Link::Up { since: rfc3339(*since) },
        Link::Down(since, reason) => wire::Link::Down { since: rfc3339(*since), reason: reason.to_string() },
    }
}

/// What is wrong, the worst first: what stops all, then what stops changes, then what stops some. A service instance
/// without backends is not among it: its app may not be running.
fn degraded(status: &wire::Status, superseded: bool, settings_behind: Option<&str>) -> Vec<String> {
    let mut reasons = Vec::new();
    match status.mode {
        wire::Mode::Serving => {}
        wire::Mode::Starting => reasons.push("the node is starting: not all ports are open yet".into()),
        wire::Mode::Draining => reasons.push("the node is draining: clients should be sent to others".into()),
    }
    if let wire::Link::Down { since, reason } = &status.store {
        reasons.push(format!(
            "the store is away since {since} ({reason}): ports go on, but nothing can be provisioned or bound"
        ));
    }
    if let wire::Link::Down { since, reason } = &status.nats {
        reasons.push(format!(
            "NATS is away since {since} ({reason}): known backends go on, new ones are not learned from it"
        ));
    }
    if superseded {
        reasons.push(format!(
            "another process has joined as {} and speaks for it: give each node a harbor_node.id of its own, and restart one",
            status.node
        ));
    }
    if let Some(reason) = settings_behind {
        reasons.push(format!(
            "live settings are not in force on this node, since {reason}: change its file, or take back what does not fit"
        ));
    }
    // What ails this node is told below, by its own word.
    let others = status.nodes.iter().filter(|node| node.id != status.node);
    reasons.extend(others.flat_map(|node| node.problems.iter().cloned()));
    for (pool, differences) in status.pools.iter().filter_map(|pool| Some((pool, pool.differences.as_ref()?))) {
        reasons.push(format!(
            "this node's file is not what the nodes have agreed on: {differences}, of the pool {}; make the files the same",
            pool.name
        ));
    }
    for pool in status.pools.iter().filter(|pool| pool.free == 0 && !pool.retired) {
        reasons.push(format!("pool {} has no free port: widen its port_range", pool.name));
    }
    let mut failed = status.service_instances.iter().filter_map(|instance| match &instance.listener {
        wire::Listener::Failed { since, reason } => Some(format!(
            "port {} is not open since {since}: {reason}; service instance {}",
            instance.port, instance.id
        )),
        _ => None,
    });
    reasons.extend(failed.by_ref().take(MAX_FAILED_TOLD));
    let untold = failed.count();
    if untold > 0 {
        reasons.push(format!("{untold} more ports are not open"));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    fn fine() -> wire::Status {
        let since = rfc3339(Timestamp::from_seconds(1_795_252_518));
        let pool = wire::Pool {
            name: "default".into(),
            ports: "35000-35009".into(),
            size: 10,
            free: 10,
            allocated: 0,
            quarantined: 0,
            reserved: 0,
            in_conflict: 0,
            retired: false,
            differences: None,
        };
        wire::Status {
            degraded: vec![],
            node: "harbor_node_1".into(),
            version: "0.1.0".into(),
            process: 4242,
            mode: wire::Mode::Serving,
            started_at: since.clone(),
            revision_desired: 0,
            revision_applied: Some(0),
            store: wire::Link::Up { since },
            nats: wire::Link::Absent,
            nodes: vec![],
            pools: vec![pool],
            listeners: wire::ListenerCounts::default(),
            secret_rotation: None,
            networks_blocked: 0,
            backends: wire::BackendCounts::default(),
            refusals: vec![],
            service_instances: vec![],
        }
    }

    fn failed(port: u16) -> wire::ServiceInstance {
        wire::ServiceInstance {
            id: format!("id-{port}"),
            pool: "default".into(),
            port,
            protocol: "tcp".into(),
            listener: wire::Listener::Failed { since: "then".into(), reason: "nginx has it".into() },
            backends: vec![],
            refusals: vec![],
        }
    }

    #[test]
    fn a_node_with_nothing_to_do_is_fine() {
        assert_eq!(degraded(&fine(), false, None), Vec::<String>::new());
    }

    #[test]
    fn the_worst_comes_first_and_the_list_ends() {
        let mut status = fine();
        status.mode = wire::Mode::Draining;
        status.store = wire::Link::Down { since: "then".into(), reason: "disk full".into() };
        status.nats = wire::Link::Down { since: "then".into(), reason: "connection refused".into() };
        status.pools[0].free = 0;
        status.service_instances = (35000..35008).map(failed).collect();
        let reasons = degraded(&status, false, None);
        assert_eq!(
            reasons[..5],
            [
                "the node is draining: clients should be sent to others",
                "the store is away since then (disk full): ports go on, but nothing can be provisioned or bound",
                "NATS is away since then (connection refused): known backends go on, new ones are not learned from it",
                "pool default has no free port: widen its port_range",
                "port 35000 is not open since then: nginx has it; service instance id-35000",
            ]
        );
        assert_eq!((reasons.len(), reasons[9].as_str()), (10, "3 more ports are not open"));
    }
}
