//! What the code and the documents promise about themselves, held by tests: there are no checks elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The modules in dependency order, and what each may import. `telemetry` is open to all but `model`.
/// The table in `ARCHITECTURE.md` shows the same.
const MODULES: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("telemetry", &[]),
    ("http", &[]),
    ("host", &["model"]),
    ("config", &["model"]),
    ("store", &["model"]),
    ("backends", &["model"]),
    ("cluster", &["model", "store"]),
    ("control", &["model", "store"]),
    ("discovery", &["model", "http", "backends"]),
    ("announcer", &["model", "discovery"]),
    ("health", &["model", "backends"]),
    ("forwarder", &["model", "backends"]),
    ("broker", &["model", "http", "control"]),
    ("admin", &["model", "http", "backends", "control"]),
    ("app", &[EVERYTHING_ABOVE]),
    ("cli", &["model", "host", "config", "announcer", "admin::wire", "app"]),
];

/// In [`MODULES`]: every module before this one.
const EVERYTHING_ABOVE: &str = "all above";

/// Crates that stay behind one wall: the modules that may name them.
const WALLED_CRATES: &[(&str, &[&str])] = &[
    ("anyhow", &["app", "cli", "main"]),
    ("async_nats", &["announcer", "discovery"]),
    ("axum", &["admin", "app", "broker", "config", "discovery", "http"]),
    ("clap", &["cli"]),
    ("jsonschema", &["broker"]),
    ("sqlx", &["store"]),
    (
        "tokio",
        &[
            "admin",
            "announcer",
            "app",
            "broker",
            "cli",
            "cluster",
            "control",
            "discovery",
            "health",
            "http",
            "main",
            "store",
            "telemetry",
        ],
    ),
    ("toml", &["config"]),
];

/// What the rules do without: I/O, clocks, threads, formats, async.
const NOT_IN_MODEL: &[&str] = &[
    "async",
    "await",
    "serde",
    "serde_json",
    "tokio",
    "tracing",
    "SystemTime",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "UnixStream",
    "env",
    "fs",
    "process",
    "thread",
];

/// The only files that may hold unsafe code, each audited and with its reasons.
const UNSAFE_FILES: &[&str] = &["src/forwarder/sockets/raw.rs"];

/// A file longer than this has more than one job.
const MAX_LINES: usize = 900;

/// The only files of the tests that go by the clock: one looks again and again until its patience ends; in the other, time
/// passes that is part of what is tested.
const MAY_SLEEP: [&str; 2] = ["tests/integration/support/eventually.rs", "tests/histories/time.rs"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every file under `folder` with one of these extensions, relative to the root, sorted.
fn files(folder: &str, extensions: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.expect("the folder can be read").path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|x| extensions.iter().any(|extension| x == *extension)) {
                found.push(relative(&path));
            }
        }
    }
    found.sort();
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).expect("it is under the root").to_str().expect("our names are UTF-8").to_owned()
}

fn rust_files() -> Vec<String> {
    ["src", "tests", "bench", "examples"].iter().flat_map(|folder| files(folder, &["rs"])).collect()
}

fn documents() -> Vec<String> {
    let mut documents = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"].map(String::from).to_vec();
    documents.extend(files("docs", &["md"]));
    documents
}

fn scripts() -> Vec<String> {
    [".ci", "script", "manifests/keepalived"]
        .iter()
        .flat_map(|folder| fs::read_dir(root().join(folder)).expect("the folder is there"))
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| path.is_file() && path.extension().is_none())
        .map(|path| relative(&path))
        .collect()
}

#[track_caller]
fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

