//! The form of a dump in a file: a line that says what it is, a line of JSON for each record, and a line with the checksum
//! of all before it. And the form for people, which is one document and cannot be read back.
//!
//! A file is taken apart only when it is whole. So what a line then says that is not understood is no damage: a newer
//! version has written it.

use std::io::{self, Write};

use ring::digest;
use serde::{Deserialize, Serialize};

use super::{
    Contradiction, Dump,
    record::{Binding, Deleted, Instance, LastRelease, Operation, Pool, Record, Reservation, Setting},
};
use crate::{
    model::{BindingId, Revision, ServiceInstanceId, token::AnnounceSecret},
    store::row,
};

/// The format that this version writes, and the newest that it reads.
const VERSION: u64 = 1;

/// The longest file that is read: some hundred times what 5,000 service instances take.
pub const MAX_FILE_BYTES: u64 = 512 * 1024 * 1024;

/// Why a file is not taken for a dump.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is of something else.
    #[error("this is no export of Harbor: name a file that `harbor data export` has written")]
    NotADump,
    /// It is the form for people.
    #[error(
        "this is the form to read, which lacks what is secret: import takes what `harbor data export` writes without \
         --format json"
    )]
    ToRead,
    /// Its format is of a newer version.
    #[error("this was written by a newer Harbor (format {found}, this one knows {VERSION}): import it by that version")]
    Newer {
        /// The format.
        found: u64,
    },
    /// Its end is missing.
    #[error("this ends before its last line, so it was cut short: take another copy")]
    CutShort,
    /// It is not as it was written.
    #[error(
        "this does not have the checksum that it was written with, so it was changed or damaged: take another copy"
    )]
    Damaged,
    /// Whole, and yet not understood.
    #[error("line {line} is not understood ({reason}), so a newer Harbor has written it: import it by that version")]
    NotUnderstood {
        /// Which one, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// Understood, and yet no store can have held it.
    #[error("{0}: no Harbor has written this; take another copy")]
    Contradiction(Contradiction),
}

/// The first line. Of one that a newer version has written, the format alone has to be understood.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    harbor_data: u64,
    revision: u64,
}

/// The format, in the first line of any version.
#[derive(Debug, Deserialize)]
struct Format {
    harbor_data: u64,
}

/// The last line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    /// Of all bytes before this line, in hexadecimal digits.
    sha256: String,
}

/// A dump for people: everything but what is secret.
#[derive(Debug, Serialize)]
struct Document {
    revision: u64,
    pools: Vec<Pool>,
    reservations: Vec<Reservation>,
    service_instances: Vec<Instance>,
    bindings: Vec<Binding>,
    last_releases: Vec<LastRelease>,
    operations: Vec<Operation>,
    deleted_service_instances: Vec<Deleted>,
    deleted_bindings: Vec<Deleted>,
    settings: Vec<Setting>,
    settings_history: Vec<Setting>,
}

