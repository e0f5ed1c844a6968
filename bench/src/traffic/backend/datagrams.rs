//! The backend's UDP: echoes in batches, and counts.

use std::{
    array,
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
};

use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSockRef, UdpSocketState};

use crate::traffic::{
    protocol::{self, Counted},
    sockets::{self, Addressed},
};

/// What joined datagrams may come to.
const BUFFER_BYTES: usize = 64 * 1024;
/// Batches that are taken before others get their turn.
const BATCHES_PER_TURN: usize = 8;

pub struct Datagrams {
    socket: UdpSocket,
    state: UdpSocketState,
    buffers: Vec<Box<[u8]>>,
    counted: Counted,
}

impl AsFd for Datagrams {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Datagrams {
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = sockets::datagrams(address)?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        sockets::allow_fragments(&socket)?;
        let buffers = (0..BATCH_SIZE).map(|_| vec![0; BUFFER_BYTES].into()).collect();
        Ok(Self { socket, state, buffers, counted: Counted::default() })
    }

    /// Takes what is there and answers it. What a full buffer or a client that is gone does not take is lost.
    pub fn answer(&mut self) {
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        for _ in 0..BATCHES_PER_TURN {
            let mut buffers = self.buffers.iter_mut();
            let mut slices: [_; BATCH_SIZE] =
                array::from_fn(|_| IoSliceMut::new(buffers.next().expect("there is one for each of a batch")));
            let Ok(received) = self.state.recv(UdpSockRef::from(&self.socket), &mut slices, &mut metas) else { return };
            let mut answers = Vec::with_capacity(BATCH_SIZE);
            let mut counters = [0; 16];
            let mut asked = None;
            for (meta, buffer) in metas[..received].iter().zip(&self.buffers) {
                let bytes = &buffer[..meta.len];
                // An empty datagram has a stride of none.
                let datagrams = meta.len.div_ceil(meta.stride.max(1)).max(1);
                match bytes.first() {
                    Some(&protocol::COUNTED) => {
                        self.counted.datagrams += datagrams as u64;
                        self.counted.bytes += meta.len as u64;
                        continue;
                    }
                    Some(&protocol::QUERY) => {
                        counters = self.counted.to_bytes();
                        asked = Some(meta.addr);
                        continue;
                    }
                    Some(&protocol::ZERO) => self.counted = Counted::default(),
                    _ => {}
                }
                let split = |index| &bytes[index * meta.stride..][..meta.stride.min(meta.len - index * meta.stride)];
                answers.extend((0..datagrams).map(|index| Addressed::new(meta.addr, split(index))));
            }
            answers.extend(asked.map(|client| Addressed::new(client, &counters)));
            sockets::send_addressed(&self.socket, &answers);
            if received < BATCH_SIZE {
                return;
            }
        }
    }
}
