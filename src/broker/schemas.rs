//! The parameters of each plan as JSON Schemas: the catalog shows them, and requests are held against the same ones.

use std::collections::HashMap;

use jsonschema::{Validator, error::ValidationErrorKind};
use serde_json::{Map, Value, json};

use crate::model::{
    PlanId, Protocol,
    balance::Balance,
    parameters::{CHECK_STREAKS, MAX_ALLOW, ProxyProtocol},
    plan::{Plan, PlanProtocol},
    ports::LOWEST_PORT,
};

/// The dialect that the Open Service Broker API asks for.
const DRAFT_4: &str = "http://json-schema.org/draft-04/schema#";

/// Longest value that a refusal repeats, in characters.
const MAX_SHOWN: usize = 60;

/// Longest text of a duration or a network.
const MAX_TEXT: usize = 64;

/// Numbers with units, as durations are written; what they come to is checked when they are read.
const DURATION_PATTERN: &str = r"^ *[0-9]{1,9}(ms|s|m|h|d)( *[0-9]{1,9}(ms|s|m|h|d))* *$";

/// Which request a schema is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Use {
    /// Provision.
    Create,
    /// Update: `null` goes back to the default.
    Update,
    /// Bind.
    Bind,
}

/// One parameter as a plan takes it.
struct Parameter {
    name: &'static str,
    /// For people: what it takes.
    takes: String,
    schema: Value,
    /// Whether it can be changed after provision.
    changes: bool,
}

/// The parameters that a plan takes, in the order they are documented.
fn parameters(plan: &Plan) -> Vec<Parameter> {
    let fixed = |name, takes: &str, schema| Parameter { name, takes: takes.into(), schema, changes: false };
    let live = |name, takes: &str, schema| Parameter { name, takes: takes.into(), schema, changes: true };
    let words = |words: &[&str]| words.join(", ");
    let mut parameters = Vec::new();
    if plan.protocol == PlanProtocol::ByName {
        let protocols = Protocol::ALL.map(Protocol::as_str);
        parameters.push(fixed("protocol", &words(&protocols), json!({ "type": "string", "enum": protocols })));
    }
    if plan.choose_port {
        parameters.push(fixed(
            "port",
            &format!("a port of the pool, {LOWEST_PORT} to 65535"),
            json!({ "type": "integer", "minimum": LOWEST_PORT, "maximum": u16::MAX }),
        ));
    }
    parameters.push(live(
        "int_port",
        "the port that the app listens on, 1 to 65535",
        json!({ "type": "integer", "minimum": 1, "maximum": u16::MAX }),
    ));
    let balances = Balance::ALL.map(Balance::as_str).into_iter().chain(["fifo"]).collect::<Vec<_>>();
    parameters.push(live("balance", &words(&balances), json!({ "type": "string", "enum": balances })));
    if plan.match_app {
        parameters.push(live(
            "match_app",
            "true or false: whether the platform's own routes of the bound app make backends",
            json!({ "type": "boolean" }),
        ));
    }
    let longest = plan.caps.longest_idle_timeout();
    parameters.push(live(
        "idle_timeout",
        &format!("a duration such as \"90s\" or \"12h\", up to \"{}\"", humantime::format_duration(longest)),
        json!({ "type": "string", "maxLength": MAX_TEXT, "pattern": DURATION_PATTERN }),
    ));
    let most = plan.caps.most_connections();
    parameters.push(live(
        "max_connections",
        &format!("a number from 1 to {most}"),
        json!({ "type": "integer", "minimum": 1, "maximum": most }),
    ));
    parameters.push(live(
        "allow",
        &format!("a list of up to {MAX_ALLOW} client networks such as \"10.0.0.0/8\"; an empty one lets everyone in"),
        json!({ "type": "array", "maxItems": MAX_ALLOW, "items": { "type": "string", "maxLength": MAX_TEXT } }),
    ));
    let headers = ProxyProtocol::ALL.map(ProxyProtocol::as_str);
    parameters.push(live("proxy_protocol", &words(&headers), json!({ "type": "string", "enum": headers })));
    parameters.push(live(
        "health_check",
        "none, tcp, or an object such as {\"type\": \"tcp\", \"interval\": \"10s\", \"timeout\": \"2s\", \"rise\": 2, \"fall\": 3}",
        health_check(),
    ));
    parameters
}

