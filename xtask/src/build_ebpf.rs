//! `cargo xtask build-ebpf`: compiles the kernel programs.
//!
//! They need what an ordinary build does not: a linker that emits BPF and a `core` compiled for
//! the BPF target from library source. This file finds both and says what is missing; it must not
//! install anything (that is `setup`).

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::tree;

const TARGET: &str = "bpfel-unknown-none";

#[derive(clap::Args, Default)]
pub struct Args {
    /// Rebuild even if the object is newer than every source file
    #[arg(long)]
    force: bool,
}

/// Compiles `mesh-ebpf` and copies the object to [`tree::bpf_object`]. Does nothing when the object
/// is newer than its sources.
pub fn run(args: Args) -> Result<()> {
    let object = tree::bpf_object();
    if !args.force && up_to_date(&object)? {
        return Ok(());
    }
    build(&object)
}

fn build(object: &Path) -> Result<()> {
    let crate_dir = tree::root().join("mesh-ebpf");
    let linker = bpf_linker().context(
        "bpf-linker is missing; run `cargo xtask setup`, or install it with \
         `cargo install bpf-linker --no-default-features --features llvm-22` beside llvm-22-dev",
    )?;
    let chain = tool_chain()?;
    let out_dir = tree::target_dir().join("bpf");
    eprintln!("build-ebpf: {} with {}", TARGET, chain.describe);

    // RUSTUP_TOOLCHAIN and friends of an outer `cargo` would override the chain chosen here.
    let mut cargo = Command::new(&chain.cargo);
    for name in [
        "RUSTUP_TOOLCHAIN",
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTDOC",
        "CARGO",
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
    ] {
        cargo.env_remove(name);
    }
    cargo.env("RUSTC_BOOTSTRAP", "1").envs(chain.env.iter().map(|(k, v)| (k, v))).current_dir(&crate_dir);
    let flags = [
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        "-Cpanic=abort".to_owned(),
        // Debian's 5.10 verifier knows neither newer instructions nor unbounded call depth.
        "-Ctarget-cpu=v2".to_owned(),
        format!("-Clinker={}", linker.display()),
    ];
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    cargo.args(["build", "--release", "--locked", "-Zbuild-std=core", "--target", TARGET]);
    cargo.arg("--target-dir").arg(out_dir.join("build"));
    let status = cargo.status().with_context(|| format!("could not start {}", chain.cargo.display()))?;
    if !status.success() {
        bail!("the kernel programs did not compile (see above)");
    }
    let built = out_dir.join("build").join(TARGET).join("release/mesh-ebpf");
    // A reader must never see half an object.
    let partial = object.with_extension("o.partial");
    std::fs::copy(&built, &partial).with_context(|| format!("could not copy {}", built.display()))?;
    std::fs::rename(&partial, object).with_context(|| format!("could not write {}", object.display()))?;
    eprintln!("build-ebpf: {}", object.display());
    Ok(())
}

/// A Rust tool chain whose library source is installed.
struct ToolChain {
    cargo: PathBuf,
    env: Vec<(&'static str, String)>,
    describe: String,
}

/// The running tool chain if it has library source, else Debian's `rustc-web` packages.
fn tool_chain() -> Result<ToolChain> {
    if let Some(sysroot) = sysroot("rustc")
        && has_library_source(&sysroot)
    {
        return Ok(ToolChain {
            cargo: PathBuf::from("cargo"),
            env: Vec::new(),
            describe: format!("the rust-src of {}", sysroot.display()),
        });
    }
    if let Some(sysroot) = sysroot("/usr/bin/rustc")
        && has_library_source(&sysroot)
        && Path::new("/usr/bin/cargo").exists()
    {
        return Ok(ToolChain {
            cargo: PathBuf::from("/usr/bin/cargo"),
            env: vec![("RUSTC", "/usr/bin/rustc".to_owned())],
            describe: "Debian's rustc-web and rust-web-src".to_owned(),
        });
    }
    bail!(
        "no Rust library source for the BPF target; run `cargo xtask setup`, or `rustup component add rust-src`, \
         or install Debian's rustc-web, cargo-web and rust-web-src"
    )
}

/// Whether a tool chain for [`run`] is installed.
pub fn library_source_found() -> bool {
    tool_chain().is_ok()
}

fn sysroot(rustc: &str) -> Option<PathBuf> {
    let out = Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    out.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&out.stdout).trim()))
}

fn has_library_source(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists()
}

/// `bpf-linker` on `PATH`, or where `cargo install` puts it.
pub fn bpf_linker() -> Option<PathBuf> {
    let mut dirs: Vec<PathBuf> =
        std::env::var_os("PATH").map(|p| std::env::split_paths(&p).collect()).unwrap_or_default();
    if let Some(home) = std::env::var_os("CARGO_HOME") {
        dirs.push(PathBuf::from(home).join("bin"));
    }
    if let Some(home) = std::env::var_os("HOME") {
        dirs.push(PathBuf::from(home).join(".cargo/bin"));
    }
    dirs.into_iter().map(|dir| dir.join("bpf-linker")).find(|path| path.is_file())
}

/// Whether the object is newer than every file it is made from.
fn up_to_date(object: &Path) -> Result<bool> {
    let Ok(built) = object.metadata().and_then(|m| m.modified()) else { return Ok(false) };
    let root = tree::root();
    let mut pending =
        vec![root.join("mesh-ebpf"), root.join("mesh-common"), root.join("xtask/src/build_ebpf.rs")];
    while let Some(path) = pending.pop() {
        let meta = path.metadata().with_context(|| format!("could not read {}", path.display()))?;
        if meta.is_dir() {
            if path.ends_with("target") {
                continue;
            }
            for entry in path.read_dir().with_context(|| format!("could not list {}", path.display()))? {
                pending.push(entry?.path());
            }
        } else if meta.modified()? > built {
            return Ok(false);
        }
    }
    Ok(true)
}
