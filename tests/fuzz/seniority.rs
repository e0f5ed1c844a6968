//! Fuzzing of what nodes tell one another: also with the announce secret it is taken over, or refused, and nothing panics.

use std::{sync::Arc, time::Duration};

use harbor::{
    app::clock::SystemClock,
    backends::Backends,
    discovery::{
        Discovery, Settings,
        address::AddressRules,
        judge::Rules,
        source::{Action, Source},
    },
    model::{Protocol, ServiceInstanceId},
    telemetry::metrics::Metrics,
};
use tokio::sync::watch;

use crate::{announcements, mutate};

#[test]
fn whatever_a_node_says_backends_stay_and_only_their_order_changes() {
    let directory = Arc::new(announcements::directory(Protocol::Both, true));
    let secret = directory.announce_secret.clone();
    let (_sender, receiver) = watch::channel(directory);
    let settings = Settings {
        rules: Rules {
            domain: None,
            stale_after: Duration::from_secs(120),
            trusted: Vec::new(),
            addresses: AddressRules {
                backend_networks: vec!["10.0.0.0/8".parse().unwrap()],
                ..AddressRules::default()
            },
        },
        prune_every: Duration::from_secs(30),
        prune_suspend_max: Duration::from_secs(600),
        token_networks: Vec::new(),
    };
    let backends = Backends::new(16);
    let clock = Arc::new(SystemClock);
    let (discovery, _) = Discovery::new(settings, backends.clone(), receiver, clock, Metrics::new().discovery);
    discovery.nats_is_back();
    for port in [4001, 4002, 4003] {
        let (id, app) = (announcements::INSTANCE, announcements::APP);
        let message = format!(r#"{{"host":"10.0.1.7","port":{port},"app":"{app}","harbor":{{"instance_id":"{id}"}}}}"#);
        discovery.receive(Source::Harbor, Action::Register, message.as_bytes());
    }
    let id = ServiceInstanceId::new(announcements::INSTANCE).unwrap();
    let order = || backends.list(&id).iter().map(|state| state.backend.endpoint).collect::<Vec<_>>();
    let known = order();
    assert_eq!(known.len(), 6);
    let mut sorted = known.clone();
    sorted.sort_unstable();
    let of = |port: u16, since: i64| {
        format!(
            r#"{{"instance_id":"{}","transport":"udp","address":"10.0.1.7:{port}","since":{since}}}"#,
            announcements::INSTANCE
        )
    };
    let corpus = [
        "[]".to_owned(),
        format!("[{}]", of(4003, 1_700_000_000_000_000)),
        format!("[{},{}]", of(4002, 1), of(4001, i64::MAX)),
    ];
    let corpus = corpus.iter().map(String::as_bytes).collect::<Vec<_>>();
    let mut read = 0;
    mutate::run(&corpus, |bytes| {
        let _ = discovery.hear_seniority(bytes);
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        let message = format!(r#"{{"backends":{text},"proof":"{}"}}"#, secret.vouch(text));
        read += usize::from(discovery.hear_seniority(message.as_bytes()).is_ok());
        let mut now = order();
        now.sort_unstable();
        assert_eq!(now, sorted, "those that there were");
    });
    if std::env::var_os("HARBOR_SEED").is_none() {
        assert!(read > 300, "the corpus is read: {read}");
        assert_ne!(order(), known, "and taken over");
    }
}
