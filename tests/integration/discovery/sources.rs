//! Messages as Cloud Foundry publishes them, through a real nats-server: those that are meant make backends, and those
//! that would take over a port make none and leave a trace.

use harbor::{
    discovery::{
        authority::{self, Trusted},
        wire::parse,
    },
    model::announcement::AnnouncementRefusal as Reason,
};

use super::*;
use crate::support::announcements::{
    self, APP, DOMAIN, INSTANCE, KEY, NEIGHBOUR, NEIGHBOURS_INSTANCE, NEIGHBOURS_KEY, names, published, read,
};

const WALL_SECONDS: i64 = 1_700_000_000;

/// The route of a second app port, the usual way to be a backend on a Diego cell.
const SECOND_PORT: &str = "route-emitter/second-port.register";

/// Where that is.
const ON_CELL: &str = "tcp 10.0.2.17:61016";

/// A node beside the platform, with the settings of an operator who says where the cells are.
struct Platform {
    node: Node,
    client: Client,
}

impl Platform {
    /// [`INSTANCE`] has this protocol, and `match_app` or not.
    async fn new(server: &NatsServer, protocol: Protocol, match_app: bool) -> Self {
        let mut node = Node::new();
        node.directory.send_replace(Arc::new(announcements::directory(protocol, match_app)));
        let mut settings = settings();
        let trusted = ["10.0.16.0/24", "10.0.2.99/32"].map(|network| network.parse().unwrap());
        settings.rules.trusted =
            vec![Trusted { networks: trusted.into(), service_instances: Some([instance(INSTANCE)].into()) }];
        settings.rules.addresses.backend_networks.push("fd12::/16".parse().unwrap());
        settings.rules.addresses.cell_networks = vec!["10.0.2.0/24".parse().unwrap()];
        settings.rules.addresses.pool_ports = "35000-35099".parse().unwrap();
        assert_eq!(settings.rules.domain.as_deref(), Some(DOMAIN));
        node.discovery.set_settings(settings);
        node.connect(nats_settings(server));
        node.up().await;
        Self { node, client: onlooker(server).await }
    }

    /// Publishes a message where those of this name are published, and waits until it has been judged.
    async fn hears(&self, name: &str, message: &str) {
        let (source, subject) = published(name);
        let before = self.node.received(source.as_str());
        self.client.publish(subject, message.to_owned().into()).await.expect("the message is queued");
        self.client.flush().await.expect("the server is up");
        self.node.has_received(source.as_str(), before + 1).await;
    }

    /// The same for a message that is refused, visibly: to who counts, and to who asks for the last refusals.
    async fn refuses(&self, name: &str, message: &str, reason: Reason) {
        let (source, _) = published(name);
        let count = || self.node.refused(source.as_str(), reason.as_str());
        let before = count();
        self.hears(name, message).await;
        let kept = [Some(instance(INSTANCE)), None].map(|whose| self.node.discovery.refusals(&whose));
        assert_eq!(count(), before + 1, "{name} is refused as {}: {message}\n{kept:?}", reason.as_str());
        let shows =
            kept.iter().filter_map(|kept| kept.first()).any(|last| (last.source, last.reason) == (source, reason));
        // Somebody's HTTP route is no concern of who has a port.
        assert_eq!(shows, reason != Reason::NotAddressed, "{name}: {kept:?}");
    }

    /// What [`INSTANCE`] has, TCP before UDP, by address.
    fn shown(&self) -> Vec<String> {
        let mut shown = self.node.shown(INSTANCE);
        shown.sort();
        shown
    }
}

fn instance(id: &str) -> ServiceInstanceId {
    ServiceInstanceId::new(id).unwrap()
}

/// The message of the fixture with `changes` laid over it.
fn altered(name: &str, changes: Value) -> Value {
    let mut message = serde_json::from_str(&read(name)).expect("fixtures are JSON");
    lay(&mut message, changes);
    message
}

fn lay(over: &mut Value, changes: Value) {
    match (over, changes) {
        (Value::Object(over), Value::Object(changes)) => {
            changes.into_iter().for_each(|(key, change)| lay(over.entry(key).or_insert(Value::Null), change));
        }
        (over, change) => *over = change,
    }
}

/// The message with a proof of the binding's own token over how it stands.
fn proven(binding: &str, action: Action, mut message: Value) -> Value {
    message["harbor"]["binding_id"] = binding.into();
    let token =
        announcements::directory(Protocol::Both, false).announce_secret.token(&BindingId::new(binding).unwrap());
    let parsed = parse(message.to_string().as_bytes()).expect("it is an announcement");
    message["harbor"]["proof"] = token.prove(&authority::statement(&parsed, action)).into();
    message
}

