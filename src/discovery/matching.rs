//! Which service instance a message means. Pure.

use std::sync::Arc;

use super::{source::Source, wire::Announcement};
use crate::model::{
    announcement::AnnouncementRefusal,
    directory::{Directory, DirectoryEntry},
};

/// The service instance that the message means: by id, else by tag, else by its uris, else, on `router.*`, by its app.
/// On `service-discovery.*` a uri may also have the index of an app instance before the name: `0.p35012.<domain>`.
///
/// # Errors
/// [`AnnouncementRefusal::UnknownServiceInstance`] when the first of these that says something names nothing known;
/// [`AnnouncementRefusal::Ambiguous`] when uris name two; [`AnnouncementRefusal::NotMatched`] when only a bound app could
/// say it, and may not; [`AnnouncementRefusal::NotAddressed`] when nothing says anything.
pub fn service_instance<'d>(
    message: &Announcement,
    source: Source,
    directory: &'d Directory,
    domain: Option<&str>,
) -> Result<&'d Arc<DirectoryEntry>, AnnouncementRefusal> {
    let id = message.harbor_or_tag(|harbor| harbor.instance_id.as_ref(), |tags| tags.harbor_instance.as_ref());
    if let Some(id) = id {
        return directory.instance(id).ok_or(AnnouncementRefusal::UnknownServiceInstance);
    }
    if let Some(domain) = domain
        && let Some(entry) = by_uris(message.uris.as_deref().unwrap_or_default(), source, directory, domain)?
    {
        return Ok(entry);
    }
    let Some(app) = message.app.as_deref().filter(|_| source == Source::Router) else {
        return Err(AnnouncementRefusal::NotAddressed);
    };
    directory.by_app(app).filter(|entry| entry.match_app).ok_or_else(|| match directory.all_by_app(app) {
        [] => AnnouncementRefusal::NotAddressed,
        _ => AnnouncementRefusal::NotMatched,
    })
}

/// The one service instance that the uris under `domain` name; none when none is under it.
fn by_uris<'d>(
    uris: &[String],
    source: Source,
    directory: &'d Directory,
    domain: &str,
) -> Result<Option<&'d Arc<DirectoryEntry>>, AnnouncementRefusal> {
    let mut found: Option<&Arc<DirectoryEntry>> = None;
    for label in uris.iter().filter_map(|uri| label_under(uri, domain)) {
        let label = if source == Source::ServiceDiscovery { without_index(label) } else { label };
        let entry = by_label(label, directory)?;
        if found.is_some_and(|other| other.id != entry.id) {
            return Err(AnnouncementRefusal::Ambiguous);
        }
        found = Some(entry);
    }
    Ok(found)
}

/// What stands before `.domain` in the host of a uri; none for other domains.
fn label_under<'u>(uri: &'u str, domain: &str) -> Option<&'u str> {
    let host = uri.split('/').next().unwrap_or_default();
    let host = host.strip_suffix('.').unwrap_or(host);
    let at = host.len().checked_sub(domain.len())?;
    let (label, rest) = (host.get(..at)?, host.get(at..)?);
    let label = label.strip_suffix('.')?;
    (rest.eq_ignore_ascii_case(domain) && !label.is_empty()).then_some(label)
}

/// What follows the index of an app instance, where one stands before it.
fn without_index(label: &str) -> &str {
    let is_index = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    label.split_once('.').filter(|(index, _)| is_index(index)).map_or(label, |(_, rest)| rest)
}

fn by_label<'d>(label: &str, directory: &'d Directory) -> Result<&'d Arc<DirectoryEntry>, AnnouncementRefusal> {
    let lower = label.to_ascii_lowercase();
    let by_id = directory.instance(label).or_else(|| (lower != label).then(|| directory.instance(&lower))?);
    match (by_id, port_label(&lower).and_then(|port| directory.by_port(port))) {
        (Some(a), Some(b)) if a.id != b.id => Err(AnnouncementRefusal::Ambiguous),
        (a, b) => a.or(b).ok_or(AnnouncementRefusal::UnknownServiceInstance),
    }
}

