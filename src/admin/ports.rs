//! `/admin/v1/ports`: what every port is, and which are held back.

use std::{ops::RangeInclusive, str::FromStr as _, sync::Arc};

use axum::{
    Json,
    body::Body,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{Method, StatusCode},
    response::{IntoResponse as _, Response},
};

use super::{
    Route, Sources,
    request::{Operator, read},
    restraints, status,
    wire::{
        Listener,
        ports::{self as wire, APPLY_PATH, MAX_PAGE, PAGE, PORTS_PATH, RESERVATIONS_PATH},
        rfc3339,
    },
};
use crate::{
    backends::Health,
    control::{
        Applied, ListRefusal, ListedAs, ListedPool, ListedPort, PortQuery, ReservationRefusal, StateWord, WantedPool,
    },
    http::{refusal, sentence},
    model::{
        PoolName, PortSet, Protocol, Timestamp,
        announcement::AnnouncedState,
        port_plan::{Leave, Step},
        registry::{Block, Wanted, Wish},
        service_instance::ServiceInstance,
    },
};

pub(super) fn routes() -> [Route; 4] {
    let reservation = || format!("{RESERVATIONS_PATH}/{{pool}}/{{name}}");
    [
        Route::new(Method::GET, PORTS_PATH, list),
        Route::new(Method::POST, APPLY_PATH, apply),
        Route::new(Method::PUT, reservation(), reserve),
        Route::new(Method::DELETE, reservation(), release),
    ]
}

async fn list(State(sources): State<Arc<Sources>>, query: Result<Query<wire::PortsQuery>, QueryRejection>) -> Response {
    let query = query.map_err(|rejected| wrong(&rejected.body_text())).and_then(|Query(query)| asked(query));
    let query = match query {
        Ok(query) => query,
        Err(refused) => return *refused,
    };
    match sources.control.list_ports(query).await {
        Ok(page) => Json(wire::Ports {
            pools: page.pools.into_iter().map(pool).collect(),
            ports: page.ports.into_iter().map(|listed| port(listed, &sources)).collect(),
            proxy_from: sources.control.desired().borrow().limits.proxy_from.iter().map(ToString::to_string).collect(),
            next: page.next.map(|(pool, port)| format!("{pool}:{port}")),
        })
        .into_response(),
        Err(refused) => {
            let status = match &refused {
                ListRefusal::UnknownPool(_) => StatusCode::NOT_FOUND,
                ListRefusal::Fault(_) => StatusCode::SERVICE_UNAVAILABLE,
            };
            refusal(status, None, sentence(&refused.to_string()))
        }
    }
}

async fn reserve(
    State(sources): State<Arc<Sources>>,
    Operator(who): Operator,
    Path((pool, name)): Path<(String, String)>,
    body: Body,
) -> Response {
    let asked = async {
        let pool = known_name(pool)?;
        let wanted = read::<wire::WantedPorts>(body).await.map_err(Box::new)?;
        let wire::WantedPorts { port, count, protocol, when_free } = wanted;
        Ok::<_, Refused>((pool, wish(wire::ApplyName { name, port, count, protocol })?, when_free))
    };
    let (pool, wish, when_free) = match asked.await {
        Ok(asked) => asked,
        Err(refused) => return *refused,
    };
    answer(sources.control.reserve(&pool, wish, when_free, &who).await.map(step))
}

async fn release(
    State(sources): State<Arc<Sources>>,
    Operator(who): Operator,
    Path((pool, name)): Path<(String, String)>,
) -> Response {
    match known_name(pool) {
        Ok(pool) => answer(sources.control.release(&pool, &name, &who).await.map(step)),
        Err(refused) => *refused,
    }
}

async fn apply(State(sources): State<Arc<Sources>>, Operator(who): Operator, body: Body) -> Response {
    let asked = async {
        let asked = read::<wire::Apply>(body).await.map_err(Box::new)?;
        let leave = Leave { prune: asked.prune, when_free: asked.when_free };
        let sections = asked.pools.into_iter().map(section).collect::<Result<Vec<_>, _>>()?;
        Ok::<_, Refused>((sections, leave, asked.dry_run))
    };
    let (sections, leave, dry_run) = match asked.await {
        Ok(asked) => asked,
        Err(refused) => return *refused,
    };
    answer(sources.control.apply_ports(&sections, leave, dry_run, &who).await.map(|done| applied(done, dry_run)))
}