#[tokio::test]
async fn what_the_platform_publishes_makes_the_backends_that_it_means() {
    use Protocol::{Both, Tcp, Udp};
    let app = || Authority::App(AppId::new(APP).unwrap());
    let key = || Authority::Binding(BindingId::new(KEY).unwrap());
    let (trusted, diego) = (Authority::Trusted, Some("8c1f0b2e-6a4d-4d73-5e19-3b7a"));
    let registrar = Some("0c6b8f24-93d1-4b5e-a7f0-1d2e3c4b5a69");
    let dea = Some("f3a9c1e7b5d24f608a1c3e5d7b9f0246a8c0e2d4f6b81a3c");
    let container = "tcp 10.255.30.4:4100, udp 10.255.30.4:4100";
    let cases = [
        ("route-emitter/route", Tcp, true, "tcp 10.0.2.17:61012", app(), diego),
        ("route-emitter/second-port", Tcp, false, ON_CELL, app(), diego),
        ("route-emitter/path", Tcp, false, ON_CELL, app(), diego),
        ("route-emitter/newest", Tcp, false, ON_CELL, app(), diego),
        ("route-emitter/direct-instance", Both, false, container, app(), diego),
        ("route-emitter/internal-route", Both, false, container, app(), None),
        ("route-emitter/internal-route", Udp, false, "udp 10.255.30.4:4100", app(), None),
        ("route-registrar/tagged", Both, false, "udp 10.0.16.9:7777", trusted.clone(), registrar),
        ("route-registrar/port-name", Tcp, false, "tcp 10.0.16.9:7777", trusted.clone(), registrar),
        ("route-registrar/newest", Udp, false, "udp 10.0.16.9:7777", trusted.clone(), registrar),
        ("dea/app", Tcp, true, "tcp 10.0.3.21:61020", app(), dea),
        ("dea/v1", Tcp, true, "tcp 10.0.3.21:61020", app(), None),
        ("harbor/app", Both, false, "tcp 10.0.1.7:4100, udp 10.0.1.7:4101", app(), diego),
        ("harbor/proven", Both, false, "tcp 10.0.1.7:4100, udp 10.0.1.7:4101", key(), None),
        ("harbor/trusted", Tcp, false, "tcp 10.0.16.9:7777", trusted.clone(), None),
        ("odd/nulls", Tcp, false, "tcp 10.0.1.7:4100", app(), None),
        ("odd/ipv6", Tcp, false, "tcp [fd12::1]:4100", app(), None),
        ("odd/mapped-address", Tcp, false, "tcp 10.0.16.9:7777", trusted, None),
        // It takes nothing new.
        ("harbor/draining", Tcp, false, "", app(), None),
    ];
    let server = NatsServer::start();
    for (name, protocol, match_app, expect, authority, of) in cases {
        let platform = Platform::new(&server, protocol, match_app).await;
        let (register, unregister) = (format!("{name}.register"), format!("{name}.unregister"));
        platform.hears(&register, &read(&register)).await;
        assert_eq!(platform.shown().join(", "), expect, "{name} for {protocol}");
        let states = platform.node.backends.list(&instance(INSTANCE));
        assert!(!states.is_empty(), "{name}");
        for state in states {
            assert_eq!(
                (&state.backend.authority, state.origin.private_instance_id.as_deref()),
                (&authority, of),
                "{name}"
            );
        }
        if names().contains(&unregister) {
            platform.hears(&unregister, &read(&unregister)).await;
            assert_eq!(platform.node.backends.list(&instance(INSTANCE)).len(), 0, "{name}");
        }
        platform.node.stop().await;
    }
}

