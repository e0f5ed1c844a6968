//! The nodes of a store, as they tell one another: who lives, what each has bound, whom a change has to wait for.
//!
//! Nobody leads. A node says what it has applied; whoever has made a change looks at what the others say.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    NodeId, PoolName, Revision, ServiceInstanceId, Timestamp,
    observed::{ListenerState, Mode, Observations},
};

/// How often a node says that it lives.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);

/// A node that has not been heard for so long is not waited for: three heartbeats and some room.
pub const DEAD_AFTER: Duration = Duration::from_millis(3_500);

/// Most ports that a node tells it cannot bind, the latest first; the number of all is told besides.
pub const MAX_TOLD_FAILURES: usize = 256;

/// A node as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub id: NodeId,
    /// The process that speaks for it: of two that claim one name, the later one does.
    pub incarnation: String,
    /// The version of Harbor that it runs.
    pub version: String,
    /// The pools that it serves, in order.
    pub pools: Vec<PoolName>,
    /// What it said last.
    pub report: Report,
    /// Whether an operator wants it drained.
    pub drain: bool,
    /// When its process joined.
    pub joined_at: Timestamp,
    /// When it was heard last.
    pub seen_at: Timestamp,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Whether it takes part.
    pub mode: Mode,
    /// The last revision that it has applied whole.
    pub applied: Revision,
    /// Open connections and sessions.
    pub flows: u64,
    /// Ports that it cannot bind, the latest first; [`MAX_TOLD_FAILURES`] of them at most.
    pub failures: Vec<PortFailure>,
    /// How many ports it cannot bind.
    pub failed: u64,
}

/// A port that a node cannot bind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortFailure {
    /// Whose it is.
    pub service_instance_id: ServiceInstanceId,
    /// The port.
    pub port: u16,
    /// Whether somebody else holds it.
    pub held: bool,
    /// A sentence for people.
    pub reason: Arc<str>,
    /// Since when.
    pub since: Timestamp,
}

impl Report {
    /// What a node that has applied and bound this says. `port_of` knows the port of a listener.
    #[must_use]
    pub fn of(
        mode: Mode,
        flows: u64,
        observed: &Observations,
        port_of: impl Fn(&ServiceInstanceId) -> Option<u16>,
    ) -> Self {
        let mut failures = observed
            .failed()
            .filter_map(|(id, seen)| match &seen.state {
                ListenerState::Failed { held, reason } => Some(PortFailure {
                    service_instance_id: id.clone(),
                    port: port_of(id)?,
                    held: *held,
                    reason: Arc::clone(reason),
                    since: seen.since,
                }),
                _ => None,
            })
            .collect::<Vec<_>>();
        failures.sort_by(|a, b| (b.since, &a.service_instance_id).cmp(&(a.since, &b.service_instance_id)));
        let failed = failures.len() as u64;
        failures.truncate(MAX_TOLD_FAILURES);
        Self { mode, applied: observed.applied.unwrap_or_default(), flows, failures, failed }
    }
}

/// All nodes that have joined, at one moment, as one of them sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Members {
    /// In order of their ids.
    pub all: Vec<Known>,
    /// Whether another process has joined under the name of this node, and speaks for it.
    pub superseded: bool,
    /// Whether the store was away when they were last asked for: nobody can say anything.
    pub unheard: bool,
}

/// A node, and whether it lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// What the store says of it.
    pub member: Member,
    /// Whether it was heard lately.
    pub alive: bool,
    /// Since when it has applied nothing though there is something to apply; none while it keeps up.
    pub behind_since: Option<Instant>,
}

/// What has become of a port on the nodes that are to have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// Every one of these nodes listens; how many.
    Open(usize),
    /// These have not said yet.
    Waiting(Vec<NodeId>),
    /// This one cannot bind it.
    Failed(NodeId, PortFailure),
}

impl Members {
    /// Who probably lives, by clocks that agree to within [`DEAD_AFTER`]: for the words of a process that does not listen.
    #[must_use]
    pub fn by_wall_clock(members: Vec<Member>, now: Timestamp) -> Self {
        let alive = |member: &Member| now.since(member.seen_at) < DEAD_AFTER;
        Self {
            all: members
                .into_iter()
                .map(|member| Known { alive: alive(&member), member, behind_since: None })
                .collect(),
            ..Self::default()
        }
    }

    /// All of them as if they lived: for a process that begins to listen, and finds out who does not.
    #[must_use]
    pub fn presumed_alive(members: Vec<Member>) -> Self {
        let alive = |member| Known { member, alive: true, behind_since: None };
        Self { all: members.into_iter().map(alive).collect(), ..Self::default() }
    }

    /// The nodes that serve `pool`, live, and neither drain nor are about to.
    pub fn serving<'a>(&'a self, pool: &'a PoolName) -> impl Iterator<Item = &'a Member> {
        let live = self.all.iter().filter(|known| known.alive).map(|known| &known.member);
        live.filter(move |member| !member.drain && member.report.mode != Mode::Draining && member.pools.contains(pool))
    }

