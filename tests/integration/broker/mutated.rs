//! Ten thousand damaged bodies against a live router.

use std::sync::Arc;

use axum::{body::Body, http::Request};
use fastrand::Rng;
use harbor::{broker, telemetry::metrics::Metrics};
use serde_json::Value;
use tower::ServiceExt as _;

use super::fixture::{INSTANCES, bind_app, request_with, site};
use crate::support::{harbor::AUTHORIZATION, mutate};

#[tokio::test]
async fn damaged_bodies_are_refused_or_mean_what_they_say() {
    let site = site(25_800).await;
    site.provision("kept", &request_with("tcp", serde_json::json!({ "port": 25_805 }))).await;
    let kept = site.stored("kept").await;
    let passwords = Arc::new(broker::Passwords::new("harbor", &["secret".into()]));
    let router = broker::router(site.control.clone(), passwords, Metrics::new().broker);
    let provision = request_with(
        "free",
        serde_json::json!({ "protocol": "udp", "int_port": 5000, "allow": ["10.0.0.0/8"], "idle_timeout": "90s" }),
    )
    .to_string();
    let bind = bind_app("app").to_string();
    let corpus = [provision.as_bytes(), bind.as_bytes()];
    for seed in mutate::seeds() {
        let mut random = Rng::with_seed(seed);
        let body = mutate::mutant(&corpus, &mut random);
        let (method, path) = match seed % 3 {
            0 => ("PUT", format!("{INSTANCES}/kept")),
            1 => ("PATCH", format!("{INSTANCES}/never")),
            _ => ("PUT", format!("{INSTANCES}/never/service_bindings/b")),
        };
        let request = Request::builder()
            .method(method)
            .uri(&path)
            .header("authorization", AUTHORIZATION)
            .header("x-broker-api-version", "2.17")
            .body(Body::from(body.clone()))
            .unwrap();
        let status = router.clone().oneshot(request).await.unwrap().status().as_u16();
        // None of these can succeed, however well-formed: the one is taken by another request, the others are not there.
        assert!(
            [400, 404, 409, 422].contains(&status),
            "HARBOR_SEED={seed}: {status} for {:?}",
            String::from_utf8_lossy(&body)
        );
    }
    assert_eq!(site.stored("kept").await, kept);
    assert_eq!(site.everything().await.instances.len(), 1);
    let catalog: Value = site.client.get("/v2/catalog").await.json();
    assert_eq!(catalog["services"][0]["name"], "harbor");
}
