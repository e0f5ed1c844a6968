//! A listing of the platform's service instances, as `cf curl` writes it: what the platform knows.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    io::Read as _,
    path::Path,
    time::{Duration, SystemTime},
};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::Failure;

/// Largest listing that is read, in bytes: 100,000 service instances of the platform take about so much.
const MAX_BYTES: u64 = 512 * 1024 * 1024;

/// What was provisioned so shortly before a listing was made, or later, may be missing in it.
const LEEWAY: Duration = Duration::from_secs(60);

/// How a listing is made.
const HOW: &str = "write it by `cf curl \"/v3/service_instances?per_page=5000\"`";

/// The service instances that the platform knows.
#[derive(Debug)]
pub struct Listing {
    /// Where it was read, for messages.
    pub file: String,
    /// Their ids.
    ids: HashSet<String>,
    /// Of what is younger it says nothing.
    until: SystemTime,
}

/// Whether the platform knows a service instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It is listed.
    Yes,
    /// It is not, though it was there when the listing was made.
    No,
    /// It is not, as it may have come later.
    TooYoung,
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

/// A page, in either form of the platform's API, or its refusal to give one.
#[derive(Deserialize)]
struct Page {
    resources: Option<Vec<Resource>>,
    /// Of version 3.
    pagination: Option<Pagination>,
    /// Of version 2.
    total_results: Option<usize>,
    next_url: Option<IgnoredAny>,
    errors: Option<Value>,
    error_code: Option<Value>,
}

#[derive(Deserialize)]
struct Pagination {
    total_results: Option<usize>,
    first: Option<Link>,
    next: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Link {
    href: String,
}

#[derive(Deserialize)]
struct Resource {
    guid: Option<String>,
    created_at: Option<String>,
    metadata: Option<Metadata>,
}

#[derive(Deserialize)]
struct Metadata {
    guid: String,
    created_at: Option<String>,
}

/// A page, or a list of them.
struct Pages(Vec<Page>);

impl<'de> Deserialize<'de> for Pages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;

        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Pages;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a page or a list of pages")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Pages, A::Error> {
                Ok(Pages(vec![Page::deserialize(MapAccessDeserializer::new(map))?]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Pages, A::Error> {
                let mut pages = Vec::new();
                while let Some(page) = list.next_element()? {
                    pages.push(page);
                }
                Ok(Pages(pages))
            }
        }

        deserializer.deserialize_any(OneOrMany)
    }
}

/// What pages of one platform come to.
#[derive(Default)]
struct Platform {
    ids: HashSet<String>,
    totals: Vec<usize>,
    /// How many pages nothing follows.
    last_pages: usize,
    newest: Option<OffsetDateTime>,
}

impl Platform {
    fn add(&mut self, page: Page) -> Result<(), String> {
        let (total, is_last) = match page.pagination {
            Some(Pagination { total_results, next, .. }) => (total_results, next.is_none()),
            None => (page.total_results, page.next_url.is_none()),
        };
        let resources = page.resources.ok_or_else(|| format!("it is not a listing of service instances: {HOW}"))?;
        self.totals.push(total.ok_or_else(|| format!("it does not say how many there are (total_results): {HOW}"))?);
        self.last_pages += usize::from(is_last);
        for Resource { guid, created_at, metadata } in resources {
            let (id, created_at) = match metadata {
                Some(metadata) => (Some(metadata.guid), metadata.created_at),
                None => (guid, created_at),
            };
            self.ids.insert(id.ok_or_else(|| format!("it has an entry without an id: {HOW}"))?);
            if let Some(text) = created_at {
                let created_at = OffsetDateTime::parse(&text, &Rfc3339);
                let created_at =
                    created_at.map_err(|_| format!("it has an entry of {text:?}, which is no time: {HOW}"))?;
                self.newest = self.newest.max(Some(created_at));
            }
        }
        Ok(())
    }

    /// Whether nothing is missing; `whose` names it among several.
    fn check(&self, whose: &str) -> Result<(), String> {
        let (count, total) = (self.ids.len(), self.totals[0]);
        if let Some(other) = self.totals.iter().find(|other| **other != total) {
            return Err(format!(
                "its pages{whose} are of different times, as there are {total} service instances by one and {other} by \
                 another: list again"
            ));
        }
        if total == 0 {
            return Err(format!(
                "it has no service instance at all{whose}: list as an admin, who sees those of all spaces"
            ));
        }
        if self.last_pages == 0 || count < total {
            return Err(format!(
                "it is cut short{whose}, with {count} of {total} service instances: append the pages that its `next` leads to"
            ));
        }
        if self.last_pages > 1 {
            return Err(format!(
                "it has more than one listing{whose}, as {} pages are a last one: {HOW}",
                self.last_pages
            ));
        }
        Ok(())
    }
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
        let (bytes, written) = read().map_err(|error| unusable(format!("cannot be read ({error}): {HOW}")))?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(unusable(format!("it has more than {MAX_BYTES} bytes: is it a listing of service instances?")));
        }
        let (ids, newest) = contents(&bytes).map_err(unusable)?;
        // A copy is younger than what is in it.
        let made = newest.map_or(written, |newest| written.min(newest.into()));
        Ok(Self::new(file, ids, made - LEEWAY))
    }

    /// One with these ids, that says nothing of what is not older than `until`.
    pub const fn new(file: String, ids: HashSet<String>, until: SystemTime) -> Self {
        Self { file, ids, until }
    }

    /// How many service instances it has.
    pub fn count(&self) -> usize {
        self.ids.len()
    }

    /// Whether the platform knows this one, which was provisioned then.
    pub fn knows(&self, id: &str, since: SystemTime) -> Known {
        match self.ids.contains(id) {
            true => Known::Yes,
            false if since < self.until => Known::No,
            false => Known::TooYoung,
        }
    }
}

