//! What a run found, as it is kept in `results.json`.

use std::{collections::BTreeMap, fs, io::Write as _, path::Path};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::metric::Metric;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// RFC 3339, UTC.
    pub started: String,
    pub machine: Machine,
    /// Of the source beside which it ran, where that is known; `-dirty` when it had changes.
    #[serde(default)]
    pub revision: Option<String>,
    pub arguments: Vec<String>,
    /// By peer.
    pub versions: BTreeMap<String, String>,
    /// Works that were asked for, in their order.
    pub works: Vec<String>,
    /// What was left out, and why: a sentence each.
    pub left_out: Vec<String>,
    pub cells: Vec<Cell>,
    pub system_calls: Vec<SystemCalls>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub kernel: String,
    pub processor: String,
    pub cores: usize,
    pub memory_mib: u64,
    pub descriptors: u64,
    /// `net.core.rmem_max` during the run, bytes.
    pub receive_buffer_max: u64,
}

/// One proxy doing one work once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    pub work: String,
    pub peer: String,
    pub round: u32,
    /// Its turn within the round, from 0.
    pub turn: usize,
    pub metrics: BTreeMap<Metric, f64>,
    /// Whatever else the load said.
    pub load: Value,
    /// Why there are no metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// From a pass of its own: counting costs time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SystemCalls {
    pub work: String,
    pub peer: String,
    pub units: f64,
    pub calls: u64,
    pub splices: u64,
}

impl Cell {
    /// Whether all of the work was done; what a datagram proxy loses is told apart.
    pub fn is_whole(&self) -> bool {
        self.error.is_none() && self.errors() == 0
    }

    /// Connections and requests that went wrong.
    pub fn errors(&self) -> u64 {
        self.load["errors"].as_u64().unwrap_or(0)
    }

    /// Datagrams that never came to the other end.
    pub fn lost(&self) -> u64 {
        self.load["lost"].as_u64().unwrap_or(0)
    }
}

impl Results {
    /// All that one proxy did of one work.
    pub fn cells_of(&self, work: &str, peer: &str) -> impl Iterator<Item = &Cell> {
        self.cells.iter().filter(move |cell| cell.work == work && cell.peer == peer)
    }

    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no result of a comparison", path.display()))
    }

    /// Replaces the file in one step, so that a run that is broken off leaves a whole one.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let beside = path.with_extension("partial");
        let mut file = fs::File::create(&beside).with_context(|| format!("cannot write {}", beside.display()))?;
        serde_json::to_writer(&mut file, self)?;
        file.write_all(b"\n")?;
        fs::rename(&beside, path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Adds another run: its rounds come after ours.
    pub fn append(&mut self, other: Self) {
        let offset = self.cells.iter().map(|cell| cell.round + 1).max().unwrap_or(0);
        self.cells.extend(other.cells.into_iter().map(|cell| Cell { round: cell.round + offset, ..cell }));
        self.system_calls.retain(|ours| {
            !other.system_calls.iter().any(|theirs| (&theirs.work, &theirs.peer) == (&ours.work, &ours.peer))
        });
        self.system_calls.extend(other.system_calls);
        self.works.extend(other.works.into_iter().filter(|work| !self.works.contains(work)).collect::<Vec<_>>());
        self.left_out
            .extend(other.left_out.into_iter().filter(|text| !self.left_out.contains(text)).collect::<Vec<_>>());
        for (peer, version) in other.versions {
            self.versions.entry(peer).or_insert(version);
        }
    }

    /// A metric of a peer by round.
    pub fn by_round(&self, work: &str, peer: &str, metric: Metric) -> BTreeMap<u32, f64> {
        self.cells_of(work, peer).filter_map(|cell| Some((cell.round, *cell.metrics.get(&metric)?))).collect()
    }
}