/// A word, or an object that has more to say.
fn health_check() -> Value {
    let kinds = json!({ "type": "string", "enum": ["none", "tcp"] });
    let time = json!({ "type": "string", "maxLength": MAX_TEXT, "pattern": DURATION_PATTERN });
    let streak = json!({ "type": "integer", "minimum": CHECK_STREAKS.start(), "maximum": CHECK_STREAKS.end() });
    // Each keyword speaks of values of its own type only.
    json!({
        "type": ["string", "object"],
        "pattern": "^(none|tcp)$",
        "required": ["type"],
        "additionalProperties": false,
        "properties": { "type": kinds, "interval": time, "timeout": time, "rise": streak, "fall": streak },
    })
}

/// The parameters that a bind takes.
fn bind_parameters() -> Vec<Parameter> {
    vec![Parameter {
        name: "announce",
        takes: "true or false: whether the holder may announce backends".into(),
        schema: json!({ "type": "boolean" }),
        changes: false,
    }]
}

/// The schemas of all plans, compiled.
#[derive(Debug)]
pub struct Schemas {
    plans: HashMap<PlanId, HashMap<Use, Schema>>,
}

/// One schema, as it is shown and as it judges.
#[derive(Debug)]
struct Schema {
    plan: String,
    usage: Use,
    json: Value,
    validator: Validator,
    takes: Vec<(&'static str, String)>,
}

impl Schemas {
    /// Those of `plans`.
    #[must_use]
    pub fn of(plans: &[Plan]) -> Self {
        let of_plan = |plan: &Plan| {
            let schemas = [Use::Create, Use::Update, Use::Bind].map(|usage| (usage, Schema::of(plan, usage)));
            (plan.id.clone(), HashMap::from(schemas))
        };
        Self { plans: plans.iter().map(of_plan).collect() }
    }

    /// The schema as the catalog shows it; an empty one for a plan that is not there.
    #[must_use]
    pub fn json(&self, plan: &PlanId, usage: Use) -> Value {
        self.schema(plan, usage).map_or_else(|| json!({}), |schema| schema.json.clone())
    }

    /// Whether `parameters` are what the plan takes. A plan that is not there takes anything: it is refused elsewhere.
    ///
    /// # Errors
    /// A sentence that names the parameter and what it takes.
    pub fn check(&self, plan: &PlanId, usage: Use, parameters: &Value) -> Result<(), String> {
        self.schema(plan, usage).map_or(Ok(()), |schema| schema.check(parameters))
    }

    fn schema(&self, plan: &PlanId, usage: Use) -> Option<&Schema> {
        self.plans.get(plan)?.get(&usage)
    }
}

impl Schema {
    fn of(plan: &Plan, usage: Use) -> Self {
        let parameters = match usage {
            Use::Create => parameters(plan),
            Use::Update => parameters(plan).into_iter().filter(|parameter| parameter.changes).collect(),
            Use::Bind => bind_parameters(),
        };
        let property = |parameter: &Parameter| {
            let mut schema = parameter.schema.clone();
            if usage == Use::Update {
                allow_null(&mut schema);
            }
            schema["description"] = Value::String(parameter.takes.clone());
            (parameter.name.to_owned(), schema)
        };
        let properties = parameters.iter().map(property).collect::<Map<_, _>>();
        let json = json!({
            "$schema": DRAFT_4,
            "type": "object",
            "additionalProperties": false,
            "properties": properties,
        });
        let validator = jsonschema::draft4::new(&json).expect("a test compiles the schemas of every kind of plan");
        let takes = parameters.into_iter().map(|parameter| (parameter.name, parameter.takes)).collect();
        Self { plan: plan.name.clone(), usage, json, validator, takes }
    }

