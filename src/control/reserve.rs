//! Reserve: ports of a pool are held back under a name.

use super::{
    Control,
    reservations::{MAX_ATTEMPTS, ReservationRefusal, by_name},
};
use crate::model::{
    PoolName,
    port_plan::{Change, Leave, PlanRefusal, Step},
    registry::{RegistryRefusal, Wish},
};

impl Control {
    /// Holds ports back. That a name has these very ports already is fine; other ones it has to release first.
    ///
    /// # Errors
    /// [`ReservationRefusal`].
    pub async fn reserve(
        &self,
        pool: &PoolName,
        wish: Wish,
        when_free: bool,
        who: &str,
    ) -> Result<Step, ReservationRefusal> {
        let leave = Leave { prune: false, when_free };
        for _ in 0..MAX_ATTEMPTS {
            let known = by_name(self.store.pools().await?.1).remove(pool);
            let known = known.ok_or_else(|| ReservationRefusal::UnknownPool(pool.to_string()))?;
            let plan = self.plan_reservations(&known, std::slice::from_ref(&wish), leave).await?;
            let [step] = plan.steps.try_into().expect("one wish makes one step");
            if let (Change::Alter, Some(block)) = (step.change(), step.before) {
                let differs = PlanRefusal::Registry(RegistryRefusal::Differs { name: wish.name, block });
                return Err(ReservationRefusal::Refused(vec![(pool.clone(), differs)]));
            }
            if self.carry_out(std::slice::from_ref(&step), who).await? {
                return Ok(step);
            }
        }
        Err(ReservationRefusal::Contended)
    }
}
