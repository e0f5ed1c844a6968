//! `[nats]`: where announcements come from. Without servers they come over HTTP only.

use std::path::PathBuf;

use super::{
    Secret,
    entry::{Entry, Problem},
    section::Section,
    value,
};

/// Most servers of one cluster.
const MAX_SERVERS: usize = 64;

/// How to reach NATS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nats {
    /// URLs, `nats://` or `tls://`. Never empty.
    pub servers: Vec<String>,
    /// How Harbor shows who it is.
    pub login: NatsLogin,
    /// TLS files, each of which may be missing.
    pub tls: NatsTls,
}

/// How a client of NATS shows who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NatsLogin {
    /// It does not.
    Anonymous,
    /// By user and password.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
    /// By a token.
    Token(Secret),
    /// By the seed of a key in a file.
    NkeySeedFile(PathBuf),
    /// By a credentials file: a user's JWT and the seed of its key.
    CredentialsFile(PathBuf),
}

/// TLS towards NATS.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NatsTls {
    /// The authority of the servers, beside those of the machine.
    pub ca: Option<PathBuf>,
    /// Harbor's own certificate, and its private key: both or none.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Nats {
    pub(super) fn read(mut section: Section<'_>) -> Option<Self> {
        let servers = section.get("servers", value::list(MAX_SERVERS, server)).unwrap_or_default();
        let login = login(&mut section);
        let tls = tls(section.section("tls"));
        section.finish();
        (!servers.is_empty()).then_some(Self { servers, login, tls })
    }
}

/// The text is not shown when it is refused: it may hold a password.
fn server(entry: &Entry) -> Result<String, Problem> {
    let text = value::text(entry)?;
    let (scheme, rest) = text.split_once("://").unwrap_or(("nats", &text));
    if rest.contains('@') {
        return Err(entry.problem("a server's URL holds no user: write nats.user and nats.password, or nats.token"));
    }
    let url = format!("{scheme}://{}", rest.trim_end_matches('/'));
    let is_server = url.parse::<hyper::Uri>().is_ok_and(|url| url.path() == "/" && url.query().is_none());
    if !matches!(scheme, "nats" | "tls") || !is_server {
        return Err(entry.problem("this is not the URL of a NATS server: write for example \"nats://10.0.0.1:4222\""));
    }
    Ok(url)
}

fn login(section: &mut Section<'_>) -> NatsLogin {
    let user = section.get("user", value::text);
    let password = section.get("password", value::secret);
    let token = section.get("token", value::secret).map(NatsLogin::Token);
    let seed = section.get("nkey_seed_file", value::readable_file).map(NatsLogin::NkeySeedFile);
    let credentials = section.get("credentials_file", value::readable_file).map(NatsLogin::CredentialsFile);
    if section.has("user") != section.has("password") {
        let (there, missing) = if section.has("user") { ("user", "password") } else { ("password", "user") };
        section.problem(there, format!("this needs nats.{missing} beside it"));
    }
    let ways: Vec<_> =
        ["user", "token", "nkey_seed_file", "credentials_file"].into_iter().filter(|key| section.has(key)).collect();
    if ways.len() > 1 {
        section.problem(ways[1], format!("this stands beside {}: set only one of them", ways[0]));
    }
    let password = user.zip(password).map(|(user, password)| NatsLogin::Password { user, password });
    password.or(token).or(seed).or(credentials).unwrap_or(NatsLogin::Anonymous)
}

fn tls(mut section: Section<'_>) -> NatsTls {
    let ca = section.get("ca", value::readable_file);
    let certificate = section.get("certificate", value::readable_file);
    let private_key = section.get("private_key", value::readable_file);
    if section.has("certificate") != section.has("private_key") {
        let (there, missing) =
            if section.has("certificate") { ("certificate", "private_key") } else { ("private_key", "certificate") };
        section.problem(there, format!("this needs nats.tls.{missing} beside it"));
    }
    section.finish();
    NatsTls { ca, identity: certificate.zip(private_key) }
}
