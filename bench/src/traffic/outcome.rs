//! What came of a work: one line of JSON.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    time::Duration,
};

use serde::Serialize;

use super::histogram::{Histogram, Quantiles};

pub const GIB: f64 = (1_u64 << 30) as f64;

#[derive(Debug, Serialize)]
pub struct Outcome {
    pub work: &'static str,
    pub unit: &'static str,
    pub units: f64,
    pub seconds: f64,
    /// Connections and requests that went wrong; datagrams that were lost are none.
    pub errors: u64,
    pub latency_us: Option<Quantiles>,
    /// Datagrams.
    pub sent: Option<u64>,
    /// Datagrams that never came to the other end.
    pub lost: Option<u64>,
    /// What only this work tells.
    #[serde(flatten)]
    pub more: BTreeMap<&'static str, f64>,
}

impl Outcome {
    pub fn new(work: &'static str, unit: &'static str, units: f64, took: Duration) -> Self {
        Self {
            work,
            unit,
            units,
            seconds: took.as_secs_f64(),
            errors: 0,
            latency_us: None,
            sent: None,
            lost: None,
            more: BTreeMap::new(),
        }
    }

    pub fn errors(mut self, errors: u64) -> Self {
        self.errors = errors;
        self
    }

    pub fn latency(mut self, latency: &Histogram) -> Self {
        self.latency_us = latency.quantiles();
        self
    }

    pub fn datagrams(mut self, sent: u64, lost: u64) -> Self {
        self.sent = Some(sent);
        self.lost = Some(lost);
        self
    }

    pub fn with(mut self, name: &'static str, value: f64) -> Self {
        self.more.insert(name, value);
        self
    }

    pub fn print(&self) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        serde_json::to_writer(&mut stdout, self)?;
        stdout.write_all(b"\n")?;
        stdout.flush()
    }
}
