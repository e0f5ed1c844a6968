//! A real PostgreSQL that can be stopped, killed, held still and started again at its place.
//!
//! `initdb` runs once for each test process; servers begin as copies of what it made. Each is the child of a shell that
//! waits for the end of its input, which comes when the test process ends, however it does: then it takes the server and
//! its files away.

#![allow(dead_code, reason = "each test module uses the helpers it needs")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
};

use harbor::store;
use rustix::process::{Pid, Signal, kill_process};

use super::eventually::{PATIENCE, eventually};

/// Servers get their ports from here, below the range that the system gives out by itself: the port of a server that is
/// down for a moment is nobody else's meanwhile.
const FIRST_PORT: u16 = 23_100;
const LAST_PORT: u16 = 23_399;

static NEXT_PORT: AtomicU16 = AtomicU16::new(0);
static NEXT_DATABASE: AtomicUsize = AtomicUsize::new(0);

/// The user of PostgreSQL that tests log in as, and who owns their databases.
pub const USER: &str = "harbor";

/// For those who log in over TCP.
pub const PASSWORD: &str = "hunter2 /@:?";

/// Waits for the end of its input, ends the server in the folder of its argument, also one that is held still, and removes
/// the folder.
const KEEPER: &str = r#"
    folder=$1
    read -r line
    if read -r pid <"$folder/data/postmaster.pid"; then
        kill -QUIT "$pid"
        kill -CONT "$pid" $(cat "/proc/$pid/task/$pid/children")
        for _ in $(seq 500); do [ -e "/proc/$pid/exe" ] && sleep 0.01 || break; done
    fi
    rm -rf "$folder"
"#;

/// A cluster that `initdb` has made and nobody runs.
static TEMPLATE: LazyLock<Folder> = LazyLock::new(|| {
    let folder = Folder::new();
    let password = folder.path.join("password");
    fs::write(&password, PASSWORD).expect("the folder is ours");
    folder.give_away(&password);
    let output = folder
        .command("initdb")
        .args(["--no-sync", "--encoding=UTF8", "--no-locale", "--auth-local=trust", "--auth-host=scram-sha-256"])
        .args(["--username", USER, "--pwfile"])
        .arg(&password)
        .arg("-D")
        .arg(folder.path.join("data"))
        .output()
        .expect("initdb can be run");
    assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
    folder
});

/// The server that most tests share, each with a database of its own.
static SHARED: LazyLock<Postgres> = LazyLock::new(Postgres::start);

/// A server; ended when dropped, and with the test process.
#[derive(Debug)]
pub struct Postgres {
    folder: Folder,
    /// Where it listens, and what runs a command there.
    address: IpAddr,
    inside: Vec<String>,
    port: u16,
    server: Option<Child>,
}

/// A folder in which a server may live, and whoever removes it.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    keeper: Child,
}

