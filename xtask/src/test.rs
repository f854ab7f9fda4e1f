//! `cargo xtask test [unit|netns|differential|streams|kube|long]`: runs the suites in order, says where it is, and ends with a
//! summary. It must not know what a suite checks.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::{build_ebpf, kube, setup, tree};

#[derive(clap::Args)]
pub struct Args {
    /// One suite; without it unit, netns, differential and streams, in this order
    suite: Option<Suite>,
    /// Only tests whose name contains this (netns, streams, kube)
    #[arg(long)]
    filter: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Suite {
    /// Tests of the libraries, without privileges
    Unit,
    /// Steering and its guards in network namespaces (root)
    Netns,
    /// The same configuration and requests through Envoy and mesh-node (root)
    Differential,
    /// Byte streams past TCP against those by TCP: case by case, with programs in seven languages, at random (root)
    Streams,
    /// mesh-node as a DaemonSet on a Kubernetes cluster: KUBECONFIG's, or one that is made here (root)
    Kube,
    /// Ten minutes of mixed load while pods come and go; then 100,000 accelerated transfers, 10,000 short
    /// connections, and 50 rounds each of switching, killing and enrolling (root)
    Long,
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Suite::Unit => "unit",
            Suite::Netns => "netns",
            Suite::Differential => "differential",
            Suite::Streams => "streams",
            Suite::Kube => "kube",
            Suite::Long => "long",
        }
    }
}

pub fn run(args: Args) -> Result<()> {
    let suites = match args.suite {
        Some(suite) => vec![suite],
        None => vec![Suite::Unit, Suite::Netns, Suite::Differential, Suite::Streams],
    };
    let mut summary = Vec::new();
    for (i, suite) in suites.iter().enumerate() {
        eprintln!("\n== [{}/{}] {} ==", i + 1, suites.len(), suite.name());
        let start = Instant::now();
        let outcome = run_suite(*suite, args.filter.as_deref());
        let verdict = match outcome {
            Ok(Outcome::Run) => "passed",
            Ok(Outcome::Skipped) => "SKIPPED",
            Err(error) => {
                eprintln!("{}: {error:#}", suite.name());
                FAILED
            }
        };
        summary.push((suite.name(), verdict, start.elapsed()));
    }
    print_summary(&summary);
    ensure!(summary.iter().all(|(_, verdict, _)| *verdict != FAILED), "a suite failed");
    Ok(())
}

const FAILED: &str = "FAILED";

/// How a suite ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Run,
    /// What it needs is not here, which was said.
    Skipped,
}

fn print_summary(summary: &[(&str, &str, Duration)]) {
    eprintln!();
    for (name, verdict, took) in summary {
        eprintln!("{name:<14}{verdict}  {:>5.0} s", took.as_secs_f64());
    }
}

fn run_suite(suite: Suite, filter: Option<&str>) -> Result<Outcome> {
    match suite {
        Suite::Kube => return kube::run(filter),
        Suite::Unit => {
            cargo(&["test", "--workspace", "--exclude", "mesh-tests", "--tests"])?;
            cargo(&["test", "-p", "mesh-tests", "--lib", "--bins"])?;
        }
        Suite::Netns => {
            build_programs()?;
            let mut args = vec!["test", "--workspace", "--test", "netns", "--"];
            args.extend(filter);
            cargo(&args)?;
        }
        Suite::Differential => {
            build_programs()?;
            cargo(&["test", "--workspace", "--test", "differential"])?;
        }
        Suite::Streams => {
            build_programs()?;
            let mut args = vec!["test", "--workspace", "--test", "streams", "--"];
            args.extend(filter);
            cargo(&args)?;
        }
        Suite::Long => {
            build_programs()?;
            cargo(&["build", "--release", "-p", "mesh-node", "-p", "mesh-tests", "--bins"])?;
            cargo(&["test", "--release", "-p", "mesh-tests", "--test", "long", "--", "--nocapture"])?;
            for (suite, test, name, value) in LONG_STREAMS {
                let streams = ["test", "--release", "-p", "mesh-tests", "--test", suite, "--"];
                let args = [&streams[..], &[test, "--nocapture", "--test-threads=1"]].concat();
                cargo_with(&args, &[(name, value)])?;
            }
        }
    }
    Ok(Outcome::Run)
}

/// Tests of byte streams at full length: the suite, a part of their names, and what makes them long.
const LONG_STREAMS: [(&str, &str, &str, &str); 7] = [
    ("streams", "accelerated_streams_are", "MESH_STREAMS", "100000"),
    ("streams", "transfers_begun_before", "MESH_STREAMS", "20000"),
    ("streams", "short_connections_leave", "MESH_STREAMS", "10000"),
    ("streams", "again_and_again", "MESH_ROUNDS", "50"),
    ("streams", "programs_of_every_language", "MESH_ROUNDS", "10"),
    ("netns", "streams_that_are_handed_off", "MESH_STREAMS", "50000"),
    ("netns", "handing_off_and_back", "MESH_STREAMS", "50000"),
];

/// Installs what is missing, and builds the kernel programs and every program that the namespaces run.
pub fn build_programs() -> Result<()> {
    setup::run(setup::Args::default())?;
    build_ebpf::run(build_ebpf::Args::default())?;
    // All of the workspace wherever one part is meant: with other features its dependencies would be built anew.
    cargo(&["build", "--workspace", "--bins"])
}

/// cargo in the repository. An error of a test names its place itself: the stack that led to it would only hide it.
pub fn cargo_command() -> Command {
    let mut command = Command::new(tree::cargo());
    command.env("RUST_LIB_BACKTRACE", "0").current_dir(tree::root());
    command
}

/// Runs cargo in the repository with its output shown.
fn cargo(args: &[&str]) -> Result<()> {
    cargo_with(args, &[])
}

/// The same with more environment.
fn cargo_with(args: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let mut cargo = cargo_command();
    let status =
        cargo.args(args).envs(environment.iter().copied()).status().context("could not start cargo")?;
    if !status.success() {
        bail!("`cargo {}`: {status}", args.join(" "));
    }
    Ok(())
}
