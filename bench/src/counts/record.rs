//! The record: what each path costs per unit.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Extent, strace::Calls};

/// Calls per unit below this are chance.
const NEGLIGIBLE: f64 = 0.005;

/// What is in `counts.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// As `rustc -V` says it. Another one makes other instructions of the same source.
    pub compiler: String,
    pub target: String,
    pub paths: BTreeMap<String, Figures>,
}

/// Costs of one unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    pub unit: String,
    pub instructions: f64,
    pub system_calls: BTreeMap<String, f64>,
}

impl Figures {
    /// Of two runs, of which the second did so many units more.
    pub fn new(unit: &str, units: f64, instructions: [u64; 2], calls: &[Calls; 2]) -> Self {
        let [fewer, more] = calls;
        let of = |calls: &Calls, name: &String| calls.get(name).copied().unwrap_or(0);
        let per_unit = |name: &String| rounded((of(more, name) as f64 - of(fewer, name) as f64) / units, 100.0);
        let system_calls = more.keys().map(|name| (name.clone(), per_unit(name)));
        Self {
            unit: unit.to_owned(),
            instructions: rounded((instructions[1] as f64 - instructions[0] as f64) / units, 1.0),
            system_calls: system_calls.filter(|(_, calls)| *calls > NEGLIGIBLE).collect(),
        }
    }

    /// All system calls of a unit.
    pub fn calls(&self) -> f64 {
        self.system_calls.values().sum()
    }
}

/// To so many parts of one.
fn rounded(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

impl Record {
    /// The record after these figures are put on it. Those of other paths stay when there still are such paths and they
    /// are comparable.
    pub fn updated(mut self, now: Self, extent: Extent) -> Self {
        if extent == Extent::All || !self.is_comparable(&now) {
            self.paths.retain(|name, _| now.paths.contains_key(name));
        }
        self.paths.extend(now.paths);
        Self { paths: self.paths, ..now }
    }

    /// Whether the same source is the same instructions in both.
    pub fn is_comparable(&self, other: &Self) -> bool {
        self.compiler == other.compiler && self.target == other.target
    }

    pub fn to_json(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(calls: &[(&str, u64)]) -> Calls {
        calls.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn figures_are_what_the_second_run_cost_more() {
        let runs = [calls(&[("socket", 9), ("send", 50)]), calls(&[("socket", 9), ("send", 150), ("futex", 0)])];
        let figures = Figures::new("exchange", 50.0, [10_000, 20_020], &runs);
        assert_eq!(figures.instructions, 200.0);
        assert_eq!(figures.system_calls, [("send".to_owned(), 2.0)].into());
        assert_eq!(figures.calls(), 2.0);
    }

    #[test]
    fn recording_keeps_what_another_compiler_has_not_made_old() {
        let cheap = Figures::new("exchange", 1.0, [0, 100], &[Calls::new(), Calls::new()]);
        let dear = Figures { instructions: 200.0, ..cheap.clone() };
        let record = |compiler: &str, paths: &[(&str, &Figures)]| Record {
            compiler: compiler.into(),
            target: "here".into(),
            paths: paths.iter().map(|(name, figures)| ((*name).to_owned(), (*figures).clone())).collect(),
        };
        let before = record("1", &[("a", &cheap), ("b", &cheap)]);
        let same_compiler = before.clone().updated(record("1", &[("a", &dear)]), Extent::Some);
        assert_eq!(same_compiler, record("1", &[("a", &dear), ("b", &cheap)]));
        let all = before.clone().updated(record("1", &[("a", &dear)]), Extent::All);
        assert_eq!(all, record("1", &[("a", &dear)]));
        let other_compiler = before.updated(record("2", &[("a", &dear)]), Extent::Some);
        assert_eq!(other_compiler, record("2", &[("a", &dear)]));
    }
}
