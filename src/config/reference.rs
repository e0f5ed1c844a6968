//! Every key of the configuration: its default, what it means, and when a change of it holds. `docs/configuration.md` shows
//! this table, and what it says of defaults is held against the code that reads the keys.

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// `section.key`; `NAME` stands for the name of a pool or plan.
    pub name: &'static str,
    /// What holds where nothing is written.
    pub default: Default,
    /// When a change holds.
    pub change: Change,
    /// What it means, with the marks of Markdown.
    pub meaning: &'static str,
}

/// What holds where a key is not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Default {
    /// This value, as it would be written.
    Value(&'static str),
    /// What these words say, with the marks of Markdown.
    Words(&'static str),
    /// Nothing.
    Absent,
    /// It has to be written, where its section is.
    Needed,
}

/// When a change holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// At the next start.
    Restart,
    /// When the file is read again, by SIGHUP.
    Reload,
    /// At once, on all nodes, by `harbor config set`; by SIGHUP too.
    Live,
}

impl Change {
    /// In a word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Reload => "reload",
            Self::Live => "live",
        }
    }
}

impl Key {
    /// The one of that name in a section of a configuration, such as `pools.games`.
    #[must_use]
    pub fn of(section: &str, key: &str) -> Option<&'static Self> {
        KEYS.iter().find(|known| {
            let (general, name) = known.parts();
            name == key
                && match general.strip_suffix(".NAME") {
                    Some(family) => {
                        section.strip_prefix(family).is_some_and(|rest| rest.len() > 1 && rest.starts_with('.'))
                    }
                    None => section == general,
                }
        })
    }

    /// The section and the key in it.
    #[must_use]
    pub fn parts(&self) -> (&'static str, &'static str) {
        self.name.rsplit_once('.').expect("every key is in a section")
    }

    /// Its row in the documentation.
    #[must_use]
    pub fn row(&self) -> String {
        let Self { name, default, change, meaning } = self;
        let default = match default {
            Default::Value(value) => format!("`{value}`"),
            Default::Words(words) => (*words).to_owned(),
            Default::Absent => "none".to_owned(),
            Default::Needed => "none, needed".to_owned(),
        };
        format!("| `{name}` | {default} | {} | {meaning} |", change.as_str())
    }
}

const fn key(name: &'static str, default: Default, change: Change, meaning: &'static str) -> Key {
    Key { name, default, change, meaning }
}

