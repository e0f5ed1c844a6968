//! `harbor announce`

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use super::{Failure, vcap_services};
use crate::{
    announcer::{
        self, Client, Job, Login, Pace, Publisher, Server, Target, Tls, Way,
        places::{self, Container, Place, Said},
        vcap::{self, AnnounceAt, Service},
    },
    app::clock::SystemClock,
    model::{Transport, token::Token},
    telemetry::log,
};

/// Longest duration that an option takes.
const MAX_DURATION: Duration = Duration::from_secs(60 * 60);

/// Shortest interval between announcements.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// Keep this app instance, or this machine, announced as a backend.
///
/// Within an app's container everything is found in the environment (VCAP_SERVICES, CF_INSTANCE_IP,
/// CF_INSTANCE_INTERNAL_IP, CF_INSTANCE_PORTS): `harbor announce -- ./server`, or `harbor announce` as a sidecar. The way
/// is HTTP with the binding's token; apps have no access to NATS. On the operator's own machines say what is announced by
/// options, and with --nats each announcement is published with a proof of the token.
///
/// On SIGTERM nothing new comes to it, then it is withdrawn. With a command its end ends the announcement, signals are
/// passed on, and its exit code is that of this program.
#[derive(Debug, clap::Args)]
pub struct Announce {
    /// Only this service instance of those in VCAP_SERVICES.
    #[arg(long, value_name = "NAME", conflicts_with = "way")]
    service: Option<String>,

    /// The URL of the service instance, announce.url in its credentials [default: from VCAP_SERVICES].
    #[arg(long, value_name = "URL", env = "HARBOR_ANNOUNCE_URL", hide_env_values = true, group = "way")]
    url: Option<String>,

    /// The binding's id [default: from VCAP_SERVICES].
    #[arg(long, value_name = "ID", env = "HARBOR_BINDING_ID", hide_env_values = true)]
    binding: Option<String>,

    /// The file with the binding's token, announce.token in its credentials, for --url and --nats; the variable
    /// HARBOR_ANNOUNCE_TOKEN holds the token itself.
    #[arg(long, value_name = "FILE", requires = "way")]
    token_file: Option<PathBuf>,

    /// Authorities in PEM form to check the announce listener or NATS by [default: the machine's].
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// Publish on NATS there instead, each announcement with a proof; several with commas. A URL with a password belongs
    /// in the variable: others can see arguments.
    #[arg(long, value_name = "URL", value_delimiter = ',', requires = "instance", group = "way")]
    #[arg(env = "HARBOR_ANNOUNCE_NATS", hide_env_values = true)]
    nats: Vec<String>,

    /// The credentials file for NATS.
    #[arg(long, value_name = "FILE", requires = "nats")]
    nats_credentials: Option<PathBuf>,

    /// The certificate to show to NATS.
    #[arg(long, value_name = "FILE", requires = "nats", requires = "nats_private_key")]
    nats_certificate: Option<PathBuf>,

    /// Its private key.
    #[arg(long, value_name = "FILE", requires = "nats_certificate")]
    nats_private_key: Option<PathBuf>,

    /// The service instance's id, for --nats.
    #[arg(long, value_name = "ID", requires = "nats")]
    instance: Option<String>,

    /// The address that serves [default: of the cell or the container; else whoever announces].
    #[arg(long, value_name = "IP")]
    host: Option<IpAddr>,

    /// Where TCP is served [default: what the platform maps to int_port, else int_port].
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,

    /// Where UDP is served [default: int_port, where the service instance has UDP].
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    udp_port: Option<u16>,

