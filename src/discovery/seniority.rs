//! Who was announced first. With `failover` that is the primary, so nodes must agree on it; but most announcers say no
//! time, and a node that starts late hears everybody within seconds, in any order.
//!
//! So a node that has got a backend beside others says since when it knows each of them (`harbor.since`). Who knows of
//! earlier times says its own; everybody takes over what is earlier. Times only ever become less, so it ends, and all
//! nodes that hear one another end with the same.

use std::{collections::BTreeSet, net::SocketAddr, sync::MutexGuard};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    Discovery,
    wire::{MAX_MESSAGE_BYTES, Malformed},
};
use crate::{
    backends::BackendState,
    model::{ServiceInstanceId, Timestamp, Transport, announcement::Endpoint},
};

/// Service instances that wait to be said. One that finds no room is said when next it changes.
const MAX_UNSAID: usize = 65_536;

/// Backends that are said at once, but for the last service instance's.
const MAX_SAID_AT_ONCE: usize = 4096;

/// Backends of one message: even where each byte of the longest ids has to be escaped it is no longer than
/// [`MAX_MESSAGE_BYTES`].
const MAX_IN_MESSAGE: usize = 32;

/// What other nodes shall hear; `None` while there is nobody to hear it.
pub(super) type Unsaid = Option<BTreeSet<ServiceInstanceId>>;

/// `harbor.since`.
#[derive(Serialize, Deserialize)]
struct Signed<'m> {
    /// A list of [`Known`]; the proof is of this text as it stands.
    #[serde(borrow)]
    backends: &'m RawValue,
    /// Which only who has the announce secret can make.
    proof: &'m str,
}

/// Since when a node knows a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known<'m> {
    instance_id: String,
    transport: &'m str,
    address: SocketAddr,
    /// Microseconds since the epoch.
    since: i64,
}

impl Discovery {
    /// From now on others can hear, and hear everything.
    pub(super) fn say_seniority_of_all(&self) {
        *self.unsaid() = Some(self.backends.ids().into_iter().take(MAX_UNSAID).collect());
    }

    /// Nobody can hear.
    pub(super) fn say_no_seniority(&self) {
        *self.unsaid() = None;
    }

    /// Others shall hear since when this node knows the backends of a service instance.
    pub(super) fn say_seniority_of(&self, id: &ServiceInstanceId) {
        if let Some(unsaid) = &mut *self.unsaid()
            && unsaid.len() < MAX_UNSAID
        {
            unsaid.insert(id.clone());
        }
    }

    /// What others shall hear, as messages; more of it with the next call.
    #[must_use]
    pub fn seniority(&self) -> Vec<Bytes> {
        let mut known = Vec::new();
        while known.len() < MAX_SAID_AT_ONCE {
            let Some(id) = self.unsaid().as_mut().and_then(BTreeSet::pop_first) else { break };
            known.extend(known_of(&id, &self.backends.list(&id)));
        }
        let secret = &self.directory.borrow().announce_secret;
        let messages = known.chunks(MAX_IN_MESSAGE).map(|backends| {
            let backends = serde_json::value::to_raw_value(backends).expect("it has neither maps nor floats");
            let proof = secret.vouch(backends.get());
            serde_json::to_vec(&Signed { backends: &backends, proof: &proof }).expect("it has neither maps nor floats")
        });
        messages.map(Bytes::from).collect()
    }

    /// Hears since when another node knows backends.
    ///
    /// # Errors
    /// [`Malformed`]. What nobody with the announce secret has said is left alone: another Harbor may be on the bus.
    pub fn hear_seniority(&self, payload: &[u8]) -> Result<(), Malformed> {
        if payload.len() > MAX_MESSAGE_BYTES {
            return Err(Malformed::TooLarge(payload.len()));
        }
        let signed = serde_json::from_slice::<Signed<'_>>(payload)?;
        if !self.directory.borrow().announce_secret.has_vouched(signed.backends.get(), signed.proof) {
            return Ok(());
        }
        let known = serde_json::from_str::<Vec<Known<'_>>>(signed.backends.get())?;
        for of_one in known.chunk_by(|a, b| a.instance_id == b.instance_id) {
            let Ok(id) = ServiceInstanceId::new(&of_one[0].instance_id) else { continue };
            let told = of_one.iter().filter_map(Known::read).collect::<Vec<_>>();
            if self.backends.learn_since(&id, &told) {
                self.say_seniority_of(&id);
            }
        }
        Ok(())
    }

    fn unsaid(&self) -> MutexGuard<'_, Unsaid> {
        self.unsaid.lock().expect("nothing panics while it holds what is unsaid")
    }
}

/// The backends that are not the only one of their transport.
fn known_of<'m>(id: &ServiceInstanceId, backends: &[BackendState]) -> Vec<Known<'m>> {
    let of = |transport: Transport| backends.iter().filter(move |state| state.backend.endpoint.transport == transport);
    let several = Transport::ALL.into_iter().filter(|transport| of(*transport).count() > 1);
    let known = several.flat_map(of).map(|state| Known {
        instance_id: id.as_str().to_owned(),
        transport: state.backend.endpoint.transport.as_str(),
        address: state.backend.endpoint.address,
        since: state.since.0,
    });
    known.collect()
}

impl Known<'_> {
    /// Nothing, where it speaks of what this version does not know.
    fn read(&self) -> Option<(Endpoint, Timestamp)> {
        let transport = Transport::of_word(self.transport)?;
        Some((Endpoint { transport, address: self.address }, Timestamp(self.since)))
    }
}
