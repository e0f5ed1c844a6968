//! `harbor ports …`: exact output and exit codes, on machines of our own where the machine matters.

mod eaten;
mod reservations;

use std::{fs, io::Read as _, path::Path, process::Command};

use harbor::host::Code;

use crate::{
    cli::{Said, check, harbor, said},
    support::{
        harbor::Site,
        namespaces::{Machine, Network},
    },
};

/// What the machine's administrator has reserved already.
const RESERVED: &str = "8080,9148";
const RESERVED_FILE: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

const HELP: &str = "\
Check that nothing on this machine stands in the way of the pools' ports; or that files of
reservations agree

Usage: harbor ports check [OPTIONS]

Options:
      --config <FILE>  The configuration file; every key can also come from the environment [env:
                       HARBOR_CONFIG]
      --json           Print JSON
      --fix            Add the pools' ports to net.ipv4.ip_local_reserved_ports, as root, then check
      --file <FILE>    Check this file of reservations instead of the machine; several are compared
  -h, --help           Print help (see more with '--help')
";

/// A machine with a pool's worth of defaults, and something reserved.
fn machine(network: &mut Network) -> Machine {
    let machine = network.machine("node");
    machine.run(|| fs::write(RESERVED_FILE, RESERVED).expect("we are root"));
    machine
}

fn reserved(machine: &Machine) -> String {
    // The kernel tells it to one read alone.
    let read = || {
        let mut bytes = vec![0; 1 << 16];
        let length = fs::File::open(RESERVED_FILE)?.read(&mut bytes)?;
        std::io::Result::Ok(String::from_utf8_lossy(&bytes[..length]).trim().to_owned())
    };
    machine.run(|| read().expect("it was written a moment ago"))
}

/// What `harbor ports check` says on a machine.
fn checked(machine: &Machine, site: &Site, more: &[&str]) -> Said {
    said(&mut machine.inside(&site.command(&[&["ports", "check"], more].concat())))
}

/// The findings of an answer in JSON, as severity and code.
fn findings(said: &Said) -> Vec<(String, String)> {
    let answer: serde_json::Value = serde_json::from_str(&said.stdout).expect("it is JSON");
    let word = |finding: &serde_json::Value, key: &str| finding[key].as_str().expect("it is a word").to_owned();
    let all = answer["findings"].as_array().expect("they are a list").iter();
    let found = all.map(|finding| (word(finding, "severity"), word(finding, "code"))).collect::<Vec<_>>();
    assert_eq!(answer["ok"], found.iter().all(|(severity, _)| severity == "info"));
    found
}

#[test]
fn the_help_says_what_is_checked() {
    check(&[], &["ports", "check", "-h"], 0, HELP, "");
    check(
        &[],
        &["ports", "check", "--fix", "--file", "a.toml"],
        2,
        "",
        "error: the argument '--fix' cannot be used with '--file <FILE>'\n\nUsage: harbor ports check --fix\n\n\
         For more information, try '--help'.\n",
    );
}