/// All keys, in the order of the documentation.
pub const KEYS: &[Key] = &[
    key(
        "broker.listen",
        Default::Value(r#""127.0.0.1:8080""#),
        Change::Restart,
        "address and port. Beyond loopback without TLS there is a warning: put a proxy with TLS in front",
    ),
    key("broker.username", Default::Value(r#""harbor""#), Change::Reload, "what the platform logs in as"),
    key(
        "broker.password",
        Default::Needed,
        Change::Reload,
        "one, or a list: all are valid, for rotation. That of the example is warned of",
    ),
    key(
        "broker.password_file",
        Default::Absent,
        Change::Reload,
        "instead of `password`: one a line. Mode 0600 is advised by a warning",
    ),
    key(
        "broker.tls.certificate",
        Default::Absent,
        Change::Restart,
        "certificate with its chain, PEM. Read again on SIGHUP",
    ),
    key("broker.tls.private_key", Default::Absent, Change::Restart, "its private key, PEM"),
    key(
        "broker.tls.client_ca",
        Default::Absent,
        Change::Restart,
        "clients must show a certificate of this authority, PEM",
    ),
    key(
        "announce.listen",
        Default::Needed,
        Change::Restart,
        "address and port. No proxy in front: an app announces the address that its request comes from",
    ),
    key("announce.public_url", Default::Needed, Change::Restart, "how apps reach it; shown in credentials"),
    key("announce.tls.certificate", Default::Absent, Change::Restart, "needed unless it listens on loopback"),
    key("announce.tls.private_key", Default::Absent, Change::Restart, "needed unless it listens on loopback"),
    key("admin.listen", Default::Value(r#""127.0.0.1:8081""#), Change::Restart, "address and port"),
    key(
        "admin.token_file",
        Default::Words("`admin.token` in `data_dir`"),
        Change::Restart,
        "where the token is; made once, mode 0600, when it is not there. Must be set when `admin.listen` is beyond loopback",
    ),
    key(
        "admin.metrics_public",
        Default::Words("true on loopback, else false"),
        Change::Restart,
        "whether `/metrics` and `/metrics/instances` need no token",
    ),
    key(
        "admin.metrics_token_file",
        Default::Absent,
        Change::Restart,
        "where a token is that shows the metrics and nothing else, for Prometheus; made once, mode 0600, when it is not there",
    ),
    key(
        "admin.metrics_instances",
        Default::Value("false"),
        Change::Restart,
        "whether `/metrics` has the dozen series of each service instance too, which `/metrics/instances` always has: see [metrics](metrics.md#of-each-service-instance)",
    ),
    key(
        "store.url",
        Default::Value(r#""sqlite:harbor.db""#),
        Change::Restart,
        r#"a file, or `"postgres://harbor@db.example.com/harbor?sslmode=verify-full"`: see the [operator's guide](operator-guide.md#postgresql). Nothing shows a password that is in it"#,
    ),
    key(
        "store.password_file",
        Default::Absent,
        Change::Restart,
        "PostgreSQL's password: the first line of this file, mode 0600. It wins over a password in `url`, `PGPASSWORD` and `~/.pgpass`",
    ),
    key(
        "nats.servers",
        Default::Value("[]"),
        Change::Restart,
        "URLs, `nats://` or `tls://`. None: announcements come over HTTP only",
    ),
    key(
        "nats.user",
        Default::Absent,
        Change::Restart,
        "with `password`; at most one of the four ways to log in can be set",
    ),
    key("nats.password", Default::Absent, Change::Restart, "with `user`"),
    key("nats.token", Default::Absent, Change::Restart, "a token"),
    key("nats.nkey_seed_file", Default::Absent, Change::Restart, "file with the seed of a key"),
    key("nats.credentials_file", Default::Absent, Change::Restart, "file with a user's JWT and seed"),
    key("nats.tls.ca", Default::Absent, Change::Restart, "authority of the servers, PEM"),
    key("nats.tls.certificate", Default::Absent, Change::Restart, "Harbor's own certificate, with `private_key`"),
    key("nats.tls.private_key", Default::Absent, Change::Restart, "its private key"),
    key(
        "harbor_node.id",
        Default::Value(r#""harbor_node_1""#),
        Change::Restart,
        "its name, of its own on each node; shown as `node_id` in credentials",
    ),
    key(
        "harbor_node.pools",
        Default::Words("every pool of the file"),
        Change::Reload,
        "the pools it serves. Their ranges may not overlap",
    ),
    key(
        "harbor_node.listen",
        Default::Value(r#"["::"]"#),
        Change::Restart,
        r#"addresses that ports are bound on; `"::"` takes IPv4 too, and falls back to `0.0.0.0`. One that this machine does not have yet, as a virtual one on a standby, is bound all the same"#,
    ),
    key(
        "harbor_node.data_dir",
        Default::Value(r#""./harbor-data""#),
        Change::Restart,
        "its state; made with mode 0700",
    ),
    key(
        "harbor_node.port_range",
        Default::Value(r#""35000-40000""#),
        Change::Live,
        r#"ports, 1024 and above: `"35000-40000"`, `"35000-35999, 37000"`, or a list of such texts"#,
    ),
    key(
        "harbor_node.host",
        Default::Words("the machine's own address, when there is no `hostname` either"),
        Change::Live,
        "internal address, shown in credentials",
    ),
    key("harbor_node.hostname", Default::Absent, Change::Live, "internal name"),
    key(
        "harbor_node.host_external",
        Default::Absent,
        Change::Live,
        "public address. Without both external ones the port is not public",
    ),
    key("harbor_node.hostname_external", Default::Absent, Change::Live, "public name"),
    key("harbor_node.int_port", Default::Value("4100"), Change::Live, "the port that an app is told to listen on"),
    key("harbor_node.quarantine", Default::Value(r#""15m""#), Change::Live, "how long a freed port rests"),
    key(
        "harbor_node.retired",
        Default::Value("false"),
        Change::Live,
        "whether the pool gives out no more ports; what has one keeps it",
    ),
    key(
        "harbor_node.cut_off_after",
        Default::Value(r#""5m""#),
        Change::Restart,
        "for how long the node may reach neither its store nor NATS before `/readyz` says that it is not ready. It goes on forwarding all the same",
    ),
    key("pools.NAME.port_range", Default::Needed, Change::Live, "as above"),
    key("pools.NAME.host", Default::Absent, Change::Live, "this or `hostname` is needed"),
    key("pools.NAME.hostname", Default::Absent, Change::Live, "this or `host` is needed"),
    key("pools.NAME.host_external", Default::Absent, Change::Live, "as above"),
    key("pools.NAME.hostname_external", Default::Absent, Change::Live, "as above"),
    key("pools.NAME.int_port", Default::Value("4100"), Change::Live, "as above"),
    key("pools.NAME.quarantine", Default::Value(r#""15m""#), Change::Live, "as above"),
    key("pools.NAME.retired", Default::Value("false"), Change::Live, "as above"),
    key(
        "plans.NAME.pool",
        Default::Value(r#""default""#),
        Change::Live,
        "where its ports come from; with SQLite this node must serve it",
    ),
    key(
        "plans.NAME.protocol",
        Default::Words("the user's choice"),
        Change::Live,
        r#"`"tcp"`, `"udp"` or `"both"` fixes it"#,
    ),
    key("plans.NAME.description", Default::Words("made of the above"), Change::Live, "shown by `cf marketplace`"),
    key("plans.NAME.choose_port", Default::Value("true"), Change::Live, "whether a user may ask for a particular port"),
    key(
        "plans.NAME.match_app",
        Default::Value("true"),
        Change::Live,
        "whether a user may let `router.register` of a bound app make backends",
    ),
    key("plans.NAME.max_connections", Default::Absent, Change::Live, "the most that a user may ask for"),
    key("plans.NAME.idle_timeout", Default::Absent, Change::Live, "the longest that a user may ask for"),
    key(
        "discovery.sources",
        Default::Value(r#"["harbor", "router"]"#),
        Change::Restart,
        r#"subjects listened to; also `"service-discovery"`, the platform's internal routes"#,
    ),
    key(
        "discovery.domain",
        Default::Absent,
        Change::Live,
        "`p<port>.<domain>` and `<service instance id>.<domain>` name service instances; nobody else may map routes in it",
    ),
    key(
        "discovery.stale_after",
        Default::Value(r#""120s""#),
        Change::Live,
        "the longest that a backend lives without being announced again",
    ),
    key(
        "discovery.prune_every",
        Default::Value(r#""30s""#),
        Change::Live,
        "how often those that have not been are looked for",
    ),
    key(
        "discovery.prune_suspend_max",
        Default::Value(r#""10m""#),
        Change::Live,
        "the longest that nothing is pruned while NATS is away",
    ),
    key(
        "discovery.backend_networks",
        Default::Value(r#"["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"]"#),
        Change::Live,
        "where backends may be",
    ),
    key("discovery.backend_deny", Default::Value("[]"), Change::Live, "taken out of the above"),
    key(
        "discovery.cell_networks",
        Default::Value("[]"),
        Change::Live,
        "Diego's cells: a backend there is believed only where `router.register` has given its address to the binding's app",
    ),
    key(
        "discovery.token_networks",
        Default::Value("[]"),
        Change::Live,
        "where a token may announce a host other than the caller",
    ),
    key("discovery.max_backends", Default::Value("256"), Change::Restart, "per service instance"),
    key(
        "discovery.trusted.networks",
        Default::Needed,
        Change::Reload,
        "a list of sections `[[discovery.trusted]]`: announced hosts that are believed without app or token",
    ),
    key("discovery.trusted.service_instances", Default::Needed, Change::Reload, r#"for these ids, or `["*"]` for all"#),
    key("forwarder.workers", Default::Value("0"), Change::Restart, "threads; 0: one per core"),
    key("forwarder.connect_timeout", Default::Value(r#""5s""#), Change::Live, "for one connect to a backend"),
    key(
        "forwarder.idle_timeout_tcp",
        Default::Value(r#""1h""#),
        Change::Live,
        "silence that ends a connection, unless the service instance says otherwise",
    ),
    key(
        "forwarder.idle_timeout_udp",
        Default::Value(r#""60s""#),
        Change::Live,
        "silence that ends a session, unless the service instance says otherwise",
    ),
    key(
        "forwarder.max_connections_per_port",
        Default::Value("4096"),
        Change::Live,
        "TCP connections, unless the service instance says otherwise",
    ),
    key(
        "forwarder.max_udp_sessions_per_port",
        Default::Value("16384"),
        Change::Live,
        "UDP sessions, unless the service instance says otherwise",
    ),
    key(
        "forwarder.max_sockets",
        Default::Value("0"),
        Change::Live,
        "sockets of all ports together; 0: the descriptor limit less 512 and the listeners",
    ),
    key(
        "forwarder.proxy_from",
        Default::Value("[]"),
        Change::Live,
        "balancers in front, whose PROXY header is required and believed",
    ),
    key(
        "forwarder.drain_wait",
        Default::Value(r#""0s""#),
        Change::Live,
        "on SIGTERM: not ready at once, but accepting this long",
    ),
    key(
        "forwarder.drain_timeout",
        Default::Value(r#""30s""#),
        Change::Live,
        "then connections may take this long to finish; also those of a draining backend",
    ),
    key("log.format", Default::Value(r#""text""#), Change::Restart, r#"or `"json"`: one object a line"#),
    key(
        "log.level",
        Default::Value(r#""info""#),
        Change::Live,
        r#"`error`, `warn`, `info`, `debug`, `trace`; or `"info,harbor::discovery=debug"`. A level alone is Harbor's: libraries say no more than `info`"#,
    ),
    key(
        "log.directory",
        Default::Absent,
        Change::Restart,
        "`harbor_gateway.log` (broker), `harbor_node.log` (all but the others), `harbor_proxy_connector.log` (forwarder) and `harbor_store.log` (store), beside standard output",
    ),
];
