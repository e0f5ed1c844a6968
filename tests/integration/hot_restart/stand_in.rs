//! New processes that go wrong, in place of the program that a node starts anew.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use harbor::app::handover::{Channel, Estate, Greeting, Message, PROTOCOL, Predecessor};

use crate::support::harbor::{Harbor, Site};

/// At which step it goes wrong.
const STEP: &str = "HARBOR_TEST_STEP";

/// A program that a site's nodes run, and that a test replaces.
pub struct Program {
    path: PathBuf,
}

impl Program {
    /// Harbor itself, in the site's directory.
    pub fn harbor(site: &Site) -> Self {
        let program = Self { path: site.path().join("harbor") };
        program.becomes_harbor();
        program
    }

    /// Starts `harbor serve` by it.
    pub fn start(&self, site: &Site) -> Harbor {
        let mut command = Command::new(&self.path);
        command.arg("serve").env("HARBOR_CONFIG", site.config());
        site.start_with(command)
    }

    pub fn becomes_harbor(&self) {
        self.replace(|path| symlink(env!("CARGO_BIN_EXE_harbor"), path).expect("the directory is ours"));
    }

    /// A script that is run instead.
    pub fn becomes(&self, script: &str) {
        self.write(&format!("#!/bin/sh\n{script}\n"));
    }

    /// Something that cannot be run.
    pub fn becomes_unusable(&self) {
        self.write("no program");
    }

    /// By another process: what this one has open for writing a process that is being started could have too, and a file
    /// that is open for writing cannot be run.
    fn write(&self, text: &str) {
        self.replace(|path| {
            let write = "printf %s \"$1\" > \"$2\" && chmod 755 \"$2\"";
            let written = Command::new("sh").args(["-c", write, "sh", text]).arg(path).status();
            assert!(written.expect("there is a shell").success());
        });
    }

    /// A process that takes part in the hand-over up to this step, and then does as its name says.
    pub fn becomes_one_that(&self, step: &str) {
        let this = std::env::current_exe().expect("the test binary");
        let part = "hot_restart::stand_in::one_that_goes_wrong";
        self.becomes(&format!("{STEP}={step} exec {this:?} --exact {part} --ignored --nocapture"));
    }

    /// As an upgrade does: another file takes the place of this one, which may be running.
    fn replace(&self, write: impl FnOnce(&Path)) {
        let beside = self.path.with_extension("new");
        write(&beside);
        fs::rename(beside, &self.path).expect("it is in the same directory");
    }
}

/// Dies at once, as by `kill -9`.
fn die() -> ! {
    std::process::abort()
}

async fn hang() -> ! {
    std::future::pending().await
}

#[tokio::test]
#[ignore = "started by other tests"]
async fn one_that_goes_wrong() {
    let step = std::env::var(STEP).expect("a test says so");
    let socket = std::os::fd::AsFd::as_fd(&std::io::stdin()).try_clone_to_owned().unwrap();
    if step == "dies-at-once" {
        die();
    }
    if step == "speaks-another-protocol" || step == "talks-nonsense" {
        let channel = Channel::new(socket).unwrap();
        let message = match step.as_str() {
            "talks-nonsense" => Message::Serving,
            _ => Message::Hello(Greeting { protocol: PROTOCOL + 1, version: "9.9.9".into(), ..Greeting::own() }),
        };
        channel.send(&message, &[]).await.unwrap();
        hang().await;
    }
    let predecessor = Predecessor::find().unwrap().expect("it is there");
    if step == "refuses" {
        predecessor.refuse("there is no room");
        hang().await;
    }
    let estate: Estate = predecessor.estate().await.unwrap();
    assert!(estate.store.is_some() && !estate.ports.sockets.is_empty() && estate.apis.len() == 3);
    match step.as_str() {
        "dies-with-the-lock" => die(),
        "hangs-with-the-lock" => hang().await,
        "hears-nothing-once-prepared" => {
            Channel::new(socket).unwrap().send(&Message::Prepared, &[]).await.unwrap();
            hang().await;
        }
        _ => {}
    }
    let sessions = predecessor.sessions().await.unwrap();
    assert_eq!(sessions.len(), 1);
    match step.as_str() {
        "dies-with-the-sessions" => die(),
        "hangs-with-the-sessions" => hang().await,
        other => unreachable!("no such step: {other}"),
    }
}
