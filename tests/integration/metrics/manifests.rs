//! `manifests/grafana` and `manifests/prometheus` against a running node: what they ask for is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write as _},
    path::Path,
    process::Command,
};

use serde_json::Value;

use super::{PLAN_BOTH, provision, scrape};
use crate::support::harbor::Site;

/// Functions, aggregations and words of PromQL that are used; a name that is none of these is a metric or a label.
const WORDS: &[&str] = &[
    "and",
    "by",
    "changes",
    "count",
    "histogram_quantile",
    "ignoring",
    "increase",
    "label_values",
    "max",
    "max_over_time",
    "or",
    "rate",
    "sum",
    "time",
    "topk",
    "without",
];

/// Words that are followed by labels in parentheses.
const GROUPING: &[&str] = &["by", "ignoring", "without"];

/// What Prometheus adds.
const OF_PROMETHEUS: &[&str] = &["job", "instance", "le", "__name__"];

/// Labels all of whose words are shown from the start.
const CLOSED: &[&str] = &["state", "reason", "direction", "transport", "change"];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What an expression asks for.
#[derive(Debug, Default)]
struct Asked {
    /// Metrics, and which labels of each are compared with which text.
    metrics: Vec<(String, Vec<(String, String)>)>,
    /// Labels that are grouped by.
    grouped_by: BTreeSet<String>,
}

/// Reads an expression as far as names go: whatever is not known to be something else is taken for a metric.
fn asked(expression: &str) -> Asked {
    let mut asked = Asked::default();
    let mut rest = expression;
    let mut grouping = false;
    while let Some(first) = rest.chars().next() {
        let length = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':').unwrap_or(rest.len());
        if length == 0 || first.is_ascii_digit() {
            match first {
                '{' => {
                    let (inside, after) = matchers(&rest[1..]);
                    asked.metrics.last_mut().expect("a metric comes before its labels").1 = inside;
                    rest = after;
                    continue;
                }
                // A time range.
                '[' => rest = &rest[rest.find(']').expect("it is closed")..],
                '"' => panic!("text outside of labels: {expression}"),
                _ => {}
            }
            grouping &= first != ')';
            rest = &rest[length.max(first.len_utf8())..];
            continue;
        }
        let (name, after) = rest.split_at(length);
        rest = after;
        if grouping {
            asked.grouped_by.insert(name.into());
        } else if WORDS.contains(&name) {
            grouping = GROUPING.contains(&name);
        } else {
            asked.metrics.push((name.into(), Vec::new()));
        }
    }
    asked
}

/// Labels and what they are compared with, up to the closing brace, and what comes after it.
fn matchers(mut text: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(after) = text.strip_prefix('}') {
            return (found, after);
        }
        let (label, after) = text.split_once(['=', '!']).expect("a label is compared");
        let (_, after) = after.split_once('"').expect("with a text");
        let (value, after) = after.split_once('"').expect("that ends");
        found.push((label.into(), value.into()));
        text = after;
    }
}

#[test]
fn the_reader_of_expressions_takes_nothing_for_what_it_is_not() {
    let found =
        asked(r#"histogram_quantile(0.99, sum by (le, pool) (rate(a_bucket{x="}",y=~"p|q"}[5m]))) > 1e3 or b:c == 0"#);
    let pair = |label: &str, value: &str| (label.to_owned(), value.to_owned());
    let expected = [("a_bucket".to_owned(), vec![pair("x", "}"), pair("y", "p|q")]), ("b:c".to_owned(), Vec::new())];
    assert_eq!(found.metrics, expected);
    assert_eq!(found.grouped_by, ["le", "pool"].map(String::from).into());
}

/// Metrics of both scrapes, and their labels with the words that they have.
async fn shown() -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let harbor = Site::new("18830-18831", "").serve().await;
    assert_eq!(harbor.broker().get("/v2/catalog").await.status, 200);
    provision(&harbor, "one", PLAN_BOTH).await;
    let mut shown = BTreeMap::<String, BTreeMap<_, BTreeSet<_>>>::new();
    for path in ["/metrics", "/metrics/instances"] {
        for series in scrape(&harbor, path).await.into_keys() {
            let (name, labels) = series.split_once('{').unwrap_or((&series, "}"));
            let of_it = shown.entry(name.to_owned()).or_default();
            for (label, value) in matchers(labels).0 {
                of_it.entry(label).or_default().insert(value);
            }
        }
    }
    assert!(harbor.terminate().success());
    shown.insert("up".into(), BTreeMap::new());
    shown
}

/// All expressions of the dashboard, with the queries of its variables.
fn of_the_dashboard() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("manifests/grafana/harbor.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let mut expressions = targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    for query in variables.iter().filter(|variable| variable["type"] == "query") {
        expressions.push(query["query"]["query"].as_str().unwrap().to_owned());
    }
    expressions
}

