use super::*;
use crate::{
    model::{
        AppId, NodeId, OrganizationId, PlanId, PoolName, Protocol, SpaceId, Timestamp,
        balance::Balance,
        parameters::Settings,
        pool::{DEFAULT_QUARANTINE, PoolNames},
        service_instance::ServiceInstance,
        setting::Setting,
        token::{AnnounceSecret, SECRET_BYTES},
    },
    store,
};

fn full() -> Dump {
    let pool = || PoolName::new("default").unwrap();
    let space = || SpaceId::new("space").unwrap();
    let node = || NodeId::new("harbor_node_1").unwrap();
    let id = |text: &str| ServiceInstanceId::new(text).unwrap();
    let now = Timestamp::from_seconds(1_700_000_000);
    let setting = |value: Option<&str>, revision| Setting {
        scope: "forwarder".into(),
        key: "max_sockets".into(),
        value: value.map(Into::into),
        changed_by: "root".into(),
        changed_at: now,
        revision: Revision(revision),
    };
    Dump {
        revision: Revision(17),
        announce_secret: Some(AnnounceSecret::new([7; SECRET_BYTES])),
        pools: vec![(
            crate::model::pool::Pool {
                name: pool(),
                ports: "35000-35999, 37000".parse().unwrap(),
                names: PoolNames { host: Some("10.0.0.5".into()), ..PoolNames::default() },
                int_port: 4100,
                quarantine: DEFAULT_QUARANTINE,
                retired: false,
            },
            Revision(1),
        )],
        reservations: vec![(
            store::Reservation {
                pool: pool(),
                name: "sip".into(),
                first_port: 35060,
                last_port: 35061,
                protocol: Protocol::Udp,
            },
            Revision(2),
        )],
        instances: vec![ServiceInstance {
            id: id("a/b \0 ☃"),
            plan_id: PlanId::new("plan").unwrap(),
            pool: pool(),
            port: 35000,
            protocol: Protocol::Both,
            requested_port: Some(35000),
            settings: Settings { balance: Some(Balance::Random), ..Settings::default() },
            organization_id: OrganizationId::new("organization").unwrap(),
            space_id: space(),
            name: Some("game".into()),
            node_id: node(),
            created_at: Timestamp(now.0 + 250_000),
            revision: Revision(3),
        }],
        bindings: vec![crate::model::binding::Binding {
            id: BindingId::new("b").unwrap(),
            service_instance_id: id("a/b \0 ☃"),
            app_id: Some(AppId::new("app").unwrap()),
            space_id: None,
            announce: true,
            predecessor_id: None,
            created_at: now,
            revision: Revision(4),
        }],
        last_releases: vec![store::LastRelease {
            pool: pool(),
            port: 35000,
            release: store::Release { space_id: space(), at: Timestamp(-1), quarantined_until: Timestamp(i64::MAX) },
            revision: Revision(0),
        }],
        operations: vec![store::Operation {
            service_instance_id: id("a/b \0 ☃"),
            node_id: node(),
            failure: None,
            changed_at: now,
        }],
        deleted_instances: vec![(id("gone"), Revision(9))],
        deleted_bindings: vec![(BindingId::new("gone").unwrap(), Revision(9))],
        settings: vec![setting(Some("1000"), 17)],
        settings_history: vec![setting(None, 16), setting(Some("1000"), 17)],
    }
}

