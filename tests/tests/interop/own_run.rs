//! go-control-plane's own integration run, as its script makes it, with mesh-node where it starts Envoy: its sample
//! bootstraps, its resources, its requests, its verdict.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::netns::Netns;
use mesh_tests::process::{self, Process};
use mesh_tests::{need_root, run};

/// Three updates with five batches of requests each take nine seconds; a busy machine gets more.
const LIMIT: Duration = Duration::from_secs(120);

/// The script, the bootstraps and the two programs that it starts; `None` where they have not been built.
struct OwnRun {
    /// The module's folder.
    sources: PathBuf,
    programs: PathBuf,
}

fn own_run() -> Option<OwnRun> {
    let folder = |name| std::env::var_os(name).map(PathBuf::from);
    let found = folder("MESH_OWN_RUN_SOURCES").zip(folder("MESH_OWN_RUN_PROGRAMS"));
    if found.is_none() {
        eprintln!("SKIPPED: go-control-plane's own run is built and started by `cargo xtask conformance`");
    }
    found.map(|(sources, programs)| OwnRun { sources, programs })
}

impl OwnRun {
    /// Runs the script in a network of its own: its ports are fixed.
    fn passes(&self, mode: &str, arguments: &[&str]) -> Result<()> {
        let netns = Netns::new("own-run")?;
        let folder = run::work_dir().join(run::unique("own-run"));
        std::fs::create_dir_all(&folder)?;
        for name in ["sample", "scripts"] {
            symlink(self.sources.join(name), folder.join(name))?;
        }
        symlink(&self.programs, folder.join("bin"))?;
        let mut command = Command::new("bash");
        command.arg("scripts/integration.sh").args(arguments).current_dir(&folder);
        command.env("XDS", mode).env("ENVOY", process::binary("mesh-node")?);
        mesh_tests::sys::place(&mut command, netns.file(), None)?;
        let mut script = Process::spawn(command, None)?;
        let status = script.wait(LIMIT);
        let said = script.errors();
        let log = folder.join(format!("envoy.{mode}{}.log", arguments.join(" ")));
        let log = std::fs::read_to_string(&log).with_context(|| log.display().to_string())?;
        let warnings: Vec<&str> =
            log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).take(12).collect();
        let passed = format!("Test for {mode} passed!");
        ensure!(
            status?.success() && said.contains(&passed),
            "the run failed:\n{said}\nwhat mesh-node said:\n{}",
            warnings.join("\n")
        );
        ensure!(!log.contains("resource rejected"), "mesh-node refused a resource:\n{}", warnings.join("\n"));
        Ok(())
    }
}

fn passes(mode: &str, arguments: &[&str]) -> Result<()> {
    need_root!();
    own_run().map_or(Ok(()), |run| run.passes(mode, arguments))
}

#[test]
fn own_run_ads() -> Result<()> {
    passes("ads", &[])
}

#[test]
fn own_run_delta_ads() -> Result<()> {
    passes("delta-ads", &[])
}

#[test]
fn own_run_xds() -> Result<()> {
    passes("xds", &[])
}

#[test]
fn own_run_xds_mux() -> Result<()> {
    passes("xds", &["-mux"])
}
