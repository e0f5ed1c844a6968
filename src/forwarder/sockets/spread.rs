//! Which of a port's sockets a client's datagrams arrive at: a rule that the kernel follows and workers can compute.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
};

use libc::{
    BPF_ABS, BPF_ADD, BPF_ALU, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_LDX, BPF_MEM, BPF_MISC,
    BPF_MOD, BPF_MSH, BPF_MUL, BPF_RET, BPF_RSH, BPF_ST, BPF_TAX, BPF_W, BPF_X, BPF_XOR, SKF_NET_OFF, sock_filter,
};

use super::raw;

/// Odd numbers without a pattern, by which products are spread over all bits.
const FIRST_FACTOR: u32 = 0x9e37_79b1;
const SECOND_FACTOR: u32 = 0x85eb_ca6b;

/// Gives each client, by its address and port, one of some sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    sockets: u32,
    /// So that nobody knows beforehand which clients share a socket.
    seed: u32,
}

impl Spread {
    /// Over so many sockets, one at least.
    ///
    /// # Panics
    /// Where there are more than 32 bits can count.
    #[must_use]
    pub fn new(sockets: usize, seed: u32) -> Self {
        let sockets = u32::try_from(sockets).expect("no machine has so many cores").max(1);
        Self { sockets, seed }
    }

    /// How many sockets for each address.
    #[must_use]
    pub const fn sockets(self) -> usize {
        self.sockets as usize
    }

    /// What [`Spread::new`] was told beside that.
    #[must_use]
    pub const fn seed(self) -> u32 {
        self.seed
    }

    /// Which socket a client's datagrams arrive at, in the order in which they were bound.
    pub(in crate::forwarder) fn place_of(self, client: SocketAddr) -> usize {
        let address = match client.ip().to_canonical() {
            IpAddr::V4(address) => address.to_bits(),
            IpAddr::V6(address) => {
                let bits = address.to_bits();
                [96, 64, 32, 0].into_iter().fold(0, |folded, shift| folded ^ (bits >> shift) as u32)
            }
        };
        let mixed = (address ^ self.seed).wrapping_mul(FIRST_FACTOR);
        let mixed = (mixed ^ mixed >> 15).wrapping_add(u32::from(client.port())).wrapping_mul(SECOND_FACTOR);
        ((mixed ^ mixed >> 13) % self.sockets) as usize
    }

    /// Makes the kernel follow it, for all sockets that share the port of this one.
    pub(in crate::forwarder) fn apply(self, socket: impl AsFd) -> io::Result<()> {
        raw::choose_socket_by(socket.as_fd(), &self.program())
    }

    /// [`Self::place_of`] for the kernel's packet filter. Headers are found from the network layer on; behind extension
    /// headers of IPv6 it reads another number than the port, and such a datagram arrives at another worker.
    fn program(self) -> Vec<sock_filter> {
        const NET: u32 = SKF_NET_OFF as u32;
        const IPV6_ADDRESS: u32 = NET.wrapping_add(8);
        let step = |code: u32, k: u32| sock_filter { code: code as u16, jt: 0, jf: 0, k };
        let fold = |shift| [step(BPF_MISC | BPF_TAX, 0), step(BPF_ALU | BPF_RSH | BPF_K, shift), step(XOR_X, 0)];
        const XOR_X: u32 = BPF_ALU | BPF_XOR | BPF_X;
        let ipv4 = [
            // The port is behind a header of so many words.
            step(BPF_LDX | BPF_B | BPF_MSH, NET),
            step(BPF_LD | BPF_H | BPF_IND, NET),
            step(BPF_ST, 0),
            step(BPF_LD | BPF_W | BPF_ABS, NET.wrapping_add(12)),
        ];
        let mut ipv6 = vec![
            step(BPF_LD | BPF_H | BPF_ABS, NET.wrapping_add(40)),
            step(BPF_ST, 0),
            step(BPF_LD | BPF_W | BPF_ABS, IPV6_ADDRESS),
        ];
        for word in 1..4 {
            ipv6.push(step(BPF_MISC | BPF_TAX, 0));
            ipv6.push(step(BPF_LD | BPF_W | BPF_ABS, IPV6_ADDRESS.wrapping_add(4 * word)));
            ipv6.push(step(XOR_X, 0));
        }
        let mut program = vec![step(BPF_LD | BPF_B | BPF_ABS, NET), step(BPF_ALU | BPF_RSH | BPF_K, 4)];
        // To IPv6, over what is for IPv4 and its last step, which jumps over what is for IPv6.
        program.push(sock_filter { jt: ipv4.len() as u8 + 1, ..step(BPF_JMP | BPF_JEQ | BPF_K, 6) });
        program.extend(ipv4);
        program.push(step(BPF_JMP, ipv6.len() as u32));
        program.extend(ipv6);
        program.extend([step(BPF_ALU | BPF_XOR | BPF_K, self.seed), step(BPF_ALU | BPF_MUL | BPF_K, FIRST_FACTOR)]);
        program.extend(fold(15));
        program.extend([
            step(BPF_LDX | BPF_MEM, 0),
            step(BPF_ALU | BPF_ADD | BPF_X, 0),
            step(BPF_ALU | BPF_MUL | BPF_K, SECOND_FACTOR),
        ]);
        program.extend(fold(13));
        program.extend([step(BPF_ALU | BPF_MOD | BPF_K, self.sockets), step(BPF_RET | RET_A, 0)]);
        program
    }
}

/// Returns what has been computed.
const RET_A: u32 = 0x10;

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::fd::OwnedFd, time::Duration};

    use super::{super::bind_beside, *};

    /// Sends from many clients, and looks that each arrives where it is expected.
    fn check(bind: &str, clients: &[&str], sockets: usize) {
        let first = UdpSocket::bind(bind).unwrap();
        let mut group = vec![OwnedFd::from(first)];
        for _ in 1..sockets {
            group.push(bind_beside(group[0].as_fd()).unwrap());
        }
        let spread = Spread::new(sockets, 0x1234_5678);
        spread.apply(&group[0]).unwrap();
        let group = group.into_iter().map(UdpSocket::from).collect::<Vec<_>>();
        let port = group[0].local_addr().unwrap().port();
        let mut used = vec![0; sockets];
        for address in clients {
            for _ in 0..40 {
                let client = UdpSocket::bind((*address, 0)).unwrap();
                let address = client.local_addr().unwrap();
                let target = if address.is_ipv4() { "127.0.0.1" } else { "::1" };
                client.send_to(b"x", (target, port)).unwrap();
                let place = spread.place_of(address);
                used[place] += 1;
                let socket = &group[place];
                socket.set_nonblocking(false).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                let (_, from) = socket.recv_from(&mut [0; 8]).unwrap();
                assert_eq!((from.ip().to_canonical(), from.port()), (address.ip(), address.port()));
            }
        }
        assert!(used.iter().all(|used| *used > 0), "{used:?}");
    }

    #[test]
    fn the_kernel_gives_each_client_the_socket_that_is_computed() {
        check("127.0.0.1:0", &["127.0.0.1", "127.0.0.2", "127.9.9.9"], 2);
        check("[::1]:0", &["::1"], 3);
        check("[::]:0", &["::1", "127.0.0.1", "127.1.2.3"], 4);
    }
}