    fn check(&self, parameters: &Value) -> Result<(), String> {
        let Some(error) = self.validator.iter_errors(parameters).next() else { return Ok(()) };
        if let ValidationErrorKind::AdditionalProperties { unexpected } = error.kind() {
            let name = unexpected.first().map_or("", String::as_str);
            return Err(self.unknown(name));
        }
        let path = error.instance_path().as_str();
        let name = path.split('/').nth(1).unwrap_or_default();
        let takes = self.takes.iter().find(|(known, _)| *known == name).map_or("an object", |(_, takes)| takes);
        Err(format!("`{name}` takes {takes}; not {}.", shown(&error.instance().to_string())))
    }

    fn unknown(&self, name: &str) -> String {
        let known = self.takes.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let name = shown(name);
        match self.usage {
            Use::Create => format!("The plan {} does not take the parameter `{name}`: it takes {known}.", self.plan),
            Use::Update => format!("The parameter `{name}` cannot be changed: the plan {} lets {known} be.", self.plan),
            Use::Bind => format!("A binding does not take the parameter `{name}`: it takes {known}."),
        }
    }
}

/// Lets a property be `null` besides.
fn allow_null(schema: &mut Value) {
    let mut types = match schema["type"].take() {
        Value::Array(types) => types,
        one => vec![one],
    };
    types.push("null".into());
    schema["type"] = types.into();
    if let Some(Value::Array(words)) = schema.get_mut("enum") {
        words.push(Value::Null);
    }
}

/// `text`, cut short.
fn shown(text: &str) -> String {
    let mut shown = text.chars().take(MAX_SHOWN).collect::<String>();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{PoolName, plan::Caps};

    fn plans() -> Vec<Plan> {
        let mut plans = Plan::built_in(&PoolName::new("default").unwrap());
        plans.push(Plan {
            id: Plan::derived_id("strict"),
            name: "strict".into(),
            protocol: PlanProtocol::Fixed(Protocol::Tcp),
            choose_port: false,
            match_app: false,
            caps: Caps { max_connections: Some(10), idle_timeout: Some(Duration::from_secs(600)) },
            ..plans[0].clone()
        });
        plans
    }

    fn check(plan: &str, usage: Use, parameters: Value, expected: Result<(), &str>) {
        let plans = plans();
        let id = &plans.iter().find(|candidate| candidate.name == plan).unwrap().id;
        let outcome = Schemas::of(&plans).check(id, usage, &parameters);
        assert_eq!(outcome, expected.map_err(Into::into), "{plan} {usage:?} {parameters}");
    }

    #[test]
    fn each_plan_takes_what_it_leaves_open() {
        let all = json!({
            "protocol": "both", "port": 35000, "int_port": 4100, "balance": "fifo", "match_app": true,
            "idle_timeout": "1h 30m", "max_connections": 100, "allow": ["10.0.0.0/8"], "proxy_protocol": "v2",
        });
        check("free", Use::Create, all, Ok(()));
        check("free", Use::Create, json!({}), Ok(()));
        check("strict", Use::Create, json!({ "max_connections": 10, "idle_timeout": "10m" }), Ok(()));
        check("tcp", Use::Update, json!({ "balance": null, "allow": null, "int_port": null }), Ok(()));
        check("tcp", Use::Bind, json!({ "announce": true }), Ok(()));
    }

    #[test]
    fn what_it_does_not_take_is_refused_by_name_with_what_it_takes() {
        check(
            "tcp",
            Use::Create,
            json!({ "protocol": "udp" }),
            Err("The plan tcp does not take the parameter `protocol`: it takes `port`, `int_port`, `balance`, \
                 `match_app`, `idle_timeout`, `max_connections`, `allow`, `proxy_protocol`, `health_check`."),
        );
        check(
            "strict",
            Use::Create,
            json!({ "port": 35000 }),
            Err("The plan strict does not take the parameter `port`: it takes `int_port`, `balance`, `idle_timeout`, \
                 `max_connections`, `allow`, `proxy_protocol`, `health_check`."),
        );
        check(
            "tcp",
            Use::Update,
            json!({ "port": 35000 }),
            Err("The parameter `port` cannot be changed: the plan tcp lets `int_port`, `balance`, `match_app`, \
                 `idle_timeout`, `max_connections`, `allow`, `proxy_protocol`, `health_check` be."),
        );
        check(
            "tcp",
            Use::Bind,
            json!({ "port": 1 }),
            Err("A binding does not take the parameter `port`: it takes `announce`."),
        );
        let name = "x".repeat(100);
        check(
            "tcp",
            Use::Bind,
            json!({ name: 1 }),
            Err(&format!("A binding does not take the parameter `{}…`: it takes `announce`.", "x".repeat(60))),
        );
    }

    #[test]
    fn a_wrong_value_is_refused_with_what_is_right() {
        for (parameters, expected) in [
            (json!({ "protocol": "sctp" }), "`protocol` takes tcp, udp, both; not \"sctp\"."),
            (json!({ "protocol": null }), "`protocol` takes tcp, udp, both; not null."),
            (json!({ "port": 1023 }), "`port` takes a port of the pool, 1024 to 65535; not 1023."),
            (json!({ "port": "35000" }), "`port` takes a port of the pool, 1024 to 65535; not \"35000\"."),
            (json!({ "int_port": 0 }), "`int_port` takes the port that the app listens on, 1 to 65535; not 0."),
            (json!({ "int_port": 1.5 }), "`int_port` takes the port that the app listens on, 1 to 65535; not 1.5."),
            (
                json!({ "balance": "least-connection" }),
                "`balance` takes round_robin, least_connections, random, source_hash, failover, fifo; \
                 not \"least-connection\".",
            ),
            (
                json!({ "match_app": "yes" }),
                "`match_app` takes true or false: whether the platform's own routes of the bound app make backends; \
                 not \"yes\".",
            ),
            (
                json!({ "idle_timeout": 60 }),
                "`idle_timeout` takes a duration such as \"90s\" or \"12h\", up to \"30days\"; not 60.",
            ),
            (
                json!({ "idle_timeout": "soon" }),
                "`idle_timeout` takes a duration such as \"90s\" or \"12h\", up to \"30days\"; not \"soon\".",
            ),
            (json!({ "max_connections": 0 }), "`max_connections` takes a number from 1 to 1000000; not 0."),
            (
                json!({ "allow": ["10.0.0.0/8", 5] }),
                "`allow` takes a list of up to 64 client networks such as \"10.0.0.0/8\"; an empty one lets everyone in; \
                 not 5.",
            ),
            (json!({ "proxy_protocol": "v3" }), "`proxy_protocol` takes none, v1, v2; not \"v3\"."),
        ] {
            check("free", Use::Create, parameters, Err(expected));
        }
        check(
            "strict",
            Use::Update,
            json!({ "max_connections": 11 }),
            Err("`max_connections` takes a number from 1 to 10; not 11."),
        );
        check(
            "tcp",
            Use::Bind,
            json!({ "announce": 1 }),
            Err("`announce` takes true or false: whether the holder may announce backends; not 1."),
        );
    }

    #[test]
    fn schemas_are_what_the_cloud_controller_takes() {
        let plans = plans();
        let schemas = Schemas::of(&plans);
        for plan in &plans {
            for usage in [Use::Create, Use::Update, Use::Bind] {
                let schema = schemas.json(&plan.id, usage);
                assert!(jsonschema::draft4::meta::is_valid(&schema), "{schema}");
                assert!(schema.to_string().len() < 65_536);
                assert_eq!(schema["$schema"], DRAFT_4);
            }
        }
    }
}
