//! `[store]`: where durable state is.

use std::fmt;

use super::{
    Secret,
    broker::{mode_advice, read_passwords},
    entry::{Entry, Problem},
    section::Section,
    value,
};

/// The file of the store within the data directory, where nothing else is written.
const DEFAULT_URL: &str = "sqlite:harbor.db";

/// Where durable state is. Shown, it has no password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// `sqlite:FILE`, which is relative to [`super::Node::data_dir`], or `postgres://…`, which may hold a password.
    pub url: Secret,
    /// The password of PostgreSQL, the first line of a file; wins over one in the URL.
    pub password: Option<Secret>,
}

impl Store {
    pub(super) fn read(mut section: Section<'_>, warnings: &mut Vec<String>) -> Self {
        let url = section.get("url", url);
        let password = section.get("password_file", |entry| {
            let path = value::path(entry)?;
            let passwords = read_passwords(&path).map_err(|reason| entry.problem(reason))?;
            warnings.extend(mode_advice(&path));
            Ok(passwords.into_iter().next().expect("a file without a password has been refused"))
        });
        let url = url.unwrap_or_else(|| Secret::new(DEFAULT_URL.into()));
        if section.has("password_file") && is_sqlite(url.expose()) {
            section
                .problem("password_file", "this stands beside a file of SQLite, which has no password: leave it out, or let store.url name PostgreSQL");
        }
        section.finish();
        Self { url, password }
    }
}

impl Store {
    /// Whether it can be that of several nodes, which answer for one another's pools.
    pub(super) fn serves_many(&self) -> bool {
        !is_sqlite(self.url.expose())
    }
}

impl fmt::Display for Store {
    /// The URL as far as its path, without a password. Parameters may hold one too.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.url.expose();
        let Some((scheme, rest)) = url.split_once("://").filter(|_| !is_sqlite(url)) else { return f.write_str(url) };
        let (place, parameters) = rest.find(['?', '#']).map_or((rest, ""), |end| rest.split_at(end));
        // A password may hold what ends an authority: all up to the last @ is user and password, wherever that is.
        match place.rsplit_once('@') {
            _ if parameters.contains('@') => write!(f, "{scheme}://…"),
            Some((login, place)) => {
                write!(f, "{scheme}://{}@{place}", login.split_once(':').map_or(login, |(user, _)| user))
            }
            None => write!(f, "{scheme}://{place}"),
        }
    }
}

fn is_sqlite(url: &str) -> bool {
    url.starts_with("sqlite:")
}

/// The text is not shown when it is refused: it may hold a password.
fn url(entry: &Entry) -> Result<Secret, Problem> {
    let text = value::text(entry)?;
    let is_postgres = ["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme));
    if is_sqlite(&text) || is_postgres {
        return Ok(Secret::new(text));
    }
    Err(entry.problem(
        "this is not the URL of a store: write for example \"sqlite:harbor.db\" or \"postgres://harbor@db.example.com/harbor\"",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_shown_without_its_password() {
        for (url, expected) in [
            ("sqlite:harbor.db", "sqlite:harbor.db"),
            ("postgres://harbor@db/ports", "postgres://harbor@db/ports"),
            ("postgres://harbor:hunter2@db:5433/ports?sslmode=require", "postgres://harbor@db:5433/ports"),
            ("postgres://harbor:hunter2/@db/ports", "postgres://harbor@db/ports"),
            ("postgres://harbor:hunter2?@db/ports", "postgres://…"),
            ("postgres://db/ports?user=harbor&password=hunter2", "postgres://db/ports"),
            ("postgres:///ports?host=/run/postgresql", "postgres:///ports"),
        ] {
            let store = Store { url: Secret::new(url.into()), password: Some(Secret::new("hunter3".into())) };
            assert_eq!(store.to_string(), expected, "{url}");
            assert!(!format!("{store:?}").contains("hunter"), "{store:?}");
        }
    }
}
