//! `[broker]`: the Open Service Broker API.

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use super::{
    Secret,
    entry::{Entry, Problem},
    section::Section,
    value,
};

/// Largest file of passwords that is read, in bytes.
const MAX_PASSWORD_FILE_BYTES: u64 = 64 * 1024;

/// The password in `manifests/harbor.toml`, which is there to be changed.
const EXAMPLE_PASSWORD: &str = "change-me";

/// Where the platform calls, and how it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The user that the platform logs in as.
    pub username: String,
    /// All of them are valid, for rotation. Never empty.
    pub passwords: Vec<Secret>,
    /// TLS; none: a proxy in front has it.
    pub tls: Option<TlsFiles>,
}

/// The files of a listener with TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate with its chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub private_key: PathBuf,
    /// The authority that clients must have a certificate of, PEM; only the broker's listener can have one.
    pub client_ca: Option<PathBuf>,
}

impl Broker {
    pub(super) fn read(mut section: Section<'_>, warnings: &mut Vec<String>) -> Option<Self> {
        let listen = section.get("listen", value::socket_address);
        let username = section.get("username", username);
        let passwords = passwords(&mut section, warnings);
        if passwords.iter().flatten().any(|password| password.expose() == EXAMPLE_PASSWORD) {
            warnings.push(
                "broker.password is that of the example, which everybody knows: write one of your own, for example by \
                 `openssl rand -hex 16`"
                    .into(),
            );
        }
        let tls = TlsFiles::read(&mut section, |tls| tls.get("client_ca", value::readable_file));
        let listen = listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080)));
        if tls.is_none() && !section.has("tls") && !listen.ip().to_canonical().is_loopback() {
            warnings.push(format!(
                "broker.listen is {listen} without TLS: the password crosses the network readable; set broker.tls, or \
                 put a proxy with TLS in front"
            ));
        }
        section.finish();
        Some(Self { listen, username: username.unwrap_or_else(|| "harbor".into()), passwords: passwords?, tls })
    }
}

impl TlsFiles {
    /// The section `tls` of a listener's section; `client_ca` reads what only some of them have.
    pub(super) fn read(
        section: &mut Section<'_>,
        client_ca: impl FnOnce(&mut Section<'_>) -> Option<PathBuf>,
    ) -> Option<Self> {
        let written = section.has("tls");
        let mut tls = section.section("tls");
        let certificate = tls.get("certificate", value::readable_file);
        let private_key = tls.get("private_key", value::readable_file);
        let client_ca = client_ca(&mut tls);
        if written {
            for key in ["certificate", "private_key"] {
                if !tls.has(key) {
                    tls.missing(key, "TLS needs the path of a certificate and of its private_key, both PEM");
                }
            }
        }
        tls.finish();
        Some(Self { certificate: certificate?, private_key: private_key?, client_ca })
    }
}

fn username(entry: &Entry) -> Result<String, Problem> {
    let text = value::text(entry)?;
    if text.contains(':') { Err(entry.problem("a user name has no colon in HTTP Basic")) } else { Ok(text) }
}

fn passwords(section: &mut Section<'_>, warnings: &mut Vec<String>) -> Option<Vec<Secret>> {
    let passwords = section.get("password", value::secrets);
    let from_file = section.get("password_file", |entry| {
        let path = value::path(entry)?;
        let passwords = read_passwords(&path).map_err(|reason| entry.problem(reason))?;
        warnings.extend(mode_advice(&path));
        Ok(passwords)
    });
    match (section.has("password"), section.has("password_file")) {
        (false, false) => {
            section.missing("password", "set it, or password_file, or the variable HARBOR_BROKER__PASSWORD");
            None
        }
        (true, false) => passwords,
        (false, true) => from_file,
        // The environment overrides the file, also where they use different keys for the same thing.
        (true, true) if section.is_variable("password") && !section.is_variable("password_file") => passwords,
        (true, true) if section.is_variable("password_file") && !section.is_variable("password") => from_file,
        (true, true) => {
            section.problem("password_file", "this stands beside password: set only one of them");
            None
        }
    }
}

/// One password a line.
pub(super) fn read_passwords(path: &Path) -> Result<Vec<Secret>, String> {
    let unreadable = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    if value::regular(path).map_err(unreadable)?.len() > MAX_PASSWORD_FILE_BYTES {
        return Err(format!("{} is too large for a file of passwords, one a line", path.display()));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let passwords: Vec<_> =
        text.lines().map(str::trim_end).filter(|line| !line.is_empty()).map(|line| Secret::new(line.into())).collect();
    if passwords.is_empty() {
        return Err(format!("{} is empty: write a password into it, one a line", path.display()));
    }
    Ok(passwords)
}

/// What is wrong with the mode of a file of passwords.
pub(super) fn mode_advice(path: &Path) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0)
        .then(|| format!("{} has mode {mode:04o}: others may read the password; run chmod 0600 on it", path.display()))
}