    /// How long from one announcement to the next; less where Harbor forgets sooner.
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = interval)]
    interval: Duration,

    /// How long it is announced as draining before it ends, or before the command is told to end.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    drain: Duration,

    /// What must accept a TCP connection before each announcement [default: where TCP is served, on loopback within a
    /// container].
    #[arg(long, value_name = "IP:PORT", conflicts_with = "no_check")]
    check: Option<SocketAddr>,

    /// Announce it whether or not it accepts connections.
    #[arg(long)]
    no_check: bool,

    /// The program that serves, with its arguments.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Announce {
    pub fn run(self) -> Result<ExitCode, Failure> {
        log::to_standard_error();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let targets = self.targets().await?;
            let job = Job {
                targets,
                pace: Pace { interval: self.interval },
                drain: self.drain,
                command: self.command.clone(),
            };
            let ended = announcer::run(job).await.map_err(|error| match self.command.first() {
                Some(program) => Failure::Usage(format!("cannot run {}: {error}", program.display())),
                None => error.into(),
            })?;
            Ok(ExitCode::from(ended.code()))
        })
    }

    async fn targets(&self) -> Result<Vec<(Target, Arc<Way>)>, Failure> {
        if !self.nats.is_empty() || self.url.is_some() {
            return self.said().await;
        }
        let container = container()?;
        let services = self.bound()?;
        let mut targets = Vec::new();
        for service in &services {
            let (AnnounceAt { url, token }, binding) = self.credentials_of(service)?;
            let way = Client::new(&url, &binding, token, self.ca.as_deref()).map_err(usage)?;
            let way = Arc::new(Way::Http(way));
            let said = self.said_of_places();
            let places = places::places(service.protocol, service.int_port, &container, said);
            let inner = SocketAddr::from((Ipv4Addr::LOCALHOST, places::inner_port(service.int_port, &container, said)));
            let serves_tcp = service.protocol.has(Transport::Tcp) && places.iter().any(|place| place.port.is_some());
            let check = serves_tcp.then_some(inner);
            for place in places {
                targets.push((self.target(&service.name, place, check), Arc::clone(&way)));
            }
        }
        Ok(targets)
    }

    /// What the options alone say.
    async fn said(&self) -> Result<Vec<(Target, Arc<Way>)>, Failure> {
        let binding =
            self.binding.clone().ok_or_else(|| missing("whose token is it? Name the binding by --binding"))?;
        if self.port.is_none() && self.udp_port.is_none() {
            return Err(missing("where does it serve? Say so by --port or --udp-port"));
        }
        let token = self.token()?;
        let (name, way) = match (&self.url, &self.instance) {
            (Some(url), _) => {
                (url.clone(), Way::Http(Client::new(url, &binding, token, self.ca.as_deref()).map_err(usage)?))
            }
            (None, Some(instance)) => {
                if self.host.is_none() {
                    return Err(missing("over NATS nobody sees who announces: name the address by --host"));
                }
                let clock = Arc::new(SystemClock);
                let publisher = Publisher::connect(&self.server(), instance.clone(), binding, token, clock).await;
                (instance.clone(), Way::Nats(Box::new(publisher.map_err(usage)?)))
            }
            (None, None) => unreachable!("--nats requires --instance, and without it there is a URL"),
        };
        let Said { host, port, udp_port } = self.said_of_places();
        let at = |port| SocketAddr::new(host.unwrap_or(Ipv4Addr::LOCALHOST.into()), port);
        let target = self.target(&name, Place { host, port, udp_port }, port.map(at));
        Ok(vec![(target, Arc::new(way))])
    }

    fn server(&self) -> Server {
        let login = self.nats_credentials.clone().map(Login::CredentialsFile);
        let identity = self.nats_certificate.clone().zip(self.nats_private_key.clone());
        Server { urls: self.nats.clone(), login, tls: Tls { ca: self.ca.clone(), identity } }
    }

    fn target(&self, name: &str, place: Place, check: Option<SocketAddr>) -> Target {
        let check = if self.no_check { None } else { self.check.or(check) };
        Target { name: name.to_owned(), place, check }
    }

    const fn said_of_places(&self) -> Said {
        Said { host: self.host, port: self.port, udp_port: self.udp_port }
    }

    /// The service instances of VCAP_SERVICES that are meant.
    fn bound(&self) -> Result<Vec<Service>, Failure> {
        let vcap = vcap_services()?.ok_or_else(|| {
            Failure::Usage(
                "what shall be announced? There is no VCAP_SERVICES: say it by --url, --binding and --port".into(),
            )
        })?;
        let mut bindings = vcap::services(&vcap).map_err(usage)?;
        if let Some(name) = &self.service {
            bindings.retain(|service| service.name == *name);
        }
        // Where the platform tells no ids, the option says the one that is missing.
        if bindings.iter().any(|service| service.binding_id.is_some() && service.binding_id == self.binding) {
            bindings.retain(|service| service.binding_id == self.binding);
        }
        let services = vcap::once_each(bindings);
        let names = services.iter().map(|service| service.name.as_str()).collect::<Vec<_>>().join(", ");
        let one_is_meant = self.port.is_some() || self.udp_port.is_some() || self.binding.is_some();
        match (services.len(), &self.service) {
            (0, Some(name)) => Err(Failure::Usage(format!("{name:?} is not bound, or not a service of Harbor's"))),
            (0, None) => Err(Failure::Usage("no service of Harbor's is bound: cf bind-service, then restage".into())),
            (2.., _) if one_is_meant => {
                Err(Failure::Usage(format!("which one is meant? Name it by --service: one of {names}")))
            }
            _ => Ok(services),
        }
    }

    fn credentials_of(&self, service: &Service) -> Result<(AnnounceAt, String), Failure> {
        let name = &service.name;
        let at = service.announce.clone().ok_or_else(|| {
            Failure::Usage(format!(
                "{name} takes no announcements over HTTP: the operator sets [announce], then it is bound anew"
            ))
        })?;
        let binding = self.binding.clone().or_else(|| service.binding_id.clone()).ok_or_else(|| {
            Failure::Usage(format!("this platform does not tell the id of {name}'s binding: name it by --binding"))
        })?;
        Ok((at, binding))
    }

    fn token(&self) -> Result<Token, Failure> {
        let told = match &self.token_file {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| Failure::Usage(format!("cannot read the token in {}: {error}", path.display())))?,
            None => std::env::var("HARBOR_ANNOUNCE_TOKEN").unwrap_or_default(),
        };
        match (told.trim(), &self.token_file) {
            ("", Some(path)) => Err(Failure::Usage(format!("there is no token in {}: it is empty", path.display()))),
            ("", None) => {
                Err(missing("there is no token: name its file by --token-file, or set HARBOR_ANNOUNCE_TOKEN"))
            }
            (token, _) => Ok(Token::presented(token.to_owned())),
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration > MAX_DURATION => Err("it is longer than an hour".into()),
        read => read.map_err(|error| error.to_string()),
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    match duration(text) {
        Ok(interval) if interval < MIN_INTERVAL => Err("it is shorter than a second".into()),
        read => read,
    }
}

/// What Diego says of where this is.
fn container() -> Result<Container, Failure> {
    let address = |name: &str| -> Result<Option<IpAddr>, Failure> {
        match std::env::var(name) {
            Ok(text) if !text.is_empty() => {
                text.parse().map(Some).map_err(|_| Failure::Usage(format!("{name} is {text:?}, and no IP address")))
            }
            _ => Ok(None),
        }
    };
    let ports = match std::env::var("CF_INSTANCE_PORTS") {
        Ok(text) if !text.is_empty() => places::mappings(&text)
            .map_err(|error| Failure::Usage(format!("CF_INSTANCE_PORTS is not what Diego writes there: {error}")))?,
        _ => Vec::new(),
    };
    Ok(Container { ip: address("CF_INSTANCE_IP")?, internal_ip: address("CF_INSTANCE_INTERNAL_IP")?, ports })
}

fn missing(what: &str) -> Failure {
    Failure::Usage(format!("{what}: see harbor announce --help"))
}

fn usage(error: impl std::fmt::Display) -> Failure {
    Failure::Usage(error.to_string())
}
