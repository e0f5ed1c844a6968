//! Logs: to standard output, and to a file per component when a directory is given.
//!
//! Lines go through a bounded queue to a thread that writes them: no caller waits for a disk or a pipe. When the queue
//! is full lines are lost rather than traffic held up.

use std::{
    io::{self, IsTerminal as _, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tracing::{Metadata, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, fmt, fmt::MakeWriter, layer::SubscriberExt as _, registry::LookupSpan, reload,
    util::SubscriberInitExt as _,
};

mod file;
mod line;

use file::LogFile;
use line::OneLine;
pub use line::is_fit;

/// Lines that may wait to be written, for each output.
const MAX_WAITING_LINES: usize = 16 * 1024;

/// The levels, from none to all.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// What is logged, how and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How.
    pub format: Format,
    /// What: a level, or a filter such as `info,harbor::discovery=debug`. See [`filter`].
    pub level: String,
    /// Where the component files go, beside standard output.
    pub directory: Option<PathBuf>,
}

/// How a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// A text that is neither a level nor a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a level: use one of off, error, warn, info, debug, trace, or \"info,harbor::discovery=debug\"")]
pub struct BadLevel(pub String);

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is none.
    #[error(transparent)]
    Level(#[from] BadLevel),
    /// A component file cannot be written.
    #[error("cannot write logs to {}: {source}", path.display())]
    File {
        /// The file or its directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The process logs already.
    #[error("logging has been started before")]
    Twice,
}

/// Logs to standard error, for people, for as long as the process lives.
pub fn to_standard_error() {
    let logging = tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let filter = filter("info").expect("it is a level");
    // One who has set it before wants it otherwise.
    let _ = logging.with_target(false).with_env_filter(filter).try_init();
}

/// Logging while it runs; what waits is written when it is dropped.
pub struct Log {
    level: reload::Handle<EnvFilter, Registry>,
    reopen: Vec<Arc<AtomicBool>>,
    writers: Vec<WorkerGuard>,
    /// Lines that found no room in a queue, and those that could not be written into a file.
    left_out: Vec<ErrorCounter>,
    unwritten: Arc<AtomicU64>,
}

impl Log {
    /// Says how many lines were lost: they came faster than they were written, or could not be written.
    pub fn lost(&self) -> impl Fn() -> u64 + Send + Sync + use<> {
        let (left_out, unwritten) = (self.left_out.clone(), Arc::clone(&self.unwritten));
        move || {
            let left_out = left_out.iter().map(|output| output.dropped_lines() as u64).sum::<u64>();
            left_out + unwritten.load(Ordering::Relaxed)
        }
    }

    /// Opens the component files again before their next line: after they have been moved away.
    pub fn reopen(&self) {
        for flag in &self.reopen {
            flag.store(true, Ordering::Release);
        }
    }

    /// Changes what is logged.
    ///
    /// # Errors
    /// [`BadLevel`]; nothing changes then.
    pub fn set_level(&self, level: &str) -> Result<(), BadLevel> {
        let filter = filter(level)?;
        self.level.reload(filter).expect("the subscriber lives as long as the process");
        Ok(())
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

/// The filter that `level` stands for. A level alone is Harbor's: the libraries below it say no more than `info`, and
/// the client of NATS nothing, since it has a line for each dropped message and `discovery` tells the same once.
///
/// # Errors
/// [`BadLevel`] also for a lone word that is no level, which a filter would take for the name of a target.
pub fn filter(level: &str) -> Result<EnvFilter, BadLevel> {
    let refused = || BadLevel(level.into());
    let is_level = |part: &str| LEVELS.iter().any(|known| known.eq_ignore_ascii_case(part.trim()));
    if !level.split(',').all(|part| part.contains('=') || is_level(part)) {
        return Err(refused());
    }
    let directives = match level.trim().to_lowercase().as_str() {
        level @ ("debug" | "trace") => format!("info,async_nats=off,harbor={level}"),
        level if is_level(level) => format!("{level},async_nats=off"),
        _ => level.into(),
    };
    EnvFilter::builder().parse(directives).map_err(|_| refused())
}

/// Starts logging for the whole process.
///
/// # Errors
/// [`LogError`].
pub fn start(settings: &Settings) -> Result<Log, LogError> {
    let (subscriber, log) = build(settings)?;
    subscriber.try_init().map_err(|_| LogError::Twice)?;
    Ok(log)
}

fn build(settings: &Settings) -> Result<(impl Subscriber + Send + Sync, Log), LogError> {
    let (filter, level) = reload::Layer::new(filter(&settings.level)?);
    let mut log =
        Log { level, reopen: Vec::new(), writers: Vec::new(), left_out: Vec::new(), unwritten: Arc::default() };
    // Both outputs would share one formatting of a span's fields, so colour is only for a terminal alone.
    let colour = io::stdout().is_terminal() && settings.directory.is_none() && std::env::var_os("NO_COLOR").is_none();
    let (output, guard) = queue("log-stdout", io::stdout(), settings.format, colour);
    log.writers.push(guard);
    log.left_out.push(output.error_counter());
    let output = layer(settings.format, output, colour);
    let files = match &settings.directory {
        None => None,
        Some(directory) => {
            Some(layer(settings.format, ComponentFiles::open(directory, settings.format, &mut log)?, false))
        }
    };
    Ok((tracing_subscriber::registry().with(filter).with(output).with(files), log))
}

fn layer<S, W>(format: Format, writer: W, colour: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = fmt::layer().with_writer(writer).with_ansi(colour);
    match format {
        Format::Text => layer.boxed(),
        Format::Json => layer.json().with_span_list(false).boxed(),
    }
}

fn queue(
    thread: &str,
    output: impl Write + Send + 'static,
    format: Format,
    colour: bool,
) -> (NonBlocking, WorkerGuard) {
    let output = OneLine { output, format, colour };
    NonBlockingBuilder::default().buffered_lines_limit(MAX_WAITING_LINES).thread_name(thread).finish(output)
}

/// The part of Harbor that a line is about, by which the original named its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Component {
    Gateway,
    Node,
    ProxyConnector,
    Store,
}

impl Component {
    const ALL: [Self; 4] = [Self::Gateway, Self::Node, Self::ProxyConnector, Self::Store];

    const fn file_name(self) -> &'static str {
        match self {
            Self::Gateway => "harbor_gateway.log",
            Self::Node => "harbor_node.log",
            Self::ProxyConnector => "harbor_proxy_connector.log",
            Self::Store => "harbor_store.log",
        }
    }

    fn of(target: &str) -> Self {
        let mut parts = target.split("::");
        match (parts.next(), parts.next()) {
            (Some("harbor"), Some("broker" | "control" | "audit")) => Self::Gateway,
            (Some("harbor"), Some("forwarder")) => Self::ProxyConnector,
            (Some("harbor"), Some("store")) | (Some("sqlx"), _) => Self::Store,
            _ => Self::Node,
        }
    }
}

/// A file per component, in the order of [`Component::ALL`].
struct ComponentFiles([NonBlocking; 4]);

impl ComponentFiles {
    fn open(directory: &Path, format: Format, log: &mut Log) -> Result<Self, LogError> {
        let failed = |path: &Path, source| LogError::File { path: path.into(), source };
        file::make_directory(directory).map_err(|error| failed(directory, error))?;
        let mut open = |component: Component| -> Result<NonBlocking, LogError> {
            let path = directory.join(component.file_name());
            let reopen = Arc::new(AtomicBool::new(false));
            let output = LogFile::open(&path, Arc::clone(&reopen), Arc::clone(&log.unwritten));
            let output = output.map_err(|error| failed(&path, error))?;
            let (writer, guard) = queue("log-file", output, format, false);
            log.reopen.push(reopen);
            log.writers.push(guard);
            log.left_out.push(writer.error_counter());
            Ok(writer)
        };
        let [gateway, node, proxy_connector, store] = Component::ALL;
        Ok(Self([open(gateway)?, open(node)?, open(proxy_connector)?, open(store)?]))
    }
}

impl<'a> MakeWriter<'a> for ComponentFiles {
    type Writer = NonBlocking;

    fn make_writer(&'a self) -> Self::Writer {
        self.0[Component::Node as usize].clone()
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        self.0[Component::of(metadata.target()) as usize].clone()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn speak(marker: &str) {
        tracing::info!(target: "harbor::broker::provision", marker, "gateway");
        tracing::info!(target: "harbor::control", marker, "gateway too");
        tracing::info!(target: "harbor::discovery::nats", marker, "node");
        tracing::debug!(target: "harbor::discovery::nats", marker, "too low");
        tracing::warn!(target: "harbor::forwarder", marker, "proxy connector");
        tracing::info!(target: "harbor::store::sqlite", marker, "store");
    }

    #[test]
    fn each_component_has_its_file_and_files_can_be_moved_away() {
        let directory = tempfile::tempdir().unwrap();
        let logs = directory.path().join("logs");
        let settings = Settings { format: Format::Json, level: "info".into(), directory: Some(logs.clone()) };
        let (subscriber, log) = build(&settings).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            speak("first");
            log.set_level("harbor::forwarder=warn").unwrap();
            speak("second");
            assert!(log.set_level("loud").is_err());
        });
        drop(log);
        let messages = |name: &str| {
            let text = fs::read_to_string(logs.join(name)).unwrap();
            let message = |line: &str| {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                let fields = &line["fields"];
                format!("{} {}", fields["marker"].as_str().unwrap(), fields["message"].as_str().unwrap())
            };
            text.lines().map(message).collect::<Vec<_>>()
        };
        assert_eq!(messages("harbor_gateway.log"), ["first gateway", "first gateway too"]);
        assert_eq!(messages("harbor_node.log"), ["first node"]);
        assert_eq!(messages("harbor_proxy_connector.log"), ["first proxy connector", "second proxy connector"]);
        assert_eq!(messages("harbor_store.log"), ["first store"]);
        let mode = fs::metadata(logs.join("harbor_node.log")).unwrap().permissions().mode();
        assert_eq!(mode & 0o137, 0, "mode {mode:o}");
    }

    #[test]
    fn a_line_of_json_stays_json_whatever_a_caller_sends() {
        let directory = tempfile::tempdir().unwrap();
        let settings =
            Settings { format: Format::Json, level: "info".into(), directory: Some(directory.path().to_path_buf()) };
        let (subscriber, log) = build(&settings).unwrap();
        let id = "ä\u{7f}b\r\n\u{1b}\u{0}\u{9b}\u{2028}\u{202e}";
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "harbor::broker", service_instance = %id, "provisioned");
        });
        drop(log);
        let text = fs::read_to_string(directory.path().join("harbor_gateway.log")).unwrap();
        let raw = ['\0', '\u{1b}', '\u{7f}', '\u{9b}', '\u{2028}', '\u{202e}'];
        assert!(!text.contains(raw) && text.contains('ä'), "{text:?}");
        let line = serde_json::from_str::<serde_json::Value>(&text).unwrap();
        assert_eq!(line["fields"]["service_instance"], id);
    }

    #[test]
    fn what_a_caller_sends_cannot_forge_a_line() {
        let directory = tempfile::tempdir().unwrap();
        let settings =
            Settings { format: Format::Text, level: "info".into(), directory: Some(directory.path().to_path_buf()) };
        let (subscriber, log) = build(&settings).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            let id = "a\r\n1970-01-01T00:00:00Z  INFO harbor: all is well\u{1b}[2K\u{9b}2K\u{202e}";
            tracing::info!(target: "harbor::broker", service_instance = %id, "provisioned");
        });
        drop(log);
        let text = fs::read_to_string(directory.path().join("harbor_gateway.log")).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains(r"service_instance=a\r\n1970-01-01T00:00:00Z"), "{text}");
        assert!(text.ends_with("all is well\\x1b[2K\\u{9b}2K\\u{202e}\n"), "{text:?}");
    }

    #[test]
    fn lines_that_find_no_room_are_counted() {
        /// A disk that stands still.
        struct Still(std::sync::mpsc::Receiver<()>);
        impl Write for Still {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = self.0.recv();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let settings =
            Settings { format: Format::Json, level: "info".into(), directory: Some(directory.path().to_path_buf()) };
        let (_subscriber, mut log) = build(&settings).unwrap();
        let (go_on, still) = std::sync::mpsc::sync_channel(0);
        let (mut output, guard) = queue("log-test", Still(still), Format::Json, false);
        log.left_out.push(output.error_counter());
        let lost = log.lost();
        assert_eq!(lost(), 0);
        for _ in 0..MAX_WAITING_LINES + 10 {
            output.write_all(b"{}\n").unwrap();
        }
        // One or the other is being written.
        assert!((8..=10).contains(&lost()), "{}", lost());
        drop((go_on, guard));
    }

    #[test]
    fn a_level_alone_leaves_the_libraries_at_info() {
        for (level, expect) in [
            ("info", "async_nats=off,info"),
            ("error", "async_nats=off,error"),
            ("debug", "async_nats=off,harbor=debug,info"),
            ("TRACE", "async_nats=off,harbor=trace,info"),
            ("warn,harbor::store=debug", "harbor::store=debug,warn"),
        ] {
            assert_eq!(filter(level).unwrap().to_string(), expect, "{level}");
        }
        for level in ["", "loud", "info,harbor", "harbor=loud", "info,"] {
            assert_eq!(filter(level).map(|filter| filter.to_string()), Err(BadLevel(level.into())), "{level}");
        }
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let settings = Settings { format: Format::Text, level: "info".into(), directory: Some(file.clone()) };
        let error = build(&settings).err().expect("a file is no directory").to_string();
        assert_eq!(error, format!("cannot write logs to {}: File exists (os error 17)", file.display()));
    }
}