#[test]
fn a_machine_is_checked_and_mended() {
    let Some(mut network) = Network::new("a_machine_is_checked_and_mended") else { return };
    let (machine, site) = (machine(&mut network), Site::new("35000-40000", ""));
    let command = "sysctl -w net.ipv4.ip_local_reserved_ports=8080,9148,35000-40000";
    let before = checked(&machine, &site, &[]);
    assert_eq!((before.code, before.stderr.as_str()), (1, ""), "{before:?}");
    assert!(before.stdout.starts_with("This machine and the pool default (35000-40000): 1 warning, "), "{before:?}");
    let finding = format!(
        "\nwarning  ephemeral_overlap\n         pool default: outgoing connections are given 35000-40000 too, and can take \
         a port before Harbor does: the kernel takes theirs from 32768-60999\n             {command}\n"
    );
    assert!(before.stdout.contains(&finding), "{}", before.stdout);
    let warnings =
        |said: &Said| findings(said).into_iter().filter(|(severity, _)| severity != "info").collect::<Vec<_>>();
    let overlap = [("warning".to_owned(), "ephemeral_overlap".to_owned())];
    assert_eq!(warnings(&checked(&machine, &site, &["--json"])), overlap);

    // Another user may look, but not mend. Its way to the binary and the configuration may lead through others' folders.
    let mut other = Command::new("setpriv");
    other.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all,+dac_read_search"]);
    let as_other = site.command(&["ports", "check", "--fix"]);
    other.args(["--ambient-caps=-all,+dac_read_search"]).arg(as_other.get_program()).args(as_other.get_args());
    other.env("HARBOR_CONFIG", site.config());
    let stderr = format!(
        "harbor: net.ipv4.ip_local_reserved_ports cannot be set: Permission denied (os error 13); run as root: {command}\n"
    );
    assert_eq!(said(&mut machine.inside(&other)), Said { code: 1, stdout: String::new(), stderr });
    assert_eq!(reserved(&machine), RESERVED);

    let keep = "To keep it over a reboot:\n    echo 'net.ipv4.ip_local_reserved_ports = 8080,9148,35000-40000' > \
                /etc/sysctl.d/60-harbor.conf\n\n";
    let fixed = checked(&machine, &site, &["--fix"]);
    let done = "net.ipv4.ip_local_reserved_ports was 8080,9148 and is now 8080,9148,35000-40000\n";
    assert!(fixed.stdout.starts_with(&format!("{done}{keep}")), "{fixed:?}");
    assert_eq!((fixed.code, fixed.stderr.as_str()), (0, ""), "{fixed:?}");
    assert_eq!(reserved(&machine), "8080,9148,35000-40000");
    let again = checked(&machine, &site, &["--fix"]);
    let nothing = "net.ipv4.ip_local_reserved_ports has all ports of the pools already: 8080,9148,35000-40000\n";
    assert!(again.stdout.starts_with(&format!("{nothing}{keep}")), "{again:?}");
    let json = checked(&machine, &site, &["--fix", "--json"]);
    let answer: serde_json::Value = serde_json::from_str(&json.stdout).expect("it is JSON");
    assert_eq!(answer["fix"]["before"], "8080,9148,35000-40000");
    assert_eq!(answer["fix"]["after"], "8080,9148,35000-40000");
    assert_eq!((json.code, warnings(&json)), (0, vec![]));

    let greedy = Site::new("1024-60000", "");
    let refused = "harbor: with all pools reserved outgoing connections would have 999 ports, and they need 1024: make the \
                   pools smaller, or net.ipv4.ip_local_port_range larger\n";
    let said = checked(&machine, &greedy, &["--fix"]);
    assert_eq!(said, Said { code: 1, stdout: String::new(), stderr: refused.into() });
    assert_eq!(reserved(&machine), "8080,9148,35000-40000");
}

#[test]
fn what_is_reserved_stays_however_long_the_list_is() {
    let Some(mut network) = Network::new("what_is_reserved_stays_however_long_the_list_is") else { return };
    let (machine, site) = (machine(&mut network), Site::new("35000-40000", ""));
    // As long as the kernel takes with the pool's ports, which are 12 bytes more.
    let list = (0..680).map(|index| (10_000 + index * 2).to_string()).collect::<Vec<_>>().join(",");
    machine.run(|| fs::write(RESERVED_FILE, &list).expect("we are root"));
    assert_eq!(reserved(&machine), list);
    let fixed = checked(&machine, &site, &["--fix"]);
    let all = format!("{list},35000-40000");
    assert!(fixed.stdout.contains(&format!("is now {all}\n")), "{fixed:?}");
    assert_eq!((fixed.code, reserved(&machine)), (0, all));

    let longer = Site::new("45000,45002,45004,45006", "");
    let before = checked(&machine, &longer, &[]);
    assert!(before.stdout.contains("ephemeral_overlap") && !before.stdout.contains("sysctl -w"), "{before:?}");
    let refused = checked(&machine, &longer, &["--fix"]);
    let told = "harbor: the list of reserved ports would have more than 4095 bytes: make the pools of fewer ranges\n";
    assert_eq!((refused.code, refused.stderr.as_str()), (1, told));
}