/// The ids of a listing, and the moment that all of it goes up to, as far as it says: pages that follow one another, or a list
/// of them, of one platform or of several.
fn contents(bytes: &[u8]) -> Result<(HashSet<String>, Option<OffsetDateTime>), String> {
    let mut platforms = BTreeMap::<String, Platform>::new();
    // As some programs of Windows begin a file.
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    for pages in serde_json::Deserializer::from_slice(bytes).into_iter::<Pages>() {
        let pages = pages.map_err(|error| match error.is_data() {
            true => format!("it is not a listing of service instances ({error}): {HOW}"),
            false => format!("it is not JSON ({error}): {HOW}"),
        })?;
        for page in pages.0 {
            if let Some(errors) = page.errors.as_ref().or(page.error_code.as_ref()) {
                return Err(format!("the platform has refused to tell ({errors}): log in as an admin, and list again"));
            }
            let first = page.pagination.as_ref().and_then(|pagination| pagination.first.as_ref());
            // Pages of version 2 do not say whose they are: all of them have to be one listing.
            let href = first.map_or("", |first| &first.href);
            let (platform, query) = href.split_once('?').unwrap_or((href, ""));
            if let Some(filter) = query.split('&').find(|part| !leaves_nothing_out(part)) {
                return Err(format!("it leaves out what does not fit {filter}: {HOW}"));
            }
            platforms.entry(platform.to_owned()).or_default().add(page)?;
        }
    }
    if platforms.is_empty() {
        return Err(format!("it is empty: {HOW}"));
    }
    for (name, platform) in &platforms {
        let whose = match (platforms.len(), &**name) {
            (1, _) => String::new(),
            (_, "") => " of a platform that it does not name".to_owned(),
            (_, name) => format!(" of {name}"),
        };
        platform.check(&whose)?;
    }
    let newest = platforms.values().filter_map(|platform| platform.newest).min();
    Ok((platforms.into_values().flat_map(|platform| platform.ids).collect(), newest))
}

