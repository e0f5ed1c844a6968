//! Provision: what is granted, what is repeated, what is refused.

use std::{
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::Duration,
};

use harbor::model::{Protocol, ServiceInstanceId, plan::SERVICE_ID};
use serde_json::{Value, json};

use super::fixture::{INSTANCES, QUERY, plan, refused, request, request_with, site, site_with};

#[tokio::test]
async fn it_is_created_once_its_port_listens() {
    let site = site(24_400).await;
    site.provision("a", &request("tcp")).await;
    let port = site.stored("a").await.unwrap().port;
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the port listens");
    assert_eq!(site.bound("a"), Some((port, Protocol::Tcp)));
}

#[tokio::test]
async fn the_plan_or_the_name_or_the_parameter_decides_the_protocol() {
    let site = site(24_430).await;
    let named = |name: Value, parameters: Value| {
        let mut body = request_with("free", parameters);
        body["context"]["instance_name"] = name;
        body
    };
    for (id, body, protocol) in [
        ("1", request("tcp"), Protocol::Tcp),
        ("2", request("udp"), Protocol::Udp),
        ("3", request("both"), Protocol::Both),
        ("4", named(json!("UDP-sensor"), json!({})), Protocol::Udp),
        ("5", named(json!("multi-sip"), json!({})), Protocol::Both),
        ("6", named(json!("cert-https"), json!({})), Protocol::Tcp),
        ("7", named(json!(null), json!({})), Protocol::Tcp),
        ("8", named(json!("udp-sensor"), json!({ "protocol": "both" })), Protocol::Both),
    ] {
        site.provision(id, &body).await;
        let port = site.stored(id).await.unwrap().port;
        assert_eq!(site.bound(id), Some((port, protocol)), "{body}");
    }
}

#[tokio::test]
async fn the_same_request_again_is_fine_however_it_is_written() {
    let site = site(24_460).await;
    let path = format!("{INSTANCES}/a");
    let port = json!(24_465);
    site.provision("a", &request_with("tcp", json!({ "port": port, "allow": ["10.0.0.0/8", "fc00::/7"] }))).await;
    let before = site.everything().await;
    for parameters in [
        json!({ "port": port, "allow": ["10.0.0.0/8", "fc00::/7"] }),
        json!({ "allow": ["fc00::/7", "10.0.0.0/8"], "port": port }),
        json!({
            "port": port, "allow": ["10.0.0.0/8", "fc00::/7"], "int_port": 4100, "balance": "round_robin",
            "match_app": false, "idle_timeout": "1h", "max_connections": 4096, "proxy_protocol": "none",
        }),
    ] {
        site.answers("PUT", &path, request_with("tcp", parameters), 200, json!({})).await;
    }
    assert_eq!(site.everything().await, before);
}

#[tokio::test]
async fn another_request_with_the_same_id_is_a_conflict() {
    let site = site(24_490).await;
    let path = format!("{INSTANCES}/a");
    site.provision("a", &request("tcp")).await;
    let before = site.everything().await;
    let with = |field: &str, value: Value| {
        let mut body = request("tcp");
        body[field] = value;
        body
    };
    for (body, what) in [
        (with("plan_id", json!(plan("both"))), "plan"),
        (with("organization_guid", json!("org-2")), "organization"),
        (with("space_guid", json!("space-2")), "space"),
        (with("parameters", json!({ "port": 24_495 })), "port"),
        (with("parameters", json!({ "int_port": 4101 })), "parameters"),
        (with("parameters", json!({ "allow": ["10.0.0.0/8"] })), "parameters"),
    ] {
        let text = format!(
            "A service instance with this id exists and differs in its {what}: use another id, or deprovision it first."
        );
        site.answers("PUT", &path, body, 409, refused(&text)).await;
    }
    site.provision("free", &request("free")).await;
    site.answers(
        "PUT",
        &format!("{INSTANCES}/free"),
        request_with("free", json!({ "protocol": "udp" })),
        409,
        refused("A service instance with this id exists and differs in its protocol: use another id, or deprovision it first."),
    )
    .await;
    assert_eq!(site.everything().await.instances[0], before.instances[0]);
}

