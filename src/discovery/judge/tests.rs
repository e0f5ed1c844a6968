use serde_json::{Value, json};

use super::*;
use crate::{
    discovery::{fixture, wire},
    model::{BindingId, announcement::Authority},
};

const WALL: Timestamp = Timestamp::from_seconds(1_700_000_000);
const STALE_AFTER: Duration = Duration::from_secs(120);

fn rules() -> Rules {
    Rules {
        domain: Some("harbor.example.com".into()),
        stale_after: STALE_AFTER,
        trusted: vec![
            Trusted {
                networks: vec!["10.0.16.0/24".parse().unwrap()],
                service_instances: Some([ServiceInstanceId::new("tcp-one").unwrap()].into()),
            },
            Trusted { networks: vec!["10.0.17.0/24".parse().unwrap()], service_instances: None },
        ],
        addresses: AddressRules {
            backend_networks: vec!["10.0.0.0/8".parse().unwrap()],
            cell_networks: vec!["10.0.2.0/24".parse().unwrap()],
            own_hosts: ["10.0.0.5".parse().unwrap()].into(),
            pool_ports: "23000-23999".parse().unwrap(),
            ..AddressRules::default()
        },
    }
}

fn decide(message: &Value, action: Action, source: Source) -> Result<Accepted, AnnouncementRefusal> {
    let message = wire::parse(message.to_string().as_bytes()).expect("tests write well-formed messages");
    judge_by(&Attribution::default(), &message, action, source).map_err(|refused| refused.reason)
}

fn judge_by(
    attribution: &Attribution,
    message: &Announcement,
    action: Action,
    source: Source,
) -> Result<Accepted, Refused> {
    let known = Known { directory: &fixture::directory(), attribution, rules: &rules(), wall: WALL };
    judge(message, action, source, &known)
}

fn registered(message: &Value) -> Result<Registration, AnnouncementRefusal> {
    decide(message, Action::Register, Source::Harbor).map(|accepted| match accepted {
        Accepted::Register(registration) => registration,
        Accepted::Unregister(withdrawal) => panic!("{withdrawal:?} out of a register"),
    })
}

/// The app's register for `tcp-one`, with `changes` laid over it; `null` takes a key away.
fn message(changes: Value) -> Value {
    let mut message = json!({"host": "10.0.1.7", "port": 61012, "app": "app", "harbor": {"instance_id": "tcp-one"}});
    merge(&mut message, changes);
    message
}

fn merge(into: &mut Value, changes: Value) {
    match (into, changes) {
        (Value::Object(into), Value::Object(changes)) => {
            for (key, change) in changes {
                merge(into.entry(key).or_insert(Value::Null), change);
            }
        }
        (into, change) => *into = change,
    }
}

/// A key's register for `both-one` with `changes` laid over it, and a proof of how it then stands.
fn proven(binding: &str, action: Action, changes: Value) -> Value {
    let mut message = json!({
        "host": "10.0.1.7", "port": 61012,
        "harbor": {"instance_id": "both-one", "binding_id": binding, "timestamp": WALL.seconds()}
    });
    merge(&mut message, changes);
    let parsed = wire::parse(message.to_string().as_bytes()).unwrap();
    let token = fixture::directory().announce_secret.token(&BindingId::new(binding).unwrap());
    message["harbor"]["proof"] = token.prove(&authority::statement(&parsed, action)).into();
    message
}

#[track_caller]
fn check_endpoints(changes: Value, expect: Result<&[&str], AnnouncementRefusal>) {
    let shown = changes.to_string();
    let endpoints = registered(&message(changes)).map(|registration| {
        let show = |endpoint: &Endpoint| format!("{} {}", endpoint.transport, endpoint.address);
        registration.endpoints.iter().map(show).collect::<Vec<_>>()
    });
    assert_eq!(endpoints, expect.map(|endpoints| endpoints.iter().map(ToString::to_string).collect()), "{shown}");
}

#[track_caller]
fn check_authority(message: &Value, expect: Result<Authority, AnnouncementRefusal>) {
    assert_eq!(registered(message).map(|registration| registration.authority), expect, "{message}");
}

