use std::{net::SocketAddr, time::Duration};

use super::*;
use crate::model::{
    NodeId, PoolName, Protocol, ServiceInstanceId,
    desired::ForwarderLimits,
    plan::{Caps, PlanProtocol},
    pool::{Pool, PoolNames},
};
use crate::telemetry::log::{Format, Settings};

/// A configuration in a file of that text, with variables over it.
fn load_text(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let sources = Sources { file: None, variables, settings: Vec::new(), own_address: IpAddr::from([10, 0, 0, 9]) };
    check(text, Some("harbor.toml"), &sources)
}

/// A password and more.
fn load_more(more: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    load_text(&format!("broker.password = \"hunter2\"\n{more}"), variables)
}

#[track_caller]
fn check_problems(text: &str, variables: &[(&str, &str)], expect: &[&str]) {
    let error = load_text(text, variables).expect_err("it should be refused");
    assert_eq!(error.to_string().lines().collect::<Vec<_>>(), expect, "{text}");
    assert!(!error.to_string().contains("hunter2"), "a message shows a password");
}

/// The same where the file begins with a line that sets the password.
#[track_caller]
fn check_more(more: &str, expect: &[&str]) {
    check_problems(&format!("broker.password = \"hunter2\"\n{more}"), &[], expect);
}

