//! What the platform has forgotten: a listing of its service instances, held against the ports.

use std::{
    collections::HashSet,
    fmt::Write as _,
    io::Read as _,
    path::Path,
    time::{Duration, SystemTime},
};

use serde::Deserialize;
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    admin::wire::{
        in_path,
        ports::{Port, PortIs},
    },
    cli::clean,
    model::plan::SERVICE_ID,
};

/// Largest listing that is read, in bytes: 100,000 service instances of the platform take about so much.
const MAX_BYTES: u64 = 512 * 1024 * 1024;

/// What was provisioned so shortly before the listing was written, or later, may be missing in it.
const LEEWAY: Duration = Duration::from_secs(60);

/// Most service instances that a command is told for.
const MAX_COMMANDS: usize = 20;

/// The service instances that the platform knows.
#[derive(Debug)]
pub struct Known {
    file: String,
    ids: HashSet<String>,
    /// What is younger is not looked at.
    until: OffsetDateTime,
}

/// Why a listing says nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {why}")]
pub struct Unusable {
    file: String,
    why: String,
}

/// A page, in either form of the platform's API.
#[derive(Deserialize)]
struct Page {
    resources: Vec<Resource>,
    /// Of version 3.
    pagination: Option<Pagination>,
    /// Of version 2.
    total_results: Option<usize>,
    next_url: Option<Value>,
}

#[derive(Deserialize)]
struct Pagination {
    total_results: Option<usize>,
    next: Option<Value>,
}

#[derive(Deserialize)]
struct Resource {
    guid: Option<String>,
    metadata: Option<Metadata>,
}

#[derive(Deserialize)]
struct Metadata {
    guid: String,
}

impl Known {
    /// Reads a listing.
    pub fn load(path: &Path) -> Result<Self, Unusable> {
        let file = path.display().to_string();
        let unusable = |why: String| Unusable { file: file.clone(), why };
        let read = || -> std::io::Result<(Vec<u8>, SystemTime)> {
            let opened = std::fs::File::open(path)?;
            let written = opened.metadata()?.modified()?;
            let mut bytes = Vec::new();
            opened.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
            Ok((bytes, written))
        };
        let (bytes, written) = read().map_err(|error| {
            unusable(format!("cannot be read ({error}): write it by `cf curl \"/v3/service_instances?per_page=5000\"`"))
        })?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(unusable(format!("it has more than {MAX_BYTES} bytes: is it a listing of service instances?")));
        }
        let ids = ids(&bytes).map_err(unusable)?;
        Ok(Self { file, ids, until: OffsetDateTime::from(written - LEEWAY) })
    }

    /// Leaves only what the platform does not know, and tells how many of those are too new to say.
    pub fn retain_unknown(&self, ports: &mut Vec<Port>) -> usize {
        let mut too_new = 0;
        ports.retain(|port| {
            let PortIs::Allocated(allocated) = &port.is else { return false };
            if self.ids.contains(&allocated.service_instance) {
                return false;
            }
            let since = OffsetDateTime::parse(&allocated.since, &Rfc3339);
            let is_old = since.is_ok_and(|since| since < self.until);
            too_new += usize::from(!is_old);
            is_old
        });
        too_new
    }

    /// What was found, and how to remove it: nobody else does. `asked` is how many there were before.
    pub fn words(&self, unknown: &[Port], asked: usize, too_new: usize) -> String {
        let (file, known) = (clean(&self.file), self.ids.len());
        let mut text = String::new();
        if unknown.is_empty() {
            let _ = writeln!(
                text,
                "{file} has {known} service instances, and each of the {} here among them",
                asked - too_new
            );
        } else {
            let count = unknown.len();
            let _ = writeln!(text, "{count} of {asked} service instances are not among the {known} of {file}.");
            if count + too_new == asked {
                let _ = writeln!(text, "It is none of them: was it written by an admin of this very platform?");
            }
            let _ = writeln!(
                text,
                "Where the platform still shows one, `cf purge-service-instance` makes it forget it. To free the port of one\n\
                 that it has forgotten, ask the broker, whose URL and password are those of `cf create-service-broker`:"
            );
        }
        for port in unknown.iter().take(MAX_COMMANDS) {
            if let PortIs::Allocated(allocated) = &port.is {
                let (id, plan) = (in_path(&allocated.service_instance), in_path(&allocated.plan));
                let _ = writeln!(
                    text,
                    "  curl -u \"harbor:$PASSWORD\" -H 'X-Broker-API-Version: 2.17' -X DELETE \
                     \"$BROKER/v2/service_instances/{id}?service_id={SERVICE_ID}&plan_id={plan}\""
                );
            }
        }
        if unknown.len() > MAX_COMMANDS {
            let _ = writeln!(text, "  and likewise for {} more", unknown.len() - MAX_COMMANDS);
        }
        if too_new > 0 {
            let _ = writeln!(text, "{too_new} more are younger than {file}: list again to tell");
        }
        text
    }
}

