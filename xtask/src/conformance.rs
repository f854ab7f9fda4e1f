//! `cargo xtask conformance`: mesh-node under control planes and suites of other projects, built from their Go modules.
//!
//! Builds what is missing (once; it stays in `.local/go`), runs each part as a test of its own, and ends with a table.
//! What a part checks is in `tests/tests/interop` and `tests/tests/istiod`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::{test, tree};

#[derive(clap::Args)]
pub struct Args {
    /// Only parts whose name contains this
    part: Option<String>,
    /// Control planes are gone for a minute, a thousand pushes of istiod (a quarter of an hour more)
    #[arg(long)]
    long: bool,
}

/// What a part needs built.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    H2spec,
    GoControlPlane,
    Istiod,
    Kubernetes,
}

/// A part: its name, what it needs, the test target, the filter of its tests.
const PARTS: [(&str, Needs, &str, &str); 13] = [
    ("h2spec: HTTP/2 as a server", Needs::H2spec, "interop", "h2spec"),
    ("go-control-plane: pushes, restarts, removals", Needs::GoControlPlane, "interop", "request"),
    ("go-control-plane: a bad resource", Needs::GoControlPlane, "interop", "a_bad_cluster"),
    ("go-control-plane's own run: ads", Needs::GoControlPlane, "interop", "own_run_ads"),
    ("go-control-plane's own run: delta-ads", Needs::GoControlPlane, "interop", "own_run_delta_ads"),
    ("go-control-plane's own run: xds", Needs::GoControlPlane, "interop", "own_run_xds"),
    ("istiod, files: rules beside Envoy", Needs::Istiod, "istiod", "rules_of_files"),
    ("istiod, files: rules by state of the world", Needs::Istiod, "istiod", "rules_by_state"),
    ("istiod, files: istioctl", Needs::Istiod, "istiod", "istioctl"),
    ("istiod, files: all that a stock one sends", Needs::Istiod, "istiod", "everything_that_a_stock"),
    (
        "istiod, files: pushes and restarts under load",
        Needs::Istiod,
        "istiod",
        "pushes_and_restarts_of_istiod",
    ),
    ("istiod, API server: rules beside Envoy", Needs::Kubernetes, "istiod", "rules_of_an_api_server"),
    (
        "istiod, API server: pushes and restarts under load",
        Needs::Kubernetes,
        "istiod",
        "pushes_and_restarts_beside",
    ),
];

/// How a part ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Skipped,
    Failed,
}

pub fn run(args: Args) -> Result<()> {
    let parts: Vec<_> = PARTS
        .into_iter()
        .filter(|(name, ..)| args.part.as_ref().is_none_or(|part| name.contains(&**part)))
        .collect();
    ensure!(!parts.is_empty(), "no part has {:?} in its name; cargo xtask conformance runs all", args.part);
    if !is_there("go", "version") {
        eprintln!(
            "SKIPPED: what other projects wrote is built with Go, which is not in PATH (1.26 or newer)"
        );
        return Ok(());
    }
    test::build_programs()?;
    let needs = |of: Needs| parts.iter().any(|(_, needs, ..)| *needs == of);
    let mut programs = Programs::default();
    if needs(Needs::H2spec) {
        programs.h2spec()?;
    }
    if needs(Needs::GoControlPlane) {
        programs.go_control_plane()?;
    }
    if needs(Needs::Istiod) || needs(Needs::Kubernetes) {
        programs.istiod()?;
    }
    if needs(Needs::Kubernetes) {
        programs.kubernetes()?;
    }
    if args.long {
        programs.0.push(("MESH_LONG", "1".into()));
    }
    let mut table = Vec::new();
    for (name, _, target, filter) in parts {
        eprintln!("\n== {name} ==");
        let start = Instant::now();
        let outcome = part(target, filter, &programs)?;
        table.push((name, outcome, start.elapsed()));
    }
    print(&table);
    ensure!(table.iter().all(|(_, outcome, _)| *outcome != Outcome::Failed), "a part failed");
    Ok(())
}

fn print(table: &[(&str, Outcome, Duration)]) {
    eprintln!();
    for (name, outcome, took) in table {
        let outcome = match outcome {
            Outcome::Passed => "passed",
            Outcome::Skipped => "SKIPPED",
            Outcome::Failed => "FAILED",
        };
        eprintln!("{name:<52}{outcome:<8}{:>5.0} s", took.as_secs_f64());
    }
}

/// Runs the tests of a part with their output shown.
fn part(target: &str, filter: &str, programs: &Programs) -> Result<Outcome> {
    let mut command = test::cargo_command();
    command.args([
        "test",
        "-q",
        "-p",
        "mesh-tests",
        "--test",
        target,
        "--",
        "--nocapture",
        "--test-threads=1",
        filter,
    ]);
    command.envs(programs.0.iter().map(|(name, value)| (name, value)));
    let mut child = command.stderr(Stdio::piped()).spawn().context("could not start cargo")?;
    let mut skipped = false;
    let lines = BufReader::new(child.stderr.take().context("standard error is piped")?).lines();
    for line in lines.map_while(Result::ok) {
        skipped |= line.starts_with("SKIPPED");
        eprintln!("{line}");
    }
    Ok(match child.wait()?.success() {
        false => Outcome::Failed,
        true if skipped => Outcome::Skipped,
        true => Outcome::Passed,
    })
}