#[test]
fn who_holds_a_port_is_named_and_a_running_node_is_nobodys_trouble() {
    let Some(mut network) = Network::new("who_holds_a_port_is_named_and_a_running_node_is_nobodys_trouble") else {
        return;
    };
    let (machine, site) = (machine(&mut network), Site::new("26000-26009", "").with("admin.listen", "127.0.0.1:26109"));
    let node = machine.serve(&site);
    machine.block_on(|| crate::end_to_end::provision(&node, "game", crate::end_to_end::PLAN_BOTH));
    let fine = checked(&machine, &site, &["--json"]);
    assert_eq!(fine.code, 0, "{fine:?}");
    assert!(node.terminate().success());

    // Both would be in the way, of a port and of an API.
    let (_port, _api) = machine.run(|| {
        let listen = |place: &str| std::net::TcpListener::bind(place).expect("nobody is there");
        (listen("0.0.0.0:26003"), listen("127.0.0.1:26109"))
    });
    let held = checked(&machine, &site, &["--json"]);
    let words = findings(&held);
    let word = |severity: &str, code: Code| (severity.to_owned(), code.as_str().to_owned());
    assert_eq!(held.code, 1);
    assert_eq!(words[..2], [word("error", Code::ListenInUse), word("warning", Code::PortInUse)], "{held:?}");
    let who = format!("process {} (", std::process::id());
    let answer: serde_json::Value = serde_json::from_str(&held.stdout).expect("it is JSON");
    for (index, rest) in [
        ") listens on 127.0.0.1:26109, where admin.listen is to be: Harbor cannot start",
        ") listens on TCP 26003: Harbor takes a port when it is free",
    ]
    .into_iter()
    .enumerate()
    {
        let message = answer["findings"][index]["message"].as_str().expect("it is text");
        assert!(message.starts_with(&who) && message.ends_with(rest), "{message}");
    }
    assert_eq!(answer["findings"][1]["mend"], "port_range = \"26000-26002, 26004-26009\" # in [harbor_node]");
}

