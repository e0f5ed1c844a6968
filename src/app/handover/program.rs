//! Which program a new process runs: what is found now under the name by which this one was started.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

/// What the kernel says behind the name of a program whose file has been replaced.
const DELETED: &[u8] = b" (deleted)";

/// A program with its arguments.
#[derive(Debug, Clone)]
pub(in crate::app) struct Program {
    /// Its file, whatever is there when it is started.
    pub path: PathBuf,
    /// Behind its name.
    pub arguments: Vec<OsString>,
}

impl Program {
    /// That of this process. To be asked at the start: the file may be replaced later, which is what a restart is for.
    ///
    /// # Errors
    /// When it cannot be found.
    pub(in crate::app) fn own() -> io::Result<Self> {
        let running = without_mark(env::current_exe()?);
        // The name by which it was called keeps the links that an installation may change.
        let named = env::args_os().next().and_then(|name| located(&name, env::var_os("PATH")));
        let path = named.filter(|named| is_same_file(named, &running)).unwrap_or(running);
        Ok(Self { path: std::path::absolute(path)?, arguments: env::args_os().skip(1).collect() })
    }
}

/// Where a shell finds what it is told to run.
fn located(name: &OsStr, path: Option<OsString>) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Some(name.into());
    }
    env::split_paths(&path?).map(|directory| directory.join(name)).find(|file| file.is_file())
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    identity(one).is_some_and(|one| identity(other) == Some(one))
}

fn without_mark(path: PathBuf) -> PathBuf {
    let mut bytes = path.into_os_string().into_vec();
    if bytes.ends_with(DELETED) {
        bytes.truncate(bytes.len() - DELETED.len());
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_as_a_shell_finds_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("harbor");
        fs::write(&file, "").unwrap();
        let path = env::join_paths([Path::new("/nowhere"), directory.path()]).unwrap();
        let find = |name: &str| located(OsStr::new(name), Some(path.clone()));
        assert_eq!(find("harbor"), Some(file.clone()));
        assert_eq!(find("./bin/harbor"), Some("./bin/harbor".into()));
        assert_eq!((find("other"), located(OsStr::new("harbor"), None)), (None, None));
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(is_same_file(&link, &file) && !is_same_file(&link, directory.path()));
    }

    #[test]
    fn the_mark_of_a_replaced_file_is_no_part_of_its_name() {
        assert_eq!(without_mark("/usr/bin/harbor (deleted)".into()), Path::new("/usr/bin/harbor"));
        assert_eq!(without_mark("/usr/bin/harbor".into()), Path::new("/usr/bin/harbor"));
        assert!(Program::own().unwrap().path.is_absolute());
    }
}