impl Dump {
    /// Writes it in the form that [`Self::read`] takes. The same dump is always the same bytes.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        let mut lines = Lines { to, digest: digest::Context::new(&digest::SHA256) };
        lines.write(&Head { harbor_data: VERSION, revision: self.revision.0 })?;
        for record in self.records() {
            lines.write(&record)?;
        }
        let sha256 = hex(lines.digest.clone().finish().as_ref());
        lines.write(&End { sha256 })
    }

    /// Writes it as a document for people, without what is secret.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn write_to_read(&self, to: &mut dyn Write) -> io::Result<()> {
        let document = Document {
            revision: self.revision.0,
            pools: self.pools.iter().map(Pool::of).collect(),
            reservations: self.reservations.iter().map(Reservation::of).collect(),
            service_instances: self.instances.iter().map(Instance::of).collect(),
            bindings: self.bindings.iter().map(Binding::of).collect(),
            last_releases: self.last_releases.iter().map(LastRelease::of).collect(),
            operations: self.operations.iter().map(Operation::of).collect(),
            deleted_service_instances: self.deleted_instances.iter().map(|(id, at)| Deleted::of(id, *at)).collect(),
            deleted_bindings: self.deleted_bindings.iter().map(|(id, at)| Deleted::of(id, *at)).collect(),
            settings: self.settings.iter().map(Setting::of).collect(),
            settings_history: self.settings_history.iter().map(Setting::of).collect(),
        };
        serde_json::to_writer_pretty(&mut *to, &document)?;
        to.write_all(b"\n")
    }

    /// Reads what [`Self::write`] has written, and checks all of it.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(bytes: &[u8]) -> Result<Self, ReadError> {
        let head = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let found = match serde_json::from_slice::<Format>(head) {
            Ok(Format { harbor_data }) if head.starts_with(b"{") => harbor_data,
            Err(_) if bytes.starts_with(b"{\n  \"revision\":") => return Err(ReadError::ToRead),
            _ => return Err(ReadError::NotADump),
        };
        if found != VERSION {
            return Err(ReadError::Newer { found });
        }
        let contents = whole(bytes)?;
        let mut lines = contents.split(|byte| *byte == b'\n').zip(1..);
        let (head, _) = lines.next().ok_or(ReadError::NotADump)?;
        let head = serde_json::from_slice::<Head>(head).map_err(|error| not_understood(1, error))?;
        let mut dump = Self { revision: Revision(head.revision), ..Self::default() };
        for (line, number) in lines {
            let record = serde_json::from_slice::<Record>(line).map_err(|error| not_understood(number, error))?;
            dump.add(record).map_err(|error| not_understood(number, error))?;
        }
        dump.check().map_err(ReadError::Contradiction)?;
        Ok(dump)
    }

    /// All of it but the revision, in the order in which it can be taken over.
    fn records(&self) -> impl Iterator<Item = Record> {
        let secret = self.announce_secret.iter().map(|secret| Record::AnnounceSecret(row::secret_to_hex(secret)));
        let former = self.announce_secret.iter().filter_map(AnnounceSecret::former);
        let former = former.map(|secret| Record::FormerAnnounceSecret(row::secret_to_hex(&secret)));
        let pools = self.pools.iter().map(|pool| Record::Pool(Pool::of(pool)));
        let reservations = self.reservations.iter().map(|held| Record::Reservation(Reservation::of(held)));
        let instances = self.instances.iter().map(|instance| Record::ServiceInstance(Instance::of(instance)));
        let bindings = self.bindings.iter().map(|binding| Record::Binding(Binding::of(binding)));
        let last_releases = self.last_releases.iter().map(|last| Record::LastRelease(LastRelease::of(last)));
        let operations = self.operations.iter().map(|operation| Record::Operation(Operation::of(operation)));
        let deleted_instances = self.deleted_instances.iter();
        let deleted_instances = deleted_instances.map(|(id, at)| Record::DeletedServiceInstance(Deleted::of(id, *at)));
        let deleted_bindings = self.deleted_bindings.iter();
        let deleted_bindings = deleted_bindings.map(|(id, at)| Record::DeletedBinding(Deleted::of(id, *at)));
        let settings = self.settings.iter().map(|setting| Record::Setting(Setting::of(setting)));
        let changes = self.settings_history.iter().map(|change| Record::SettingChange(Setting::of(change)));
        secret
            .chain(former)
            .chain(pools)
            .chain(reservations)
            .chain(instances)
            .chain(bindings)
            .chain(last_releases)
            .chain(operations)
            .chain(deleted_instances)
            .chain(deleted_bindings)
            .chain(settings)
            .chain(changes)
    }

    fn add(&mut self, record: Record) -> Result<(), row::BadRow> {
        match record {
            Record::AnnounceSecret(_) if self.announce_secret.is_some() => return Err("a second secret".into()),
            Record::AnnounceSecret(digits) => self.announce_secret = Some(row::secret_from_hex(&digits)?),
            Record::FormerAnnounceSecret(digits) => match self.announce_secret.take() {
                Some(secret) if secret.former().is_none() => {
                    self.announce_secret = Some(secret.after(&row::secret_from_hex(&digits)?));
                }
                _ => return Err("a former secret without the one after it".into()),
            },
            Record::Pool(pool) => self.pools.push(pool.revive()?),
            Record::Reservation(held) => self.reservations.push(held.revive()?),
            Record::ServiceInstance(instance) => self.instances.push(instance.revive()?),
            Record::Binding(binding) => self.bindings.push(binding.revive()?),
            Record::LastRelease(last) => self.last_releases.push(last.revive()?),
            Record::Operation(operation) => self.operations.push(operation.revive()?),
            Record::DeletedServiceInstance(deleted) => {
                self.deleted_instances.push(deleted.revive(ServiceInstanceId::new)?)
            }
            Record::DeletedBinding(deleted) => self.deleted_bindings.push(deleted.revive(BindingId::new)?),
            Record::Setting(setting) => self.settings.push(setting.revive()),
            Record::SettingChange(change) => self.settings_history.push(change.revive()),
        }
        Ok(())
    }
}

/// Writes lines, and keeps the sum of them.
struct Lines<'a> {
    to: &'a mut dyn Write,
    digest: digest::Context,
}

impl Lines<'_> {
    fn write(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        self.digest.update(&bytes);
        self.to.write_all(&bytes)
    }
}

/// All lines before the last one, without the end of the last of them, if the sum in it is theirs.
fn whole(bytes: &[u8]) -> Result<&[u8], ReadError> {
    let lines = bytes.strip_suffix(b"\n").ok_or(ReadError::CutShort)?;
    let last = lines.iter().rposition(|byte| *byte == b'\n').ok_or(ReadError::CutShort)? + 1;
    let End { sha256 } = serde_json::from_slice(&lines[last..]).map_err(|_| ReadError::CutShort)?;
    if hex(digest::digest(&digest::SHA256, &bytes[..last]).as_ref()) != sha256 {
        return Err(ReadError::Damaged);
    }
    Ok(&lines[..last - 1])
}

fn not_understood(line: usize, reason: impl ToString) -> ReadError {
    ReadError::NotUnderstood { line, reason: reason.to_string() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