#[tokio::test]
async fn what_cannot_be_a_backend_says_why() {
    use Protocol::{Both, Tcp, Udp};
    let server = NatsServer::start();
    for (name, protocol, match_app, reason) in [
        ("route-emitter/route", Tcp, false, Reason::NotMatched),
        ("route-emitter/wildcard", Tcp, true, Reason::UnknownServiceInstance),
        ("route-emitter/route-integrity", Tcp, true, Reason::TlsOnly),
        ("route-registrar/tls", Tcp, false, Reason::TlsOnly),
        ("route-registrar/tagged", Tcp, false, Reason::ProtocolMismatch),
        ("dea/app", Udp, false, Reason::NotMatched),
        ("dea/directory-server", Tcp, true, Reason::NotAddressed),
        ("odd/bare", Tcp, true, Reason::NotAddressed),
        ("odd/untrusted", Tcp, false, Reason::NoAuthority),
        ("odd/no-port", Tcp, false, Reason::NoPort),
        ("odd/ports-without-meaning", Tcp, true, Reason::UnknownServiceInstance),
        ("odd/two-ports", Tcp, false, Reason::Ambiguous),
        ("odd/unknown-protocol", Both, false, Reason::Malformed),
        ("odd/host-name", Tcp, false, Reason::HostNotAnAddress),
    ] {
        let platform = Platform::new(&server, protocol, match_app).await;
        let register = format!("{name}.register");
        platform.refuses(&register, &read(&register), reason).await;
        assert_eq!(platform.node.backends.export().len(), 0, "{name}");
        platform.node.stop().await;
    }
}

#[test]
fn every_message_on_file_is_published_here() {
    for name in names() {
        let (message, _) = name.rsplit_once('.').expect("it says whether it is a register");
        assert!(include_str!("sources.rs").contains(&format!("\"{message}")), "{name} is not");
    }
}

#[tokio::test]
async fn no_message_takes_over_anothers_port() {
    let server = NatsServer::start();
    let platform = Platform::new(&server, Protocol::Both, false).await;
    platform.hears(SECOND_PORT, &read(SECOND_PORT)).await;
    platform.hears("harbor/proven.register", &read("harbor/proven.register")).await;
    let standing = ["tcp 10.0.1.7:4100", ON_CELL, "udp 10.0.1.7:4101", "udp 10.0.2.17:61016"];
    assert_eq!(platform.shown(), standing);
    // The neighbour's own route, which gives it a port of the same cell.
    let of_neighbour = json!({"uris": ["www.example.com"], "host": "10.0.2.17", "port": 61_020, "app": NEIGHBOUR});
    platform.hears("route-emitter/route.register", &of_neighbour.to_string()).await;

    let (register, unregister) = (Action::Register, Action::Unregister);
    let aged =
        |seconds: i64| altered("harbor/proven.register", json!({"harbor": {"timestamp": WALL_SECONDS - seconds}}));
    let (app, key, tagged) = ("harbor/app.register", "harbor/proven.register", "route-registrar/tagged.register");
    let elsewhere = json!({"host": "10.0.1.66"});
    let on_cell = json!({"host": "10.0.2.17", "port": 61_020, "harbor": {"udp_port": null}});
    let neighbours = json!({"app": NEIGHBOUR, "host": "10.0.1.66"});
    for (name, message, reason) in [
        // Anyone in any space may map a route of the domain, and tag a route of their own.
        (SECOND_PORT, altered(SECOND_PORT, json!({"app": NEIGHBOUR, "port": 61_020})), Reason::AppNotBound),
        (SECOND_PORT, altered(SECOND_PORT, json!({"app": null, "port": 61_030})), Reason::NoAuthority),
        (tagged, altered(tagged, neighbours.clone()), Reason::AppNotBound),
        // The app of another, or none, in Harbor's own words.
        (app, altered(app, neighbours.clone()), Reason::AppNotBound),
        (app, altered(app, json!({"app": null})), Reason::NoAuthority),
        // A bound app, a token and a trusted network name a port of a cell that is not theirs.
        (app, altered(app, on_cell.clone()), Reason::NotAttributed),
        (app, altered(app, json!({"host": "10.0.2.17", "port": 61_099})), Reason::NotAttributed),
        (key, proven(KEY, register, altered(key, on_cell)), Reason::NotAttributed),
        (
            "harbor/trusted.register",
            altered("harbor/trusted.register", json!({"host": "10.0.2.99"})),
            Reason::NotAttributed,
        ),
        // Harbor itself, and what no backend may be.
        (app, altered(app, json!({"host": "127.0.0.1", "port": 35_013})), Reason::Loop),
        (app, altered(app, json!({"host": "169.254.169.254", "port": 80})), Reason::AddressForbidden),
        // Trust in a network is trust in this one, and for this service instance.
        ("harbor/trusted.register", altered("harbor/trusted.register", elsewhere.clone()), Reason::NoAuthority),
        (tagged, altered(tagged, elsewhere.clone()), Reason::NoAuthority),
        // Proofs: of another service instance's binding, of nobody's, for something else, of yesterday, of tomorrow.
        (key, proven(NEIGHBOURS_KEY, register, altered(key, json!({}))), Reason::BadProof),
        (key, altered(key, json!({"harbor": {"binding_id": NEIGHBOURS_KEY}})), Reason::BadProof),
        (key, altered(key, json!({"harbor": {"binding_id": "gone"}})), Reason::BadProof),
        (key, altered(key, elsewhere), Reason::BadProof),
        (key, altered(key, json!({"port": 4102})), Reason::BadProof),
        (key, altered(key, json!({"harbor": {"udp_port": 4102}})), Reason::BadProof),
        (key, altered(key, json!({"harbor": {"state": "draining"}})), Reason::BadProof),
        (key, aged(60), Reason::BadProof),
        (key, proven(KEY, register, aged(121)), Reason::StaleProof),
        (key, proven(KEY, register, aged(-6)), Reason::StaleProof),
        // Nobody else may take a backend away: not by a register's proof, nor by another app or app instance.
        ("harbor/proven.unregister", altered(key, json!({})), Reason::BadProof),
        ("harbor/proven.unregister", proven(NEIGHBOURS_KEY, unregister, altered(key, json!({}))), Reason::BadProof),
        ("route-emitter/second-port.unregister", altered(SECOND_PORT, json!({"app": NEIGHBOUR})), Reason::AppNotBound),
        (
            "route-emitter/second-port.unregister",
            altered(SECOND_PORT, json!({"private_instance_id": "another"})),
            Reason::OtherOrigin,
        ),
        ("route-registrar/tagged.unregister", altered(tagged, neighbours), Reason::AppNotBound),
    ] {
        platform.refuses(name, &message.to_string(), reason).await;
        assert_eq!(platform.shown(), standing, "after {name}: {message}");
    }
    platform.hears("harbor/proven.unregister", &proven(KEY, unregister, altered(key, json!({}))).to_string()).await;
    assert_eq!(platform.shown(), [ON_CELL, "udp 10.0.2.17:61016"]);
    platform.node.stop().await;
}

