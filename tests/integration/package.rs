//! The Debian package, on a bare Debian 12: what it installs, how it runs there, and what is left of it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use serde_json::Value;

use crate::support::{
    debian::{Debian, Init},
    eventually::eventually,
};

/// Compressed quickly rather than well.
const COMPRESSION: [(&str, &str); 2] = [("DPKG_DEB_COMPRESSOR_TYPE", "zstd"), ("DPKG_DEB_COMPRESSOR_LEVEL", "1")];

const INSTALL: &str = "apt-get -q install --yes --no-install-recommends /srv/harbor_*.deb 2>&1";

/// What dpkg, apt and those that keep the accounts write about every package. No file of a package's own is there.
const RECORDS: [&str; 10] = [
    "/var/cache/",
    "/var/lib/apt/",
    "/var/lib/dpkg/",
    "/var/log/alternatives.log",
    "/var/log/apt/",
    "/var/log/dpkg.log",
    // The accounts as they were before the last change.
    "/etc/group-",
    "/etc/gshadow-",
    "/etc/passwd-",
    "/etc/shadow-",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Packs the binary of this build, and gives the package.
fn pack(output: &Path) -> PathBuf {
    let packed = Command::new(root().join("script/package"))
        .args(["--binary", env!("CARGO_BIN_EXE_harbor"), "--output"])
        .arg(output)
        .envs(COMPRESSION)
        .output()
        .expect("the script can be run");
    let said = String::from_utf8_lossy(&packed.stdout);
    assert!(packed.status.success(), "{said}{}", String::from_utf8_lossy(&packed.stderr));
    PathBuf::from(said.lines().last().expect("the script says where the package is"))
}

/// The folder with the package, made once.
fn packed() -> &'static Path {
    static PACKED: OnceLock<PathBuf> = OnceLock::new();
    PACKED.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("package");
        pack(&folder);
        folder
    })
}

fn machine(test: &str, init: Init) -> Option<Debian> {
    Debian::start(test, init, packed())
}

/// Every file and directory, but for those that every package adds to, with mode and owner; and what is in those of /etc.
fn files(debian: &Debian) -> BTreeSet<String> {
    let found = debian.succeed("find / -xdev -printf '%p %m %u:%g\\n'; find /etc -type f -exec sha256sum --tag {} +");
    let others = |line: &&str| {
        let path = line.strip_prefix("SHA256 (").unwrap_or(line);
        !RECORDS.iter().any(|record| path.starts_with(record))
    };
    found.lines().filter(others).map(str::to_owned).collect()
}

/// What is in one of them and not in the other, without modes, owners and contents.
fn beyond<'a>(files: &'a BTreeSet<String>, others: &'a BTreeSet<String>) -> Vec<&'a str> {
    let beyond = files.difference(others);
    beyond.map(|line| line.strip_prefix("SHA256 ").unwrap_or(line).split(' ').next().unwrap_or_default()).collect()
}

fn status(debian: &Debian, process: &str, field: &str) -> String {
    let status = debian.succeed(&format!("cat /proc/{process}/status"));
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("no {field} in {status}")).trim().to_owned()
}

fn answers(debian: &Debian, path: &str) -> String {
    let url = format!("http://127.0.0.1:8081{path}");
    let output = debian.in_its_network("curl").args(["-s", "--max-time", "5", &url]).output();
    String::from_utf8_lossy(&output.expect("curl is there").stdout).into_owned()
}

fn is_ready(debian: &Debian) {
    eventually("the node is ready", || (answers(debian, "/readyz") == r#"{"ready":true,"reasons":[]}"#).then_some(()));
}

#[track_caller]
fn assert_serves_without_privileges(debian: &Debian, process: &str) {
    let user = debian.succeed("id -u harbor; id -g harbor");
    let ids = user.lines().map(|id| [id; 4].join("\t")).collect::<Vec<_>>();
    assert_eq!([status(debian, process, "Uid"), status(debian, process, "Gid")], *ids);
    for capabilities in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(debian, process, capabilities), "0000000000000000", "{capabilities}");
    }
    assert_eq!(status(debian, process, "NoNewPrivs"), "1");
    let groups = status(debian, process, "Groups");
    assert!(ids[1].starts_with(&groups), "it is in groups {groups}, not in its own alone: {ids:?}");
}

