//! Parameters as JSON, and as values: read after the schema has judged their form, shown again by a fetch.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use crate::model::{
    balance::Balance,
    parameters::{HealthCheck, ProvisionParameters, ProxyProtocol, Settings, SettingsPatch, TcpCheck},
    plan::{Plan, PlanProtocol},
    service_instance::ServiceInstance,
};

/// Parameters of a provision request.
///
/// # Errors
/// A sentence about the first that cannot be read.
pub fn of_provision(parameters: &Value) -> Result<ProvisionParameters, String> {
    Ok(ProvisionParameters {
        protocol: given(parameters, "protocol", |value| value.as_str()?.parse().ok())?.flatten(),
        port: given(parameters, "port", port)?.flatten(),
        settings: Settings::default().patched(&of_update(parameters)?),
    })
}

/// Parameters of an update request: those that can be changed.
///
/// # Errors
/// A sentence about the first that cannot be read.
pub fn of_update(parameters: &Value) -> Result<SettingsPatch, String> {
    Ok(SettingsPatch {
        int_port: given(parameters, "int_port", port)?,
        balance: given(parameters, "balance", |value| Balance::from_word(value.as_str()?))?,
        match_app: given(parameters, "match_app", Value::as_bool)?,
        idle_timeout: given(parameters, "idle_timeout", duration)?,
        max_connections: given(parameters, "max_connections", |value| u32::try_from(value.as_u64()?).ok())?,
        allow: given(parameters, "allow", |value| value.as_array()?.iter().map(network).collect())?,
        proxy_protocol: given(parameters, "proxy_protocol", |value| ProxyProtocol::from_word(value.as_str()?))?,
        health_check: given(parameters, "health_check", health_check)?,
    })
}

/// The parameter of a bind request.
///
/// # Errors
/// A sentence when it cannot be read.
pub fn of_bind(parameters: &Value) -> Result<Option<bool>, String> {
    Ok(given(parameters, "announce", Value::as_bool)?.flatten())
}