fn written(dump: &Dump) -> String {
    let mut bytes = Vec::new();
    dump.write(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// The same lines with the sum that they have.
fn sealed(lines: &str) -> String {
    let sha256 = hex(digest::digest(&digest::SHA256, lines.as_bytes()).as_ref());
    format!("{lines}{{\"sha256\":\"{sha256}\"}}\n")
}

/// `text` without its last line.
fn unsealed(text: &str) -> &str {
    &text[..text.trim_end().rfind('\n').unwrap() + 1]
}

#[track_caller]
fn refused(text: &str, expected: &str) {
    let error = Dump::read(text.as_bytes()).expect_err("it should be refused").to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_dump_keeps_its_form() {
    let expected = r#"{"harbor_data":1,"revision":17}
{"announce_secret":"0707070707070707070707070707070707070707070707070707070707070707"}
{"pool":{"definition":{"name":"default","ports":"35000-35999, 37000","host":"10.0.0.5","int_port":4100,"quarantine_us":900000000},"revision":1}}
{"reservation":{"pool":"default","name":"sip","first_port":35060,"last_port":35061,"protocol":"udp","revision":2}}
{"service_instance":{"id":"a/b \u0000 ☃","plan_id":"plan","pool":"default","port":35000,"protocol":"both","requested_port":35000,"settings":{"balance":"random"},"organization_id":"organization","space_id":"space","name":"game","node_id":"harbor_node_1","created_at":"2023-11-14T22:13:20.25Z","revision":3}}
{"binding":{"id":"b","service_instance_id":"a/b \u0000 ☃","app_id":"app","announce":true,"created_at":"2023-11-14T22:13:20Z","revision":4}}
{"last_release":{"pool":"default","port":35000,"space_id":"space","at":"1969-12-31T23:59:59.999999Z","quarantined_until":9223372036854775807,"revision":0}}
{"operation":{"service_instance_id":"a/b \u0000 ☃","node_id":"harbor_node_1","changed_at":"2023-11-14T22:13:20Z"}}
{"deleted_service_instance":{"id":"gone","revision":9}}
{"deleted_binding":{"id":"gone","revision":9}}
{"setting":{"scope":"forwarder","key":"max_sockets","value":"1000","changed_by":"root","changed_at":"2023-11-14T22:13:20Z","revision":17}}
{"setting_change":{"scope":"forwarder","key":"max_sockets","changed_by":"root","changed_at":"2023-11-14T22:13:20Z","revision":16}}
{"setting_change":{"scope":"forwarder","key":"max_sockets","value":"1000","changed_by":"root","changed_at":"2023-11-14T22:13:20Z","revision":17}}
"#;
    assert_eq!(written(&full()), sealed(expected));
    assert_eq!(Dump::read(sealed(expected).as_bytes()).unwrap(), full());

    // Before reservations had protocols.
    let older = Dump::read(sealed(&expected.replace(",\"protocol\":\"udp\"", "")).as_bytes()).unwrap();
    assert_eq!(older.reservations[0].0.protocol, Protocol::Both);
}

#[test]
fn a_former_secret_stands_behind_the_one_that_follows_it() {
    let secret = AnnounceSecret::new([8; SECRET_BYTES]).after(&AnnounceSecret::new([7; SECRET_BYTES]));
    let dump = Dump { announce_secret: Some(secret), ..full() };
    assert_eq!(Dump::read(written(&dump).as_bytes()).unwrap(), dump);
    let former = format!(r#"{{"former_announce_secret":"{}"}}"#, "07".repeat(SECRET_BYTES));
    let alone = sealed(&format!("{{\"harbor_data\":1,\"revision\":1}}\n{former}\n"));
    assert!(matches!(Dump::read(alone.as_bytes()), Err(ReadError::NotUnderstood { line: 2, .. })));
}

#[test]
fn nothing_is_a_dump_too() {
    let nothing = Dump::default();
    assert_eq!(Dump::read(written(&nothing).as_bytes()).unwrap(), nothing);
}

#[test]
fn what_people_read_has_all_but_the_secret_and_cannot_be_imported() {
    let mut bytes = Vec::new();
    full().write_to_read(&mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let document = serde_json::from_str::<serde_json::Value>(&text).unwrap();
    assert_eq!(document["service_instances"][0]["created_at"], "2023-11-14T22:13:20.25Z");
    assert_eq!(document["settings_history"].as_array().unwrap().len(), 2);
    assert!(!text.contains("0707"), "{text}");
    refused(&text, "this is the form to read");
}

#[test]
fn a_file_that_is_cut_short_or_damaged_anywhere_is_refused() {
    let text = written(&full()).into_bytes();
    for end in 0..text.len() {
        assert!(Dump::read(&text[..end]).is_err(), "{end}");
    }
    for place in 0..text.len() {
        let mut damaged = text.clone();
        damaged[place] ^= 1;
        assert!(Dump::read(&damaged).is_err(), "{place}");
    }
    let text = written(&full());
    refused(unsealed(&text), "cut short");
    refused(text.trim_end(), "cut short");
    refused(&format!("{text}\n"), "cut short");
    refused(&text.replacen("35000", "35001", 1), "checksum");
}

#[test]
fn what_is_no_dump_and_what_a_newer_version_has_written_is_told_apart() {
    for text in ["", "\n", "SQLite format 3\0", "{}\n", "[1]\n", "{\"harbor_data\":\"1\"}\n"] {
        refused(text, "this is no export of Harbor");
    }
    refused("{\"harbor_data\":2,\"colour\":\"red\"}\nwhatever\n", "newer Harbor (format 2, this one knows 1)");
    let text = written(&full());
    let lines = unsealed(&text);
    for (from, to, expected) in [
        (
            "\"announce\":true",
            "\"announce\":true,\"colour\":\"red\"",
            "line 6 is not understood (unknown field `colour`",
        ),
        ("{\"balance\":\"random\"}", "{\"colour\":\"red\"}", "line 5 is not understood (unknown field `colour`"),
        (
            "\"balance\":\"random\"",
            "\"balance\":\"fair\"",
            "line 5 is not understood (\"fair\" is not known in settings",
        ),
        ("{\"reservation\":", "{\"lease\":", "line 4 is not understood (unknown variant `lease`"),
        ("\"id\":\"b\"", "\"id\":\"\"", "line 6 is not understood (a binding id must have 1 to 255 bytes, got 0)"),
        ("\"2023-11-14T22:13:20.25Z\"", "\"yesterday\"", "line 5 is not understood"),
        ("{\"pool\":{", "{\"announce_secret\":\"00\"}\n{\"pool\":{", "line 3 is not understood (a second secret)"),
    ] {
        refused(&sealed(&lines.replacen(from, to, 1)), expected);
    }
}

#[test]
fn what_no_store_can_have_held_is_refused() {
    let check = |change: fn(&mut Dump), expected: &str| {
        let mut dump = full();
        change(&mut dump);
        refused(&written(&dump), expected);
    };
    check(|dump| dump.instances.push(dump.instances[0].clone()), "the service instance \"a/b \\0 ☃\" is there twice");
    check(
        |dump| {
            dump.instances
                .push(ServiceInstance { id: ServiceInstanceId::new("x").unwrap(), ..dump.instances[0].clone() })
        },
        "the port (\"default\", 35000) is there twice",
    );
    check(|dump| dump.instances.clear(), "the binding \"b\" is of no service instance");
    check(
        |dump| {
            dump.instances.clear();
            dump.bindings.clear();
        },
        "\"a/b \\0 ☃\" is provisioned, but is not there",
    );
    check(|dump| dump.deleted_bindings.push((BindingId::new("b").unwrap(), Revision(5))), "the deleted binding \"b\"");
    check(|dump| dump.last_releases[0].port = 1023, "port 1023 is below 1024");
    check(
        |dump| dump.last_releases[0].revision = dump.instances[0].revision,
        "port 35000 of the pool default is both allocated and freed",
    );
    check(|dump| dump.reservations[0].0.last_port = 1, "\"sip\" ends before it begins");
    check(
        |dump| {
            let mut other = dump.reservations[0].clone();
            other.0.name = "other".into();
            dump.reservations.push(other);
        },
        "hold a common port",
    );
    check(|dump| dump.settings[0].value = None, "\"max_sockets\" of \"forwarder\" has no value");
    check(|dump| dump.revision = Revision(16), "something is of revision 17, later than 16");
    check(|dump| dump.bindings[0].revision = Revision(0), "something has no revision");
    check(|dump| dump.revision = Revision(i64::MAX as u64), "9223372036854775807 is later than any store comes to");
    let mut late = full();
    late.revision = Revision(1 << 62);
    assert_eq!(Dump::read(written(&late).as_bytes()).unwrap(), late, "half of all revisions are left");
}

#[test]
fn what_is_deprovisioned_in_a_dump_leaves_nothing_but_a_port_at_rest() {
    let mut dump = full();
    dump.settings.push(Setting {
        scope: crate::model::setting::SUSPENDED.into(),
        key: "a/b \0 ☃".into(),
        ..dump.settings[0].clone()
    });
    let before = dump.clone();
    let now = Timestamp::from_seconds(1_800_000_000);
    assert!(dump.deprovision(|_| false, now, "import").is_empty());
    assert_eq!(dump, before);

    let gone = dump.deprovision(|instance| instance.port == 35000, now, "import");
    assert_eq!(gone, before.instances);
    let revision = Revision(18);
    let release = store::Release {
        space_id: SpaceId::new("space").unwrap(),
        at: now,
        quarantined_until: now.plus(DEFAULT_QUARANTINE),
    };
    assert_eq!(dump.last_releases, [store::LastRelease { release, revision, ..before.last_releases[0].clone() }]);
    assert!(dump.instances.is_empty() && dump.bindings.is_empty());
    assert!(!dump.operations.iter().any(|operation| operation.service_instance_id == gone[0].id));
    assert_eq!(dump.deleted_instances.last(), Some(&(gone[0].id.clone(), revision)));
    assert_eq!(dump.deleted_bindings.last(), Some(&(BindingId::new("b").unwrap(), revision)));
    assert_eq!(dump.settings, before.settings[..1]);
    let last = dump.settings_history.last().unwrap();
    assert_eq!((&last.value, &*last.changed_by, last.revision), (&None, "import", revision));
    assert_eq!(Dump::read(written(&dump).as_bytes()).unwrap(), dump, "it is sound");
}

#[test]
fn a_contradiction_is_told_once() {
    let mut dump = full();
    dump.last_releases[0].port = 0;
    let error = Dump::read(written(&dump).as_bytes()).expect_err("it should be refused");
    assert_eq!(error.to_string(), "port 0 is below 1024: no Harbor has written this; take another copy");
    assert!(std::error::Error::source(&error).is_none(), "whoever shows causes too would show it again");
}
