//! Fuzzing of announcements: whatever the bytes, they are parsed and judged, or refused, and nothing panics.

use std::time::{Duration, Instant};

use harbor::{
    discovery::{
        address::AddressRules,
        attribution::{Attribution, Speaker},
        authority::Trusted,
        judge::{Accepted, Known, Rules, given, judge},
        source::{Action, Source},
        wire,
    },
    model::{Protocol, Timestamp},
};

use crate::{announcements, mutate};

#[test]
fn whatever_the_bytes_an_announcement_is_judged_or_refused() {
    let directory = announcements::directory(Protocol::Both, true);
    let messages = announcements::names().iter().map(|name| announcements::read(name)).collect::<Vec<_>>();
    let corpus = messages.iter().map(String::as_bytes).collect::<Vec<_>>();
    let networks = ["10.0.0.0/8", "fc00::/7"].map(|network| network.parse().unwrap());
    let rules = Rules {
        domain: Some(announcements::DOMAIN.into()),
        stale_after: Duration::from_secs(120),
        trusted: vec![Trusted { networks: vec!["10.0.16.0/24".parse().unwrap()], service_instances: None }],
        addresses: AddressRules {
            backend_networks: networks.into(),
            cell_networks: vec!["10.0.2.0/24".parse().unwrap()],
            own_hosts: ["10.0.0.5".parse().unwrap()].into(),
            pool_ports: "35000-35999".parse().unwrap(),
            ..AddressRules::default()
        },
    };
    let (mut accepted, mut refused) = (0, 0);
    let (mut attribution, start) = (Attribution::default(), Instant::now());
    mutate::run(&corpus, |bytes| {
        let Ok(message) = wire::parse(bytes) else { return };
        for source in Source::ALL {
            if let Some(given) = given(&message, source) {
                assert!((0..=2).contains(&given.addresses.len()));
                let speaker = given.speaker.unwrap_or(Speaker { app: announcements::APP, app_instance: None });
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