#[test]
fn the_same_sources_give_the_same_package() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one, two) = (pack(one.path()), pack(two.path()));
    assert_eq!(one.file_name(), two.file_name());
    assert!(fs::read(one).unwrap() == fs::read(two).unwrap(), "two packages of the same sources differ");
}

#[test]
fn the_package_installs_serves_and_leaves_behind_only_what_it_says() {
    let test = "the_package_installs_serves_and_leaves_behind_only_what_it_says";
    let Some(debian) = machine(test, Init::Nothing) else { return };
    let before = files(&debian);
    let said = debian.succeed(INSTALL);
    assert!(said.contains("harbor: edit /etc/harbor/harbor.toml, then: systemctl enable --now harbor"), "{said}");

    // Who it runs as, and what is whose.
    assert_eq!(
        debian.succeed("getent passwd harbor | cut -d: -f 6,7; id -Gn harbor"),
        "/var/lib/harbor:/usr/sbin/nologin\nharbor\n"
    );
    let places = "/etc/harbor /etc/harbor/harbor.toml /etc/harbor/broker.password /var/lib/harbor /var/log/harbor \
                  /usr/bin/harbor /usr/lib/systemd/system/harbor.service /usr/lib/sysctl.d/10-harbor.conf \
                  /etc/logrotate.d/harbor";
    assert_eq!(
        debian.succeed(&format!("stat -c '%a %U:%G %n' {places}")),
        "750 root:harbor /etc/harbor\n\
         640 root:harbor /etc/harbor/harbor.toml\n\
         600 harbor:harbor /etc/harbor/broker.password\n\
         700 harbor:harbor /var/lib/harbor\n\
         750 harbor:harbor /var/log/harbor\n\
         755 root:root /usr/bin/harbor\n\
         644 root:root /usr/lib/systemd/system/harbor.service\n\
         644 root:root /usr/lib/sysctl.d/10-harbor.conf\n\
         644 root:root /etc/logrotate.d/harbor\n"
    );
    let password = debian.succeed("cat /etc/harbor/broker.password");
    assert_eq!(password.trim_end().len(), 48, "{password}");
    assert!(password.trim_end().bytes().all(|byte| byte.is_ascii_hexdigit()), "{password}");

    // The configuration is valid as it comes, for the user who reads it, and nothing is to be warned of.
    let as_harbor = "setpriv --reuid=harbor --regid=harbor --clear-groups --bounding-set=-all --inh-caps=-all \
                     --no-new-privs env -i";
    let checked = debian.succeed(&format!("{as_harbor} harbor check-config --config /etc/harbor/harbor.toml 2>&1"));
    assert!(checked.starts_with("The configuration is valid.\n\n"), "{checked}");
    assert!(checked.contains("with one password"), "{checked}");
    assert!(checked.contains("35000-40000 (5001 ports)") && checked.contains("not public"), "{checked}");
    for example in ["10.0.0.5", "example.com", "nats://", "warning"] {
        assert!(!checked.contains(example), "{example} is nothing to begin with:\n{checked}");
    }

    assert_help_is_installed(&debian);
    let unit = debian.succeed("systemd-analyze verify --man=no /usr/lib/systemd/system/harbor.service 2>&1");
    assert_eq!(unit, "", "systemd-analyze finds something");

    // What the kernel is told, in this network and at the next boot.
    assert_eq!(debian.succeed("cat /proc/sys/net/ipv4/ip_local_reserved_ports"), "35000-40000\n");

    // As the unit's user, with the unit's capabilities.
    let capabilities = debian.succeed("grep -x 'CapabilityBoundingSet=' /usr/lib/systemd/system/harbor.service");
    assert_eq!(capabilities, "CapabilityBoundingSet=\n", "the command above has none");
    let serve = format!(
        "cd /var/lib/harbor; umask 0027; {as_harbor} harbor serve --config /etc/harbor/harbor.toml >/tmp/log 2>&1 & echo $!"
    );
    let process = debian.succeed(&serve).trim().to_owned();
    is_ready(&debian);
    assert_serves_without_privileges(&debian, &process);
    debian.succeed("harbor status --config /etc/harbor/harbor.toml");
    debian.succeed(&format!("kill {process}"));
    eventually("it has ended", || (!debian.run(&format!("kill -0 {process}")).status.success()).then_some(()));
    assert_eq!(
        debian.succeed("stat -c '%a %U:%G %n' /var/lib/harbor/*"),
        "600 harbor:harbor /var/lib/harbor/admin.token\n\
         600 harbor:harbor /var/lib/harbor/backends.json\n\
         600 harbor:harbor /var/lib/harbor/harbor.db\n\
         600 harbor:harbor /var/lib/harbor/harbor.db.lock\n"
    );

    // A removal leaves what is the operator's, and a second installation takes it up.
    debian.succeed("apt-get -q remove --yes harbor");
    assert!(!debian.run("command -v harbor").status.success());
    debian.succeed("test ! -e /usr/lib/systemd/system/harbor.service -a -e /etc/harbor/harbor.toml");
    debian.succeed("echo '# changed' >>/etc/harbor/harbor.toml");
    debian.succeed(INSTALL);
    assert_eq!(
        debian.succeed("tail -n 1 /etc/harbor/harbor.toml; cat /etc/harbor/broker.password"),
        format!("# changed\n{password}")
    );
    debian.succeed("test -e /var/lib/harbor/harbor.db");

    // A purge leaves the account, and what the package did not make.
    debian.succeed("echo certificate >/etc/harbor/broker.pem");
    debian.succeed("apt-get -q purge --yes harbor");
    assert_eq!(debian.succeed("ls -A /etc/harbor; rm -r /etc/harbor"), "broker.pem\n");
    let after = files(&debian);
    let accounts = ["(/etc/group)", "(/etc/gshadow)", "(/etc/passwd)", "(/etc/shadow)"];
    assert_eq!(beyond(&after, &before), accounts, "left behind");
    assert_eq!(beyond(&before, &after), accounts, "taken away");
    assert_eq!(debian.succeed("grep -ho '^harbor' /etc/group /etc/passwd"), "harbor\nharbor\n");
}

