//! What the documents tell a reader to type, typed: each `console` block of a document runs in one shell, as written,
//! and must print what the document shows. And what they list is what there is.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs, iter,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use harbor::{config, http, model::desired::ForwarderLimits};

use super::end_to_end::{PLAN_BOTH, provision};
use crate::support::{
    announcements::{self, APP, INSTANCE},
    harbor::Site,
    postgres::{Postgres, USER},
};

mod nodes;

/// What stands between a command's number and its output.
const MARK: char = '\u{1}';

/// Numbers with at least so many digits, such as ports and process ids, differ from run to run.
const PASSING_DIGITS: usize = 4;

/// How long all commands of a document may take, in seconds.
const PATIENCE: &str = "120";

/// Hexadecimal words of at least so many characters are tokens.
const TOKEN_DIGITS: usize = 16;

/// What a reader of a guide for tenants and announcers has: a node with NATS, a service instance `game-port` whose port
/// is `$port`, the app `game-app` bound to it as `$binding`, its `$token`, the app's ports `$tcp` and `$udp`, and where
/// to announce them, `$url`.
const A_BOUND_APP: &str = r#"
nats-server -a 127.0.0.1 -p 4222 > nats.log 2>&1 &
cat > harbor.toml <<END
[broker]
password = "secret"
[announce]
listen = "127.0.0.1:8082"
public_url = "http://127.0.0.1:8082"
[nats]
servers = ["nats://127.0.0.1:4222"]
[harbor_node]
port_range = "31000"
host = "127.0.0.1"
[discovery]
domain = "harbor.example.com"
backend_networks = ["127.0.0.0/8"]
END
harbor serve --config harbor.toml > harbor.log 2>&1 &
until curl -s localhost:8081/metrics | grep -q 'harbor_nats_connected 1'; do sleep 0.1; done
both='"service_id":"7c1e4a52-8f2b-5d38-9a36-0f1d52c6b0e1","plan_id":"e1f6b1f0-57f3-5c0e-8a0b-6d3a6f0c1a04"'
put() { curl -s -u harbor:secret -H 'X-Broker-API-Version: 2.17' -X PUT "localhost:8080/v2/service_instances/$1" -d "{$both,$2}"; }
put game-port '"organization_guid":"org","space_guid":"space"' > provisioned
put game-port/service_bindings/game '"bind_resource":{"app_guid":"game-app"}' > credentials.json
field() { sed "s/.*\"$1\":\"\{0,1\}\([^\",]*\).*/\1/" credentials.json; }
url=$(field url) token=$(field token) port=$(field port) binding=game
target/debug/examples/echo-app game > app.txt &
until grep -qs udp app.txt; do sleep 0.1; done
. ./app.txt
"#;

/// What a reader of a page on a source has: the platform's NATS, the app `$app`, which answers wherever the pages say,
/// and a configuration that wants the page's part. `cf` plays the Cloud Controller, silently unless it is refused; what
/// is not a matter of the broker it leaves to the platform.
const A_PLATFORM: &str = r#"
nats-server -a 127.0.0.1 -p 4222 > nats.log 2>&1 &
for address in 10.0.2.17:61012 10.0.2.17:61016 10.0.3.21:61020 10.0.16.9:7777 10.255.30.4:4100; do
  ip address replace ${address%:*}/32 dev lo
  target/debug/examples/echo-app game $address > app-$address.txt &
done
until [ "$(cat app-*.txt | wc -l)" = 5 ]; do sleep 0.1; done
ask() {
  curl -sf -o answer -u harbor:secret -H 'X-Broker-API-Version: 2.17' -X "$1" "localhost:8080/v2/service_instances/$id$2" \
    -d "{\"service_id\":\"7c1e4a52-8f2b-5d38-9a36-0f1d52c6b0e1\",\"plan_id\":\"$plan\",$3}" || echo "$* is refused"
}
cf() {
  case $1 in
    create-service)
      case $3 in tcp) plan=2 ;; udp) plan=3 ;; both) plan=4 ;; esac
      plan=e1f6b1f0-57f3-5c0e-8a0b-6d3a6f0c1a0$plan
      local parameters=${6:-'{}'}
      ask PUT '' "\"organization_guid\":\"org\",\"space_guid\":\"space\",\"parameters\":$parameters" ;;
    update-service) ask PATCH '' "\"parameters\":$4" ;;
    bind-service) ask PUT /service_bindings/game "\"bind_resource\":{\"app_guid\":\"$app\"}" ;;
  esac
}
export HARBOR_CONFIG=$PWD/harbor.toml
cat > harbor.toml <<END
[broker]
password = "secret"
[nats]
servers = ["nats://127.0.0.1:4222"]
[harbor_node]
port_range = "35012"
host = "127.0.0.1"
END
"#;

