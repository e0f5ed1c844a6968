//! Fuzzing of announcements: whatever the bytes, they are parsed and judged, or refused, and nothing panics.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use harbor::{
    discovery::{
        address::AddressRules,
        attribution::{Attribution, Speaker},
        authority::Trusted,
        judge::{Accepted, Known, Rules, given, judge},
        source::{Action, Source},
        wire,
    },
    model::{
        AppId, BindingId, PoolName, Protocol, Revision, ServiceInstanceId, Timestamp,
        binding::Binding,
        directory::{Directory, DirectoryEntry},
        token::{AnnounceSecret, SECRET_BYTES},
    },
};

use crate::mutate;

const CORPUS: [&[u8]; 6] = [
    br#"{"uris":["p23001.harbor.example.com"],"host":"10.0.1.7","port":61012,"tls_port":0,"app":"app","private_instance_id":"i","private_instance_index":"0","stale_threshold_in_seconds":120,"endpoint_updated_at_ns":1700000000000000000,"tags":{"harbor_instance":"one","harbor_protocol":"both"},"harbor":{"instance_id":"one","protocol":"tcp","udp_port":61013,"state":"up","binding_id":"key","timestamp":1700000000,"proof":"00"}}"#,
    br#"{"uris":["one.harbor.example.com/path","www.example.com"],"host":"10.0.1.8","port":80,"app":"app","tags":null}"#,
    br#"{"host":"fd12::1","port":0,"tls_port":61014,"app":"app","tags":{"harbor_instance":"one","component":"route-emitter"}}"#,
    br#"{"dea":"1","app":"app","uris":["x.example.com"],"host":"10.0.1.9","port":61020,"tags":{"component":"dea-0"},"private_instance_id":"p"}"#,
    br#"{"host":"::ffff:10.0.16.1","port":7777,"harbor":{"instance_id":"one","state":"draining"}}"#,
    br#"{"uris":["*.harbor.example.com","p0.harbor.example.com","p65536.harbor.example.com"],"host":"10.0.0.5","port":23001}"#,
];

fn directory() -> Directory {
    let mut directory = Directory::new(AnnounceSecret::new([1; SECRET_BYTES]));
    let id = ServiceInstanceId::new("one").unwrap();
    directory.put_instance(DirectoryEntry {
        id: id.clone(),
        pool: PoolName::new("default").unwrap(),
        port: 23_001,
        protocol: Protocol::Both,
        int_port: 4100,
        match_app: true,
        bindings: BTreeSet::new(),
        apps: BTreeSet::new(),
    });
    for (binding, app) in [("of-app", Some("app")), ("key", None)] {
        directory.put_binding(&Arc::new(Binding {
            id: BindingId::new(binding).unwrap(),
            service_instance_id: id.clone(),
            app_id: app.map(|app| AppId::new(app).unwrap()),
            space_id: None,
            announce: true,
            predecessor_id: None,
            created_at: Timestamp::default(),
            revision: Revision(1),
        }));
    }
    directory
}

#[test]
fn whatever_the_bytes_an_announcement_is_judged_or_refused() {
    let directory = directory();
    let networks = ["10.0.0.0/8", "fc00::/7"].map(|network| network.parse().unwrap());
    let rules = Rules {
        domain: Some("harbor.example.com".into()),
        stale_after: Duration::from_secs(120),
        trusted: vec![Trusted { networks: vec!["10.0.16.0/24".parse().unwrap()], service_instances: None }],
        addresses: AddressRules {
            backend_networks: networks.into(),
            cell_networks: vec!["10.0.2.0/24".parse().unwrap()],
            own_hosts: ["10.0.0.5".parse().unwrap()].into(),
            pool_ports: "23000-23999".parse().unwrap(),
            ..AddressRules::default()
        },
    };
    let (mut accepted, mut refused) = (0, 0);
    let (mut attribution, start) = (Attribution::default(), Instant::now());
    mutate::run(&CORPUS, |bytes| {
        let Ok(message) = wire::parse(bytes) else { return };
        for source in Source::ALL {
            if let Some(given) = given(&message, source) {
                assert!((0..=2).contains(&given.addresses.len()));
                let speaker = given.speaker.unwrap_or(Speaker { app: "app", app_instance: None });
                for addresses in &given.addresses {
                    attribution.set(*addresses.start(), Some(speaker), start).expect("there are not so many");
                }
            }
            let known = Known {
                directory: &directory,
                attribution: &attribution,
                rules: &rules,
                wall: Timestamp::from_seconds(1_700_000_000),
            };
            for action in [Action::Register, Action::Unregister] {
                match judge(&message, action, source, &known) {
                    Ok(Accepted::Register(registration)) => {
                        accepted += 1;
                        assert!((1..=2).contains(&registration.endpoints.len()));
                        assert!(registration.time_to_live <= rules.stale_after);
                    }
                    Ok(Accepted::Unregister(_)) => accepted += 1,
                    Err(_) => refused += 1,
                }
            }
        }
    });
    if std::env::var_os("HARBOR_SEED").is_none() {
        assert!(accepted > 500 && refused > 500, "the corpus reaches both ways: {accepted}, {refused}");
    }
}