fn app(name: &str) -> Authority {
    Authority::App(AppId::new(name).unwrap())
}

fn binding(name: &str) -> Authority {
    Authority::Binding(BindingId::new(name).unwrap())
}

#[test]
fn a_bound_app_vouches_for_its_backends() {
    check_authority(&message(json!({})), Ok(app("app")));
    check_authority(&message(json!({"app": "stranger"})), Err(AnnouncementRefusal::AppNotBound));
    check_authority(&message(json!({"app": "matched-app"})), Err(AnnouncementRefusal::AppNotBound));
    check_authority(&message(json!({"app": "APP"})), Err(AnnouncementRefusal::AppNotBound));
    check_authority(&message(json!({"app": ""})), Err(AnnouncementRefusal::NoAuthority));
    check_authority(&message(json!({"app": null})), Err(AnnouncementRefusal::NoAuthority));
}

#[test]
fn a_route_mapped_by_a_stranger_opens_nobody_elses_port() {
    let hijack = json!({"uris": ["p23001.harbor.example.com"], "host": "10.0.1.66", "port": 61000, "app": "stranger",
                        "tags": {"harbor_protocol": "tcp"}});
    for source in [Source::Router, Source::Harbor] {
        assert_eq!(decide(&hijack, Action::Register, source), Err(AnnouncementRefusal::AppNotBound));
        assert_eq!(decide(&hijack, Action::Unregister, source), Err(AnnouncementRefusal::AppNotBound));
    }
}

#[test]
fn a_proof_of_a_bindings_token_vouches_for_what_it_was_made_for() {
    let register = Action::Register;
    check_authority(&proven("key", register, json!({})), Ok(binding("key")));
    check_authority(
        &proven("key", register, json!({"harbor": {"udp_port": 61013, "state": "draining"}})),
        Ok(binding("key")),
    );
    check_authority(&proven("silent-key", register, json!({})), Err(AnnouncementRefusal::BadProof));
    check_authority(&proven("gone", register, json!({})), Err(AnnouncementRefusal::BadProof));
    check_authority(&proven("key", Action::Unregister, json!({})), Err(AnnouncementRefusal::BadProof));
    let elsewhere = proven("key", register, json!({"harbor": {"instance_id": "tcp-one"}}));
    check_authority(&elsewhere, Err(AnnouncementRefusal::BadProof));
    for changes in [
        json!({"host": "10.0.1.8"}),
        json!({"port": 61011}),
        json!({"harbor": {"udp_port": 1}}),
        json!({"harbor": {"state": "up"}}),
        json!({"harbor": {"protocol": "udp"}}),
        json!({"harbor": {"binding_id": "silent-key"}}),
        json!({"harbor": {"binding_id": null}}),
        json!({"harbor": {"timestamp": WALL.seconds() + 1}}),
        json!({"harbor": {"timestamp": null}}),
        json!({"harbor": {"proof": ""}}),
    ] {
        let mut tampered = proven("key", register, json!({}));
        merge(&mut tampered, changes);
        check_authority(&tampered, Err(AnnouncementRefusal::BadProof));
    }
}

#[test]
fn a_proof_lives_as_long_as_its_backend_would() {
    let age = |seconds: i64| json!({"harbor": {"timestamp": WALL.seconds() - seconds}});
    for (seconds, expect) in [
        (120, Ok(binding("key"))),
        (121, Err(AnnouncementRefusal::StaleProof)),
        (-5, Ok(binding("key"))),
        (-6, Err(AnnouncementRefusal::StaleProof)),
        (i64::MAX, Err(AnnouncementRefusal::StaleProof)),
    ] {
        let seconds = seconds.min(WALL.seconds());
        check_authority(&proven("key", Action::Register, age(seconds)), expect);
    }
    let mut short = age(31);
    short["stale_threshold_in_seconds"] = 30.into();
    check_authority(&proven("key", Action::Register, short), Err(AnnouncementRefusal::StaleProof));
}

