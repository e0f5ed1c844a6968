//! What every request passes.

use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::fixture::{INSTANCES, QUERY, Site, plan, refused, request, site, site_with};
use crate::support::{harbor::AUTHORIZATION, http::Client};

const LOG_IN: &str = "Log in with the broker's user name and password.";
const VERSION: &str = "Send the header X-Broker-API-Version with a version 2.x, for example 2.17.";

#[tokio::test]
async fn every_operation_wants_a_password_and_any_valid_one_will_do() {
    let site = site(24_000).await;
    for (method, path) in [
        ("GET", "/v2/catalog".to_owned()),
        ("PUT", format!("{INSTANCES}/a")),
        ("DELETE", format!("{INSTANCES}/a?{QUERY}")),
        ("PUT", format!("{INSTANCES}/a/service_bindings/b")),
        ("GET", "/nowhere".to_owned()),
        ("POST", "/v2/catalog".to_owned()),
    ] {
        for authorization in [None, Some("Basic aGFyYm9yOndyb25n"), Some("Bearer secret")] {
            // Without a version too: authentication comes first.
            let mut client = Client::new(site.address);
            if let Some(authorization) = authorization {
                client = client.with("authorization", authorization);
            }
            let answer = client.send(method.parse().unwrap(), &path, Some(&json!({}))).await;
            assert_eq!(answer.parts(), (401, refused(LOG_IN)), "{method} {path} {authorization:?}");
            assert_eq!(answer.headers["www-authenticate"], "Basic realm=\"harbor\"");
        }
    }
    for authorization in [AUTHORIZATION, "Basic aGFyYm9yOm46ZXc="] {
        assert_eq!(Client::broker(site.address, authorization).get("/v2/catalog").await.status, 200);
    }
}

#[tokio::test]
async fn a_wrong_password_is_answered_before_the_body_is_sent() {
    let site = site(24_030).await;
    let mut stream = TcpStream::connect(site.address).await.unwrap();
    let head = "PUT /v2/service_instances/a HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 401");
}

#[tokio::test]
async fn any_version_2_is_served_under_v2_and_no_other() {
    let site = site(24_060).await;
    let client = Client::new(site.address).with("authorization", AUTHORIZATION);
    for version in ["2.0", "2.13", "2.15", "2.17", "2.99"] {
        assert_eq!(client.clone().with("x-broker-api-version", version).get("/v2/catalog").await.status, 200);
    }
    for version in ["1.0", "3.0", "2", "two", ""] {
        let answer = client.clone().with("x-broker-api-version", version).get("/v2/catalog").await;
        assert_eq!(answer.parts(), (412, refused(VERSION)), "{version:?}");
    }
    for path in ["/v2/catalog", "/v2", "/v2/nowhere"] {
        assert_eq!(client.get(path).await.parts(), (412, refused(VERSION)), "{path}");
    }
    assert_eq!(client.get("/nowhere").await.parts(), (404, refused("There is nothing at this path.")));
}

#[tokio::test]
async fn the_identity_of_a_request_is_echoed_whatever_the_answer() {
    let site = site(24_090).await;
    let anonymous = Client::new(site.address);
    let versionless = anonymous.clone().with("authorization", AUTHORIZATION);
    let large = json!({ "x": "x".repeat(300_000) });
    let instance = format!("{INSTANCES}/a");
    let provision = request("tcp");
    for (client, method, path, body, status) in [
        (&anonymous, "GET", "/v2/catalog", None, 401),
        (&versionless, "GET", "/v2/catalog", None, 412),
        (&site.client, "GET", "/v2/catalog", None, 200),
        (&site.client, "GET", "/nowhere", None, 404),
        (&site.client, "POST", "/v2/catalog", None, 405),
        (&site.client, "PUT", instance.as_str(), Some(&large), 413),
        (&site.client, "PUT", instance.as_str(), None, 400),
        (&site.client, "GET", instance.as_str(), None, 404),
        (&site.client, "PUT", instance.as_str(), Some(&provision), 201),
    ] {
        let client = client.clone().with("x-broker-api-request-identity", "e26cee84-6b38-4456-b34e-d1a9f002c956");
        let answer = client.send(method.parse().unwrap(), path, body).await;
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(
            answer.headers["x-broker-api-request-identity"], "e26cee84-6b38-4456-b34e-d1a9f002c956",
            "{method} {path}"
        );
        assert_eq!(answer.headers["content-type"], "application/json");
        assert!(answer.json().is_object());
    }
}

