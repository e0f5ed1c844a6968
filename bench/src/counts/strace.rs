//! System calls, by `strace`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use crate::replay;

/// How often each system call was made.
pub type Calls = BTreeMap<String, u64>;

/// System calls of the counted threads, their start and end included.
pub fn system_calls(program: &Path, path: &replay::Path, steps: u32, profiles: &Path) -> anyhow::Result<Calls> {
    let out = profiles.join(format!("{}.strace", path.name));
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-s", "32", "-o"]).arg(&out);
    super::replay_under(&mut strace, program, path, steps)?;
    let calls = of_threads(&String::from_utf8_lossy(&fs::read(&out)?));
    fs::remove_file(out)?;
    Ok(calls)
}

/// Calls that are not Harbor's, or of whose number chance decides: who waits for a lock, and who is asleep and must be woken.
const NOT_COUNTED: [&str; 2] = [replay::GATE_SYSTEM_CALL, "futex"];

/// The calls that count of those threads that call themselves what the counted ones are called.
fn of_threads(trace: &str) -> Calls {
    let lines =
        || trace.lines().filter_map(|line| line.split_once(' ')).map(|(thread, call)| (thread, call.trim_start()));
    let names = replay::THREADS.map(|name| format!("prctl(PR_SET_NAME, \"{name}\""));
    let named = |call: &str| names.iter().any(|name| call.starts_with(name));
    let threads = lines().filter(|(_, call)| named(call)).map(|(thread, _)| thread).collect::<BTreeSet<_>>();
    let mut calls = Calls::new();
    for (thread, call) in lines() {
        // Whatever was interrupted by another thread's line is resumed later, in a line that begins with `<`.
        let Some((name, _)) = call.split_once('(') else { continue };
        let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        if is_name && threads.contains(thread) && !NOT_COUNTED.contains(&name) {
            *calls.entry(name.to_owned()).or_default() += 1;
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_name_in_the_threads_that_forward() {
        let trace = r#"
10 execve("/bin/x", ["x"], 0x0) = 0
11 prctl(PR_SET_NAME, "forward-0" <unfinished ...>
10 read(3, "", 8) = 0
11 <... prctl resumed>) = 0
11 epoll_pwait(4, [], 256, -1, NULL, 8) = 1
12 prctl(PR_SET_NAME, "reconcile") = 0
11 readv(5, [{iov_base="\1\0", iov_len=8}], 1) = 8
11 futex(0x7f, FUTEX_WAKE_PRIVATE, 1) = 0
11 recvfrom(6, "epoll_pwait(", 65536, 0, NULL, NULL) = 12
11 epoll_pwait(4,  <unfinished ...>
12 openat(AT_FDCWD, "x", O_RDONLY) = 3
11 <... epoll_pwait resumed>[], 256, -1, NULL, 8) = 1
11 --- SIGPIPE {si_signo=SIGPIPE} ---
11 +++ exited with 0 +++
"#;
        let expected = [("epoll_pwait", 2), ("openat", 1), ("prctl", 2), ("recvfrom", 1)];
        assert_eq!(of_threads(trace), expected.map(|(name, count)| (name.to_owned(), count)).into());
    }
}
