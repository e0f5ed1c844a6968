//! What a proxy has used, as the kernel accounts for it.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    time::Duration,
};

use super::wait;

/// Less than this in one pause is a proxy at rest: its timers.
const REST: Duration = Duration::from_micros(200);
const PAUSE: Duration = Duration::from_millis(10);
/// A proxy that does not come to rest is measured as it is.
const PATIENCE: Duration = Duration::from_millis(500);

/// Nanoseconds on a processor, by process and thread.
#[derive(Debug, Clone, Default)]
pub struct Cpu(HashMap<(u32, u32), u64>);

impl Cpu {
    /// The scheduler's own count: exact, not sampled at ticks.
    pub fn of(pids: &[u32]) -> Self {
        let mut threads = HashMap::new();
        for pid in pids {
            for thread in numbers(&format!("/proc/{pid}/task")) {
                // A thread may end while we look.
                let Ok(text) = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")) else { continue };
                if let Some(time) = text.split_whitespace().next().and_then(|time| time.parse().ok()) {
                    threads.insert((*pid, thread), time);
                }
            }
        }
        Self(threads)
    }

    /// The count once the proxies have finished what the load left them to do, such as closing its connections.
    pub fn at_rest(pids: &[u32]) -> Self {
        let mut last = Self::of(pids);
        let _ = wait::until(PATIENCE, PAUSE, || {
            let now = Self::of(pids);
            let rests = now.since(&last) < REST;
            last = now;
            rests.then_some(())
        });
        last
    }

    /// Time used since `earlier`. A thread that has ended in between is not in it; those that forward do not end.
    pub fn since(&self, earlier: &Self) -> Duration {
        let used = |(thread, time): (&_, &u64)| time.saturating_sub(earlier.0.get(thread).copied().unwrap_or(0));
        Duration::from_nanos(self.0.iter().map(used).sum())
    }
}

/// Proportional set size in KiB: as resident memory, with pages that several processes share counted once.
pub fn memory_kib(pids: &[u32]) -> io::Result<u64> {
    let mut sum = 0;
    for pid in pids {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let value =
            text.lines().find_map(|line| line.strip_prefix("Pss:")).and_then(|rest| rest.split_whitespace().next());
        sum += value.and_then(|value| value.parse::<u64>().ok()).ok_or(io::ErrorKind::InvalidData)?;
    }
    Ok(sum)
}

/// Datagrams dropped at UDP sockets, by inode, for lack of room in their receive buffers.
#[derive(Debug, Clone, Default)]
pub struct Drops(HashMap<u64, u64>);

impl Drops {
    /// Of all sockets that the processes hold.
    pub fn of(pids: &[u32]) -> io::Result<Self> {
        let mut ours = HashSet::<u64>::new();
        for pid in pids {
            for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
                let Ok(target) = fs::read_link(entry?.path()) else { continue };
                let inode: Option<u64> =
                    target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
                ours.extend(inode);
            }
        }
        let mut drops = parse_drops(&fs::read_to_string("/proc/net/udp")?);
        drops.extend(parse_drops(&fs::read_to_string("/proc/net/udp6")?));
        drops.retain(|inode, _| ours.contains(inode));
        Ok(Self(drops))
    }

    pub fn since(&self, earlier: &Self) -> u64 {
        self.0.iter().map(|(inode, drops)| drops.saturating_sub(earlier.0.get(inode).copied().unwrap_or(0))).sum()
    }
}

/// Inode and drops of each line of `/proc/net/udp`.
fn parse_drops(table: &str) -> HashMap<u64, u64> {
    let fields = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields.filter_map(|fields| Some((fields.get(9)?.parse().ok()?, fields.get(12)?.parse().ok()?))).collect()
}

/// TCP ports on which somebody listens.
pub fn listening_ports() -> io::Result<HashSet<u16>> {
    let mut ports = HashSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(table)?.lines().skip(1) {
            let mut fields = line.split_whitespace();
            let (Some(local), Some("0A")) = (fields.nth(1), fields.nth(1)) else { continue };
            ports.extend(local.rsplit(':').next().and_then(|port| u16::from_str_radix(port, 16).ok()));
        }
    }
    Ok(ports)
}

/// Names in a folder that are numbers.
fn numbers(folder: &str) -> Vec<u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_threads_old_and_new_is_summed() {
        let earlier = Cpu(HashMap::from([((1, 1), 100), ((1, 2), 50), ((1, 3), 7)]));
        let later = Cpu(HashMap::from([((1, 1), 150), ((1, 2), 50), ((2, 2), 20)]));
        assert_eq!(later.since(&earlier), Duration::from_nanos(70));
    }

    #[test]
    fn own_processor_time_is_counted() {
        let pids = [std::process::id()];
        let before = Cpu::of(&pids);
        let grown = wait::until(Duration::from_secs(10), Duration::from_millis(1), || {
            (Cpu::of(&pids).since(&before) > Duration::ZERO).then_some(())
        });
        assert_eq!(grown, Some(()));
    }

    #[test]
    fn drops_are_read_by_inode() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  123: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000000000000000 12
  124: 0100007F:0036 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4712 2 0000000000000000 0
";
        assert_eq!(parse_drops(table), HashMap::from([(4711, 12), (4712, 0)]));
    }
}
