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
    pub const ALL: [Self; 10] = [
        Self::Cpu,
        Self::Rate,
        Self::P50,
        Self::P99,
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
            Self::Drops => "drops at own sockets",
            Self::IdleMemory5000 => "RSS per connection at 5,000",
            Self::IdleMemory9000 => "RSS per connection at 9,000",
            Self::Start => "start to all listening",
            Self::Bind => "snapshot to all listening",
            Self::ListenerMemory => "RSS more than with one",
        }
    }

    /// The unit of the figure as shown; `unit` and `per` are the work's.
    pub fn unit(self, unit: &str, per: &str) -> String {
        match self {
            Self::Cpu => format!("CPU s/{per}"),
            Self::Rate => format!("{unit}/s"),
            Self::P50 | Self::P99 => "µs".into(),
            Self::Drops => "datagrams".into(),
            Self::IdleMemory5000 | Self::IdleMemory9000 => "KiB".into(),
            Self::Start | Self::Bind => "s".into(),
            Self::ListenerMemory => "MiB".into(),
        }
    }
}
