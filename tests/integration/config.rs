//! The configuration as it is shipped and documented.

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use harbor::config::{self, Config, ConfigError, Sources};

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
    assert_eq!(config.warnings, Vec::<String>::new());
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
fn the_documentation_lists_every_key_once() {
    let listed: Vec<String> = DOCUMENTATION
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|rest| rest.split_once('`'))
        .map(|(key, _)| key.to_owned())
        .collect();
    let distinct: BTreeSet<_> = listed.iter().cloned().collect();
    assert_eq!(distinct.len(), listed.len(), "a key is listed twice");
    assert_eq!(distinct, config::keys());
}
