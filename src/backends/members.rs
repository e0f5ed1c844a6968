//! The backends of one service instance in their order, and how one of them is found among many.

use std::{net::IpAddr, ops::Index, slice};

use super::BackendState;
use crate::model::{Timestamp, Transport, announcement::Endpoint};

/// Backends in the order of first announcement, ties by address.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// One tag for each of `states`, close together: who looks for one address among hundreds reads a few lines of memory
    /// instead of one or more for each.
    tags: Vec<u32>,
    states: Vec<BackendState>,
}

impl Members {
    pub(super) fn as_slice(&self) -> &[BackendState] {
        &self.states
    }

    pub(super) fn iter(&self) -> slice::Iter<'_, BackendState> {
        self.states.iter()
    }

    pub(super) fn iter_mut(&mut self) -> slice::IterMut<'_, BackendState> {
        self.states.iter_mut()
    }

    pub(super) fn len(&self) -> usize {
        self.states.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// Where the backend at that address is.
    pub(super) fn find(&self, endpoint: &Endpoint) -> Option<usize> {
        let wanted = tag(endpoint);
        let mut alike = self.tags.iter().enumerate().filter(|(_, tag)| **tag == wanted);
        alike.find(|(at, _)| self.states[*at].backend.endpoint == *endpoint).map(|(at, _)| at)
    }

    /// What may change of one does not change its place; for that, remove it and put it in again.
    pub(super) fn get_mut(&mut self, at: usize) -> &mut BackendState {
        &mut self.states[at]
    }

    /// Puts one in where it belongs.
    pub(super) fn insert(&mut self, member: BackendState) {
        let place = place(&member);
        let at = self.states.partition_point(|other| self::place(other) < place);
        self.tags.insert(at, tag(&member.backend.endpoint));
        self.states.insert(at, member);
    }

    pub(super) fn remove(&mut self, at: usize) -> BackendState {
        self.tags.remove(at);
        self.states.remove(at)
    }

    /// Takes out those that `goes` holds for.
    pub(super) fn extract(&mut self, goes: impl Fn(&BackendState) -> bool) -> Vec<BackendState> {
        let gone = self.states.extract_if(.., |member| goes(member)).collect::<Vec<_>>();
        if !gone.is_empty() {
            self.tags.clear();
            self.tags.extend(self.states.iter().map(|member| tag(&member.backend.endpoint)));
        }
        gone
    }
}

impl Index<usize> for Members {
    type Output = BackendState;

    fn index(&self, at: usize) -> &BackendState {
        &self.states[at]
    }
}

fn place(member: &BackendState) -> (Timestamp, Endpoint) {
    (member.since, member.backend.endpoint)
}

/// A number that is the same for the same address, and seldom for another.
fn tag(endpoint: &Endpoint) -> u32 {
    let host = match endpoint.address.ip() {
        IpAddr::V4(ip) => u32::from(ip),
        IpAddr::V6(ip) => {
            let bits = u128::from(ip);
            [0, 32, 64, 96].iter().fold(0, |folded, shift| folded ^ (bits >> shift) as u32)
        }
    };
    // The hosts of one network differ in the lower half.
    host ^ u32::from(endpoint.address.port()) << 16 ^ u32::from(endpoint.transport == Transport::Udp)
}
