//! A listing of the platform's service instances, as `cf curl` writes it: what the platform knows.

use std::{
    collections::HashSet,
    io::Read as _,
    path::Path,
    time::{Duration, SystemTime},
};

use serde::Deserialize;
use serde_json::Value;

use super::Failure;

/// Largest listing that is read, in bytes: 100,000 service instances of the platform take about so much.
const MAX_BYTES: u64 = 512 * 1024 * 1024;

/// What was provisioned so shortly before the listing was written, or later, may be missing in it.
const LEEWAY: Duration = Duration::from_secs(60);

/// The service instances that the platform knows.
#[derive(Debug)]
pub struct Listing {
    /// Where it was read, for messages.
    pub file: String,
    /// Their ids.
    pub ids: HashSet<String>,
    /// Of what is younger it says nothing.
    pub until: SystemTime,
}

/// Why a listing says nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {why}")]
pub struct Unusable {
    file: String,
    why: String,
}

impl From<Unusable> for Failure {
    fn from(unusable: Unusable) -> Self {
        Self::Usage(unusable.to_string())
    }
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

impl Listing {
    /// Reads one that is whole.
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
        Ok(Self { file, ids, until: written - LEEWAY })
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
}
