//! Making the announce secret.

use ring::rand::{SecureRandom as _, SystemRandom};

use super::{Fault, Result};
use crate::model::token::{AnnounceSecret, SECRET_BYTES};

/// A new secret from the system's random source.
pub(super) fn fresh() -> Result<AnnounceSecret> {
    let mut bytes = [0; SECRET_BYTES];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Fault {
        doing: "the store cannot make the announce secret".into(),
        source: "the system's random source does not answer".into(),
    })?;
    Ok(AnnounceSecret::new(bytes))
}
