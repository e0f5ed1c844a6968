//! File and environment in, a checked configuration in the words of the model out.
//!
//! Every key is read by the one function that also knows its default and its limits; all problems are found in one
//! go, each with its place. What the keys mean is in `docs/configuration.md`, whose list a test holds against
//! [`keys`].

use std::{
    collections::BTreeSet,
    fmt,
    io::Read as _,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    model::{plan::Plan, setting::Setting},
    telemetry,
};

mod admin;
mod announce;
mod broker;
mod discovery;
mod entry;
mod explain;
mod forwarder;
mod log;
mod nats;
mod node;
mod plans;
mod ports_file;
mod reference;
mod secret;
mod section;
mod store;
mod summary;
mod value;

pub use admin::Admin;
pub use announce::Announce;
pub use broker::{Broker, TlsFiles};
pub use discovery::{Discovery, Trusted, TrustedFor};
pub use entry::{Origin, Problem};
pub use explain::Explained;
pub use forwarder::Forwarder;
pub use nats::{Nats, NatsLogin, NatsTls};
pub use node::{DEFAULT_POOL, Node, pool_of};
pub use ports_file::{PortsFile, Resolved};
pub use reference::{Change, Default, KEYS, Key};
pub use secret::Secret;
pub use store::Store;

use entry::{Table, VARIABLE_PREFIX, VARIABLE_SEPARATOR};
use section::{Findings, Section};

/// Largest configuration file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// What a configuration is made of.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The file, if one was named.
    pub file: Option<PathBuf>,
    /// The environment; variables that do not begin with `HARBOR_` are not looked at.
    pub variables: Vec<(String, String)>,
    /// Live settings, as the store has them: each wins over file and environment. Those of other scopes, and of pools and
    /// plans that the file does not have, are not looked at.
    pub settings: Vec<Setting>,
    /// The machine's own address: what clients of the pool `default` are told when nothing is written.
    pub own_address: IpAddr,
}

/// The text of a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// What to call the file in messages.
    name: String,
    text: String,
}

impl Text {
    /// Reads the file of `sources`; none where none was named.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(sources: &Sources) -> Result<Option<Self>, ConfigError> {
        let Some(path) = &sources.file else { return Ok(None) };
        let name = path.display().to_string();
        match read_file(path, "name another file by --config or HARBOR_CONFIG") {
            Ok(text) => Ok(Some(Self { name, text })),
            Err(message) => Err(ConfigError { problems: vec![Problem { at: Origin::File(name.into()), message }] }),
        }
    }
}

/// A checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The Open Service Broker API.
    pub broker: Broker,
    /// HTTP announcements; none: off.
    pub announce: Option<Announce>,
    /// The operators' API.
    pub admin: Admin,
    /// Where durable state is.
    pub store: Store,
    /// NATS; none: announcements come over HTTP only.
    pub nats: Option<Nats>,
    /// This node and its pools.
    pub node: Node,
    /// The catalog: the built-in plans first.
    pub plans: Vec<Plan>,
    /// Which announcements are believed.
    pub discovery: Discovery,
    /// The data plane.
    pub forwarder: Forwarder,
    /// What is logged.
    pub log: telemetry::log::Settings,
    /// The live settings that are in it: those of [`Sources::settings`].
    pub settings: Vec<Setting>,
    /// What is allowed, but is likely a mistake. For the log.
    pub warnings: Vec<String>,
}

/// All that is wrong with a configuration; its text has one line for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Never empty; those of the file by place, then those of the environment.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// Reads and checks a configuration.
///
/// # Errors
/// All that is wrong with it.
pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
    load_from(Text::of(sources)?.as_ref(), sources).map(|(config, _)| config)
}

/// The same with what was read of the file, and what each key is.
///
/// # Errors
/// All that is wrong with it.
pub fn load_from(file: Option<&Text>, sources: &Sources) -> Result<(Config, Vec<Explained>), ConfigError> {
    match file {
        Some(Text { name, text }) => check_explained(text, Some(name), sources),
        None => check_explained("", None, sources),
    }
}

/// The same with the text of the file at hand; `name` is what to call it in messages.
///
/// # Errors
/// All that is wrong with it.
pub fn check(text: &str, name: Option<&str>, sources: &Sources) -> Result<Config, ConfigError> {
    check_explained(text, name, sources).map(|(config, _)| config)
}

fn check_explained(text: &str, name: Option<&str>, sources: &Sources) -> Result<(Config, Vec<Explained>), ConfigError> {
    let (mut table, origin) = match name.map(Arc::from) {
        None => (Table::new(), Origin::Nowhere),
        Some(name) => {
            let table = entry::parse(text, entry::places(&name, text)).map_err(|problems| ConfigError { problems })?;
            (table, Origin::File(name))
        }
    };
    entry::overlay(&mut table, &sources.variables);
    let written = explain::explain(&table, sources.own_address);
    entry::overlay_settings(&mut table, &sources.settings);
    let explained = explain::explain_over(written, &table, sources.own_address);
    let findings = Findings::default();
    let config = read(Section::root(table, origin, &findings), sources.own_address);
    find_near_misses(&sources.variables, &findings);
    let problems = findings.into_problems();
    match config {
        Some(config) if problems.is_empty() => Ok((Config { settings: sources.settings.clone(), ..config }, explained)),
        _ => {
            assert!(!problems.is_empty(), "what cannot be read has been reported");
            Err(ConfigError { problems })
        }
    }
}

