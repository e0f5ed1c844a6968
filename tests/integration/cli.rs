//! The command line as an operator uses it: exact output and exit codes.

use std::{
    io::Read as _,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use harbor::model::observed::Link;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    admin::Node,
    end_to_end::{PLAN_TCP, provision},
    openapi,
    support::{eventually::eventually, harbor::Site},
};

mod help;

/// What a command said.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// `harbor` with nothing in its environment but these variables.
pub fn harbor(directory: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_harbor"));
    command.args(arguments).current_dir(directory).env_clear().envs(variables.iter().copied());
    said(&mut command)
}

/// What a command says.
pub fn said(command: &mut Command) -> Said {
    let output = command.stdin(Stdio::null()).output().expect("the binary is built with the tests");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Said {
        code: output.status.code().expect("it ends by itself"),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

#[track_caller]
pub fn check(variables: &[(&str, &str)], arguments: &[&str], code: i32, stdout: &str, stderr: &str) {
    let directory = tempfile::tempdir().unwrap();
    let said = harbor(directory.path(), variables, arguments);
    assert_eq!(said, Said { code, stdout: stdout.into(), stderr: stderr.into() }, "harbor {arguments:?}");
}

const HELP: &str = "\
A Cloud Foundry service broker whose service is a TCP or UDP port

Usage: harbor [OPTIONS] <COMMAND>

Commands:
  serve         Run a node: broker, port forwarding, announcements and operators' API
  status        Show how a running node is, what is wrong first
  config        Show the configuration, and change live settings for all nodes
  node          List, drain, resume or remove nodes; suspend service instances or block networks
  ports         List ports, hold them back under names, check them, and print firewall rules
  restart       Hand a running node over to a new process; open connections may finish
  announce      Keep this app instance, or this machine, announced as a backend
  env           Print the variables that Stackato set, from VCAP_SERVICES
  check-config  Check the configuration and show what it comes to, without secrets
  migrate       Bring the store up to date, and check it
  data          Export and import what the store holds, and rotate its secret
  completions   Print completions for a shell
  man           Print the manual page, or write one for each command
  help          Print this message or the help of the given subcommand(s)

Options:
      --config <FILE>  The configuration file; every key can also come from the environment [env:
                       HARBOR_CONFIG]
  -h, --help           Print help (see more with '--help')
  -V, --version        Print version
";

#[test]
fn help_and_version_are_answers() {
    check(&[], &["-h"], 0, HELP, "");
    check(&[], &["--version"], 0, concat!("harbor ", env!("CARGO_PKG_VERSION"), "\n"), "");
    check(
        &[],
        &["status", "-h"],
        0,
        "\
Show how a running node is, what is wrong first

Usage: harbor status [OPTIONS]

Options:
      --config <FILE>      The configuration file; every key can also come from the environment
                           [env: HARBOR_CONFIG]
      --json               Print JSON
      --watch              Ask again every two seconds, until interrupted
      --admin <URL>        Where the node's operators' API is [default: as in the configuration]
                           [env: HARBOR_ADMIN_URL]
      --token-file <FILE>  The file with its token [default: as in the configuration]; the variable
                           HARBOR_ADMIN_TOKEN holds the token itself
  -h, --help               Print help (see more with '--help')
",
        "",
    );
    let directory = tempfile::tempdir().unwrap();
    let long = harbor(directory.path(), &[], &["--help"]);
    assert!(long.stdout.ends_with("\nExit codes: 0 fine, 1 found a problem, 2 usage or configuration.\n"), "{long:?}");
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    check(&[], &[], 2, "", HELP);
    check(
        &[],
        &["sreve"],
        2,
        "",
        "error: unrecognized subcommand 'sreve'\n\n  tip: a similar subcommand exists: 'serve'\n\n\
         Usage: harbor [OPTIONS] <COMMAND>\n\nFor more information, try '--help'.\n",
    );
    check(
        &[],
        &["completions", "tcsh"],
        2,
        "",
        "error: invalid value 'tcsh' for '<SHELL>'\n  [possible values: bash, elvish, fish, powershell, zsh]\n\n  \
         tip: a similar value exists: 'zsh'\n\nFor more information, try '--help'.\n",
    );
}

#[test]
fn check_config_shows_what_a_configuration_comes_to_without_secrets() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(
        directory.path().join("harbor.toml"),
        r#"
[broker]
password = ["hunter2", "hunter3"]
[announce]
listen = "127.0.0.1:8082"
public_url = "https://harbor-announce.example.com"
[nats]
servers = ["nats://10.0.0.1:4222"]
token = "hunter4"
[harbor_node]
host = "10.0.0.5"
hostname = "harbor.internal"
hostname_external = "ext-services.example.com"
port_range = "8000-8999"
[pools.games]
port_range = "26000-26009, 26020"
host = "10.0.0.6"
[plans.big]
pool = "games"
protocol = "udp"
"#,
    )
    .unwrap();
    let said = harbor(directory.path(), &[], &["check-config", "--config", "harbor.toml"]);
    let expect = "\
The configuration is valid.

broker     http://127.0.0.1:8080 as harbor with 2 passwords
announce   http://127.0.0.1:8082, reached as https://harbor-announce.example.com
admin      http://127.0.0.1:8081, metrics public
store      sqlite:harbor.db
nats       nats://10.0.0.1:4222 with a token
node       harbor_node_1, ports on ::, state in ./harbor-data
pool       default: 8000-8999 (1000 ports), inside as harbor.internal (10.0.0.5), outside as ext-services.example.com
pool       games: 26000-26009, 26020 (11 ports), inside as 10.0.0.6, not public
plan       free: tcp, udp or both, from pool default
plan       tcp: tcp, from pool default
plan       udp: udp, from pool default
plan       both: both, from pool default
plan       big: udp, from pool games
warning    broker.listen takes port 8080, which is in the range of pool default: nobody can be given it
warning    admin.listen takes port 8081, which is in the range of pool default: nobody can be given it
warning    announce.listen takes port 8082, which is in the range of pool default: nobody can be given it
";
    assert_eq!(said, Said { code: 0, stdout: expect.into(), stderr: String::new() });
}

#[test]
fn a_configuration_with_problems_ends_with_2_and_shows_all_of_them() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("harbor.toml"), "[broker]\npasword = \"hunter2\"\n").unwrap();
    let stderr = "\
harbor: harbor.toml:1:2: broker.password is missing: set it, or password_file, or the variable HARBOR_BROKER__PASSWORD
harbor: harbor.toml:2:1: [broker] has no key \"pasword\": it has listen, password, password_file, tls, username
harbor: HARBOR_LOG__LEVEL: \"loud\" is not a level: use one of off, error, warn, info, debug, trace, or \
\"info,harbor::discovery=debug\"
";
    let variables = [("HARBOR_CONFIG", "harbor.toml"), ("HARBOR_LOG__LEVEL", "loud")];
    for command in ["check-config", "serve", "migrate"] {
        let said = harbor(directory.path(), &variables, &[command]);
        assert_eq!(said, Said { code: 2, stdout: String::new(), stderr: stderr.into() }, "{command}");
    }
    check(
        &[],
        &["check-config", "--config", "nowhere.toml"],
        2,
        "",
        "harbor: nowhere.toml: cannot read it: No such file or directory (os error 2); name another file by --config \
         or HARBOR_CONFIG\n",
    );
}

