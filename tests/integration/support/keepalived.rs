//! A real keepalived inside a machine, with the configuration that operators get.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::namespaces::{INTERFACE, Machine};

/// Where the configurations are.
const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/keepalived");

/// A running one; ended when dropped.
#[derive(Debug)]
pub struct Keepalived {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    _directory: TempDir,
}

/// What its machine is to the pair.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub own: IpAddr,
    pub peer: IpAddr,
    pub peer_v6: IpAddr,
    pub priority: u8,
    /// `admin.listen`, as the configuration has it.
    pub admin: &'a str,
}

/// A configuration of `manifests/keepalived`, with these values instead of those of the example.
pub fn configuration(name: &str, values: &[(&str, &str)]) -> String {
    let mut text = fs::read_to_string(format!("{MANIFESTS}/{name}")).expect("it is there");
    for (key, value) in values {
        let (mut kept, mut found) = (String::new(), false);
        for line in text.lines() {
            // Those of one node have its name before them.
            let defined = line.split_once('$').and_then(|(_, definition)| definition.split_once('='));
            if defined.is_some_and(|(defined, _)| defined == *key) {
                found = true;
                continue;
            }
            kept += line;
            kept += "\n";
        }
        assert!(found, "{name} has no ${key}");
        text = format!("${key}={value}\n{kept}");
    }
    text
}

/// What keepalived says against a configuration on `machine`; nothing when it takes it.
pub fn objections(machine: &Machine, configuration: &str) -> String {
    let directory = prepared(configuration);
    let mut command = Command::new("keepalived");
    command.args(["--config-test", "--log-console", "--use-file"]).arg(directory.path().join("keepalived.conf"));
    let output = machine.inside(&command).output().expect("keepalived is installed and on the PATH");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert_eq!(output.status.success(), said.is_empty(), "{}: {said}", output.status);
    said
}

/// A folder as /etc/keepalived is.
fn prepared(configuration: &str) -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let script = directory.path().join("harbor-ready");
    fs::write(directory.path().join("keepalived.conf"), configuration).expect("the directory is ours");
    // Copied, as keepalived runs no script that others than root could have changed.
    fs::copy(Path::new(MANIFESTS).join("harbor-ready"), &script).expect("it is there");
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).expect("the directory is ours");
    directory
}

impl Keepalived {
    /// Starts it on `machine`, with all that belongs to it, for a pair that shares `address` and `address_v6`.
    pub fn start(machine: &Machine, place: Place<'_>, address: IpAddr, address_v6: IpAddr) -> Self {
        let Place { own, peer, peer_v6, priority, admin } = place;
        let (own_text, peer_text, priority) = (own.to_string(), peer.to_string(), priority.to_string());
        let (network, network_v6) = (format!("{address}/24"), format!("{address_v6}/64"));
        let directory = prepared(&configuration(
            "keepalived.conf",
            &[
                ("OWN", &own_text),
                ("PEER", &peer_text),
                ("PRIORITY", &priority),
                ("INTERFACE", INTERFACE),
                ("ADDRESS", &network),
                ("ADDRESS_V6", &network_v6),
                ("ADMIN", admin),
            ],
        ));
        let file = |name: &str| directory.path().join(name);
        let mut prepare = Command::new(format!("{MANIFESTS}/harbor-address"));
        prepare.args(
            [peer, peer_v6]
                .into_iter()
                .zip([address, address_v6])
                .flat_map(<[IpAddr; 2]>::from)
                .map(|ip| ip.to_string()),
        );
        machine.succeed(&prepare);
        let mut command = Command::new("keepalived");
        command.args(["--dont-fork", "--log-console", "--log-detail", "--vrrp"]);
        command.arg("--use-file").arg(file("keepalived.conf"));
        command.arg("--pid").arg(file("pid")).arg("--vrrp_pid").arg(file("vrrp.pid"));
        // Through a pipe: it would wait for a disk that is busy, and not send its messages meanwhile.
        let (reader, writer) = io::pipe().expect("descriptors are left");
        let mut command = machine.inside(&command);
        command.stdin(Stdio::null()).stdout(writer.try_clone().expect("descriptors are left")).stderr(writer);
        let child = command.spawn().expect("keepalived is installed and on the PATH");
        let log = Arc::<Mutex<Vec<String>>>::default();
        let reader = thread::spawn({
            let log = Arc::clone(&log);
            move || {
                let lines = BufReader::new(reader).lines().map_while(Result::ok);
                lines.for_each(|line| log.lock().expect("no panic under the lock").push(line));
            }
        });
        Self { child, log, reader: Some(reader), _directory: directory }
    }

    /// The state that it is in: `MASTER`, `BACKUP` or `FAULT`, and nothing before the first.
    pub fn state(&self) -> String {
        let log = self.log.lock().expect("no panic under the lock");
        let last = log.iter().rev().find_map(|line| line.split_once("Entering ")?.1.strip_suffix(" STATE"));
        last.unwrap_or_default().to_owned()
    }
}

impl Drop for Keepalived {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.log.lock().expect("no panic under the lock").join("\n");
            let _ = writeln!(io::stderr(), "keepalived:\n{log}");
        }
        // Told, not killed: it ends its own children.
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")).expect("not zero");
        let _ = kill_process(pid, Signal::TERM);
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            reader.join().expect("it does not panic");
        }
    }
}
