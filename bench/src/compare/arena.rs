//! The backend and all proxies of a run, started once, and where each is.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context as _;

use super::{
    Args, load,
    peers::{
        self, Peer, Site, direct::Direct, envoy::Envoy, haproxy::Haproxy, harbor::Harbor, naive::Naive, nginx::Nginx,
    },
    process::Process,
    say,
    works::{Kind, Transport, Work},
};

pub const BACKEND: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9000);

/// Ports of a proxy that stays for the whole run, of one that is started for idle connections, and of one that is
/// started for its listeners. Harbor keeps its own connections off its pools; all of this is below the local ports.
const LASTING_PORTS: u16 = 20_000;
const IDLE_PORTS: u16 = 20_100;
const ONE_LISTENER_PORTS: u16 = 20_200;
const LISTENER_PORTS: u16 = 21_000;

/// As many as a node may well have.
pub const LISTENERS: u16 = 5_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    Lasting,
    Idle,
    OneListener,
    Listeners,
}

/// Starts what is behind the proxies.
pub fn start_backend(program: &Path, folder: &Path) -> anyhow::Result<Process> {
    let mut command = Command::new(program);
    command.args(["backend", "--listen", &BACKEND.to_string()]);
    let log = folder.join("backend.log");
    let mut backend = Process::start(&mut command, &log)?;
    backend.until("the backend is ready", Duration::from_secs(10), Duration::from_millis(5), || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("ready")).then_some(())
    })?;
    Ok(backend)
}

pub struct Arena {
    peers: Vec<Box<dyn Peer>>,
    versions: BTreeMap<String, String>,
    left_out: Vec<String>,
    /// Who failed verification of what.
    unfit: BTreeSet<(&'static str, bool)>,
    running: BTreeMap<&'static str, Process>,
    _backend: Process,
    /// Where the program is that loads.
    program: PathBuf,
    /// Of the configurations, logs and states of all.
    folder: PathBuf,
}

impl Arena {
    /// Starts the backend and looks which peers are installed.
    pub fn open(args: &Args, folder: &Path) -> anyhow::Result<Self> {
        let program = env::current_exe()?;
        let harbor = args.harbor.canonicalize()?;
        let mut all: Vec<Box<dyn Peer>> =
            vec![Box::new(Direct), Box::new(Haproxy::Auto), Box::new(Haproxy::Forced), Box::new(Nginx)];
        all.extend(args.envoy.clone().map(|binary| Box::new(Envoy { binary }) as Box<dyn Peer>));
        all.push(Box::new(Naive));
        all.push(Box::new(Harbor { binary: harbor }));
        let wanted = |name: &str| args.against.is_empty() || name == "harbor" || args.against.iter().any(|a| a == name);
        all.retain(|peer| wanted(peer.name()));
        let (mut versions, mut left_out) = (BTreeMap::new(), Vec::new());
        if wanted("envoy") && args.envoy.is_none() {
            left_out.push("envoy is left out: it could not be installed".into());
        }
        all.retain(|peer| match peer.version() {
            Ok(version) => versions.insert(peer.name().to_owned(), version).is_none(),
            Err(error) => {
                left_out.push(format!("{} is left out: {error:#}", peer.name()));
                false
            }
        });
        let backend = start_backend(&program, folder)?;
        let (unfit, running) = Default::default();
        Ok(Self {
            peers: all,
            versions,
            left_out,
            unfit,
            running,
            _backend: backend,
            program,
            folder: folder.to_owned(),
        })
    }

    /// Starts every proxy that one of the works needs, and verifies that it carries what it is given unharmed.
    pub fn start_all(&mut self, works: &[&Work]) -> anyhow::Result<()> {
        let stays = |kind: &Kind| match kind {
            Kind::Load(_) => [Stay::Lasting].as_slice(),
            Kind::Idle => &[Stay::Idle],
            Kind::Listeners => &[Stay::OneListener, Stay::Listeners],
        };
        let mut failed = Vec::new();
        for peer in &self.peers {
            let name = peer.name();
            let works = works.iter().filter(|work| work.peers.contains(&name)).collect::<Vec<_>>();
            let needed = works.iter().flat_map(|work| stays(&work.kind)).collect::<Vec<_>>();
            for stay in [Stay::Lasting, Stay::Idle, Stay::OneListener, Stay::Listeners] {
                if needed.contains(&&stay) {
                    let site = self.site(name, stay);
                    std::fs::create_dir_all(&site.directory)?;
                    say(&format!("{name}: {stay:?}"));
                    peer.prepare(&site).with_context(|| format!("{name}: see {}", site.directory.display()))?;
                }
            }
            if !needed.contains(&&Stay::Lasting) {
                continue;
            }
            let site = self.site(name, Stay::Lasting);
            match peers::start(peer.as_ref(), &site) {
                Ok(process) => self.running.extend(process.map(|process| (name, process))),
                Err(error) => {
                    failed.extend([(name, true, format!("{error:#}")), (name, false, String::new())]);
                    continue;
                }
            }
            let mut transports = vec![Transport::Tcp];
            transports.extend(site.udp.then_some(Transport::Udp));
            for transport in transports {
                if let Err(error) = load::verify(&self.program, peer.target(&site), transport) {
                    failed.push((name, transport == Transport::Udp, format!("{error:#}")));
                }
            }
        }
        for (name, udp, why) in failed {
            self.unfit.insert((name, udp));
            if !why.is_empty() {
                let what = if udp { "UDP" } else { "TCP" };
                self.left_out.push(format!("{name} is left out of {what}: {why}"));
            }
        }
        self.left_out.iter().for_each(|text| say(text));
        Ok(())
    }

    pub fn versions(&self) -> &BTreeMap<String, String> {
        &self.versions
    }

    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Who does this work.
    pub fn peers_for(&self, work: &Work) -> Vec<&'static str> {
        let fit =
            |name: &&str| work.peers.contains(name) && !self.unfit.contains(&(*name, work.transport == Transport::Udp));
        self.peers.iter().map(|peer| peer.name()).filter(fit).collect()
    }

    pub fn peer(&self, name: &str) -> &dyn Peer {
        self.peers.iter().find(|peer| peer.name() == name).expect("asked only for those that are there").as_ref()
    }

    /// Where a peer is, or will be.
    pub fn site(&self, name: &str, stay: Stay) -> Site {
        let number = peers::NAMES.iter().position(|peer| *peer == name).expect("it has a name");
        let number = u16::try_from(number).expect("there are few");
        let (first, count, api) = match stay {
            Stay::Lasting => (LASTING_PORTS + number, 1, 8_000),
            Stay::Idle => (IDLE_PORTS + number, 1, 8_100),
            Stay::OneListener => (ONE_LISTENER_PORTS + number, 1, 8_200),
            Stay::Listeners => (LISTENER_PORTS, LISTENERS, 8_300),
        };
        Site {
            directory: self.folder.join(format!("{name}-{stay:?}").to_lowercase()),
            ports: (first..first + count).collect(),
            api_port: api + number * 10,
            backend: BACKEND,
            udp: stay == Stay::Lasting && !name.starts_with("haproxy"),
        }
    }

    pub fn pids(&self, name: &str) -> Vec<u32> {
        self.running.get(name).map(Process::pids).unwrap_or_default()
    }

    pub fn program(&self) -> &Path {
        &self.program
    }
}
