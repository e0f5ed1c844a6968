//! An announcement gets the very answer that the contract has for it, and what that lets in leaves with its authority.

mod oracle;
mod world;

use std::{collections::BTreeSet, time::Instant};

use harbor::{
    backends::Backends,
    discovery::{
        judge::Accepted,
        source::{Action, Source},
    },
    model::{
        BindingId,
        announcement::{AnnouncementRefusal, Authority},
    },
};
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};

use world::{ACTIONS, Case, message, world};

/// How many worlds and messages a test looks at; each message as all that can be made of it.
const CASES: u32 = 2048;

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, ..ProptestConfig::default() })]

    #[test]
    fn an_announcement_gets_the_very_answer_of_the_contract(world in world(), message in message()) {
        for case in Case::all(&world, &message) {
            prop_assert_eq!(case.judged(), case.expected(), "{:?} from {:?}", case.action, case.source);
        }
    }

    #[test]
    fn a_backend_leaves_with_its_authority(world in world(), message in message()) {
        let directory = world.directory();
        for judged in Case::all(&world, &message).map(|case| case.judged()) {
            let Ok(Accepted::Register(registration)) = judged else { continue };
            let backends = Backends::new(8);
            backends.apply(&registration, Instant::now()).expect("an empty table has room");
            backends.retain_authorised(&directory);
            prop_assert_eq!(backends.list(&registration.service_instance_id).len(), registration.endpoints.len());
            let mut without = directory.clone();
            match &registration.authority {
                Authority::App(app) => {
                    let entry = directory.instance(registration.service_instance_id.as_str()).unwrap();
                    let of_app = |id: &&BindingId| directory.binding(id.as_str()).unwrap().app_id.as_ref() == Some(app);
                    entry.bindings.iter().filter(of_app).for_each(|id| without.remove_binding(id));
                }
                Authority::Binding(binding) => without.remove_binding(binding),
                Authority::Trusted => without.remove_instance(&registration.service_instance_id),
            }
            backends.retain_authorised(&without);
            prop_assert_eq!(backends.export().len(), 0);
        }
    }
}

/// Whether a message of this kind can be refused for the reason.
fn can_be(reason: AnnouncementRefusal, action: Action, source: Source) -> bool {
    use AnnouncementRefusal as R;
    match reason {
        R::NotMatched => source == Source::Router,
        R::TlsOnly | R::NoPort => source != Source::ServiceDiscovery,
        R::AddressForbidden | R::Loop | R::NotAttributed => action == Action::Register,
        // These are said by the table of backends, or before a message is judged.
        R::TooManyBackends | R::OutOfOrder | R::OtherOrigin | R::UnknownBackend | R::RateLimited => false,
        _ => true,
    }
}

#[test]
fn the_messages_get_every_answer_that_there_is() {
    let (mut runner, inputs) = (TestRunner::deterministic(), (world(), message()));
    let mut seen = BTreeSet::new();
    for _ in 0..CASES {
        let (world, message) = inputs.new_tree(&mut runner).expect("nothing is filtered out").current();
        seen.extend(Case::all(&world, &message).map(|case| {
            let answer = match case.judged() {
                Ok(Accepted::Register(registration)) => match registration.authority {
                    Authority::App(_) => "an app's",
                    Authority::Binding(_) => "a token's",
                    Authority::Trusted => "a trusted host's",
                },
                Ok(Accepted::Unregister(_)) => "withdrawn",
                Err(refused) => refused.reason.as_str(),
            };
            (case.action.as_str(), case.source.as_str(), answer)
        }));
    }
    let mut expected = BTreeSet::new();
    for (action, source) in ACTIONS.into_iter().flat_map(|action| Source::ALL.map(|source| (action, source))) {
        let accepted: &[&str] = match action {
            Action::Register => &["an app's", "a token's", "a trusted host's"],
            Action::Unregister => &["withdrawn"],
        };
        let refused = AnnouncementRefusal::ALL.into_iter().filter(|reason| can_be(*reason, action, source));
        let answers = accepted.iter().copied().chain(refused.map(AnnouncementRefusal::as_str));
        expected.extend(answers.map(|answer| (action.as_str(), source.as_str(), answer)));
    }
    let amiss = seen.symmetric_difference(&expected).collect::<Vec<_>>();
    assert!(amiss.is_empty(), "never seen, or not to be: {amiss:?}");
}
