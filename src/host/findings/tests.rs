use super::*;

fn needs(pools: &[(&str, &str)]) -> Needs {
    let pool = |(name, ports): &(&str, &str)| (PoolName::new(name).unwrap(), ports.parse().unwrap());
    Needs {
        pools: pools.iter().map(pool).collect(),
        other_pools: Vec::new(),
        live_ranges: BTreeSet::new(),
        listen: vec!["::".parse().unwrap()],
        apis: vec![("broker.listen", "127.0.0.1:8080".parse().unwrap())],
        connections_per_port: 4096,
        max_sockets: 0,
        udp_idle: Duration::from_secs(60),
        receive_buffer: 4 << 20,
    }
}

/// A machine that fits all pools below 32768.
fn machine() -> Machine {
    Machine {
        local_ports: Some(LocalPorts { range: 32768..=60999, reserved: vec![] }),
        unprivileged_start: Some(1024),
        descriptors: 1 << 20,
        receive_buffer: Some(4 << 20),
        ..Machine::default()
    }
}

fn process(id: u32, name: &str, user_id: u32) -> Process {
    Process { id, name: name.into(), user_id }
}

fn socket(place: &str, state: SocketState, process: Option<(u32, &str)>) -> Held {
    let process = process.map(|(id, name)| (id, name.to_owned()));
    Held { transport: Transport::Tcp, place: place.parse().unwrap(), holder: Holder { state, process, user_id: 998 } }
}

/// Each finding as `severity code pool: sentence | what mends it`.
#[track_caller]
fn check(needs: &Needs, machine: &Machine, expected: &[&str]) {
    let shown = judge(needs, machine).into_iter().map(|finding| {
        let pool = finding.pool.map_or_else(String::new, |pool| format!(" {pool}"));
        let mend = finding.mend.map_or_else(String::new, |mend| format!(" | {mend}"));
        format!("{} {}{pool}: {}{mend}", finding.severity.as_str(), finding.code.as_str(), finding.says)
    });
    assert_eq!(shown.collect::<Vec<_>>(), expected);
}

#[test]
fn a_machine_that_fits_has_no_findings() {
    check(&needs(&[("default", "20000-20099")]), &machine(), &[]);
}

#[test]
fn ports_of_outgoing_connections_are_found_until_they_are_reserved() {
    let needs = needs(&[("default", "35000-35099"), ("games", "32000-33000"), ("low", "2000-2002")]);
    let mend = "sysctl -w net.ipv4.ip_local_reserved_ports=2000-2002,8080,9148,32000-33000,35000-35099";
    let mut machine = machine();
    machine.local_ports = Some(LocalPorts { range: 32768..=60999, reserved: vec![8080..=8080, 9148..=9148] });
    let sentence = |pool: &str, ports: &str| {
        format!(
            "warning ephemeral_overlap {pool}: outgoing connections are given {ports} too, and can take a port before \
             Harbor does: the kernel takes theirs from 32768-60999 | {mend}"
        )
    };
    let node_ports = "info node_ports games: Kubernetes gives 32000-32767 to services of type NodePort; it does not run \
                      here | port_range = \"32768-33000\" # in [pools.games]";
    check(&needs, &machine, &[&sentence("default", "35000-35099"), &sentence("games", "32768-33000"), node_ports]);
    let local = machine.local_ports.take().unwrap();
    machine.local_ports = Some(local.with_reserved(needs.pools.iter().map(|(_, ports)| ports)));
    check(&needs, &machine, &[node_ports]);
    machine.local_ports = None;
    let unknown = "info not_known: the kernel does not say which ports it gives to outgoing connections \
                   (net.ipv4.ip_local_port_range)";
    check(&needs, &machine, &[unknown, node_ports]);
}

#[test]
fn a_pool_that_leaves_no_outgoing_port_is_an_error() {
    let mut machine = machine();
    let sentence = |severity: &str, left: u32| {
        format!(
            "{severity} outgoing_ports: beside the pools {left} ports are left to outgoing connections (32768-60999 less \
             what is reserved), so no backend can have more connections, where one port may have 4096 | sysctl -w \
             net.ipv4.ip_local_port_range=\"10240 65535\""
        )
    };
    machine.local_ports = Some(LocalPorts { range: 32768..=60999, reserved: vec![32768..=58000] });
    check(&needs(&[("default", "20000-20099")]), &machine, &[&sentence("warning", 2999)]);
    machine.local_ports = Some(LocalPorts { range: 32768..=60999, reserved: vec![32768..=60999] });
    check(&needs(&[("default", "20000-20099")]), &machine, &[&sentence("error", 0)]);
}