/// Manual pages for every command, and completions.
fn assert_help_is_installed(debian: &Debian) {
    let installed =
        debian.succeed("cd /usr/share/man/man1; for page in harbor*.1.gz; do zcat $page | grep '^.TH '; done");
    let titles =
        installed.lines().filter_map(|line| line.split(' ').nth(1)).map(str::to_owned).collect::<BTreeSet<_>>();
    let help = debian.succeed("harbor --help");
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let commands = commands.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    let wanted = commands.map(|name| format!("harbor-{name}")).chain(["harbor".to_owned()]).collect::<BTreeSet<_>>();
    assert!(wanted.is_subset(&titles), "{wanted:?}\n{titles:?}");

    let completed = debian.succeed(
        "bash -c '. /usr/share/bash-completion/completions/harbor
        COMP_WORDS=(harbor sta) COMP_CWORD=1; _harbor harbor sta harbor; echo ${COMPREPLY[@]}'",
    );
    assert_eq!(completed, "status\n");
    debian.succeed("grep -q '^#compdef harbor' /usr/share/zsh/vendor-completions/_harbor");
    debian.succeed("grep -q '^complete -c harbor' /usr/share/fish/vendor_completions.d/harbor.fish");
}

#[test]
fn what_others_have_reserved_stays_reserved() {
    let Some(debian) = machine("what_others_have_reserved_stays_reserved", Init::Nothing) else { return };
    let reserved = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    debian.succeed(&format!("echo 8000-8010 >{reserved}; {INSTALL}"));
    assert_eq!(debian.succeed(&format!("cat {reserved}")), "8000-8010\n");
    // At the next boot, any other file wins.
    debian.succeed("echo net.ipv4.ip_local_reserved_ports=8000-8010 >/etc/sysctl.d/20-other.conf");
    debian.succeed("/lib/systemd/systemd-sysctl --prefix=/net/ipv4/ip_local_reserved_ports");
    assert_eq!(debian.succeed(&format!("cat {reserved}")), "8000-8010\n");
    debian.succeed("rm /etc/sysctl.d/20-other.conf");
    debian.succeed("/lib/systemd/systemd-sysctl --prefix=/net/ipv4/ip_local_reserved_ports");
    assert_eq!(debian.succeed(&format!("cat {reserved}")), "35000-40000\n");
}