#[tokio::test]
async fn parameters_that_the_plan_does_not_take_are_refused() {
    let site = site(24_520).await;
    for (name, parameters, description) in [
        (
            "tcp",
            json!({ "protocol": "tcp" }),
            "The plan tcp does not take the parameter `protocol`: it takes `port`, `int_port`, `balance`, `match_app`, \
             `idle_timeout`, `max_connections`, `allow`, `proxy_protocol`, `health_check`.",
        ),
        (
            "strict",
            json!({ "port": 24_525 }),
            "The plan strict does not take the parameter `port`: it takes `int_port`, `balance`, `idle_timeout`, \
             `max_connections`, `allow`, `proxy_protocol`, `health_check`.",
        ),
        ("strict", json!({ "max_connections": 11 }), "`max_connections` takes a number from 1 to 10; not 11."),
        ("strict", json!({ "idle_timeout": "601s" }), "`idle_timeout` must be from 1s to 600s, not 601s."),
        ("tcp", json!({ "idle_timeout": "0s" }), "`idle_timeout` must be from 1s to 2592000s, not 0s."),
        ("tcp", json!({ "port": 24_525.0 }), "`port` takes a port of the pool, 1024 to 65535; not 24525.0."),
        (
            "tcp",
            json!({ "int_port": 1e3 }),
            "`int_port` takes the port that the app listens on, 1 to 65535; not 1000.0.",
        ),
        ("tcp", json!({ "max_connections": -1 }), "`max_connections` takes a number from 1 to 1000000; not -1."),
        ("tcp", json!({ "port": 80 }), "`port` takes a port of the pool, 1024 to 65535; not 80."),
        ("tcp", json!({ "allow": ["10.0.0.0/33"] }), "`allow` cannot be read: see the catalog for what it takes."),
        (
            "udp",
            json!({ "proxy_protocol": "v1" }),
            "`proxy_protocol` v1 is for TCP alone, and this port carries udp: choose v2 or none.",
        ),
        (
            "free",
            json!({ "proxy_protocol": "v1", "protocol": "both" }),
            "`proxy_protocol` v1 is for TCP alone, and this port carries both: choose v2 or none.",
        ),
    ] {
        site.answers("PUT", &format!("{INSTANCES}/a"), request_with(name, parameters), 400, refused(description)).await;
    }
    assert_eq!(site.everything().await.instances, []);
}

#[tokio::test]
async fn caps_bound_what_a_listener_gets_without_asking() {
    let site = site(24_550).await;
    site.provision("a", &request("strict")).await;
    let desired = site.control.desired();
    let spec = desired.borrow().listeners.get("a").cloned().unwrap();
    assert_eq!(spec.settings.max_connections, Some(10));
    assert_eq!(spec.settings.idle_timeout, Some(Duration::from_secs(600)));
    assert_eq!(site.stored("a").await.unwrap().settings.max_connections, None);
}

#[tokio::test]
async fn this_very_port_is_had_if_it_is_free() {
    let site = site(24_580).await;
    let path = format!("{INSTANCES}/b");
    site.provision("a", &request_with("tcp", json!({ "port": 24_585 }))).await;
    assert_eq!(site.bound("a"), Some((24_585, Protocol::Tcp)));
    let wish = |port: u16| request_with("udp", json!({ "port": port }));
    for (port, description) in [
        (24_585, "Port 24585 is allocated: choose another one, or leave `port` out."),
        (24_600, "Port 24600 is not in the pool's range: choose one of 24580-24599, or leave `port` out."),
    ] {
        site.answers("PUT", &path, wish(port), 400, refused(description)).await;
    }
    site.answers("DELETE", &format!("{INSTANCES}/a?{QUERY}"), Value::Null, 200, json!({})).await;
    let quarantined = "Port 24585 was freed a short while ago: choose another one, or try again later.";
    site.answers("PUT", &path, wish(24_585), 400, refused(quarantined)).await;
    site.clock.advance(Duration::from_secs(901));
    let mut other_space = wish(24_585);
    other_space["space_guid"] = json!("space-2");
    let used = "Port 24585 was used by another space in the last 24 hours: choose another one, or try again later.";
    site.answers("PUT", &path, other_space, 400, refused(used)).await;
    site.provision("b", &wish(24_585)).await;
}