#[test]
fn ports_that_want_privileges_are_told() {
    let mut needs = needs(&[("default", "1500-2100")]);
    needs.apis = vec![("broker.listen", "0.0.0.0:443".parse().unwrap())];
    check(
        &needs,
        &Machine { unprivileged_start: Some(2000), ..machine() },
        &[
            "warning privileged_port default: without CAP_NET_BIND_SERVICE Harbor cannot bind ports below 2000 here: \
             1500-1999 | sysctl -w net.ipv4.ip_unprivileged_port_start=1500",
            "warning privileged_port: without CAP_NET_BIND_SERVICE Harbor cannot bind ports below 2000 here: 443 of \
             broker.listen | sysctl -w net.ipv4.ip_unprivileged_port_start=443",
            "info common_port default: common services have ports of it as theirs: 1521 (Oracle, default), 1812 (RADIUS, \
             IANA), 1813 (RADIUS accounting, IANA), 1883 (MQTT, IANA) and 1 more | port_range = \"1500-1520, 1522-1811, \
             1814-1882, 1884-2048, 2050-2100\" # in [harbor_node]",
        ],
    );
}

#[test]
fn node_ports_are_worse_where_kubernetes_runs() {
    check(
        &needs(&[("default", "30000-32767")]),
        &Machine { processes: vec![process(7, "kubelet", 0), process(8, "kube-proxy", 0)], ..machine() },
        &[
            "warning node_ports default: Kubernetes gives 30000-32767 to services of type NodePort, and kube-proxy runs \
           here: what comes to one may never reach Harbor",
        ],
    );
}

#[test]
fn other_pools_and_own_apis_are_looked_at() {
    let mut needs = needs(&[("default", "8070-8090")]);
    needs.other_pools = vec![(PoolName::new("games").unwrap(), "8090-8100".parse().unwrap())];
    check(
        &needs,
        &machine(),
        &[
            "warning own_listener default: broker.listen takes port 8080, so nobody can be given it | port_range = \
             \"8070-8079, 8081-8090\" # in [harbor_node]",
            "info common_port default: common services have ports of it as theirs: 8080 (HTTP, alternative, IANA) | \
             port_range = \"8070-8079, 8081-8090\" # in [harbor_node]",
            "info pools_overlap default: the pool games has 8090 too, so no node can serve both | port_range = \
             \"8070-8089\" # in [harbor_node]",
        ],
    );
}

#[test]
fn sockets_of_others_are_found_and_harbors_own_are_not() {
    use SocketState::{Connected, Listening};
    let held = vec![
        socket("0.0.0.0:20001", Listening, Some((7, "nginx"))),
        socket("127.0.0.1:20003", Listening, Some((7, "nginx"))),
        socket("10.0.0.5:20005", Connected, Some((8, "java"))),
        socket("[::]:20006", Listening, Some((9, "harbor"))),
        socket("[::]:20007", Listening, None),
        socket("0.0.0.0:21000", Listening, Some((7, "nginx"))),
        socket("[::]:8080", Listening, Some((8, "java"))),
    ];
    let listening = "warning port_in_use default: process 7 (nginx) listens on TCP 20001, 20003: Harbor takes a port when \
                     it is free | port_range = \"20000, 20002, 20004-20099\" # in [harbor_node]";
    let connected = "warning port_in_use default: connections of process 8 (java) hold TCP 20005: Harbor takes a port when \
                     it is free";
    let hidden = "warning port_in_use default: a process of user 998 listens on TCP 20007: Harbor takes a port when it is \
                  free | port_range = \"20000-20006, 20008-20099\" # in [harbor_node]";
    let api = "error listen_in_use: process 8 (java) listens on [::]:8080, where broker.listen is to be: Harbor cannot \
               start | ss -tlnp 'sport = :8080'";
    let mut needs = needs(&[("default", "20000-20099")]);
    let mut machine = Machine { held, processes: vec![process(9, "harbor", 1000)], ..machine() };
    check(&needs, &machine, &[api, hidden, listening, connected]);
    needs.live_ranges = [PoolName::new("default").unwrap()].into();
    let found = judge(&needs, &machine);
    let mend = found.iter().find(|finding| finding.says.contains("nginx")).unwrap().mend.as_deref();
    assert_eq!(mend, Some("harbor config set harbor_node port_range \"20000, 20002, 20004-20099\""));
    needs.live_ranges.clear();
    // Where Harbor runs as that user, what it has cannot be told from the rest.
    machine.processes[0].user_id = 998;
    check(&needs, &machine, &[api, listening, connected]);
    // Whoever looks is not the one that serves.
    machine.own_process = 9;
    check(&needs, &machine, &[api, hidden, listening, connected]);
    machine.own_process = 0;
    needs.listen = vec!["10.0.0.6".parse().unwrap()];
    let wildcard_only = "warning port_in_use default: process 7 (nginx) listens on TCP 20001: Harbor takes a port when it \
                         is free | port_range = \"20000, 20002-20099\" # in [harbor_node]";
    check(&needs, &machine, &[api, wildcard_only]);
}