/// The words and signs of a source file, without comments and literals.
fn tokens(source: &str) -> Vec<String> {
    let chars = source.chars().collect::<Vec<_>>();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut tokens, mut i) = (Vec::new(), 0);
    while i < chars.len() {
        if at(i) == '/' && at(i + 1) == '/' {
            while i < chars.len() && at(i) != '\n' {
                i += 1;
            }
        } else if at(i) == '/' && at(i + 1) == '*' {
            let mut open = 0_usize;
            loop {
                match (at(i), at(i + 1)) {
                    ('/', '*') => (open, i) = (open + 1, i + 2),
                    ('*', '/') => (open, i) = (open - 1, i + 2),
                    _ => i += 1,
                }
                if open == 0 || i >= chars.len() {
                    break;
                }
            }
        } else if at(i) == '"' {
            i = after_text(&chars, i);
        } else if at(i) == '\'' {
            // A literal closes after one character or an escape; a lifetime does not.
            i += match (at(i + 1), at(i + 2)) {
                ('\\', _) => (3..).find(|&n| at(i + n) == '\'' || i + n >= chars.len()).unwrap_or(3) + 1,
                (_, '\'') => 3,
                _ => 1,
            };
        } else if word(at(i)) {
            let start = i;
            while word(at(i)) {
                i += 1;
            }
            let text = chars[start..i].iter().collect::<String>();
            match at(i) {
                '"' | '#' if ["r", "br", "cr"].contains(&text.as_str()) => i = after_raw_text(&chars, i),
                '"' if ["b", "c"].contains(&text.as_str()) => i = after_text(&chars, i),
                _ => tokens.push(text),
            }
        } else if at(i) == ':' && at(i + 1) == ':' {
            tokens.push("::".into());
            i += 2;
        } else {
            if !at(i).is_whitespace() {
                tokens.push(at(i).to_string());
            }
            i += 1;
        }
    }
    tokens
}

/// The place after the text literal whose opening quote is at `i`.
fn after_text(chars: &[char], mut i: usize) -> usize {
    i += 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// The place after the raw text literal whose hashes or opening quote are at `i`; `i` itself when it is none (`r#type`).
fn after_raw_text(chars: &[char], i: usize) -> usize {
    let hashes = chars[i..].iter().take_while(|c| **c == '#').count();
    if chars.get(i + hashes) != Some(&'"') {
        return i + hashes;
    }
    let mut end = vec!['"'];
    end.extend(std::iter::repeat_n('#', hashes));
    let body = i + hashes + 1;
    (body..chars.len()).find(|&n| chars[n..].starts_with(&end)).map_or(chars.len(), |n| n + end.len())
}

/// The paths that a file takes from its crate's root, each as far as its second segment: `crate::store`,
/// `crate::admin::wire`. Chains of `super` that lead up to the root count, in inline modules too.
fn paths_from_the_root(path: &str, tokens: &[String]) -> BTreeSet<String> {
    let depth = Path::new(path).components().count() - 1;
    let mut found = BTreeSet::new();
    // For every open brace: whether it opened an inline module.
    let mut braces = Vec::new();
    let token = |i: usize| tokens.get(i).map_or("", String::as_str);
    let mut i = 0;
    while i < tokens.len() {
        match token(i) {
            "{" => braces.push(i >= 2 && token(i - 2) == "mod"),
            "}" => drop(braces.pop()),
            "crate" if token(i + 1) == "::" => heads(tokens, i + 2, &mut found),
            "super" if i == 0 || token(i - 1) != "::" => {
                let supers = (0..).take_while(|n| token(i + 2 * n) == "super" && token(i + 2 * n + 1) == "::").count();
                let inline = braces.iter().filter(|module| **module).count();
                if supers >= depth + inline {
                    heads(tokens, i + 2 * supers, &mut found);
                }
            }
            _ => {}
        }
        i += 1;
    }
    found
}

/// The first two segments of the path, or of each path of the group, that begins at `i`.
fn heads(tokens: &[String], i: usize, found: &mut BTreeSet<String>) {
    let token = |i: usize| tokens.get(i).map_or("", String::as_str);
    let one = |i: usize| match token(i + 1) {
        "::" if token(i + 2) != "{" => format!("{}::{}", token(i), token(i + 2)),
        _ => token(i).to_owned(),
    };
    if token(i) != "{" {
        found.insert(one(i));
        return;
    }
    let (mut open, mut n) = (0, i);
    loop {
        match token(n) {
            "" => break,
            "{" => open += 1,
            "}" => open -= 1,
            _ => {}
        }
        if open == 0 {
            break;
        }
        if open == 1 && matches!(token(n), "{" | ",") && !matches!(token(n + 1), "}" | "{") {
            found.insert(one(n + 1));
        }
        n += 1;
    }
}

/// The module of a source file: `src/store/sql.rs` is of `store`, `src/main.rs` of `main`.
fn module_of(path: &str) -> &str {
    let rest = path.strip_prefix("src/").expect("a source file");
    rest.split(['/', '.']).next().expect("split gives at least one part")
}

fn allowed(module: &str) -> BTreeSet<&'static str> {
    let Some(place) = MODULES.iter().position(|(name, _)| *name == module) else { return BTreeSet::new() };
    let mut allowed = MODULES[place].1.iter().copied().collect::<BTreeSet<_>>();
    if allowed.remove(EVERYTHING_ABOVE) {
        allowed.extend(MODULES[..place].iter().map(|(name, _)| *name));
    }
    if module != "model" {
        allowed.insert("telemetry");
    }
    allowed.insert(MODULES[place].0);
    allowed
}

