//! Machines of our own: network namespaces, each with one interface to a switch that is in a namespace too.
//!
//! Nothing of it is in the machine's own network, and removing the namespaces removes all. They are named after the
//! process that made them, so that those of a run that was killed are known and swept by the next one.

#![allow(dead_code, reason = "each test module uses the helpers it needs")]

use std::{
    fs::{self, File},
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd as _,
    process::{Command, Output},
    sync::atomic::{AtomicUsize, Ordering},
    thread::{self, JoinHandle},
};

use rustix::{
    process::{Pid, Signal, getuid, kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use tokio_util::sync::CancellationToken;

use super::{
    eventually::eventually,
    harbor::{Harbor, Site},
};

/// Where `ip` keeps namespaces.
const FOLDER: &str = "/run/netns";
const PREFIX: &str = "harbor-test";
/// The interface of each machine.
pub const INTERFACE: &str = "eth0";

static NETWORKS: AtomicUsize = AtomicUsize::new(0);

/// A switch with its machines. All of it, and whatever still runs there, ends when it is dropped.
#[derive(Debug)]
pub struct Network {
    name: String,
    machines: Vec<String>,
}

/// One machine of a [`Network`], which outlives it.
#[derive(Debug, Clone)]
pub struct Machine {
    namespace: String,
    /// Its port of the switch.
    port: String,
    switch: String,
    number: u8,
}

/// Work that goes on inside a machine until this is dropped.
#[derive(Debug)]
pub struct Resident {
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Network {
    /// An empty one. None where this machine or this user may have none: `test` is said to be skipped, and why.
    pub fn new(test: &str) -> Option<Self> {
        let skip = |reason: &str| {
            // Not captured as a print would be: said where the test's output is read.
            writeln!(io::stderr(), "skipped {test}: {reason}").expect("there is an output");
            None
        };
        if !getuid().is_root() {
            return skip("network namespaces want root");
        }
        sweep();
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let network =
            Self { name: format!("{PREFIX}-{}-{number}", std::process::id()), machines: vec!["switch".into()] };
        let switch = network.namespace("switch");
        match Command::new("ip").args(["netns", "add", &switch]).output() {
            Err(error) => return skip(&format!("there is no ip of iproute2: {error}")),
            Ok(made) if !made.status.success() => return skip(&said(&made)),
            Ok(_) => {}
        }
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &switch, "link", "set", "br0", "up"]);
        Some(network)
    }

    /// Adds a machine, connected and with its addresses.
    pub fn machine(&mut self, name: &str) -> Machine {
        let number = u8::try_from(self.machines.len()).expect("a few machines");
        let machine = Machine {
            namespace: self.namespace(name),
            port: format!("port{number}"),
            switch: self.namespace("switch"),
            number,
        };
        self.machines.push(name.into());
        let Machine { namespace, port, switch, .. } = &machine;
        ip(&["netns", "add", namespace]);
        ip(&["-n", switch, "link", "add", port, "type", "veth", "peer", "name", INTERFACE, "netns", namespace]);
        ip(&["-n", switch, "link", "set", port, "master", "br0", "up"]);
        for interface in ["lo", INTERFACE] {
            ip(&["-n", namespace, "link", "set", interface, "up"]);
        }
        for (address, length) in [(machine.address(), 24), (machine.address_v6(), 64)] {
            machine.add_address(address, length);
        }
        machine
    }

    fn namespace(&self, machine: &str) -> String {
        format!("{}-{machine}", self.name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.machines.iter().for_each(|machine| remove(&self.namespace(machine)));
    }
}

/// An IPv4 address of every network, by its last number.
pub fn address(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 77, 0, number).into()
}

/// The same of IPv6.
pub fn address_v6(number: u8) -> IpAddr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into()).into()
}

impl Machine {
    /// Its IPv4 address.
    pub fn address(&self) -> IpAddr {
        address(self.number)
    }

    /// Its IPv6 address.
    pub fn address_v6(&self) -> IpAddr {
        address_v6(self.number)
    }

    /// Gives it one more address, with the length of its network.
    pub fn add_address(&self, address: IpAddr, length: u8) {
        let address_in_network = format!("{address}/{length}");
        let mut arguments = vec!["-n", &self.namespace, "addr", "add", &address_in_network, "dev", INTERFACE];
        if address.is_ipv6() {
            // Nobody else has it: it can be used at once.
            arguments.push("nodad");
        }
        ip(&arguments);
    }

