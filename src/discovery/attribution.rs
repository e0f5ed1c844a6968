//! Whose the addresses on Diego cells are, by the latest `router.register` of each.
//!
//! A cell gives the ports of an app instance that is gone to the next one, of whatever app. So an address there is
//! believed only where the platform itself has said whose it is. All routes count for that, those too that mean nothing
//! to Harbor.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    time::Instant,
};

/// Addresses that are kept: what half a million places in memory hold, some 35 MiB. Of one more it is not known whose it
/// is until others are gone.
const MAX_ADDRESSES: usize = 7 << 16;

/// The addresses that the platform has given to apps.
#[derive(Debug, Default)]
pub struct Attribution {
    owners: HashMap<SocketAddr, Owner>,
    /// Ids are kept as digests under a key of this process, so that nobody can make two that are the same.
    digests: RandomState,
    suspended_until: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Owner {
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
            self.owners.remove(&address);
            return Ok(());
        };
        if self.owners.len() >= MAX_ADDRESSES && !self.owners.contains_key(&address) {
            return Err(TooMany);
        }
        let app_instance = to.app_instance.map(|id| self.digest(id));
        self.owners.insert(address, Owner { app: self.digest(to.app), app_instance, expires_at });
        Ok(())
    }

    /// A `router.unregister` says that it no longer is. Route-emitters repeat them for ten minutes, while the address may
    /// be another one's already. Returns whether it was theirs.
    pub fn take(&mut self, address: SocketAddr, from: Speaker<'_>) -> bool {
        let (app, app_instance) = (self.digest(from.app), from.app_instance.map(|id| self.digest(id)));
        let agree = |known: Option<u64>| known.is_none() || app_instance.is_none() || known == app_instance;
        let is_theirs = |owner: &Owner| owner.app == app && agree(owner.app_instance);
        let taken = self.owners.get(&address).is_some_and(is_theirs);
        if taken {
            self.owners.remove(&address);
        }
        taken
    }

    /// Whether the address is known to be the app's.
    #[must_use]
    pub fn is_of(&self, address: SocketAddr, app: &str) -> bool {
        self.owners.get(&address).is_some_and(|owner| owner.app == self.digest(app))
    }

    /// Forgets what has not been said again in time, unless that is suspended, and returns it.
    pub fn expire(&mut self, now: Instant) -> Vec<SocketAddr> {
        if self.suspended_until.is_some_and(|until| now < until) {
            return Vec::new();
        }
        let expired = self.owners.extract_if(|_, owner| owner.expires_at <= now).map(|(address, _)| address).collect();
        self.owners.shrink_to(self.owners.len() * 2);
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
            self.owners.values_mut().for_each(|owner| owner.expires_at = owner.expires_at.max(expires_at));
        }
    }

    /// How many addresses are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.owners.len()
    }

    /// Whether none is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    fn digest(&self, id: &str) -> u64 {
        self.digests.hash_one(id)
    }
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
    }
}
