//! Bind: credentials, repeats, rotation.

use harbor::model::plan::SERVICE_ID;
use serde_json::{Value, json};

use super::fixture::{INSTANCES, QUERY, bind_app, bind_key, plan, refused, request, request_with, site};

#[tokio::test]
async fn an_app_gets_credentials_under_the_original_names_and_the_operators() {
    let site = site(25_400).await;
    site.provision("a", &request_with("tcp", json!({ "port": 25_405, "int_port": 5000 }))).await;
    let answer = site.client.put(&format!("{INSTANCES}/a/service_bindings/b"), &bind_app("app")).await;
    let mut body = answer.json();
    let token = body["credentials"]["announce"]["token"].take();
    assert_eq!(token.as_str().unwrap().len(), 64);
    assert_eq!(answer.status, 201);
    let expected = json!({
        "credentials": {
            "name": "a",
            "node_id": "harbor_node_1",
            "protocol": "tcp",
            "port": 25_405,
            "int_port": 5000,
            "host": "10.0.0.5",
            "hostname": "harbor.internal",
            "host_external": "192.0.43.10",
            "hostname_external": "ext-services.example.com",
            "ext_host": "192.0.43.10",
            "ext_hostname": "ext-services.example.com",
            "uri": "tcp://ext-services.example.com:25405",
            "announce": {
                "url": "https://harbor-announce.example.com/announce/v1/instances/a",
                "token": null,
            },
        },
        "endpoints": [{ "host": "ext-services.example.com", "ports": ["25405"], "protocol": "tcp" }],
    });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn a_pool_that_is_not_public_leaves_the_public_names_out() {
    let site = site(25_430).await;
    site.provision("a", &request_with("games", json!({ "port": 25_450 }))).await;
    let body = json!({ "service_id": SERVICE_ID, "plan_id": plan("games") });
    let expected = json!({
        "credentials": {
            "name": "a",
            "node_id": "harbor_node_1",
            "protocol": "both",
            "port": 25_450,
            "int_port": 4100,
            "host": "fd00::5",
            "hostname": "fd00::5",
            "uri": "both://[fd00::5]:25450",
        },
        "endpoints": [{ "host": "fd00::5", "ports": ["25450"], "protocol": "all" }],
    });
    site.answers("PUT", &format!("{INSTANCES}/a/service_bindings/k"), body, 201, expected).await;
}

#[tokio::test]
async fn a_key_may_announce_only_when_it_asks() {
    let site = site(25_460).await;
    site.provision("a", &request("tcp")).await;
    let with = |mut body: Value, announce: bool| {
        body["parameters"] = json!({ "announce": announce });
        body
    };
    for (id, body, announces) in [
        ("1", bind_key(), false),
        ("2", with(bind_key(), true), true),
        ("3", with(bind_key(), false), false),
        ("4", bind_app("app"), true),
        ("5", with(bind_app("app"), false), false),
    ] {
        let answer = site.client.put(&format!("{INSTANCES}/a/service_bindings/{id}"), &body).await;
        assert_eq!(answer.status, 201);
        assert_eq!(answer.json()["credentials"].get("announce").is_some(), announces, "{body}");
    }
}

#[tokio::test]
async fn the_same_bind_again_gives_the_same_credentials_and_another_is_a_conflict() {
    let site = site(25_490).await;
    site.provision("a", &request("tcp")).await;
    site.provision("other", &request("tcp")).await;
    let path = format!("{INSTANCES}/a/service_bindings/b");
    let first = site.client.put(&path, &bind_app("app")).await;
    assert_eq!(first.status, 201);
    let mut written_out = bind_app("app");
    written_out["parameters"] = json!({ "announce": true });
    // Where the app stood in old versions of the specification.
    let old = json!({
        "service_id": SERVICE_ID, "plan_id": plan("tcp"), "app_guid": "app", "bind_resource": { "space_guid": "space-1" },
    });
    for body in [bind_app("app"), written_out.clone(), old] {
        site.answers("PUT", &path, body, 200, first.json()).await;
    }
    let conflict = || refused("A binding with this id exists and differs: use another id, or unbind it first.");
    written_out["parameters"] = json!({ "announce": false });
    let mut other_space = bind_app("app");
    other_space["bind_resource"]["space_guid"] = json!("space-2");
    for body in [bind_app("app-2"), bind_key(), written_out, other_space] {
        site.answers("PUT", &path, body, 409, conflict()).await;
    }
    let elsewhere = format!("{INSTANCES}/other/service_bindings/b");
    site.answers("PUT", &elsewhere, bind_app("app"), 409, conflict()).await;
}

#[tokio::test]
async fn a_rotated_binding_takes_over_and_both_count() {
    let site = site(25_520).await;
    site.provision("a", &request("tcp")).await;
    site.provision("other", &request("tcp")).await;
    let path = |id: &str| format!("{INSTANCES}/a/service_bindings/{id}");
    let first = site.client.put(&path("b"), &bind_app("app")).await.json();
    let rotation = json!({ "predecessor_binding_id": "b" });
    let second = site.client.put(&path("c"), &rotation).await;
    assert_eq!(second.status, 201);
    assert_ne!(second.json()["credentials"]["announce"]["token"], first["credentials"]["announce"]["token"]);
    let directory = site.control.directory();
    for id in ["b", "c"] {
        let directory = directory.borrow();
        let binding = directory.binding(id).expect("both count");
        assert_eq!((binding.app_id.as_ref().map(AsRef::as_ref), binding.announce), (Some("app"), true));
    }
    site.answers("DELETE", &format!("{}?{QUERY}", path("b")), Value::Null, 200, json!({})).await;
    site.answers("PUT", &path("c"), rotation.clone(), 200, second.json()).await;
    let no_predecessor =
        "There is no binding \"b\" of this service instance to take over from: bind without `predecessor_binding_id`.";
    site.answers("PUT", &path("d"), rotation, 400, refused(no_predecessor)).await;
    let no_predecessor =
        "There is no binding \"c\" of this service instance to take over from: bind without `predecessor_binding_id`.";
    site.answers(
        "PUT",
        &format!("{INSTANCES}/other/service_bindings/d"),
        json!({ "predecessor_binding_id": "c" }),
        400,
        refused(no_predecessor),
    )
    .await;
    let conflict = refused("A binding with this id exists and differs: use another id, or unbind it first.");
    site.answers("PUT", &path("c"), bind_app("app"), 409, conflict).await;
}

#[tokio::test]
async fn what_cannot_be_bound_is_refused() {
    let site = site(25_550).await;
    site.provision("a", &request("tcp")).await;
    let with = |field: &str, value: Value| {
        let mut body = bind_app("app");
        body[field] = value;
        body
    };
    for (body, description) in [
        (
            with("service_id", json!("other")),
            "There is no such service: `service_id` of harbor is 7c1e4a52-8f2b-5d38-9a36-0f1d52c6b0e1.",
        ),
        (with("plan_id", json!("gone")), "There is no plan \"gone\": give the one of the service instance."),
        (with("bind_resource", json!([])), "`bind_resource` must be an object."),
        (with("bind_resource", json!({ "app_guid": "" })), "Send an app id of 1 to 255 bytes, not 0."),
        (
            with("parameters", json!({ "announce": "yes" })),
            "`announce` takes true or false: whether the holder may announce backends; not \"yes\".",
        ),
        (
            with("parameters", json!({ "port": 1 })),
            "A binding does not take the parameter `port`: it takes `announce`.",
        ),
        (with("predecessor_binding_id", json!(5)), "`predecessor_binding_id` must be a string."),
    ] {
        site.answers("PUT", &format!("{INSTANCES}/a/service_bindings/b"), body, 400, refused(description)).await;
    }
    let missing = refused("There is no service instance \"never\".");
    site.answers("PUT", &format!("{INSTANCES}/never/service_bindings/b"), bind_app("app"), 404, missing).await;
    assert_eq!(site.everything().await.bindings, []);
}

#[tokio::test]
async fn a_service_instance_has_1024_bindings_at_most() {
    use harbor::control::{BindRefusal, BindSpec, Failure};
    use harbor::model::{BindingId, ServiceInstanceId, requester::Requester};

    let site = site(25_580).await;
    site.provision("a", &request("tcp")).await;
    let bind = |n: usize| {
        site.control.bind(BindSpec {
            id: BindingId::new(format!("b{n}")).unwrap(),
            service_instance_id: ServiceInstanceId::new("a").unwrap(),
            plan_id: None,
            app_id: None,
            space_id: None,
            announce: None,
            predecessor_id: None,
            by: Requester::Harbor,
        })
    };
    for n in 0..harbor::control::MAX_BINDINGS {
        bind(n).await.unwrap();
    }
    assert!(matches!(bind(harbor::control::MAX_BINDINGS).await, Err(Failure::Refused(BindRefusal::TooMany))));
    site.answers(
        "PUT",
        &format!("{INSTANCES}/a/service_bindings/one-more"),
        bind_key(),
        400,
        refused("The service instance has 1024 bindings, the most it can have: unbind one that is no longer needed."),
    )
    .await;
    bind(0).await.expect("a repeat is no new one");
}
