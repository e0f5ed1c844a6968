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
    Args, generator,
    peers::{
        self, Peer, Site, direct::Direct, envoy::Envoy, haproxy::Haproxy, harbor::Harbor, naive::Naive, nginx::Nginx,
    },
    process::Process,
    say,
    works::{
        Kind,
        Transport::{self, Tcp, Udp},
        Work,
    },
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

/// For what a proxy is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stay {
    /// Loads, for the whole run.
    Lasting,
    Idle,
    OneListener,
    Listeners,
}

/// Starts what is behind the proxies.
pub fn start_backend(program: &Path, address: SocketAddr, folder: &Path) -> anyhow::Result<Process> {
    let mut command = Command::new(program);
    command.args(["backend", "--listen", &address.to_string()]);
    let log = folder.join(format!("backend-{}.log", address.ip()));
    let mut backend = Process::start(&mut command, &log)?;
    backend.until("the backend is ready", Duration::from_secs(10), Duration::from_millis(5), || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("ready")).then_some(())
    })?;
    Ok(backend)
}

impl Stay {
    const fn of(work: &Kind) -> &'static [Self] {
        match work {
            Kind::Load(_) => &[Self::Lasting],
            Kind::Idle => &[Self::Idle],
            Kind::Listeners => &[Self::OneListener, Self::Listeners],
        }
    }
}

pub struct Arena {
    peers: Vec<Box<dyn Peer>>,
    versions: BTreeMap<String, String>,
    left_out: Vec<String>,
    /// Who failed verification of what.
    unfit: BTreeSet<(&'static str, Transport)>,
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
        all.push(Box::new(Harbor::new(harbor)));
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
        let backend = start_backend(&program, BACKEND, folder)?;
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

    /// Prepares every site that one of the works needs, starts the proxies that stay, and verifies that they carry what
    /// they are given unharmed.
    pub fn start_all(&mut self, works: &[&Work]) -> anyhow::Result<()> {
        for number in 0..self.peers.len() {
            let name = self.peers[number].name();
            let works = works.iter().filter(|work| work.peers.contains(&name));
            let stays = works.flat_map(|work| Stay::of(&work.kind)).collect::<BTreeSet<_>>();
            for stay in &stays {
                say(&format!("{name}: {stay:?}"));
                let site = self.site(name, **stay);
                std::fs::create_dir_all(&site.directory)?;
                let peer = &self.peers[number];
                peer.prepare(&site).with_context(|| format!("{name}: see {}", site.directory.display()))?;
            }
            if stays.contains(&Stay::Lasting) {
                self.start(number);
            }
        }
        Ok(())
    }

    /// A peer that does not start, or fails verification, is left out.
    fn start(&mut self, number: usize) {
        let peer = self.peers[number].as_ref();
        let (name, site) = (peer.name(), self.site(peer.name(), Stay::Lasting));
        let mut failures = Vec::new();
        match peers::start(peer, &site) {
            Ok(process) => {
                self.running.extend(process.map(|process| (name, process)));
                for transport in if site.udp { [Tcp, Udp].as_slice() } else { &[Tcp] } {
                    let verified = generator::verify(&self.program, peer.target(&site), *transport);
                    failures.extend(verified.err().map(|error| (*transport, error)));
                }
            }
            Err(error) => {
                self.unfit.insert((name, Udp));
                failures.push((Tcp, error));
            }
        }
        for (transport, error) in failures {
            self.unfit.insert((name, transport));
            self.left_out.push(format!("{name} is left out of {transport:?}: {error:#}"));
        }
    }

    pub fn versions(&self) -> &BTreeMap<String, String> {
        &self.versions
    }

    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Who does this work.
    pub fn peers_for(&self, work: &Work) -> Vec<&'static str> {
        let fit = |name: &&str| work.peers.contains(name) && !self.unfit.contains(&(*name, work.transport));
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