#[track_caller]
fn check_variable(name: &str, value: &str, expect: &str) {
    check_problems("broker.password = \"hunter2\"", &[(name, value)], &expect.lines().collect::<Vec<_>>());
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

#[test]
fn a_password_alone_is_a_configuration() {
    let default = PoolName::new("default").unwrap();
    let expect = Config {
        broker: Broker {
            listen: address("127.0.0.1:8080"),
            username: "harbor".into(),
            passwords: vec![Secret::new("hunter2".into())],
            tls: None,
        },
        announce: None,
        admin: Admin {
            listen: address("127.0.0.1:8081"),
            token_file: None,
            metrics_token_file: None,
            metrics_public: true,
            metrics_instances: false,
        },
        store: Store { url: Secret::new("sqlite:harbor.db".into()), password: None },
        nats: None,
        node: Node {
            id: NodeId::new("harbor_node_1").unwrap(),
            pools: vec![Pool {
                name: default.clone(),
                ports: "35000-40000".parse().unwrap(),
                names: PoolNames { host: Some("10.0.0.9".into()), ..PoolNames::default() },
                int_port: 4100,
                quarantine: seconds(900),
                retired: false,
            }],
            other_pools: Vec::new(),
            listen: vec!["::".parse().unwrap()],
            cut_off_after: Duration::from_secs(300),
            data_dir: "./harbor-data".into(),
        },
        plans: Plan::built_in(&default),
        discovery: Discovery {
            harbor_subjects: true,
            router_subjects: true,
            service_discovery_subjects: false,
            domain: None,
            stale_after: seconds(120),
            prune_every: seconds(30),
            prune_suspend_max: seconds(600),
            backend_networks: ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"]
                .map(|network| network.parse().unwrap())
                .into(),
            backend_deny: vec![],
            cell_networks: vec![],
            token_networks: vec![],
            max_backends: 256,
            trusted: vec![],
        },
        forwarder: Forwarder { workers: 0, limits: ForwarderLimits::default() },
        log: Settings { format: Format::Text, level: "info".into(), directory: None },
        settings: vec![],
        warnings: vec![],
    };
    assert_eq!(load_text("[broker]\npassword = \"hunter2\"", &[]), Ok(expect.clone()));
    assert_eq!(load_text("", &[("HARBOR_BROKER__PASSWORD", "hunter2")]), Ok(expect));
}

#[test]
fn every_section_is_read() {
    let config = load_text(
        r#"
        [broker]
        listen = "[::1]:18080"
        username = "platform"
        password = ["new", "old"]
        [announce]
        listen = "127.0.0.1:0"
        public_url = "https://harbor-announce.example.com/"
        [admin]
        listen = "0.0.0.0:8081"
        token_file = "/run/harbor/admin.token"
        metrics_token_file = "/run/harbor/metrics.token"
        metrics_instances = true
        [store]
        url = "sqlite:/srv/harbor.db"
        [nats]
        servers = ["nats://10.0.0.1:4222", "10.0.0.2:4222", "tls://nats.example.com"]
        token = "hunter2"
        [harbor_node]
        id = "z1"
        pools = ["games", "default"]
        listen = ["10.0.0.5", "fd00::5"]
        data_dir = "/var/lib/harbor"
        port_range = ["35000 - 35999", "37000"]
        hostname = "harbor.internal"
        host_external = "192.0.43.10"
        hostname_external = "ext-services.example.com"
        int_port = 4000
        quarantine = "0s"
        [pools.games]
        port_range = "50000-50999, 51001"
        host = "10.0.0.6"
        quarantine = "1h 30m"
        [pools.elsewhere]
        port_range = "50000-50999"
        host = "10.0.0.7"
        [plans.big]
        pool = "games"
        protocol = "both"
        description = "Large"
        choose_port = false
        match_app = false
        max_connections = 20_000
        idle_timeout = "2h"
        [plans.open]
        [discovery]
        sources = ["harbor"]
        cell_networks = []
        domain = "Harbor.Example.com."
        stale_after = "60s"
        prune_every = "1s"
        prune_suspend_max = "0s"
        backend_networks = "10.1.2.3/8"
        backend_deny = ["10.0.0.1"]
        token_networks = ["10.0.1.0/24"]
        max_backends = 3
        [[discovery.trusted]]
        networks = ["10.0.16.0/24"]
        service_instances = ["a", "b"]
        [[discovery.trusted]]
        networks = ["10.0.17.0/24"]
        service_instances = ["*"]
        [forwarder]
        workers = 2
        connect_timeout = "1s"
        idle_timeout_tcp = "10m"
        idle_timeout_udp = "30s"
        max_connections_per_port = 10
        max_udp_sessions_per_port = 20
        max_sockets = 30
        proxy_from = ["10.0.0.0/24"]
        drain_wait = "5s"
        drain_timeout = "1m"
        [log]
        format = "json"
        level = "info,harbor::discovery=debug"
        directory = "/var/log/harbor"
        "#,
        &[],
    )
    .unwrap();
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
    assert_eq!(config.broker.listen, address("[::1]:18080"));
    assert_eq!(config.broker.passwords, ["new", "old"].map(|text| Secret::new(text.into())));
    let announce = config.announce.unwrap();
    assert_eq!((announce.public_url.as_str(), announce.tls), ("https://harbor-announce.example.com", None));
    assert_eq!(config.admin.token_file, Some("/run/harbor/admin.token".into()));
    assert_eq!(config.admin.metrics_token_file, Some("/run/harbor/metrics.token".into()));
    assert!(config.admin.metrics_instances);
    assert!(!config.admin.metrics_public, "beyond loopback metrics are not public by default");
    assert_eq!(config.store.to_string(), "sqlite:/srv/harbor.db");
    let nats = config.nats.unwrap();
    assert_eq!(nats.servers, ["nats://10.0.0.1:4222", "nats://10.0.0.2:4222", "tls://nats.example.com"]);
    assert_eq!(nats.login, NatsLogin::Token(Secret::new("hunter2".into())));
    let [default, games] = &config.node.pools[..] else { panic!("two pools are served") };
    assert_eq!(default.ports.to_string(), "35000-35999, 37000");
    let names = PoolNames {
        host: None,
        hostname: Some("harbor.internal".into()),
        host_external: Some("192.0.43.10".into()),
        hostname_external: Some("ext-services.example.com".into()),
    };
    assert_eq!((&default.names, default.int_port, default.quarantine), (&names, 4000, Duration::ZERO));
    assert_eq!((games.ports.to_string().as_str(), games.int_port), ("50000-50999, 51001", 4100));
    assert_eq!(games.quarantine, seconds(5400));
    let [_, _, _, _, big, open] = &config.plans[..] else { panic!("four built-in plans and two more") };
    assert_eq!(
        *big,
        Plan {
            id: Plan::derived_id("big"),
            name: "big".into(),
            description: "Large".into(),
            pool: PoolName::new("games").unwrap(),
            protocol: PlanProtocol::Fixed(Protocol::Both),
            choose_port: false,
            match_app: false,
            caps: Caps { max_connections: Some(20_000), idle_timeout: Some(seconds(7200)) },
        }
    );
    assert_eq!(
        (open.protocol, open.description.as_str()),
        (PlanProtocol::ByName, "A TCP or UDP port of the pool default")
    );
    assert_eq!(
        config.discovery,
        Discovery {
            harbor_subjects: true,
            router_subjects: false,
            service_discovery_subjects: false,
            domain: Some("harbor.example.com".into()),
            stale_after: seconds(60),
            prune_every: seconds(1),
            prune_suspend_max: Duration::ZERO,
            backend_networks: nets(&["10.0.0.0/8"]),
            backend_deny: nets(&["10.0.0.1/32"]),
            cell_networks: vec![],
            token_networks: nets(&["10.0.1.0/24"]),
            max_backends: 3,
            trusted: vec![
                Trusted {
                    networks: nets(&["10.0.16.0/24"]),
                    service_instances: TrustedFor::Only(
                        ["a", "b"].map(|id| ServiceInstanceId::new(id).unwrap()).into()
                    ),
                },
                Trusted { networks: nets(&["10.0.17.0/24"]), service_instances: TrustedFor::All },
            ],
        }
    );
    assert_eq!(
        config.forwarder,
        Forwarder {
            workers: 2,
            limits: ForwarderLimits {
                connect_timeout: seconds(1),
                idle_timeout_tcp: seconds(600),
                idle_timeout_udp: seconds(30),
                max_connections_per_port: 10,
                max_udp_sessions_per_port: 20,
                max_sockets: 30,
                proxy_from: nets(&["10.0.0.0/24"]),
                blocked: std::sync::Arc::default(),
                drain_wait: seconds(5),
                drain_timeout: seconds(60),
            },
        }
    );
    assert_eq!(
        config.log,
        Settings {
            format: Format::Json,
            level: "info,harbor::discovery=debug".into(),
            directory: Some("/var/log/harbor".into())
        }
    );
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn all_problems_are_told_at_once_with_their_places() {
    check_problems(
        "[broker]\nlisten = \"localhost\"\n\n[admin]\n  lisen = 1\n[forwarder]\nworkers = -1\nidle_timeout_tcp = 60\n",
        &[("HARBOR_LOG__FORMAT", "xml")],
        &[
            "harbor.toml:1:2: broker.password is missing: set it, or password_file, or the variable \
             HARBOR_BROKER__PASSWORD",
            "harbor.toml:2:10: broker.listen: \"localhost\" is not an address with a port: write for example \
             \"127.0.0.1:8080\" or \"[::]:8080\"",
            "harbor.toml:5:3: [admin] has no key \"lisen\": it has listen, metrics_instances, metrics_public, metrics_token_file, token_file",
            "harbor.toml:7:11: forwarder.workers: this must be a number from 0 to 1024",
            "harbor.toml:8:20: forwarder.idle_timeout_tcp: a duration is text with a unit: write for example \"120s\" \
             or \"15m\"",
            "HARBOR_LOG__FORMAT: \"xml\" is not a format: use text or json",
        ],
    );
}

#[test]
fn what_is_not_toml_is_told_with_its_place() {
    check_problems(
        "[broker]\npassword = \"hunter2\nlisten = 3 4\n",
        &[],
        &[
            "harbor.toml:2:20: this is not TOML: invalid basic string, expected `\"`",
            "harbor.toml:3:10: this is not TOML: string values must be quoted, expected literal string",
        ],
    );
    check_problems(
        "[broker]\npassword = \"a\"\npassword = \"b\"\n",
        &[],
        &["harbor.toml:3:1: this is not TOML: duplicate key"],
    );
}

#[test]
fn unknown_keys_are_problems_wherever_they_are() {
    check_more(
        "[brokers]\n",
        &["harbor.toml:2:2: a configuration has no key \"brokers\": it has admin, announce, \
         broker, discovery, forwarder, harbor_node, log, nats, plans, pools, store"],
    );
    check_more(
        "[broker.tls]\nca = \"x\"\n",
        &[
            "harbor.toml:2:9: broker.tls.certificate is missing: TLS needs the path of a certificate and of its \
         private_key, both PEM",
            "harbor.toml:2:9: broker.tls.private_key is missing: TLS needs the path of a certificate and of its \
         private_key, both PEM",
            "harbor.toml:3:1: [broker.tls] has no key \"ca\": it has certificate, client_ca, private_key",
        ],
    );
    check_variable(
        "HARBOR_BROKER__LISEN",
        "x",
        "HARBOR_BROKER__LISEN: [broker] has no key \"lisen\": it has listen, \
         password, password_file, tls, username",
    );
    check_variable(
        "HARBOR_BROKR__LISTEN",
        "x",
        "HARBOR_BROKR__LISTEN: a configuration has no key \"brokr\": it has \
         admin, announce, broker, discovery, forwarder, harbor_node, log, nats, plans, pools, store",
    );
    check_variable(
        "HARBOR_BROKER__",
        "x",
        "HARBOR_BROKER__: [broker] has no key \"\": it has listen, password, \
         password_file, tls, username",
    );
    check_variable(
        "HARBOR_BROKER_PASSWORD",
        "x",
        "HARBOR_BROKER_PASSWORD: this sets nothing: write \
         HARBOR_BROKER__PASSWORD",
    );
    check_variable(
        "HARBOR_HARBOR_NODE_ID",
        "x",
        "HARBOR_HARBOR_NODE_ID: this sets nothing: write \
         HARBOR_HARBOR_NODE__ID",
    );
}

#[test]
fn variables_of_others_are_not_looked_at() {
    let others = [("HARBOR_CONFIG", "x"), ("HARBOR_ADMIN_URL", "x"), ("HARBOR_PORT_8080_TCP", "x"), ("PATH", "x")];
    assert!(load_more("", &others).is_ok());
}

#[test]
fn variables_override_any_key() {
    let config = load_more(
        "[harbor_node]\nid = \"from_file\"\n[pools.Big-Games]\nport_range = \"50000-50999\"\nhost = \"10.0.0.6\"\n",
        &[
            ("HARBOR_BROKER__PASSWORD", "a,b"),
            ("HARBOR_HARBOR_NODE__ID", "from_environment"),
            ("HARBOR_HARBOR_NODE__LISTEN", "127.0.0.1, ::1"),
            ("HARBOR_HARBOR_NODE__PORT_RANGE", "20000-20009, 20020"),
            ("HARBOR_POOLS__BIG_GAMES__PORT_RANGE", "51000-51999"),
            ("HARBOR_POOLS__MORE__PORT_RANGE", "52000"),
            ("HARBOR_POOLS__MORE__HOST", "10.0.0.7"),
            ("HARBOR_DISCOVERY__SOURCES", "router"),
            ("HARBOR_DISCOVERY__BACKEND_NETWORKS", ""),
            ("HARBOR_DISCOVERY__TRUSTED", r#"[{ networks = ["10.0.0.0/8"], service_instances = ["*"] }]"#),
            ("HARBOR_FORWARDER__WORKERS", "3"),
            ("HARBOR_FORWARDER__DRAIN_WAIT", "2s"),
            ("HARBOR_ADMIN__METRICS_PUBLIC", "false"),
        ],
    )
    .unwrap();
    assert_eq!(config.broker.passwords, [Secret::new("a,b".into())], "a password is always one");
    assert_eq!(config.node.id.as_str(), "from_environment");
    assert_eq!(config.node.listen, ["127.0.0.1", "::1"].map(|text| text.parse::<IpAddr>().unwrap()));
    let pools: Vec<_> = config.node.pools.iter().map(|pool| format!("{} {}", pool.name, pool.ports)).collect();
    assert_eq!(pools, ["default 20000-20009, 20020", "Big-Games 51000-51999", "more 52000"]);
    assert!(!config.discovery.harbor_subjects && config.discovery.router_subjects);
    assert_eq!(config.discovery.backend_networks, []);
    assert_eq!(config.discovery.trusted[0].service_instances, TrustedFor::All);
    assert_eq!((config.forwarder.workers, config.forwarder.limits.drain_wait), (3, seconds(2)));
    assert!(!config.admin.metrics_public);
}

#[test]
fn nested_sections_can_be_given_by_variables() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file.pem");
    std::fs::write(&file, "").unwrap();
    let file = file.to_str().unwrap();
    let variables = [("HARBOR_BROKER__TLS__CERTIFICATE", file), ("HARBOR_BROKER__TLS__PRIVATE_KEY", file)];
    let tls = load_more("", &variables).unwrap().broker.tls.unwrap();
    assert_eq!(tls, TlsFiles { certificate: file.into(), private_key: file.into(), client_ca: None });
    check_variable(
        "HARBOR_BROKER__TLS__CERTIFICATE",
        "/nowhere/c.pem",
        "HARBOR_BROKER__TLS__CERTIFICATE: broker.tls.private_key is missing: TLS needs the path of a certificate and \
         of its private_key, both PEM\n\
         HARBOR_BROKER__TLS__CERTIFICATE: cannot read /nowhere/c.pem: No such file or directory (os error 2)",
    );
}

#[test]
fn values_of_variables_are_checked_like_those_of_the_file() {
    check_variable(
        "HARBOR_FORWARDER__WORKERS",
        "many",
        "HARBOR_FORWARDER__WORKERS: this must be a number from 0 to 1024",
    );
    check_variable(
        "HARBOR_ADMIN__METRICS_PUBLIC",
        "yes",
        "HARBOR_ADMIN__METRICS_PUBLIC: \"yes\" is neither true nor false",
    );
    check_variable(
        "HARBOR_BROKER__USERNAME",
        "",
        "HARBOR_BROKER__USERNAME: this is empty: write a value, or leave the key out",
    );
    check_variable(
        "HARBOR_DISCOVERY__TRUSTED",
        "10.0.0.0/8",
        "HARBOR_DISCOVERY__TRUSTED: this must be a list of tables in TOML: [{ key = value, … }, …]",
    );
    check_variable(
        "HARBOR_DISCOVERY__TRUSTED",
        "3",
        "HARBOR_DISCOVERY__TRUSTED: this must be a list of tables in TOML: [{ key = value, … }, …]",
    );
    check_variable(
        "HARBOR_POOLS__GAMES__PORT_RANGE",
        "1-2",
        "HARBOR_POOLS__GAMES__PORT_RANGE: pools.games.host is missing: clients must be told an address or a hostname \
         of the pool\n\
         HARBOR_POOLS__GAMES__PORT_RANGE: port 1 is below 1024: ports 0 to 1023 cannot be given out",
    );
}

#[test]
fn passwords_come_from_one_place() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    let path = file.to_str().unwrap();
    let text = format!("[broker]\npassword_file = {path:?}\n");
    std::fs::write(&file, "hunter2\n\nold\r\n").unwrap();
    set_mode(&file, 0o640);
    let config = load_text(&text, &[]).unwrap();
    assert_eq!(config.broker.passwords, ["hunter2", "old"].map(|text| Secret::new(text.into())));
    assert_eq!(config.warnings, [format!("{path} has mode 0640: others may read the password; run chmod 0600 on it")]);
    set_mode(&file, 0o600);
    assert_eq!(load_text(&text, &[]).unwrap().warnings, Vec::<String>::new());

    let config = load_text(&text, &[("HARBOR_BROKER__PASSWORD", "third")]).unwrap();
    assert_eq!(config.broker.passwords, [Secret::new("third".into())], "the environment overrides the file");
    let config = load_more("", &[("HARBOR_BROKER__PASSWORD_FILE", path)]).unwrap();
    assert_eq!(config.broker.passwords.len(), 2);

    check_problems(
        &format!("{text}password = \"hunter2\""),
        &[],
        &["harbor.toml:2:17: broker.password_file: this stands beside password: set only one of them"],
    );
    check_problems(
        "broker.password_file = \"/dev/null\"",
        &[],
        &["harbor.toml:1:24: broker.password_file: cannot read /dev/null: it is no regular file"],
    );
    std::fs::write(&file, "\n").unwrap();
    let empty =
        format!("harbor.toml:2:17: broker.password_file: {path} is empty: write a password into it, one a line");
    check_problems(&text, &[], &[&empty]);
    check_problems(
        "broker.password = []",
        &[],
        &["harbor.toml:1:19: broker.password: this list is empty: write at least one"],
    );
    check_problems(
        "broker.password = [\"hunter2\", 3]",
        &[],
        &["harbor.toml:1:31: broker.password: this is a whole number, but must be text"],
    );
}

#[test]
fn a_network_of_ipv4_may_be_written_in_the_way_of_ipv6() {
    let text = "discovery.backend_deny = [\"::ffff:10.66.0.0/112\", \"::ffff:0:0/90\", \"fd00::/8\"]";
    let networks = load_more(text, &[]).unwrap().discovery.backend_deny;
    let shown = networks.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(shown, ["10.66.0.0/16", "::ffc0:0:0/90", "fd00::/8"]);
}

fn set_mode(file: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn pools_that_share_the_node_do_not_overlap() {
    let games = "[pools.games]\nport_range = \"39000-41000\"\nhost = \"10.0.0.6\"\n";
    check_more(
        games,
        &["harbor.toml: harbor_node.pools: port 39000 is in the ranges of both default and games, which this node \
         serves: change one"],
    );
    let only_default = format!("harbor_node.pools = [\"default\"]\n{games}");
    assert_eq!(load_more(&only_default, &[]).unwrap().node.pools.len(), 1);
    let only_games = load_more(&format!("harbor_node.pools = [\"games\"]\n{games}"), &[]).unwrap();
    assert_eq!(only_games.plans[0].pool.as_str(), "games", "built-in plans go where ports are");
}

#[test]
fn pools_and_plans_are_checked() {
    check_more(
        "harbor_node.pools = [\"default\", \"games\", \"default\"]",
        &[
            "harbor.toml:2:21: harbor_node.pools: \"default\" is in this list twice",
            "harbor.toml:2:21: harbor_node.pools: there is no pool \"games\": add [pools.games]",
        ],
    );
    check_more(
        "harbor_node.pools = []",
        &["harbor.toml:2:21: harbor_node.pools: this list is empty: write at least one pool, or leave the key out"],
    );
    check_more(
        "[pools.default]\nport_range = \"1-2\"",
        &["harbor.toml:2:8: [harbor_node] describes the pool default: write its keys there"],
    );
    check_more(
        "[pools.\"a b\"]\nport_range = \"1-2\"",
        &["harbor.toml:2:8: \"a b\" is no name for a pool: use 1 to 64 letters, digits, dots, dashes and underscores"],
    );
    check_more(
        "[pools.games]",
        &[
            "harbor.toml:2:8: pools.games.host is missing: clients must be told an address or a hostname of the pool",
            "harbor.toml:2:8: pools.games.port_range is missing: write for example port_range = \"50000-50999\"",
        ],
    );
    check_more("pools.games = 3", &["harbor.toml:2:15: pools.games: this is a whole number, but must be a section"]);
    check_more("pools = 3", &["harbor.toml:2:9: pools: this is a whole number, but must be a section"]);
    check_more("[plans.tcp]", &["harbor.toml:2:8: tcp is a built-in plan: give yours another name"]);
    check_more(
        "[plans.big]\npool = \"games\"\nprotocol = \"sctp\"\nmax_connections = 0",
        &[
            "harbor.toml:3:8: plans.big.pool: there is no pool \"games\": add [pools.games]",
            "harbor.toml:4:12: plans.big.protocol: \"sctp\" is not a protocol: use tcp, udp or both",
            "harbor.toml:5:19: plans.big.max_connections: this must be a number from 1 to 4294967295",
        ],
    );
}

#[test]
fn a_plan_on_a_pool_of_other_nodes_is_not_offered() {
    let text = "harbor_node.pools = [\"default\"]\n[pools.games]\nport_range = \"50000\"\nhost = \"10.0.0.6\"\n\
                [plans.big]\npool = \"games\"\n";
    let config = load_more(text, &[]).unwrap();
    assert_eq!(config.plans.len(), 4);
    assert_eq!(
        config.warnings,
        ["plan big is not offered, since this node does not serve its pool: add \"games\" to harbor_node.pools"]
    );
}

#[test]
fn port_ranges_say_what_is_wrong_with_them() {
    for (range, problem) in [
        ("\"40000-35000\"", "the range 40000-35000 ends before it begins"),
        ("\"1000-2000\"", "port 1000 is below 1024: ports 0 to 1023 cannot be given out"),
        ("\"a\"", "\"a\" is neither a port nor a range: write for example \"35000-40000\" or \"37000\""),
        ("[]", "a port range is empty: write for example \"35000-40000\""),
        ("35000", "this is a whole number, but must be text"),
    ] {
        let expect = format!("harbor.toml:2:26: harbor_node.port_range: {problem}");
        check_more(&format!("harbor_node.port_range = {range}"), &[&expect]);
    }
}

#[test]
fn what_must_be_protected_on_a_network_is() {
    check_more(
        "[announce]",
        &[
            "harbor.toml:2:2: announce.listen is missing: write for example listen = \"0.0.0.0:8082\", or leave \
         [announce] out",
            "harbor.toml:2:2: announce.public_url is missing: write the URL by which apps reach announce.listen",
        ],
    );
    let announce = |listen: &str| format!("[announce]\nlisten = {listen:?}\npublic_url = \"http://a.example.com\"");
    for loopback in ["127.0.0.1:8082", "[::1]:8082", "[::ffff:127.0.0.1]:8082"] {
        assert!(load_more(&announce(loopback), &[]).is_ok(), "{loopback}");
    }
    check_more(
        &announce("0.0.0.0:8082"),
        &["harbor.toml:2:2: announce.tls is missing: tokens may cross a network only with TLS; without it listen on \
         127.0.0.1"],
    );
    check_more(
        "admin.listen = \"10.0.0.5:8081\"",
        &["harbor.toml:2:1: admin.token_file is missing: an admin.listen beyond loopback wants a file with the token \
         that operators use"],
    );
    assert_eq!(
        load_more("broker.listen = \"0.0.0.0:8080\"", &[]).unwrap().warnings,
        ["broker.listen is 0.0.0.0:8080 without TLS: the password crosses the network readable; set broker.tls, or \
             put a proxy with TLS in front"]
    );
    assert_eq!(
        load_more("harbor_node.port_range = \"8000-8999\"\nadmin.listen = \"127.0.0.1:9081\"", &[]).unwrap().warnings,
        ["broker.listen takes port 8080, which is in the range of pool default: nobody can be given it"]
    );
    for url in ["ftp://a", "https://", "a.example.com", "https://u:hunter2x@a", "https://a?b"] {
        let text = format!("[announce]\nlisten = \"127.0.0.1:1\"\npublic_url = {url:?}");
        let error = load_more(&text, &[]).unwrap_err().to_string();
        assert!(error.contains("is not a URL: write for example"), "{error}");
    }
}

#[test]
fn announcements_that_other_nodes_would_not_hear_are_a_warning() {
    let announce = "[announce]\nlisten = \"127.0.0.1:8082\"\npublic_url = \"http://a.example.com\"\n";
    let postgres = "[store]\nurl = \"postgres://harbor@10.0.0.1/harbor\"\n";
    let nats = "[nats]\nservers = \"10.0.0.1\"\n";
    let warnings = |sections: &[&str]| load_more(&sections.concat(), &[]).unwrap().warnings;
    assert_eq!(
        warnings(&[announce, postgres]),
        [
            "announce.listen without nats.servers: an announcement over HTTP reaches only the node that took it; give all \
          nodes of the store one NATS, or run one node alone"
        ]
    );
    for fine in [&[announce, postgres, nats][..], &[announce], &[postgres]] {
        assert_eq!(warnings(fine), [""; 0], "{fine:?}");
    }
}

#[test]
fn nats_is_reached_in_one_way() {
    check_more(
        "nats.servers = \"nats://u:hunter2@10.0.0.1\"",
        &["harbor.toml:2:16: nats.servers: a server's URL holds no user: write nats.user and nats.password, or \
             nats.token"],
    );
    check_more(
        "nats.servers = [\"http://10.0.0.1\"]",
        &["harbor.toml:2:17: nats.servers: this is not the URL of a NATS server: write for example \
         \"nats://10.0.0.1:4222\""],
    );
    check_more(
        "nats.user = \"a\"\nnats.token = \"hunter2\"",
        &[
            "harbor.toml:2:13: nats.user: this needs nats.password beside it",
            "harbor.toml:3:14: nats.token: this stands beside user: set only one of them",
        ],
    );
    check_more(
        "nats.nkey_seed_file = \"/nowhere/seed\"\nnats.tls.certificate = \"/nowhere/c\"",
        &[
            "harbor.toml:2:23: nats.nkey_seed_file: cannot read /nowhere/seed: No such file or directory (os error 2)",
            "harbor.toml:3:24: nats.tls.certificate: cannot read /nowhere/c: No such file or directory (os error 2)",
            "harbor.toml:3:24: nats.tls.certificate: this needs nats.tls.private_key beside it",
        ],
    );
    let nats = load_more("nats = { servers = \"10.0.0.1:4222\", user = \"u\", password = \"p\" }", &[]).unwrap().nats;
    let login = NatsLogin::Password { user: "u".into(), password: Secret::new("p".into()) };
    assert_eq!(nats.unwrap().login, login);
    assert_eq!(load_more("nats.token = \"t\"", &[]).unwrap().nats, None, "without servers there is no NATS");
}

#[test]
fn sources_are_words_and_cells_need_the_one_that_says_whose_their_addresses_are() {
    check_more(
        "discovery.sources = [\"harbor\", \"service-discovery\", \"dns\"]",
        &["harbor.toml:2:53: discovery.sources: \"dns\" is not a source: use harbor, router and service-discovery"],
    );
    check_more(
        "discovery.sources = [\"harbor\"]\ndiscovery.cell_networks = [\"10.0.0.0/8\"]",
        &[
            "harbor.toml:3:27: discovery.cell_networks: whose an address on a cell is, router.register says: add \"router\" \
           to sources",
        ],
    );
    let all = "discovery.sources = [\"router\", \"service-discovery\"]\ndiscovery.cell_networks = [\"10.0.0.0/8\"]";
    let discovery = load_more(all, &[]).unwrap().discovery;
    assert_eq!((discovery.harbor_subjects, discovery.service_discovery_subjects), (false, true));
    assert_eq!(discovery.cell_networks, ["10.0.0.0/8".parse().unwrap()]);
}

#[test]
fn a_store_is_a_file_or_a_database_of_postgresql() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "hunter2\n").unwrap();
    let path = file.path().display();
    let url = "store.url = \"postgres://harbor:hunter3@10.0.0.1/harbor\"";
    let store = load_more(&format!("{url}\nstore.password_file = \"{path}\""), &[]).unwrap().store;
    assert_eq!(store.to_string(), "postgres://harbor@10.0.0.1/harbor");
    assert_eq!(store.password, Some(Secret::new("hunter2".into())));
    let wanted = "this is not the URL of a store: write for example \"sqlite:harbor.db\" or \
        \"postgres://harbor@db.example.com/harbor\"";
    for url in ["harbor.db", "postgres:harbor", "mysql://harbor:hunter2@10.0.0.1/harbor"] {
        check_more(&format!("store.url = \"{url}\""), &[&format!("harbor.toml:2:13: store.url: {wanted}")]);
    }
    check_more(
        &format!("store.password_file = \"{path}\""),
        &[
            "harbor.toml:2:23: store.password_file: this stands beside a file of SQLite, which has no password: leave it \
           out, or let store.url name PostgreSQL",
        ],
    );
}

