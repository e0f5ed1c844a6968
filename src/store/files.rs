//! The files of a SQLite database: where they are, and that nobody else can read them, whatever the umask.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use super::OpenError;

/// Mode of a directory that is made here. One that is there already stays as it is.
const DIRECTORY_MODE: u32 = 0o700;

/// Mode of every file.
const FILE_MODE: u32 = 0o600;

/// Makes the directory of `database` where it is missing. Returns the database's path without links, so that it has one
/// lock whatever it is called.
pub(super) fn place(database: &Path) -> Result<PathBuf, OpenError> {
    let find = || -> io::Result<PathBuf> {
        if database.exists() {
            return fs::canonicalize(database);
        }
        let name = database.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        let directory = database.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        if !directory.is_dir() {
            DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory)?;
        }
        Ok(fs::canonicalize(directory)?.join(name))
    };
    find().map_err(|source| OpenError::File { path: database.to_path_buf(), source })
}

/// Makes the database as an empty file where it is missing, and takes everybody else's permissions from it and from what
/// SQLite left beside it. Files that SQLite makes later get the mode of the database.
///
/// Only for the holder of the lock: closing a file takes SQLite's own locks on it away from the whole process.
pub(super) fn prepare(database: &Path) -> Result<(), OpenError> {
    open_private(database)?;
    for path in [beside(database, "-wal"), beside(database, "-shm")] {
        if path.exists() {
            open_private(&path)?;
        }
    }
    // The name of a new database is to survive a power failure as its contents do.
    let directory = database.parent().expect("an absolute path of a file has a directory");
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| OpenError::File { path: directory.to_path_buf(), source })
}

/// Opens or makes a file that only its owner can read.
pub(super) fn open_private(path: &Path) -> Result<File, OpenError> {
    let open = || -> io::Result<File> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(FILE_MODE).open(path)?;
        if file.metadata()?.permissions().mode() & 0o7777 != FILE_MODE {
            file.set_permissions(Permissions::from_mode(FILE_MODE))?;
        }
        Ok(file)
    };
    open().map_err(|source| OpenError::File { path: path.to_path_buf(), source })
}

/// The path of `database` with `suffix` at its end.
pub(super) fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = OsString::from(database);
    path.push(suffix);
    path.into()
}
