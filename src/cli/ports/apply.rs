//! `harbor ports apply`

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use hyper::Method;

use super::{print_json, reserve::notes, shown};
use crate::{
    admin::wire::ports::{APPLY_PATH, Applied, Apply, ApplyName, ApplyPool, Step},
    cli::{
        FINE, Outcome,
        operator::{Node, Reach},
        print,
    },
    config::PortsFile,
    model::registry::{Wanted, Wish},
};

/// Make the reservations of pools what a file says: all of it, or nothing.
///
/// Only pools that have a section in the file are looked at, but for blocks that --prune drops. A section with a range is
/// a block: ports of the machine that no pool gives out; it is defined where there is none. Names without a port keep what
/// they have. The exit code is 0 whether there is something to do or not, 1 when it cannot be done, and 2 when the file is
/// wrong in itself.
#[derive(Debug, clap::Args)]
pub struct ApplyFile {
    /// The file, such as ports.toml.
    file: PathBuf,

    /// Only tell what would be done.
    #[arg(long)]
    dry_run: bool,

    /// Release the reservations of these pools that are not in the file, and drop blocks that are not in it and have no names.
    #[arg(long)]
    prune: bool,

    /// Take ports that service instances have, too: they keep them, and nobody gets them after.
    #[arg(long)]
    when_free: bool,

    /// Print JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    reach: Reach,
}

impl ApplyFile {
    pub async fn run(self, config: Option<PathBuf>) -> Outcome {
        let wanted = Apply {
            dry_run: self.dry_run,
            prune: self.prune,
            when_free: self.when_free,
            pools: PortsFile::load(&self.file)?.sections().map(section).collect(),
        };
        let applied = Node::find(self.reach, config)?.ask_with::<Applied>(Method::POST, APPLY_PATH, &wanted).await?;
        if self.json {
            print_json(&applied)?;
        } else {
            print(&words(&applied, &self.file))?;
        }
        Ok(FINE)
    }
}

fn section((name, range, wishes): (&crate::model::PoolName, Option<&crate::model::PortSet>, Vec<&Wish>)) -> ApplyPool {
    let name_of = |wish: &Wish| {
        let (port, count) = match &wish.ports {
            Wanted::Given(ports) => (Some(shown(ports)), None),
            Wanted::Chosen(count) => (None, Some(*count)),
        };
        ApplyName { name: wish.name.clone(), port, count, protocol: Some(wish.protocol.as_str().into()) }
    };
    ApplyPool {
        name: name.to_string(),
        range: range.map(ToString::to_string),
        names: wishes.into_iter().map(name_of).collect(),
    }
}

/// A line for each thing that changes, and how many there are.
fn words(applied: &Applied, file: &Path) -> String {
    let mut text = String::new();
    for block in &applied.blocks {
        let _ = writeln!(text, "+ block {} {}", block.name, block.range);
    }
    for block in &applied.dropped_blocks {
        let _ = writeln!(text, "- block {} {}", block.name, block.range);
    }
    for step in &applied.names {
        let Step { pool, name, before, after, .. } = step;
        let _ = match (before, after) {
            (Some(before), Some(after)) if before == after => continue,
            (Some(before), Some(after)) => writeln!(text, "~ {pool} {name} {before} -> {after}"),
            (None, Some(after)) => writeln!(text, "+ {pool} {name} {after}"),
            (Some(before), None) => writeln!(text, "- {pool} {name} {before}"),
            (None, None) => continue,
        };
        text.extend(notes(step));
    }
    let count = |change: &str| applied.names.iter().filter(|step| step.change == change).count();
    let (add, change, remove, keep) = (count("add"), count("change"), count("remove"), count("keep"));
    let _ = if applied.dry_run {
        writeln!(text, "{add} to add, {change} to change, {remove} to remove, {keep} as they are; nothing was changed")
    } else {
        writeln!(text, "{add} added, {change} changed, {remove} removed, {keep} as they were")
    };
    if applied.others > 0 {
        let (others, file) = (applied.others, file.display());
        let _ = writeln!(text, "{others} more names of these pools are not in {file}: --prune releases them");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::wire::ports::{Block, Held};

    fn step(name: &str, change: &str, before: Option<u16>, after: Option<u16>) -> Step {
        let held = |port| Held { port, last_port: port, protocol: "both".into() };
        Step {
            pool: "default".into(),
            name: name.into(),
            change: change.into(),
            before: before.map(held),
            after: after.map(held),
            moved_from: None,
            allocated: vec![],
        }
    }

    #[test]
    fn a_plan_is_a_line_for_each_change_and_a_count() {
        let block = |name: &str, range: &str| Block { name: name.into(), range: range.into() };
        let applied = Applied {
            dry_run: true,
            blocks: vec![block("infrastructure", "25000-25999")],
            dropped_blocks: vec![block("infrastructre", "25000-25999")],
            names: vec![
                step("a", "add", None, Some(2000)),
                step("b", "change", Some(2001), Some(2002)),
                step("c", "keep", Some(2003), Some(2003)),
                step("d", "remove", Some(2004), None),
            ],
            others: 0,
        };
        assert_eq!(
            words(&applied, Path::new("ports.toml")),
            "+ block infrastructure 25000-25999\n\
             - block infrastructre 25000-25999\n\
             + default a 2000 (both)\n\
             ~ default b 2001 (both) -> 2002 (both)\n\
             - default d 2004 (both)\n\
             1 to add, 1 to change, 1 to remove, 1 as they are; nothing was changed\n"
        );
        let done = Applied {
            dry_run: false,
            blocks: vec![],
            dropped_blocks: vec![],
            names: vec![step("c", "keep", Some(1), Some(1))],
            others: 2,
        };
        assert_eq!(
            words(&done, Path::new("ports.toml")),
            "0 added, 0 changed, 0 removed, 1 as they were\n\
             2 more names of these pools are not in ports.toml: --prune releases them\n"
        );
    }
}
