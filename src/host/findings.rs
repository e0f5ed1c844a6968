//! What of a machine does not fit the pools: pure, from what [`survey`](super::survey()) has seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

use super::{
    common_ports::COMMON_PORTS,
    holder::{Held, Holder, SocketState, meet},
    local_ports::{LocalPorts, MIN_OUTGOING},
    processes::Process,
};
use crate::model::{PoolName, PortSet, Transport, desired::RESERVED_DESCRIPTORS};

/// What Kubernetes gives to services of type NodePort where nothing else is set.
pub const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// What Kubernetes' own processes on a machine are called.
const KUBERNETES: [&str; 5] = ["kube-proxy", "kubelet", "kubelite", "k3s-server", "k3s-agent"];

/// Most ranges of ports that are shown of a set.
const MAX_RANGES_SHOWN: usize = 4;

/// Most ranges of a pool that is proposed.
const MAX_RANGES_WRITTEN: usize = 8;

/// Most holders of ports that are told of one pool.
const MAX_HOLDERS: usize = 16;

/// What a configuration wants of the machine.
#[derive(Debug, Clone)]
pub struct Needs {
    /// The pools that this node serves.
    pub pools: Vec<(PoolName, PortSet)>,
    /// The pools of the same file that others serve.
    pub other_pools: Vec<(PoolName, PortSet)>,
    /// Those whose ranges are set live: what a file says of them does not hold.
    pub live_ranges: BTreeSet<PoolName>,
    /// The addresses that ports are bound on.
    pub listen: Vec<IpAddr>,
    /// Harbor's own APIs, by the key that says where.
    pub apis: Vec<(&'static str, SocketAddr)>,
    /// TCP connections that one port may have.
    pub connections_per_port: u32,
    /// Sockets that all ports may have together; 0: what the descriptors allow.
    pub max_sockets: u32,
    /// How long a UDP session may be silent.
    pub udp_idle: Duration,
    /// What a UDP listener asks for, in bytes.
    pub receive_buffer: u64,
}

/// What was seen of a machine. `None`: it has no such thing, or does not tell.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// The ports of outgoing connections.
    pub local_ports: Option<LocalPorts>,
    /// `net.ipv4.ip_unprivileged_port_start`.
    pub unprivileged_start: Option<u16>,
    /// What runs.
    pub processes: Vec<Process>,
    /// The one that looks.
    pub own_process: u32,
    /// The sockets at ports of the pools and of the APIs.
    pub held: Vec<Held>,
    /// The machine's addresses.
    pub addresses: Option<BTreeSet<IpAddr>>,
    /// How many descriptors a process may have.
    pub descriptors: u64,
    /// What the kernel's connection tracking allows, where it is loaded.
    pub conntrack: Option<Conntrack>,
    /// `net.core.rmem_max`, in bytes.
    pub receive_buffer: Option<u64>,
}

/// The limits of connection tracking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conntrack {
    /// `net.netfilter.nf_conntrack_max`.
    pub max: u64,
    /// `net.netfilter.nf_conntrack_count`.
    pub count: u64,
    /// `net.netfilter.nf_conntrack_udp_timeout_stream`.
    pub udp_stream: Duration,
}

/// How bad a finding is; the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Harbor will not work so.
    Error,
    /// Somebody will be hurt by it sooner or later.
    Warning,
    /// Good to know.
    Info,
}