/// Starts the node.
const SERVE: &str = r"
harbor serve > harbor.log 2>&1 &
until curl -s localhost:8081/metrics | grep -q 'harbor_nats_connected 1'; do sleep 0.1; done
";

/// What an app has in its container, beside that: the environment, and its program.
const IN_A_CONTAINER: &str = r#"
inner=$(sed 's/^{//; s/}$//' credentials.json)
export VCAP_SERVICES="{\"harbor\":[{\"instance_name\":\"game-port\",\"binding_guid\":\"$binding\",$inner}]}"
printf '#!/bin/sh\nexec target/debug/examples/echo-app game 127.0.0.1:$STACKATO_HARBOR\n' > server
chmod +x server
"#;

#[derive(Debug, Default)]
struct Step {
    command: String,
    shown: String,
}

/// The commands of all `console` blocks with the output that is shown for each.
fn steps(document: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    // Until which line a command goes on: a here-document's end, a function's, or that of a quoted or broken line.
    let (mut inside, mut open, mut ends_at) = (false, false, None::<String>);
    for line in document.lines() {
        if line.starts_with("```") {
            (inside, open) = (line == "```console", false);
            continue;
        }
        if !inside {
            continue;
        }
        if let (false, Some(command)) = (open, line.strip_prefix("$ ")) {
            steps.push(Step::default());
            steps.last_mut().unwrap().command = format!("{command}\n");
            ends_at = match command.split_once("<<") {
                Some((_, end)) if !end.starts_with('<') => Some(end.trim().to_owned()),
                _ if command.ends_with("() {") => Some("}".to_owned()),
                _ => None,
            };
            open = ends_at.is_some() || command.ends_with('\\');
        } else if open {
            writeln!(steps.last_mut().unwrap().command, "{line}").unwrap();
            open = match &ends_at {
                Some(end) => line != end,
                None => line.ends_with('\\'),
            };
        } else {
            writeln!(steps.last_mut().expect("output follows a command").shown, "{line}").unwrap();
        }
    }
    steps
}

/// Whether `printed` is what the document shows. A time, a long number and a token stand for any other, `…` for the
/// rest of a token, of a line, or, alone in it, for any lines; spaces for any number of them.
pub fn matches(shown: &str, printed: &str) -> bool {
    let mut printed = printed.lines().peekable();
    let mut shown = shown.lines().peekable();
    while let Some(line) = shown.next() {
        if line == "…" {
            let Some(next) = shown.peek() else { return true };
            while printed.peek().is_some_and(|line| !line_matches(next, line)) {
                printed.next();
            }
        } else if !printed.next().is_some_and(|printed| line_matches(line, printed)) {
            return false;
        }
    }
    printed.next().is_none()
}

fn line_matches(mut shown: &str, mut printed: &str) -> bool {
    loop {
        let (Some(first), Some(other)) = (shown.chars().next(), printed.chars().next()) else {
            return shown == printed || shown == "…";
        };
        let word = |text: &str, part: fn(char) -> bool| text.find(|c| !part(c)).unwrap_or(text.len());
        let digits = word(shown, |c| c.is_ascii_digit());
        let hex = word(shown, |c| c.is_ascii_hexdigit());
        let part: fn(char) -> bool = if is_time(shown) && is_time(printed) {
            |c| c.is_ascii_digit() || "-T:.".contains(c)
        } else if hex >= TOKEN_DIGITS || (hex > 0 && shown[hex..].starts_with('…')) {
            |c| c.is_ascii_hexdigit() || c == '…'
        } else if digits >= PASSING_DIGITS {
            |c| c.is_ascii_digit()
        } else if first == ' ' && other == ' ' {
            |c| c == ' '
        } else if shown == "…" {
            return true;
        } else if first == other {
            (shown, printed) = (&shown[first.len_utf8()..], &printed[other.len_utf8()..]);
            continue;
        } else {
            return false;
        };
        let (of_shown, of_printed) = (word(shown, part), word(printed, part));
        if of_printed == 0 {
            return false;
        }
        (shown, printed) = (&shown[of_shown..], &printed[of_printed..]);
    }
}

/// Whether the text begins with a time as RFC 3339 writes it.
fn is_time(text: &str) -> bool {
    let form = "0000-00-00T00:00:00";
    text.len() > form.len()
        && iter::zip(form.bytes(), text.bytes()).all(|(f, t)| if f == b'0' { t.is_ascii_digit() } else { t == f })
}