#[test]
fn the_reader_of_sources_knows_every_way_to_name_a_module() {
    fn check(path: &str, source: &str, expect: &[&str]) {
        let found = paths_from_the_root(path, &tokens(source));
        assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), expect, "{source}");
    }
    check("src/a.rs", "use crate::store::Store;", &["store::Store"]);
    check("src/a.rs", "use crate::store;", &["store"]);
    check("src/a.rs", "use crate::{http, model::{Port, id::Id}, store::{self, Store}};", &["http", "model", "store"]);
    check("src/a.rs", "use crate::{model::{\n a, b,\n}, };", &["model"]);
    check("src/a.rs", "fn f() -> crate::store::Fault { crate::host::read() }", &["host::read", "store::Fault"]);
    check("src/a.rs", "pub(crate) fn f() {} // crate::store\n/* crate::http */ const A: &str = \"crate::host\";", &[]);
    check("src/a.rs", "const A: &str = r#\"\" crate::host\"#; use crate::model;", &["model"]);
    check("src/a.rs", "const A: (char, char) = ('\"', '\\''); use crate::model; fn f<'a>(_: &'a str) {}", &["model"]);
    check("src/a.rs", "use super::store;", &["store"]);
    check("src/a/b.rs", "use super::c::D;", &[]);
    check("src/a/b.rs", "use super::super::store::D;", &["store::D"]);
    check("src/a.rs", "mod tests { use super::*; use super::super::host::x; }", &["host::x"]);
}

#[test]
fn modules_import_only_what_the_table_allows() {
    let mut found = Vec::new();
    for path in files("src", &["rs"]) {
        let module = module_of(&path).to_owned();
        if module == "lib" {
            continue;
        }
        let allowed = allowed(&module);
        for import in paths_from_the_root(&path, &tokens(&read(&path))) {
            let head = import.split("::").next().expect("split gives at least one part");
            if !allowed.contains(head) && !allowed.contains(import.as_str()) {
                found.push(format!("{path} imports {import}; {module} may import {allowed:?}"));
            }
        }
    }
    assert_none("imports against the table in ARCHITECTURE.md", &found);
}

#[test]
fn the_table_of_imports_has_no_circle() {
    for (place, (module, imports)) in MODULES.iter().enumerate() {
        for import in imports.iter().filter(|import| **import != EVERYTHING_ABOVE) {
            let head = import.split("::").next().expect("split gives at least one part");
            let above = MODULES[..place].iter().any(|(name, _)| *name == head);
            assert!(above, "{module} may import {import}, which does not stand above it");
        }
    }
}

#[test]
fn the_library_lists_its_modules_in_the_order_of_the_table() {
    let lib = read("src/lib.rs");
    let listed = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect::<Vec<_>>();
    assert_eq!(listed, MODULES.iter().map(|(name, _)| *name).collect::<Vec<_>>());
}