#[test]
fn other_values_are_checked() {
    for (line, problem) in [
        ("discovery.domain = \"a..b\"", "\"a..b\" is not a domain: write for example \"harbor.example.com\""),
        ("discovery.stale_after = \"2\"", "\"2\" is not a duration: write for example \"120s\" or \"15m\""),
        ("discovery.stale_after = \"0s\"", "\"0s\" is not a duration from 1s to 1year 18h"),
        ("discovery.max_backends = 0", "this must be a number from 1 to 65535"),
        ("discovery.backend_deny = [\"ten\"]", "\"ten\" is not a network: write for example \"10.0.0.0/8\""),
        ("discovery.trusted = 3", "this is a whole number, but must be a list of sections"),
        ("discovery.trusted = [3]", "this is a whole number, but must be a section"),
        ("harbor_node.host = \"a b\"", "\"a b\" is neither a host name nor an address"),
        ("harbor_node.hostname = \"--json\"", "\"--json\" is neither a host name nor an address"),
        ("harbor_node.hostname = \"a:80\"", "\"a:80\" is neither a host name nor an address"),
        ("harbor_node.hostname = \"a..b\"", "\"a..b\" is neither a host name nor an address"),
        ("harbor_node.hostname = \"*.a\"", "\"*.a\" is neither a host name nor an address"),
        ("harbor_node.host = \"999.1.1.1\"", "\"999.1.1.1\" is neither a host name nor an address"),
        ("harbor_node.host = \"0.0.0.0\"", "\"0.0.0.0\" is neither a host name nor an address"),
        ("harbor_node.listen = [\"eth0\"]", "\"eth0\" is not an IP address: write for example \"0.0.0.0\" or \"::\""),
        ("harbor_node.listen = []", "this list is empty: write at least one address, or leave the key out"),
        ("harbor_node.int_port = 0", "this must be a number from 1 to 65535"),
        ("harbor_node.id = 7", "this is a whole number, but must be text"),
        ("harbor_node.id = 7.5", "this is a fraction, but must be text"),
        (
            "forwarder.max_sockets = 99999999999999999999",
            "this is a number beyond all limits, but must be a whole number",
        ),
        (
            "log.level = \"inof\"",
            "\"inof\" is not a level: use one of off, error, warn, info, debug, trace, or \
          \"info,harbor::discovery=debug\"",
        ),
        ("broker.username = \"a:b\"", "a user name has no colon in HTTP Basic"),
        ("broker.tls = \"on\"", "this is text, but must be a section"),
    ] {
        let error = load_more(line, &[]).expect_err(line).to_string();
        assert!(error.lines().any(|found| found.ends_with(problem)), "{line}: {error}");
        assert!(error.starts_with("harbor.toml:2:"), "{line}: {error}");
    }
}

#[test]
fn nothing_secret_is_in_the_debug_output() {
    let config = load_more("nats = { servers = \"n\", user = \"u\", password = \"hunter2\" }", &[]).unwrap();
    let shown = format!("{config:?}");
    assert!(shown.contains("Secret(…)") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let file = Some(PathBuf::from("/nowhere/harbor.toml"));
    let sources = Sources { file, variables: vec![], settings: Vec::new(), own_address: IpAddr::from([127, 0, 0, 1]) };
    assert_eq!(
        load(&sources).unwrap_err().to_string(),
        "/nowhere/harbor.toml: cannot read it: No such file or directory (os error 2); name another file by --config \
         or HARBOR_CONFIG"
    );
    let nothing = Sources { file: None, ..sources };
    assert_eq!(
        load(&nothing).unwrap_err().to_string(),
        "configuration: broker.password is missing: set it, or password_file, or the variable HARBOR_BROKER__PASSWORD"
    );
}
