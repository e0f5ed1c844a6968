//! Reading one value: each function takes what was written and gives a checked value or says what is wrong.

use std::{
    fs::Metadata,
    io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use ipnet::IpNet;

use super::{
    Secret,
    entry::{Entry, Problem, Value},
};
use crate::model::{PortSet, Protocol, networks};

/// The longest duration that is taken: one that is longer is a slip of the pen.
pub const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 60 * 60);

type Read<T> = Result<T, Problem>;

/// Any text but an empty one.
pub fn text(entry: &Entry) -> Read<String> {
    match &entry.value {
        Value::Text(text) | Value::Variable(text) if text.trim().is_empty() => {
            Err(entry.problem("this is empty: write a value, or leave the key out"))
        }
        Value::Text(text) | Value::Variable(text) => Ok(text.clone()),
        other => Err(entry.problem(format!("this is {}, but must be text", other.kind()))),
    }
}

/// A text that is not shown in messages.
pub fn secret(entry: &Entry) -> Read<Secret> {
    text(entry).map(Secret::new)
}

/// One secret, or a list of them; a variable is always one, whatever is in it.
pub fn secrets(entry: &Entry) -> Read<Vec<Secret>> {
    match &entry.value {
        Value::List(items) if items.is_empty() => Err(entry.problem("this list is empty: write at least one")),
        Value::List(items) => items.iter().map(secret).collect(),
        _ => Ok(vec![secret(entry)?]),
    }
}

/// `true` or `false`.
pub fn flag(entry: &Entry) -> Read<bool> {
    match &entry.value {
        Value::Boolean(flag) => Ok(*flag),
        Value::Variable(text) => text.parse().map_err(|_| entry.problem(format!("{text:?} is neither true nor false"))),
        other => Err(entry.problem(format!("this is {}, but must be true or false", other.kind()))),
    }
}

/// A whole number within `range`.
pub fn number<T>(range: RangeInclusive<T>) -> impl Fn(&Entry) -> Read<T>
where
    T: TryFrom<i64> + Copy + PartialOrd + std::fmt::Display,
{
    move |entry| {
        let number = match &entry.value {
            Value::Integer(number) => Some(*number),
            Value::Variable(text) => text.trim().parse().ok(),
            other => return Err(entry.problem(format!("this is {}, but must be a whole number", other.kind()))),
        };
        number
            .and_then(|number| T::try_from(number).ok())
            .filter(|number| range.contains(number))
            .ok_or_else(|| entry.problem(format!("this must be a number from {} to {}", range.start(), range.end())))
    }
}

/// A duration with its unit, of at least `least`.
pub fn duration(least: Duration) -> impl Fn(&Entry) -> Read<Duration> {
    move |entry| {
        let text = match &entry.value {
            Value::Text(text) | Value::Variable(text) => text,
            _ => return Err(entry.problem("a duration is text with a unit: write for example \"120s\" or \"15m\"")),
        };
        let duration = humantime::parse_duration(text.trim())
            .map_err(|_| entry.problem(format!("{text:?} is not a duration: write for example \"120s\" or \"15m\"")))?;
        if duration < least || duration > MAX_DURATION {
            let (least, most) = (humantime::format_duration(least), humantime::format_duration(MAX_DURATION));
            return Err(entry.problem(format!("{text:?} is not a duration from {least} to {most}")));
        }
        Ok(duration)
    }
}

/// A file or directory, as the process sees it.
pub fn path(entry: &Entry) -> Read<PathBuf> {
    text(entry).map(PathBuf::from)
}

/// A file that can be read.
pub fn readable_file(entry: &Entry) -> Read<PathBuf> {
    let path = path(entry)?;
    let unreadable = |error| entry.problem(format!("cannot read {}: {error}", path.display()));
    regular(&path).map_err(unreadable)?;
    std::fs::File::open(&path).map_err(unreadable)?;
    Ok(path)
}

/// What is said of a file that can be read without waiting for anybody: a pipe has no end before somebody writes into it.
///
/// # Errors
/// The system's; what is no such file.
pub(super) fn regular(path: &Path) -> io::Result<Metadata> {
    let metadata = std::fs::metadata(path)?;
    if metadata.is_file() { Ok(metadata) } else { Err(io::Error::other("it is no regular file")) }
}

