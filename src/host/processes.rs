//! The processes of this machine.

use std::{fs, io};

/// What a process of Harbor is called.
const OWN_NAME: &str = "harbor";

/// A running process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub id: u32,
    /// The first 15 characters of its program's name, unless it has changed that.
    pub name: String,
    /// The user it runs as.
    pub user_id: u32,
}

impl Process {
    /// Whether it is one of Harbor: whatever this very process is called.
    #[must_use]
    pub fn is_harbor(&self) -> bool {
        self.name == OWN_NAME
    }
}

/// All that can be seen.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn processes() -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Processes end while we look.
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        found.extend(parse(id, &status));
    }
    Ok(found)
}

/// `Name:\tharbor` and, after others, `Uid:\t998\t998\t998\t998`
fn parse(id: u32, status: &str) -> Option<Process> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let effective = field("Uid:")?.split_whitespace().nth(1)?;
    Some(Process { id, name: field("Name:")?.to_owned(), user_id: effective.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_as_the_kernel_writes_it() {
        let text = "Name:\tharbor\nUmask:\t0022\nState:\tS (sleeping)\nUid:\t0\t998\t998\t998\nGid:\t0\t0\t0\t0\n";
        let process = Process { id: 7, name: "harbor".into(), user_id: 998 };
        assert!(process.is_harbor());
        assert_eq!(parse(7, text), Some(process));
        assert_eq!(parse(7, ""), None);
    }

    #[test]
    fn this_process_is_among_them() {
        let user_id = rustix::process::getuid().as_raw();
        let own = processes().unwrap().into_iter().find(|process| process.id == std::process::id());
        assert_eq!(own.map(|process| process.user_id), Some(user_id));
    }
}