/// The ids of a listing: pages that follow one another, or a list of them.
fn ids(bytes: &[u8]) -> Result<HashSet<String>, String> {
    let what = "write it by `cf curl \"/v3/service_instances?per_page=5000\"`";
    let mut pages = Vec::new();
    for value in serde_json::Deserializer::from_slice(bytes).into_iter::<Value>() {
        match value.map_err(|error| format!("it is not JSON ({error}): {what}"))? {
            Value::Array(more) => pages.extend(more),
            page => pages.push(page),
        }
    }
    let (mut ids, mut total, mut is_whole) = (HashSet::new(), 0, false);
    for page in pages {
        if let Some(errors) = page.get("errors").or_else(|| page.get("error_code")) {
            return Err(format!("the platform has refused to tell ({errors}): log in as an admin, and list again"));
        }
        let page = serde_json::from_value::<Page>(page)
            .map_err(|error| format!("it is not a listing of service instances ({error}): {what}"))?;
        let (of_page, next) = match page.pagination {
            Some(Pagination { total_results, next }) => (total_results, next),
            None => (page.total_results, page.next_url),
        };
        total =
            of_page.ok_or_else(|| format!("it does not say how many there are (total_results): {what}"))?.max(total);
        is_whole |= next.is_none_or(|next| next.is_null());
        for resource in page.resources {
            let id = resource.guid.or(resource.metadata.map(|metadata| metadata.guid));
            ids.insert(id.ok_or_else(|| format!("it has an entry without an id: {what}"))?);
        }
    }
    if total == 0 {
        return Err("it has no service instance at all: list as an admin, who sees those of all spaces".into());
    }
    if !is_whole || ids.len() < total {
        let count = ids.len();
        return Err(format!(
            "it is cut short, with {count} of {total} service instances: append the pages that its `next` leads to"
        ));
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::wire::ports::Allocated;

    #[track_caller]
    fn check(listing: &str, expected: Result<&[&str], &str>) {
        let found = ids(listing.as_bytes()).map(|ids| {
            let mut ids = ids.into_iter().collect::<Vec<_>>();
            ids.sort();
            ids
        });
        let expected = expected.map(|ids| ids.iter().map(|id| (*id).to_owned()).collect());
        assert_eq!(found, expected.map_err(str::to_owned), "{listing}");
    }

    #[test]
    fn every_form_of_a_whole_listing_is_read() {
        let one = r#"{"pagination":{"total_results":2,"next":null},"resources":[{"guid":"a","type":"managed"},{"guid":"b"}]}"#;
        check(one, Ok(&["a", "b"]));
        let first = r#"{"pagination":{"total_results":2,"next":{"href":"https://x"}},"resources":[{"guid":"a"}]}"#;
        let last = r#"{"pagination":{"total_results":2,"next":null},"resources":[{"guid":"b"}]}"#;
        check(&format!("{first}\n{last}"), Ok(&["a", "b"]));
        check(&format!("{last}{first}"), Ok(&["a", "b"]));
        check(&format!("[{first},{last}]"), Ok(&["a", "b"]));
        check(r#"{"total_results":1,"next_url":null,"resources":[{"metadata":{"guid":"a"},"entity":{}}]}"#, Ok(&["a"]));
    }

    #[test]
    fn a_listing_that_may_lack_some_is_refused() {
        let cut = |count: usize, total: usize| {
            format!(
                "it is cut short, with {count} of {total} service instances: append the pages that its `next` leads to"
            )
        };
        let first = r#"{"pagination":{"total_results":2,"next":{"href":"https://x"}},"resources":[{"guid":"a"}]}"#;
        check(first, Err(&cut(1, 2)));
        check(&format!("{first}{first}"), Err(&cut(1, 2)));
        // The last page alone.
        check(r#"{"pagination":{"total_results":3,"next":null},"resources":[{"guid":"c"}]}"#, Err(&cut(1, 3)));
        check(r#"{"total_results":2,"next_url":"/v2/x","resources":[{"metadata":{"guid":"a"}}]}"#, Err(&cut(1, 2)));
        let none = "it has no service instance at all: list as an admin, who sees those of all spaces";
        check(r#"{"pagination":{"total_results":0,"next":null},"resources":[]}"#, Err(none));
        check("", Err(none));
        check(
            r#"{"errors":[{"code":10002}]}"#,
            Err("the platform has refused to tell ([{\"code\":10002}]): log in as an admin, and list again"),
        );
        for wrong in ["{", "[1]", "{}", r#"{"resources":[{"guid":"a"}]}"#, r#"{"total_results":1,"resources":[{}]}"#] {
            let why = ids(wrong.as_bytes()).unwrap_err();
            assert!(why.contains("cf curl"), "{why}");
        }
    }

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
        let until = OffsetDateTime::from_unix_timestamp(1_795_252_518).unwrap();
        let known = Known { file: "platform.json".into(), ids: HashSet::from(["a".to_owned()]), until };
        let old = "2026-11-21T09:15:17Z";
        let mut ports = vec![allocated("a", old), allocated("b c", old), allocated("d", "2026-11-21T09:15:18Z")];
        assert_eq!(known.retain_unknown(&mut ports), 1);
        let words = known.words(&ports, 3, 1);
        let command = "  curl -u \"harbor:$PASSWORD\" -H 'X-Broker-API-Version: 2.17' -X DELETE \
                       \"$BROKER/v2/service_instances/b%20c?service_id=";
        assert!(words.starts_with("1 of 3 service instances are not among the 1 of platform.json.\nWhere"), "{words}");
        assert!(words.contains(command) && words.contains("&plan_id=plan%2D1\"\n"), "{words}");
        assert!(words.ends_with("1 more are younger than platform.json: list again to tell\n"), "{words}");
        assert!(!words.contains("It is none of them"));
        assert!(known.words(&ports, 1, 0).contains("It is none of them: was it written by an admin"));
        assert_eq!(
            known.words(&[], 7, 0),
            "platform.json has 1 service instances, and each of the 7 here among them\n"
        );
    }
}
