//! One process for each SQLite database: a lock on a file beside it, which the kernel gives back when its holder dies.
//!
//! It is of the open file, not of the process: whoever gets a copy of the descriptor has the lock too. So it goes from a
//! process to its successor, without a moment in which a third one could take it.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt as _, MetadataExt as _},
    },
    path::Path,
};

use super::{OpenError, files};

/// The lock, held until dropped.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    /// A successor has it too: it is not this process's to give back.
    lent: bool,
}

impl Lock {
    /// A copy for a successor, who has the lock from now on. This one goes on holding it, and no longer gives it back.
    pub(super) fn lend(&mut self) -> io::Result<OwnedFd> {
        let copy = self.file.try_clone()?;
        self.lent = true;
        Ok(copy.into())
    }

    /// There is no successor after all.
    pub(super) fn take_back(&mut self) -> io::Result<()> {
        self.lent = false;
        sign(&self.file)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough while a process that is just being started still has it too. A lock that cannot
        // be given back goes with this process.
        if !self.lent {
            let _ = self.file.unlock();
        }
    }
}

/// Takes the lock of `database`, and writes there who holds it, for the message that others get. `inherited`: what a
/// predecessor has lent.
pub(super) fn take(database: &Path, inherited: Option<OwnedFd>) -> Result<Lock, OpenError> {
    let path = files::beside(database, ".lock");
    let fault = |source: io::Error| OpenError::File { path: path.clone(), source };
    let own = files::open_private(&path)?;
    let file = match inherited.map(File::from) {
        Some(inherited) if is_same(&inherited, &own).map_err(fault)? => inherited,
        // That of another database, which the predecessor had.
        _ => own,
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(OpenError::InUse { path: database.to_path_buf(), holder: holder(&path) });
        }
        Err(TryLockError::Error(source)) => return Err(fault(source)),
    }
    sign(&file).map_err(fault)?;
    Ok(Lock { file, lent: false })
}

/// Writes into the lock file which process holds it.
fn sign(file: &File) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0)
}

fn is_same(one: &File, other: &File) -> io::Result<bool> {
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

/// The process that wrote itself into the lock file, as far as that can be read.
fn holder(path: &Path) -> String {
    let written = fs::read_to_string(path).unwrap_or_default();
    match written.trim().parse::<u32>() {
        Ok(process) => format!("process {process}"),
        Err(_) => "another process".into(),
    }
}
