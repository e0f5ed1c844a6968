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

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        time::{Duration, Instant},
    };

    use super::*;
    use crate::{
        backends::Backend,
        model::announcement::{AnnouncedState, Authority, Origin},
    };

    fn member(endpoint: Endpoint, since: i64) -> BackendState {
        let now = Instant::now();
        BackendState {
            backend: Arc::new(Backend::new(endpoint, Authority::Trusted, Origin::default(), now)),
            origin: Origin::default(),
            state: AnnouncedState::Up,
            state_since: now,
            time_to_live: Duration::ZERO,
            expires_at: now,
            since: Timestamp(since),
        }
    }

    #[test]
    fn those_of_one_tag_are_told_apart() {
        let of = |transport, address: &str| Endpoint { transport, address: address.parse().unwrap() };
        let alike = [
            of(Transport::Tcp, "10.0.1.7:4001"),
            of(Transport::Tcp, "10.1.1.7:4000"),
            of(Transport::Udp, "10.0.1.6:4001"),
            of(Transport::Tcp, "[::a00:107]:4001"),
            of(Transport::Tcp, "[a00:107::]:4001"),
        ];
        assert!(alike.iter().all(|endpoint| tag(endpoint) == tag(&alike[0])), "they show nothing otherwise");
        let mut members = Members::default();
        for (endpoint, since) in alike.iter().zip([5, 4, 3, 2]) {
            assert_eq!(members.find(endpoint), None);
            members.insert(member(*endpoint, since));
        }
        let found = |members: &Members| alike.map(|endpoint| members.find(&endpoint));
        assert_eq!(found(&members), [Some(3), Some(2), Some(1), Some(0), None]);
        assert_eq!(members.remove(1).backend.endpoint, alike[2]);
        assert_eq!(found(&members), [Some(2), Some(1), None, Some(0), None]);
        assert_eq!(members.extract(|member| member.since == Timestamp(2)).len(), 1);
        assert_eq!(found(&members), [Some(1), Some(0), None, None, None]);
    }

    #[test]
    fn what_an_announcement_is_held_against_is_one_cache_line() {
        let end = std::mem::offset_of!(Backend, authority) + size_of::<Authority>();
        assert!(std::mem::offset_of!(Backend, endpoint) == 0 && end <= 64, "{end} bytes");
        assert_eq!(size_of::<Backend>(), 256, "nothing is lost to alignment");
    }
}
