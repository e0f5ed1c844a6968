//! The help of every command, as `tests/fixtures/help` has it. `HARBOR_RENEW=1` writes the files anew, for a look at what
//! has changed.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{Said, harbor};

/// How the files are made what the commands say.
const RENEW: &str = "HARBOR_RENEW";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/help")
}

/// The commands that a help lists, but for `help`, which each group has.
fn listed(help: &str) -> Vec<String> {
    let section = help.split_once("\nCommands:\n").map_or("", |(_, rest)| rest);
    let lines = section.lines().take_while(|line| !line.is_empty());
    // Where a text is wrapped, its other lines stand further in.
    let names = lines.filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')));
    names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(Into::into).collect()
}

/// What every command says to `--help`, by the words that name it, found from the program's own.
fn helps() -> BTreeMap<Vec<String>, String> {
    let directory = tempfile::tempdir().unwrap();
    let (mut helps, mut left) = (BTreeMap::new(), vec![Vec::<String>::new()]);
    while let Some(command) = left.pop() {
        let mut arguments = command.iter().map(String::as_str).collect::<Vec<_>>();
        arguments.push("--help");
        let Said { code, stdout, stderr } = harbor(directory.path(), &[], &arguments);
        assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}");
        left.extend(listed(&stdout).into_iter().map(|name| [&command[..], &[name]].concat()));
        helps.insert(command, stdout);
    }
    helps
}

fn file_of(command: &[String]) -> String {
    [&["harbor".to_owned()], command].concat().join("-") + ".txt"
}

#[test]
fn the_help_of_every_command_is_as_its_file_has_it() {
    let helps = helps();
    assert!(helps.contains_key(&["node".to_owned(), "drain".to_owned()][..]), "groups are walked: {:?}", helps.keys());
    let said = helps.iter().map(|(command, help)| (file_of(command), help.clone())).collect::<BTreeMap<_, _>>();
    if std::env::var_os(RENEW).is_some() {
        fs::remove_dir_all(fixtures()).unwrap();
        fs::create_dir(fixtures()).unwrap();
        said.iter().for_each(|(file, help)| fs::write(fixtures().join(file), help).unwrap());
    }
    let there = fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().path());
    let kept = there.map(|path| {
        let name = path.file_name().and_then(|name| name.to_str()).expect("our names are UTF-8").to_owned();
        (name, fs::read_to_string(path).unwrap())
    });
    let kept = kept.collect::<BTreeMap<_, _>>();
    for (file, help) in &said {
        let advice =
            format!("{file}: run {RENEW}=1 cargo test --test integration cli::help, and look at the difference");
        assert_eq!(kept.get(file), Some(help), "{advice}");
    }
    assert_eq!(kept.keys().collect::<Vec<_>>(), said.keys().collect::<Vec<_>>(), "files of commands that are gone");
}

#[test]
fn every_command_ends_with_2_when_it_is_given_what_it_does_not_know() {
    let directory = tempfile::tempdir().unwrap();
    for (command, help) in helps() {
        let with = |more: &[&'static str]| {
            let words = command.iter().map(String::as_str).chain(more.iter().copied()).collect::<Vec<_>>();
            harbor(directory.path(), &[], &words)
        };
        let said = with(&["--no-such-option"]);
        assert_eq!((said.code, said.stdout.as_str()), (2, ""), "{command:?}");
        assert!(said.stderr.starts_with("error: "), "{command:?}: {}", said.stderr);
        // A group alone is half a command: its short help says what there is.
        if !listed(&help).is_empty() {
            let said = with(&[]);
            assert_eq!((said.code, said.stdout.as_str()), (2, ""), "{command:?}");
            assert!(said.stderr.contains("\nCommands:\n"), "{command:?}: {}", said.stderr);
        }
    }
}