/// Whether a part of a query asks for all service instances that brokers have: how they are shown is no matter.
fn leaves_nothing_out(part: &str) -> bool {
    let key = part.split_once('=').map_or(part, |(key, _)| key);
    ["", "page", "per_page", "order_by", "include"].contains(&key)
        || key.starts_with("fields")
        || part == "type=managed"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(listing: &str, expected: Result<&[&str], &str>) {
        let found = contents(listing.as_bytes()).map(|(ids, _)| {
            let mut ids = ids.into_iter().collect::<Vec<_>>();
            ids.sort();
            ids
        });
        let expected = expected.map(|ids| ids.iter().map(|id| (*id).to_owned()).collect());
        assert_eq!(found, expected.map_err(str::to_owned), "{listing}");
    }

    /// A page of version 3, of the platform at `api`.
    fn page(api: &str, total: usize, has_next: bool, ids: &[&str]) -> String {
        let link =
            |page: usize| serde_json::json!({ "href": format!("{api}/v3/service_instances?page={page}&per_page=2") });
        let next = has_next.then(|| link(2));
        let resources = ids.iter().map(|id| serde_json::json!({ "guid": id, "type": "managed" })).collect::<Vec<_>>();
        let pagination = serde_json::json!({ "total_results": total, "first": link(1), "next": next });
        serde_json::json!({ "pagination": pagination, "resources": resources }).to_string()
    }

    const A: &str = "https://api.a.example.com";
    const B: &str = "https://api.b.example.com";

    #[test]
    fn every_form_of_a_whole_listing_is_read() {
        let one = r#"{"pagination":{"total_results":2,"next":null},"resources":[{"guid":"a","type":"managed"},{"guid":"b"}]}"#;
        check(one, Ok(&["a", "b"]));
        let (first, last) = (page(A, 2, true, &["a"]), page(A, 2, false, &["b"]));
        check(&format!("{first}\n{last}"), Ok(&["a", "b"]));
        check(&format!("{last}{first}"), Ok(&["a", "b"]));
        check(&format!("[{first},{last}]"), Ok(&["a", "b"]));
        check(r#"{"total_results":1,"next_url":null,"resources":[{"metadata":{"guid":"a"},"entity":{}}]}"#, Ok(&["a"]));
        let other = page(B, 1, false, &["c"]);
        check(&format!("{first}{other}{last}"), Ok(&["a", "b", "c"]));
    }

    #[test]
    fn a_listing_that_may_lack_some_is_refused() {
        let cut = |whose: &str, count: usize, total: usize| {
            format!(
                "it is cut short{whose}, with {count} of {total} service instances: append the pages that its `next` leads to"
            )
        };
        let (first, last) = (page(A, 2, true, &["a"]), page(A, 2, false, &["b"]));
        check(&first, Err(&cut("", 1, 2)));
        check(&format!("{first}{first}"), Err(&cut("", 1, 2)));
        // The last page alone.
        check(&page(A, 3, false, &["c"]), Err(&cut("", 1, 3)));
        check(r#"{"total_results":2,"next_url":"/v2/x","resources":[{"metadata":{"guid":"a"}}]}"#, Err(&cut("", 1, 2)));
        // A whole one of one platform beside a part of another.
        let of_b = format!(" of {B}/v3/service_instances");
        check(&(page(A, 2, false, &["a", "b"]) + &page(B, 2, true, &["c"])), Err(&cut(&of_b, 1, 2)));
        check(&(page(A, 1, false, &["a"]) + &page(B, 2, false, &["c"])), Err(&cut(&of_b, 1, 2)));
        let v2 = |next: &str, ids: &str| format!(r#"{{"total_results":2,"next_url":{next},"resources":[{ids}]}}"#);
        let two = r#"{"metadata":{"guid":"a"}},{"metadata":{"guid":"b"}}"#;
        let another = r#"{"metadata":{"guid":"c"}}"#;
        for pages in [v2("null", two) + &v2("null", another), format!("{last}{last}{first}")] {
            let twice = "it has more than one listing, as 2 pages are a last one: write it by";
            assert!(contents(pages.as_bytes()).unwrap_err().starts_with(twice), "{pages}");
        }
        check(
            &format!("{first}{}", page(A, 3, false, &["b", "c"])),
            Err(
                "its pages are of different times, as there are 2 service instances by one and 3 by another: list again",
            ),
        );
        // Only what is of some space.
        let filtered = page(A, 1, false, &["a"]).replace("page=1&", "page=1&space_guids=s&order_by=%2Bcreated_at&");
        let why = contents(filtered.as_bytes()).unwrap_err();
        assert!(why.starts_with("it leaves out what does not fit space_guids=s: write it by"), "{why}");
        let none = "it has no service instance at all: list as an admin, who sees those of all spaces";
        check(r#"{"pagination":{"total_results":0,"next":null},"resources":[]}"#, Err(none));
        check(
            r#"{"errors":[{"code":10002}]}"#,
            Err("the platform has refused to tell ([{\"code\":10002}]): log in as an admin, and list again"),
        );
        let no_time = r#"{"total_results":1,"resources":[{"guid":"a","created_at":"yesterday"}]}"#;
        for wrong in [
            "",
            "{",
            "[1]",
            "{}",
            r#"{"resources":[{"guid":"a"}]}"#,
            r#"{"total_results":1,"resources":[{}]}"#,
            no_time,
        ] {
            let why = contents(wrong.as_bytes()).unwrap_err();
            assert!(why.contains("cf curl"), "{why}");
        }
    }

    #[test]
    fn nothing_is_said_of_what_may_have_come_after_the_listing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("platform.json");
        let at = |text: &str| SystemTime::from(OffsetDateTime::parse(text, &Rfc3339).unwrap());
        let check = |listing: &str, written: &str, until: &str| {
            std::fs::write(&path, listing).unwrap();
            std::fs::File::options().write(true).open(&path).unwrap().set_modified(at(written)).unwrap();
            let listing = Listing::load(&path).unwrap();
            let until = at(until);
            assert_eq!(listing.knows("a", until), Known::Yes);
            assert_eq!(listing.knows("x", until - Duration::from_secs(1)), Known::No);
            assert_eq!(listing.knows("x", until), Known::TooYoung);
        };
        let written = "2026-11-21T10:00:00Z";
        check(&page(A, 1, false, &["a"]), written, "2026-11-21T09:59:00Z");
        let created = |api: &str, times: &[&str]| {
            let mut page = page(api, times.len(), false, &["a", "b"][..times.len()]);
            for (id, time) in ["a", "b"].iter().zip(times) {
                let guid = format!(r#""guid":"{id}""#);
                page = page.replace(&guid, &format!(r#"{guid},"created_at":"{time}""#));
            }
            page
        };
        // A copy is younger than what is in it.
        let copied = created(A, &["2026-11-21T08:00:00Z", "2026-11-21T07:00:00Z"]);
        check(&copied, written, "2026-11-21T07:59:00Z");
        check(&copied, "2026-11-21T06:00:00Z", "2026-11-21T05:59:00Z");
        let v2 =
            r#"{"total_results":1,"resources":[{"metadata":{"guid":"a","created_at":"2026-11-21T08:30:00+00:00"}}]}"#;
        check(v2, written, "2026-11-21T08:29:00Z");
        // Of two platforms the one that was listed first.
        let two = copied + &created(B, &["2026-11-21T09:00:00Z"]);
        check(&two, written, "2026-11-21T07:59:00Z");
    }
}
