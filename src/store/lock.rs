//! One process for each SQLite database: a lock on a file beside it, which the kernel gives back when its holder dies.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write as _},
    path::Path,
};

use super::{OpenError, files};

/// The lock, held until dropped.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough while a process that is just being started still has it too. A lock that cannot
        // be given back goes with this process.
        let _ = self.file.unlock();
    }
}

/// Takes the lock of `database`, and writes there who holds it, for the message that others get.
pub(super) fn take(database: &Path) -> Result<Lock, OpenError> {
    let path = files::beside(database, ".lock");
    let fault = |source: io::Error| OpenError::File { path: path.clone(), source };
    let mut file = files::open_private(&path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(OpenError::InUse { path: database.to_path_buf(), holder: holder(&path) });
        }
        Err(TryLockError::Error(source)) => return Err(fault(source)),
    }
    file.set_len(0).map_err(fault)?;
    writeln!(file, "{}", std::process::id()).map_err(fault)?;
    Ok(Lock { file })
}

/// The process that wrote itself into the lock file, as far as that can be read.
fn holder(path: &Path) -> String {
    let written = fs::read_to_string(path).unwrap_or_default();
    match written.trim().parse::<u32>() {
        Ok(process) => format!("process {process}"),
        Err(_) => "another process".into(),
    }
}
