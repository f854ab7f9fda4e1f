//! What `demo` and `bench` have in common: everything is installed and built, then one program of the
//! `tests` crate takes over.
//!
//! Exists so that those two work as the first command on a fresh clone. It must not know what the
//! programs do.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{build_ebpf, setup, tree};

/// Installs what is missing, builds the kernel programs, mesh-node and the programs of the `tests` crate
/// in the Cargo profile `profile`, and runs `program` with `args` in the repository's top directory. Its
/// exit code becomes ours.
pub fn build_and_run(program: &str, profile: &str, args: &[String]) -> Result<()> {
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        build(profile, &["-p", "mesh-tests", "--bin", program])?;
    } else {
        setup::run(setup::Args::default())?;
        build_ebpf::run(build_ebpf::Args::default())?;
        build(profile, &["-p", "mesh-node", "-p", "mesh-tests", "--bins"])?;
    }
    let path = tree::target_dir().join(profile).join(program);
    let status = Command::new(&path)
        .args(args)
        .current_dir(tree::root())
        .status()
        .with_context(|| format!("cannot start {}", path.display()))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => std::process::exit(code),
        None => bail!("{program} was ended by a signal"),
    }
}

fn build(profile: &str, what: &[&str]) -> Result<()> {
    let started = Instant::now();
    eprintln!("building (profile {profile}; the first time takes some minutes)");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--profile", profile, "--quiet"])
        .args(what)
        .current_dir(tree::root())
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("the build failed (see above)");
    }
    eprintln!("built in {} s", started.elapsed().as_secs());
    Ok(())
}