#[test]
fn migrate_makes_the_store_and_then_has_nothing_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let variables = [("HARBOR_BROKER__PASSWORD", "hunter2")];
    let made = harbor(directory.path(), &variables, &["migrate"]);
    assert_eq!(made.code, 0, "{made:?}");
    let version = made
        .stdout
        .strip_prefix("The store sqlite:harbor.db has been made, at version ")
        .and_then(|rest| rest.strip_suffix(".\n"))
        .unwrap_or_else(|| panic!("{made:?}"));
    let again = harbor(directory.path(), &variables, &["migrate"]);
    let stdout = format!("The store sqlite:harbor.db is at version {version} already: nothing to do.\n");
    assert_eq!(again, Said { code: 0, stdout, stderr: String::new() });
    assert!(directory.path().join("harbor-data/harbor.db").exists());
}

#[test]
fn completions_and_manual_pages_come_from_the_one_definition() {
    let directory = tempfile::tempdir().unwrap();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let said = harbor(directory.path(), &[], &["completions", shell]);
        assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{shell}");
        assert!(said.stdout.contains("check-config"), "{shell}");
    }
    let said = harbor(directory.path(), &[], &["man"]);
    assert_eq!((said.code, said.stderr.as_str()), (0, ""));
    assert!(said.stdout.contains(".TH harbor 1"), "{}", said.stdout);
    let said = harbor(directory.path(), &[], &["man", "--directory", "."]);
    assert_eq!(said, Said { code: 0, stdout: String::new(), stderr: String::new() });
    let mut pages: Vec<_> =
        std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    pages.sort();
    assert_eq!(
        pages,
        [
            "harbor-announce.1",
            "harbor-check-config.1",
            "harbor-completions.1",
            "harbor-config-get.1",
            "harbor-config-history.1",
            "harbor-config-list.1",
            "harbor-config-set.1",
            "harbor-config-unset.1",
            "harbor-config.1",
            "harbor-data-export.1",
            "harbor-data-import.1",
            "harbor-data-rotate-secret.1",
            "harbor-data.1",
            "harbor-env.1",
            "harbor-man.1",
            "harbor-migrate.1",
            "harbor-node-block.1",
            "harbor-node-blocked.1",
            "harbor-node-drain.1",
            "harbor-node-list.1",
            "harbor-node-remove.1",
            "harbor-node-resume.1",
            "harbor-node-suspend.1",
            "harbor-node-unblock.1",
            "harbor-node.1",
            "harbor-ports-apply.1",
            "harbor-ports-check.1",
            "harbor-ports-firewall.1",
            "harbor-ports-list.1",
            "harbor-ports-release.1",
            "harbor-ports-reserve.1",
            "harbor-ports.1",
            "harbor-restart.1",
            "harbor-serve.1",
            "harbor-status.1",
            "harbor.1"
        ]
    );
    let said = harbor(directory.path(), &[], &["man", "--directory", "nowhere"]);
    let stderr = "harbor: cannot write manual pages to nowhere: No such file or directory (os error 2)\n";
    assert_eq!(said, Said { code: 1, stdout: String::new(), stderr: stderr.into() });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn status_shows_a_node_and_ends_with_1_when_something_is_wrong() {
    let node = Node::new(true).await;
    let (url, token) = (format!("http://{}", node.address), node.token());
    let token_file = node.token_file.to_str().unwrap();
    let status = |variables: &[(&str, &str)], arguments: &[&str]| {
        harbor(node.path(), variables, &[&["status"], arguments].concat())
    };
    let screen = format!(
        "\
harbor_node_1  serving, all is well  (harbor {}, process {}, since 2026-11-21T09:15:18Z)

store      connected since 2026-11-21T09:15:18Z
NATS       not configured
pool       default (26000-26009): 8 of 10 ports free, 2 allocated
listeners  2 bound, 0 failed, 0 pending (revision 3 of 3)
backends   1 TCP, 0 UDP (service instances without any: 1)
refused    unknown_service_instance from 10.0.1.9 naming typo, last at 2026-11-21T09:15:18Z

PORT   PROTOCOL  LISTENER  BACKENDS                    SERVICE INSTANCE
26000  tcp       bound     1 up, 0 open                first
26001  tcp       bound     none: app_not_bound         second
",
        env!("CARGO_PKG_VERSION"),
        std::process::id()
    );
    let well = Said { code: 0, stdout: screen, stderr: String::new() };
    assert_eq!(status(&[], &["--admin", &url, "--token-file", token_file]), well);
    assert_eq!(status(&[("HARBOR_ADMIN_URL", &url), ("HARBOR_ADMIN_TOKEN", &token)], &[]), well);
    let address = node.address.to_string();
    let configured = [
        ("HARBOR_BROKER__PASSWORD", "hunter2"),
        ("HARBOR_ADMIN__LISTEN", address.as_str()),
        ("HARBOR_HARBOR_NODE__DATA_DIR", "."),
    ];
    assert_eq!(status(&configured, &[]), well, "address and token are where the configuration says");

    node.nats.send_replace(Link::Down(harbor::model::Timestamp::from_seconds(0), "connection refused".into()));
    let degraded = status(&configured, &[]);
    assert_eq!(degraded.code, 1);
    let lines: Vec<_> = degraded.stdout.lines().collect();
    assert!(lines[0].starts_with("harbor_node_1  serving, degraded"), "{lines:?}");
    assert_eq!(
        lines[1],
        "  ! NATS is away since 1970-01-01T00:00:00Z (connection refused): known backends go on, new ones are not \
         learned from it"
    );
    let json = status(&configured, &["--json"]);
    assert_eq!(json.code, 1);
    let body: harbor::admin::wire::Status = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((body.node.as_str(), body.degraded.len()), ("harbor_node_1", 1));
    openapi::is_a_status(&serde_json::from_str(&json.stdout).unwrap());

    let wrong = status(&[("HARBOR_ADMIN_TOKEN", "hunter2")], &["--admin", &url]);
    let stderr = format!(
        "harbor: the node at {url} does not take this token: name its file by --token-file, or set HARBOR_ADMIN_TOKEN\n"
    );
    assert_eq!(wrong, Said { code: 2, stdout: String::new(), stderr });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_status_goes_on_while_the_node_is_away_and_ends_as_it_was_shown_last() {
    let site = Site::new("28151-28152", "").with("admin.listen", "127.0.0.1:28150");
    let node = site.serve().await;
    provision(&node, "a", PLAN_TCP).await;
    let watch = || {
        let mut command = site.command(&["status", "--watch"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut output, text) = (child.stdout.take().unwrap(), Arc::<Mutex<String>>::default());
        let reader = std::thread::spawn({
            let text = Arc::clone(&text);
            move || {
                let mut buffer = [0; 4096];
                while let Ok(size @ 1..) = output.read(&mut buffer) {
                    text.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..size]));
                }
            }
        });
        (child, text, reader)
    };
    let shown = |text: &Mutex<String>, what: &str| {
        eventually(what, || {
            let mut text = text.lock().unwrap();
            text.contains(what).then(|| text.clear())
        });
    };
    let interrupt = |mut child: Child| {
        let id = Pid::from_child(&child);
        kill_process(id, Signal::INT).unwrap();
        child.wait().unwrap().code()
    };
    let (fine, text, reader) = watch();
    shown(&text, "all is well");
    assert_eq!(interrupt(fine), Some(0));
    reader.join().unwrap();

    let (watched, text, reader) = watch();
    shown(&text, "all is well");
    node.kill();
    shown(&text, "no node answers at http://127.0.0.1:28150");
    let again = site.serve().await;
    shown(&text, "all is well");
    assert!(!text.lock().unwrap().contains('\u{1b}'), "no colours and no cursor where it is no terminal");
    again.kill();
    shown(&text, "no node answers");
    assert_eq!(interrupt(watched), Some(1), "as it was shown last");
    reader.join().unwrap();
}