/// What a service instance has been given, in the form that a request gives it.
pub(super) fn of_instance(instance: &ServiceInstance, plan: Option<&Plan>) -> Map<String, Value> {
    let Settings { int_port, balance, match_app, idle_timeout, max_connections, allow, proxy_protocol, health_check } =
        &instance.settings;
    let open = plan.is_some_and(|plan| plan.protocol == PlanProtocol::ByName);
    let all = [
        ("protocol", open.then(|| json!(instance.protocol.as_str()))),
        ("port", instance.requested_port.map(Value::from)),
        ("int_port", int_port.map(Value::from)),
        ("balance", balance.map(|balance| json!(balance.as_str()))),
        ("match_app", match_app.map(Value::from)),
        ("idle_timeout", idle_timeout.map(|timeout| json!(written(timeout)))),
        ("max_connections", max_connections.map(Value::from)),
        ("allow", (!allow.is_empty()).then(|| allow.iter().map(IpNet::to_string).collect())),
        ("proxy_protocol", proxy_protocol.map(|header| json!(header.as_str()))),
        ("health_check", health_check.map(shown_check)),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// A parameter: absent, `null`, or a value that `read` understands.
#[expect(clippy::option_option, reason = "absent, null and a value are three different wishes")]
fn given<T>(
    parameters: &Value,
    name: &str,
    read: impl FnOnce(&Value) -> Option<T>,
) -> Result<Option<Option<T>>, String> {
    match parameters.get(name) {
        None => Ok(None),
        Some(Value::Null) => Ok(Some(None)),
        Some(value) => {
            let value =
                read(value).ok_or_else(|| format!("`{name}` cannot be read: see the catalog for what it takes."))?;
            Ok(Some(Some(value)))
        }
    }
}

fn port(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok()
}

/// The word `none` or `tcp`, or an object that has more to say of the latter.
fn health_check(value: &Value) -> Option<HealthCheck> {
    if let Some(word) = value.as_str() {
        return match word {
            "none" => Some(HealthCheck::None),
            "tcp" => Some(HealthCheck::Tcp(TcpCheck::default())),
            _ => None,
        };
    }
    let usual = TcpCheck::default();
    let time = |key| value.get(key).map_or(Some(None), |value| duration(value).map(Some));
    let streak = |key| {
        let read = |value: &Value| u8::try_from(value.as_u64()?).ok();
        value.get(key).map_or(Some(None), |value| read(value).map(Some))
    };
    match value.get("type")?.as_str()? {
        "none" => Some(HealthCheck::None),
        "tcp" => Some(HealthCheck::Tcp(TcpCheck {
            interval: time("interval")?.unwrap_or(usual.interval),
            timeout: time("timeout")?.unwrap_or(usual.timeout),
            rise: streak("rise")?.unwrap_or(usual.rise),
            fall: streak("fall")?.unwrap_or(usual.fall),
        })),
        _ => None,
    }
}

fn shown_check(check: HealthCheck) -> Value {
    match check {
        HealthCheck::None => json!("none"),
        HealthCheck::Tcp(TcpCheck { interval, timeout, rise, fall }) => json!({
            "type": "tcp", "interval": written(interval), "timeout": written(timeout), "rise": rise, "fall": fall,
        }),
    }
}

fn duration(value: &Value) -> Option<Duration> {
    humantime::parse_duration(value.as_str()?).ok()
}

/// A duration in the units that the schema knows.
fn written(duration: Duration) -> String {
    match (duration.as_secs(), duration.subsec_millis()) {
        (seconds, 0) => format!("{seconds}s"),
        (seconds, milliseconds) => format!("{seconds}s {milliseconds}ms"),
    }
}

/// A network, or an address alone.
fn network(value: &Value) -> Option<IpNet> {
    let text = value.as_str()?;
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    #[test]
    fn every_parameter_is_read() {
        let read = of_provision(&json!({
            "protocol": "both", "port": 35000, "int_port": 4100, "balance": "fifo", "match_app": true,
            "idle_timeout": "1h 30m", "max_connections": 100, "allow": ["10.0.0.0/8", "fc00::1"], "proxy_protocol": "v2",
            "health_check": "tcp",
        }));
        let settings = Settings {
            int_port: Some(4100),
            balance: Some(Balance::Failover),
            match_app: Some(true),
            idle_timeout: Some(Duration::from_secs(5400)),
            max_connections: Some(100),
            allow: vec!["10.0.0.0/8".parse().unwrap(), "fc00::1/128".parse().unwrap()],
            proxy_protocol: Some(ProxyProtocol::V2),
            health_check: Some(HealthCheck::Tcp(TcpCheck::default())),
        };
        assert_eq!(read, Ok(ProvisionParameters { protocol: Some(Protocol::Both), port: Some(35000), settings }));
        assert_eq!(of_provision(&json!({})), Ok(ProvisionParameters::default()));
        assert_eq!(of_bind(&json!({ "announce": true })), Ok(Some(true)));
        assert_eq!(of_bind(&json!({})), Ok(None));
    }

    #[test]
    fn absent_null_and_a_value_are_three_wishes() {
        let patch = of_update(&json!({ "int_port": null, "allow": [], "match_app": false })).unwrap();
        assert_eq!(
            patch,
            SettingsPatch {
                int_port: Some(None),
                allow: Some(Some(Vec::new())),
                match_app: Some(Some(false)),
                ..SettingsPatch::default()
            }
        );
    }

    #[test]
    fn what_the_schema_cannot_tell_is_still_refused() {
        for parameters in [
            json!({ "allow": ["10.0.0.0/33"] }),
            json!({ "allow": ["example.com"] }),
            json!({ "idle_timeout": "999999999d 999999999d 999999999d 999999999d 999999999d 999999999d 999999999d" }),
            json!({ "int_port": 4100.0 }),
            json!({ "port": -1 }),
        ] {
            let name = parameters.as_object().unwrap().keys().next().unwrap().clone();
            if of_provision(&parameters).is_ok() {
                assert_eq!(name, "idle_timeout", "long, but a duration: the cap refuses it");
                continue;
            }
            assert_eq!(
                of_provision(&parameters),
                Err(format!("`{name}` cannot be read: see the catalog for what it takes."))
            );
        }
    }

    #[test]
    fn durations_are_shown_as_they_can_be_sent() {
        for (duration, text) in [(Duration::from_secs(5400), "5400s"), (Duration::from_millis(1500), "1s 500ms")] {
            assert_eq!(written(duration), text);
            assert_eq!(super::duration(&json!(text)), Some(duration));
        }
    }
}