#[tokio::test]
async fn a_port_that_a_stranger_holds_is_passed_over() {
    let site = site_with("24610-24612", "24613-24614").await;
    let strangers = [24_610, 24_611].map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap());
    site.provision("a", &request("tcp")).await;
    assert_eq!(site.bound("a"), Some((24_612, Protocol::Tcp)));
    assert_eq!(site.stored("a").await.unwrap().port, 24_612);

    // Both are remembered only if both were tried; one that was not is tried now.
    site.answers(
        "PUT",
        &format!("{INSTANCES}/b"),
        request("tcp"),
        400,
        refused(
            "The pool default has no free port left: deprovision a service instance that is no longer needed, or ask \
             the operator for a larger range.",
        ),
    )
    .await;
    let usage = site.control.overview().await[0].counts;
    assert_eq!((usage.allocated, usage.in_conflict, usage.free), (1, 2, 0));
    assert_eq!(site.everything().await.instances.len(), 1);
    assert_eq!(site.control.desired().borrow().listeners.size(), 1);

    drop(strangers);
    site.clock.advance(Duration::from_secs(601));
    site.provision("b", &request("tcp")).await;
}

#[tokio::test]
async fn a_requested_port_that_a_stranger_holds_is_refused_and_leaves_nothing() {
    let site = site(24_620).await;
    let stranger = TcpListener::bind((Ipv4Addr::LOCALHOST, 24_625)).unwrap();
    let body = request_with("both", json!({ "port": 24_625 }));
    let held = "Port 24625 is in use outside of Harbor: choose another one, or leave `port` out.";
    site.answers("PUT", &format!("{INSTANCES}/a"), body.clone(), 400, refused(held)).await;
    assert_eq!((site.everything().await.instances, site.bound("a")), (vec![], None));
    let remembered = "Port 24625 is in use outside of Harbor: choose another one, or try again later.";
    site.answers("PUT", &format!("{INSTANCES}/a"), body.clone(), 400, refused(remembered)).await;
    drop(stranger);
    site.clock.advance(Duration::from_secs(601));
    site.provision("a", &body).await;
}

#[tokio::test]
async fn an_exhausted_pool_is_a_refusal_and_no_fault() {
    let site = site_with("24650-24651", "24652-24653").await;
    site.provision("a", &request("tcp")).await;
    site.provision("b", &request("udp")).await;
    let exhausted = "The pool default has no free port left: deprovision a service instance that is no longer needed, or \
                     ask the operator for a larger range.";
    site.answers("PUT", &format!("{INSTANCES}/c"), request("tcp"), 400, refused(exhausted)).await;
    site.provision("d", &request("games")).await;
}

#[tokio::test]
async fn a_port_that_cannot_be_opened_is_a_fault_and_leaves_nothing() {
    let site = site(24_660).await;
    site.opener.break_down(Some("too many open files"));
    let answer = site.client.put(&format!("{INSTANCES}/a"), &request("tcp")).await;
    let port = answer.json()["description"].as_str().unwrap().split(' ').nth(1).unwrap().to_owned();
    let text = format!("Port {port} could not be opened: too many open files.");
    assert_eq!(answer.parts(), (503, refused(&text)));
    assert_eq!(answer.headers["retry-after"], "5");
    assert_eq!(site.everything().await.instances, []);
    assert_eq!(site.control.overview().await[0].counts.free, 20);
    site.opener.break_down(None);
    site.provision("a", &request("tcp")).await;
}

