//! The configuration as it is shipped and documented.

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use harbor::config::{self, Config, ConfigError, Default, KEYS, PortsFile, Sources};

const EXAMPLE: &str = include_str!("../../manifests/harbor.toml");
const DOCUMENTATION: &str = include_str!("../../docs/configuration.md");

fn check(text: &str) -> Result<Config, ConfigError> {
    let sources =
        Sources { file: None, variables: Vec::new(), settings: Vec::new(), own_address: IpAddr::from([127, 0, 0, 1]) };
    config::check(text, Some("harbor.toml"), &sources)
}

/// The example with every key that is commented out set. Files that it names are not there: they become the example
/// itself, which can be read.
fn example_with_every_key() -> String {
    let this_file = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/harbor.toml");
    let mut text = String::new();
    for line in EXAMPLE.lines() {
        let line = match line.strip_prefix("# ") {
            Some(rest) if rest.starts_with('[') || rest.contains(" = ") => rest,
            _ => line,
        };
        for (index, part) in line.split("\"/etc/harbor/").enumerate() {
            if index == 0 {
                text.push_str(part);
            } else {
                let (_, rest) = part.split_once('"').expect("a path ends");
                text.push_str(&format!("{this_file:?}{rest}"));
            }
        }
        text.push('\n');
    }
    text
}

#[test]
fn the_example_is_a_configuration() {
    let config = check(EXAMPLE).expect("the example is valid");
    assert_eq!(config.node.pools.len(), 1);
    let warnings = config.warnings.iter().map(|warning| warning.split(':').next().unwrap_or_default());
    let own_password = "broker.password is that of the example, which everybody knows";
    assert_eq!(warnings.collect::<Vec<_>>(), [own_password]);
}

#[test]
fn the_example_shows_every_key_with_a_value_that_is_valid() {
    let text = example_with_every_key();
    // Keys that exclude each other are all shown: those are the only problems.
    let problems = check(&text).expect_err("the example shows alternatives").to_string();
    let unexpected: Vec<_> = problems.lines().filter(|line| !line.contains("this stands beside")).collect();
    assert_eq!(unexpected, Vec::<&str>::new());

    let mut shown = BTreeSet::new();
    let mut section = String::new();
    for line in text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_matches(['[', ']']).replace(".games", ".NAME").replace(".big", ".NAME");
        } else if let Some((key, value)) = line.split_once(" = ") {
            match value.strip_prefix("{ ") {
                None => _ = shown.insert(format!("{section}.{key}")),
                Some(inline) => shown.extend(
                    inline
                        .split(", ")
                        .filter_map(|pair| pair.split_once(" = "))
                        .map(|(nested, _)| format!("{section}.{key}.{nested}")),
                ),
            }
        }
    }
    assert_eq!(shown, config::keys());
}

#[test]
fn the_documentation_shows_the_table_of_keys() {
    let is_row = |line: &&str| line.starts_with("| `");
    let rows = KEYS.iter().map(config::Key::row).collect::<Vec<_>>();
    if std::env::var_os("HARBOR_RENEW").is_some() {
        let mut next = rows.iter();
        let line =
            |line| if is_row(&line) { next.next().expect("there is a row for it").clone() } else { line.to_owned() };
        let text = DOCUMENTATION.lines().map(line).collect::<Vec<_>>().join("\n") + "\n";
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md"), text).unwrap();
        return;
    }
    let shown = DOCUMENTATION.lines().filter(is_row).collect::<Vec<_>>();
    assert_eq!(shown, rows, "HARBOR_RENEW=1 writes the table anew");
}

#[test]
fn the_table_has_every_key_that_is_read_once() {
    let names = KEYS.iter().map(|key| key.name.to_owned());
    assert_eq!(names.clone().collect::<BTreeSet<_>>(), config::keys());
    assert_eq!(names.count(), config::keys().len(), "a key stands twice");
}

/// What the keys of the table are where nothing is written, written down: it has to be the same configuration.
#[test]
fn the_defaults_of_the_table_are_those_that_hold() {
    let mut sections: Vec<(String, String)> = Vec::new();
    for key in KEYS {
        let (section, name) = key.parts();
        let line = match (key.default, key.name) {
            (Default::Value(value), _) => format!("{name} = {value}\n"),
            (Default::Needed, "broker.password") => "password = \"secret\"\n".into(),
            _ => continue,
        };
        let section = section.replace("NAME", "named");
        match sections.iter_mut().find(|(known, _)| *known == section) {
            Some((_, text)) => text.push_str(&line),
            None => sections.push((section, line)),
        }
    }
    let needed = "[pools.named]\nport_range = \"50000-50010\"\nhost = \"10.0.0.5\"\n";
    let bare = format!("[broker]\npassword = \"secret\"\n{needed}[plans.named]\n");
    let written = sections.iter().map(|(section, text)| match section.as_str() {
        "pools.named" => format!("{needed}{text}"),
        section => format!("[{section}]\n{text}"),
    });
    let written = written.collect::<String>();
    assert_eq!(check(&written).unwrap(), check(&bare).unwrap(), "{written}");
}

#[test]
fn the_example_of_a_registry_is_the_infrastructure_block() {
    let text = include_str!("../../manifests/ports.toml");
    // Those that are commented out are examples of the other forms.
    let every_form = text.lines().map(|line| match line.strip_prefix("# ") {
        Some(rest) if rest.contains(" = ") => format!("{rest}\n"),
        _ => format!("{line}\n"),
    });
    for (text, more) in [(text.to_owned(), 0), (every_form.collect(), 2)] {
        let resolved = PortsFile::check(&text, "ports.toml").expect("the example is valid").resolve(None);
        assert_eq!(resolved.problems, []);
        let ranges = resolved.ranges.iter().map(|(name, range, _)| format!("{name} {range}"));
        assert_eq!(ranges.collect::<Vec<_>>(), ["infrastructure 25000-25999"]);
        let claims = resolved.claims.iter().map(|(claim, _)| format!("{} {}", claim.name, claim.block));
        let claims = claims.collect::<BTreeSet<_>>();
        assert_eq!(claims.len(), 5 + more);
        let first = [
            "ceph-rgw 25080 (both)",
            "https 25443 (both)",
            "metrics 25090-25099 (both)",
            "control-plane 25500-25519 (both)",
            "spare 25550-25599 (both)",
        ];
        assert!(first.iter().all(|claim| claims.contains(*claim)), "{claims:?}");
    }
}
