//! Whose the addresses on Diego cells are, by the latest `router.register` of each.
//!
//! A cell gives the ports of an app instance that is gone to the next one, of whatever app. So an address there is
//! believed only where the platform itself has said whose it is. All routes count for that, those too that mean nothing
//! to Harbor.

use std::{
    collections::{HashMap, hash_map},
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, SocketAddr},
    time::Instant,
};

/// Addresses that are kept: some 40 MiB where hosts have many, 80 where each has its own. Of one more it is not known
/// whose it is until others are gone.
const MAX_ADDRESSES: usize = 7 << 16;

/// The addresses that the platform has given to apps.
#[derive(Debug, Default)]
pub struct Attribution {
    /// Of each host, by port: a cell's route-emitter speaks of all of its ports in a row.
    hosts: HashMap<IpAddr, Vec<Owned>>,
    /// How many addresses that are.
    len: usize,
    /// Ids are kept as digests under a key of this process, so that nobody can make two that are the same.
    digests: RandomState,
    suspended_until: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Owned {
    port: u16,
    app: u64,
    app_instance: Option<u64>,
    expires_at: Instant,
}

/// There are [`MAX_ADDRESSES`] already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany;

/// Who says that an address is whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speaker<'a> {
    /// The app.
    pub app: &'a str,
    /// Which of its instances, where that is said.
    pub app_instance: Option<&'a str>,
}

impl Attribution {
    /// A `router.register` says whose the address is until then; without a speaker, that it is no app's.
    ///
    /// # Errors
    /// [`TooMany`]: it is not known whose the address is.
    pub fn set(&mut self, address: SocketAddr, to: Option<Speaker<'_>>, expires_at: Instant) -> Result<(), TooMany> {
        let Some(to) = to else {
            self.remove(address);
            return Ok(());
        };
        let app_instance = to.app_instance.map(|id| self.digest(id));
        let owned = Owned { port: address.port(), app: self.digest(to.app), app_instance, expires_at };
        let has_room = self.len < MAX_ADDRESSES;
        let host = match self.hosts.get_mut(&address.ip()) {
            Some(host) => host,
            None if has_room => self.hosts.entry(address.ip()).or_insert_with(|| Vec::with_capacity(1)),
            None => return Err(TooMany),
        };
        match place(host, address.port()) {
            Ok(at) => host[at] = owned,
            Err(at) if has_room => {
                host.insert(at, owned);
                self.len += 1;
            }
            Err(_) => return Err(TooMany),
        }
        Ok(())
    }

    /// A `router.unregister` says that it no longer is. Route-emitters repeat them for ten minutes, while the address may
    /// be another one's already. Returns whether it was theirs.
    pub fn take(&mut self, address: SocketAddr, from: Speaker<'_>) -> bool {
        let (app, app_instance) = (self.digest(from.app), from.app_instance.map(|id| self.digest(id)));
        let agree = |known: Option<u64>| known.is_none() || app_instance.is_none() || known == app_instance;
        let taken = self.find(address).is_some_and(|owned| owned.app == app && agree(owned.app_instance));
        if taken {
            self.remove(address);
        }
        taken
    }

    /// Whether the address is known to be the app's.
    #[must_use]
    pub fn is_of(&self, address: SocketAddr, app: &str) -> bool {
        self.find(address).is_some_and(|owned| owned.app == self.digest(app))
    }

    /// Forgets what has not been said again in time, unless that is suspended, and returns it.
    pub fn expire(&mut self, now: Instant) -> Vec<SocketAddr> {
        if self.suspended_until.is_some_and(|until| now < until) {
            return Vec::new();
        }
        let mut expired = Vec::new();
        self.hosts.retain(|ip, host| {
            let gone = host.extract_if(.., |owned| owned.expires_at <= now);
            expired.extend(gone.map(|owned| SocketAddr::new(*ip, owned.port)));
            host.shrink_to(host.len() * 2);
            !host.is_empty()
        });
        self.hosts.shrink_to(self.hosts.len() * 2);
        self.len -= expired.len();
        expired
    }

    /// While nothing can be heard nothing is forgotten, at the longest until `until`; a suspension that goes on already is
    /// not prolonged.
    pub fn suspend(&mut self, until: Instant) {
        self.suspended_until.get_or_insert(until);
    }

    /// Everything can be heard again, and has so long to be.
    pub fn resume(&mut self, expires_at: Instant) {
        if self.suspended_until.take().is_some() {
            let all = self.hosts.values_mut().flatten();
            all.for_each(|owned| owned.expires_at = owned.expires_at.max(expires_at));
        }
    }