#[test]
fn the_architecture_shows_the_table_of_imports() {
    let document = read("ARCHITECTURE.md");
    let shown = rows(section(&document, "## Modules"));
    let expected = MODULES.iter().map(|(module, imports)| {
        let imports = match imports {
            [] => "nothing".to_owned(),
            [EVERYTHING_ABOVE] => EVERYTHING_ABOVE.to_owned(),
            imports => imports.iter().map(|import| format!("`{import}`")).collect::<Vec<_>>().join(", "),
        };
        (format!("`{module}`"), imports)
    });
    let shown = shown.into_iter().map(|row| (row[0].to_owned(), row[2].to_owned()));
    assert_eq!(shown.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
}

/// What stands under a heading, up to the next one of the same level.
fn section<'a>(document: &'a str, heading: &str) -> &'a str {
    let start = document.find(&format!("{heading}\n")).unwrap_or_else(|| panic!("no heading {heading:?}"));
    let body = &document[start + heading.len()..];
    &body[..body.find("\n## ").unwrap_or(body.len())]
}

/// The rows of the first table, without its head.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let lines = text.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    lines.skip(2).map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

#[test]
fn crates_stay_behind_their_walls() {
    let mut found = Vec::new();
    for path in files("src", &["rs"]) {
        let tokens = tokens(&read(&path));
        for (name, modules) in WALLED_CRATES {
            let named = tokens.windows(2).enumerate().any(|(i, pair)| {
                pair[0] == *name && pair[1] == "::" && (i == 0 || tokens[i - 1] != "::") || is_use(&tokens, i, name)
            });
            if named && !modules.contains(&module_of(&path)) {
                found.push(format!("{path} names {name}, which only {modules:?} may"));
            }
        }
    }
    assert_none("crates beyond their walls", &found);
}

/// `use name;` or `use name as …`.
fn is_use(tokens: &[String], i: usize, name: &str) -> bool {
    tokens[i] == "use" && tokens[i + 1] == name
}

#[test]
fn the_rules_know_no_io_no_clock_no_format_and_no_async() {
    let mut found = Vec::new();
    for path in files("src", &["rs"]).iter().filter(|path| module_of(path) == "model") {
        let tokens = tokens(&read(path));
        for word in NOT_IN_MODEL.iter().filter(|word| tokens.iter().any(|token| token == **word)) {
            found.push(format!("{path} says {word}"));
        }
        if tokens.windows(3).any(|t| t[0] == "Instant" && t[1] == "::" && t[2] == "now") {
            found.push(format!("{path} reads the clock"));
        }
    }
    assert_none("the model does more than decide", &found);
}

#[test]
fn unsafe_code_is_only_where_it_was_audited() {
    let mut found = rust_files();
    found.retain(|path| !UNSAFE_FILES.contains(&path.as_str()) && tokens(&read(path)).iter().any(|t| t == "unsafe"));
    assert_none("unsafe code outside of the audited files", &found);
}

