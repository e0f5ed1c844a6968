//! A log file that outlives moves and full disks.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// Of a component file: its owner writes, its group reads, as log shippers do.
const FILE_MODE: u32 = 0o640;

/// Of the directory of component files, when it is made.
const DIRECTORY_MODE: u32 = 0o750;

/// A file that can be opened again under its name. What is wrong with it is told on standard error, once: it cannot be told
/// in itself.
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    reopen: Arc<AtomicBool>,
    lost: Arc<AtomicU64>,
    /// What went wrong last, until it goes well.
    trouble: Option<String>,
    /// Whether a line was begun and could not be ended.
    torn: bool,
}

impl LogFile {
    /// One that is opened again when `reopen` is set, and counts in `lost` what it cannot write.
    ///
    /// # Errors
    /// The system's, when it cannot be opened.
    pub(super) fn open(path: &Path, reopen: Arc<AtomicBool>, lost: Arc<AtomicU64>) -> io::Result<Self> {
        Ok(Self { path: path.into(), file: open_file(path)?, reopen, lost, trouble: None, torn: false })
    }

    /// Opens it again where that is asked for. When that fails the old file is still better than none.
    fn reopen(&mut self) -> io::Result<()> {
        if self.reopen.load(Ordering::Acquire) {
            self.file = self.path.parent().map_or(Ok(()), make_directory).and_then(|()| open_file(&self.path))?;
            self.reopen.store(false, Ordering::Release);
            self.torn = false;
        }
        Ok(())
    }

    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.torn {
            self.file.write_all(b"\n")?;
            self.torn = false;
        }
        let mut rest = line;
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.torn = rest.len() < line.len();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn tell(&mut self, outcome: io::Result<()>) {
        let trouble = outcome.err().map(|error| error.to_string());
        if trouble == self.trouble {
            return;
        }
        let path = self.path.display();
        let _ = match &trouble {
            Some(trouble) => writeln!(io::stderr(), "harbor: the log file {path} cannot be written: {trouble}"),
            None => writeln!(io::stderr(), "harbor: the log file {path} can be written again"),
        };
        self.trouble = trouble;
    }
}

impl Write for LogFile {
    /// Takes a whole line, and counts one that cannot be written as lost: nobody could do anything else about it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let reopened = self.reopen();
        let written = self.write_line(line);
        if written.is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        self.tell(written.and(reopened));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Makes the directory of log files where it is missing.
///
/// # Errors
/// The system's.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(FILE_MODE).open(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_was_moved_away_is_made_anew_when_asked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("harbor_node.log");
        let reopen = Arc::new(AtomicBool::new(false));
        let mut file = LogFile::open(&path, Arc::clone(&reopen), Arc::default()).unwrap();
        let moved = directory.path().join("harbor_node.log.1");
        file.write_all(b"before\n").unwrap();
        fs::rename(&path, &moved).unwrap();
        file.write_all(b"moved\n").unwrap();
        reopen.store(true, Ordering::Release);
        file.write_all(b"after\n").unwrap();
        file.flush().unwrap();
        assert_eq!(fs::read_to_string(&moved).unwrap(), "before\nmoved\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "after\n");
        // As `copytruncate` does: the next line begins at the start of the file.
        OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
        file.write_all(b"truncated\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "truncated\n");
    }

    #[test]
    fn a_file_that_cannot_be_made_again_is_made_as_soon_as_it_can() {
        let directory = tempfile::tempdir().unwrap();
        let logs = directory.path().join("logs");
        make_directory(&logs).unwrap();
        let path = logs.join("harbor_node.log");
        let (reopen, lost) = (Arc::new(AtomicBool::new(false)), Arc::<AtomicU64>::default());
        let mut file = LogFile::open(&path, Arc::clone(&reopen), Arc::clone(&lost)).unwrap();
        fs::rename(&logs, directory.path().join("away")).unwrap();
        fs::write(&logs, "in the way").unwrap();
        reopen.store(true, Ordering::Release);
        file.write_all(b"into the old one\n").unwrap();
        assert!(file.trouble.is_some() && reopen.load(Ordering::Acquire));
        fs::remove_file(&logs).unwrap();
        file.write_all(b"into the new one\n").unwrap();
        assert_eq!((&file.trouble, lost.load(Ordering::Relaxed)), (&None, 0));
        assert_eq!(fs::read_to_string(&path).unwrap(), "into the new one\n");
        let old = fs::read_to_string(directory.path().join("away/harbor_node.log")).unwrap();
        assert_eq!(old, "into the old one\n");
    }

    #[test]
    fn lines_that_a_disk_has_no_room_for_are_counted_and_told_once() {
        let (reopen, lost) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut file = LogFile::open(Path::new("/dev/full"), reopen, Arc::clone(&lost)).unwrap();
        file.write_all(b"one\n").unwrap();
        let told = file.trouble.clone();
        file.write_all(b"two\n").unwrap();
        assert_eq!((lost.load(Ordering::Relaxed), &file.trouble), (2, &told));
        assert!(told.unwrap().contains("No space left"));
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("log");
        (file.file, file.torn) = (open_file(&place).unwrap(), true);
        file.write_all(b"three\n").unwrap();
        assert_eq!((fs::read_to_string(&place).unwrap(), &file.trouble), ("\nthree\n".to_owned(), &None));
    }
}