#[test]
fn a_trusted_host_serves_what_it_is_trusted_with() {
    let from = |host: &str, id: &str| json!({"host": host, "port": 7777, "tags": {"harbor_instance": id}});
    check_authority(&from("10.0.16.9", "tcp-one"), Ok(Authority::Trusted));
    check_authority(&from("::ffff:10.0.16.9", "tcp-one"), Ok(Authority::Trusted));
    check_authority(&from("10.0.16.9", "udp-one"), Err(AnnouncementRefusal::NoAuthority));
    check_authority(&from("10.0.17.9", "udp-one"), Ok(Authority::Trusted));
    check_authority(&from("10.0.18.9", "tcp-one"), Err(AnnouncementRefusal::NoAuthority));
    check_authority(&from("vm.example.com", "tcp-one"), Err(AnnouncementRefusal::NoAuthority));
}

#[test]
fn the_first_authority_that_holds_is_the_backends() {
    let all = json!({"host": "10.0.17.9", "app": "app"});
    check_authority(&message(all), Ok(app("app")));
    check_authority(
        &proven("key", Action::Register, json!({"host": "10.0.17.9", "app": "stranger"})),
        Ok(binding("key")),
    );
    let mut forged = proven("key", Action::Register, json!({"host": "10.0.17.9", "app": "stranger"}));
    forged["harbor"]["proof"] = "00".into();
    check_authority(&forged, Ok(Authority::Trusted));
    forged["host"] = "10.0.1.7".into();
    check_authority(&forged, Err(AnnouncementRefusal::BadProof));
}

#[test]
fn a_backend_serves_what_it_says_as_far_as_the_service_instance_has_it() {
    let both = || json!({"app": "app", "harbor": {"instance_id": "both-one"}, "host": "10.0.17.9"});
    let with = |changes: Value| {
        let mut message = both();
        merge(&mut message, changes);
        message
    };
    check_endpoints(json!({}), Ok(&["tcp 10.0.1.7:61012"]));
    check_endpoints(with(json!({})), Ok(&["tcp 10.0.17.9:61012", "udp 10.0.17.9:61012"]));
    check_endpoints(with(json!({"harbor": {"udp_port": 7}})), Ok(&["tcp 10.0.17.9:61012", "udp 10.0.17.9:7"]));
    check_endpoints(with(json!({"harbor": {"udp_port": 0}})), Ok(&["tcp 10.0.17.9:61012", "udp 10.0.17.9:61012"]));
    check_endpoints(with(json!({"harbor": {"protocol": "tcp", "udp_port": 7}})), Ok(&["tcp 10.0.17.9:61012"]));
    check_endpoints(with(json!({"tags": {"harbor_protocol": "udp"}})), Ok(&["udp 10.0.17.9:61012"]));
    check_endpoints(
        with(json!({"tags": {"harbor_protocol": "udp"}, "harbor": {"protocol": "tcp"}})),
        Ok(&["tcp 10.0.17.9:61012"]),
    );
    check_endpoints(with(json!({"port": null, "harbor": {"udp_port": 7}})), Ok(&["udp 10.0.17.9:7"]));
    check_endpoints(json!({"harbor": {"protocol": "both"}}), Ok(&["tcp 10.0.1.7:61012"]));
    check_endpoints(json!({"harbor": {"protocol": "udp"}}), Err(AnnouncementRefusal::ProtocolMismatch));
    check_endpoints(json!({"harbor": {"protocol": "sctp"}}), Err(AnnouncementRefusal::Malformed));
    check_endpoints(json!({"protocol": "http2"}), Ok(&["tcp 10.0.1.7:61012"]));
}

#[test]
fn a_plain_port_is_needed() {
    check_endpoints(json!({"port": 0}), Err(AnnouncementRefusal::TlsOnly));
    check_endpoints(json!({"port": 0, "tls_port": 61014}), Err(AnnouncementRefusal::TlsOnly));
    check_endpoints(json!({"port": null, "tls_port": 61014}), Err(AnnouncementRefusal::TlsOnly));
    check_endpoints(json!({"port": null}), Err(AnnouncementRefusal::NoPort));
    check_endpoints(json!({"port": null, "harbor": {"udp_port": 7}}), Err(AnnouncementRefusal::ProtocolMismatch));
    check_endpoints(json!({"tls_port": 61014}), Ok(&["tcp 10.0.1.7:61012"]));
}

