//! Why a database cannot be opened, and what to do about it: one list.

use std::{io::ErrorKind, time::Duration};

use super::Target;
use crate::store::OpenError;

/// The error for an operator.
pub(super) fn unavailable(target: &Target, error: &sqlx::Error) -> OpenError {
    if is_of_a_file(error)
        && let Some((path, error)) = target.unreadable_file()
    {
        return OpenError::Unavailable {
            database: target.to_string(),
            reason: format!("{}: {error}", path.display()),
            advice: "correct the name of this file in store.url, or let Harbor's user read it",
            passes: false,
        };
    }
    let reason = match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    };
    let advice = known(error).unwrap_or("check store.url, and what the server's log says");
    OpenError::Unavailable { database: target.to_string(), reason, advice, passes: passes(error) }
}

/// Whether it may be that of a file which TLS takes, rather than of the server's socket.
fn is_of_a_file(error: &sqlx::Error) -> bool {
    use ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied};
    matches!(error, sqlx::Error::Io(error) if matches!(error.kind(), IsADirectory | NotADirectory | NotFound | PermissionDenied))
}

/// The error for a schema that has not been brought up to date in time.
pub(super) fn not_migrated(target: &Target, within: Duration) -> OpenError {
    OpenError::Unavailable {
        database: target.to_string(),
        reason: format!("its schema was not brought up to date within {within:?}"),
        advice: "run `harbor migrate`, and see who has an advisory lock in pg_locks if that waits too",
        passes: true,
    }
}

/// Whether it may pass by itself: the server is not there yet, not ready, or has not answered in time.
pub(in crate::store) fn passes(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => {
            // Also a socket that is not there: the server makes it.
            !matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::InvalidData)
        }
        // Too many clients, starting or stopping, standing by for another; a lock, a statement or a transaction that took too
        // long.
        sqlx::Error::Database(error) => {
            let code = error.code();
            matches!(
                code.as_deref(),
                Some("53300" | "57P01" | "57P02" | "57P03" | "25006" | "55P03" | "57014" | "25P03")
            )
        }
        _ => false,
    }
}

/// Whether there is advice for this very error.
pub(super) fn is_known(error: &sqlx::Error) -> bool {
    known(error).is_some()
}

fn known(error: &sqlx::Error) -> Option<&'static str> {
    match error {
        sqlx::Error::Io(error) => match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::NotFound => {
                Some("start PostgreSQL, or correct host and port in store.url")
            }
            ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
                Some("see whether the server runs and a firewall lets Harbor through to it")
            }
            ErrorKind::PermissionDenied => Some("let Harbor's user reach the server's socket that store.url names"),
            ErrorKind::InvalidData if error.to_string().contains("CaUsedAsEndEntity") => Some(SELF_SIGNED),
            ErrorKind::InvalidData => Some(TLS),
            _ if error.to_string().contains("lookup address") => Some("correct the host in store.url, or DNS"),
            _ => None,
        },
        sqlx::Error::Tls(_) => Some(TLS),
        sqlx::Error::Configuration(_) => Some("correct store.url and the files that it names"),
        sqlx::Error::Database(error) => match error.code().as_deref()? {
            "28P01" => Some("correct user and password: store.password_file, or the URL, PGPASSWORD or ~/.pgpass"),
            "28000" => Some("let this user in from here by pg_hba.conf, over TLS if it says hostssl"),
            "3D000" => Some("create it: CREATE DATABASE … OWNER … ENCODING 'UTF8' TEMPLATE template0"),
            "42501" | "3F000" => Some(
                "make Harbor's user the database's owner, or let it make tables: GRANT USAGE, CREATE ON SCHEMA public TO …",
            ),
            "53300" => Some("raise max_connections of the server: each node wants six"),
            "57P03" => Some("the server starts or stops: try again in a few seconds"),
            "25006" => Some("this server stands by for another: let store.url name the one that takes changes"),
            _ => None,
        },
        _ => None,
    }
}

/// For a server that shows the certificate of an authority, as `openssl req -x509` makes it.
const SELF_SIGNED: &str = "the server shows the certificate of an authority: give it one that this authority has issued, or make \
    the self-signed one with -addext basicConstraints=critical,CA:FALSE";

/// For all else that can be wrong with TLS.
const TLS: &str = "check sslmode, sslrootcert, sslcert and sslkey in store.url against the server's certificate";
