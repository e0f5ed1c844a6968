//! What is said of each flow when it ends.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use harbor::{
    forwarder::FlowEnd,
    model::{Protocol, parameters::Settings},
    telemetry::metrics::{ConnectionEnd, SessionEnd},
};

use super::node::{Closed, Node, id};
use crate::support::peer::{TcpPeer, UdpPeer, V4, ask, connect, udp_client};

#[test]
fn a_connection_that_ends_leaves_a_record() {
    let backend = TcpPeer::serving(V4, |mut stream| {
        let mut asked = Vec::new();
        stream.read_to_end(&mut asked)?;
        stream.write_all(b"seven!!")
    });
    let node = Node::start();
    node.tcp(21180, backend.address);
    let mut client = connect(V4, 21180);
    let address = client.local_addr().unwrap();
    client.write_all(b"ask").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"seven!!");
    let [Closed { lasted, .. }] = node.closed(1)[..] else { panic!("one connection, one record") };
    assert!(lasted < Duration::from_secs(60), "{lasted:?}");
    let end = FlowEnd::Connection(ConnectionEnd::Finished);
    let record = Closed {
        id: id(21180),
        client: address,
        backend: Some(backend.address),
        lasted,
        to_backend: 3,
        to_client: 7,
        datagrams: None,
        end,
    };
    assert_eq!(node.closed(1), [record]);
    assert_eq!((end.transport().as_str(), end.as_str()), ("tcp", "finished"));
}

#[test]
fn a_connection_that_found_no_backend_leaves_a_record_without_one() {
    let node = Node::start();
    node.open(21181, Protocol::Tcp, Settings::default());
    // Reset at once, perhaps before the client has seen that it was connected.
    drop(TcpStream::connect((V4, 21181)));
    let records = node.closed(1);
    let record = &records[0];
    assert_eq!((record.client.ip(), record.backend, record.to_backend), (V4, None, 0));
    assert_eq!(record.end, FlowEnd::Connection(ConnectionEnd::NoBackend));
}

#[test]
fn a_session_that_ends_leaves_a_record() {
    let backend = UdpPeer::echo(V4);
    let node = Node::start();
    node.udp(21580, backend.address);
    let client = udp_client(V4, 21580);
    for datagram in [&b"one"[..], b"three"] {
        assert_eq!(ask(&client, datagram), datagram);
    }
    node.advance(Duration::from_secs(61));
    let records = node.closed(1);
    let record = &records[0];
    assert_eq!((record.id.clone(), record.client), (id(21580), client.local_addr().unwrap()));
    assert_eq!((record.backend, record.to_backend, record.to_client), (Some(backend.address), 8, 8));
    assert_eq!(record.datagrams, Some([2, 2]));
    assert!(record.lasted >= Duration::from_secs(61), "{:?}", record.lasted);
    assert_eq!((record.end, record.end.transport().as_str()), (FlowEnd::Session(SessionEnd::Idle), "udp"));
}
