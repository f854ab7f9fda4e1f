//! Names of one run, and the removal of what dead runs left behind.
//!
//! Everything that outlives a process (namespaces, control groups, pins in bpffs, working folders)
//! carries the prefix `mt<pid>-`. A run removes what it made itself; a run that was killed is cleaned up
//! by its janitor, a small process that waits for the end of its parent, and at the latest by the
//! next run. Nothing without that prefix may be touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use crate::{process, sys};

/// The prefix of this run's names.
pub fn prefix() -> String {
    format!("mt{}-", std::process::id())
}

/// A name that no other object of this machine has, with `label` in it for the reader.
pub fn unique(label: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}{}-{label}", prefix(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The folder for this run's files (configuration, logs).
pub fn work_dir() -> PathBuf {
    std::env::temp_dir().join(prefix().trim_end_matches('-'))
}

/// The control group of this run, below the root of cgroup2.
pub fn cgroup() -> Result<PathBuf> {
    Ok(sys::cgroup2_root()?.join(prefix().trim_end_matches('-')))
}

/// Prepares this process for namespaces: checks for root, removes what dead runs left and starts the
/// janitor. Cheap after the first call.
pub fn prepare() -> Result<()> {
    static PREPARED: OnceLock<Result<(), String>> = OnceLock::new();
    let done = PREPARED.get_or_init(|| first_preparation().map_err(|e| format!("{e:#}")));
    match done {
        Ok(()) => Ok(()),
        Err(text) => bail!("{text}"),
    }
}

fn first_preparation() -> Result<()> {
    if let Some(reason) = sys::missing_privilege() {
        bail!("{reason}");
    }
    sweep(None);
    fs::create_dir_all(cgroup()?).context("creating the control group of this run")?;
    fs::create_dir_all(work_dir())?;
    start_janitor()
}

/// The janitor reads from a pipe whose other end only this process holds: end of file means that this
/// process is gone, however it went.
fn start_janitor() -> Result<()> {
    static PIPE: OnceLock<std::process::ChildStdin> = OnceLock::new();
    let mut command = Command::new(process::binary("mesh-peer")?);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut janitor = command
        .args(["janitor", "--of", &std::process::id().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting the janitor")?;
    if let Some(pipe) = janitor.stdin.take() {
        PIPE.get_or_init(|| pipe);
    }
    Ok(())
}

/// Removes what runs that no longer exist left behind. Problems are printed, never fatal: another run
/// may be sweeping the same things. `ended` is a process that counts as gone although it may not be
/// reaped yet.
pub fn sweep(ended: Option<u32>) {
    let report = |what: &Path, error: anyhow::Error| eprintln!("sweep: {}: {error:#}", what.display());
    if let Ok(root) = sys::cgroup2_root() {
        for folder in leftovers(&root, ended) {
            sys::remove_cgroup(&folder).unwrap_or_else(|e| report(&folder, e));
        }
    }
    for netns in leftovers(Path::new("/run/netns"), ended) {
        if let Some(name) = netns.file_name().and_then(|n| n.to_str()) {
            process::run("ip", &["netns", "del", name]).unwrap_or_else(|e| report(&netns, e));
        }
    }
    let mut folders = leftovers(&std::env::temp_dir(), ended);
    for pins in ["/sys/fs/bpf", "/sys/fs/bpf/mesh-node", "/run/mesh-node"] {
        folders.extend(leftovers(Path::new(pins), ended));
    }
    for left in folders {
        // Locks of instances are files.
        let removed = if left.is_dir() { fs::remove_dir_all(&left) } else { fs::remove_file(&left) };
        removed.unwrap_or_else(|e| report(&left, e.into()));
    }
}

/// Entries of `folder` that belong to a run whose process is gone.
fn leftovers(folder: &Path, ended: Option<u32>) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let dead = |name: &str| {
        let digits = name.strip_prefix("mt")?.split('-').next()?;
        let pid: u32 = digits.parse().ok()?;
        (ended == Some(pid) || !sys::is_alive(pid)).then_some(())
    };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().and_then(dead).is_some())
        .map(|entry| entry.path())
        .collect()
}

/// Returns `Ok` from the calling test if it cannot run here, after saying why; with `CI=true` a test that
/// cannot run is a failure.
#[macro_export]
macro_rules! need_root {
    () => {
        if let Some(reason) = $crate::sys::missing_privilege() {
            if std::env::var("CI").is_ok_and(|v| v == "true") {
                panic!("SKIPPED in CI: {reason}");
            }
            eprintln!("SKIPPED: {reason}");
            return Ok(());
        }
    };
}