#[test]
fn status_says_what_to_do_when_no_node_answers() {
    let token = [("HARBOR_ADMIN_TOKEN", "x")];
    // Bound but not listening: nobody else gets the port, and connections are refused.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    let url = format!("http://{}", socket.local_addr().unwrap().as_socket().unwrap());
    let refused = format!(
        "harbor: no node answers at {url} (Connection refused (os error 111)): is `harbor serve` running there?\n"
    );
    check(&token, &["status", "--admin", &url], 1, "", &refused);

    check(
        &token,
        &["status", "--admin", "https://10.0.0.5"],
        2,
        "",
        "harbor: \"https://10.0.0.5\" is not the URL of a node: write for example http://127.0.0.1:8081\n",
    );
    check(
        &[],
        &["status"],
        2,
        "",
        "harbor: which node? Name its configuration by --config FILE, or give --admin URL and --token-file FILE\n",
    );
    check(
        &[("HARBOR_BROKER__PASSWORD", "hunter2")],
        &["status"],
        2,
        "",
        "harbor: cannot read the token in ./harbor-data/admin.token: No such file or directory (os error 2); the \
         first start of `harbor serve` makes it, or name another by --token-file\n",
    );
}

#[test]
fn what_answers_but_is_no_node_is_told_from_one() {
    use std::io::{Read as _, Write as _};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let stranger = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        assert!(stream.read(&mut request).unwrap() > 0);
        stream.write_all(b"HTTP/1.1 418 I'm a teapot\r\ncontent-length: 0\r\n\r\n").unwrap();
    });
    let stderr = format!("harbor: {url} answers 418 I'm a teapot: is that a node's operators' API?\n");
    check(&[("HARBOR_ADMIN_TOKEN", "x")], &["status", "--admin", &url], 1, "", &stderr);
    stranger.join().unwrap();
}
