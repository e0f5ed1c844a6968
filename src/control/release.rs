//! Release: ports that were held back can be given out again.

use super::{
    Control,
    reservations::{MAX_ATTEMPTS, ReservationRefusal, by_name},
};
use crate::model::{
    PoolName,
    port_plan::{self, Step},
};

impl Control {
    /// Releases a reservation.
    ///
    /// # Errors
    /// [`ReservationRefusal`].
    pub async fn release(&self, pool: &PoolName, name: &str, who: &str) -> Result<Step, ReservationRefusal> {
        for _ in 0..MAX_ATTEMPTS {
            let held = self.store.reservations(pool).await?.into_iter().find(|held| held.name == name);
            let Some(held) = held else {
                return Err(match by_name(self.store.pools().await?.1).contains_key(pool) {
                    true => ReservationRefusal::UnknownName { pool: pool.clone(), name: name.to_owned() },
                    false => ReservationRefusal::UnknownPool(pool.to_string()),
                });
            };
            let (pool, name, before) = (pool.clone(), name.to_owned(), Some(port_plan::block(&held)));
            let step = Step { pool, name, before, after: None, moved_from: None, allocated: Vec::new() };
            if self.carry_out(std::slice::from_ref(&step), who).await? {
                return Ok(step);
            }
        }
        Err(ReservationRefusal::Contended)
    }
}