impl Severity {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

/// What was found. The words are stable: programs go by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// An outgoing connection may take a port of a pool.
    EphemeralOverlap,
    /// Few ports are left to outgoing connections.
    OutgoingPorts,
    /// The kernel does not say which ports it gives to outgoing connections.
    NotKnown,
    /// Ports that only a privileged process may bind.
    PrivilegedPort,
    /// Kubernetes may give a port of a pool to a service.
    NodePorts,
    /// A port of a pool is one that a common service listens on.
    CommonPort,
    /// Harbor's own API has a port of a pool.
    OwnListener,
    /// Another process is where an API is to listen.
    ListenInUse,
    /// Two pools of the file have a port.
    PoolsOverlap,
    /// Another process has a port of a pool.
    PortInUse,
    /// The machine does not have an address that ports are bound on.
    AddressAbsent,
    /// A process may open few descriptors.
    Descriptors,
    /// Connection tracking has little room.
    Conntrack,
    /// Connection tracking forgets sessions that are silent.
    ConntrackUdp,
    /// The kernel grants small buffers.
    ReceiveBuffer,
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::EphemeralOverlap,
        Self::OutgoingPorts,
        Self::NotKnown,
        Self::PrivilegedPort,
        Self::NodePorts,
        Self::CommonPort,
        Self::OwnListener,
        Self::ListenInUse,
        Self::PoolsOverlap,
        Self::PortInUse,
        Self::AddressAbsent,
        Self::Descriptors,
        Self::Conntrack,
        Self::ConntrackUdp,
        Self::ReceiveBuffer,
    ];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EphemeralOverlap => "ephemeral_overlap",
            Self::OutgoingPorts => "outgoing_ports",
            Self::NotKnown => "not_known",
            Self::PrivilegedPort => "privileged_port",
            Self::NodePorts => "node_ports",
            Self::CommonPort => "common_port",
            Self::OwnListener => "own_listener",
            Self::ListenInUse => "listen_in_use",
            Self::PoolsOverlap => "pools_overlap",
            Self::PortInUse => "port_in_use",
            Self::AddressAbsent => "address_absent",
            Self::Descriptors => "descriptors",
            Self::Conntrack => "conntrack",
            Self::ConntrackUdp => "conntrack_udp",
            Self::ReceiveBuffer => "receive_buffer",
        }
    }
}

/// One thing that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is.
    pub code: Code,
    /// Of which pool, where it is of one.
    pub pool: Option<PoolName>,
    /// The same in one sentence.
    pub says: String,
    /// What mends it, ready to paste: a command, or a line of the configuration.
    pub mend: Option<String>,
}

/// All that does not fit, the worst first.
#[must_use]
pub fn judge(needs: &Needs, machine: &Machine) -> Vec<Finding> {
    let mut found = Vec::new();
    outgoing(needs, machine, &mut found);
    privileged(needs, machine, &mut found);
    for (pool, ports) in &needs.pools {
        of_services(pool, ports, needs, machine, &mut found);
        of_own_apis(pool, ports, needs, &mut found);
        of_other_pools(pool, ports, needs, &mut found);
        held(pool, ports, needs, machine, &mut found);
    }
    held_apis(needs, machine, &mut found);
    addresses(needs, machine, &mut found);
    limits(needs, machine, &mut found);
    found.sort_by_key(|finding| finding.severity);
    found
}

fn outgoing(needs: &Needs, machine: &Machine, found: &mut Vec<Finding>) {
    let Some(local) = &machine.local_ports else {
        found.push(Finding {
            severity: Severity::Info,
            code: Code::NotKnown,
            pool: None,
            says: "the kernel does not say which ports it gives to outgoing connections (net.ipv4.ip_local_port_range)"
                .into(),
            mend: None,
        });
        return;
    };
    let (first, last) = (local.range.start(), local.range.end());
    let reserved = local.with_reserved(needs.pools.iter().map(|(_, ports)| ports));
    for (pool, ports) in &needs.pools {
        let exposed = local.exposed(ports);
        if !exposed.is_empty() {
            found.push(Finding {
                severity: Severity::Warning,
                code: Code::EphemeralOverlap,
                pool: Some(pool.clone()),
                says: format!(
                    "outgoing connections are given {} too, and can take a port before Harbor does: the kernel takes \
                     theirs from {first}-{last}",
                    Brief(&exposed)
                ),
                mend: local.reserving(needs.pools.iter().map(|(_, ports)| ports)),
            });
        }
    }
    let left = reserved.outgoing();
    let wanted = usize::try_from(needs.connections_per_port).unwrap_or(usize::MAX);
    if left < wanted.max(MIN_OUTGOING) {
        found.push(Finding {
            severity: if left == 0 { Severity::Error } else { Severity::Warning },
            code: Code::OutgoingPorts,
            pool: None,
            says: format!(
                "beside the pools {left} ports are left to outgoing connections ({first}-{last} less what is reserved), \
                 so no backend can have more connections, where one port may have {wanted}"
            ),
            mend: Some("sysctl -w net.ipv4.ip_local_port_range=\"10240 65535\"".into()),
        });
    }
}

