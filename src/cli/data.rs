//! `harbor data …`

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Read, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use clap::{Subcommand, ValueEnum};

use super::{FINE, Failure, Outcome, load, print};
use crate::app;

/// Export what the store holds, for backup and for moving house, and import it.
///
/// No node has to run. What is exported is every service instance with its port, its settings and its bindings; ports at
/// rest, reservations, pools, operations and live settings; and the secret that announce tokens are derived from. Nodes
/// are left out: they say again who they are.
#[derive(Debug, clap::Args)]
pub struct Data {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Export(Export),
    Import(Import),
}

/// Write all that the store holds to a file, also while nodes run on it.
///
/// It is of one moment. The file takes its place whole and only its owner can read it: it holds the secret that announce
/// tokens are derived from.
#[derive(Debug, clap::Args)]
struct Export {
    /// The file to write [default: standard output, as does -].
    file: Option<PathBuf>,

    /// What to write.
    #[arg(long, value_enum, default_value_t = Form::Backup)]
    format: Form,
}

/// Fill an empty store with what was exported.
///
/// Everything is checked before anything is written, and all of it is taken over or nothing. No node may run on the
/// store; one that is missing is made.
#[derive(Debug, clap::Args)]
struct Import {
    /// The file that `harbor data export` has written; - is standard input.
    file: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// What `harbor data import` takes.
    Backup,
    /// A document to read, without the secret.
    Json,
}

/// What stands for standard output or standard input.
const STANDARD: &str = "-";

impl Data {
    pub fn run(self, config: Option<PathBuf>) -> Outcome {
        let config = load(config)?;
        match self.action {
            Action::Export(Export { file, format }) => {
                let dump = app::export(&config).map_err(Failure::Problem)?;
                let write = |to: &mut dyn Write| match format {
                    Form::Backup => dump.write(to),
                    Form::Json => dump.write_to_read(to),
                };
                let Some(file) = file.filter(|file| file.as_os_str() != STANDARD) else {
                    let mut output = BufWriter::new(io::stdout().lock());
                    write(&mut output)?;
                    output.flush()?;
                    return Ok(FINE);
                };
                write_private(&file, write)
                    .with_context(|| format!("cannot write {}", file.display()))
                    .map_err(Failure::Problem)?;
                let advice = if format == Form::Backup { ": keep it as you keep passwords" } else { "" };
                print(&format!("Exported {}, to {}{advice}.\n", told(&dump), file.display()))?;
            }
            Action::Import(Import { file }) => {
                let exported = read(&file).map_err(Failure::Problem)?;
                let imported = app::import(&config, &exported);
                let dump = imported.with_context(|| format!("cannot import {}", file.display()));
                let dump = dump.map_err(Failure::Problem)?;
                print(&format!("Imported {}, into the store {}.\n", told(&dump), config.store))?;
            }
        }
        Ok(FINE)
    }
}

/// What is in a dump, in a few words.
fn told(dump: &app::Dump) -> String {
    let count = |count: usize, of: &str| format!("{count} {of}{}", if count == 1 { "" } else { "s" });
    let (instances, bindings) = (dump.instances.len(), dump.bindings.len());
    let instances = count(instances, "service instance");
    format!("{instances} and {}, of revision {}", count(bindings, "binding"), dump.revision)
}

/// Writes a file that only its owner can read, and gives it its name when all of it is on the disk: whoever finds the name
/// finds the whole.
fn write_private(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    check_replaceable(path)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = PathBuf::from(beside);
    let written = || -> io::Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        let mut writer = BufWriter::new(file);
        write(&mut writer)?;
        writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&beside, path)?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory)?.sync_all()
    };
    written().inspect_err(|_| {
        // It may not even have been made.
        let _ = fs::remove_file(&beside);
    })?;
    Ok(())
}

/// Whether a file may take this place: nobody has it, or a former export, which begins with a brace. A database would be
/// lost.
fn check_replaceable(path: &Path) -> anyhow::Result<()> {
    let mut first = [b'{'];
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(known) if !known.is_file() => bail!("it is not a file: for standard output leave it out"),
        Ok(_) => File::open(path)?.read_exact(&mut first).or_else(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Ok(()),
            _ => Err(error),
        })?,
    }
    if first != [b'{'] {
        bail!("there is something that is no export: name another file");
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let is_standard = path.as_os_str() == STANDARD;
    let from: Box<dyn Read> = if is_standard { Box::new(io::stdin()) } else { Box::new(open(path)?) };
    let mut bytes = Vec::new();
    let read = from.take(app::MAX_FILE_BYTES + 1).read_to_end(&mut bytes);
    read.with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() as u64 > app::MAX_FILE_BYTES {
        return Err(anyhow!("cannot import {}: it has more than {} bytes", path.display(), app::MAX_FILE_BYTES));
    }
    Ok(bytes)
}

fn open(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("cannot read {}", path.display()))
}
