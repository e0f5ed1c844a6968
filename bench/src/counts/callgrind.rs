//! Instructions, by `valgrind --tool=callgrind`.

use std::{fs, path::Path, process::Command};

use anyhow::Context as _;

use crate::replay;

/// valgrind's number of the first thread that the replay starts.
const FIRST_STARTED: usize = 2;

/// Instructions of the counted threads, their start and end included.
pub fn instructions(program: &Path, path: &replay::Path, steps: u32, profiles: &Path) -> anyhow::Result<u64> {
    let out = profiles.join(path.name);
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--separate-threads=yes"]);
    valgrind.arg(format!("--callgrind-out-file={}", out.display()));
    super::replay_under(&mut valgrind, program, path, steps)?;
    let mut sum = 0;
    for number in (FIRST_STARTED..).take(replay::THREADS.len()) {
        let file = format!("{}-{number:02}", out.display());
        let profile = fs::read_to_string(&file).with_context(|| format!("callgrind has not written {file}"))?;
        sum += total(&profile).with_context(|| format!("{file} has no total"))?;
    }
    Ok(sum)
}

/// The sum that callgrind writes at the end of a profile.
fn total(profile: &str) -> Option<u64> {
    profile.lines().rev().find_map(|line| line.strip_prefix("totals: "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_of_a_profile_is_its_last_word() {
        let profile = "version: 1\nthread: 2\nevents: Ir\n\nfn=(1) main\n3 17\n\ntotals: 4217\n";
        assert_eq!(total(profile), Some(4217));
        assert_eq!(total("events: Ir\n"), None);
    }
}
