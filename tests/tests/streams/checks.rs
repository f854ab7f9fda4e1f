//! Two small checks that plain TCP passes and a naive map of sockets fails, kept outside this repository; they run
//! against whatever is attached to the pod they run in.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::need_root;
use mesh_tests::peer::Place;

use crate::stage::Stage;

/// Beside the repository.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/checks");
/// What TCP takes for a peer that never reads is a few megabytes.
const BOUND: u64 = 64 << 20;

/// The lines that a script prints in an accelerated pod.
fn lines(script: &str, count: usize) -> Result<Vec<String>> {
    let stage = Stage::new()?;
    let mut mesh = stage.mesh()?;
    stage.enrol(&mut mesh)?;
    stage.accelerate(&mesh)?;
    let mut command = Command::new("python3");
    command.arg("-u").arg(Path::new(FOLDER).join(script));
    let mut process = stage.client.start(command)?;
    (0..count).map(|_| process.line_within(Duration::from_secs(200))).collect()
}

fn there() -> bool {
    let there = Path::new(FOLDER).is_dir();
    if !there {
        eprintln!("SKIPPED: {FOLDER} is not there");
    }
    there
}

#[test]
fn blocking_connections_within_an_accelerated_pod_see_no_spurious_error() -> Result<()> {
    need_root!();
    if !there() {
        return Ok(());
    }
    for line in lines("sockmap_duplex.py", 4)? {
        ensure!(line.ends_with("trials with error 0 /20 stalls 0 {}"), "{line}");
    }
    Ok(())
}

#[test]
fn sockets_within_an_accelerated_pod_mean_what_they_mean_by_tcp() -> Result<()> {
    need_root!();
    if !there() {
        return Ok(());
    }
    let lines = lines("sockmap_semantics.py", 7)?;
    let whole = "[(67108864, True)]";
    for (line, wanted) in lines.iter().zip([
        "FIONREAD got 1000 want 1000".to_owned(),
        "poll True".to_owned(),
        "1000".to_owned(),
        "ET ok".to_owned(),
        format!("bulk {whole} {whole} "),
    ]) {
        ensure!(line.starts_with(&wanted), "{line:?} in place of {wanted:?}");
    }
    let taken = lines[5].strip_prefix("slow reader accepted ").context("no line of the slow reader")?;
    ensure!(taken.parse::<u64>()? < BOUND, "a peer that never reads took {taken} bytes");
    ensure!(lines[6] == "race bad 0", "{}", lines[6]);
    Ok(())
}