#[tokio::test]
async fn a_mistake_is_a_json_answer_with_the_identity_and_blocks_nobody() {
    let site = site(25_040).await;
    let client = site.client.clone().with("x-broker-api-request-identity", "id-1");
    site.store.break_down(Some("panic"));
    let answer = client.put(&format!("{INSTANCES}/a"), &request("tcp")).await;
    assert_eq!(answer.parts(), (500, refused("Harbor made a mistake: its log says more.")));
    assert_eq!(answer.headers["x-broker-api-request-identity"], "id-1");
    site.store.break_down(None);
    site.provision("a", &request("tcp")).await;
}

#[tokio::test]
async fn what_is_no_route_is_a_json_refusal() {
    let site = site(24_120).await;
    let nothing = || refused("There is nothing at this path.");
    site.answers("GET", "/v2/service_instances", json!(null), 404, nothing()).await;
    site.answers("GET", "/v2/service_instances/", json!(null), 404, nothing()).await;
    site.answers("GET", &format!("{INSTANCES}/a/service_bindings"), json!(null), 404, nothing()).await;
    site.answers(
        "POST",
        &format!("{INSTANCES}/a"),
        json!({}),
        405,
        refused("POST is not possible at this path: see the header Allow for what is."),
    )
    .await;
}

#[tokio::test]
async fn a_body_of_more_than_256_kib_is_too_large_also_in_chunks() {
    let site = site(24_150).await;
    let path = format!("{INSTANCES}/a");
    let too_large = || refused("The body has more than 262144 bytes: send a smaller one.");
    site.answers("PUT", &path, json!({ "x": "x".repeat(262_144) }), 413, too_large()).await;

    let mut stream = TcpStream::connect(site.address).await.unwrap();
    let head = format!(
        "PUT {path} HTTP/1.1\r\nhost: x\r\nauthorization: {AUTHORIZATION}\r\nx-broker-api-version: 2.17\r\n\
         connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..5 {
        stream.write_all(format!("10000\r\n{}\r\n", "x".repeat(0x10000)).as_bytes()).await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.ends_with(&too_large().to_string()), "{answer}");
}

#[tokio::test]
async fn a_connection_goes_on_after_a_body_that_is_too_large_unless_it_is_far_too_large() {
    let site = site_with("25870-25870", "25871-25871").await;
    let head = |length: usize| {
        format!(
            "PUT {INSTANCES}/a HTTP/1.1\r\nhost: x\r\nauthorization: {AUTHORIZATION}\r\nx-broker-api-version: 2.17\r\n\
             content-length: {length}\r\n\r\n"
        )
    };
    // What looks like a request at its end is part of the body.
    let smuggled =
        format!("DELETE {INSTANCES}/a?{QUERY} HTTP/1.1\r\nhost: x\r\nauthorization: {AUTHORIZATION}\r\n\r\n");
    let next = format!(
        "GET /v2/catalog HTTP/1.1\r\nhost: x\r\nauthorization: {AUTHORIZATION}\r\nx-broker-api-version: 2.17\r\n\
         connection: close\r\n\r\n"
    );
    for (length, statuses) in [(300_000, &["413", "200"][..]), (8 * 1024 * 1024, &["413"])] {
        let mut stream = TcpStream::connect(site.address).await.unwrap();
        let body = "x".repeat(length - smuggled.len()) + &smuggled;
        let (mut from, mut to) = stream.split();
        let send = async {
            // The far end may have hung up by then.
            let _ = to.write_all((head(length) + &body + &next).as_bytes()).await;
        };
        let mut answers = Vec::new();
        let receive = async {
            let _ = from.read_to_end(&mut answers).await;
        };
        tokio::join!(send, receive);
        let answers = String::from_utf8(answers).unwrap();
        let found = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect::<Vec<_>>();
        assert_eq!(found, statuses, "{length}");
    }
}

#[tokio::test]
async fn any_method_and_any_target_is_answered() {
    let site = site_with("25872-25872", "25873-25873").await;
    let answer = site.client.send("HEAD".parse().unwrap(), "/v2/catalog", None).await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0));
    for (request_line, status) in [
        ("OPTIONS /v2/catalog", "405"),
        ("OPTIONS *", "404"),
        ("BREW /v2/catalog", "405"),
        ("CONNECT x:80", "404"),
        ("GET http://x/v2/catalog", "200"),
        ("GET /v2/catalog/", "404"),
        ("GET /v2//catalog", "404"),
        ("GET /v2/service_instances/../catalog", "404"),
    ] {
        let mut stream = TcpStream::connect(site.address).await.unwrap();
        let head = format!(
            "{request_line} HTTP/1.1\r\nhost: x\r\nauthorization: {AUTHORIZATION}\r\nx-broker-api-version: 2.17\r\n\
             connection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request_line}: {answer}");
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        assert!(serde_json::from_str::<serde_json::Value>(body).unwrap().is_object(), "{request_line}: {answer}");
    }
}