/// One property of the service.
fn shown(debian: &Debian, property: &str) -> String {
    debian.succeed(&format!("systemctl show --value -p {property} harbor")).trim().to_owned()
}

/// What the broker answers, asked with the password of the package.
fn broker(debian: &Debian, method: &str, path: &str, body: &str) -> Value {
    let password = debian.succeed("cat /etc/harbor/broker.password");
    let url = format!("http://127.0.0.1:8080/v2/{path}");
    let output = debian
        .in_its_network("curl")
        .args(["-s", "--max-time", "10", "-H", "X-Broker-API-Version: 2.17", "-X", method, "-d", body, &url, "-u"])
        .arg(format!("harbor:{}", password.trim()))
        .output()
        .expect("curl is there");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{method} {path}: {error}: {output:?}"))
}

/// The sockets that listen on a port, as the kernel numbers them.
fn listening(debian: &Debian, port: u64) -> BTreeSet<String> {
    let sockets =
        debian.in_its_network("ss").args(["-ltneH", &format!("sport = :{port}")]).output().expect("ss is there");
    let sockets = String::from_utf8_lossy(&sockets.stdout).into_owned();
    sockets.split_whitespace().filter(|word| word.starts_with("ino:")).map(str::to_owned).collect()
}

#[test]
fn under_systemd_the_package_serves_in_its_sandbox_through_crashes_and_upgrades() {
    let test = "under_systemd_the_package_serves_in_its_sandbox_through_crashes_and_upgrades";
    let Some(debian) = machine(test, Init::Systemd) else { return };
    debian.succeed(INSTALL);
    assert_eq!(
        debian.succeed("systemctl is-enabled harbor || systemctl is-active harbor || true"),
        "disabled\ninactive\n"
    );
    debian.succeed("sed -i 's/^# directory = /directory = /' /etc/harbor/harbor.toml");
    debian.succeed("systemctl enable --now harbor");
    is_ready(&debian);
    let process = shown(&debian, "MainPID");
    assert_serves_without_privileges(&debian, &process);
    assert_eq!(status(&debian, &process, "Seccomp"), "2", "no filter of system calls");
    // What it sees of the machine.
    let mounts = debian.succeed(&format!("cat /proc/{process}/mountinfo"));
    let writable = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(4);
        let (place, options) = (words.next()?, words.next()?);
        let on_disk = !["/proc", "/sys", "/dev", "/run"].iter().any(|other| place.starts_with(other));
        (on_disk && options.split(',').any(|option| option == "rw")).then_some(place)
    });
    assert_eq!(
        writable.collect::<BTreeSet<_>>(),
        BTreeSet::from(["/tmp", "/var/lib/harbor", "/var/log/harbor", "/var/tmp"])
    );
    debian.succeed("harbor status --config /etc/harbor/harbor.toml");

    let plan =
        r#""service_id":"7c1e4a52-8f2b-5d38-9a36-0f1d52c6b0e1","plan_id":"e1f6b1f0-57f3-5c0e-8a0b-6d3a6f0c1a02""#;
    let body = format!(r#"{{{plan},"organization_guid":"org","space_guid":"space","parameters":{{"port":35007}}}}"#);
    assert_eq!(broker(&debian, "PUT", "service_instances/door", &body), serde_json::json!({}));
    let sockets = listening(&debian, 35007);
    assert!(!sockets.is_empty(), "port 35007 is not open");

    // A crash: systemd has kept the sockets.
    debian.succeed("systemctl kill --kill-whom=main --signal=KILL harbor");
    let next = eventually("systemd starts it again", || {
        Some(shown(&debian, "MainPID")).filter(|next| !["0", &process].contains(&next.as_str()))
    });
    is_ready(&debian);
    assert_eq!(listening(&debian, 35007), sockets, "the sockets are others");

    // An upgrade, which leaves them to the new binary.
    let said = debian.succeed("dpkg --install /srv/harbor_*.deb 2>&1");
    assert!(said.contains("has handed over to process"), "{said}");
    let upgraded = shown(&debian, "MainPID");
    assert_ne!(upgraded, next, "{said}");
    assert_eq!(shown(&debian, "ActiveState"), "active");
    is_ready(&debian);
    assert_eq!(listening(&debian, 35007), sockets, "the sockets are others");
    assert_serves_without_privileges(&debian, &upgraded);
    assert_eq!(shown(&debian, "NRestarts"), "1", "only the crash");
    // It is followed as the first one was.
    debian.succeed("systemctl kill --kill-whom=main --signal=KILL harbor");
    eventually("systemd starts it again", || {
        Some(shown(&debian, "MainPID")).filter(|next| !["0", &upgraded].contains(&next.as_str()))
    });
    is_ready(&debian);
    assert_eq!(listening(&debian, 35007), sockets, "the sockets are others");
    debian.succeed("harbor restart --config /etc/harbor/harbor.toml");

    // Logs are moved away, and opened anew.
    debian.succeed("logrotate --force /etc/logrotate.d/harbor");
    eventually("the log is opened anew", || {
        debian.run("test -s /var/log/harbor/harbor_node.log").status.success().then_some(())
    });
    debian.succeed("test -s /var/log/harbor/harbor_node.log.1");

    // A stop after a hot restart waits for the drain.
    debian.succeed("systemctl stop harbor");
    let journal = debian.succeed("journalctl -u harbor --no-pager");
    assert_eq!(shown(&debian, "Result"), "success", "{journal}");
    assert!(!journal.contains("not our child"), "{journal}");
    debian.succeed("apt-get -q remove --yes harbor");
    assert_eq!(answers(&debian, "/readyz"), "", "a process of it still serves");
    assert_eq!(
        debian.succeed(
            "find /etc/systemd /run/systemd -name 'harbor*'; systemctl list-units --all --plain --no-legend 'harbor*'"
        ),
        ""
    );
    debian.succeed("apt-get -q purge --yes harbor");
    debian.succeed("test ! -e /var/lib/harbor -a ! -e /var/log/harbor -a ! -e /etc/harbor");
}

