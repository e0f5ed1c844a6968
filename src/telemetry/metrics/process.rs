//! What the kernel says of this process, by the names that every exporter uses for it.

use std::{fmt, fs, os::unix::fs::MetadataExt as _};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};
use rustix::{
    process::{Resource, getrlimit},
    time::{ClockId, clock_gettime},
};

pub(super) fn registry() -> Registry {
    let mut registry = Registry::with_prefix("process");
    registry.register_collector(Box::new(Process));
    registry
}

/// Looked at when the metrics are read. What the kernel does not say is left out.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let spent = clock_gettime(ClockId::ProcessCPUTime);
        let spent = ConstCounter::new(spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9);
        let help = "Processor time spent, by the kernel for it too";
        spent.encode(encoder.encode_descriptor("cpu", help, Some(&Unit::Seconds), spent.metric_type())?)?;
        let mut gauge = |name, help, unit: Option<&Unit>, value: Option<u64>| {
            let Some(value) = value else { return Ok(()) };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)
        };
        gauge("resident_memory", "Memory in use", Some(&Unit::Bytes), resident_bytes())?;
        gauge("open_fds", "Open descriptors", None, open_descriptors())?;
        // Without a limit there is no number that could be reached.
        gauge("max_fds", "Descriptors that it may have", None, getrlimit(Resource::Nofile).current)
    }
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// Since Linux 6.2 the folder's size says how many they are; before, each has to be looked at.
fn open_descriptors() -> Option<u64> {
    let folder = "/proc/self/fd";
    match fs::metadata(folder).ok()?.size() {
        0 => Some(fs::read_dir(folder).ok()?.count() as u64),
        count => Some(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_how_much_this_process_uses() {
        assert!(resident_bytes().unwrap() > 1 << 20);
        let before = open_descriptors().unwrap();
        let files = [(); 100].map(|()| fs::File::open("/dev/null").unwrap());
        // Other tests open and close some meanwhile.
        assert!(open_descriptors().unwrap() >= before + 50, "{before} before {}", files.len());
    }
}