#[tokio::test]
async fn a_body_that_is_not_a_json_object_is_refused() {
    let site = site(24_180).await;
    for (body, description) in [
        ("", "Send a JSON object in the body."),
        ("{", "The body is not JSON: EOF while parsing an object at line 1 column 1."),
        ("[]", "The body must be a JSON object."),
        ("null", "The body must be a JSON object."),
        ("\"{}\"", "The body must be a JSON object."),
        ("{} {}", "The body is not JSON: trailing characters at line 1 column 4."),
    ] {
        for method in ["PUT", "PATCH"] {
            let answer = raw(&site, method, &format!("{INSTANCES}/a"), body.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
            assert!(answer.ends_with(&refused(description).to_string()), "{answer}");
        }
    }
    let deep = raw(&site, "PUT", &format!("{INSTANCES}/a"), "[".repeat(200_000).as_bytes()).await;
    assert!(
        deep.ends_with(r#"{"description":"The body is not JSON: recursion limit exceeded at line 1 column 128."}"#)
    );
}

#[tokio::test]
async fn fields_of_a_wrong_kind_are_refused_by_name() {
    let site = site(24_210).await;
    for (field, value, description) in [
        ("service_id", json!(5), "`service_id` must be a string."),
        ("service_id", json!(null), "Send `service_id`: that of harbor is 7c1e4a52-8f2b-5d38-9a36-0f1d52c6b0e1."),
        (
            "service_id",
            json!("other"),
            "There is no such service: `service_id` of harbor is 7c1e4a52-8f2b-5d38-9a36-0f1d52c6b0e1.",
        ),
        ("plan_id", json!([]), "`plan_id` must be a string."),
        ("plan_id", json!(null), "Send `plan_id`."),
        ("plan_id", json!(""), "Send a plan id of 1 to 255 bytes, not 0."),
        ("plan_id", json!("gone"), "There is no plan \"gone\": choose one of the catalog."),
        ("organization_guid", json!(null), "Send `organization_guid`."),
        ("organization_guid", json!(""), "Send an organization id of 1 to 255 bytes, not 0."),
        ("space_guid", json!({}), "`space_guid` must be a string."),
        ("space_guid", json!("s".repeat(256)), "Send a space id of 1 to 255 bytes, not 256."),
        ("context", json!("cf"), "`context` must be an object."),
        ("context", json!({ "instance_name": 5 }), "`instance_name` must be a string."),
        ("parameters", json!([1]), "`parameters` must be an object."),
    ] {
        let mut body = request("tcp");
        body[field] = value;
        site.answers("PUT", &format!("{INSTANCES}/a"), body, 400, refused(description)).await;
    }
    assert_eq!(site.everything().await.instances, []);
}

#[tokio::test]
async fn unknown_fields_and_nulls_are_ignored() {
    let site = site(24_240).await;
    let mut body = request("tcp");
    body["context"] = json!({ "instance_name": null, "unheard_of": [1, 2] });
    body["parameters"] = json!(null);
    body["maintenance_info"] = json!(null);
    body["unheard_of"] = json!({ "a": 1 });
    site.answers("PUT", &format!("{INSTANCES}/a?accepts_incomplete=true&b=c"), body, 201, json!({})).await;
}

#[tokio::test]
async fn ids_hold_any_character_up_to_255_bytes() {
    let site = site(24_270).await;
    let (instance, binding) = ("%2Fa%20b%3F%23%25%C3%BC+.", "..%2F%00%22");
    let path = format!("{INSTANCES}/{instance}");
    site.answers("PUT", &path, request("tcp"), 201, json!({})).await;
    assert!(site.stored("/a b?#%ü+.").await.is_some());
    let bound = site.client.put(&format!("{path}/service_bindings/{binding}"), &super::fixture::bind_app("app")).await;
    assert_eq!(bound.status, 201);
    assert_eq!(bound.json()["credentials"]["name"], "/a b?#%ü+.");
    assert_eq!(
        bound.json()["credentials"]["announce"]["url"],
        "https://harbor-announce.example.com/announce/v1/instances/%2Fa%20b%3F%23%25%C3%BC%2B."
    );
    site.answers("DELETE", &format!("{path}/service_bindings/{binding}?{QUERY}"), json!(null), 200, json!({})).await;
    site.answers("DELETE", &format!("{path}?{QUERY}"), json!(null), 200, json!({})).await;

    let long = format!("{INSTANCES}/{}", "i".repeat(256));
    let refusal = || refused("Send a service instance id of 1 to 255 bytes, not 256.");
    site.answers("PUT", &long, request("tcp"), 400, refusal()).await;
    site.answers("DELETE", &format!("{long}?{QUERY}"), json!(null), 400, refusal()).await;
    let long = format!("{INSTANCES}/a/service_bindings/{}", "b".repeat(256));
    site.answers("GET", &long, json!(null), 400, refused("Send a binding id of 1 to 255 bytes, not 256.")).await;
    let not_utf8 = format!("{INSTANCES}/%FF");
    site.answers("GET", &not_utf8, json!(null), 400, refused("The ids in the path must be UTF-8, percent-encoded."))
        .await;
}

#[tokio::test]
async fn the_originating_identity_may_hold_anything() {
    let site = site(24_300).await;
    for header in ["cloudfoundry eyJ1c2VyX2lkIjoiNjgzZWE3NDgifQ==", "cloudfoundry !", "x", "", "a b c"] {
        let client = site.client.clone().with("x-broker-api-originating-identity", header);
        assert_eq!(client.get("/v2/catalog").await.status, 200, "{header}");
    }
}

#[tokio::test]
async fn answers_are_counted_by_operation_and_status() {
    let site = site(24_330).await;
    site.provision("a", &request("tcp")).await;
    site.client.get("/v2/catalog").await;
    site.client.get("/nowhere").await;
    Client::new(site.address).get("/v2/catalog").await;
    let metrics = site.metrics.encode();
    for line in [
        r#"harbor_broker_requests_total{operation="provision",status="201"} 1"#,
        r#"harbor_broker_requests_total{operation="catalog",status="200"} 1"#,
        r#"harbor_broker_requests_total{operation="catalog",status="401"} 1"#,
        r#"harbor_broker_requests_total{operation="none",status="404"} 1"#,
        r#"harbor_broker_request_duration_seconds_count{operation="provision"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

#[tokio::test]
async fn the_catalog_says_what_there_is() {
    let site = site(24_360).await;
    let catalog = site.client.get("/v2/catalog").await.json();
    let service = &catalog["services"][0];
    assert_eq!(service["id"], "7c1e4a52-8f2b-5d38-9a36-0f1d52c6b0e1");
    assert_eq!(service["name"], "harbor");
    for flag in
        ["bindable", "plan_updateable", "instances_retrievable", "bindings_retrievable", "allow_context_updates"]
    {
        assert_eq!(service[flag], true, "{flag}");
    }
    assert_eq!(service["metadata"]["shareable"], true);
    let plans = service["plans"].as_array().unwrap();
    let names = plans.iter().map(|plan| plan["name"].as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(names, ["free", "tcp", "udp", "both", "strict", "games"]);
    for entry in plans {
        assert_eq!(entry["id"], plan(entry["name"].as_str().unwrap()));
        assert_eq!((&entry["free"], &entry["binding_rotatable"]), (&json!(true), &json!(true)));
    }
    let create = |plan: usize| &plans[plan]["schemas"]["service_instance"]["create"]["parameters"]["properties"];
    assert_eq!(create(0)["protocol"]["enum"], json!(["tcp", "udp", "both"]));
    assert_eq!(create(1).get("protocol"), None);
    assert_eq!(create(4).get("port"), None);
    assert_eq!(create(4)["max_connections"]["maximum"], 10);
    let update = &plans[0]["schemas"]["service_instance"]["update"]["parameters"]["properties"];
    assert_eq!((update.get("port"), update.get("protocol")), (None, None));
    assert_eq!(update["int_port"]["type"], json!(["integer", "null"]));
    assert_eq!(
        plans[0]["schemas"]["service_binding"]["create"]["parameters"]["properties"]["announce"]["type"],
        "boolean"
    );
}

/// Sends bytes as the body; returns the whole answer.
async fn raw(site: &Site, method: &str, path: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(site.address).await.unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: {AUTHORIZATION}\r\nx-broker-api-version: 2.17\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}
