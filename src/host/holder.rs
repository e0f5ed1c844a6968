//! Who holds a port that cannot be bound.

use std::{
    collections::{HashMap, HashSet},
    fmt, fs,
    io::{self, BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use super::processes::{Process, processes};
use crate::model::Transport;

/// Most descriptors that are looked at to find the processes of sockets: an answer is not worth more.
const MAX_DESCRIPTORS: usize = 200_000;

/// A socket on a port, and the process it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// What it does there.
    pub state: SocketState,
    /// Its process, id and name; none when it has ended, or when this process may not see it.
    pub process: Option<(u32, String)>,
    /// The user it belongs to.
    pub user_id: u32,
}

/// What a socket does on its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SocketState {
    /// It serves there.
    Listening,
    /// It is one end of a connection: an outgoing one, or an accepted one whose listener is gone.
    Connected,
    /// Its connection has ended; the kernel keeps the port for a minute.
    Ending,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.process, self.state) {
            (_, SocketState::Ending) => f.write_str("a connection that ended less than a minute ago"),
            (Some((id, name)), SocketState::Listening) => write!(f, "process {id} ({name}), which listens on it"),
            (Some((id, name)), SocketState::Connected) => write!(f, "a connection of process {id} ({name})"),
            (None, SocketState::Listening) => write!(f, "a process of user {}, which listens on it", self.user_id),
            (None, SocketState::Connected) => write!(f, "a connection of user {}", self.user_id),
        }
    }
}

impl Holder {
    /// The process, where it is known, or whose it is.
    #[must_use]
    pub fn who(&self) -> String {
        match &self.process {
            Some((id, name)) => format!("process {id} ({name})"),
            None => format!("a process of user {}", self.user_id),
        }
    }
}

/// A socket that holds a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Of which transport.
    pub transport: Transport,
    /// At which address.
    pub place: SocketAddr,
    /// What it does there, and whose it is.
    pub holder: Holder,
}

/// Every socket of this network namespace at a place that `is_wanted`, with its process as far as it can be seen. Left
/// out are those that no process has: of connections that have ended, or wait to be accepted. Reads `/proc` and blocks
/// while it does.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn holders(is_wanted: impl Fn(Transport, SocketAddr) -> bool, processes: &[Process]) -> io::Result<Vec<Held>> {
    let mut sockets = Vec::new();
    for transport in Transport::ALL {
        let wanted = |socket: &Socket| socket.inode != 0 && is_wanted(transport, socket.place());
        each_socket(transport, |socket| sockets.extend(Some((transport, socket)).filter(|_| wanted(&socket))))?;
    }
    let owners = owners(sockets.iter().map(|(_, socket)| socket.inode).collect(), processes);
    let held = |(transport, socket): (Transport, Socket)| {
        let process = owners.get(&socket.inode).map(|process| (process.id, process.name.clone()));
        let holder = Holder { state: socket.state(transport), process, user_id: socket.user_id };
        Held { transport, place: socket.place(), holder }
    };
    Ok(sockets.into_iter().map(held).collect())
}

/// Who is in the way of a socket at each of `places` in this network namespace; `None` where nobody is seen. Reads `/proc`,
/// once for all of them, and blocks while it does.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn holders_of(places: &[(SocketAddr, Transport)]) -> io::Result<Vec<Option<Holder>>> {
    let mut asked: HashMap<(Transport, u16), Vec<usize>> = HashMap::new();
    for (index, (place, transport)) in places.iter().enumerate() {
        asked.entry((*transport, place.port())).or_default().push(index);
    }
    let mut found: Vec<Option<Socket>> = vec![None; places.len()];
    for transport in Transport::ALL {
        each_socket(transport, |socket| {
            for index in asked.get(&(transport, socket.port)).into_iter().flatten() {
                let is_first =
                    found[*index].is_none_or(|known: Socket| socket.state(transport) < known.state(transport));
                if is_first && socket.is_in_the_way_of(places[*index].0) {
                    found[*index] = Some(socket);
                }
            }
        })?;
    }
    let inodes = found.iter().flatten().map(|socket| socket.inode).filter(|inode| *inode != 0).collect::<HashSet<_>>();
    let processes = if inodes.is_empty() { Vec::new() } else { processes()? };
    let owners = owners(inodes, &processes);
    let holder = |(socket, (_, transport)): (Option<Socket>, &(SocketAddr, Transport))| {
        let socket = socket?;
        let process = owners.get(&socket.inode).map(|process| (process.id, process.name.clone()));
        Some(Holder { state: socket.state(*transport), process, user_id: socket.user_id })
    };
    Ok(found.into_iter().zip(places).map(holder).collect())
}