#[test]
fn a_node_that_starts_says_the_same() {
    let Some(mut network) = Network::new("a_node_that_starts_says_the_same") else { return };
    let (machine, site) = (machine(&mut network), Site::new("35000-35009", ""));
    let node = machine.serve(&site);
    let line = node.logged(Code::EphemeralOverlap.as_str());
    let log = node.log();
    let place = |text: &str| log.find(text).expect("it is logged");
    assert!(place(r#""message":"ready""#) < place(&line), "nobody waits for it: {log}");
    let event: serde_json::Value = serde_json::from_str(&line).expect("the log is JSON");
    assert_eq!(event["level"], "WARN");
    assert_eq!(event["fields"]["pool"], "default");
    assert_eq!(event["fields"]["mend"], "sysctl -w net.ipv4.ip_local_reserved_ports=8080,9148,35000-35009");
}

#[test]
fn files_of_one_topology_are_compared() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    let ports = |arguments: &[&str]| harbor(directory.path(), &[], &[&["ports", "check"], arguments].concat());
    let say = |code, stdout: &str, stderr: &str| Said { code, stdout: stdout.into(), stderr: stderr.into() };
    write(
        "a.toml",
        "[infra]\nrange = \"25000-25099\"\n[infra.ports]\nceph-rgw = 25080\nsyslog = { protocol = \"udp\" }\n",
    );
    write("same.toml", "[infra]\nrange = \"25000-25099\"\n[infra.ports]\nceph-rgw = 25080\n");
    let table = "\
PORTS        PROTOCOL  NAME      POOL            PLACE
25020        udp       syslog    infra           a.toml:5:1
25080        both      ceph-rgw  infra           a.toml:4:1
";
    assert_eq!(ports(&["--file", "a.toml"]), say(0, table, ""));
    let both = format!("{table}25080        both      ceph-rgw  infra           same.toml:4:1\n");
    assert_eq!(ports(&["--file", "a.toml", "--file", "same.toml"]), say(0, &both, ""));

    write(
        "b.toml",
        "[infra]\nrange = \"25000-25089\"\n[infra.ports]\nceph-rgw = 25081\nrgw = 25080\nmany = { count = 99 }\n\
         [other]\nrange = \"25050-25150\"\n[other.ports]\nfree = { port = 25100, protocol = \"tcp\" }\n",
    );
    let wrong = "\
b.toml:2:9: infra is 25000-25089 here and 25000-25099 in infra of a.toml:2:9: make them the same
b.toml:4:1: ceph-rgw has 25081 (both) here and 25080 (both) in a.toml:4:1: make them the same
b.toml:5:1: rgw has 25080 (both), which overlaps 25080 (both) of ceph-rgw in a.toml:4:1: change one
b.toml:6:1: no 99 ports in a row (both) are left of 25000-25089 for many: choose a larger range, or release a name
b.toml:8:9: the range of other has port 25050, and so has infra of a.toml:2:9: change one
b.toml:8:9: the range of other has port 25050, and so has infra of b.toml:2:9: change one

PORTS        PROTOCOL  NAME      POOL            PLACE
25020        udp       syslog    infra           a.toml:5:1
25080        both      ceph-rgw  infra           a.toml:4:1
25080        both      rgw       infra           b.toml:5:1
25081        both      ceph-rgw  infra           b.toml:4:1
25100        tcp       free      other           b.toml:10:1
";
    assert_eq!(ports(&["--file", "a.toml", "--file", "b.toml"]), say(1, wrong, ""));
    let json = ports(&["--json", "--file", "a.toml", "--file", "b.toml"]);
    let answer: serde_json::Value = serde_json::from_str(&json.stdout).expect("it is JSON");
    assert_eq!((json.code, answer["ok"].as_bool()), (1, Some(false)));
    assert_eq!(answer["problems"][1]["place"], "b.toml:4:1");
    assert_eq!(
        answer["claims"][4],
        serde_json::json!({
            "pool": "other", "name": "free", "first": 25100, "last": 25100, "protocol": "tcp", "place": "b.toml:10:1"
        })
    );

    // With the configuration its pools are looked at too, also those that others serve.
    write(
        "harbor.toml",
        "[broker]\npassword = \"p\"\n[harbor_node]\npools = [\"default\"]\nport_range = \"25090-25095\"\n\
         [pools.games]\nport_range = \"26000-26009\"\nhost = \"10.0.0.6\"\n",
    );
    write("pools.toml", "[games.ports]\nlobby = {}\nfar = 27000\n[gmaes.ports]\nlobby = 26001\n");
    let wrong = "\
a.toml:2:9: the range of infra has port 25090, and so has the pool default: change one
pools.toml:3:1: 27000 is not in 26000-26009: choose other ports for far
pools.toml:4:2: there is no pool gmaes in the configuration: write a range, or another name
";
    let said = ports(&["--config", "harbor.toml", "--file", "a.toml", "--file", "pools.toml"]);
    assert_eq!((said.code, said.stdout.split_once("\n\n").unwrap().0), (1, wrong.trim_end()));

    write("c.toml", "[infra\n");
    write("d.toml", "[infra]\nrnage = 1\n");
    let said = ports(&["--file", "c.toml", "--file", "d.toml", "--file", "e.toml"]);
    let expected = "harbor: d.toml:2:1: [infra] has no key \"rnage\": it has ports, range\nharbor: e.toml: cannot read it: No \
                    such file or directory (os error 2); name a file with port reservations\n";
    assert_eq!((said.code, said.stdout.as_str()), (2, ""));
    assert!(
        said.stderr.starts_with("harbor: c.toml:1:7: this is not TOML: ") && said.stderr.ends_with(expected),
        "{said:?}"
    );
}

#[test]
fn the_page_on_ports_explains_every_finding() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ports.md")).unwrap();
    let (_, table) = page.split_once("\n| code | severity ").expect("it has the table");
    let table = table.split("\n\n").next().unwrap_or_default();
    let listed = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect::<Vec<_>>();
    assert_eq!(listed, Code::ALL.map(Code::as_str));
}
