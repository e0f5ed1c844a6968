//! From `store.url` to a database and how to get in.

use std::{env, fmt, fs, io, path::PathBuf, str::FromStr as _, sync::Arc, time::Duration};

use percent_encoding::percent_decode_str;
use sqlx::{
    ConnectOptions as _, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};

use crate::store::{OpenError, engine::Sql};

/// What connections are called in PostgreSQL's own lists.
const APPLICATION_NAME: &str = "harbor";

/// The parameters of a URL that mean something here, as libpq calls them. Any other would be ignored.
const PARAMETERS: &[&str] =
    &["dbname", "host", "options", "password", "port", "sslcert", "sslkey", "sslmode", "sslrootcert", "user"];

/// Those that name files for TLS, and the variables that do where the URL does not.
const FILES: [(&str, &str); 3] = [("sslrootcert", "PGSSLROOTCERT"), ("sslcert", "PGSSLCERT"), ("sslkey", "PGSSLKEY")];

/// A database, and how to get in. Shown, it is the database alone.
#[derive(Clone)]
pub(in crate::store) struct Target {
    options: Arc<PgConnectOptions>,
    /// The files that TLS takes.
    files: Arc<[PathBuf]>,
    /// The longest silence.
    pub(super) answer_within: Duration,
}

impl Target {
    /// Reads a URL. What it does not say comes from the environment (`PGHOST`, `PGPASSWORD`, …) and `.pgpass`, as for
    /// `psql`; a `password` wins over all of them.
    pub(in crate::store) fn new(url: &str, password: Option<&str>, answer_within: Duration) -> Result<Self, OpenError> {
        let bad = |problem: String| OpenError::PostgresUrl { problem };
        if let Some(unknown) = names(url).find(|name| !PARAMETERS.contains(name)) {
            return Err(bad(format!("has the parameter {unknown:?}, which is none of {}", PARAMETERS.join(", "))));
        }
        let with_host = with_host(url);
        // The error of the driver may quote what must not be shown.
        let mut options = PgConnectOptions::from_str(with_host.as_deref().unwrap_or(url))
            .map_err(|_| bad("is not a URL of PostgreSQL, or a parameter of it has no such value".into()))?
            .application_name(APPLICATION_NAME)
            // A server does not mind, but PgBouncer refuses to pass it on; Harbor stores no fractions.
            .extra_float_digits(None)
            .disable_statement_logging();
        // As libpq: whoever names an authority wants it to be asked.
        if matches!(options.get_ssl_mode(), PgSslMode::Require) && names(url).any(|name| name == "sslrootcert") {
            options = options.ssl_mode(PgSslMode::VerifyCa);
        }
        if with_host.is_some() && !names(url).any(|name| name == "host") {
            options = options.host(PgConnectOptions::new_without_pgpass().get_host());
        }
        if let Some(password) = password {
            options = options.password(password);
        }
        Ok(Self { options: Arc::new(options), files: files(url).into(), answer_within })
    }

    /// Connects.
    pub(super) async fn connect(&self) -> Sql<PgConnection> {
        self.options.connect().await
    }

    /// How to connect.
    pub(super) fn options(&self) -> PgConnectOptions {
        PgConnectOptions::clone(&self.options)
    }

    /// The first file for TLS that cannot be read, and why. The driver's error does not name it.
    pub(super) fn unreadable_file(&self) -> Option<(PathBuf, io::Error)> {
        let is_without = matches!(self.options.get_ssl_mode(), PgSslMode::Disable | PgSslMode::Allow);
        if is_without || self.address().is_none() {
            return None;
        }
        self.files.iter().find_map(|path| fs::read(path).err().map(|error| (path.clone(), error)))
    }