/// Programs that tests start, as environment variables that name them.
#[derive(Default)]
struct Programs(Vec<(&'static str, PathBuf)>);

const FOLDER: &str = ".local/go";

impl Programs {
    fn h2spec(&mut self) -> Result<()> {
        let program = tree::root().join(FOLDER).join("h2spec");
        let package = "github.com/summerwind/h2spec/cmd/h2spec";
        build(&tree::root().join("tests/interop/h2spec"), package, &program)?;
        self.0.push(("MESH_H2SPEC", program));
        Ok(())
    }

    /// go-control-plane's test programs; the script and the bootstraps are in its module.
    fn go_control_plane(&mut self) -> Result<()> {
        const MODULE: &str = "github.com/envoyproxy/go-control-plane";
        let sources = tree::root().join("tests/interop/own-run");
        let folder = tree::root().join(FOLDER).join("own-run");
        let bin = folder.join("bin");
        for (program, package) in [("test", "pkg/test/main"), ("upstream", "internal/upstream")] {
            build(&sources, &format!("{MODULE}/{package}"), &bin.join(program))?;
        }
        self.0.push(("MESH_OWN_RUN_SOURCES", module(&sources, MODULE)?));
        self.0.push(("MESH_OWN_RUN_PROGRAMS", bin));
        Ok(())
    }

    /// istiod's own program, the one that runs its server without a cluster, and istioctl.
    fn istiod(&mut self) -> Result<()> {
        let sources = tree::root().join("tests/interop/istiod");
        let folder = tree::root().join(FOLDER).join("istiod");
        let (standalone, own) = (folder.join("istiod"), folder.join("pilot-discovery"));
        build(&sources, ".", &standalone)?;
        build(&sources, "istio.io/istio/pilot/cmd/pilot-discovery", &own)?;
        let istioctl = folder.join("istioctl");
        build(&sources, "istio.io/istio/istioctl/cmd/istioctl", &istioctl)?;
        let crds = module(&sources, "istio.io/istio")?.join("manifests/charts/base/files/crd-all.gen.yaml");
        self.0.push(("MESH_ISTIOD_STANDALONE", standalone));
        self.0.push(("MESH_PILOT_DISCOVERY", own));
        self.0.push(("MESH_ISTIOCTL", istioctl));
        self.0.push(("MESH_ISTIO_CRDS", crds));
        Ok(())
    }

    /// An API server and kubectl, by the scripts beside the repository; without those the parts say so.
    fn kubernetes(&mut self) -> Result<()> {
        let script = tree::root().join("../shared/kube/build.sh");
        if !script.exists() {
            return Ok(());
        }
        let folder = tree::root().join(".local/kube");
        let bin = folder.join("bin");
        let mut missing = vec!["kube-apiserver", "kubectl"];
        if is_there("kubectl", "version") {
            missing.pop();
        }
        missing.retain(|program| !bin.join(program).exists());
        if !missing.is_empty() {
            eprintln!("building {} (minutes, once)", missing.join(" and "));
            let mut command = Command::new("bash");
            must(command.arg(script).args(missing).env("WORK", &folder))?;
        }
        if !is_there("etcd", "--version") {
            let mut command = Command::new("apt-get");
            must(command.args(["install", "-y", "-q", "--no-install-recommends", "etcd-server"]))
                .context("Debian's etcd-server is needed; as root it would be installed")?;
        }
        self.0.push(("MESH_KUBE_PROGRAMS", bin));
        Ok(())
    }
}

/// Is this program in PATH?
pub fn is_there(program: &str, argument: &str) -> bool {
    Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// Builds a package of a module of ours, or of one that it names. Go decides whether there is anything to do.
fn build(sources: &Path, package: &str, program: &Path) -> Result<()> {
    eprintln!("building {} (minutes, once)", program.display());
    let mut command = Command::new("go");
    command.args(["build", "-mod=mod", "-trimpath", "-ldflags", "-s -w", "-o"]).arg(program).arg(package);
    must(command.env("CGO_ENABLED", "0").current_dir(sources))
}

/// The folder of a module's sources.
pub fn module(sources: &Path, module: &str) -> Result<PathBuf> {
    let mut command = Command::new("go");
    command.args(["list", "-mod=mod", "-m", "-f", "{{.Dir}}", module]).current_dir(sources);
    let output = command.output().context("could not start go")?;
    ensure!(output.status.success(), "go list {module}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().into())
}

fn must(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("could not start {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}