#[test]
fn what_differs_from_run_to_run_may_differ_from_what_is_shown() {
    let check = |shown: &str, printed: &str, expect: bool| assert_eq!(matches(shown, printed), expect, "{shown:?}");
    check("port 31057", "port 31001", true);
    check("port 31057", "port", false);
    check("port 31057 ", "port 31057", false);
    check("200", "404", false);
    check("\"token\":\"9f0c…\",\"port\":31057", "\"token\":\"0123456789abcdef\",\"port\":31001", true);
    check("at 2026-11-21T10:28:40Z  x 1", "at 2027-01-02T03:04:05.123456Z x 1", true);
    check("at 2026-11-21T10:28:40Z  x 1", "at 2027-01-02T03:04:05.123456Z x 2", false);
    check("INFO ready …", "INFO ready node=a b", true);
    check("INFO ready …", "INFO rea", false);
    check("…\nlast", "first\nsecond\nlast", true);
    check("…\nlast", "first\nlast\nmore", false);
    check("first\n…", "first\nsecond\nlast", true);
    check("first", "first\nsecond", false);
    check("", "", true);
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(document: &str) -> String {
    fs::read_to_string(root().join(document)).unwrap_or_else(|error| panic!("{document}: {error}"))
}

/// Runs the commands of a document in a network of their own, so that the ports it names are free, after `before`.
fn check_after(before: &str, document: &str) {
    check(before, document, &steps(&read(document)));
}

fn check(before: &str, document: &str, steps: &[Step]) {
    let root = root();
    assert!(!steps.is_empty(), "{document} has nothing to run");
    let place = tempfile::tempdir().unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_harbor"));
    let built = binary.parent().unwrap();
    fs::create_dir(place.path().join("target")).unwrap();
    symlink(built, place.path().join("target/debug")).unwrap();
    symlink(root.join("manifests"), place.path().join("manifests")).unwrap();
    let mut script = format!("exec 2>&1\nip link set lo up\ncd '{}'\n", place.path().display());
    script += "unset \"${!HARBOR_@}\"\nPATH=$PWD/target/debug:$PATH:/usr/sbin\n";
    script += before;
    for (number, step) in steps.iter().enumerate() {
        write!(script, "echo '{MARK}{number}'\n{}", step.command).unwrap();
    }
    // Building needs the sources and the network; the tests have been built with all that it makes.
    let script = script.replace("cargo build", "true");
    let output = Command::new("timeout")
        .args(["--signal=KILL", PATIENCE, "unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child"])
        .args(["--mount-proc", "bash", "-c", &script])
        .stdin(Stdio::null())
        .output()
        .expect("timeout and unshare are part of every Debian");
    let text = String::from_utf8_lossy(&output.stdout);
    if text.is_empty() {
        let reason = String::from_utf8_lossy(&output.stderr);
        assert!(reason.contains("Operation not permitted"), "{reason}");
        // A machine that allows no namespaces: said where the test's output is read.
        return std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped {document}: {reason}"))
            .unwrap();
    }
    let mut printed = text.split(MARK).skip(1);
    for step in steps {
        let output = printed.next().and_then(|output| output.split_once('\n')).map_or("", |(_, output)| output);
        assert!(
            matches(&step.shown, output),
            "{document}, after: {}it shows:\n{}and this was printed:\n{output}\nthe whole:\n{text}",
            step.command,
            step.shown
        );
    }
}

#[test]
fn the_tour_of_the_readme_is_as_it_says() {
    check_after("", "README.md");
}

#[test]
fn the_user_guide_is_as_it_says() {
    check_after(A_BOUND_APP, "docs/user-guide.md");
}

#[test]
fn the_operators_guide_is_as_it_says() {
    let server = Postgres::shared();
    server.sql("postgres", "CREATE DATABASE harbor");
    let (host, port) = server.socket();
    let listing = r#"{"pagination":{"total_results":1,"next":null},"resources":[{"guid":"game-port"}]}"#;
    let there =
        format!("export PGHOST='{}' PGPORT={port} PGUSER={USER}\ncf() {{ echo '{listing}'; }}\n", host.display());
    check_after(&there, "docs/operator-guide.md");
}

#[test]
fn the_page_on_ports_is_as_it_says() {
    check_after("", "docs/ports.md");
}

#[test]
fn the_page_on_announcements_is_as_it_says() {
    check_after(&(A_BOUND_APP.to_owned() + &publish()), "docs/announcements.md");
}

/// The page on a source, where developers' commands are typed too.
fn source(name: &str) -> (String, String) {
    let document = format!("docs/sources/{name}.md");
    let typed = |line: &str| match line.strip_prefix("    cf ") {
        Some(command) => format!("```console\n$ cf {command}\n```\n"),
        None => format!("{line}\n"),
    };
    let text = read(&document).lines().map(typed).collect();
    (document, text)
}

/// The first command of the page on sources, by which all others play who announces.
fn publish() -> String {
    steps(&source("README").1).swap_remove(0).command
}

/// Runs a page on a source, with the configuration that it shows.
fn check_source(name: &str) {
    let (document, text) = source(name);
    let shown = text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    let config = shown.map(|part| format!("cat >> harbor.toml <<END\n{part}END\n")).collect::<String>();
    let before = format!("app={APP} id={INSTANCE}\n{A_PLATFORM}{config}{SERVE}{}", publish());
    check(&before, &document, &steps(&text));
}

#[test]
fn the_page_on_sources_is_as_it_says() {
    check_source("README");
}

#[test]
fn the_page_on_diego_is_as_it_says() {
    check_source("diego");
}

#[test]
fn the_page_on_containers_is_as_it_says() {
    check_source("container");
}

#[test]
fn the_page_on_deas_is_as_it_says() {
    check_source("dea");
}

#[test]
fn the_page_on_route_registrar_is_as_it_says() {
    check_source("route-registrar");
}

#[test]
fn the_page_on_trusted_networks_is_as_it_says() {
    check_source("trusted-network");
}

#[test]
fn the_pages_on_sources_show_messages_that_are_on_file() {
    let on_file = announcements::names().into_iter().map(|name| {
        let (_, subject) = announcements::published(&name);
        (subject.to_owned(), announcements::read(&name))
    });
    let on_file = on_file.collect::<BTreeSet<_>>();
    for page in fs::read_dir(root().join("docs/sources")).unwrap() {
        let (document, text) = source(page.unwrap().path().file_stem().unwrap().to_str().unwrap());
        let commands = steps(&text).into_iter().map(|step| step.command);
        let published = commands.filter_map(|command| {
            let (subject, message) = command.strip_prefix("publish ")?.split_once(" <<END\n")?;
            Some((subject.to_owned(), message.strip_suffix("END\n")?.replace('\n', "")))
        });
        let published = published.collect::<Vec<_>>();
        assert!(!published.is_empty(), "{document} shows no message");
        for message in published {
            assert!(on_file.contains(&message), "{document} shows what is not on file: {message:?}");
        }
    }
}

#[test]
fn the_page_on_the_sidecar_is_as_it_says() {
    check_after(&[A_BOUND_APP, IN_A_CONTAINER].concat(), "docs/sidecar.md");
}

#[test]
fn the_page_on_the_sidecar_lists_every_option() {
    let help = Command::new(env!("CARGO_BIN_EXE_harbor")).args(["announce", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let options = help.lines().filter_map(|line| line.strip_prefix("      --")?.split(' ').next());
    // Of every command: the page is not about them.
    let options = options.filter(|option| !["config", "help"].contains(option)).map(|option| format!("--{option}"));
    let variables = help.lines().filter_map(|line| line.trim().strip_prefix("[env: ")?.split([']', '=']).next());
    let there = options.chain(variables.filter(|name| *name != "HARBOR_CONFIG").map(str::to_owned));
    let listed = rows("docs/sidecar.md", "## Options").into_iter().flat_map(|row| words(&row[0]));
    let listed = listed.map(|word| word.split(' ').next().unwrap_or_default().to_owned());
    // It holds the secret itself, so it is not the variable of an option.
    let listed = listed.filter(|word| word != "HARBOR_ANNOUNCE_TOKEN").collect::<BTreeSet<_>>();
    assert_eq!(listed, there.collect::<BTreeSet<_>>());
}

/// The words in backquotes of a cell of a table.
pub fn words(cell: &str) -> BTreeSet<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The rows of the tables under a heading.
pub fn rows(document: &str, heading: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(document)).unwrap();
    let body = text.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading} in {document}")).1;
    let lines = body.lines().take_while(|line| !line.starts_with("## ")).filter(|line| line.starts_with("| `"));
    lines.map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// What a scrape shows of one metric.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Metric {
    name: String,
    kind: String,
    labels: BTreeSet<String>,
}

/// All metrics of a scrape, and all pairs of a label and its value that they have.
fn scraped(text: &str) -> (BTreeSet<Metric>, BTreeSet<(String, String, String)>) {
    let (mut metrics, mut values) = (BTreeSet::new(), BTreeSet::new());
    let mut described: Option<Metric> = None;
    for line in text.lines() {
        if let Some((family, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            metrics.extend(described.take());
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            let (name, kind) = (format!("{family}{suffix}"), kind.to_owned());
            described = Some(Metric { name, kind, labels: BTreeSet::new() });
        } else if let (Some(metric), false) = (&mut described, line.starts_with('#')) {
            let labels =
                line.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(labels, _)| labels);
            for (label, value) in
                labels.split(',').filter_map(|pair| pair.split_once('=')).filter(|pair| pair.0 != "le")
            {
                metric.labels.insert(label.to_owned());
                values.insert((metric.name.clone(), label.to_owned(), value.trim_matches('"').to_owned()));
            }
        }
    }
    metrics.extend(described);
    (metrics, values)
}

#[tokio::test]
async fn the_page_on_metrics_lists_what_a_node_shows() {
    let harbor = Site::new("31900-31901", "").serve().await;
    assert_eq!(harbor.broker().get("/v2/catalog").await.status, 200);
    provision(&harbor, "one", PLAN_BOTH).await;
    let scrape = async |path| {
        let text = String::from_utf8(harbor.admin().get(path).await.body.to_vec()).unwrap();
        let (metrics, values) = scraped(&text);
        assert_eq!(metrics.len(), text.matches("# TYPE ").count(), "a metric is shown twice");
        assert_eq!(metrics.len(), text.matches("# HELP ").count(), "each says what it is");
        for Metric { name, kind, .. } in &metrics {
            assert_eq!(name.matches("_total").count(), usize::from(kind == "counter"), "{name}");
            for (part, unit) in [("bytes", "bytes"), ("seconds", "seconds"), ("duration", "seconds")] {
                let (stem, told) = (name.trim_end_matches("_total"), format!("# UNIT {name} {unit}"));
                let told = told.replace("_total ", " ");
                assert!(!name.contains(part) || stem.ends_with(unit) && text.contains(&told), "{name} wants {told}");
            }
        }
        (metrics, values)
    };
    let (metrics, values) = scrape("/metrics").await;
    let listed = |heading| {
        let metric = |row: Vec<String>| Metric {
            name: row[0].trim_matches([' ', '`']).to_owned(),
            kind: row[1].clone(),
            labels: words(&row[2]),
        };
        rows("docs/metrics.md", heading).into_iter().map(metric).collect::<BTreeSet<_>>()
    };
    assert_eq!(listed("## All of them"), metrics);
    let of_instances = listed("## Of each service instance").into_iter().map(|mut metric| {
        metric.labels.extend(["service_instance", "pool", "port"].map(str::to_owned));
        metric
    });
    assert_eq!(of_instances.collect::<BTreeSet<_>>(), scrape("/metrics/instances").await.0);

    let reasons = |of_announcements: bool| {
        let of = values
            .iter()
            .filter(move |(metric, label, _)| label == "reason" && metric.contains("announcement") == of_announcements);
        of.map(|(_, _, reason)| reason.clone()).collect::<BTreeSet<_>>()
    };
    let explained =
        rows("docs/metrics.md", "## Reasons").iter().flat_map(|row| words(&row[0])).collect::<BTreeSet<_>>();
    assert_eq!(explained, reasons(false));
    let announcements = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/announcements.md")).unwrap();
    let unexplained = reasons(true).into_iter().filter(|reason| !announcements.contains(&format!("`{reason}`")));
    assert_eq!(unexplained.collect::<Vec<_>>(), Vec::<String>::new());
    assert!(harbor.terminate().success());
}

#[test]
fn the_unit_fits_the_example_and_the_defaults() {
    let unit = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/systemd/harbor.service")).unwrap();
    let set = |key: &str| {
        let mut values = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        values.next().unwrap_or_else(|| panic!("the unit has no {key}")).to_owned()
    };
    let limits = ForwarderLimits::default();
    let drained = limits.drain_wait + limits.drain_timeout + http::Limits::default().shutdown_grace;
    let patience = Duration::from_secs(set("TimeoutStopSec").trim_end_matches('s').parse().unwrap());
    assert!(patience > drained, "{patience:?} is not enough for {drained:?}");

    let example = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/harbor.toml")).unwrap();
    let example = example.replace("# directory", "directory");
    let sources =
        config::Sources { file: None, variables: Vec::new(), settings: Vec::new(), own_address: [127, 0, 0, 1].into() };
    let config = config::check(&example, Some("harbor.toml"), &sources).unwrap();
    assert_eq!(config.node.data_dir, Path::new("/var/lib").join(set("StateDirectory")));
    assert_eq!(config.log.directory, Some(Path::new("/var/log").join(set("LogsDirectory"))));
    assert!(set("ExecStart").ends_with(" --config /etc/harbor/harbor.toml"));
}