/// The one table of what reservations are refused with.
fn answer(outcome: Result<impl serde::Serialize, ReservationRefusal>) -> Response {
    let refused = match outcome {
        Ok(done) => return Json(done).into_response(),
        Err(refused) => refused,
    };
    let status = match &refused {
        refused if refused.is_about_the_wish() => StatusCode::BAD_REQUEST,
        ReservationRefusal::UnknownPool(_) | ReservationRefusal::UnknownName { .. } => StatusCode::NOT_FOUND,
        ReservationRefusal::Refused(_)
        | ReservationRefusal::NotABlock { .. }
        | ReservationRefusal::BlockOverlaps { .. }
        | ReservationRefusal::BlocksOverlap { .. }
        | ReservationRefusal::Twice(_)
        | ReservationRefusal::Contended => StatusCode::CONFLICT,
        ReservationRefusal::Fault(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    refusal(status, None, sentence(&refused.to_string()))
}

/// An answer that says no, on the heap: it is seldom made, and large.
type Refused = Box<Response>;

fn wrong(why: &str) -> Refused {
    Box::new(refusal(StatusCode::BAD_REQUEST, None, sentence(why)))
}

/// The name of a pool that there may be.
fn known_name(name: String) -> Result<PoolName, Refused> {
    PoolName::new(name.clone()).map_err(|_| {
        let unknown = ReservationRefusal::UnknownPool(name);
        Box::new(refusal(StatusCode::NOT_FOUND, None, sentence(&unknown.to_string())))
    })
}

fn protocol(word: &str) -> Result<Protocol, Refused> {
    word.parse().map_err(|error: crate::model::protocol::UnknownProtocol| wrong(&error.to_string()))
}

/// `25080` or `25090-25099`, of one pool.
fn run(text: &str) -> Result<RangeInclusive<u16>, Refused> {
    let ports = PortSet::from_str(text).map_err(|error| wrong(&error.to_string()))?;
    match ports.ranges() {
        [range] => Ok(range.clone()),
        _ => Err(wrong(&format!("{ports} is not one range: give each a name of its own"))),
    }
}

fn asked(query: wire::PortsQuery) -> Result<PortQuery, Refused> {
    let state = |word: String| {
        let words = || StateWord::ALL.map(StateWord::as_str).join(", ");
        StateWord::of_word(&word).ok_or_else(|| wrong(&format!("{word:?} is no state: use one of {}", words())))
    };
    let place = |text: String| {
        let place =
            text.rsplit_once(':').and_then(|(pool, port)| Some((PoolName::new(pool).ok()?, port.parse().ok()?)));
        place.ok_or_else(|| wrong(&format!("after {text:?} is no page: take `next` of the one before")))
    };
    let limit = query.limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(wrong(&format!("a page has 1 to {MAX_PAGE} ports")));
    }
    Ok(PortQuery {
        pool: query.pool.map(known_name).transpose()?,
        state: query.state.map(state).transpose()?,
        protocol: query.protocol.as_deref().map(protocol).transpose()?,
        organization: query.organization,
        space: query.space,
        service_instance: query.service_instance,
        ports: query.port.as_deref().map(run).transpose()?,
        name: query.name,
        after: query.after.map(place).transpose()?,
        limit,
        free: query.free,
    })
}

fn wish(wire::ApplyName { name, port, count, protocol: word }: wire::ApplyName) -> Result<Wish, Refused> {
    let protocol = word.as_deref().map_or(Ok(Protocol::Both), protocol)?;
    let ports = match (port, count) {
        (Some(_), Some(_)) => {
            return Err(wrong("count stands beside port: write the ports, or how many are to be chosen"));
        }
        (Some(port), None) => Wanted::Given(run(&port)?),
        (None, count) => Wanted::Chosen(count.unwrap_or(1)),
    };
    Ok(Wish { name, ports, protocol })
}

fn section(wire::ApplyPool { name, range, names }: wire::ApplyPool) -> Result<WantedPool, Refused> {
    let range = range.as_deref().map(PortSet::from_str).transpose().map_err(|error| wrong(&error.to_string()))?;
    let wishes = names.into_iter().map(wish).collect::<Result<_, _>>()?;
    Ok(WantedPool { name: known_name(name)?, range, wishes })
}

fn applied(done: Applied, dry_run: bool) -> wire::Applied {
    let block =
        |pool: crate::model::pool::Pool| wire::Block { name: pool.name.to_string(), range: pool.ports.to_string() };
    wire::Applied {
        dry_run,
        blocks: done.defined.into_iter().map(block).collect(),
        dropped_blocks: done.dropped.into_iter().map(block).collect(),
        names: done.steps.into_iter().map(step).collect(),
        others: done.others,
    }
}

fn step(step: Step) -> wire::Step {
    let held = |block: Block| wire::Held {
        port: block.first,
        last_port: block.last,
        protocol: block.protocol.as_str().into(),
    };
    wire::Step {
        change: step.change().as_str().into(),
        pool: step.pool.to_string(),
        name: step.name,
        before: step.before.map(held),
        after: step.after.map(held),
        moved_from: step.moved_from,
        allocated: step.allocated,
    }
}

fn pool(ListedPool { usage, free }: ListedPool) -> wire::PortPool {
    wire::PortPool { served: usage.served, pool: status::pool(usage), free_ports: free.map(|ports| ports.to_string()) }
}

fn port(ListedPort { pool, port, is }: ListedPort, sources: &Sources) -> wire::Port {
    let (last_port, is) = match is {
        ListedAs::Allocated(instance) => (port, wire::PortIs::Allocated(Box::new(allocated(*instance, sources)))),
        ListedAs::Reserved { reservation, made } => {
            let (by, since) = made.map(|(by, since): (String, Timestamp)| (by, rfc3339(since))).unzip();
            let protocol = reservation.protocol.as_str().into();
            let held = wire::Reserved { name: reservation.name, protocol, since, by };
            (reservation.last_port, wire::PortIs::Reserved(held))
        }
        ListedAs::Quarantined(release) => {
            let (since, until) = (rfc3339(release.at), rfc3339(release.quarantined_until));
            (port, wire::PortIs::Quarantined { space: release.space_id.to_string(), since, until })
        }
        ListedAs::InConflict(until) => (port, wire::PortIs::InConflict { until: rfc3339(until) }),
    };
    wire::Port { pool: pool.to_string(), port, last_port, is }
}

fn allocated(instance: ServiceInstance, sources: &Sources) -> wire::Allocated {
    let desired = sources.control.desired().borrow().clone();
    let listener = match desired.restraints.suspended.get(&instance.id) {
        Some(restraint) => Some(Listener::Suspended(restraints::told(restraint))),
        None => {
            let spec = desired.listeners.get(&instance.id);
            spec.map(|spec| status::listener(spec, &sources.observations.borrow()))
        }
    };
    let (backends, now) = (sources.backends.list(&instance.id), sources.clock.now());
    let takes_work = |known: &&crate::backends::BackendState| {
        known.state == AnnouncedState::Up
            && known.backend.health().0 != Health::Down
            && known.backend.aside(now).is_none()
    };
    wire::Allocated {
        backends_up: backends.iter().filter(takes_work).count(),
        backends: backends.len(),
        flows: backends.iter().map(|known| u64::from(known.backend.open())).sum(),
        listener,
        service_instance: instance.id.to_string(),
        name: instance.name,
        protocol: instance.protocol.as_str().into(),
        organization: instance.organization_id.to_string(),
        space: instance.space_id.to_string(),
        plan: instance.plan_id.to_string(),
        since: rfc3339(instance.created_at),
        allow: instance.settings.allow.iter().map(ToString::to_string).collect(),
    }
}
