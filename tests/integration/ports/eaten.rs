//! Outgoing connections that eat a pool's ports: found before, mended, and outlived where nobody has mended it.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use harbor::host::raise_descriptor_limit;
use serde_json::json;
use socket2::{Domain, Socket, Type};

use super::{checked, findings, machine, reserved};
use crate::{
    end_to_end::{PLAN_TCP, at, bind, provision, status},
    support::{
        echo::Echo,
        eventually::{PATIENCE, eventually, eventually_async},
        harbor::{Harbor, Site},
        http::Client,
        namespaces::{Machine, Network},
    },
};

const POOL: RangeInclusive<u16> = 35_000..=40_000;
/// Connections that are open when the node comes back.
const CONNECTIONS: usize = 8000;
/// Connections that are opened once the ports are reserved.
const MORE_CONNECTIONS: usize = 2000;
/// Service instances that the node has before.
const SERVICE_INSTANCES: usize = 40;
/// Service instances that are made while the connections hold ports.
const MORE_SERVICE_INSTANCES: usize = 20;
/// Descriptors that this test takes, and some for others.
const DESCRIPTORS: u64 = 14_000;
/// Where the one app listens: at a port that nothing else takes.
const APP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 4100);

/// Somebody who takes every connection, and never accepts one: those cost no descriptors.
fn sink(machine: &Machine) -> (Socket, SocketAddr) {
    let place = SocketAddr::new(machine.address(), 9000);
    let listener = machine.run(|| {
        std::fs::write("/proc/sys/net/core/somaxconn", "65535").expect("we are root");
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("descriptors are left");
        socket.bind(&place.into()).expect("nobody is there");
        socket.listen(65_535).expect("it is bound");
        socket
    });
    (listener, place)
}

/// Outgoing connections of a machine, each at the port that the kernel has chosen for it. They end by a reset: none of
/// their ports is kept for a minute.
fn connections(machine: &Machine, count: usize, to: SocketAddr) -> Vec<(u16, Socket)> {
    machine.run(|| {
        let open = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("descriptors are left");
            socket.connect(&to.into()).expect("somebody takes it");
            socket.set_linger(Some(Duration::ZERO)).expect("it is a connection");
            let own = socket.local_addr().expect("it is connected").as_socket().expect("it is of IPv4");
            (own.port(), socket)
        };
        (0..count).map(|_| open()).collect()
    })
}

fn of_pool(connections: &[(u16, Socket)]) -> usize {
    connections.iter().filter(|(port, _)| POOL.contains(port)).count()
}

/// What the app says to a client at a port of the node; none when nobody takes the connection.
fn answer(client: &Machine, to: SocketAddr) -> Option<Vec<u8>> {
    client.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).expect("it is a duration");
        stream.write_all(b"hello").ok()?;
        let mut answer = vec![0; 64];
        let length = stream.read(&mut answer).ok().filter(|length| *length > 0)?;
        answer.truncate(length);
        Some(answer)
    })
}

/// Makes service instances that all lead to the one app, and returns their ports.
async fn provision_all(node: &Harbor) -> Vec<u16> {
    let announce = node.address("announce");
    let mut ports = Vec::new();
    for number in 0..SERVICE_INSTANCES {
        let (id, binding) = (format!("game-{number}"), format!("binding-{number}"));
        provision(node, &id, PLAN_TCP).await;
        let credentials = bind(node, &id, &binding, PLAN_TCP).await;
        let token = credentials["announce"]["token"].as_str().expect("it is for an app");
        let client = Client::new(announce).with("authorization", &format!("Bearer {token}"));
        let body = json!({ "binding_id": binding, "port": APP.port() });
        let answer = client.put(&format!("/announce/v1/instances/{id}"), &body).await;
        assert!(answer.status.is_success(), "{answer:?}");
        ports.push(at(&credentials).port());
    }
    ports
}

