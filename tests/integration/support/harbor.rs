//! A real `harbor serve` process, as an operator runs it.

#![allow(dead_code, reason = "each test module uses the helpers it needs")]

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    eventually::{PATIENCE, eventually, eventually_for},
    http::Client,
};

/// `harbor:secret`, as the tests' configurations have it.
pub const AUTHORIZATION: &str = "Basic aGFyYm9yOnNlY3JldA==";

/// How long a hot restart may take: its own bounds are longer still.
const RESTARTS_WITHIN: Duration = Duration::from_secs(80);

/// How long a process that was told to end may take: some wait for what is open.
const ENDS_WITHIN: Duration = Duration::from_secs(120);

/// By this variable, with a value of its own for each [`Harbor`], its processes are known: those that they start inherit it.
const FAMILY: &str = "FAMILY_OF_A_TEST";

/// A directory with a configuration and the state of one node; processes come and go on it.
#[derive(Debug)]
pub struct Site {
    directory: Arc<TempDir>,
    /// Settings that come from the environment.
    variables: Vec<(String, String)>,
}

/// One process on a [`Site`], and those that it has handed over to; killed when dropped.
#[derive(Debug)]
pub struct Harbor {
    child: Child,
    family: String,
    /// Which of them serves.
    serving: AtomicU32,
    admin_token_file: PathBuf,
    /// Its configuration and state stay while it runs.
    _directory: Arc<TempDir>,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Log {
    state: Mutex<LogState>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct LogState {
    lines: Vec<String>,
    listening: HashMap<String, SocketAddr>,
    ended: bool,
}

impl Site {
    /// A site whose pool has `ports`, with `more` settings appended (TOML, starting with a section or with keys of
    /// `[harbor_node]`). All APIs listen on free ports of loopback; backends on loopback are allowed.
    pub fn new(ports: &str, more: &str) -> Self {
        Self::named("harbor_node_1", ports, more)
    }

    /// The same of a node with this id.
    pub fn named(id: &str, ports: &str, more: &str) -> Self {
        let directory = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        let data = directory.path().join("data");
        let config = format!(
            r#"
[broker]
listen = "127.0.0.1:0"
password = "secret"

[announce]
listen = "127.0.0.1:0"
public_url = "http://harbor-announce.example.com"

[admin]
listen = "127.0.0.1:0"

[log]
format = "json"
level = "debug"

[discovery]
domain = "harbor.example.com"
backend_networks = ["127.0.0.0/8", "::1/128"]

[harbor_node]
id = {id:?}
data_dir = {data:?}
port_range = "{ports}"
host = "127.0.0.1"
host_external = "192.0.43.10"
hostname_external = "ext-services.example.com"
quarantine = "0s"
{more}
"#
        );
        std::fs::write(directory.path().join("harbor.toml"), config).expect("the configuration can be written");
        Self { directory, variables: Vec::new() }
    }

    /// The same with another value of a key, as `forwarder.drain_wait`.
    pub fn with(mut self, key: &str, value: &str) -> Self {
        let name = format!("HARBOR_{}", key.to_uppercase().replace('.', "__"));
        self.variables.push((name, value.into()));
        self
    }

    /// Where the configuration is.
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("harbor.toml")
    }

    /// Where the state is.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// A directory for whatever else a test needs.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A `harbor` command with this configuration.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_harbor"));
        command.args(arguments).env("HARBOR_CONFIG", self.config()).stdin(Stdio::null());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts `harbor serve` and does not wait.
    pub fn start(&self) -> Harbor {
        self.start_with(self.command(&["serve"]))
    }

    /// Starts `harbor serve` by this command of the site.
    pub fn start_with(&self, mut command: Command) -> Harbor {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let family = format!("{}-{}", std::process::id(), STARTED.fetch_add(1, Ordering::SeqCst));
        // In a group of its own: what a terminal tells the tests is not for it.
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).env(FAMILY, &family);
        let mut child = command.spawn().expect("the binary is built with the tests");
        let log = Arc::new(Log::default());
        let stdout = child.stdout.take().expect("piped");
        let stderr = child.stderr.take().expect("piped");
        let reader = std::thread::spawn({
            let log = Arc::clone(&log);
            move || {
                std::thread::scope(|scope| {
                    scope.spawn(|| BufReader::new(stderr).lines().map_while(Result::ok).for_each(|l| log.push(l)));
                    BufReader::new(stdout).lines().map_while(Result::ok).for_each(|line| log.push(line));
                });
                log.end();
            }
        });
        Harbor {
            serving: AtomicU32::new(child.id()),
            child,
            family,
            admin_token_file: self.data().join("admin.token"),
            _directory: Arc::clone(&self.directory),
            log,
            reader: Some(reader),
        }
    }

    /// Starts `harbor serve` and waits until it is ready.
    pub async fn serve(&self) -> Harbor {
        let harbor = self.start();
        harbor.ready().await;
        harbor
    }
}

impl Log {
    fn push(&self, line: String) {
        let mut state = self.state.lock().expect("no panic under the lock");
        if let Ok(event) = serde_json::from_str::<Value>(&line) {
            let fields = &event["fields"];
            if fields["message"] == "listening"
                && let (Some(api), Some(address)) = (fields["api"].as_str(), fields["address"].as_str())
            {
                state.listening.insert(api.into(), address.parse().expect("an address"));
            }
        }
        state.lines.push(line);
        self.grown.notify_all();
    }

    fn end(&self) {
        self.state.lock().expect("no panic under the lock").ended = true;
        self.grown.notify_all();
    }

    #[track_caller]
    fn wait_for<T>(&self, what: &str, look: impl FnMut(&LogState) -> Option<T>) -> T {
        self.wait_longer_for(what, PATIENCE, look)
    }