#[test]
fn what_the_kernel_is_told_fits_the_default_range() {
    let drop_in = read("manifests/sysctl/10-harbor.conf");
    let example = read("manifests/harbor.toml");
    let range = example.lines().find_map(|line| line.strip_prefix("port_range = \"")?.split('"').next()).unwrap();
    assert!(drop_in.lines().any(|line| line == format!("net.ipv4.ip_local_reserved_ports = {range}")), "{drop_in}");
}

#[test]
fn the_container_file_copies_what_is_there_and_all_that_a_build_wants() {
    let file = read("manifests/container/Containerfile").replace("\\\n", "");
    let said = |instruction: &str| -> Vec<Vec<String>> {
        let lines = file.lines().filter_map(|line| line.strip_prefix(instruction)?.strip_prefix(' '));
        lines.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    };
    let one = |instruction: &str| said(instruction).remove(0).join(" ");
    let words = |instruction: &str| serde_json::from_str::<Vec<String>>(&one(instruction)).expect("a list in JSON");

    // From the sources; and from the build what cargo makes of them.
    let copies = said("COPY");
    let (built, sources): (Vec<_>, Vec<_>) = copies.iter().partition(|words| words[0].starts_with("--from="));
    let sources = sources.iter().flat_map(|words| &words[..words.len() - 1]).collect::<Vec<_>>();
    for source in &sources {
        assert!(root().join(source).exists(), "it copies {source}");
    }
    assert_eq!(built, [&["--from=build", "/src/target/release/harbor", "/usr/bin/harbor"].map(String::from).to_vec()]);
    // What sources have in them of other files.
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            for macro_name in ["include_str!(\"", "include_bytes!(\"", "migrate!(\""] {
                for included in text.split(macro_name).skip(1).filter_map(|rest| rest.split('"').next()) {
                    let beside = if macro_name.starts_with("migrate") { root() } else { path.parent().unwrap() };
                    let included = fs::canonicalize(beside.join(included)).unwrap();
                    let copied = sources.iter().any(|source| included.starts_with(root().join(source)));
                    assert!(copied, "{} wants {}", path.display(), included.display());
                }
            }
        }
    }
    // The oldest compiler that does.
    let manifest = read("Cargo.toml");
    let oldest = manifest.lines().find_map(|line| line.strip_prefix("rust-version = \"")?.split('"').next()).unwrap();
    assert_eq!(one("FROM"), format!("docker.io/library/rust:{oldest}-bookworm AS build"));

    // What runs is what the binary understands; nobody is root; it ends as a node ends.
    assert_eq!(words("ENTRYPOINT"), ["harbor"]);
    let help = Command::new(env!("CARGO_BIN_EXE_harbor")).args(words("CMD")).arg("--help").output().unwrap();
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("harbor serve"), "{help:?}");
    assert!(one("USER").parse::<u32>().is_ok_and(|user| user > 0));
    assert!(file.contains(&format!("useradd --system --uid {} ", one("USER"))));
    assert_eq!(one("STOPSIGNAL"), "SIGTERM");
    let (_, healthy) = file.split_once("\nHEALTHCHECK ").unwrap();
    assert!(healthy.lines().next().unwrap().ends_with(" CMD [\"harbor-ready\"]"));
    assert!(file.contains("COPY manifests/keepalived/harbor-ready /usr/bin/harbor-ready\n"));

    // The ports are those of the example.
    let example = read("manifests/harbor.toml");
    for port in one("EXPOSE").split(' ').map(|port| port.trim_end_matches("/udp")) {
        assert!(example.contains(&format!(":{port}\"")) || example.contains(&format!("\"{port}\"")), "port {port}");
    }
}

