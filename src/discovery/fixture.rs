//! What the tests of this module share.

use std::{collections::BTreeSet, sync::Arc};

use crate::model::{
    AppId, BindingId, PoolName, Protocol, Revision, ServiceInstanceId, Timestamp,
    binding::Binding,
    directory::{Directory, DirectoryEntry},
    token::{AnnounceSecret, SECRET_BYTES},
};

/// Service instances: `tcp-one` (port 23001) and `udp-one` (23002) with the app `app`; `both-one` (23003) with the keys
/// `key`, which may announce, and `silent-key`, which may not; `matched` (23004) and `unmatched` (23005) with apps of
/// their own; two of port 23009 in two pools. The binding of an app `x` to `y` is called `x@y`.
pub(super) fn directory() -> Directory {
    let mut directory = Directory::new(AnnounceSecret::new([1; SECRET_BYTES]));
    for (id, pool, port, protocol, match_app) in [
        ("tcp-one", "default", 23_001, Protocol::Tcp, false),
        ("udp-one", "default", 23_002, Protocol::Udp, false),
        ("both-one", "default", 23_003, Protocol::Both, false),
        ("matched", "default", 23_004, Protocol::Tcp, true),
        ("unmatched", "default", 23_005, Protocol::Tcp, false),
        ("twin-a", "default", 23_009, Protocol::Tcp, false),
        ("twin-b", "games", 23_009, Protocol::Tcp, false),
    ] {
        directory.put_instance(DirectoryEntry {
            id: ServiceInstanceId::new(id).unwrap(),
            pool: PoolName::new(pool).unwrap(),
            port,
            protocol,
            int_port: 4100,
            match_app,
            bindings: BTreeSet::new(),
            apps: Default::default(),
        });
    }
    for (app, id) in
        [("app", "tcp-one"), ("app", "udp-one"), ("matched-app", "matched"), ("unmatched-app", "unmatched")]
    {
        bind(&mut directory, &format!("{app}@{id}"), id, Some(app), true);
    }
    bind(&mut directory, "key", "both-one", None, true);
    bind(&mut directory, "silent-key", "both-one", None, false);
    directory
}

pub(super) fn bind(directory: &mut Directory, binding: &str, id: &str, app: Option<&str>, announce: bool) {
    directory.put_binding(&Arc::new(Binding {
        id: BindingId::new(binding).unwrap(),
        service_instance_id: ServiceInstanceId::new(id).unwrap(),
        app_id: app.map(|app| AppId::new(app).unwrap()),
        space_id: None,
        announce,
        predecessor_id: None,
        created_at: Timestamp::default(),
        revision: Revision(1),
    }));
}
