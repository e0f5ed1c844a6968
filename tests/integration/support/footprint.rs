//! What a process takes of the machine.

#![allow(dead_code, reason = "each test module uses the helpers it needs")]

use std::fs;

/// At one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Resident memory.
    pub kibibytes: usize,
    /// Open descriptors, of pipes too.
    pub descriptors: usize,
    /// Ends of pipes.
    pub pipes: usize,
}

impl Footprint {
    /// That of the process `pid`, which runs.
    pub fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"));
        let kibibytes = resident.expect("it has memory").trim().parse().expect("a number");
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("it is ours");
        // One that has been closed meanwhile is none.
        let targets = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).collect::<Vec<_>>();
        let pipes = targets.iter().filter(|target| target.to_string_lossy().starts_with("pipe:")).count();
        Self { kibibytes, descriptors: targets.len(), pipes }
    }

    /// The most of each.
    pub fn most(samples: &[Self]) -> Self {
        let most = |part: fn(&Self) -> usize| samples.iter().map(part).max().expect("there are samples");
        Self { kibibytes: most(|s| s.kibibytes), descriptors: most(|s| s.descriptors), pipes: most(|s| s.pipes) }
    }
}