fn privileged(needs: &Needs, machine: &Machine, found: &mut Vec<Finding>) {
    let Some(start) = machine.unprivileged_start else { return };
    let mut add = |pool: Option<&PoolName>, what: String, lowest: u16| {
        found.push(Finding {
            severity: Severity::Warning,
            code: Code::PrivilegedPort,
            pool: pool.cloned(),
            says: format!("without CAP_NET_BIND_SERVICE Harbor cannot bind ports below {start} here: {what}"),
            mend: Some(format!("sysctl -w net.ipv4.ip_unprivileged_port_start={lowest}")),
        });
    };
    for (pool, ports) in &needs.pools {
        let below = ports.filter(|port| port < start);
        if let Some(lowest) = below.iter().next() {
            add(Some(pool), Brief(&below).to_string(), lowest);
        }
    }
    for (key, listen) in needs.apis.iter().filter(|(_, listen)| (1..start).contains(&listen.port())) {
        add(None, format!("{} of {key}", listen.port()), listen.port());
    }
}

fn of_services(pool: &PoolName, ports: &PortSet, needs: &Needs, machine: &Machine, found: &mut Vec<Finding>) {
    let node_ports = ports.filter(|port| NODE_PORTS.contains(&port));
    if !node_ports.is_empty() {
        let seen = machine.processes.iter().map(|process| process.name.as_str());
        let seen = seen.filter(|name| KUBERNETES.contains(name)).min();
        let what = format!("Kubernetes gives {} to services of type NodePort", Brief(&node_ports));
        found.push(Finding {
            severity: if seen.is_some() { Severity::Warning } else { Severity::Info },
            code: Code::NodePorts,
            pool: Some(pool.clone()),
            says: match seen {
                Some(name) => format!("{what}, and {name} runs here: what comes to one may never reach Harbor"),
                None => format!("{what}; it does not run here"),
            },
            mend: needs.without(pool, ports, |port| NODE_PORTS.contains(&port)),
        });
    }
    let common = COMMON_PORTS.iter().filter(|(port, ..)| ports.contains(*port)).collect::<Vec<_>>();
    if !common.is_empty() {
        let shown = common.iter().take(MAX_RANGES_SHOWN).map(|(port, name, by)| format!("{port} ({name}, {by})"));
        let more = match common.len().saturating_sub(MAX_RANGES_SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        found.push(Finding {
            severity: Severity::Info,
            code: Code::CommonPort,
            pool: Some(pool.clone()),
            says: format!("common services have ports of it as theirs: {}{more}", shown.collect::<Vec<_>>().join(", ")),
            mend: needs.without(pool, ports, |port| common.iter().any(|(common, ..)| *common == port)),
        });
    }
}

fn of_own_apis(pool: &PoolName, ports: &PortSet, needs: &Needs, found: &mut Vec<Finding>) {
    for (key, listen) in needs.apis.iter().filter(|(_, listen)| ports.contains(listen.port())) {
        found.push(Finding {
            severity: Severity::Warning,
            code: Code::OwnListener,
            pool: Some(pool.clone()),
            says: format!("{key} takes port {}, so nobody can be given it", listen.port()),
            mend: needs.without(pool, ports, |port| port == listen.port()),
        });
    }
}

fn of_other_pools(pool: &PoolName, ports: &PortSet, needs: &Needs, found: &mut Vec<Finding>) {
    for (other, others) in &needs.other_pools {
        let common = ports.filter(|port| others.contains(port));
        if !common.is_empty() {
            found.push(Finding {
                severity: Severity::Info,
                code: Code::PoolsOverlap,
                pool: Some(pool.clone()),
                says: format!("the pool {other} has {} too, so no node can serve both", Brief(&common)),
                mend: needs.without(pool, ports, |port| others.contains(port)),
            });
        }
    }
}

/// One finding for each process and what it does with ports of the pool.
fn held(pool: &PoolName, ports: &PortSet, needs: &Needs, machine: &Machine, found: &mut Vec<Finding>) {
    let mut holders: BTreeMap<(Holder, Transport), BTreeSet<u16>> = BTreeMap::new();
    for held in strangers(machine) {
        let is_in_the_way = needs.listen.iter().any(|listen| meet(held.place.ip(), *listen));
        if is_in_the_way && ports.contains(held.place.port()) {
            holders.entry((held.holder.clone(), held.transport)).or_default().insert(held.place.port());
        }
    }
    let more = holders.len().saturating_sub(MAX_HOLDERS);
    for ((holder, transport), taken) in holders.into_iter().take(MAX_HOLDERS) {
        let taken = ports.filter(|port| taken.contains(&port));
        let (who, transport, taken_shown) = (holder.who(), transport.as_str().to_uppercase(), Brief(&taken));
        let exposed = machine.local_ports.as_ref().is_some_and(|local| !local.exposed(ports).is_empty());
        let (says, mend) = match holder.state {
            SocketState::Listening => (
                format!("{who} listens on {transport} {taken_shown}: Harbor takes a port when it is free"),
                needs.without(pool, ports, |port| taken.contains(port)),
            ),
            SocketState::Connected | SocketState::Ending => (
                format!("connections of {who} hold {transport} {taken_shown}: Harbor takes a port when it is free"),
                // Those that are open stay; no more come.
                machine
                    .local_ports
                    .as_ref()
                    .filter(|_| exposed)
                    .and_then(|local| local.reserving(needs.pools.iter().map(|(_, ports)| ports))),
            ),
        };
        let (severity, code, pool) = (Severity::Warning, Code::PortInUse, Some(pool.clone()));
        found.push(Finding { severity, code, pool, says, mend });
    }
    if more > 0 {
        found.push(Finding {
            severity: Severity::Warning,
            code: Code::PortInUse,
            pool: Some(pool.clone()),
            says: format!("{more} more processes hold ports of it"),
            mend: Some("ss -tuanp".into()),
        });
    }
}

fn held_apis(needs: &Needs, machine: &Machine, found: &mut Vec<Finding>) {
    for (key, listen) in needs.apis.iter().filter(|(_, listen)| listen.port() != 0) {
        let is_there = |held: &&Held| {
            held.transport == Transport::Tcp
                && held.holder.state == SocketState::Listening
                && held.place.port() == listen.port()
                && meet(held.place.ip(), listen.ip())
        };
        if let Some(held) = strangers(machine).find(is_there) {
            found.push(Finding {
                severity: Severity::Error,
                code: Code::ListenInUse,
                pool: None,
                says: format!(
                    "{} listens on {}, where {key} is to be: Harbor cannot start",
                    held.holder.who(),
                    held.place
                ),
                mend: Some(format!("ss -tlnp 'sport = :{}'", listen.port())),
            });
        }
    }
}

/// The sockets of others. One whose process cannot be seen is Harbor's where Harbor runs as the same user.
fn strangers(machine: &Machine) -> impl Iterator<Item = &Held> {
    let harbors = machine.processes.iter().filter(|process| process.is_harbor());
    // One that serves has ports of its own, whatever its program is called.
    let ids = harbors.clone().map(|process| process.id).chain([machine.own_process]).collect::<BTreeSet<_>>();
    // Who looks may be root, to see more: not each socket of root is Harbor's.
    let others = harbors.filter(|process| process.id != machine.own_process);
    let users = others.map(|process| process.user_id).collect::<BTreeSet<_>>();
    machine.held.iter().filter(move |held| match &held.holder.process {
        Some((id, _)) => !ids.contains(id),
        None => !users.contains(&held.holder.user_id),
    })
}

fn addresses(needs: &Needs, machine: &Machine, found: &mut Vec<Finding>) {
    let Some(here) = &machine.addresses else { return };
    let elsewhere = |address: &&IpAddr| !address.is_unspecified() && !address.is_loopback() && !here.contains(*address);
    for address in needs.listen.iter().filter(elsewhere) {
        found.push(Finding {
            severity: Severity::Info,
            code: Code::AddressAbsent,
            pool: None,
            says: format!(
                "this machine does not have {address} of harbor_node.listen: its ports are open as soon as it does"
            ),
            mend: None,
        });
    }
}

fn limits(needs: &Needs, machine: &Machine, found: &mut Vec<Finding>) {
    // A port of both transports has a socket for each, at every address.
    let ports = needs.pools.iter().map(|(_, ports)| ports.len() as u64).sum::<u64>();
    let listeners = ports * 2 * needs.listen.len() as u64;
    let kept = u64::from(RESERVED_DESCRIPTORS);
    // A connection has a socket on either side.
    let one_port = u64::from(needs.connections_per_port) * 2;
    if machine.descriptors < kept + listeners + one_port {
        let is_warning = machine.descriptors < kept + listeners;
        let wanted = (kept + listeners + one_port).next_power_of_two();
        found.push(Finding {
            severity: if is_warning { Severity::Warning } else { Severity::Info },
            code: Code::Descriptors,
            pool: None,
            says: format!(
                "a process may open {} descriptors here, and the {ports} ports of the pools want {} when all are in use{}",
                machine.descriptors,
                kept + listeners,
                if is_warning { "" } else { ", which leaves less than one port may have connections" }
            ),
            mend: Some(format!(
                "mkdir -p /etc/systemd/system/harbor.service.d && printf '[Service]\\nLimitNOFILE={wanted}\\n' > \
                 /etc/systemd/system/harbor.service.d/60-descriptors.conf && systemctl daemon-reload"
            )),
        });
    }
    if let Some(conntrack) = machine.conntrack {
        tracked(needs, machine, conntrack, found);
    }
    if machine.receive_buffer.is_some_and(|most| most < needs.receive_buffer) {
        found.push(Finding {
            severity: Severity::Info,
            code: Code::ReceiveBuffer,
            pool: None,
            says: "the kernel grants UDP ports small buffers, so bursts of datagrams may be lost unless Harbor has \
                   CAP_NET_ADMIN"
                .into(),
            mend: Some(format!("sysctl -w net.core.rmem_max={}", needs.receive_buffer)),
        });
    }
}

fn tracked(needs: &Needs, machine: &Machine, conntrack: Conntrack, found: &mut Vec<Finding>) {
    let Conntrack { max, count, udp_stream } = conntrack;
    // 0 is no limit.
    let max = if max == 0 { u64::MAX } else { max };
    // A flow is tracked on either side, as it has a socket on either side.
    let sockets = match needs.max_sockets {
        0 => machine.descriptors,
        most => u64::from(most).min(machine.descriptors),
    };
    let sockets = sockets.min(u32::MAX.into());
    let is_nearly_full = count >= max - max / 5;
    if is_nearly_full || max < sockets {
        found.push(Finding {
            severity: if is_nearly_full { Severity::Warning } else { Severity::Info },
            code: Code::Conntrack,
            pool: None,
            says: format!(
                "the kernel tracks {count} connections and will track {max} at the most, where Harbor may have {sockets}: \
                 beyond that packets of new ones are dropped"
            ),
            mend: Some(format!("sysctl -w net.netfilter.nf_conntrack_max={}", (sockets.max(max.min(u32::MAX.into())) + 1).next_power_of_two())),
        });
    }
    if udp_stream < needs.udp_idle {
        found.push(Finding {
            severity: Severity::Info,
            code: Code::ConntrackUdp,
            pool: None,
            says: format!(
                "the kernel forgets a UDP session after {} s of silence and Harbor after {} s: behind a firewall that \
                 goes by it, what comes later is lost",
                udp_stream.as_secs(),
                needs.udp_idle.as_secs()
            ),
            mend: Some(format!(
                "sysctl -w net.netfilter.nf_conntrack_udp_timeout_stream={}",
                needs.udp_idle.as_secs().max(1)
            )),
        });
    }
}

impl Needs {
    /// The line of the configuration, or the command where it would not hold, that gives the pool fewer ports; none where it
    /// would have none, or nobody would write it.
    fn without(&self, pool: &PoolName, ports: &PortSet, taken: impl Fn(u16) -> bool) -> Option<String> {
        let left = ports.filter(|port| !taken(port));
        let section = if pool.as_str() == "default" { "harbor_node".to_owned() } else { format!("pools.{pool}") };
        (1..=MAX_RANGES_WRITTEN).contains(&left.ranges().len()).then(|| match self.live_ranges.contains(pool) {
            true => format!("harbor config set {section} port_range \"{left}\""),
            false => format!("port_range = \"{left}\" # in [{section}]"),
        })
    }
}

/// A set of ports, of which not all have to be named.
struct Brief<'a>(&'a PortSet);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = self.0.ranges();
        if ranges.len() <= MAX_RANGES_SHOWN {
            return write!(f, "{}", self.0);
        }
        for range in &ranges[..MAX_RANGES_SHOWN] {
            match range.start() == range.end() {
                true => write!(f, "{}, ", range.start())?,
                false => write!(f, "{}-{}, ", range.start(), range.end())?,
            }
        }
        write!(f, "… ({} in all)", self.0.len())
    }
}

#[cfg(test)]
mod tests;
