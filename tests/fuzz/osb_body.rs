//! Bodies of the Open Service Broker API: parameters through the schemas and into values.

use harbor::{
    broker::{
        parameters::{of_bind, of_provision, of_update},
        schemas::{Schemas, Use},
    },
    model::{PoolName, parameters::MAX_ALLOW, plan::Plan},
};
use serde_json::Value;

use crate::mutate;

const CORPUS: [&[u8]; 4] = [
    br#"{"protocol":"both","port":35000,"int_port":4100,"balance":"fifo","match_app":true,"idle_timeout":"1h 30m"}"#,
    br#"{"max_connections":100,"allow":["10.0.0.0/8","fc00::1"],"proxy_protocol":"v2"}"#,
    br#"{"int_port":null,"allow":[],"idle_timeout":null,"balance":"least_connections"}"#,
    br#"{"announce":true}"#,
];

#[test]
fn parameters_are_refused_or_mean_what_they_say() {
    let plans = Plan::built_in(&PoolName::new("default").unwrap());
    let schemas = Schemas::of(&plans);
    let mut taken = 0;
    mutate::run(&CORPUS, |bytes| {
        let Ok(parameters) = serde_json::from_slice::<Value>(bytes) else { return };
        for plan in &plans {
            if schemas.check(&plan.id, Use::Create, &parameters).is_ok()
                && let Ok(read) = of_provision(&parameters)
            {
                assert!(read.settings.allow.len() <= MAX_ALLOW);
                assert!(read.port.is_none_or(|port| port >= 1024));
                taken += 1;
            }
            if schemas.check(&plan.id, Use::Update, &parameters).is_ok() {
                let _ = of_update(&parameters);
            }
            if schemas.check(&plan.id, Use::Bind, &parameters).is_ok() {
                assert!(of_bind(&parameters).is_ok(), "a boolean can be read");
            }
        }
    });
    assert!(std::env::var("HARBOR_SEED").is_ok() || taken > 0, "the corpus itself is taken");
}