/// Every key there is, as `section.key`; `NAME` stands for the name of a pool or plan.
#[must_use]
pub fn keys() -> BTreeSet<String> {
    let every_section = "[announce]\n[pools.NAME]\n[plans.NAME]\n[[discovery.trusted]]\n";
    let table = entry::parse(every_section, |_| Origin::Nowhere).unwrap_or_else(|_| unreachable!("it is valid TOML"));
    let findings = Findings::default();
    read(Section::root(table, Origin::Nowhere, &findings), IpAddr::from([127, 0, 0, 1]));
    findings.keys()
}

/// The one list of sections.
fn read(mut root: Section<'_>, own_address: IpAddr) -> Option<Config> {
    let mut warnings = Vec::new();
    let broker = Broker::read(root.section("broker"), &mut warnings);
    let has_announce = root.has("announce");
    let announce = root.section("announce");
    let announce = if has_announce { Some(Announce::read(announce)) } else { None };
    let admin = Admin::read(root.section("admin"));
    let store = Store::read(root.section("store"), &mut warnings);
    let nats = Nats::read(root.section("nats"));
    let more_pools = root.named_sections("pools");
    let (node, pools) = Node::read(root.section("harbor_node"), more_pools, own_address);
    let offered = plans::Offered { served: &node.pools, defined: &pools, of_others_too: store.serves_many() };
    let plans = plans::read(root.named_sections("plans"), &offered, &mut warnings);
    let discovery = Discovery::read(root.section("discovery"));
    let forwarder = Forwarder::read(root.section("forwarder"));
    let log = log::read(root.section("log"));
    root.finish();
    let config = Config {
        broker: broker?,
        announce: match announce {
            None => None,
            Some(announce) => Some(announce?),
        },
        admin,
        store,
        nats,
        node,
        plans,
        discovery,
        forwarder,
        log,
        settings: Vec::new(),
        warnings,
    };
    Some(warned_of_unheard_announcements(warned_of_own_ports(config)))
}

/// Nodes tell one another of announcements over HTTP by NATS alone.
fn warned_of_unheard_announcements(mut config: Config) -> Config {
    if config.announce.is_some() && config.nats.is_none() && config.store.serves_many() {
        config.warnings.push(
            "announce.listen without nats.servers: an announcement over HTTP reaches only the node that took it; give \
             all nodes of the store one NATS, or run one node alone"
                .into(),
        );
    }
    config
}

/// Harbor's own APIs take ports too: one in a pool's range can never be given out.
fn warned_of_own_ports(mut config: Config) -> Config {
    let announce = config.announce.as_ref().map(|announce| ("announce.listen", announce.listen));
    let listens = [("broker.listen", config.broker.listen), ("admin.listen", config.admin.listen)];
    for (key, listen) in listens.into_iter().chain(announce) {
        if let Some(pool) = config.node.pools.iter().find(|pool| pool.ports.contains(listen.port())) {
            config.warnings.push(format!(
                "{key} takes port {}, which is in the range of pool {}: nobody can be given it",
                listen.port(),
                pool.name
            ));
        }
    }
    config
}

fn read_file(path: &Path, advice: &str) -> Result<String, String> {
    let unreadable = |error: std::io::Error| format!("cannot read it: {error}; {advice}");
    let mut bytes = Vec::new();
    // Not by its size: what comes out of a pipe or a device has none.
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("it has more than {MAX_FILE_BYTES} bytes: {advice}"));
    }
    String::from_utf8(bytes).map_err(|_| format!("it is no text in UTF-8: {advice}"))
}

/// `HARBOR_BROKER_PASSWORD` would silently do nothing. Other variables without the separator may be anybody's.
fn find_near_misses(variables: &[(String, String)], findings: &Findings) {
    let keys = findings.keys();
    for (name, _) in variables {
        let Some(rest) = name.strip_prefix(VARIABLE_PREFIX).filter(|rest| !rest.contains(VARIABLE_SEPARATOR)) else {
            continue;
        };
        let meant = keys.iter().find(|key| key.replace('.', "_").to_uppercase() == rest);
        if let Some(key) = meant {
            let right = key.replace('.', VARIABLE_SEPARATOR).to_uppercase();
            findings.add(Problem {
                at: Origin::Variable(name.as_str().into()),
                message: format!("this sets nothing: write {VARIABLE_PREFIX}{right}"),
            });
        }
    }
}

#[cfg(test)]
mod tests;