    /// Where the server is; none when it is a socket of this machine.
    pub(in crate::store) fn address(&self) -> Option<(&str, u16)> {
        let host = self.options.get_host();
        let is_socket = self.options.get_socket().is_some() || host.starts_with('/');
        (!is_socket).then(|| (host.trim_start_matches('[').trim_end_matches(']'), self.options.get_port()))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port) = (self.options.get_host(), self.options.get_port());
        let database = self.options.get_database().unwrap_or(self.options.get_username());
        match self.options.get_socket() {
            Some(socket) => write!(f, "the database {database} at {}", socket.display()),
            None if host.starts_with('/') => write!(f, "the database {database} at {host}"),
            None => write!(f, "the database {database} at {host}:{port}"),
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `postgres://harbor@/ports` with a host: it has none where the parameter `host` names a socket, or the machine's own is
/// meant. The driver wants one there.
fn with_host(url: &str) -> Option<String> {
    let start = url.find("://")? + "://".len();
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |length| start + length);
    url[start..end].ends_with('@').then(|| format!("{}localhost{}", &url[..end], &url[end..]))
}

/// The names of a URL's parameters, as they are written.
fn names(url: &str) -> impl Iterator<Item = &str> {
    parameters(url).map(|(name, _)| name)
}

/// Names and values of a URL's parameters, as they are written.
fn parameters(url: &str) -> impl Iterator<Item = (&str, &str)> {
    let url = url.split_once('#').map_or(url, |(url, _)| url);
    let query = url.split_once('?').map_or("", |(_, query)| query);
    query.split('&').filter(|part| !part.is_empty()).map(|part| part.split_once('=').unwrap_or((part, "")))
}

/// The files that a URL, or the environment, names for TLS.
fn files(url: &str) -> Vec<PathBuf> {
    let named = |(parameter, variable): (&str, &str)| {
        // Of several the last one counts.
        match parameters(url).filter(|(name, _)| *name == parameter).last() {
            Some((_, value)) => Some(percent_decode_str(&value.replace('+', " ")).decode_utf8_lossy().into_owned()),
            None => env::var(variable).ok(),
        }
    };
    // The driver takes a certificate itself too.
    let files = FILES.into_iter().filter_map(named).filter(|value| !value.trim_start().starts_with("-----BEGIN"));
    files.map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ANSWER_WITHIN;

    fn target(url: &str) -> Target {
        Target::new(url, Some("from a file"), ANSWER_WITHIN).unwrap()
    }

    #[test]
    fn what_is_shown_of_a_database_is_where_it_is() {
        for (url, expected) in [
            ("postgres://harbor:hunter2@db.example.com/ports", "the database ports at db.example.com:5432"),
            ("postgresql://harbor@10.0.0.7:6432/ports?sslmode=require", "the database ports at 10.0.0.7:6432"),
            ("postgres://harbor@/ports?host=/run/postgresql", "the database ports at /run/postgresql"),
            ("postgres://%2Frun%2Fpostgresql/ports?password=hunter2", "the database ports at /run/postgresql"),
            ("postgres://harbor@[fd00::7]/ports", "the database ports at [fd00::7]:5432"),
        ] {
            let target = target(url);
            assert_eq!(target.to_string(), expected, "{url}");
            assert!(!format!("{target:?}").contains("hunter2"), "{url}");
        }
    }

    #[test]
    fn the_address_of_a_server_is_told_and_of_a_socket_is_not() {
        for (url, expected) in [
            ("postgres://harbor@db.example.com/ports", Some(("db.example.com", 5432))),
            ("postgres://harbor@[fd00::7]:6432/ports", Some(("fd00::7", 6432))),
            ("postgres://harbor@/ports?host=/run/postgresql", None),
            ("postgres://%2Frun%2Fpostgresql/ports", None),
        ] {
            assert_eq!(target(url).address(), expected, "{url}");
        }
    }

    #[test]
    fn files_are_those_that_the_url_names_in_the_end() {
        let url = "postgres://h/d?sslrootcert=/a.pem&sslkey=%2Fetc/my+key&sslrootcert=/b.pem&sslcert=-----BEGIN CERT";
        assert_eq!(files(url), ["/b.pem", "/etc/my key"].map(PathBuf::from));
    }

    #[test]
    fn naming_an_authority_wants_it_asked() {
        for (parameters, expected) in [
            ("sslmode=require", "Require"),
            ("sslmode=require&sslrootcert=/ca.pem", "VerifyCa"),
            ("sslmode=verify-full&sslrootcert=/ca.pem", "VerifyFull"),
        ] {
            let mode = target(&format!("postgres://harbor@db/ports?{parameters}")).options.get_ssl_mode();
            assert_eq!(format!("{mode:?}"), expected, "{parameters}");
        }
    }

    #[test]
    fn a_url_that_would_not_mean_what_it_says_is_refused_without_being_shown() {
        for (url, expected) in [
            ("postgres://h/d?connect_timeout=5", "has the parameter \"connect_timeout\", which is none of dbname, "),
            (
                "postgres://u:hunter2@h/d?sslmode=on",
                "is not a URL of PostgreSQL, or a parameter of it has no such value",
            ),
            ("postgres://u:hunter2@h:port/d", "is not a URL of PostgreSQL"),
        ] {
            let error = Target::new(url, None, ANSWER_WITHIN).unwrap_err().to_string();
            assert!(error.starts_with(&format!("store.url {expected}")) && !error.contains("hunter2"), "{error}");
        }
    }
}