    /// Whether it has this address now, where its neighbours see it.
    pub fn has(&self, address: IpAddr) -> bool {
        let to = address.to_string();
        !ip(&["-n", &self.namespace, "-o", "addr", "show", "dev", INTERFACE, "to", &to]).stdout.is_empty()
    }

    /// Pulls its cable out of the switch.
    pub fn cut(&self) {
        ip(&["-n", &self.switch, "link", "set", &self.port, "down"]);
    }

    /// Puts it back.
    pub fn mend(&self) {
        ip(&["-n", &self.switch, "link", "set", &self.port, "up"]);
    }

    /// From now on sends nothing to that address. Whoever is there hears of it only by the silence.
    pub fn ignore(&self, address: IpAddr) {
        ip(&["-n", &self.namespace, "route", "add", "blackhole", &address.to_string()]);
    }

    /// Sends to it again.
    pub fn notice(&self, address: IpAddr) {
        ip(&["-n", &self.namespace, "route", "del", "blackhole", &address.to_string()]);
    }

    /// The same command, run inside. Its process has the id of the child.
    pub fn inside(&self, command: &Command) -> Command {
        let [program, arguments @ ..] = self.words();
        let mut inside = Command::new(program);
        inside.args(arguments).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside
    }

    /// What stands before the words of a command that is to run inside.
    pub fn words(&self) -> [String; 4] {
        ["ip", "netns", "exec", &self.namespace].map(String::from)
    }

    /// Runs a command inside, which must succeed.
    #[track_caller]
    pub fn succeed(&self, command: &Command) {
        let output = self.inside(command).output().expect("ip was there a moment ago");
        assert!(output.status.success(), "{command:?}: {}", said(&output));
    }

    /// Starts `harbor serve` inside, and waits until it is ready. As systemd does, it starts it again when it ends: as it
    /// may where its store says nothing in time on a busy machine.
    pub fn serve(&self, site: &Site) -> Harbor {
        let start = || site.start_with(self.inside(&site.command(&["serve"])));
        eventually("harbor comes up and stays", || Some(start()).filter(Harbor::comes_up))
    }

    /// Does `work` on a thread inside: sockets that it makes are the machine's, and stay so wherever they are used.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                self.enter();
                work()
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The same for what is asynchronous.
    pub fn block_on<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> T {
        self.run(|| runtime().block_on(work()))
    }

    /// Has `work` go on inside. It is to end when it is told.
    pub fn keep<F: Future<Output = ()>>(&self, work: impl FnOnce(CancellationToken) -> F + Send + 'static) -> Resident {
        let (stop, machine) = (CancellationToken::new(), self.clone());
        let told = stop.clone();
        let thread = thread::spawn(move || {
            machine.enter();
            runtime().block_on(work(told));
        });
        Resident { stop, thread: Some(thread) }
    }

    /// Takes the calling thread, and those it starts, inside for good.
    fn enter(&self) {
        let namespace = File::open(format!("{FOLDER}/{}", self.namespace)).expect("the network lives");
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("we are root");
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        self.stop.cancel();
        let ended = self.thread.take().expect("dropped once").join();
        assert!(ended.is_ok() || thread::panicking(), "what went on inside a machine panicked");
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("threads can have a runtime")
}

/// Runs `ip`, which must succeed.
#[track_caller]
fn ip(arguments: &[&str]) -> Output {
    let output = Command::new("ip").args(arguments).output().expect("it was there a moment ago");
    assert!(output.status.success(), "ip {}: {}", arguments.join(" "), said(&output));
    output
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

/// Ends what runs in a namespace, and removes it.
fn remove(namespace: &str) {
    let inside = Command::new("ip").args(["netns", "pids", namespace]).output().map(|output| output.stdout);
    for pid in String::from_utf8_lossy(&inside.unwrap_or_default()).lines() {
        if let Some(pid) =
            pid.trim().parse().ok().and_then(Pid::from_raw).filter(|pid| *pid != rustix::process::getpid())
        {
            // It may have ended by itself meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    // What was never made is not there.
    let _ = Command::new("ip").args(["netns", "del", namespace]).output();
}

/// Removes what runs have left that were killed.
fn sweep() {
    let Ok(namespaces) = fs::read_dir(FOLDER) else { return };
    for namespace in namespaces.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        let owner = namespace.strip_prefix(PREFIX).and_then(|rest| rest.split('-').nth(1));
        if owner.is_some_and(|owner| fs::metadata(format!("/proc/{owner}")).is_err()) {
            remove(&namespace);
        }
    }
}
