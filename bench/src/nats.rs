//! A nats-server of a run's own, and as much of a client as an announcer needs.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::Context as _;

use crate::compare::process::Process;

/// How long a server may take to start, and to answer.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(2);

/// A server that can be killed and started again where it was.
#[derive(Debug)]
pub struct Server {
    pub address: SocketAddr,
    log: PathBuf,
    process: Option<Process>,
}

impl Server {
    /// One that runs, with its output in `log`.
    pub fn start(address: SocketAddr, log: PathBuf) -> anyhow::Result<Self> {
        let mut server = Self { address, log, process: None };
        server.restart()?;
        Ok(server)
    }

    /// Starts it again, and waits until it takes connections.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.kill()?;
        let mut command = Command::new("nats-server");
        command.args(["-a", &self.address.ip().to_string(), "-p", &self.address.port().to_string()]);
        let mut process = Process::start(&mut command, &self.log)?;
        process.until("nats-server listens", PATIENCE, PAUSE, || TcpStream::connect(self.address).ok())?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().map_or(Ok(()), Process::kill)
    }
}

/// A connection on which messages are published.
#[derive(Debug)]
pub struct Publisher {
    stream: TcpStream,
    /// What is not written yet.
    out: Vec<u8>,
}

impl Publisher {
    pub fn connect(server: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let out = b"CONNECT {\"verbose\":false,\"name\":\"harbor-bench\"}\r\n".to_vec();
        let mut publisher = Self { stream, out };
        publisher.sync().context("this is no nats-server")?;
        Ok(publisher)
    }

    /// Puts a message beside those that the next [`Publisher::flush`] writes.
    pub fn publish(&mut self, subject: &str, payload: &str) {
        for part in ["PUB ", subject, " ", &payload.len().to_string(), "\r\n", payload, "\r\n"] {
            self.out.extend_from_slice(part.as_bytes());
        }
    }

    /// Writes what there is to write, and answers the server when it asks whether anybody is there.
    pub fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.out)?;
        self.out.clear();
        self.stream.set_nonblocking(true)?;
        let mut heard = [0; 512];
        let read = (&self.stream).read(&mut heard);
        self.stream.set_nonblocking(false)?;
        match read {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) if heard[..length].windows(4).any(|word| word == b"PING") => self.stream.write_all(b"PONG\r\n"),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Waits until the server has read all that was published.
    pub fn sync(&mut self) -> io::Result<()> {
        self.out.extend_from_slice(b"PING\r\n");
        self.stream.write_all(&self.out)?;
        self.out.clear();
        let mut heard = Vec::new();
        while !heard.windows(4).any(|word| word == b"PONG") {
            let mut more = [0; 512];
            let length = self.stream.read(&mut more)?;
            if length == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            heard.extend_from_slice(&more[..length]);
        }
        Ok(())
    }
}