    /// What has become of `port` at `revision` on every node of `pool` but `but`.
    #[must_use]
    pub fn opening(
        &self,
        pool: &PoolName,
        id: &ServiceInstanceId,
        port: u16,
        revision: Revision,
        but: &NodeId,
    ) -> Opening {
        let (mut open, mut waiting) = (0, Vec::new());
        for member in self.serving(pool).filter(|member| member.id != *but) {
            // What it could not bind before it has applied the revision may have been of another one.
            if member.report.applied < revision {
                waiting.push(member.id.clone());
                continue;
            }
            let failed = |failure: &&PortFailure| failure.service_instance_id == *id && failure.port == port;
            if let Some(failure) = member.report.failures.iter().find(failed) {
                return Opening::Failed(member.id.clone(), failure.clone());
            }
            open += 1;
        }
        if waiting.is_empty() { Opening::Open(open) } else { Opening::Waiting(waiting) }
    }

    /// The nodes but `but` that live and have not applied `revision`.
    pub fn behind(&self, revision: Revision, but: &NodeId) -> impl Iterator<Item = &NodeId> {
        let live = self.all.iter().filter(|known| known.alive).map(|known| &known.member);
        live.filter(move |member| member.id != *but && member.report.applied < revision).map(|member| &member.id)
    }

    /// Whether an operator wants the node drained.
    #[must_use]
    pub fn wants_drained(&self, id: &NodeId) -> bool {
        self.all.iter().any(|known| known.member.id == *id && known.member.drain)
    }

    /// Whether a node of this name lives.
    #[must_use]
    pub fn is_alive(&self, id: &NodeId) -> bool {
        self.all.iter().any(|known| known.alive && known.member.id == *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str, applied: u64) -> Member {
        Member {
            id: NodeId::new(id).unwrap(),
            incarnation: "1".into(),
            version: "0.1.0".into(),
            pools: vec![pool("default")],
            report: Report { mode: Mode::Serving, applied: Revision(applied), ..Report::default() },
            drain: false,
            joined_at: Timestamp(0),
            seen_at: Timestamp(0),
        }
    }

    fn pool(name: &str) -> PoolName {
        PoolName::new(name).unwrap()
    }

    fn opening(members: Vec<Member>) -> Opening {
        let members = Members::presumed_alive(members);
        let (id, own) = (ServiceInstanceId::new("i").unwrap(), NodeId::new("own").unwrap());
        members.opening(&pool("default"), &id, 1024, Revision(5), &own)
    }

    fn node(id: &str) -> NodeId {
        NodeId::new(id).unwrap()
    }

    #[test]
    fn a_port_is_open_when_every_other_node_of_the_pool_that_takes_part_has_applied_it() {
        let draining = Member { drain: true, ..member("draining", 0) };
        let elsewhere = Member { pools: vec![pool("games")], ..member("elsewhere", 0) };
        let leaving = Member { report: Report { mode: Mode::Draining, ..Report::default() }, ..member("leaving", 0) };
        let rest = [draining, elsewhere, leaving, member("own", 0)];
        let with = |more: &[Member]| [more, &rest].concat();
        assert_eq!(opening(with(&[])), Opening::Open(0));
        assert_eq!(opening(with(&[member("a", 5), member("b", 6)])), Opening::Open(2));
        assert_eq!(opening(with(&[member("a", 5), member("b", 4)])), Opening::Waiting(vec![node("b")]));
    }

    #[test]
    fn a_node_that_cannot_bind_the_port_is_named_at_once() {
        let failure = |port| PortFailure {
            service_instance_id: ServiceInstanceId::new("i").unwrap(),
            port,
            held: true,
            reason: "held".into(),
            since: Timestamp(0),
        };
        let with = |applied, port| {
            let mut member = member("b", applied);
            member.report.failures.push(failure(port));
            opening(vec![self::member("a", 0), member])
        };
        assert_eq!(with(5, 1024), Opening::Failed(node("b"), failure(1024)));
        assert_eq!(with(5, 1025), Opening::Waiting(vec![node("a")]), "it was of the port before");
        assert_eq!(with(4, 1024), Opening::Waiting(vec![node("a"), node("b")]), "it was of the revision before");
    }

    #[test]
    fn a_report_tells_the_latest_failures_and_how_many_there_are() {
        let mut observed = Observations::default();
        for number in 0..300_u16 {
            let id = ServiceInstanceId::new(format!("{number:03}")).unwrap();
            let state = match number {
                0 => ListenerState::Bound,
                _ => ListenerState::Failed { held: true, reason: "held".into() },
            };
            let since = Timestamp(number.into());
            observed.insert(id, super::super::observed::ListenerObservation { version: 1, state, since });
        }
        let report = Report::of(Mode::Serving, 7, &observed, |_| Some(1024));
        assert_eq!((report.failed, report.failures.len()), (299, MAX_TOLD_FAILURES));
        assert_eq!(report.failures[0].service_instance_id.as_str(), "299");
    }
}
