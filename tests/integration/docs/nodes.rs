//! The pages on several nodes and on failures, typed as they stand beside a PostgreSQL of their own.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use super::check_after;
use crate::support::postgres::Postgres;

/// What a reader of these pages has: a database `harbor` of this machine's PostgreSQL, and a service manager that stops and
/// starts the server. The server lives outside of the document's namespaces, so the service manager is this process.
fn check_beside_postgresql(document: &str) {
    let mut postgres = Postgres::start();
    postgres.sql("postgres", "CREATE DATABASE harbor");
    let (host, port) = postgres.socket();
    let host = host.display().to_string();
    let pipes = tempfile::tempdir().unwrap();
    let (wishes, answers) = (Pipe::make(pipes.path(), "wishes"), Pipe::make(pipes.path(), "answers"));
    let before = format!(
        "export PGHOST='{host}' PGPORT={port}\nsystemctl() {{ echo $1 > '{}'; read -r done < '{}'; }}\n",
        wishes.path.display(),
        answers.path.display()
    );
    thread::scope(|scope| {
        // However the document ends, so does who serves it.
        let _ends = Ends(&wishes);
        scope.spawn(|| {
            for wish in BufReader::new(wishes.open()).lines().map_while(Result::ok) {
                match &*wish {
                    "stop" => postgres.stop(),
                    "start" => postgres.start_again(),
                    _ => return,
                }
                writeln!(answers.open(), "done").unwrap();
            }
        });
        check_after(&before, document);
    });
}

/// A pipe in the file system.
struct Pipe {
    path: PathBuf,
}

impl Pipe {
    fn make(folder: &Path, name: &str) -> Self {
        let path = folder.join(name);
        assert!(Command::new("mkfifo").arg(&path).status().expect("there is mkfifo").success());
        Self { path }
    }

    /// Both of its ends, so that nobody waits for somebody to open the other.
    fn open(&self) -> File {
        OpenOptions::new().read(true).write(true).open(&self.path).unwrap()
    }
}

/// Says the last wish.
struct Ends<'a>(&'a Pipe);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        writeln!(self.0.open(), "end").unwrap();
    }
}

#[test]
fn the_page_on_nodes_is_as_it_says() {
    check_beside_postgresql("docs/nodes.md");
}

#[test]
fn the_page_on_failures_is_as_it_says() {
    check_beside_postgresql("docs/failures.md");
}