    /// How many addresses are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn find(&self, address: SocketAddr) -> Option<&Owned> {
        let host = self.hosts.get(&address.ip())?;
        place(host, address.port()).ok().map(|at| &host[at])
    }

    fn remove(&mut self, address: SocketAddr) {
        let hash_map::Entry::Occupied(mut host) = self.hosts.entry(address.ip()) else { return };
        if let Ok(at) = place(host.get(), address.port()) {
            host.get_mut().remove(at);
            self.len -= 1;
        }
        if host.get().is_empty() {
            host.remove();
        }
    }

    fn digest(&self, id: &str) -> u64 {
        self.digests.hash_one(id)
    }
}

/// Where a port is, or belongs.
fn place(host: &[Owned], port: u16) -> Result<usize, usize> {
    host.binary_search_by_key(&port, |owned| owned.port)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const TTL: Duration = Duration::from_secs(120);

    fn address(number: usize) -> SocketAddr {
        let [.., a, b, c, d] = number.to_be_bytes();
        SocketAddr::from(([10, a, b, c], 61_000 + u16::from(d)))
    }

    fn of<'a>(app: &'a str, app_instance: Option<&'a str>) -> Speaker<'a> {
        Speaker { app, app_instance }
    }

    #[test]
    fn an_address_is_whose_it_was_last_said_to_be() {
        let (mut attribution, end) = (Attribution::default(), Instant::now() + TTL);
        assert!(!attribution.is_of(address(1), "app"));
        attribution.set(address(1), Some(of("app", Some("instance"))), end).unwrap();
        assert!(attribution.is_of(address(1), "app") && !attribution.is_of(address(2), "app"));
        attribution.set(address(1), Some(of("other", None)), end).unwrap();
        assert!(attribution.is_of(address(1), "other") && !attribution.is_of(address(1), "app"));
        attribution.set(address(1), None, end).unwrap();
        assert!(attribution.is_empty());
    }

    #[test]
    fn an_unregister_that_comes_late_takes_nothing_from_the_next_one() {
        let (mut attribution, end) = (Attribution::default(), Instant::now() + TTL);
        attribution.set(address(1), Some(of("app", Some("new"))), end).unwrap();
        assert!(!attribution.take(address(1), of("other", Some("new"))));
        assert!(!attribution.take(address(1), of("app", Some("old"))));
        assert!(attribution.is_of(address(1), "app"));
        assert!(attribution.take(address(1), of("app", Some("new"))));
        assert!(!attribution.is_of(address(1), "app"));
        for (given, taken) in [(None, Some("any")), (Some("any"), None)] {
            attribution.set(address(1), Some(of("app", given)), end).unwrap();
            assert!(attribution.take(address(1), of("app", taken)), "{given:?} {taken:?}");
        }
    }

    #[test]
    fn what_is_not_said_again_is_forgotten_unless_nothing_can_be_heard() {
        let (mut attribution, start) = (Attribution::default(), Instant::now());
        attribution.set(address(1), Some(of("app", None)), start + TTL).unwrap();
        attribution.set(address(2), Some(of("app", None)), start + TTL * 2).unwrap();
        assert_eq!(attribution.expire(start + TTL), [address(1)]);
        attribution.suspend(start + TTL * 5);
        attribution.suspend(start + TTL * 50);
        assert_eq!(attribution.expire(start + TTL * 4), []);
        attribution.resume(start + TTL * 5);
        assert_eq!(attribution.expire(start + TTL * 5 - Duration::from_secs(1)), []);
        assert_eq!(attribution.expire(start + TTL * 5), [address(2)]);
        attribution.set(address(3), Some(of("app", None)), start + TTL * 6).unwrap();
        attribution.suspend(start + TTL * 7);
        assert_eq!(attribution.expire(start + TTL * 7), [address(3)], "a suspension ends by itself");
    }

    #[test]
    fn there_are_only_so_many_and_those_that_are_known_stay_known() {
        let (mut attribution, end) = (Attribution::default(), Instant::now() + TTL);
        for number in 0..MAX_ADDRESSES {
            assert_eq!(attribution.set(address(number), Some(of("app", None)), end), Ok(()));
        }
        assert_eq!(attribution.set(address(MAX_ADDRESSES), Some(of("app", None)), end), Err(TooMany));
        assert_eq!(attribution.set(address(7), Some(of("other", None)), end), Ok(()));
        assert!(attribution.is_of(address(7), "other") && !attribution.is_of(address(MAX_ADDRESSES), "app"));
        assert!(attribution.take(address(7), of("other", None)));
        assert_eq!(attribution.set(address(MAX_ADDRESSES), Some(of("app", None)), end), Ok(()));
        assert_eq!(attribution.expire(end).len(), MAX_ADDRESSES);
        assert!(attribution.is_empty());
    }
}