#[test]
fn the_address_is_one_that_a_backend_may_have() {
    check_endpoints(json!({"host": "::ffff:10.0.1.7"}), Ok(&["tcp 10.0.1.7:61012"]));
    check_endpoints(json!({"host": "app.internal"}), Err(AnnouncementRefusal::HostNotAnAddress));
    check_endpoints(json!({"host": null}), Err(AnnouncementRefusal::HostNotAnAddress));
    check_endpoints(json!({"host": "192.168.0.1"}), Err(AnnouncementRefusal::AddressForbidden));
    check_endpoints(json!({"host": "169.254.169.254"}), Err(AnnouncementRefusal::AddressForbidden));
    check_endpoints(json!({"host": "10.0.0.5", "port": 23_001}), Err(AnnouncementRefusal::Loop));
    let udp_loop = json!({"host": "10.0.0.5", "app": "app",
                          "harbor": {"instance_id": "udp-one", "udp_port": 23_002}});
    check_endpoints(udp_loop, Err(AnnouncementRefusal::Loop));
}

#[test]
fn a_message_shortens_the_life_of_its_backend_and_never_prolongs_it() {
    for (threshold, seconds) in [
        (json!(null), 120),
        (json!(0), 120),
        (json!(-7), 120),
        (json!(60), 60),
        (json!(120), 120),
        (json!(i64::MAX), 120),
    ] {
        let registration = registered(&message(json!({"stale_threshold_in_seconds": threshold}))).unwrap();
        assert_eq!(registration.time_to_live.as_secs(), seconds, "{threshold}");
    }
}

#[test]
fn a_state_is_up_or_draining() {
    for (state, expect) in [
        (json!(null), Ok(AnnouncedState::Up)),
        (json!("up"), Ok(AnnouncedState::Up)),
        (json!("draining"), Ok(AnnouncedState::Draining)),
        (json!("down"), Err(AnnouncementRefusal::Malformed)),
    ] {
        let outcome = registered(&message(json!({"harbor": {"state": state}}))).map(|registration| registration.state);
        assert_eq!(outcome, expect, "{state}");
    }
}

#[test]
fn a_time_too_far_ahead_counts_as_absent() {
    let ns = WALL.seconds() * 1_000_000_000;
    for (updated, expect) in [
        (json!(null), None),
        (json!(0), None),
        (json!(-1), None),
        (json!(ns), Some(ns)),
        (json!(ns + 5_000_000_000), Some(ns + 5_000_000_000)),
        (json!(ns + 5_000_000_001), None),
        (json!(i64::MAX), None),
    ] {
        let registration = registered(&message(json!({"endpoint_updated_at_ns": updated}))).unwrap();
        assert_eq!(registration.origin.updated_at_ns, expect, "{updated}");
    }
}

#[test]
fn who_announces_is_taken_from_the_message_within_bounds() {
    let registration = registered(&message(json!({"private_instance_id": "i"}))).unwrap();
    assert_eq!(
        (registration.origin.app_id, registration.origin.private_instance_id.as_deref()),
        (AppId::new("app").ok(), Some("i"))
    );
    let empty = registered(&message(json!({"private_instance_id": ""}))).unwrap();
    assert_eq!(empty.origin.private_instance_id, None);
    let long = "x".repeat(256);
    for changes in [json!({"private_instance_id": &long}), json!({"app": &long, "host": "10.0.17.9"})] {
        assert_eq!(registered(&message(changes)), Err(AnnouncementRefusal::Malformed));
    }
    let by_token = json!({"app": &long, "harbor": {"instance_id": "matched"}});
    let by_token = proven("matched-app@matched", Action::Register, by_token);
    assert_eq!(registered(&by_token), Err(AnnouncementRefusal::Malformed), "though the binding's app speaks");
}

