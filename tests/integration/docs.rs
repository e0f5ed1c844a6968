//! What the documents tell a reader to type, typed: each `console` block of a document runs in one shell, as written,
//! and must print what the document shows. Numbers, tokens and times may differ.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
};

/// What stands between a command's number and its output.
const MARK: char = '\u{1}';

#[derive(Debug, Default)]
struct Step {
    command: String,
    shown: String,
}

/// The commands of all `console` blocks with the output that is shown for each.
fn steps(document: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let (mut inside, mut open, mut heredoc) = (false, false, None::<String>);
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
            heredoc =
                command.split_once("<<").map(|(_, end)| end.trim().to_owned()).filter(|end| !end.starts_with('<'));
            open = heredoc.is_some() || command.ends_with('\\');
        } else if open {
            writeln!(steps.last_mut().unwrap().command, "{line}").unwrap();
            open = match &heredoc {
                Some(end) => line != end,
                None => line.ends_with('\\'),
            };
        } else {
            writeln!(steps.last_mut().expect("output follows a command").shown, "{line}").unwrap();
        }
    }
    steps
}

/// The text with everything in its place but what differs from run to run.
fn lasting(text: &str) -> String {
    let mut lasting = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let run = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len());
        let (word, after) = rest.split_at(run);
        if word.len() >= 16 || after.starts_with('…') || (!word.is_empty() && word.bytes().all(|b| b.is_ascii_digit()))
        {
            lasting.push('#');
            rest = after.strip_prefix('…').unwrap_or(after);
        } else if run > 0 {
            lasting.push_str(word);
            rest = after;
        } else {
            if !(first == ' ' && lasting.ends_with(' ')) {
                lasting.push(first);
            }
            rest = &rest[first.len_utf8()..];
        }
    }
    lasting
}

/// Runs the commands of a document in a network of their own, so that the ports it names are free.
fn check(document: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let steps = steps(&fs::read_to_string(root.join(document)).unwrap());
    assert!(!steps.is_empty(), "{document} has nothing to run");
    let place = tempfile::tempdir().unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_harbor"));
    let built = binary.parent().unwrap();
    fs::create_dir(place.path().join("target")).unwrap();
    symlink(built, place.path().join("target/debug")).unwrap();
    let mut script = format!("exec 2>&1\nip link set lo up\ncd '{}'\n", place.path().display());
    for (number, step) in steps.iter().enumerate() {
        write!(script, "echo '{MARK}{number}'\n{}", step.command).unwrap();
    }
    // Building is the first thing the document does, and the only one that needs the sources and the network.
    let script = script.replace("cargo build", "true");
    let output = Command::new("unshare")
        .args(["--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", &script])
        .stdin(Stdio::null())
        .output()
        .expect("unshare is part of every Debian");
    let text = String::from_utf8_lossy(&output.stdout);
    if text.is_empty() {
        let reason = String::from_utf8_lossy(&output.stderr);
        assert!(reason.contains("Operation not permitted"), "{reason}");
        // A machine that allows no namespaces: said where the test's output is read.
        return std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped {document}: {reason}"))
            .unwrap();
    }
    let mut printed = text.split(MARK).skip(1);
    for step in &steps {
        let output = printed.next().and_then(|output| output.split_once('\n')).map_or("", |(_, output)| output);
        assert_eq!(lasting(output), lasting(&step.shown), "{document}, after: {}\n{text}", step.command);
    }
}

#[test]
fn the_tour_of_the_readme_is_as_it_says() {
    check("README.md");
}