#[test]
fn many_holders_are_counted() {
    let held = (1..=20).map(|id| socket("0.0.0.0:20001", SocketState::Listening, Some((id, "x"))));
    let machine = Machine { held: held.collect(), ..machine() };
    let found = judge(&needs(&[("default", "20000-20099")]), &machine);
    assert_eq!(found.len(), MAX_HOLDERS + 1);
    assert_eq!(found[MAX_HOLDERS].says, "4 more processes hold ports of it");
}

#[test]
fn an_address_that_is_elsewhere_is_told() {
    let mut needs = needs(&[("default", "20000-20099")]);
    needs.listen = vec!["10.0.0.5".parse().unwrap(), "10.0.0.6".parse().unwrap()];
    check(
        &needs,
        &Machine { addresses: Some(["10.0.0.5".parse().unwrap()].into()), ..machine() },
        &[
            "info address_absent: this machine does not have 10.0.0.6 of harbor_node.listen: its ports are open as soon as \
           it does",
        ],
    );
}

#[test]
fn descriptors_are_counted_against_ports_and_connections() {
    let mend = |limit: u32| {
        format!(
            "mkdir -p /etc/systemd/system/harbor.service.d && printf '[Service]\\nLimitNOFILE={limit}\\n' > \
             /etc/systemd/system/harbor.service.d/60-descriptors.conf && systemctl daemon-reload"
        )
    };
    let needs = needs(&[("default", "20000-20999")]);
    check(
        &needs,
        &Machine { descriptors: 1024, ..machine() },
        &[&format!(
            "warning descriptors: a process may open 1024 descriptors here, and the 1000 ports of the pools want 2512 when \
             all are in use | {}",
            mend(16384)
        )],
    );
    check(
        &needs,
        &Machine { descriptors: 4096, ..machine() },
        &[&format!(
            "info descriptors: a process may open 4096 descriptors here, and the 1000 ports of the pools want 2512 when \
             all are in use, which leaves less than one port may have connections | {}",
            mend(16384)
        )],
    );
    check(&needs, &Machine { descriptors: 2512 + 8192, ..machine() }, &[]);
}

#[test]
fn limits_of_the_kernel_are_told() {
    let track = |max, count, udp_stream| Some(Conntrack { max, count, udp_stream: Duration::from_secs(udp_stream) });
    let mut needs = needs(&[("default", "20000-20099")]);
    let with = |conntrack| Machine { descriptors: 65536, conntrack, ..machine() };
    check(&needs, &with(track(65536, 100, 120)), &[]);
    check(&needs, &with(track(0, 100, 120)), &[]);
    check(
        &needs,
        &with(track(16384, 100, 30)),
        &[
            "info conntrack: the kernel tracks 100 connections and will track 16384 at the most, where Harbor may have \
             65536: beyond that packets of new ones are dropped | sysctl -w net.netfilter.nf_conntrack_max=131072",
            "info conntrack_udp: the kernel forgets a UDP session after 30 s of silence and Harbor after 60 s: behind a \
             firewall that goes by it, what comes later is lost | sysctl -w \
             net.netfilter.nf_conntrack_udp_timeout_stream=60",
        ],
    );
    check(
        &needs,
        &with(track(100_000, 80_000, 120)),
        &[
            "warning conntrack: the kernel tracks 80000 connections and will track 100000 at the most, where Harbor may have \
           65536: beyond that packets of new ones are dropped | sysctl -w net.netfilter.nf_conntrack_max=131072",
        ],
    );
    needs.max_sockets = 1000;
    check(&needs, &with(track(16384, 100, 120)), &[]);
    check(
        &needs,
        &Machine { receive_buffer: Some(212_992), ..machine() },
        &[
            "info receive_buffer: the kernel grants UDP ports small buffers, so bursts of datagrams may be lost unless Harbor \
           has CAP_NET_ADMIN | sysctl -w net.core.rmem_max=4194304",
        ],
    );
}

#[test]
fn words_are_distinct_and_sets_are_shown_briefly() {
    let words = Code::ALL.map(Code::as_str).into_iter().collect::<BTreeSet<_>>();
    assert_eq!(words.len(), Code::ALL.len());
    let brief = |text: &str| Brief(&text.parse().unwrap()).to_string();
    assert_eq!(brief("2000, 2002, 2004, 2006-2009"), "2000, 2002, 2004, 2006-2009");
    assert_eq!(brief("2000, 2002, 2004, 2006-2009, 2011"), "2000, 2002, 2004, 2006-2009, … (8 in all)");
}

#[test]
fn common_ports_are_ascending_and_can_be_given_out() {
    assert!(COMMON_PORTS.is_sorted_by(|a, b| a.0 < b.0));
    assert!(
        COMMON_PORTS
            .iter()
            .all(|(port, name, by)| *port >= 1024 && !name.is_empty() && ["IANA", "default"].contains(by))
    );
}
