//! Harbor as its operators run it: `harbor serve` on SQLite, ports provisioned over the broker API, the backend
//! announced over HTTP with the token of its binding.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use harbor::admin::wire::STATUS_PATH;
use serde_json::{Value, json};

use super::{Peer, Process, Site, WORKERS, version_line};
use crate::compare::http;

/// `harbor:secret`.
const AUTHORIZATION: &str = "Basic aGFyYm9yOnNlY3JldA==";
const SERVICE: &str = harbor::model::plan::SERVICE_ID;
const PLAN_TCP: &str = "e1f6b1f0-57f3-5c0e-8a0b-6d3a6f0c1a02";
const PLAN_BOTH: &str = "e1f6b1f0-57f3-5c0e-8a0b-6d3a6f0c1a04";

/// What is bound to the first port.
pub const APP: &str = "app";

/// More than any load holds, and of one port as much as the descriptors allow.
const CONNECTIONS: u32 = 15_000;
/// Who provisions many ports does it on so many connections.
const PROVISIONERS: usize = 4;
/// How long a start may take, with thousands of ports too.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Harbor {
    binary: PathBuf,
    /// Keys of `[discovery]`.
    discovery: &'static str,
    nats: Option<SocketAddr>,
}

impl Peer for Harbor {
    fn name(&self) -> &'static str {
        "harbor"
    }

    fn version(&self) -> anyhow::Result<String> {
        let line = version_line(Command::new(&self.binary).arg("--version"))?;
        Ok(line.rsplit(' ').next().unwrap_or(&line).to_owned())
    }

    /// Fills the store: what a node has been told stays known to it.
    fn prepare(&self, site: &Site) -> anyhow::Result<()> {
        let mut process = self.serve(site)?;
        process.until("it is ready", PATIENCE, Duration::from_millis(1), || ready(site))?;
        let share = site.ports.len().div_ceil(PROVISIONERS);
        thread::scope(|scope| {
            let shares = site.ports.chunks(share).map(|ports| scope.spawn(|| provision(site, ports)));
            let shares = shares.collect::<Vec<_>>();
            shares.into_iter().try_for_each(|share| share.join().expect("provisioning does not panic"))
        })
    }

    fn start(&self, site: &Site) -> anyhow::Result<Option<Process>> {
        self.serve(site).map(Some)
    }

    /// Announces the backend behind the first port.
    fn settle(&self, site: &Site) -> anyhow::Result<()> {
        let port = site.ports[0];
        let bound = bind(site, port, APP)?;
        let token = bound["credentials"]["announce"]["token"].as_str().context("the credentials hold no token")?;
        let body = json!({ "binding_id": format!("b{port}"), "port": site.backend.port() });
        let path = format!("/announce/v1/instances/p{port}");
        let authorization = format!("Bearer {token}");
        let (status, answer) =
            http::request(announce(site), "PUT", &path, &[("authorization", &authorization)], &body)?;
        ensure!(status == 200, "the announcement was answered with {status} {answer}");
        Ok(())
    }

    fn bind_seconds(&self, site: &Site) -> Option<f64> {
        let log = fs::read_to_string(site.directory.join("log")).ok()?;
        let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let fields = events.map(|mut event| event["fields"].take());
        let mut bound = fields.filter(|fields| fields["message"] == "took over the first snapshot");
        bound.find_map(|fields| fields["took_ms"].as_f64()).map(|milliseconds| milliseconds / 1e3)
    }
}

impl Harbor {
    /// One whose backends need not be announced again, and only over HTTP.
    pub fn new(binary: PathBuf) -> Self {
        Self { binary, discovery: "stale_after = \"24h\"", nats: None }
    }

    /// One with these keys of `[discovery]`, and NATS where there is a server.
    pub fn with_discovery(self, discovery: &'static str, nats: Option<SocketAddr>) -> Self {
        Self { discovery, nats, ..self }
    }

    fn serve(&self, site: &Site) -> anyhow::Result<Process> {
        fs::write(config_path(site), self.config(site)?)?;
        let mut command = Command::new(&self.binary);
        command.arg("serve").arg("--config").arg(config_path(site));
        Process::start(&mut command, &site.directory.join("log"))
    }

