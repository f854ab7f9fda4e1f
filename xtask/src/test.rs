//! `cargo xtask test [unit|netns|differential|long]`: runs the suites in order, says where it is, and ends with a
//! summary. It must not know what a suite checks.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::{build_ebpf, setup, tree};

#[derive(clap::Args)]
pub struct Args {
    /// One suite; without it unit, netns and differential, in this order
    suite: Option<Suite>,
    /// Only tests whose name contains this (netns)
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
    /// Ten minutes of mixed load while pods come and go, then 100,000 accelerated transfers (root)
    Long,
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Suite::Unit => "unit",
            Suite::Netns => "netns",
            Suite::Differential => "differential",
            Suite::Long => "long",
        }
    }
}

pub fn run(args: Args) -> Result<()> {
    let suites = match args.suite {
        Some(suite) => vec![suite],
        None => vec![Suite::Unit, Suite::Netns, Suite::Differential],
    };
    let mut summary = Vec::new();
    for (i, suite) in suites.iter().enumerate() {
        eprintln!("\n== [{}/{}] {} ==", i + 1, suites.len(), suite.name());
        let start = Instant::now();
        let outcome = run_suite(*suite, args.filter.as_deref());
        if let Err(error) = &outcome {
            eprintln!("{}: {error:#}", suite.name());
        }
        summary.push((suite.name(), outcome.is_ok(), start.elapsed()));
    }
    print_summary(&summary);
    ensure!(summary.iter().all(|(_, passed, _)| *passed), "a suite failed");
    Ok(())
}

fn print_summary(summary: &[(&str, bool, Duration)]) {
    eprintln!();
    for (name, passed, took) in summary {
        let verdict = if *passed { "passed" } else { "FAILED" };
        eprintln!("{name:<14}{verdict}  {:>5.0} s", took.as_secs_f64());
    }
}

fn run_suite(suite: Suite, filter: Option<&str>) -> Result<()> {
    match suite {
        Suite::Unit => {
            cargo(&["test", "--workspace", "--exclude", "mesh-tests", "--tests"])?;
            cargo(&["test", "-p", "mesh-tests", "--lib", "--bins"])
        }
        Suite::Netns => {
            build_programs()?;
            let mut args = vec!["test", "-p", "mesh-tests", "--test", "netns", "--"];
            args.extend(filter);
            cargo(&args)
        }
        Suite::Differential => {
            build_programs()?;
            cargo(&["test", "-p", "mesh-tests", "--test", "differential"])
        }
        Suite::Long => {
            build_programs()?;
            cargo(&["build", "--release", "-p", "mesh-node", "-p", "mesh-tests", "--bins"])?;
            cargo(&["test", "--release", "-p", "mesh-tests", "--test", "long", "--", "--nocapture"])?;
            // Every byte of accelerated streams is checked, in as many transfers as an hour has room for.
            build_programs()?;
            let tests = [
                "accelerated_streams_are",
                "short_connections_leave",
                "streams_that_are_handed_off",
                "handing_off_and_back",
            ];
            let counts = ["100000", "10000", "50000", "50000"];
            for (test, count) in tests.into_iter().zip(counts) {
                let args = ["test", "-p", "mesh-tests", "--test", "netns", "--", test];
                cargo_with(&args, &[("MESH_STREAMS", count)])?;
            }
            Ok(())
        }
    }
}

/// Installs what is missing, and builds the kernel programs and every program that the namespaces run.
pub fn build_programs() -> Result<()> {
    setup::run(setup::Args::default())?;
    build_ebpf::run(build_ebpf::Args::default())?;
    cargo(&["build", "-p", "mesh-node", "-p", "mesh-tests", "--bins"])
}

/// Runs cargo in the repository with its output shown.
fn cargo(args: &[&str]) -> Result<()> {
    cargo_with(args, &[])
}

/// The same with more environment.
fn cargo_with(args: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let status = Command::new(tree::cargo())
        .args(args)
        .envs(environment.iter().copied())
        .current_dir(tree::root())
        .status()
        .context("could not start cargo")?;
    if !status.success() {
        bail!("`cargo {}`: {status}", args.join(" "));
    }
    Ok(())
}