    #[track_caller]
    fn wait_longer_for<T>(&self, what: &str, patience: Duration, look: impl FnMut(&LogState) -> Option<T>) -> T {
        let (found, last) = self.look_for(patience, look);
        found.unwrap_or_else(|| panic!("harbor: no {what}; its log ends:\n{last}"))
    }

    /// Waits until `look` finds something, or there is nothing more to come. Returns the end of the log too.
    fn look_for<T>(&self, patience: Duration, mut look: impl FnMut(&LogState) -> Option<T>) -> (Option<T>, String) {
        let state = self.state.lock().expect("no panic under the lock");
        let mut found = None;
        let (state, _) = self
            .grown
            .wait_timeout_while(state, patience, |state| {
                found = look(state);
                found.is_none() && !state.ended
            })
            .expect("no panic under the lock");
        // Not under the lock: the reader of the log needs it to the end.
        let last = state.lines[state.lines.len().saturating_sub(40)..].join("\n");
        drop(state);
        (found, last)
    }
}

impl Harbor {
    /// The address of one of its APIs: `broker`, `announce` or `admin`.
    #[track_caller]
    pub fn address(&self, api: &str) -> SocketAddr {
        self.log.wait_for(&format!("address of {api}"), |state| state.listening.get(api).copied())
    }

    /// Waits for a log line that contains `text`, and returns it.
    #[track_caller]
    pub fn logged(&self, text: &str) -> String {
        self.log.wait_for(&format!("log line with {text:?}"), |state| {
            state.lines.iter().find(|line| line.contains(text)).cloned()
        })
    }

    /// Whether it becomes ready, rather than ending before.
    pub fn comes_up(&self) -> bool {
        let ready = |line: &String| line.contains(r#""message":"ready""#);
        self.log.look_for(PATIENCE, |state| state.lines.iter().any(ready).then_some(())).0.is_some()
    }

    /// All that it has logged so far.
    pub fn log(&self) -> String {
        self.log.state.lock().expect("no panic under the lock").lines.join("\n")
    }

    /// A client of the broker API.
    pub fn broker(&self) -> Client {
        Client::broker(self.address("broker"), AUTHORIZATION)
    }

    /// A client of the admin API, with its token.
    pub fn admin(&self) -> Client {
        let address = self.address("admin");
        let token = std::fs::read_to_string(&self.admin_token_file).expect("it is made before the API listens");
        Client::new(address).with("authorization", &format!("Bearer {}", token.trim()))
    }

    /// Waits until it serves: the broker listens only when all ports do.
    pub async fn ready(&self) {
        let admin = self.admin();
        super::eventually::eventually_async("harbor is ready", || async {
            (admin.get("/readyz").await.status == 200).then_some(())
        })
        .await;
        self.address("broker");
    }

    /// The process that serves.
    pub fn pid(&self) -> u32 {
        self.serving.load(Ordering::SeqCst)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(pid(self.pid()), signal).expect("it runs");
    }

    /// Has it hand over to a new process, waits until that serves, and returns its id.
    #[track_caller]
    pub fn restart(&self) -> u32 {
        let serves = |line: &String| line.contains("hot restart: another process serves");
        let before = self.log.state.lock().expect("no panic under the lock").lines.iter().filter(|l| serves(l)).count();
        self.signal(Signal::USR2);
        let line = self.log.wait_longer_for("process that has taken over", RESTARTS_WITHIN, |state| {
            let failed = |line: &&String| line.contains("the hot restart failed");
            let failure = state.lines.iter().find(failed).cloned();
            failure.or_else(|| state.lines.iter().filter(|line| serves(line)).nth(before).cloned())
        });
        assert!(serves(&line), "{line}");
        let event: Value = serde_json::from_str(&line).expect("the log is JSON");
        let process = event["fields"]["process"].as_u64().and_then(|id| u32::try_from(id).ok()).expect("a process id");
        self.serves_now(process);
        process
    }

    /// Another process of the site has taken over.
    pub fn serves_now(&self, process: u32) {
        self.serving.store(process, Ordering::SeqCst);
    }

    /// Kills it at once, as the machine would.
    pub fn kill(mut self) {
        self.end();
    }

    /// Asks it to end, and waits until it has.
    pub fn terminate(self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits for its end.
    pub fn wait(mut self) -> ExitStatus {
        let ended = || self.child.try_wait().expect("it is our child");
        let status = eventually_for(ENDS_WITHIN, "harbor ends", ended);
        self.join();
        status
    }

    fn end(&mut self) {
        // Whoever has the log open keeps its reader: all that take over, all that were to, and all that finish what is open.
        eventually("all processes have ended", || {
            let left = self.relatives();
            for process in &left {
                let _ = kill_process(*process, Signal::KILL);
            }
            let _ = self.child.try_wait();
            left.is_empty().then_some(())
        });
        let _ = self.child.wait();
        self.join();
    }

    /// Its processes that have not ended, by what they were started with.
    fn relatives(&self) -> Vec<Pid> {
        let mark = format!("{FAMILY}={}", self.family);
        let has_it = |process: &Pid| {
            let variables = std::fs::read(format!("/proc/{}/environ", process.as_raw_nonzero())).unwrap_or_default();
            variables.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        };
        let entries = std::fs::read_dir("/proc").expect("there is /proc");
        let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        ids.filter_map(Pid::from_raw).filter(has_it).collect()
    }

    fn join(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the log reader does not panic");
        }
    }
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).expect("a pid")).expect("not zero")
}

impl Drop for Harbor {
    fn drop(&mut self) {
        self.end();
    }
}
