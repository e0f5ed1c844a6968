//! What is dearer and what is cheaper than on record.

use std::{collections::BTreeMap, fmt};

use super::{
    Extent,
    record::{Figures, Record},
};

/// More than this is dearer, or cheaper.
const PERCENT: f64 = 5.0;

/// What a comparison says, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Same,
    Cheaper,
    Dearer,
    /// A path is not on record, or one that is on record is no more.
    Unknown,
}

/// Figures beside those on record.
#[derive(Debug)]
pub struct Comparison {
    rows: Vec<Row>,
    remarks: Vec<String>,
    unknown: bool,
}

#[derive(Debug)]
struct Row {
    path: String,
    what: &'static str,
    recorded: f64,
    now: f64,
    verdict: Verdict,
    /// What the figure is made of, where that has changed.
    details: String,
}

/// Compares what is in `now` with what is on record.
pub fn compare(before: &Record, now: &Record, extent: Extent) -> Comparison {
    let mut comparison = Comparison { rows: Vec::new(), remarks: Vec::new(), unknown: false };
    let comparable = before.is_comparable(now);
    if !comparable && !before.paths.is_empty() {
        comparison.remarks.push(format!(
            "Only system calls are compared: the record is of {} for {}, this is {} for {}.",
            before.compiler, before.target, now.compiler, now.target
        ));
    }
    for (path, figures) in &now.paths {
        let Some(recorded) = before.paths.get(path) else {
            comparison.unknown = true;
            comparison.remarks.push(format!("{path} is not on record."));
            continue;
        };
        let mut row = |what, before, now, details| {
            let verdict = verdict(before, now);
            comparison.rows.push(Row { path: path.clone(), what, recorded: before, now, verdict, details });
        };
        if comparable {
            row("instructions", recorded.instructions, figures.instructions, String::new());
        }
        row("system calls", recorded.calls(), figures.calls(), changed_calls(recorded, figures));
    }
    if extent == Extent::All {
        for path in before.paths.keys().filter(|path| !now.paths.contains_key(*path)) {
            comparison.unknown = true;
            comparison.remarks.push(format!("{path} is on record, but there is no such path."));
        }
    }
    comparison
}

fn verdict(recorded: f64, now: f64) -> Verdict {
    let allowed = recorded * PERCENT / 100.0;
    if now > recorded + allowed {
        Verdict::Dearer
    } else if now < recorded - allowed {
        Verdict::Cheaper
    } else {
        Verdict::Same
    }
}

fn changed_calls(recorded: &Figures, now: &Figures) -> String {
    let names = recorded.system_calls.keys().chain(now.system_calls.keys());
    let names = names.map(|name| (name, ())).collect::<BTreeMap<_, _>>().into_keys();
    let of = |figures: &Figures, name: &String| figures.system_calls.get(name).copied().unwrap_or(0.0);
    let pairs = names.map(|name| (name, of(recorded, name), of(now, name)));
    let changed = pairs.filter(|(_, recorded, now)| verdict(*recorded, *now) != Verdict::Same);
    changed.map(|(name, recorded, now)| format!("{name} {recorded:.2} to {now:.2}")).collect::<Vec<_>>().join(", ")
}

impl Comparison {
    /// The worst of all.
    pub fn verdict(&self) -> Verdict {
        let unknown = self.unknown.then_some(Verdict::Unknown);
        self.rows.iter().map(|row| row.verdict).chain(unknown).max().unwrap_or(Verdict::Same)
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:17} {:12} {:>12} {:>12} {:>8}", "path", "per unit", "recorded", "now", "change")?;
        for Row { path, what, recorded, now, verdict, details } in &self.rows {
            let change = (now / recorded - 1.0) * 100.0;
            let verdict = match verdict {
                Verdict::Same | Verdict::Unknown => "",
                Verdict::Cheaper => "cheaper",
                Verdict::Dearer => "DEARER",
            };
            let line = format!("{path:17} {what:12} {recorded:12.2} {now:12.2} {change:+7.1}% {verdict:8} {details}");
            writeln!(f, "{}", line.trim_end())?;
        }
        self.remarks.iter().try_for_each(|remark| writeln!(f, "{remark}"))?;
        f.write_str(match self.verdict() {
            Verdict::Same => "All as on record.",
            Verdict::Cheaper => "Nothing is dearer. Put what is cheaper on record: bench/counts --record",
            Verdict::Unknown => "Put all paths on record: bench/counts --record",
            Verdict::Dearer => "Find out why it is dearer. If it is worth it, put it on record: bench/counts --record",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(compiler: &str, instructions: f64, calls: &[(&str, f64)]) -> Record {
        let figures = Figures {
            unit: "exchange".into(),
            instructions,
            system_calls: calls.iter().map(|(name, calls)| ((*name).to_owned(), *calls)).collect(),
        };
        Record { compiler: compiler.into(), target: "here".into(), paths: [("a".to_owned(), figures)].into() }
    }

    fn compare_all(before: &Record, now: &Record) -> Comparison {
        compare(before, now, Extent::All)
    }

    #[test]
    fn more_than_five_percent_is_dearer_or_cheaper() {
        let before = record("1", 1000.0, &[("send", 2.0)]);
        let check = |instructions, calls, expect| {
            let comparison = compare_all(&before, &record("1", instructions, &[("sendmsg", calls)]));
            assert_eq!(comparison.verdict(), expect, "{instructions} instructions, {calls} calls");
        };
        check(1000.0, 2.0, Verdict::Same);
        check(1050.0, 2.1, Verdict::Same);
        check(1051.0, 2.0, Verdict::Dearer);
        check(1000.0, 2.2, Verdict::Dearer);
        check(949.0, 2.0, Verdict::Cheaper);
        check(949.0, 2.2, Verdict::Dearer);
    }

    #[test]
    fn with_another_compiler_only_system_calls_are_compared() {
        let before = record("1", 1000.0, &[("send", 2.0)]);
        let comparison = compare_all(&before, &record("2", 2000.0, &[("send", 2.0)]));
        assert_eq!(comparison.verdict(), Verdict::Same);
        assert_eq!(
            comparison.to_string(),
            "path              per unit         recorded          now   change\n\
             a                 system calls         2.00         2.00    +0.0%\n\
             Only system calls are compared: the record is of 1 for here, this is 2 for here.\n\
             All as on record."
        );
    }

    #[test]
    fn a_dearer_path_is_told_with_the_calls_that_changed() {
        let before = record("1", 1000.0, &[("recv", 1.0), ("send", 2.0)]);
        let comparison = compare_all(&before, &record("1", 1000.0, &[("recv", 1.0), ("send", 3.0)]));
        assert_eq!(
            comparison.to_string(),
            "path              per unit         recorded          now   change\n\
             a                 instructions      1000.00      1000.00    +0.0%\n\
             a                 system calls         3.00         4.00   +33.3% DEARER   send 2.00 to 3.00\n\
             Find out why it is dearer. If it is worth it, put it on record: bench/counts --record"
        );
    }

    #[test]
    fn what_is_not_on_record_and_what_is_no_more_is_told() {
        let here = record("1", 1000.0, &[("send", 2.0)]);
        let nothing = Record { paths: BTreeMap::new(), ..here.clone() };
        assert_eq!(compare(&nothing, &here, Extent::Some).verdict(), Verdict::Unknown);
        assert_eq!(compare(&here, &nothing, Extent::All).verdict(), Verdict::Unknown);
        assert_eq!(compare(&here, &nothing, Extent::Some).verdict(), Verdict::Same);
    }
}
