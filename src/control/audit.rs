//! The audit log: a line for every durable change, when it is committed, with who asked for it. What is refused or fails
//! changes nothing and has none.
//!
//! A further kind of change is a variant of [`Change`] and its arm in [`note`]. `docs/logs.md` lists actions and fields.

use crate::model::{
    NodeId, PoolName, PortSet, Revision, ServiceInstanceId,
    binding::Binding,
    pool::Pool,
    requester::{Identity, Requester, Said},
    service_instance::ServiceInstance,
    setting::{BLOCKED, SUSPENDED, SettingChange},
};

/// What a filter names to have these lines and no others.
const TARGET: &str = "harbor::audit";

/// A durable change.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// A service instance is made; its port may not listen yet.
    Provisioned(&'a ServiceInstance),
    /// One that nobody has been told of has got another port.
    Moved {
        /// As it is now.
        instance: &'a ServiceInstance,
        /// Its port until now.
        from_port: u16,
        /// Why.
        why: &'a str,
    },
    /// A node goes on with a provision that another one, or its own last process, has left.
    TakenUp {
        /// What is provisioned.
        id: &'a ServiceInstanceId,
        /// Who goes on.
        node: &'a NodeId,
        /// Who had begun.
        from_node: &'a NodeId,
    },
    /// A service instance has another plan, other settings or another name.
    Updated(&'a ServiceInstance),
    /// The same, to what it was before, as a node could not carry the change out.
    TakenBack(&'a ServiceInstance),
    /// A service instance is deleted, with its bindings.
    Deprovisioned(&'a ServiceInstance),
    /// The same of one whose port could not be opened.
    Undone {
        /// What it was.
        instance: &'a ServiceInstance,
        /// Why.
        why: &'a str,
    },
    /// A binding is made.
    Bound(&'a ServiceInstance, &'a Binding),
    /// A binding is deleted.
    Unbound(&'a Binding),
    /// A pool is defined, or defined otherwise, for all nodes.
    PoolDefined {
        /// As it is now.
        pool: &'a Pool,
        /// The node whose file says so.
        node: &'a NodeId,
        /// The revision of the change.
        revision: Revision,
    },
    /// A block that has no names is dropped, for all nodes.
    PoolDropped {
        /// As it was.
        pool: &'a Pool,
        /// The revision of the change.
        revision: Revision,
    },
    /// A live setting is set, or unset; one of those holds a service instance or a network back.
    Set {
        /// Which, and to what.
        setting: &'a SettingChange,
        /// The revision of the change.
        revision: Revision,
    },
    /// Ports are held back under a name, or released.
    Reservation(&'a SettingChange),
    /// There is a new announce secret, beside the one before.
    SecretRotated,
    /// The announce secret before it is gone.
    RotationFinished,
    /// A node is wanted drained.
    Drained(&'a NodeId),
    /// A node is wanted to take part again.
    Resumed(&'a NodeId),
    /// A node is forgotten.
    Removed(&'a NodeId),
    /// Another process has taken over from a node's last one.
    Restarted {
        /// The node.
        node: &'a NodeId,
        /// The process that serves from now on.
        process: u32,
    },
}

/// What a line tells; what does not apply is left out of it.
#[derive(Default)]
struct Line<'a> {
    action: &'static str,
    instance: Option<&'a ServiceInstance>,
    service_instance_id: Option<&'a ServiceInstanceId>,
    binding: Option<&'a Binding>,
    pool: Option<&'a PoolName>,
    ports: Option<&'a PortSet>,
    from_port: Option<u16>,
    setting: Option<&'a SettingChange>,
    node: Option<&'a NodeId>,
    from_node: Option<&'a NodeId>,
    process: Option<u32>,
    revision: Option<Revision>,
    why: Option<&'a str>,
}

impl<'a> Line<'a> {
    /// Of a service instance, which is at the revision of the change unless it is deleted.
    fn of(action: &'static str, instance: &'a ServiceInstance) -> Self {
        Self { action, instance: Some(instance), revision: Some(instance.revision), ..Self::default() }
    }

    fn of_node(action: &'static str, node: &'a NodeId) -> Self {
        Self { action, node: Some(node), ..Self::default() }
    }
}

/// Writes the line of a change that has been committed.
pub fn note(by: &Requester, change: Change<'_>) {
    write(
        by,
        &match change {
            Change::Provisioned(instance) => Line::of("provision", instance),
            Change::Moved { instance, from_port, why } => {
                Line { from_port: Some(from_port), why: Some(why), ..Line::of("move_port", instance) }
            }
            Change::TakenUp { id, node, from_node } => {
                Line { service_instance_id: Some(id), from_node: Some(from_node), ..Line::of_node("take_up", node) }
            }
            Change::Updated(instance) => Line::of("update", instance),
            Change::TakenBack(instance) => {
                Line { why: Some("a node cannot carry it out"), ..Line::of("take_back", instance) }
            }
            Change::Deprovisioned(instance) => Line { revision: None, ..Line::of("deprovision", instance) },
            Change::Undone { instance, why } => Line { revision: None, why: Some(why), ..Line::of("undo", instance) },
            Change::Bound(instance, binding) => {
                Line { binding: Some(binding), revision: Some(binding.revision), ..Line::of("bind", instance) }
            }
            Change::Unbound(binding) => Line {
                action: "unbind",
                service_instance_id: Some(&binding.service_instance_id),
                binding: Some(binding),
                ..Line::default()
            },
            Change::PoolDefined { pool, node, revision } => Line {
                pool: Some(&pool.name),
                ports: Some(&pool.ports),
                revision: Some(revision),
                ..Line::of_node("define_pool", node)
            },
            Change::PoolDropped { pool, revision } => Line {
                action: "drop_pool",
                pool: Some(&pool.name),
                ports: Some(&pool.ports),
                revision: Some(revision),
                ..Line::default()
            },
            Change::Set { setting, revision } => Line {
                action: match (setting.scope.as_str(), setting.value.is_some()) {
                    (SUSPENDED, true) => "suspend",
                    (SUSPENDED, false) => "resume",
                    (BLOCKED, true) => "block",
                    (BLOCKED, false) => "unblock",
                    (_, true) => "set",
                    (_, false) => "unset",
                },
                setting: Some(setting),
                revision: Some(revision),
                ..Line::default()
            },
            Change::Reservation(change) => Line {
                action: if change.value.is_some() { "reserve" } else { "release" },
                setting: Some(change),
                ..Line::default()
            },
            Change::SecretRotated => Line { action: "rotate_secret", ..Line::default() },
            Change::RotationFinished => Line { action: "finish_rotation", ..Line::default() },
            Change::Drained(node) => Line::of_node("drain_node", node),
            Change::Resumed(node) => Line::of_node("resume_node", node),
            Change::Removed(node) => Line::of_node("remove_node", node),
            Change::Restarted { node, process } => Line { process: Some(process), ..Line::of_node("restart", node) },
        },
    );
}

fn write(by: &Requester, line: &Line<'_>) {
    let request_id = match by {
        Requester::Platform { request_id, .. } => request_id.as_ref(),
        _ => None,
    };
    let (platform, user, identity) = match by {
        Requester::Platform { identity: Identity::Of { platform, user }, .. } => (Some(platform), user.as_ref(), None),
        Requester::Platform { identity: Identity::Malformed, .. } => (None, None, Some("malformed")),
        Requester::Operator { name } => (None, Some(name), None),
        Requester::Platform { identity: Identity::Unsaid, .. } | Requester::Signal | Requester::Harbor => {
            (None, None, None)
        }
    };
    let Line { instance, binding, .. } = line;
    // What comes from outside is text, which is quoted where lines are for people: it cannot pass for other fields.
    let id = line.service_instance_id.or(instance.map(|instance| &instance.id));
    tracing::info!(
        target: TARGET,
        action = line.action,
        by = by.as_str(),
        platform = platform.map(Said::as_str),
        user = user.map(Said::as_str),
        identity,
        request_id = request_id.map(Said::as_str),
        organization = instance.map(|instance| instance.organization_id.as_str()),
        space = instance.map(|instance| instance.space_id.as_str()),
        service_instance = id.map(|id| id.as_str()),
        binding = binding.map(|binding| binding.id.as_str()),
        app = binding.and_then(|binding| binding.app_id.as_ref()).map(|app| app.as_str()),
        plan = instance.map(|instance| instance.plan_id.as_str()),
        pool = line.pool.or(instance.map(|instance| &instance.pool)).map(display),
        port = instance.map(|instance| instance.port),
        from_port = line.from_port,
        ports = line.ports.map(display),
        protocol = instance.map(|instance| display(instance.protocol)),
        setting = line.setting.map(|setting| format!("{}.{}", setting.scope, setting.key)),
        value = line.setting.and_then(|setting| setting.value.as_deref()),
        node = line.node.map(display),
        from_node = line.from_node.map(display),
        process = line.process,
        revision = line.revision.map(|revision| revision.0),
        why = line.why,
        "durable change"
    );
}