#[test]
fn an_unregister_needs_the_authority_of_a_register_but_not_an_allowed_address() {
    let withdrawn = |message: &Value| decide(message, Action::Unregister, Source::Harbor);
    let Ok(Accepted::Unregister(withdrawal)) =
        withdrawn(&message(json!({"private_instance_id": "i", "host": "8.8.8.8"})))
    else {
        panic!("a bound app may withdraw")
    };
    assert_eq!(withdrawal.endpoints.len(), 1);
    assert_eq!(withdrawal.endpoints[0].address.to_string(), "8.8.8.8:61012");
    assert_eq!(withdrawal.origin.private_instance_id.as_deref(), Some("i"));
    assert_eq!(withdrawn(&message(json!({"app": "stranger"}))), Err(AnnouncementRefusal::AppNotBound));
    assert_eq!(withdrawn(&message(json!({"app": null}))), Err(AnnouncementRefusal::NoAuthority));
    assert!(withdrawn(&proven("key", Action::Unregister, json!({}))).is_ok());
    assert_eq!(withdrawn(&proven("key", Action::Register, json!({}))), Err(AnnouncementRefusal::BadProof));
}

#[test]
fn a_refusal_names_the_service_instance_as_soon_as_it_is_known() {
    let refused = |message: Value| {
        let message = wire::parse(message.to_string().as_bytes()).unwrap();
        judge_by(&Attribution::default(), &message, Action::Register, Source::Harbor).unwrap_err()
    };
    assert_eq!(refused(json!({})).service_instance_id, None);
    assert_eq!(refused(message(json!({"app": null}))).service_instance_id, ServiceInstanceId::new("tcp-one").ok());
}

#[test]
fn the_place_in_the_order_is_when_it_was_first_announced_as_far_as_that_is_said() {
    let seconds = WALL.seconds();
    for (changes, expect) in [
        (json!({}), None),
        (json!({"endpoint_updated_at_ns": (seconds - 7) * 1_000_000_000}), Some(seconds - 7)),
        (json!({"endpoint_updated_at_ns": (seconds + 3) * 1_000_000_000}), Some(seconds)),
        (json!({"endpoint_updated_at_ns": (seconds + 9) * 1_000_000_000}), None),
        (json!({"harbor": {"since": (seconds - 9) * 1_000_000}}), Some(seconds - 9)),
        (json!({"harbor": {"since": i64::MAX}}), Some(seconds)),
        (json!({"harbor": {"since": 0}}), None),
        (
            json!({"harbor": {"since": (seconds - 9) * 1_000_000}, "endpoint_updated_at_ns": seconds * 1_000_000_000}),
            Some(seconds - 9),
        ),
    ] {
        let registration = registered(&message(changes.clone())).unwrap();
        assert_eq!(registration.since.map(Timestamp::seconds), expect, "{changes}");
        assert_eq!(registration.heard_at, WALL);
    }
}

#[test]
fn an_address_on_a_cell_is_believed_only_where_the_platform_has_given_it_to_the_bindings_app() {
    let speaker = |app| Speaker { app, app_instance: None };
    let mut attribution = Attribution::default();
    let end = std::time::Instant::now() + STALE_AFTER;
    attribution.set("10.0.2.9:61012".parse().unwrap(), Some(speaker("app")), end).unwrap();
    attribution.set("10.0.2.9:61014".parse().unwrap(), Some(speaker("stranger")), end).unwrap();
    let judged = |message: &Value, source| {
        let message = wire::parse(message.to_string().as_bytes()).unwrap();
        let judged = judge_by(&attribution, &message, Action::Register, source);
        judged.map(drop).map_err(|refused| refused.reason)
    };
    let own = message(json!({"host": "10.0.2.9"}));
    for source in Source::ALL {
        assert_eq!(judged(&own, source), Ok(()));
    }
    let refused = Err(AnnouncementRefusal::NotAttributed);
    assert_eq!(judged(&message(json!({"host": "10.0.2.9", "port": 61013})), Source::Router), refused);
    assert_eq!(judged(&message(json!({"host": "10.0.2.9", "port": 61014})), Source::Router), refused);
    assert_eq!(judged(&message(json!({"host": "10.0.2.8"})), Source::Http), refused);
    // A token's holder says so for the app of its binding, a key's for none.
    let of_binding = |binding| {
        let changes = json!({"host": "10.0.2.9", "harbor": {"instance_id": "tcp-one"}});
        proven(binding, Action::Register, changes)
    };
    assert_eq!(judged(&of_binding("app@tcp-one"), Source::Harbor), Ok(()));
    assert_eq!(judged(&proven("key", Action::Register, json!({"host": "10.0.2.9"})), Source::Harbor), refused);
    // Both ports of a backend must be its app's.
    let both =
        message(json!({"host": "10.0.2.9", "app": "app", "harbor": {"instance_id": "udp-one", "udp_port": 61014}}));
    assert_eq!(judged(&both, Source::Harbor), refused);
}