#[test]
fn eight_thousand_outgoing_connections_are_foreseen_mended_and_outlived() {
    let test = "eight_thousand_outgoing_connections_are_foreseen_mended_and_outlived";
    let Some(mut network) = Network::new(test) else { return };
    let limit = raise_descriptor_limit().now;
    if limit < DESCRIPTORS {
        return writeln!(io::stderr(), "skipped {test}: {limit} descriptors, and it wants {DESCRIPTORS}").unwrap();
    }
    let (node_machine, client) = (machine(&mut network), network.machine("client"));
    let (_listener, sink) = sink(&network.machine("sink"));
    let _app = node_machine.keep(|stop| async move {
        let app = Echo::start_at(APP, "app").await;
        stop.cancelled().await;
        app.stop().await;
    });
    let place = |port| SocketAddr::new(node_machine.address(), port);
    let site = Site::new("35000-40000", "");

    // Before: the check warns, and names the command. Nobody listens to it.
    let said = checked(&node_machine, &site, &[]);
    assert_eq!(said.code, 1, "{said:?}");
    let command = "sysctl -w net.ipv4.ip_local_reserved_ports=8080,9148,35000-40000\n";
    assert!(said.stdout.contains("ephemeral_overlap") && said.stdout.contains(command), "{said:?}");

    // The node is away for a moment, and outgoing connections take what it had.
    let node = node_machine.serve(&site);
    let ports = node_machine.block_on(|| provision_all(&node));
    for port in &ports {
        eventually("the app answers", || answer(&client, place(*port)));
    }
    assert!(node.terminate().success());
    let mut open = connections(&node_machine, CONNECTIONS, sink);
    let held = of_pool(&open);
    let eaten = ports.iter().copied().filter(|port| open.iter().any(|(held, _)| held == port)).collect::<Vec<_>>();
    assert!(held > CONNECTIONS / 20 && !eaten.is_empty(), "{held} ports of the pool, {eaten:?} of service instances");
    let node = node_machine.serve(&site);
    let said = checked(&node_machine, &site, &[]);
    let holder = format!("of process {} (", std::process::id());
    assert!(said.code == 1 && said.stdout.contains("port_in_use") && said.stdout.contains(&holder), "{said:?}");
    assert!(said.stdout.contains(&format!("… ({held} in all)")), "{held} ports, and it says {}", said.stdout);

    // It serves what it can, gives out what is free, and says what it cannot open.
    for port in ports.iter().filter(|port| !eaten.contains(port)) {
        assert!(answer(&client, place(*port)).is_some(), "{port} is open");
    }
    node_machine.block_on(|| async {
        for number in 0..MORE_SERVICE_INSTANCES {
            provision(&node, &format!("more-{number}"), PLAN_TCP).await;
        }
        let status = status(&node).await;
        assert_eq!(status["listeners"]["failed"], eaten.len(), "{status}");
        assert!(status["degraded"].to_string().contains(&holder), "{status}");
    });

    // Each port is taken within a second of being free. The app has not noticed anything.
    let mut taken = Vec::new();
    for port in &eaten {
        let begun = Instant::now();
        open.retain(|(held, _)| held != port);
        eventually("the app answers", || answer(&client, place(*port)));
        taken.push(begun.elapsed());
    }
    taken.sort();
    let (median, longest) = (taken[taken.len() / 2], taken[taken.len() - 1]);
    // Not captured as a print would be: the figures are what one runs this for.
    writeln!(
        io::stderr(),
        "{CONNECTIONS} outgoing connections took {held} of {} ports, {} of {SERVICE_INSTANCES} in use; taken back in {median:.0?} \
         (median), {longest:.0?} (longest)",
        POOL.count(),
        eaten.len()
    )
    .unwrap();
    assert!(median <= Duration::from_secs(1), "{taken:?}");
    node_machine.block_on(|| async {
        eventually_async("nothing has failed", || async {
            (status(&node).await["listeners"]["failed"] == 0).then_some(())
        })
        .await;
    });

    // Mended: what is open stays, and no more come.
    let said = checked(&node_machine, &site, &["--fix", "--json"]);
    let warned = findings(&said).into_iter().filter(|(severity, _)| severity != "info").map(|(_, code)| code);
    assert_eq!((said.code, warned.collect::<Vec<_>>()), (1, vec!["port_in_use".to_owned()]));
    assert_eq!(reserved(&node_machine), "8080,9148,35000-40000");
    let more = connections(&node_machine, MORE_CONNECTIONS, sink);
    assert_eq!(of_pool(&more), 0);
    drop((open, more));
    let said = checked(&node_machine, &site, &["--fix"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(reserved(&node_machine), "8080,9148,35000-40000");
    assert!(node.terminate().success());
}
