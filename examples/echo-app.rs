//! An app as Harbor's users write them: it answers on TCP and on UDP, and says its name, so that one sees who answered.
//!
//! `echo-app NAME` listens on free ports of loopback, `echo-app NAME ADDRESS:PORT` there. Either prints its ports as
//! `tcp=PORT udp=PORT`, and runs until it is ended.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

/// The largest datagram that IPv4 carries.
const MAX_DATAGRAM: usize = 65_507;

fn main() -> io::Result<()> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "echo".into());
    let address = match std::env::args().nth(2) {
        Some(address) => address.parse().map_err(io::Error::other)?,
        None => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    };
    let (tcp, udp) = (TcpListener::bind(address)?, UdpSocket::bind(address)?);
    writeln!(io::stdout(), "tcp={} udp={}", tcp.local_addr()?.port(), udp.local_addr()?.port())?;
    thread::scope(|scope| {
        scope.spawn(|| answer_datagrams(&udp, &name));
        for connection in tcp.incoming() {
            let (connection, name) = (connection?, &name);
            // A client that leaves in the middle of a line is its own business.
            scope.spawn(move || drop(answer_lines(&connection, name)));
        }
        Ok(())
    })
}

fn answer_lines(connection: &TcpStream, name: &str) -> io::Result<()> {
    for line in BufReader::new(connection).lines() {
        writeln!(&*connection, "{name} says over TCP: {}", line?)?;
    }
    Ok(())
}

fn answer_datagrams(socket: &UdpSocket, name: &str) -> io::Result<()> {
    let mut datagram = vec![0; MAX_DATAGRAM];
    loop {
        let (length, client) = socket.recv_from(&mut datagram)?;
        let mut answer = format!("{name} says over UDP: ").into_bytes();
        answer.extend_from_slice(&datagram[..length]);
        socket.send_to(&answer, client)?;
    }
}
