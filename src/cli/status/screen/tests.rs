use super::*;
use crate::admin::wire::{Backend, BackendCounts, BackendStates, ListenerCounts, Pool, Restraint, Rotation};

fn backend(state: &str, open: u32) -> Backend {
    Backend {
        transport: "tcp".into(),
        address: "10.0.1.7:61012".into(),
        authority: "app a".into(),
        state: state.into(),
        state_since: "then".into(),
        open,
        since: "2026-11-21T09:15:18Z".into(),
        aside: false,
        aside_since: None,
        health: "unchecked".into(),
        health_since: "2026-11-21T09:15:18Z".into(),
        expires_in_seconds: 100,
    }
}

fn fine() -> Status {
    let since = "2026-11-21T09:15:18Z".to_owned();
    Status {
        degraded: vec![],
        node: "harbor_node_1".into(),
        version: "0.1.0".into(),
        process: 4242,
        mode: Mode::Serving,
        started_at: since.clone(),
        revision_desired: 14,
        revision_applied: Some(14),
        store: Link::Up { since: since.clone() },
        nats: Link::Absent,
        nodes: vec![],
        pools: vec![Pool {
            name: "default".into(),
            ports: "35000-40000".into(),
            size: 5001,
            free: 4999,
            allocated: 2,
            quarantined: 0,
            reserved: 0,
            in_conflict: 0,
            retired: false,
            differences: None,
        }],
        listeners: ListenerCounts { bound: 2, ..ListenerCounts::default() },
        secret_rotation: None,
        networks_blocked: 0,
        backends: BackendCounts { tcp: 3, udp: 0, service_instances_without: 1, states: BackendStates::default() },
        refusals: vec![],
        service_instances: vec![
            ServiceInstance {
                id: "6fbe0f2c-0001".into(),
                pool: "default".into(),
                port: 35012,
                protocol: "tcp".into(),
                listener: Listener::Bound { since: since.clone() },
                backends: vec![backend("up", 3), backend("up", 1), backend("draining", 1)],
                refusals: vec![],
            },
            ServiceInstance {
                id: "evil\u{1b}[2J".into(),
                pool: "default".into(),
                port: 35013,
                protocol: "both".into(),
                listener: Listener::Bound { since },
                backends: vec![],
                refusals: vec![],
            },
        ],
    }
}

#[test]
fn a_node_that_is_well_fits_one_screen() {
    let expect = "\
harbor_node_1  serving, all is well  (harbor 0.1.0, process 4242, since 2026-11-21T09:15:18Z)

store      connected since 2026-11-21T09:15:18Z
NATS       not configured
pool       default (35000-40000): 4999 of 5001 ports free, 2 allocated
listeners  2 bound, 0 failed, 0 pending (revision 14 of 14)
backends   3 TCP, 0 UDP (service instances without any: 1)

PORT   PROTOCOL  LISTENER  BACKENDS                    SERVICE INSTANCE
35012  tcp       bound     2 up, 1 draining, 5 open    6fbe0f2c-0001
35013  both      bound     none                        evil\\u{1b}[2J
";
    assert_eq!(render(&fine(), false), expect);
}

#[test]
fn what_is_wrong_comes_first() {
    let since = "2026-11-21T09:15:18Z".to_owned();
    let mut status = fine();
    status.degraded = vec![
        "NATS is away since 2026-11-21T09:15:18Z: connection refused".into(),
        "port 35013 is not open: held by process 7 (nginx)".into(),
    ];
    status.nats = Link::Down { since: since.clone(), reason: "connection refused".into() };
    status.revision_applied = None;
    status.listeners.closed = 1;
    status.pools[0].quarantined = 3;
    status.service_instances[1].listener = Listener::Failed { since, reason: "held by process 7 (nginx)".into() };
    let instance = status.service_instances[0].clone();
    status.service_instances.extend(std::iter::repeat_n(instance, 30));
    let screen = render(&status, false);
    let lines: Vec<_> = screen.lines().collect();
    assert_eq!(
        lines[..8],
        [
            "harbor_node_1  serving, degraded  (harbor 0.1.0, process 4242, since 2026-11-21T09:15:18Z)",
            "  ! NATS is away since 2026-11-21T09:15:18Z: connection refused",
            "  ! port 35013 is not open: held by process 7 (nginx)",
            "",
            "store      connected since 2026-11-21T09:15:18Z",
            "NATS       away since 2026-11-21T09:15:18Z: connection refused",
            "pool       default (35000-40000): 4999 of 5001 ports free, 2 allocated, 3 quarantined",
            "listeners  2 bound, 0 failed, 1 closed, 0 pending (revision none of 14)",
        ]
    );
    assert_eq!(lines[12], "35013  both      failed    none                        evil\\u{1b}[2J");
    assert_eq!(lines.last(), Some(&"and 12 more: `harbor ports list` shows all, with names"));
    assert!(!screen.contains('\u{1b}'));
    assert!(render(&status, true).contains("\u{1b}[31mdegraded\u{1b}[0m"));
}

#[test]
fn what_is_held_back_is_told_though_nothing_is_wrong() {
    let mut status = fine();
    status.listeners = ListenerCounts { bound: 1, suspended: 1, ..ListenerCounts::default() };
    status.networks_blocked = 2;
    status.secret_rotation = Some(Rotation { since: Some("2026-11-21T09:15:18Z".into()), by: Some("root@a".into()) });
    status.service_instances[0].listener = Listener::Suspended(Restraint {
        since: "2026-11-21T09:15:18Z".into(),
        by: "root@a".into(),
        reason: "sends\u{1b}spam".into(),
    });
    let screen = render(&status, false);
    for line in [
        "harbor_node_1  serving, all is well  (harbor 0.1.0, process 4242, since 2026-11-21T09:15:18Z)",
        "listeners  1 bound, 0 failed, 1 suspended, 0 pending (revision 14 of 14)",
        "suspended  port 35012 since 2026-11-21T09:15:18Z by root@a: sends\\u{1b}spam",
        "blocked    clients of 2 networks: `harbor node blocked` shows them",
        "rotation   of the announce secret since 2026-11-21T09:15:18Z: `harbor data rotate-secret --finish` ends it",
        "35012  tcp       suspended 2 up, 1 draining, 5 open    6fbe0f2c-0001",
    ] {
        assert!(screen.lines().any(|found| found == line), "{line} in\n{screen}");
    }
}