impl Folder {
    fn new() -> Self {
        // The path of a socket has little more than 100 bytes.
        let path =
            tempfile::Builder::new().prefix("harbor-pg").tempdir_in("/tmp").expect("a temporary directory").keep();
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper"])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("there is a shell");
        let folder = Self { path, keeper };
        fs::set_permissions(&folder.path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        folder.give_away(&folder.path);
        folder
    }

    /// A program of PostgreSQL, run by somebody who may.
    fn command(&self, program: &str) -> Command {
        let path = program_path(program);
        let mut command = match unprivileged() {
            None => Command::new(path),
            Some((user, group)) => {
                let mut command = Command::new("setpriv");
                command
                    .args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".into()])
                    .arg(path);
                command
            }
        };
        command.current_dir(&self.path).stdin(Stdio::null());
        command
    }

    /// Makes a file the server's.
    fn give_away(&self, path: &Path) {
        if let Some((user, group)) = unprivileged() {
            chown(path, Some(user), Some(group)).expect("root may do so");
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

impl Postgres {
    /// One of its own, for a test that does something to it.
    pub fn start() -> Self {
        Self::start_with("", &[])
    }

    /// The same with more lines in its configuration, and files that those name, which end up beside it.
    pub fn start_with(configuration: &str, files: &[(&str, &str)]) -> Self {
        Self::make(configuration, files, Ipv4Addr::LOCALHOST.into(), Vec::new())
    }

    /// One that listens elsewhere, where the words `inside` run a command; its password lets in all of its network.
    pub fn start_at(address: IpAddr, inside: Vec<String>) -> Self {
        let who = "local all all trust\nhost all all samenet scram-sha-256\n";
        Self::make("", &[("pg_hba.conf", who)], address, inside)
    }

    fn make(configuration: &str, files: &[(&str, &str)], address: IpAddr, inside: Vec<String>) -> Self {
        let folder = Folder::new();
        let status = Command::new("cp").arg("-a").arg(TEMPLATE.path.join("data")).arg(&folder.path).status();
        assert!(status.expect("there is cp").success(), "the cluster cannot be copied");
        let data = folder.path.join("data");
        for (name, text) in files {
            let path = data.join(name);
            fs::write(&path, text).expect("the folder is ours");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
            folder.give_away(&path);
        }
        let more = format!(
            "fsync = off\nfull_page_writes = off\nmax_connections = 200\n\
             shared_buffers = '16MB'\nunix_socket_directories = '{}'\n{configuration}\n",
            folder.path.display()
        );
        let path = data.join("postgresql.auto.conf");
        fs::write(&path, more).expect("the folder is ours");
        let mut server = Self { folder, address, inside, port: next_port(), server: None };
        for _ in FIRST_PORT..=LAST_PORT {
            if server.try_start() {
                return server;
            }
            server.port = next_port();
        }
        panic!("PostgreSQL starts on none of the ports from {FIRST_PORT} to {LAST_PORT}:\n{}", server.log());
    }

    /// The one that tests share. Nothing may be done to it but with databases of one's own.
    pub fn shared() -> &'static Self {
        &SHARED
    }

    /// The URL of a new database, over the server's socket.
    pub fn database(&self) -> String {
        let name = format!("d{}", NEXT_DATABASE.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        self.url_of(&name)
    }

    /// The URL of a database, over the server's socket.
    pub fn url_of(&self, database: &str) -> String {
        format!("postgres://{USER}@/{database}?host={}&port={}", self.folder.path.display(), self.port)
    }

    /// The URL of a new database over TCP, but for its password.
    pub fn database_over_tcp(&self) -> String {
        let database = self.database();
        let name = database.split(['/', '?']).nth(3).expect("it is a part of the URL");
        format!("postgres://{USER}@{}:{}/{name}", self.address, self.port)
    }

    /// The folder of its socket, and the port that the socket is named by.
    pub fn socket(&self) -> (&Path, u16) {
        (&self.folder.path, self.port)
    }

    /// Where it listens for TCP.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Does what somebody with `psql` would. Returns what that prints, rows without ornament.
    pub fn sql(&self, database: &str, statements: &str) -> String {
        self.sql_at(&self.url_of(database), statements)
    }

    /// The same on the database of a URL.
    pub fn sql_at(&self, url: &str, statements: &str) -> String {
        let output = Command::new(program_path("psql"))
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "-v", "ON_ERROR_STOP=1"])
            .args(["-d", url, "-c", statements])
            .stdin(Stdio::null())
            .output()
            .expect("psql can be run");
        assert!(output.status.success(), "{statements}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("PostgreSQL speaks UTF-8")
    }

    /// Ends it as its service does, with connections open. It keeps its place.
    pub fn stop(&mut self) {
        // "fast": sessions are ended, what is committed is kept.
        self.end(Signal::INT);
    }

    /// Kills it as a crash would, with all of its processes.
    pub fn kill(&mut self) {
        for pid in self.processes() {
            let _ = kill_process(pid, Signal::KILL);
        }
        self.end(Signal::KILL);
    }

    /// Starts it again on the same port.
    pub fn start_again(&mut self) {
        assert!(self.server.is_none(), "it runs");
        assert!(self.try_start(), "PostgreSQL does not start again:\n{}", self.log());
    }

    /// Takes a backup, for which it is stopped for a moment.
    pub fn back_up(&mut self) {
        self.stop();
        self.copy("data", "backup");
        self.start_again();
    }

    /// Kills it, and starts it again as it was at the last backup.
    pub fn restore(&mut self) {
        self.kill();
        self.copy("backup", "data");
        self.start_again();
    }

    fn copy(&self, from: &str, to: &str) {
        let (from, to) = (self.folder.path.join(from), self.folder.path.join(to));
        let _ = fs::remove_dir_all(&to);
        assert!(Command::new("cp").arg("-a").args([from, to]).status().expect("there is cp").success());
    }

    /// Holds one of its processes still, which serves the connection that has asked this last.
    pub fn pause_who_was_asked(&self, database: &str, statement: &str) {
        let find = format!("SELECT pid FROM pg_stat_activity WHERE datname = '{database}' AND query = '{statement}'");
        let pid = self.sql("postgres", &find);
        let pid = Pid::from_raw(pid.trim().parse().expect("one process")).expect("a process id");
        kill_process(pid, Signal::STOP).expect("it runs");
    }

    /// Holds it still: connections stay, and nothing answers.
    pub fn pause(&self) {
        // First the one that would start others.
        for pid in self.processes() {
            let _ = kill_process(pid, Signal::STOP);
        }
    }

    /// Lets it go on.
    pub fn resume(&self) {
        for pid in self.processes() {
            let _ = kill_process(pid, Signal::CONT);
        }
    }

    /// What it has written to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path.join("log")).unwrap_or_default()
    }

    /// The server's first process and then its children.
    fn processes(&self) -> Vec<Pid> {
        let Some(first) = &self.server else { return Vec::new() };
        let first = i32::try_from(first.id()).expect("a process id");
        let children = fs::read_to_string(format!("/proc/{first}/task/{first}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        std::iter::once(first).chain(children).filter_map(Pid::from_raw).collect()
    }

    fn end(&mut self, signal: Signal) {
        let Some(mut server) = self.server.take() else { return };
        let pid = Pid::from_child(&server);
        let _ = kill_process(pid, Signal::CONT);
        let _ = kill_process(pid, signal);
        server.wait().expect("it is our child");
    }

    /// Whether it came up. It did not when its port is taken.
    fn try_start(&mut self) -> bool {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.path.join("log")).expect("ours");
        let mut command = self.folder.command("postgres");
        command.arg("-D").arg(self.folder.path.join("data"));
        command.args(["-p", &self.port.to_string(), "-h", &self.address.to_string()]);
        if let [program, arguments @ ..] = &*self.inside {
            let mut inside = Command::new(program);
            inside.args(arguments).arg(command.get_program()).args(command.get_args());
            command = inside;
        }
        let mut child = command
            .current_dir(&self.folder.path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("postgres can be run");
        let state = self.folder.path.join("data/postmaster.pid");
        let up = eventually("PostgreSQL takes connections or has ended", || {
            // Its eighth line says so.
            let lines = fs::File::open(&state).ok().map(|file| BufReader::new(file).lines().map_while(Result::ok));
            let lines = lines.into_iter().flatten().collect::<Vec<_>>();
            let is_own = lines.first().is_some_and(|pid| *pid == child.id().to_string());
            if is_own && lines.get(7).is_some_and(|state| state.trim() == "ready") {
                return Some(true);
            }
            child.try_wait().expect("it is our child").map(|_| false)
        });
        if up {
            self.server = Some(child);
        }
        up
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.resume();
        self.end(Signal::QUIT);
    }
}

/// The settings of a store there, for tests that are not about time: on a machine that has others to serve, an answer may
/// be late.
pub fn settings(url: String) -> store::Settings {
    let migrate_within = store::MIGRATE_WITHIN;
    store::Settings { url, password: None, data_dir: PathBuf::new(), answer_within: PATIENCE, migrate_within }
}

/// As whom PostgreSQL runs, which refuses root: the owner of its own files on this machine, or nobody.
fn unprivileged() -> Option<(u32, u32)> {
    if !rustix::process::getuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").expect("there are users");
    ["postgres", "nobody"].iter().find_map(|name| {
        let fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == *name)?;
        Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
    })
}

/// Where Debian keeps a program of PostgreSQL, the newest one; else what is in the path.
fn program_path(program: &str) -> PathBuf {
    let version = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path());
    let path = versions.max_by_key(version).map(|newest| newest.join("bin").join(program));
    path.filter(|path| path.exists()).unwrap_or_else(|| program.into())
}

/// Test processes that run at the same time begin at different places.
fn next_port() -> u16 {
    let count = LAST_PORT - FIRST_PORT + 1;
    let begin = u16::try_from(std::process::id() * 37 % u32::from(count)).expect("less than count");
    FIRST_PORT + (begin + NEXT_PORT.fetch_add(1, Ordering::Relaxed)) % count
}