#[test]
fn the_page_on_registering_the_broker_tells_what_the_api_does() {
    let api = serde_saphyr::from_str::<Value>(&read("openapi.yaml")).expect("YAML");
    let page = read("docs/register-broker.md");
    let mut told = BTreeSet::new();
    for row in page.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")) {
        let cells = row.split(" | ").collect::<Vec<_>>();
        let Some((method, path)) = cells.get(1).and_then(|cell| cell.trim_matches('`').split_once(' ')) else {
            continue;
        };
        let Some(operation) = api["paths"][path].get(method.to_lowercase()) else { continue };
        let statuses = cells[2].split(|c: char| !c.is_ascii_digit()).filter(|word| word.len() == 3);
        for status in statuses {
            assert!(operation["responses"].get(status).is_some(), "{method} {path} never answers {status}");
        }
        told.insert(format!("{method} {path}"));
    }
    // Whatever the platform sends for one of cf's commands; it asks for bindings and their operations at no command's behest.
    let methods = ["get", "put", "patch", "delete"];
    let paths = api["paths"].as_object().unwrap().iter().filter(|(path, _)| path.starts_with("/v2/"));
    let all = paths.flat_map(|(path, operations)| {
        let there = methods.iter().filter(|method| operations.get(**method).is_some());
        there.map(move |method| format!("{} {path}", method.to_uppercase()))
    });
    let binding = "GET /v2/service_instances/{instance_id}/service_bindings/{binding_id}";
    let wanted = all.filter(|operation| !operation.starts_with(binding)).collect::<BTreeSet<_>>();
    assert_eq!(told, wanted);
}
