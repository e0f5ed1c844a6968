//! Ports as a table.

use std::fmt::Write as _;

use crate::{
    admin::wire::{
        Listener,
        ports::{Allocated, Port, PortIs, PortPool, Ports, Reserved},
    },
    cli::clean,
};

const HEADS: [&str; 9] = ["POOL", "PORT", "PROTOCOL", "STATE", "LISTENER", "SINCE", "BACKENDS", "FLOWS", "WHOSE"];

/// A line each, and one more where a port is not open; then how many there are, and the pools.
pub fn table(listed: &Ports) -> String {
    let rows = listed.ports.iter().map(row).collect::<Vec<_>>();
    let width = |column: usize| {
        let widest = rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        widest.max(HEADS[column].len())
    };
    let widths = std::array::from_fn::<_, 9, _>(width);
    let mut text = String::new();
    let mut line = |cells: &[String; 9]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect::<Vec<_>>();
        let _ = writeln!(text, "{}", padded.join("  ").trim_end());
    };
    line(&HEADS.map(String::from));
    for (port, row) in listed.ports.iter().zip(&rows) {
        line(row);
        if let PortIs::Allocated(allocated) = &port.is
            && let Some(Listener::Failed { reason, .. }) = &allocated.listener
        {
            line(&std::array::from_fn(|cell| if cell == 0 { format!("  ! {}", clean(reason)) } else { String::new() }));
        }
    }
    text + &count(listed) + &listed.pools.iter().map(pool).collect::<String>()
}

/// A line for each pool.
pub fn free(pools: &[PortPool]) -> String {
    let width = pools.iter().map(|known| known.pool.name.chars().count()).max().unwrap_or(0).max(4);
    let mut text = format!("{:<width$}  FREE   PORTS\n", "POOL");
    for PortPool { pool, free_ports, .. } in pools {
        let ports = free_ports.as_deref().filter(|ports| !ports.is_empty()).unwrap_or("-");
        let free = if pool.retired { 0 } else { pool.free };
        let _ = writeln!(text, "{:<width$}  {free:<5}  {ports}", clean(&pool.name));
    }
    text
}

fn row(port: &Port) -> [String; 9] {
    let ports = super::shown(&(port.port..=port.last_port));
    let [protocol, state, listener, since, backends, flows, whose] = match &port.is {
        PortIs::Allocated(allocated) => {
            let Allocated { protocol, since, backends_up, backends, flows, .. } = &**allocated;
            let listener = allocated.listener.as_ref().map_or("elsewhere", word);
            let backends = format!("{backends_up}/{backends}");
            [
                protocol.clone(),
                "allocated".into(),
                listener.into(),
                since.clone(),
                backends,
                flows.to_string(),
                holder(allocated),
            ]
        }
        PortIs::Reserved(Reserved { name, protocol, since, by }) => {
            let by = by.as_ref().map(|by| format!(", by {}", clean(by))).unwrap_or_default();
            let since = since.clone().unwrap_or_else(none);
            [protocol.clone(), "reserved".into(), none(), since, none(), none(), clean(name) + &by]
        }
        PortIs::Quarantined { space, since, until } => {
            let whose = format!("until {until}, last of space {}", clean(space));
            [none(), "quarantined".into(), none(), since.clone(), none(), none(), whose]
        }
        PortIs::InConflict { until } => {
            let whose = format!("something else has had it; tried again at {until}");
            [none(), "in conflict".into(), none(), none(), none(), none(), whose]
        }
    };
    [clean(&port.pool), ports, protocol, state, listener, since, backends, flows, whose]
}

fn none() -> String {
    "-".into()
}

fn word(listener: &Listener) -> &'static str {
    match listener {
        Listener::Pending => "pending",
        Listener::Bound { .. } => "bound",
        Listener::Closed { .. } => "closed",
        Listener::Suspended(_) => "suspended",
        Listener::Failed { .. } => "failed",
    }
}

/// `game (4c6c…), organization o, space s`
fn holder(allocated: &Allocated) -> String {
    let Allocated { service_instance, name, organization, space, .. } = allocated;
    let id = clean(service_instance);
    let whose = name.as_ref().map_or_else(|| id.clone(), |name| format!("{} ({id})", clean(name)));
    format!("{whose}, organization {}, space {}", clean(organization), clean(space))
}

fn count(listed: &Ports) -> String {
    let of = |is_one: fn(&PortIs) -> bool| listed.ports.iter().filter(|port| is_one(&port.is)).count();
    let kinds = [
        (of(|is| matches!(is, PortIs::Allocated(_))), "allocated"),
        (of(|is| matches!(is, PortIs::Reserved(_))), "reserved"),
        (of(|is| matches!(is, PortIs::Quarantined { .. })), "quarantined"),
        (of(|is| matches!(is, PortIs::InConflict { .. })), "in conflict"),
    ];
    let told = kinds.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}"));
    let told = told.collect::<Vec<_>>().join(", ");
    let told = if told.is_empty() { "nothing".to_owned() } else { told };
    match listed.next {
        Some(_) => format!("{told}, and more: --all shows them\n"),
        None => format!("{told}\n"),
    }
}