#[test]
fn an_internal_route_is_a_containers_address_and_serves_where_the_app_was_told_to() {
    let endpoint = |changes: Value, source| {
        let judged = decide(&message(changes), Action::Register, source);
        judged.map(|accepted| match accepted {
            Accepted::Register(registration) => registration.endpoints[0].address.to_string(),
            Accepted::Unregister(withdrawal) => panic!("{withdrawal:?} out of a register"),
        })
    };
    for port in [json!(null), json!(0)] {
        let changes = json!({"host": "10.255.3.4", "port": port});
        assert_eq!(endpoint(changes.clone(), Source::ServiceDiscovery), Ok("10.255.3.4:4100".into()));
        assert!(endpoint(changes, Source::Router).is_err());
    }
    let with_tls = json!({"host": "10.255.3.4", "port": null, "tls_port": 8443});
    assert_eq!(endpoint(with_tls, Source::ServiceDiscovery), Ok("10.255.3.4:4100".into()));
    let with_port = json!({"host": "10.255.3.4", "port": 7000});
    assert_eq!(endpoint(with_port, Source::ServiceDiscovery), Ok("10.255.3.4:7000".into()));
}

#[test]
fn the_platforms_messages_say_whose_addresses_are_whatever_else_they_say() {
    let say = |message: Value, source| {
        let message = wire::parse(message.to_string().as_bytes()).unwrap();
        given(&message, source).map(|given| {
            let range = |range: &RangeInclusive<SocketAddr>| format!("{}-{}", range.start(), range.end().port());
            let addresses = given.addresses.iter().map(range).collect::<Vec<_>>().join(" ");
            let speaker = given.speaker.map(|speaker| format!("{} {:?}", speaker.app, speaker.app_instance));
            (addresses, speaker)
        })
    };
    let route = || json!({"host": "10.0.1.7", "port": 61012, "app": "a", "uris": ["www.example.com"]});
    let with = |changes: Value| {
        let mut message = route();
        merge(&mut message, changes);
        message
    };
    let of_a = || Some("a None".to_owned());
    assert_eq!(say(route(), Source::Router), Some(("10.0.1.7:61012-61012".into(), of_a())));
    assert_eq!(say(with(json!({"host": "::ffff:10.0.1.7"})), Source::Router).unwrap().0, "10.0.1.7:61012-61012");
    let tls = say(with(json!({"port": 0, "tls_port": 61014, "private_instance_id": "i"})), Source::Router).unwrap();
    assert_eq!(tls, ("10.0.1.7:61014-61014".into(), Some("a Some(\"i\")".into())));
    let two = say(with(json!({"tls_port": 61014})), Source::Router).unwrap();
    assert_eq!(two.0, "10.0.1.7:61012-61012 10.0.1.7:61014-61014");
    for app in [json!(null), json!("")] {
        assert_eq!(say(with(json!({"app": app})), Source::Router).unwrap().1, None);
    }
    assert_eq!(say(with(json!({"port": null})), Source::Router).unwrap().0, "");
    let container = say(with(json!({"host": "10.255.3.4", "port": null})), Source::ServiceDiscovery);
    assert_eq!(container, Some(("10.255.3.4:0-65535".into(), of_a())));
    for source in [Source::Harbor, Source::Http] {
        assert_eq!(say(route(), source), None);
    }
    assert_eq!(say(with(json!({"host": "name"})), Source::Router), None);
    assert_eq!(say(with(json!({"host": null})), Source::Router), None);
}
