//! Machines that run a bare Debian 12 of their own, apart from this one: namespaces for processes, mounts, names and
//! network, over a file system whose changes are in memory. Nothing of one is left when it is dropped.
//!
//! What they have in common is made once by debootstrap, from the mirror that this machine's apt uses.

#![allow(dead_code, reason = "each test module uses the helpers it needs")]

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::process::getuid;

use super::eventually::eventually;

/// Debian 12.
const SUITE: &str = "bookworm";
/// What a bare one has beside that which every Debian has.
const PACKAGES: &str = "systemd,logrotate";
const GROUP_PREFIX: &str = "harbor-test";

/// Puts the machine together out of the common file system `$1`, in the empty directory `$2`, with the directory `$3` at
/// `/srv`, in the control group `$4` if there is one, and becomes its first process.
///
/// Settings of the kernel are out of reach, but for those of its own network.
const MAKE: &str = r#"
set -euo pipefail
mount -t tmpfs -o mode=755 tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" overlay "$2/root"
cd "$2/root"
mount --bind "$3" srv
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
for folder in dev run tmp; do
    mount -t tmpfs -o mode=755 tmpfs $folder
done
chmod 1777 tmp
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for device in null:3 zero:5 full:7 random:8 urandom:9; do
    mknod -m 666 dev/${device%:*} c 1 ${device#*:}
done
: >dev/console
if [ -n "$4" ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    set -- env -i container=test PATH="$PATH" /lib/systemd/systemd
else
    # A first process that buries whatever ends.
    set -- bash -c 'while :; do sleep 1000; done'
fi
ip link set lo up
pivot_root . mnt
umount -l /mnt
: >/run/made
exec "$@" </dev/null >/dev/null 2>&1
"#;

/// What runs in a [`Debian`] by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// Nothing: as in a container, or while an image is built.
    Nothing,
    /// systemd.
    Systemd,
}

/// A running machine.
#[derive(Debug)]
pub struct Debian {
    unshare: Child,
    /// Its first process, as this machine counts.
    first: String,
    group: Option<PathBuf>,
    _place: tempfile::TempDir,
}

static GROUPS: AtomicUsize = AtomicUsize::new(0);

impl Debian {
    /// A fresh one, with `srv` at `/srv`. None where this machine or this user may have none: `test` is said to be skipped,
    /// and why.
    pub fn start(test: &str, init: Init, srv: &Path) -> Option<Self> {
        let skip = |reason: &str| {
            // Not captured as a print would be: said where the test's output is read.
            writeln!(io::stderr(), "skipped {test}: {reason}").expect("there is an output");
            None
        };
        if !getuid().is_root() {
            return skip("a Debian of its own wants root");
        }
        if Command::new("debootstrap").arg("--version").output().is_err() {
            return skip("there is no debootstrap");
        }
        let group = match init {
            Init::Nothing => None,
            Init::Systemd => match control_group() {
                Ok(group) => Some(group),
                Err(reason) => return skip(&format!("systemd wants a control group: {reason}")),
            },
        };
        let place = tempfile::tempdir().expect("there is room");
        let enter =
            group.as_ref().map_or(String::new(), |group| format!("echo $$ > '{}/cgroup.procs'\n", group.display()));
        let mut unshare = Command::new("bash")
            .arg("-c")
            .arg(format!(
                "{enter}exec unshare --mount --propagation private --pid --fork --kill-child --net --uts --ipc --cgroup \
                 bash -c \"$0\" make \"$@\""
            ))
            .arg(MAKE)
            .args([common(), place.path(), srv])
            .arg(group.as_deref().unwrap_or(Path::new("")))
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("bash is part of every Debian");
        let id = unshare.id();
        let first = eventually("the machine is made", || {
            if unshare.try_wait().expect("it is our child").is_some() {
                return Some(None);
            }
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
            let first = children.split_whitespace().next()?.to_owned();
            fs::metadata(format!("/proc/{first}/root/run/made")).is_ok().then_some(Some(first))
        });
        let Some(first) = first else {
            let said = unshare.wait_with_output().expect("it has ended").stderr;
            let said = String::from_utf8_lossy(&said).trim().to_owned();
            let forbidden = ["Operation not permitted", "permission denied", "Permission denied"];
            assert!(forbidden.iter().any(|words| said.contains(words)), "{said}");
            return skip(&said);
        };
        let machine = Self { unshare, first, group, _place: place };
        if init == Init::Systemd {
            eventually("systemd is up", || {
                let state = machine.run("systemctl is-system-running");
                ["running\n", "degraded\n"].contains(&&*String::from_utf8_lossy(&state.stdout)).then_some(())
            });
        }
        Some(machine)
    }

    /// What a shell inside makes of these commands, as root.
    pub fn run(&self, commands: &str) -> Output {
        let mut inside = self.enter(&["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]);
        inside.args(["sh", "-ec", &format!("cd /\n{commands}")]).output().expect("nsenter is part of every Debian")
    }

    /// What they print. They must succeed.
    #[track_caller]
    pub fn succeed(&self, commands: &str) -> String {
        let output = self.run(commands);
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{commands}\n{printed}{said}");
        printed
    }

    /// Programs of this machine, in the network of that one.
    pub fn in_its_network(&self, program: &str) -> Command {
        let mut command = self.enter(&["--net"]);
        command.arg(program);
        command
    }

    fn enter(&self, namespaces: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.first]).args(namespaces).arg("--").stdin(Stdio::null());
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
        command
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        // Its first process ends with it, and all others with that one.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        if let Some(group) = &self.group {
            eventually("its control group is empty", || remove_group(group).ok());
        }
    }
}

