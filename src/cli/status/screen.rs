//! A status as one screen of text.

use std::fmt::Write as _;

use crate::{
    admin::wire::{Backend, Link, Listener, Mode, Refusal, ServiceInstance, Status},
    cli::clean,
};

/// Most rows of service instances: the rest is counted.
const MAX_ROWS: usize = 20;

/// Most suspended service instances of which it is told why.
const MAX_SUSPENDED: usize = 5;

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";

/// The screen; colours only when `colour`.
pub fn render(status: &Status, colour: bool) -> String {
    let paint = |text: &str, paint: &str| if colour { format!("{paint}{text}{PLAIN}") } else { text.to_owned() };
    let mut screen = String::new();
    let mut line = |text: String| {
        screen.push_str(&text);
        screen.push('\n');
    };
    let mode = match status.mode {
        Mode::Starting => "starting",
        Mode::Serving => "serving",
        Mode::Draining => "draining",
    };
    let verdict = if status.degraded.is_empty() { paint("all is well", GREEN) } else { paint("degraded", RED) };
    line(format!(
        "{}  {mode}, {verdict}  (harbor {}, process {}, since {})",
        paint(&clean(&status.node), BOLD),
        clean(&status.version),
        status.process,
        clean(&status.started_at)
    ));
    for reason in &status.degraded {
        line(format!("  {} {}", paint("!", RED), clean(reason)));
    }
    line(String::new());
    line(format!("store      {}", link(&status.store)));
    line(format!("NATS       {}", link(&status.nats)));
    for pool in &status.pools {
        let mut counts = format!("{} of {} ports free, {} allocated", pool.free, pool.size, pool.allocated);
        for (count, what) in
            [(pool.quarantined, "quarantined"), (pool.reserved, "reserved"), (pool.in_conflict, "in conflict")]
        {
            if count > 0 {
                let _ = write!(counts, ", {count} {what}");
            }
        }
        let retired = if pool.retired { ", retired" } else { "" };
        line(format!("pool       {} ({}{retired}): {counts}", clean(&pool.name), clean(&pool.ports)));
    }
    if status.nodes.len() > 1 {
        let nodes = status.nodes.iter().map(|node| format!("{} {}", clean(&node.id), node.state()));
        line(format!("nodes      {}", nodes.collect::<Vec<_>>().join(", ")));
    }
    let listeners = status.listeners;
    let applied = status.revision_applied.map_or_else(|| "none".into(), |revision| revision.to_string());
    let mut few = String::new();
    for (count, what) in [(listeners.closed, "closed"), (listeners.suspended, "suspended")] {
        if count > 0 {
            let _ = write!(few, ", {count} {what}");
        }
    }
    line(format!(
        "listeners  {} bound, {} failed{few}, {} pending (revision {applied} of {})",
        listeners.bound, listeners.failed, listeners.pending, status.revision_desired
    ));
    let suspended = status.service_instances.iter().filter_map(|instance| match &instance.listener {
        Listener::Suspended(restraint) => Some((instance, restraint)),
        _ => None,
    });
    for (instance, restraint) in suspended.take(MAX_SUSPENDED) {
        let (since, by, why) = (clean(&restraint.since), clean(&restraint.by), clean(&restraint.reason));
        let why = if why.is_empty() { why } else { format!(": {why}") };
        line(format!("suspended  port {} since {since} by {by}{why}", instance.port));
    }
    if status.networks_blocked > 0 {
        line(format!("blocked    clients of {} networks: `harbor node blocked` shows them", status.networks_blocked));
    }
    if let Some(rotation) = &status.secret_rotation {
        let since = rotation.since.as_ref().map(|since| format!(" since {}", clean(since))).unwrap_or_default();
        line(format!("rotation   of the announce secret{since}: `harbor data rotate-secret --finish` ends it"));
    }
    let backends = status.backends;
    line(format!(
        "backends   {} TCP, {} UDP (service instances without any: {})",
        backends.tcp, backends.udp, backends.service_instances_without
    ));
    if let Some(last) = status.refusals.first() {
        // Of no service instance that there is: it stands in no row.
        line(format!("refused    {}", refused(last)));
    }
    if !status.service_instances.is_empty() {
        line(String::new());
        line(paint("PORT   PROTOCOL  LISTENER  BACKENDS                    SERVICE INSTANCE", BOLD));
    }
    for instance in status.service_instances.iter().take(MAX_ROWS) {
        let (listener, colour) = match &instance.listener {
            Listener::Pending => ("pending", PLAIN),
            Listener::Bound { .. } => ("bound", PLAIN),
            Listener::Closed { .. } => ("closed", PLAIN),
            Listener::Suspended(_) => ("suspended", BOLD),
            Listener::Failed { .. } => ("failed", RED),
        };
        line(format!(
            "{:<6} {:<9} {} {:<27} {}",
            instance.port,
            clean(&instance.protocol),
            paint(&format!("{listener:<9}"), colour),
            backends_of(instance),
            clean(&instance.id)
        ));
    }
    let hidden = status.service_instances.len().saturating_sub(MAX_ROWS);
    if hidden > 0 {
        line(format!("and {hidden} more: `harbor ports list` shows all, with names"));
    }
    screen
}

fn refused(last: &Refusal) -> String {
    let mut text = clean(&last.reason);
    if !last.host.is_empty() {
        let _ = write!(text, " from {}", clean(&last.host));
    }
    if let Some(named) = &last.named {
        let _ = write!(text, " naming {}", clean(named));
    }
    if let Some(detail) = &last.detail {
        let _ = write!(text, " ({})", clean(detail));
    }
    let _ = write!(text, ", last at {}", clean(&last.at));
    text
}

fn link(link: &Link) -> String {
    match link {
        Link::Absent => "not configured".into(),
        Link::Up { since } => format!("connected since {}", clean(since)),
        Link::Down { since, reason } => format!("away since {}: {}", clean(since), clean(reason)),
    }
}

fn backends_of(instance: &ServiceInstance) -> String {
    if instance.backends.is_empty() {
        // The latest is told: most often it is why.
        return instance
            .refusals
            .first()
            .map_or_else(|| "none".into(), |refusal| format!("none: {}", clean(&refusal.reason)));
    }
    let open: u64 = instance.backends.iter().map(|backend| u64::from(backend.open)).sum();
    let count = |word| instance.backends.iter().filter(|backend| word_of(backend) == word).count();
    let mut text = format!("{} up", count("up"));
    for (count, word) in [(count("down"), "down"), (count("aside"), "aside"), (count("draining"), "draining")] {
        if count > 0 {
            let _ = write!(text, ", {count} {word}");
        }
    }
    let _ = write!(text, ", {open} open");
    text
}

/// The one word for a backend: what keeps most from it.
fn word_of(backend: &Backend) -> &str {
    match (backend.state.as_str(), backend.health.as_str(), backend.aside) {
        ("draining", ..) => "draining",
        (_, "down", _) => "down",
        (.., true) => "aside",
        _ => "up",
    }
}

#[cfg(test)]
mod tests;
