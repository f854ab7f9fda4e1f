//! `cargo xtask build-ebpf`: compiles the kernel programs.
//!
//! They need what an ordinary build does not: a linker that emits BPF and a `core` compiled for
//! the BPF target from library source. This file finds both and says what is missing; it must not
//! install anything (that is `setup`).

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::tree;

const TARGET: &str = "bpfel-unknown-none";

#[derive(clap::Args, Default)]
pub struct Args {
    /// Rebuild even if the object was made from just these sources by just these tools
    #[arg(long)]
    force: bool,
}

/// Compiles `mesh-ebpf` and copies the object to [`tree::bpf_object`]. Does nothing when the object
/// was made from these sources by these tools.
pub fn run(args: Args) -> Result<()> {
    let object = tree::bpf_object();
    let linker = bpf_linker().context(
        "bpf-linker is missing; run `cargo xtask setup`, or install it with \
         `cargo install bpf-linker --no-default-features --features llvm-22` beside llvm-22-dev",
    )?;
    let chain = tool_chain()?;
    let inputs = inputs(&tree::root(), &chain, &linker)?;
    if !args.force && made_from(&object, inputs) {
        return Ok(());
    }
    build(&object, &chain, &linker)?;
    let stamp = stamp(&object);
    let text = stamp_text(inputs, &std::fs::read(&object).context("the object just built")?);
    std::fs::write(&stamp, text).with_context(|| format!("could not write {}", stamp.display()))
}

/// What cargo is told beside the sources.
const FLAGS: [&str; 4] = [
    "-Cdebuginfo=2",
    "-Clink-arg=--btf",
    "-Cpanic=abort",
    // Debian's 5.10 verifier knows neither newer instructions nor unbounded call depth.
    "-Ctarget-cpu=v2",
];

fn build(object: &Path, chain: &ToolChain, linker: &Path) -> Result<()> {
    let crate_dir = tree::root().join("mesh-ebpf");
    let out_dir = tree::target_dir().join("bpf");
    eprintln!("build-ebpf: {} with {}", TARGET, chain.describe);
    let release = out_dir.join("build").join(TARGET).join("release");
    // Cargo goes by times, and those of a checkout may be older than what was built from another.
    forget_fingerprints(&release.join(".fingerprint"));

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
    let mut flags = FLAGS.map(str::to_owned).to_vec();
    flags.push(format!("-Clinker={}", linker.display()));
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    cargo.args(["build", "--release", "--locked", "-Zbuild-std=core", "--target", TARGET]);
    cargo.arg("--target-dir").arg(out_dir.join("build"));
    let status = cargo.status().with_context(|| format!("could not start {}", chain.cargo.display()))?;
    if !status.success() {
        bail!("the kernel programs did not compile (see above)");
    }
    let built = release.join("mesh-ebpf");
    // A reader must never see half an object.
    let partial = object.with_extension("o.partial");
    std::fs::copy(&built, &partial).with_context(|| format!("could not copy {}", built.display()))?;
    strip(&partial, chain);
    std::fs::rename(&partial, object).with_context(|| format!("could not write {}", object.display()))?;
    eprintln!("build-ebpf: {}", object.display());
    Ok(())
}

/// What only debuggers read is left out of the object: four fifths of it, all of which mesh-node would keep in memory to
/// load pods' programs from. The kernel's type information stays. Without a tool for it, the object is as good.
const STRIP: &str = "--strip-debug";

fn strip(object: &Path, chain: &ToolChain) {
    let mut tools: Vec<(PathBuf, Option<PathBuf>)> = Vec::new();
    if let Some(sysroot) = sysroot(chain.rustc) {
        let libraries = sysroot.join("lib");
        let hosts = std::fs::read_dir(libraries.join("rustlib")).into_iter().flatten().flatten();
        tools.extend(hosts.map(|host| (host.path().join("bin/rust-objcopy"), Some(libraries.clone()))));
        tools.retain(|(tool, _)| tool.is_file());
    }
    tools.push(("llvm-objcopy".into(), None));
    let stripped = tools.iter().any(|(tool, libraries)| {
        let libraries = libraries.iter().map(|folder| ("LD_LIBRARY_PATH", folder));
        let output = Command::new(tool).arg(STRIP).arg(object).envs(libraries).output();
        output.is_ok_and(|output| output.status.success())
    });
    if !stripped {
        eprintln!(
            "build-ebpf: no rust-objcopy or llvm-objcopy that works: the object keeps what debuggers read"
        );
    }
}