#[tokio::test]
async fn a_port_that_was_never_opened_keeps_its_history() {
    let site = site_with("25860-25860", "25861-25862").await;
    site.provision("a", &request("tcp")).await;
    site.answers("DELETE", &format!("{INSTANCES}/a?{QUERY}"), Value::Null, 200, json!({})).await;
    site.clock.advance(Duration::from_secs(901));
    let of_another_space = |parameters: Value| {
        let mut body = request_with("tcp", parameters);
        body["space_guid"] = json!("space-2");
        body
    };
    site.opener.break_down(Some("too many open files"));
    assert_eq!(site.client.put(&format!("{INSTANCES}/b"), &of_another_space(json!({}))).await.status, 503);
    site.opener.break_down(None);
    let used = "Port 25860 was used by another space in the last 24 hours: choose another one, or try again later.";
    let body = of_another_space(json!({ "port": 25_860 }));
    site.answers("PUT", &format!("{INSTANCES}/b"), body, 400, refused(used)).await;
}

#[tokio::test]
async fn conflicts_are_remembered_when_the_store_is_read_again() {
    let site = site_with("25865-25866", "25867-25868").await;
    let _stranger = TcpListener::bind((Ipv4Addr::LOCALHOST, 25_865)).unwrap();
    let body = request_with("tcp", json!({ "port": 25_865 }));
    assert_eq!(site.client.put(&format!("{INSTANCES}/a"), &body).await.status, 400);
    site.store.break_down(Some("provision"));
    assert_eq!(site.client.put(&format!("{INSTANCES}/a"), &request("tcp")).await.status, 503);
    site.store.break_down(None);
    let remembered = "Port 25865 is in use outside of Harbor: choose another one, or try again later.";
    site.answers("PUT", &format!("{INSTANCES}/a"), body, 400, refused(remembered)).await;
}

#[tokio::test]
async fn a_store_that_is_away_is_a_fault_that_tells_no_secrets() {
    let site = site(24_690).await;
    for call in ["instance", "provision"] {
        site.store.break_down(Some(call));
        let answer = site.client.put(&format!("{INSTANCES}/a"), &request("tcp")).await;
        assert_eq!(answer.parts(), (503, refused("The store is away: try again in a few seconds.")), "{call}");
        assert_eq!(answer.headers["retry-after"], "5");
    }
    site.store.break_down(None);
    site.provision("a", &request("tcp")).await;
    assert_eq!(site.control.overview().await[0].counts.free, 19, "no port is leaked by a fault");
}

#[tokio::test]
async fn what_was_committed_before_a_fault_is_carried_out_at_the_next_refresh() {
    let site = site(24_720).await;
    site.store.break_down(Some("changes_since"));
    let answer = site.client.put(&format!("{INSTANCES}/a"), &request("tcp")).await;
    assert_eq!(answer.status, 503);
    site.store.break_down(None);
    site.answers("PUT", &format!("{INSTANCES}/a"), request("tcp"), 200, json!({})).await;
    assert!(site.bound("a").is_some());
}

#[tokio::test]
async fn maintenance_information_is_a_conflict() {
    let site = site(24_750).await;
    let mut body = request("tcp");
    body["maintenance_info"] = json!({ "version": "1.0.0" });
    let expected = json!({
        "error": "MaintenanceInfoConflict",
        "description": "No plan has maintenance information: read the catalog again.",
    });
    site.answers("PUT", &format!("{INSTANCES}/a"), body.clone(), 422, expected.clone()).await;
    site.provision("a", &request("tcp")).await;
    let patch = json!({ "service_id": SERVICE_ID, "maintenance_info": { "version": "1.0.0" } });
    site.answers("PATCH", &format!("{INSTANCES}/a"), patch, 422, expected).await;
}

#[tokio::test]
async fn whoever_hangs_up_leaves_a_provision_that_is_finished_all_the_same() {
    let site = site(24_780).await;
    let id = ServiceInstanceId::new("a").unwrap();
    let mut desired = site.control.desired();
    {
        let body = request("tcp");
        let path = format!("{INSTANCES}/a");
        let put = site.client.put(&path, &body);
        tokio::select! {
            biased;
            _ = desired.wait_for(|state| state.listeners.contains_key(&id)) => {}
            _ = put => {}
        }
    }
    site.answers("PUT", &format!("{INSTANCES}/a"), request("tcp"), 200, json!({})).await;
    site.control.close().await;
}