/// Shows every socket of a transport that there is.
fn each_socket(transport: Transport, mut look: impl FnMut(Socket)) -> io::Result<()> {
    let files = match transport {
        Transport::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        Transport::Udp => ["/proc/net/udp", "/proc/net/udp6"],
    };
    for file in files {
        // A machine without IPv6 has no file for it.
        let Ok(file) = fs::File::open(file) else { continue };
        for line in BufReader::new(file).lines() {
            parse_line(&line?).into_iter().for_each(&mut look);
        }
    }
    Ok(())
}

/// One line of `/proc/net/{tcp,tcp6,udp,udp6}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Socket {
    address: IpAddr,
    port: u16,
    state: u8,
    user_id: u32,
    inode: u64,
}

/// As the kernel numbers them in `include/net/tcp_states.h`.
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

impl Socket {
    const fn place(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    fn is_in_the_way_of(&self, place: SocketAddr) -> bool {
        self.port == place.port() && meet(self.address, place.ip())
    }

    const fn state(self, transport: Transport) -> SocketState {
        match (transport, self.state) {
            // A UDP socket without a peer is in this state, and serves.
            (Transport::Udp, CLOSE) | (Transport::Tcp, LISTEN) => SocketState::Listening,
            (Transport::Tcp, TIME_WAIT) => SocketState::Ending,
            _ => SocketState::Connected,
        }
    }
}

/// Whether sockets at both addresses stand in each other's way.
#[must_use]
pub fn meet(own: IpAddr, other: IpAddr) -> bool {
    own.to_canonical() == other.to_canonical() || own.is_unspecified() || other.is_unspecified()
}

/// `sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode …`
fn parse_line(line: &str) -> Option<Socket> {
    let mut fields = line.split_whitespace();
    let (address, port) = fields.nth(1)?.rsplit_once(':')?;
    let state = fields.nth(1)?;
    let user_id = fields.nth(3)?;
    let inode = fields.nth(1)?;
    Some(Socket {
        address: parse_address(address)?,
        port: u16::from_str_radix(port, 16).ok()?,
        state: u8::from_str_radix(state, 16).ok()?,
        user_id: user_id.parse().ok()?,
        inode: inode.parse().ok()?,
    })
}

/// Words of 32 bits, each as this machine has a number.
fn parse_address(digits: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(digits.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    match digits.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let bytes = <[u8; 16]>::try_from(words.concat()).ok()?;
            Some(IpAddr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

/// The processes that have these sockets, by inode. It ends with the last that is found: Harbor is asked first, as it
/// may have most of them.
fn owners(mut inodes: HashSet<u64>, processes: &[Process]) -> HashMap<u64, &Process> {
    let mut found = HashMap::new();
    let mut budget = MAX_DESCRIPTORS;
    let (harbors, others) = processes.iter().partition::<Vec<_>, _>(|process| process.is_harbor());
    for process in harbors.into_iter().chain(others) {
        // Processes end while we look, and those of other users are not ours to see.
        let Ok(descriptors) = fs::read_dir(format!("/proc/{}/fd", process.id)) else { continue };
        for descriptor in descriptors.flatten() {
            if budget == 0 || inodes.is_empty() {
                return found;
            }
            budget -= 1;
            let target = fs::read_link(descriptor.path()).ok();
            let inode = target.as_ref().and_then(|target| target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']'));
            if let Some(inode) = inode.and_then(|inode| inode.parse().ok()).filter(|inode| inodes.remove(inode)) {
                found.insert(inode, process);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);

    #[test]
    fn who_is_at_another_address_is_in_nobodys_way() {
        let at = |address: &str| -> IpAddr { address.parse().unwrap() };
        let is_in_the_way = |own: &str, other: &str| {
            let socket = Socket { address: at(own), port: 80, state: LISTEN, user_id: 0, inode: 1 };
            assert!(!socket.is_in_the_way_of((at(other), 81).into()));
            socket.is_in_the_way_of((at(other), 80).into())
        };
        assert!(is_in_the_way("127.0.0.1", "127.0.0.1") && is_in_the_way("127.0.0.1", "::ffff:127.0.0.1"));
        assert!(is_in_the_way("::", "127.0.0.1") && is_in_the_way("127.0.0.1", "0.0.0.0"));
        assert!(!is_in_the_way("127.0.0.1", "127.0.0.2") && !is_in_the_way("::1", "127.0.0.1"));
        let digits = if cfg!(target_endian = "little") { "0100007F" } else { "7F000001" };
        assert_eq!(parse_address(digits), Some(V4));
    }

    #[test]
    fn lines_are_read_as_the_kernel_writes_them() {
        let tcp =
            "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0 100 0";
        assert_eq!(
            parse_line(tcp),
            Some(Socket { address: V4, port: 8080, state: LISTEN, user_id: 1000, inode: 4242 })
        );
        let tcp6 = "  12: 00000000000000000000000000000000:88B8 00000000000000000000000000000000:0000 07 \
                    00000000:00000000 00:00000000 00000000     0        0 77 2 0000000000000000 0";
        assert_eq!(parse_line(tcp6), Some(Socket { address: V6, port: 35000, state: CLOSE, user_id: 0, inode: 77 }));
        assert_eq!(
            parse_line("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid"),
            None
        );
        assert_eq!(parse_line(""), None);
    }

    #[test]
    fn our_own_sockets_are_found() {
        let name = fs::read_to_string("/proc/self/comm").unwrap().trim_end().to_owned();
        let own = |state| {
            let user_id = rustix::process::getuid().as_raw();
            Some(Holder { state, process: Some((std::process::id(), name.clone())), user_id })
        };
        let (tcp, tcp6) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("[::1]:0").unwrap());
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let places = [
            (tcp.local_addr().unwrap(), Transport::Tcp),
            (tcp6.local_addr().unwrap(), Transport::Tcp),
            (udp.local_addr().unwrap(), Transport::Udp),
            (client.local_addr().unwrap(), Transport::Tcp),
            ((V4, 1).into(), Transport::Tcp),
        ];
        let listens = own(SocketState::Listening);
        let expected = vec![listens.clone(), listens.clone(), listens, own(SocketState::Connected), None];
        assert_eq!(holders_of(&places).unwrap(), expected);
    }

    #[test]
    fn all_sockets_of_some_ports_are_found_in_one_go() {
        let (tcp, udp) = (TcpListener::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let client = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let ports = [tcp.local_addr(), udp.local_addr(), client.local_addr()].map(|address| address.unwrap().port());
        let found = holders(|_, place| ports.contains(&place.port()), &processes().unwrap()).unwrap();
        let shown = |transport: Transport, state: SocketState, port: u16| {
            let is_it = |held: &&Held| held.transport == transport && held.holder.state == state;
            let process = found.iter().filter(is_it).find(|held| held.place.port() == port);
            process.and_then(|held| held.holder.process.as_ref()).map(|(id, _)| *id)
        };
        let own = Some(std::process::id());
        assert_eq!(shown(Transport::Tcp, SocketState::Listening, ports[0]), own);
        assert_eq!(shown(Transport::Udp, SocketState::Listening, ports[1]), own);
        assert_eq!(shown(Transport::Tcp, SocketState::Connected, ports[2]), own);
        // The other end of the connection waits to be accepted: nobody has it.
        assert_eq!(shown(Transport::Tcp, SocketState::Connected, ports[0]), None);
    }

    #[test]
    fn a_holder_is_told_in_words() {
        let holder = |state, process: Option<(u32, &str)>| {
            let process = process.map(|(id, name)| (id, name.to_owned()));
            Holder { state, process, user_id: 1000 }.to_string()
        };
        let nginx = Some((7, "nginx"));
        assert_eq!(holder(SocketState::Listening, nginx), "process 7 (nginx), which listens on it");
        assert_eq!(holder(SocketState::Connected, nginx), "a connection of process 7 (nginx)");
        assert_eq!(holder(SocketState::Listening, None), "a process of user 1000, which listens on it");
        assert_eq!(holder(SocketState::Connected, None), "a connection of user 1000");
        assert_eq!(holder(SocketState::Ending, None), "a connection that ended less than a minute ago");
    }
}
