//! What is measured of a work, and how it is shown.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// CPU seconds of the proxy per unit of work.
    Cpu,
    /// Units a second.
    Rate,
    /// Microseconds.
    P50,
    P99,
    /// Microseconds by which the load itself sent late what had nothing to wait for, 99th percentile.
    OwnDelay,
    /// Datagrams dropped at the proxy's own sockets.
    Drops,
    /// KiB of resident memory per idle connection, at 5,000 and at 9,000.
    IdleMemory5000,
    IdleMemory9000,
    /// Seconds from the start of the process until all ports listen.
    Start,
    /// Seconds from the bound snapshot until all ports listen; Harbor's alone.
    Bind,
    /// MiB of resident memory that 5,000 listeners take beyond what one takes.
    ListenerMemory,
}

impl Metric {
    pub const ALL: [Self; 11] = [
        Self::Cpu,
        Self::Rate,
        Self::P50,
        Self::P99,
        Self::OwnDelay,
        Self::Drops,
        Self::IdleMemory5000,
        Self::IdleMemory9000,
        Self::Start,
        Self::Bind,
        Self::ListenerMemory,
    ];

    /// As a row's label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Rate => "rate",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::OwnDelay => "the load's own delay, p99",
            Self::Drops => "drops at own sockets",
            Self::IdleMemory5000 => "RSS per connection at 5,000",
            Self::IdleMemory9000 => "RSS per connection at 9,000",
            Self::Start => "start to all listening",
            Self::Bind => "snapshot to all listening",
            Self::ListenerMemory => "RSS more than with one",
        }
    }

    /// Whether it tells something of the proxy to divide by the peer's. Of drops there are to be none, and the load's own
    /// delay is not the proxy's.
    pub const fn is_compared(self) -> bool {
        !matches!(self, Self::Drops | Self::OwnDelay)
    }

    /// Whether an answer that never came would have made it worse.
    pub const fn is_of_answers(self) -> bool {
        matches!(self, Self::P50 | Self::P99)
    }

    /// The unit of the figure as shown; `unit` and `per` are the work's.
    pub fn unit(self, unit: &str, per: &str) -> String {
        match self {
            Self::Cpu => format!("CPU s/{per}"),
            Self::Rate => format!("{unit}/s"),
            Self::P50 | Self::P99 | Self::OwnDelay => "µs".into(),
            Self::Drops => "datagrams".into(),
            Self::IdleMemory5000 | Self::IdleMemory9000 => "KiB".into(),
            Self::Start | Self::Bind => "s".into(),
            Self::ListenerMemory => "MiB".into(),
        }
    }
}
