//! `/admin/v1/nodes`: the nodes of the store, and what operators do with them.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};

use super::{
    Sources,
    request::Operator,
    wire::{self, rfc3339},
};
use crate::{
    control::{NODES_WAIT, NodeRefusal},
    http::{refusal, sentence},
    model::member::Known,
};

/// Most ports that are told one by one of a node.
const MAX_FAILED_TOLD: usize = 5;

pub(super) async fn list(State(sources): State<Arc<Sources>>) -> Response {
    Json(wire::Nodes { nodes: nodes(&sources) }).into_response()
}

pub(super) async fn drain(State(sources): State<Arc<Sources>>, Path(id): Path<String>, by: Operator) -> Response {
    answer(&sources, sources.control.drain(&id, true, &by.into()).await)
}

pub(super) async fn resume(State(sources): State<Arc<Sources>>, Path(id): Path<String>, by: Operator) -> Response {
    answer(&sources, sources.control.drain(&id, false, &by.into()).await)
}

pub(super) async fn remove(State(sources): State<Arc<Sources>>, Path(id): Path<String>, by: Operator) -> Response {
    answer(&sources, sources.control.remove_node(&id, &by.into()).await)
}

fn answer(sources: &Sources, outcome: Result<Known, NodeRefusal>) -> Response {
    let status = match &outcome {
        Ok(known) => return Json(node(known, sources)).into_response(),
        Err(NodeRefusal::Unknown(_)) => StatusCode::NOT_FOUND,
        Err(NodeRefusal::Alive(_)) => StatusCode::CONFLICT,
        Err(NodeRefusal::Fault(_)) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let words = outcome.map_or_else(|refusal| refusal.to_string(), |_| String::new());
    refusal(status, None, sentence(&words))
}

/// The nodes, as this one knows them.
pub(super) fn nodes(sources: &Sources) -> Vec<wire::Node> {
    let members = Arc::clone(&sources.members.borrow());
    let mut nodes = members.all.iter().map(|known| node(known, sources)).collect::<Vec<_>>();
    let own = nodes.iter_mut().find(|node| node.id == sources.node.as_str());
    if let Some(own) = own.filter(|_| members.unheard) {
        own.problems.push("the store is away: the nodes are shown as they were before".into());
    }
    nodes
}

fn node(known: &Known, sources: &Sources) -> wire::Node {
    let Known { member, alive, behind_since } = known;
    let report = &member.report;
    let mut problems = Vec::new();
    let seen_at = rfc3339(member.seen_at);
    if !alive {
        problems.push(format!(
            "the node {} has not been heard since {seen_at}: start it, or forget it by `harbor node remove`",
            member.id
        ));
    }
    let now = sources.clock.now();
    let behind = behind_since.map(|since| now.saturating_duration_since(since)).filter(|behind| *behind > NODES_WAIT);
    if let Some(behind) = behind.filter(|_| *alive) {
        let (id, applied, newest) = (&member.id, report.applied, sources.control.desired().borrow().revision);
        problems.push(format!(
            "the node {id} has been at revision {applied} of {newest} for {} s: see its log",
            behind.as_secs()
        ));
    }
    for failure in report.failures.iter().take(MAX_FAILED_TOLD) {
        let (port, since) = (failure.port, rfc3339(failure.since));
        problems.push(format!("port {port} is not open on {} since {since}: {}", member.id, failure.reason));
    }
    let untold = report.failed.saturating_sub(MAX_FAILED_TOLD as u64);
    if untold > 0 {
        problems.push(format!("{untold} more ports are not open on {}", member.id));
    }
    wire::Node {
        id: member.id.to_string(),
        alive: *alive,
        mode: wire::Mode::of(report.mode),
        drain: member.drain,
        version: member.version.clone(),
        pools: member.pools.iter().map(ToString::to_string).collect(),
        revision_applied: report.applied.0,
        flows: report.flows,
        ports_failed: report.failed,
        joined_at: rfc3339(member.joined_at),
        seen_at,
        problems,
    }
}