    /// Defaults, but for what the work needs: backends on loopback that are announced once, and many connections.
    fn config(&self, site: &Site) -> anyhow::Result<String> {
        let (first, last) = (site.ports.iter().min().context("a port")?, site.ports.iter().max().context("a port")?);
        Ok(format!(
            r#"[broker]
listen = "{broker}"
password = "secret"

[announce]
listen = "{announce}"
public_url = "http://{announce}"

[admin]
listen = "{admin}"

[log]
format = "json"

[discovery]
backend_networks = ["127.0.0.0/8"]
{discovery}

[harbor_node]
data_dir = {data:?}
port_range = "{first}-{last}"
host = "127.0.0.1"

[forwarder]
max_connections_per_port = {CONNECTIONS}
workers = {WORKERS}
{nats}"#,
            broker = api(site, 0),
            admin = admin(site),
            announce = announce(site),
            data = site.directory.join("data"),
            discovery = self.discovery,
            nats = self.nats.map(|server| format!("\n[nats]\nservers = [\"nats://{server}\"]\n")).unwrap_or_default(),
        ))
    }
}

/// Binds an app to the service instance of a port. Returns the answer.
pub fn bind(site: &Site, port: u16, app: &str) -> anyhow::Result<Value> {
    let body = json!({ "service_id": SERVICE, "plan_id": plan(site), "bind_resource": { "app_guid": app } });
    broker(site, &format!("/v2/service_instances/p{port}/service_bindings/b{port}"), &body)
}

/// The number after a line's begin in what `/metrics` shows, of all such lines.
pub fn metric(site: &Site, begin: &str) -> anyhow::Result<f64> {
    let (status, text) = http::exchange(admin(site), "GET", "/metrics", &[], &Value::Null)?;
    ensure!(status == 200, "/metrics was answered with {status}");
    let values = text.lines().filter(|line| line.starts_with(begin)).filter_map(|line| line.rsplit(' ').next());
    Ok(values.filter_map(|value| value.parse::<f64>().ok()).sum())
}

/// What the node says of itself.
pub fn status(site: &Site) -> anyhow::Result<Value> {
    let token = fs::read_to_string(site.directory.join("data/admin.token"))?;
    let authorization = format!("Bearer {}", token.trim());
    let (status, answer) =
        http::request(admin(site), "GET", STATUS_PATH, &[("authorization", &authorization)], &Value::Null)?;
    ensure!(status == 200, "the status was answered with {status} {answer}");
    Ok(answer)
}

fn config_path(site: &Site) -> PathBuf {
    site.directory.join("harbor.toml")
}

fn api(site: &Site, number: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, site.api_port + number).into()
}

fn admin(site: &Site) -> SocketAddr {
    api(site, 1)
}

fn announce(site: &Site) -> SocketAddr {
    api(site, 2)
}

fn plan(site: &Site) -> &'static str {
    if site.udp { PLAN_BOTH } else { PLAN_TCP }
}

fn ready(site: &Site) -> Option<()> {
    let answer = http::request(admin(site), "GET", "/readyz", &[], &Value::Null);
    answer.is_ok_and(|(status, _)| status == 200).then_some(())
}

fn provision(site: &Site, ports: &[u16]) -> anyhow::Result<()> {
    for port in ports {
        let parameters = json!({ "port": port });
        let body = json!({
            "service_id": SERVICE, "plan_id": plan(site), "organization_guid": "o", "space_guid": "s",
            "parameters": parameters,
        });
        broker(site, &format!("/v2/service_instances/p{port}"), &body)?;
    }
    Ok(())
}

/// A `PUT` that makes something, or finds it made.
fn broker(site: &Site, path: &str, body: &Value) -> anyhow::Result<Value> {
    let headers = [("authorization", AUTHORIZATION), ("x-broker-api-version", "2.17")];
    let (status, answer) = http::request(api(site, 0), "PUT", path, &headers, body)?;
    if !matches!(status, 200 | 201) {
        bail!("the broker answered {path} with {status} {answer}");
    }
    Ok(answer)
}