/// A Rust tool chain whose library source is installed.
struct ToolChain {
    cargo: PathBuf,
    rustc: &'static str,
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
            rustc: "rustc",
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
            rustc: "/usr/bin/rustc",
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

/// Makes cargo compile our own crates again; those they depend on stay.
fn forget_fingerprints(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("mesh-") {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// A number that stands for everything the object is made from: content and names of the sources, flags, and
/// versions of the tools. Times say nothing: a checkout of an older commit has newer ones.
fn inputs(root: &Path, chain: &ToolChain, linker: &Path) -> Result<u64> {
    let mut hash = DefaultHasher::new();
    for part in ["mesh-ebpf", "mesh-common"] {
        hash_files(&root.join(part), Path::new(part), &mut hash)?;
    }
    (FLAGS, STRIP).hash(&mut hash);
    for (tool, argument) in [(Path::new(chain.rustc), "-vV"), (linker, "--version")] {
        let output = Command::new(tool).arg(argument).output();
        let output = output.with_context(|| format!("could not start {}", tool.display()))?;
        output.stdout.hash(&mut hash);
    }
    Ok(hash.finish())
}

/// Adds the files below `folder`, which is called `name`, in an order that is always the same.
fn hash_files(folder: &Path, name: &Path, hash: &mut DefaultHasher) -> Result<()> {
    let list = || -> std::io::Result<Vec<_>> { folder.read_dir()?.collect() };
    let mut entries = list().with_context(|| format!("could not list {}", folder.display()))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let (path, name) = (entry.path(), name.join(entry.file_name()));
        if !entry.file_type()?.is_dir() {
            let content =
                std::fs::read(&path).with_context(|| format!("could not read {}", path.display()))?;
            (name, content).hash(hash);
        } else if entry.file_name() != "target" {
            hash_files(&path, &name, hash)?;
        }
    }
    Ok(())
}

/// Where it is noted what the object was made from.
fn stamp(object: &Path) -> PathBuf {
    object.with_extension("o.inputs")
}

/// What is noted: the inputs, and the object itself, which something else may have put there since.
fn stamp_text(inputs: u64, object: &[u8]) -> String {
    let mut hash = DefaultHasher::new();
    object.hash(&mut hash);
    format!("{inputs:016x} {:016x}\n", hash.finish())
}

fn made_from(object: &Path, inputs: u64) -> bool {
    let (Ok(content), Ok(noted)) = (std::fs::read(object), std::fs::read_to_string(stamp(object))) else {
        return false;
    };
    noted == stamp_text(inputs, &content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash_of(folder: &Path) -> u64 {
        let mut hash = DefaultHasher::new();
        hash_files(folder, Path::new("x"), &mut hash).unwrap();
        hash.finish()
    }

    #[test]
    fn an_object_of_other_sources_or_of_another_origin_is_not_used_whatever_the_times_say() {
        let folder = std::env::temp_dir().join(format!("xtask-build-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("src")).unwrap();
        let source = folder.join("src/main.rs");
        std::fs::write(&source, "one").unwrap();
        let first = hash_of(&folder);
        let time = source.metadata().unwrap().modified().unwrap();
        std::fs::write(&source, "two").unwrap();
        std::fs::File::options().write(true).open(&source).unwrap().set_modified(time).unwrap();
        assert_ne!(hash_of(&folder), first);
        std::fs::write(&source, "one").unwrap();
        assert_eq!(hash_of(&folder), first, "newer, and the same");
        std::fs::rename(&source, folder.join("src/lib.rs")).unwrap();
        assert_ne!(hash_of(&folder), first);

        let object = folder.join("mesh-ebpf.o");
        assert!(!made_from(&object, 7));
        std::fs::write(&object, "object").unwrap();
        assert!(!made_from(&object, 7), "nothing is noted about it");
        std::fs::write(stamp(&object), stamp_text(7, b"object")).unwrap();
        assert!(made_from(&object, 7));
        assert!(!made_from(&object, 8));
        std::fs::write(&object, "another").unwrap();
        assert!(!made_from(&object, 7));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
