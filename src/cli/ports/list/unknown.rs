//! What the platform has forgotten: a listing of its service instances, held against the ports.

use std::fmt::Write as _;

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    admin::wire::{
        in_path,
        ports::{Port, PortIs},
    },
    cli::{
        clean,
        listing::{Known, Listing},
    },
    model::plan::SERVICE_ID,
};

/// The file with user and password: as arguments others of the machine could see them.
const NETRC: &str = "broker.netrc";

/// Most service instances that a command is told for.
const MAX_COMMANDS: usize = 20;

/// Leaves only what the platform does not know, and tells how many are too young to say.
pub fn retain(known: &Listing, ports: &mut Vec<Port>) -> usize {
    let mut too_young = 0;
    ports.retain(|port| {
        let PortIs::Allocated(allocated) = &port.is else { return false };
        let since = OffsetDateTime::parse(&allocated.since, &Rfc3339);
        let is = since.map_or(Known::TooYoung, |since| known.knows(&allocated.service_instance, since.into()));
        too_young += usize::from(is == Known::TooYoung);
        is == Known::No
    });
    too_young
}

/// What was found, and how to remove it: nobody else does. `asked` is how many there were before.
pub fn words(known: &Listing, unknown: &[Port], asked: usize, too_young: usize) -> String {
    let (file, known) = (clean(&known.file), known.count());
    let mut text = String::new();
    if unknown.is_empty() {
        let _ = writeln!(
            text,
            "{file} has {known} service instances, and each of the {} here among them",
            asked - too_young
        );
    } else {
        let count = unknown.len();
        let _ = writeln!(text, "{count} of {asked} service instances are not among the {known} of {file}.");
        if count + too_young == asked {
            let _ = writeln!(text, "It is none of them: was it written by an admin of this very platform?");
        }
        let _ = writeln!(
            text,
            "Where the platform still shows one, `cf purge-service-instance` makes it forget it. To free the port of one\n\
             that it has forgotten, ask the broker. With the URL, user and password of `cf create-service-broker` let\n\
             BROKER be its URL, and {NETRC} a file that only you can read: default login USER password PASSWORD"
        );
    }
    for port in unknown.iter().take(MAX_COMMANDS) {
        if let PortIs::Allocated(allocated) = &port.is {
            let (id, plan) = (in_path(&allocated.service_instance), in_path(&allocated.plan));
            let _ = writeln!(
                text,
                "  curl --netrc-file {NETRC} -H 'X-Broker-API-Version: 2.17' -X DELETE \
                 \"$BROKER/v2/service_instances/{id}?service_id={SERVICE_ID}&plan_id={plan}\""
            );
        }
    }
    if unknown.len() > MAX_COMMANDS {
        let _ = writeln!(text, "  and likewise for {} more", unknown.len() - MAX_COMMANDS);
    }
    if too_young > 0 {
        let _ = writeln!(text, "{too_young} more are younger than {file}, or than the newest in it: too young to tell");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::SystemTime};

    use super::*;
    use crate::admin::wire::ports::Allocated;

    #[test]
    fn what_is_unknown_is_told_with_what_removes_it() {
        let allocated = |id: &str, since: &str| Port {
            pool: "default".into(),
            port: 35_000,
            last_port: 35_000,
            is: PortIs::Allocated(Box::new(Allocated {
                service_instance: id.into(),
                name: None,
                protocol: "tcp".into(),
                organization: "o".into(),
                space: "s".into(),
                plan: "plan-1".into(),
                since: since.into(),
                allow: vec![],
                listener: None,
                backends_up: 0,
                backends: 0,
                flows: 0,
            })),
        };
        let until = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_795_252_518);
        let known = Listing::new("platform.json".into(), HashSet::from(["a".to_owned()]), until);
        let old = "2026-11-21T09:15:17Z";
        let mut ports = vec![allocated("a", old), allocated("b c", old), allocated("d", "2026-11-21T09:15:18Z")];
        assert_eq!(retain(&known, &mut ports), 1);
        let words = words(&known, &ports, 3, 1);
        let command = "  curl --netrc-file broker.netrc -H 'X-Broker-API-Version: 2.17' -X DELETE \
                       \"$BROKER/v2/service_instances/b%20c?service_id=";
        assert!(words.starts_with("1 of 3 service instances are not among the 1 of platform.json.\nWhere"), "{words}");
        assert!(words.contains(command) && words.contains("&plan_id=plan%2D1\"\n"), "{words}");
        let young = "1 more are younger than platform.json, or than the newest in it: too young to tell\n";
        assert!(words.ends_with(young), "{words}");
        assert!(!words.contains("It is none of them"));
        assert!(super::words(&known, &ports, 1, 0).contains("It is none of them: was it written by an admin"));
        assert_eq!(
            super::words(&known, &[], 7, 0),
            "platform.json has 1 service instances, and each of the 7 here among them\n"
        );
    }
}