/// The alerts: name, expression, and the whole.
fn alerts() -> Vec<(String, String, Value)> {
    let rules: Value = serde_saphyr::from_str(&read("manifests/prometheus/harbor.rules.yml")).unwrap();
    let groups = rules["groups"].as_array().unwrap().iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().unwrap().clone());
    let text = |rule: &Value, key: &str| rule[key].as_str().unwrap_or_else(|| panic!("no {key}: {rule}")).to_owned();
    rules.map(|rule| (text(&rule, "alert"), text(&rule, "expr"), rule)).collect()
}

#[tokio::test]
async fn dashboard_and_alerts_ask_for_what_a_node_shows() {
    let shown = shown().await;
    let mut wrong = Vec::new();
    let alerts = alerts().into_iter().map(|(_, expression, _)| expression);
    let expressions = of_the_dashboard().into_iter().chain(alerts).collect::<Vec<_>>();
    assert!(expressions.len() > 80, "{}", expressions.len());
    for expression in &expressions {
        // `label_values(metric, label)` is Grafana's.
        let (expression, label) =
            match expression.strip_prefix("label_values(").map(|rest| rest.rsplit_once(", ").unwrap()) {
                Some((metric, label)) => (metric, Some(label.trim_end_matches(')').to_owned())),
                None => (expression.as_str(), None),
            };
        let Asked { metrics, grouped_by } = asked(expression);
        let mut labels = OF_PROMETHEUS.iter().copied().collect::<BTreeSet<_>>();
        for (metric, compared) in &metrics {
            let Some(has) = shown.get(metric) else {
                wrong.push(format!("there is no {metric}: {expression}"));
                continue;
            };
            labels.extend(has.keys().map(String::as_str));
            for (label, value) in compared.iter().filter(|(label, _)| !OF_PROMETHEUS.contains(&label.as_str())) {
                let Some(words) = has.get(label) else {
                    wrong.push(format!("{metric} has no {label}: {expression}"));
                    continue;
                };
                let unknown = value.split('|').filter(|word| !words.contains(*word));
                if CLOSED.contains(&label.as_str()) && unknown.count() > 0 {
                    wrong.push(format!("{label} of {metric} is never {value}: {expression}"));
                }
            }
        }
        let grouped_by = grouped_by.iter().chain(&label).filter(|label| !labels.contains(label.as_str()));
        wrong.extend(grouped_by.map(|label| format!("nothing has {label}: {expression}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_dashboard_can_be_imported() {
    let dashboard: Value = serde_json::from_str(&read("manifests/grafana/harbor.json")).unwrap();
    assert_eq!((&dashboard["id"], &dashboard["uid"]), (&Value::Null, &"harbor".into()));
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 39);
    let names = |list: &Value| list.as_array().unwrap().iter().map(|one| one["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&dashboard["templating"]["list"]), ["datasource", "node", "pool", "service_instance"]);
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(x < 24 && taken.insert((x, y)), "{} stands on another", panel["title"]);
            }
        }
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
            for target in panel["targets"].as_array().unwrap() {
                assert_eq!(target["datasource"]["uid"], "${datasource}");
                let expression = target["expr"].as_str().unwrap();
                assert!(expression.contains(r#"instance=~"$node""#), "{target}");
                // As rarely as that job is scraped: a rate over less than a few scrapes is none.
                let is_rare = expression.contains(r#"job="harbor-instances""#);
                assert_eq!(target["interval"] == "1m", is_rare, "{target}");
            }
        }
    }
}

#[test]
fn each_alert_says_what_it_is_and_what_to_do_and_the_page_lists_it() {
    let mut names = BTreeSet::new();
    for (name, _, rule) in alerts() {
        for key in ["summary", "description"] {
            assert!(rule["annotations"][key].as_str().is_some_and(|text| !text.is_empty()), "{name} has no {key}");
        }
        assert!(["critical", "warning"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{name}");
        assert!(rule["for"].is_string(), "{name} has no `for`");
        assert!(names.insert(name.clone()), "{name} is there twice");
    }
    let page = read("docs/metrics.md");
    let section = page.split_once("\n## What to be woken by\n").unwrap().1;
    let listed = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    assert_eq!(listed.map(str::to_owned).collect::<BTreeSet<_>>(), names);
}

#[test]
fn promtool_finds_nothing_wrong() {
    if Command::new("promtool").arg("--version").output().is_err() {
        // Not captured as a print would be.
        writeln!(io::stderr(), "skipped: there is no promtool; Debian's package prometheus has it").unwrap();
        return;
    }
    for arguments in [
        &["check", "rules", "manifests/prometheus/harbor.rules.yml"][..],
        &["check", "config", "--syntax-only", "manifests/prometheus/scrape.yml"],
        &["test", "rules", "tests/fixtures/prometheus/harbor.rules.test.yml"],
    ] {
        let output = Command::new("promtool").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        let told = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&told));
    }
}