#[tokio::test]
async fn a_cells_port_that_goes_to_another_app_leaves_the_first_ones_service_instance_at_once() {
    let server = NatsServer::start();
    let platform = Platform::new(&server, Protocol::Tcp, false).await;
    let late = "route-emitter/second-port.unregister";
    for (uri, backends_of_neighbour) in [("www.example.com", vec![]), ("p35013.harbor.example.com", vec![ON_CELL])] {
        platform.hears(SECOND_PORT, &read(SECOND_PORT)).await;
        assert_eq!(platform.shown(), [ON_CELL]);
        let moved = json!({"uris": [uri], "app": NEIGHBOUR, "private_instance_id": "neighbours"});
        platform.hears(SECOND_PORT, &altered(SECOND_PORT, moved).to_string()).await;
        assert!(platform.shown().is_empty(), "{uri}");
        // Route-emitters say for ten minutes that the first one is gone, and that takes nothing from the next.
        platform.refuses(late, &read(late), Reason::UnknownBackend).await;
        assert_eq!(platform.node.shown(NEIGHBOURS_INSTANCE), backends_of_neighbour);
        let own = altered("harbor/app.register", json!({"host": "10.0.2.17", "port": 61_016}));
        platform.refuses("harbor/app.register", &own.to_string(), Reason::NotAttributed).await;
    }
    platform.node.stop().await;
}

#[tokio::test]
async fn an_unregister_that_comes_late_spares_the_next_instance_at_the_same_address() {
    let server = NatsServer::start();
    let platform = Platform::new(&server, Protocol::Tcp, false).await;
    let (newer, late) = (1_699_999_990_000_000_000_i64, "route-emitter/second-port.unregister");
    let next = json!({"private_instance_id": "next", "endpoint_updated_at_ns": newer});
    platform.hears(SECOND_PORT, &altered(SECOND_PORT, next).to_string()).await;
    platform.refuses(late, &read(late), Reason::OtherOrigin).await;
    assert_eq!(platform.shown(), [ON_CELL]);
    // Internal routes have no instance id: there the time tells.
    let (route, late) = ("route-emitter/internal-route.register", "route-emitter/internal-route.unregister");
    platform.hears(route, &altered(route, json!({"endpoint_updated_at_ns": newer})).to_string()).await;
    platform.refuses(late, &read(late), Reason::OutOfOrder).await;
    assert_eq!(platform.shown(), [ON_CELL, "tcp 10.255.30.4:4100"]);
    // A container's address that goes to another app is its own with all ports.
    platform.hears(route, &altered(route, json!({"app": NEIGHBOUR, "uris": ["www.apps.internal"]})).to_string()).await;
    assert_eq!(platform.shown(), [ON_CELL]);
    platform.node.stop().await;
}