/// The port of a label `p<port>`, written without leading zeros.
fn port_label(label: &str) -> Option<u16> {
    let digits = label.strip_prefix('p')?;
    let port = digits.parse().ok()?;
    (u16::to_string(&port) == digits).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::{fixture, wire::parse};

    const DOMAIN: &str = "harbor.example.com";

    #[track_caller]
    fn check_from(source: Source, message: &str, expect: Result<&str, AnnouncementRefusal>) {
        let directory = fixture::directory();
        let message = parse(message.as_bytes()).expect(message);
        let found = service_instance(&message, source, &directory, Some(DOMAIN));
        assert_eq!(found.map(|entry| entry.id.as_str()), expect, "{message:?}");
    }

    #[track_caller]
    fn check(message: &str, expect: Result<&str, AnnouncementRefusal>) {
        check_from(Source::Harbor, message, expect);
        check_from(Source::Router, message, expect);
    }

    const UNKNOWN: Result<&str, AnnouncementRefusal> = Err(AnnouncementRefusal::UnknownServiceInstance);
    const AMBIGUOUS: Result<&str, AnnouncementRefusal> = Err(AnnouncementRefusal::Ambiguous);
    const NOT_MATCHED: Result<&str, AnnouncementRefusal> = Err(AnnouncementRefusal::NotMatched);
    const NOT_ADDRESSED: Result<&str, AnnouncementRefusal> = Err(AnnouncementRefusal::NotAddressed);

    #[test]
    fn an_id_comes_before_a_tag_and_a_tag_before_uris() {
        check(r#"{"harbor":{"instance_id":"tcp-one"},"tags":{"harbor_instance":"udp-one"}}"#, Ok("tcp-one"));
        check(r#"{"tags":{"harbor_instance":"udp-one"},"uris":["p23001.harbor.example.com"]}"#, Ok("udp-one"));
        check(r#"{"harbor":{"instance_id":""},"tags":{"harbor_instance":"udp-one"}}"#, Ok("udp-one"));
    }

    #[test]
    fn what_names_nothing_known_is_refused_and_does_not_fall_through() {
        check(r#"{"harbor":{"instance_id":"gone"},"tags":{"harbor_instance":"udp-one"}}"#, UNKNOWN);
        check(r#"{"tags":{"harbor_instance":"gone"},"uris":["p23001.harbor.example.com"]}"#, UNKNOWN);
        check(r#"{"uris":["p9.harbor.example.com"],"app":"matched-app"}"#, UNKNOWN);
        check(r#"{"uris":["p23001.harbor.example.com","gone.harbor.example.com"]}"#, UNKNOWN);
    }

    #[test]
    fn a_uri_names_a_port_or_an_id_under_the_domain() {
        for uri in [
            "p23001.harbor.example.com",
            "P23001.Harbor.Example.COM",
            "p23001.harbor.example.com/some/path",
            "p23001.harbor.example.com.",
            "tcp-one.harbor.example.com",
            "TCP-one.harbor.example.com",
        ] {
            check(&format!(r#"{{"uris":["{uri}"]}}"#), Ok("tcp-one"));
        }
        for uri in [
            "p023001.harbor.example.com",
            "p+23001.harbor.example.com",
            "p70000.harbor.example.com",
            "p.harbor.example.com",
            "a.p23001.harbor.example.com",
            "*.harbor.example.com",
            "*.p23001.harbor.example.com",
        ] {
            check(&format!(r#"{{"uris":["{uri}"]}}"#), UNKNOWN);
        }
        check(r#"{"uris":["p23009.harbor.example.com"]}"#, UNKNOWN); // two pools have it
    }

    #[test]
    fn other_uris_are_skipped() {
        for uri in [
            "p23001.other.example.com",
            "harbor.example.com",
            ".harbor.example.com",
            "*.example.com",
            "p23001.evilharbor.example.com",
            "p23001-harbor.example.com",
            "example.com/p23001.harbor.example.com",
            "é.example.com",
            "",
        ] {
            check(&format!(r#"{{"uris":["{uri}"]}}"#), NOT_ADDRESSED);
            check(&format!(r#"{{"uris":["{uri}","p23001.harbor.example.com"]}}"#), Ok("tcp-one"));
        }
    }

    #[test]
    fn uris_that_name_two_are_refused() {
        check(r#"{"uris":["p23001.harbor.example.com","tcp-one.harbor.example.com"]}"#, Ok("tcp-one"));
        check(r#"{"uris":["p23001.harbor.example.com","p23002.harbor.example.com"]}"#, AMBIGUOUS);
    }

    #[test]
    fn an_app_alone_is_enough_only_on_router_subjects_and_where_it_is_asked_for() {
        check_from(Source::Router, r#"{"app":"matched-app","uris":["www.example.com"]}"#, Ok("matched"));
        check_from(Source::Harbor, r#"{"app":"matched-app"}"#, NOT_ADDRESSED);
        check_from(Source::Http, r#"{"app":"matched-app"}"#, NOT_ADDRESSED);
        check_from(Source::Router, r#"{"app":"app"}"#, NOT_MATCHED); // bound to several
        check_from(Source::Router, r#"{"app":"unmatched-app"}"#, NOT_MATCHED); // match_app is off
        check_from(Source::Router, r#"{"app":"stranger"}"#, NOT_ADDRESSED);
        check("{}", NOT_ADDRESSED);
    }

    #[test]
    fn an_internal_route_names_its_app_instances_too() {
        let both = r#"{"uris":["p23001.harbor.example.com","0.p23001.harbor.example.com"]}"#;
        check_from(Source::ServiceDiscovery, both, Ok("tcp-one"));
        check_from(Source::ServiceDiscovery, r#"{"uris":["12.tcp-one.harbor.example.com"]}"#, Ok("tcp-one"));
        check_from(Source::ServiceDiscovery, r#"{"uris":["a.p23001.harbor.example.com"]}"#, UNKNOWN);
        check_from(Source::ServiceDiscovery, r#"{"uris":[".p23001.harbor.example.com"]}"#, UNKNOWN);
        check_from(Source::ServiceDiscovery, r#"{"app":"matched-app","uris":["app.apps.internal"]}"#, NOT_ADDRESSED);
        check(both, UNKNOWN);
    }

    #[test]
    fn without_a_domain_no_uri_means_anything() {
        let directory = fixture::directory();
        let message = parse(br#"{"uris":["p23001.harbor.example.com"]}"#).unwrap();
        let found = service_instance(&message, Source::Harbor, &directory, None);
        assert_eq!(found.map(|entry| entry.id.as_str()), NOT_ADDRESSED);
    }
}