#[test]
fn no_text_promises_to_be_finished_later() {
    // Put together here, so that this file does not find itself.
    let banned = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX"), concat!("previ", "ously")];
    let mut texts = rust_files();
    texts.extend(documents());
    texts.extend(scripts());
    texts.extend(files("script/lib", &["sh"]));
    texts.extend(files("migrations", &["sql"]));
    texts.extend(files("manifests", &["toml", "service", "conf", "cfg"]));
    let mut found = Vec::new();
    for path in texts {
        for (number, line) in read(&path).lines().enumerate() {
            let mut words = line.split(|c: char| !c.is_alphanumeric());
            if words.any(|word| banned.iter().any(|banned| word.eq_ignore_ascii_case(banned))) {
                found.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert_none("words that do not belong in a finished text", &found);
}

#[test]
fn modules_are_named_by_a_file_beside_their_folder() {
    let mut found = rust_files();
    found.retain(|path| path.ends_with("/mod.rs"));
    assert_none("mod.rs: use foo.rs beside foo/", &found);
}

#[test]
fn no_file_outgrows_its_job() {
    let lines = rust_files().into_iter().map(|path| (read(&path).lines().count(), path));
    let long = lines.filter(|(lines, _)| *lines > MAX_LINES).map(|(lines, path)| format!("{path}: {lines} lines"));
    assert_none(&format!("files over {MAX_LINES} lines"), &long.collect::<Vec<_>>());
}

#[test]
fn tests_wait_for_events_and_are_all_run() {
    let mut found = Vec::new();
    for path in files("tests", &["rs"]).into_iter().filter(|path| !MAY_SLEEP.contains(&path.as_str())) {
        let text = read(&path);
        if tokens(&text).windows(3).any(|t| ["thread::sleep", "time::sleep"].contains(&t.concat().as_str())) {
            found.push(format!("{path} sleeps: wait for the event with support/eventually.rs"));
        }
        let skipped = ["#[ignore", "#[should_panic"];
        for line in text.lines().map(str::trim).filter(|line| skipped.iter().any(|skipped| line.starts_with(skipped))) {
            // The one use: a part that a test runs in a process of its own.
            if line != "#[ignore = \"started by other tests\"]" {
                found.push(format!("{path} has {line}"));
            }
        }
    }
    assert_none("tests that sleep or do not run", &found);
}

#[test]
fn documents_point_only_at_files_that_exist() {
    let mut found = Vec::new();
    for path in documents() {
        let text = read(&path);
        let folder = root().join(&path).parent().map(PathBuf::from).expect("a file is in a folder");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().expect("split gives at least one part");
            if !target.is_empty() && !target.contains("://") && !folder.join(target).exists() {
                found.push(format!("{path} links to {link}"));
            }
        }
        for span in text.split('`').skip(1).step_by(2) {
            let ours =
                ["src/", "tests/", "docs/", "script/", "migrations/", "manifests/", "bench/", "examples/", ".ci/"];
            let plain = span.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
            if plain && ours.iter().any(|prefix| span.starts_with(prefix)) && !root().join(span).exists() {
                found.push(format!("{path} names {span}"));
            }
        }
    }
    assert_none("files that do not exist", &found);
}

#[test]
fn the_changelog_has_its_form() {
    let text = read("CHANGELOG.md");
    assert!(text.starts_with("# Changelog\n"), "CHANGELOG.md begins with its title");
    let manifest = manifest();
    let version = manifest["package"]["version"].as_str().expect("the package has a version");
    let mut releases = Vec::new();
    for line in text.lines() {
        if let Some(release) = line.strip_prefix("## ") {
            let dated = release.split_once(" - ").is_some_and(|(number, date)| {
                number.split('.').count() == 3
                    && date.len() == 10
                    && date.chars().all(|c| c.is_ascii_digit() || c == '-')
            });
            assert!(
                release == "Unreleased" || dated,
                "CHANGELOG.md: {line:?} is neither Unreleased nor 1.2.3 - 2026-01-31"
            );
            releases.push(release);
        }
        if let Some(kind) = line.strip_prefix("### ") {
            let kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"];
            assert!(kinds.contains(&kind), "CHANGELOG.md: {kind:?} is none of {kinds:?}");
        }
    }
    let first = releases.first().expect("CHANGELOG.md has an entry");
    assert!(*first == "Unreleased" || first.starts_with(version), "CHANGELOG.md begins with {first}, not {version}");
}

fn manifest() -> toml::Table {
    read("Cargo.toml").parse().expect("Cargo reads it too")
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest = manifest();
    let wanted = ["dependencies", "dev-dependencies"]
        .iter()
        .flat_map(|section| manifest[*section].as_table().expect("a section is a table").keys())
        .map(|name| format!("`{name}`"))
        .collect::<BTreeSet<_>>();
    let text = read("docs/dependencies.md");
    let mut reasons = BTreeMap::new();
    for row in ["## Built in", "## Only for tests"].iter().flat_map(|heading| rows(section(&text, heading))) {
        assert!(reasons.insert(row[0].to_owned(), row[1].to_owned()).is_none(), "{} is there twice", row[0]);
    }
    assert_eq!(reasons.keys().cloned().collect::<BTreeSet<_>>(), wanted, "docs/dependencies.md and Cargo.toml differ");
    let bench = read("bench/Cargo.toml").parse::<toml::Table>().expect("Cargo reads it too");
    let named = bench["dependencies"].as_table().expect("a section is a table").keys();
    let unexplained = named.filter(|name| *name != "harbor" && !reasons.contains_key(&format!("`{name}`")));
    assert_none(
        "dependencies of the benchmarks that docs/dependencies.md does not have",
        &unexplained.cloned().collect::<Vec<_>>(),
    );
    let bare = reasons.into_iter().filter(|(_, reason)| reason.is_empty()).map(|(name, _)| name).collect::<Vec<_>>();
    assert_none("dependencies without a reason", &bare);
}

#[test]
fn every_dependency_is_used() {
    let manifest = manifest();
    let names = |folders: &[&str]| {
        let paths = folders.iter().flat_map(|folder| files(folder, &["rs"]));
        paths.flat_map(|path| tokens(&read(&path))).collect::<BTreeSet<_>>()
    };
    let mut unused = Vec::new();
    for (section, named) in
        [("dependencies", names(&["src"])), ("dev-dependencies", names(&["src", "tests", "bench", "examples"]))]
    {
        let keys = manifest[section].as_table().expect("a section is a table").keys();
        unused.extend(keys.filter(|name| !named.contains(&name.replace('-', "_"))).cloned());
    }
    assert_none("dependencies that no source names", &unused);
}

#[test]
fn migrations_are_numbered_without_gaps() {
    for engine in fs::read_dir(root().join("migrations")).expect("the folder is there") {
        let engine = engine.expect("the folder can be read").path();
        for (place, path) in files(&relative(&engine), &["sql"]).iter().enumerate() {
            let name = path.rsplit('/').next().expect("split gives at least one part");
            let (number, rest) = name.split_once('_').unwrap_or((name, ""));
            assert_eq!(number, format!("{:04}", place + 1), "{path}");
            let words = rest.strip_suffix(".sql").is_some_and(|words| {
                !words.is_empty() && words.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            });
            assert!(words, "{path}: a migration is 0001_what_it_does.sql");
        }
    }
}

#[test]
fn decisions_carry_their_number_and_a_title() {
    let mut numbers = BTreeSet::new();
    for path in files("docs/adr", &["md"]) {
        let name = path.rsplit('/').next().expect("split gives at least one part");
        let (number, words) = name.split_once('-').unwrap_or((name, ""));
        let value = number.parse::<u32>().ok().filter(|_| number.len() == 4);
        let value = value.unwrap_or_else(|| panic!("{path}: a decision is 0001-what-was-decided.md"));
        let kebab = words.strip_suffix(".md").expect("files() gave only these");
        assert!(kebab.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{path}");
        let text = read(&path);
        let title = text.lines().next().unwrap_or_default();
        assert!(title.len() > 8 && title.starts_with(&format!("# {value}. ")), "{path}: its title is \"# {value}. …\"");
        assert!(numbers.insert(value), "{path}: number {value} is taken");
    }
}

#[cfg(unix)]
#[test]
fn scripts_can_be_run_and_stop_at_the_first_error() {
    use std::os::unix::fs::PermissionsExt as _;
    for path in scripts() {
        let mode = fs::metadata(root().join(&path)).expect("it was just listed").permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{path} has no run bit");
        let text = read(&path);
        assert!(text.starts_with("#!/usr/bin/env bash\n"), "{path} does not begin with #!/usr/bin/env bash");
        assert!(text.contains("\nset -euo pipefail\n"), "{path} goes on after an error: set -euo pipefail");
    }
}