/// The file system that all have in common.
fn common() -> &'static Path {
    static COMMON: OnceLock<PathBuf> = OnceLock::new();
    COMMON.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let made = folder.join(format!("debian-{SUITE}"));
        // Others that run these tests now wait for it, rather than make it too.
        let lock = fs::File::create(folder.join("debian.lock")).expect("the folder can be written");
        lock.lock().expect("files can be locked");
        if !made.exists() {
            let under_way = folder.join(format!("debian-{SUITE}.new"));
            if under_way.exists() {
                fs::remove_dir_all(&under_way).expect("what was not finished can be removed");
            }
            let output = Command::new("debootstrap")
                .args(["--variant=minbase", &format!("--include={PACKAGES}"), SUITE])
                .arg(&under_way)
                .arg(mirror())
                .output()
                .expect("it was there a moment ago");
            assert!(output.status.success(), "debootstrap: {}", String::from_utf8_lossy(&output.stdout));
            fs::rename(&under_way, &made).expect("it is beside it");
        }
        made
    })
}

/// Where this machine's apt has Debian from.
fn mirror() -> String {
    let targets = Command::new("apt-get")
        .args(["indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)", "Identifier: Packages"])
        .output()
        .expect("where there is debootstrap, there is apt");
    let targets = String::from_utf8_lossy(&targets.stdout).into_owned();
    let of = |suite: &str| {
        let prefix = format!("{suite} main ");
        targets.lines().find_map(|line| line.strip_prefix(&prefix).map(str::to_owned))
    };
    // A mirror of a later Debian has this one too.
    let own = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or_default().to_owned();
    of(SUITE).or_else(|| of(&own)).unwrap_or_else(|| panic!("apt knows no mirror of Debian: {targets}"))
}

/// A control group for a systemd of its own, below the root of the unified hierarchy.
fn control_group() -> Result<PathBuf, String> {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(|error| error.to_string())?;
    let unified = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let place = words.next()?;
        (words.next()? == "cgroup2").then(|| PathBuf::from(place))
    });
    let unified = unified.ok_or("no cgroup2 is mounted")?;
    for left in fs::read_dir(&unified).map_err(|error| error.to_string())?.filter_map(Result::ok) {
        let owner = left.file_name().into_string().ok();
        let owner = owner.as_deref().and_then(|name| name.strip_prefix(GROUP_PREFIX)?.split('-').nth(1));
        if owner.is_some_and(|owner| fs::metadata(format!("/proc/{owner}")).is_err()) {
            // Of a run that was killed. Another one may be at it too.
            let _ = remove_group(&left.path());
        }
    }
    let number = GROUPS.fetch_add(1, Ordering::Relaxed);
    let group = unified.join(format!("{GROUP_PREFIX}-{}-{number}", std::process::id()));
    fs::create_dir(&group).map_err(|error| format!("{}: {error}", group.display()))?;
    Ok(group)
}

/// Removes a control group with those below it.
fn remove_group(group: &Path) -> io::Result<()> {
    for below in fs::read_dir(group)?.filter_map(Result::ok).filter(|entry| entry.path().is_dir()) {
        remove_group(&below.path())?;
    }
    fs::remove_dir(group)
}