/// An address with its port.
pub fn socket_address(entry: &Entry) -> Read<SocketAddr> {
    parsed(entry, "an address with a port: write for example \"127.0.0.1:8080\" or \"[::]:8080\"")
}

/// An address.
pub fn address(entry: &Entry) -> Read<IpAddr> {
    parsed(entry, "an IP address: write for example \"0.0.0.0\" or \"::\"")
}

/// A network; an address alone is a network of one.
pub fn network(entry: &Entry) -> Read<IpNet> {
    let text = text(entry)?;
    let text = text.trim();
    networks::parse(text)
        .ok_or_else(|| entry.problem(format!("{text:?} is not a network: write for example \"10.0.0.0/8\"")))
}

/// A protocol.
pub fn protocol(entry: &Entry) -> Read<Protocol> {
    let text = text(entry)?;
    text.parse().map_err(|error: crate::model::protocol::UnknownProtocol| entry.problem(error.to_string()))
}

/// Port ranges: a text, or a list of texts.
pub fn ports(entry: &Entry) -> Read<PortSet> {
    let texts = match &entry.value {
        Value::List(items) => items.iter().map(text).collect::<Read<Vec<_>>>()?,
        _ => vec![text(entry)?],
    };
    PortSet::parse_all(texts.iter().map(String::as_str)).map_err(|error| entry.problem(error.to_string()))
}

/// A host name or address, as clients write it.
pub fn host(entry: &Entry) -> Read<String> {
    let text = text(entry)?;
    let is_label = |label: &str| {
        let is_of_it = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        !label.is_empty() && label.len() <= 63 && !label.starts_with('-') && label.chars().all(is_of_it)
    };
    let is_known = match text.parse::<IpAddr>() {
        Ok(address) => !address.is_unspecified(),
        // What has no letter was to be an address.
        Err(_) => {
            text.len() <= 253
                && text.strip_suffix('.').unwrap_or(&text).split('.').all(is_label)
                && text.contains(|c: char| c.is_ascii_alphabetic())
        }
    };
    if is_known { Ok(text) } else { Err(entry.problem(format!("{text:?} is neither a host name nor an address"))) }
}

/// The base of a URL, `http` or `https`, without a slash at its end.
pub fn http_url(entry: &Entry) -> Read<String> {
    let text = text(entry)?;
    let refused =
        || entry.problem(format!("{text:?} is not a URL: write for example \"https://harbor-announce.example.com\""));
    let uri = text.parse::<hyper::Uri>().map_err(|_| refused())?;
    let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
    if !is_web || uri.host().is_none_or(str::is_empty) || uri.query().is_some() || text.contains('@') {
        return Err(refused());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// A list of at most `limit` items, each read by `item`; one text is a list of one, and a variable has commas between
/// them.
pub fn list<T>(limit: usize, item: impl Fn(&Entry) -> Read<T>) -> impl Fn(&Entry) -> Read<Vec<T>> {
    move |entry| {
        let part = |text: &str| Entry { value: Value::Variable(text.trim().into()), ..entry.clone() };
        let items = match &entry.value {
            Value::List(items) => items.iter().map(&item).collect::<Read<Vec<_>>>()?,
            Value::Variable(text) if text.trim().is_empty() => Vec::new(),
            Value::Variable(text) => text.split(',').map(|text| item(&part(text))).collect::<Read<Vec<_>>>()?,
            Value::Text(_) => vec![item(entry)?],
            other => return Err(entry.problem(format!("this is {}, but must be a list", other.kind()))),
        };
        if items.len() > limit {
            return Err(entry.problem(format!("this list has {} items: at most {limit} are taken", items.len())));
        }
        Ok(items)
    }
}

fn parsed<T: FromStr>(entry: &Entry, wanted: &str) -> Read<T> {
    let text = text(entry)?;
    text.trim().parse().map_err(|_| entry.problem(format!("{text:?} is not {wanted}")))
}
