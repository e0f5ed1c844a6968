//! The last-known file: the backends of a node, for its next process.
//!
//! It is a hint and never a duty: one that is missing, torn or of another version costs the time until the next
//! announcements, nothing else. Each TCP backend is tried with a connect before it is believed; a UDP one cannot be.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Semaphore, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use super::probe::{Connect, takes_connections};
use crate::{
    backends::{Backend, BackendState, Backends, stands},
    model::{Clock, ServiceInstanceId, Transport, announcement::Endpoint, directory::Directory},
};

mod record;

use record::{Contents, Record};

/// The file's name within the data directory.
pub const FILE_NAME: &str = "backends.json";

/// Where a file that cannot be understood is kept for whoever wants to know why.
const CORRUPT_SUFFIX: &str = "corrupt";

/// Largest file that is read, in bytes: a backend takes some 400.
const MAX_FILE_BYTES: u64 = 256 * 1024 * 1024;

/// How often the file is written, at the most.
const WRITE_PAUSE: Duration = Duration::from_secs(5);

/// How long the connect that re-validates a backend may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Such connects at a time.
const MAX_CONNECTS: usize = 64;

/// How long all of them together may take: the node is not ready before. Those that were not tried by then are not
/// believed.
const PATIENCE: Duration = Duration::from_secs(5);

/// What became of the backends of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Restored {
    /// Believed again.
    pub restored: usize,
    /// Their time was over.
    pub expired: usize,
    /// Their authority does not stand, or their address is not allowed any more.
    pub unauthorised: usize,
    /// They took no connection, or could not be tried in time.
    pub unreachable: usize,
}

/// Reads the file and puts into the table what may still be believed: within its original deadline, its authority
/// standing in `directory`, passed by `admits`, and reachable where that can be told. Without `connect` none is tried.
pub async fn restore(
    path: &Path,
    backends: &Backends,
    directory: &Directory,
    admits: impl Fn(&ServiceInstanceId, &Backend) -> bool,
    connect: Option<Arc<Connect>>,
    clock: &dyn Clock,
) -> Restored {
    let owned = path.to_owned();
    let contents = tokio::task::spawn_blocking(move || read(&owned)).await.expect("reading does not panic");
    let mut outcome = Restored::default();
    let (now, wall) = (clock.now(), clock.wall());
    let mut candidates = Vec::new();
    for record in contents.map(|contents| contents.backends).unwrap_or_default() {
        let Some((id, state)) = record.revive(now, wall) else {
            outcome.expired += 1;
            continue;
        };
        let backend = &state.backend;
        if stands(&backend.authority, &id, backend.endpoint.transport, directory) && admits(&id, backend) {
            candidates.push((id, state));
        } else {
            outcome.unauthorised += 1;
        }
    }
    let known = candidates.len();
    // Each as soon as it has answered, whoever else does not. Those that are left at the end are given up.
    let restoring = async {
        let mut tries = tried(in_turns(candidates), connect.as_ref());
        while let Some(tried) = tries.join_next().await {
            if let Some(reachable) = tried.expect("trying does not panic") {
                backends.restore([reachable]);
                outcome.restored += 1;
            }
        }
    };
    let _ = timeout(PATIENCE, restoring).await;
    outcome.unreachable = known - outcome.restored;
    // One may have expired, or lost its authority, while others were tried.
    backends.sweep(clock.now());
    outcome
}

type Known = (ServiceInstanceId, BackendState);

/// The first of each service instance before the second of any: one that has many does not keep the others waiting.
fn in_turns(mut candidates: Vec<Known>) -> Vec<Known> {
    let mut seen = HashMap::new();
    candidates.sort_by_cached_key(|(id, _)| {
        let place = seen.entry(id.clone()).or_insert(0);
        *place += 1;
        *place
    });
    candidates
}

/// Tries all that can be tried, so many at a time, in their order.
fn tried(candidates: Vec<Known>, connect: Option<&Arc<Connect>>) -> JoinSet<Option<Known>> {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTS));
    let mut tries = JoinSet::new();
    for candidate in candidates {
        let (permits, connect) = (Arc::clone(&permits), connect.cloned());
        tries.spawn(async move {
            let Endpoint { transport, address } = candidate.1.backend.endpoint;
            let reachable = match (transport, connect) {
                (Transport::Udp, _) | (_, None) => true,
                (Transport::Tcp, Some(connect)) => {
                    let _permit = permits.acquire().await.expect("the semaphore is never closed");
                    takes_connections(&*connect, address, CONNECT_TIMEOUT).await
                }
            };
            reachable.then_some(candidate)
        });
    }
    tries
}

/// Keeps the file up to date until `shutdown`, and writes it a last time then.
pub async fn keep(path: PathBuf, backends: Backends, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
    let mut written = None;
    loop {
        let ends = tokio::select! {
            () = shutdown.cancelled() => true,
            () = tokio::time::sleep(WRITE_PAUSE) => false,
        };
        let version = backends.version();
        if written != Some(version) {
            match save(path.clone(), backends.clone(), Arc::clone(&clock)).await {
                Ok(()) => written = Some(version),
                Err(error) => tracing::warn!(%error, path = %path.display(), "cannot write the last-known backends"),
            }
        }
        if ends {
            return;
        }
    }
}

async fn save(path: PathBuf, backends: Backends, clock: Arc<dyn Clock>) -> io::Result<()> {
    let write = move || {
        let (now, wall) = (clock.now(), clock.wall());
        let mut states = backends.export();
        states.sort_by_key(|(_, state)| state.since);
        let backends = states.iter().map(|(id, state)| Record::of(id, state, now, wall)).collect();
        write_atomically(&path, &Contents { version: record::VERSION, backends })
    };
    tokio::task::spawn_blocking(write).await.expect("writing does not panic")
}

/// Writes beside the file, then takes its place: a reader finds the old contents or the new, whole.
fn write_atomically(path: &Path, contents: &Contents) -> io::Result<()> {
    let beside = path.with_extension("json.new");
    // One that a crash left behind may have other permissions.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    let mut writer = io::BufWriter::new(file);
    serde_json::to_writer(&mut writer, contents)?;
    writer.flush()?;
    writer.get_ref().sync_all()?;
    fs::rename(&beside, path)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// The contents, if there are any that can be understood.
fn read(path: &Path) -> Option<Contents> {
    let understood = match open_and_read(path) {
        Ok(bytes) => Contents::parse(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => Err(error.to_string()),
    };
    match understood {
        Ok(contents) => Some(contents),
        Err(reason) => {
            let aside = path.with_extension(format!("json.{CORRUPT_SUFFIX}"));
            let kept = fs::rename(path, &aside);
            tracing::warn!(
                reason,
                path = %path.display(),
                kept_as = %kept.map(|()| aside.display().to_string()).unwrap_or_default(),
                "the last-known backends cannot be read: starting without them"
            );
            None
        }
    }
}

fn open_and_read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