/// `pool default (35000-40000): 4999 free, 2 allocated`
fn pool(PortPool { pool, served, .. }: &PortPool) -> String {
    let (name, ports) = (clean(&pool.name), clean(&pool.ports));
    if pool.retired && !served {
        let (size, reserved) = (pool.size, pool.reserved);
        return format!(
            "block {name} ({ports}): {size} ports that no pool gives out, {reserved} of them with a name\n"
        );
    }
    let kinds = [(pool.quarantined, "quarantined"), (pool.reserved, "reserved"), (pool.in_conflict, "in conflict")];
    let more = kinds.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!(", {count} {word}"));
    let retired = if pool.retired { ", retired" } else { "" };
    let unserved = if *served { "" } else { ", served by no node" };
    let (free, allocated) = (pool.free, pool.allocated);
    format!(
        "pool {name} ({ports}{retired}{unserved}): {free} free, {allocated} allocated{}\n",
        more.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::wire;

    fn pools() -> Vec<PortPool> {
        let pool = |name: &str, ports: &str, retired| wire::Pool {
            name: name.into(),
            ports: ports.into(),
            size: 10,
            free: 7,
            allocated: 2,
            quarantined: 1,
            reserved: 0,
            in_conflict: 0,
            retired,
            differences: None,
        };
        let mut block = pool("infrastructure", "25000-25009", true);
        (block.allocated, block.quarantined, block.reserved) = (0, 0, 3);
        vec![
            PortPool {
                pool: pool("default", "35000-35009", false),
                served: true,
                free_ports: Some("35002-35008".into()),
            },
            PortPool { pool: block, served: false, free_ports: Some(String::new()) },
        ]
    }

    fn allocated(port: u16, listener: Option<Listener>) -> Port {
        let is = PortIs::Allocated(Box::new(Allocated {
            service_instance: format!("id-{port}"),
            name: (port == 35_000).then(|| "game\u{1b}".into()),
            protocol: "both".into(),
            organization: "o".into(),
            space: "s".into(),
            plan: "p".into(),
            since: "2026-11-21T09:15:18Z".into(),
            allow: vec![],
            listener,
            backends_up: 1,
            backends: 2,
            flows: 17,
        }));
        Port { pool: "default".into(), port, last_port: port, is }
    }

    #[test]
    fn a_port_is_a_line_and_why_it_is_not_open_another() {
        let since = "2026-11-21T09:15:18Z".to_owned();
        let failed = Listener::Failed { since: since.clone(), reason: "nginx has it".into() };
        let reserved = PortIs::Reserved(Reserved {
            name: "metrics".into(),
            protocol: "tcp".into(),
            since: Some(since.clone()),
            by: Some("ana@desk".into()),
        });
        let quarantined = PortIs::Quarantined { space: "s".into(), since: since.clone(), until: since.clone() };
        let one = |port, is| Port { pool: "default".into(), port, last_port: port, is };
        let listed = Ports {
            pools: pools(),
            ports: vec![
                allocated(35_000, Some(Listener::Bound { since: since.clone() })),
                allocated(35_001, Some(failed)),
                allocated(35_002, None),
                one(35_003, quarantined),
                one(35_004, PortIs::InConflict { until: since }),
                Port { last_port: 35_009, ..one(35_005, reserved) },
            ],
            proxy_from: vec![],
            next: None,
        };
        let expected = "\
POOL     PORT         PROTOCOL  STATE        LISTENER   SINCE                 BACKENDS  FLOWS  WHOSE
default  35000        both      allocated    bound      2026-11-21T09:15:18Z  1/2       17     game\\u{1b} (id-35000), organization o, space s
default  35001        both      allocated    failed     2026-11-21T09:15:18Z  1/2       17     id-35001, organization o, space s
  ! nginx has it
default  35002        both      allocated    elsewhere  2026-11-21T09:15:18Z  1/2       17     id-35002, organization o, space s
default  35003        -         quarantined  -          2026-11-21T09:15:18Z  -         -      until 2026-11-21T09:15:18Z, last of space s
default  35004        -         in conflict  -          -                     -         -      something else has had it; tried again at 2026-11-21T09:15:18Z
default  35005-35009  tcp       reserved     -          2026-11-21T09:15:18Z  -         -      metrics, by ana@desk
3 allocated, 1 reserved, 1 quarantined, 1 in conflict
pool default (35000-35009): 7 free, 2 allocated, 1 quarantined
block infrastructure (25000-25009): 10 ports that no pool gives out, 3 of them with a name
";
        assert_eq!(table(&listed), expected);
        let empty = Ports { next: Some("default:35000".into()), ..Ports::default() };
        assert!(table(&empty).ends_with("WHOSE\nnothing, and more: --all shows them\n"), "{}", table(&empty));
    }

    #[test]
    fn free_ports_are_ranges_of_a_pool() {
        let expected = "POOL            FREE   PORTS\ndefault         7      35002-35008\ninfrastructure  0      -\n";
        assert_eq!(free(&pools()), expected);
    }
}
