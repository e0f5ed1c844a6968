//! `harbor data …`

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Read, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, anyhow, bail};
use clap::{Subcommand, ValueEnum};

use super::{
    FINE, Failure, Outcome, clean,
    listing::{Known, Listing},
    load, print,
    rotate_secret::RotateSecret,
};
use crate::{app, model::service_instance::ServiceInstance};

/// Export and import what the store holds, and rotate its secret.
///
/// An export is a backup, and the way to another store. For export and import no node has to run. What is exported is every service instance with its port, its settings and its
/// bindings; ports at rest, reservations, pools, operations and live settings; and, if asked for, the secret that announce
/// tokens are derived from. Nodes are left out: they say again who they are.
#[derive(Debug, clap::Args)]
pub struct Data {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Export(Export),
    Import(Import),
    RotateSecret(RotateSecret),
}

/// Write all that the store holds to a file, also while nodes run on it.
///
/// It is of one moment. The file takes its place whole, and only its owner can read it. The secret that announce tokens are
/// derived from is left out unless it is asked for: without it an import makes a new one, and apps have to be bound anew and
/// restaged before they can announce by a token.
#[derive(Debug, clap::Args)]
struct Export {
    /// The file to write [default: standard output, as does -].
    file: Option<PathBuf>,

    /// What to write.
    #[arg(long, value_enum, default_value_t = Form::Backup)]
    format: Form,

    /// Write the secret that announce tokens are derived from, too: keep the file as you keep passwords.
    #[arg(long)]
    with_secrets: bool,
}

/// Fill an empty store with what was exported.
///
/// Everything is checked before anything is written, and all of it is taken over or nothing. No node may run on the
/// store; one that is missing is made.
#[derive(Debug, clap::Args)]
struct Import {
    /// The file that `harbor data export` has written; - is standard input.
    file: PathBuf,

    /// What the platform knows, as `cf curl "/v3/service_instances?per_page=5000"` lists it: service instances that are not
    /// in it were deleted since the export, so they are left out, and their ports rest from now on. What is younger than the
    /// listing, or than the newest in it, is kept. Without it, ports that were freed since the export are allocated again. It
    /// says nothing of bindings: apps that were unbound since the export are bound again, and where it has the secret their
    /// tokens count, until `harbor data rotate-secret` is finished.
    #[arg(long, value_name = "LISTING")]
    known_to: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// What `harbor data import` takes.
    Backup,
    /// A document to read, without the secret.
    Json,
}

/// Most service instances that are told one by one when they are left out.
const MAX_TOLD: usize = 20;

/// What stands for standard output or standard input.
const STANDARD: &str = "-";

impl Data {
    pub fn run(self, config: Option<PathBuf>) -> Outcome {
        match self.action {
            Action::Export(export) => export.run(config),
            Action::Import(import) => import.run(config),
            Action::RotateSecret(rotate) => rotate.run(config),
        }
    }
}

impl Export {
    fn run(self, config: Option<PathBuf>) -> Outcome {
        let Self { file, format, with_secrets } = self;
        if with_secrets && format == Form::Json {
            return Err(Failure::Usage(
                "the form to read never has a secret: leave --with-secrets or --format out".into(),
            ));
        }
        let mut dump = app::export(&load(config)?).map_err(Failure::Problem)?;
        if !with_secrets {
            dump.announce_secret = None;
        }
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
        let advice = match (format, with_secrets) {
            (Form::Json, _) => "",
            (Form::Backup, true) => ", with the announce secret: keep it as you keep passwords",
            (Form::Backup, false) => ", without the announce secret (--with-secrets)",
        };
        print(&format!("Exported {}, to {}{advice}.\n", told(&dump), file.display()))?;
        Ok(FINE)
    }
}

impl Import {
    fn run(self, config: Option<PathBuf>) -> Outcome {
        let (config, file) = (load(config)?, self.file);
        let listing = self.known_to.as_deref().map(Listing::load).transpose()?;
        let exported = read(&file).map_err(Failure::Problem)?;
        let knows =
            |listing: &Listing, instance: &ServiceInstance| listing.knows(instance.id.as_str(), time_of(instance));
        let is_forgotten =
            |instance: &ServiceInstance| listing.as_ref().is_some_and(|listing| knows(listing, instance) == Known::No);
        let imported = app::import(&config, &exported, is_forgotten);
        let imported = imported.with_context(|| format!("cannot import {}", file.display()));
        let app::Imported { dump, forgotten } = imported.map_err(Failure::Problem)?;
        let mut text = format!("Imported {}, into the store {}.\n", told(&dump), config.store);
        if dump.announce_secret.is_none() {
            text += "It came without the announce secret, so a new one is made: tokens that were given out before count no \
                     more. Bind each app that announces by a token anew, and restage it.\n";
        }
        match &listing {
            None if !dump.instances.is_empty() => {
                text += "Ports that were freed since the export are allocated again: an import --known-to a listing of the \
                         platform leaves their service instances out.\n";
            }
            None => {}
            Some(listing) => {
                let too_young = |instance: &&ServiceInstance| knows(listing, instance) == Known::TooYoung;
                let too_young = dump.instances.iter().filter(too_young).count();
                text += &left_out(&forgotten, too_young, listing);
            }
        }
        print(&text)?;
        Ok(FINE)
    }
}

fn time_of(instance: &ServiceInstance) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(u64::try_from(instance.created_at.0).unwrap_or_default())
}

/// Which service instances the platform knows no more.
fn left_out(forgotten: &[ServiceInstance], too_young: usize, listing: &Listing) -> String {
    let file = clean(&listing.file);
    let mut text = match forgotten.len() {
        0 if too_young == 0 => format!("{file} has all of them: none was left out.\n"),
        0 => String::new(),
        count => format!("{count} were left out, as {file} does not have them; their ports rest from now on:\n"),
    };
    for instance in forgotten.iter().take(MAX_TOLD) {
        text += &format!("  port {} of {}: {}\n", instance.port, instance.pool, clean(instance.id.as_str()));
    }
    if forgotten.len() > MAX_TOLD {
        text += &format!("  and {} more\n", forgotten.len() - MAX_TOLD);
    }
    if too_young > 0 {
        text += &format!(
            "{too_young} were kept that {file} does not have, as they may be younger than it, or than the newest in it.\n"
        );
    }
    text
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
