//! `cargo xtask vm --kernel 5.10|6.1|6.12|7.x`: boots a Debian kernel under QEMU (no hardware virtualization needed)
//! with the programs of this build, and runs the tests of steering and of acceleration inside.
//!
//! The guest is an initramfs and nothing else: no disk, no network. It reports by lines on its
//! console; the last one carries the exit code.

mod debian;
mod initramfs;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::{setup, test, tree};
use initramfs::Archive;

/// The line that ends a run of the guest, before its exit code.
const RESULT: &str = "MESH-VM-RESULT ";

/// How long boot and tests may take; emulation is slow, and a hung guest must not hang CI.
const LIMIT: Duration = Duration::from_secs(900);

/// Modules that the tests need where the kernel does not have them built in.
const MODULES: [&str; 5] = ["veth", "sch_ingress", "cls_bpf", "bridge", "tls"];

/// Transfers of each test that makes them: emulation is slow.
const STREAMS: u32 = 30;

/// Which tests run in the guest: of steering and acceleration, and of those that compare byte streams step by step
/// two that kernels differ in. Others by `--filter`, as `kinds::`: each takes an emulated kernel most of a minute.
const TESTS: [&str; 3] = ["vm::", "fionread_tells", "waiting_bytes_can_be_spliced"];

/// The suites that these are in.
const SUITES: [&str; 2] = ["netns", "streams"];

#[derive(clap::Args)]
pub struct Args {
    /// The kernel: 5.10, 6.1, 6.12 or 7.x, or bullseye, bookworm, trixie or sid, the Debian releases that have them
    #[arg(long)]
    kernel: String,
    /// Only tests whose name contains one of these
    #[arg(long, default_values_t = TESTS.map(str::to_owned))]
    filter: Vec<String>,
    /// Show the kernel's own messages
    #[arg(long)]
    verbose: bool,
}

pub fn run(args: Args) -> Result<()> {
    setup::run(setup::Args::default())?;
    for (tool, package) in [("qemu-system-x86_64", "qemu-system-x86"), ("busybox", "busybox-static")] {
        ensure!(which(tool).is_some(), "{tool} is missing; run `cargo xtask setup`, or install {package}");
    }
    let kernel = debian::kernel(&args.kernel)?;
    eprintln!("vm: Linux {}", kernel.release);
    test::build_programs()?;
    let image = build_image(&kernel, &args)?;
    let start = Instant::now();
    let code = boot(&kernel.image, &image, args.verbose)?;
    ensure!(code == 0, "the tests failed in Linux {} (see above)", kernel.release);
    eprintln!("vm: Linux {}: passed, {:.0} s", kernel.release, start.elapsed().as_secs_f64());
    Ok(())
}

/// The initramfs: busybox, the programs with their libraries, the modules and `/init`.
fn build_image(kernel: &debian::Kernel, args: &Args) -> Result<PathBuf> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "run", "tmp", "etc", "mesh"] {
        archive.folder(folder);
    }
    archive.console();
    let busybox = which("busybox").context("busybox is missing")?;
    archive.file("bin/busybox", &std::fs::read(busybox)?, 0o755);
    archive.link("bin/sh", "busybox");
    let ip = which("ip").context("ip is missing; install iproute2")?;
    archive.program("sbin/ip", &ip)?;
    let bpftool = which("bpftool").context("bpftool is missing; run `cargo xtask setup`")?;
    archive.program("sbin/bpftool", &bpftool)?;
    let target = tree::target_dir().join("debug");
    for name in ["mesh-node", "mesh-peer"] {
        archive.stripped_program(&format!("mesh/{name}"), &target.join(name))?;
    }
    for suite in SUITES {
        archive.stripped_program(&format!("mesh/{suite}"), &test_binary(suite)?)?;
    }
    archive.file("mesh/bpf/mesh-ebpf.o", &std::fs::read(tree::bpf_object())?, 0o644);
    let mut loads = String::new();
    for (name, bytes) in kernel.modules(&MODULES)? {
        archive.file(&format!("mesh/modules/{name}.ko"), &bytes, 0o644);
        loads += &format!("busybox insmod /mesh/modules/{name}.ko\n");
    }
    archive.file("init", init(&loads, &args.filter).as_bytes(), 0o755);
    let path = tree::root().join(format!(".local/vm/{}.cpio", kernel.release));
    std::fs::write(&path, archive.finish()).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

fn init(loads: &str, filter: &[String]) -> String {
    let filter = filter.join(" ");
    let run = |suite| format!("/mesh/{suite} --nocapture --test-threads=1 {filter} || code=$?\n");
    let tests = SUITES.map(run).concat();
    format!(
        "#!/bin/sh\n\
         export PATH=/bin:/sbin HOME=/ CI=true RUST_BACKTRACE=0 MESH_TESTS_VERBOSE=1 MESH_TESTS_DEADLINE_S=150\n\
         export MESH_STREAMS={STREAMS}\n\
         busybox mount -t proc none /proc\n\
         busybox mount -t sysfs none /sys\n\
         busybox mount -t devtmpfs none /dev\n\
         busybox mount -t tmpfs none /run\n\
         busybox mount -t tmpfs none /tmp\n\
         busybox mkdir -p /run/netns /dev/shm\n\
         busybox mount -t cgroup2 none /sys/fs/cgroup\n\
         busybox mount -t bpf none /sys/fs/bpf\n\
         {loads}\
         ip link set lo up\n\
         code=0\n\
         {tests}\
         echo '{RESULT}'$code\n\
         busybox poweroff -f\n"
    )
}

/// The path of a compiled suite.
fn test_binary(suite: &str) -> Result<PathBuf> {
    let output = Command::new(tree::cargo())
        .args(["test", "--workspace", "--test", suite, "--no-run", "--message-format=json"])
        .current_dir(tree::root())
        .stderr(Stdio::inherit())
        .output()
        .context("could not start cargo")?;
    ensure!(output.status.success(), "the {suite} tests do not compile");
    let messages = String::from_utf8_lossy(&output.stdout);
    let artifacts = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    artifacts
        .filter(|m| m["target"]["name"] == suite)
        .find_map(|m| m["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo names no executable for the {suite} tests"))
}

/// Boots and returns the exit code that the guest prints.
fn boot(kernel: &Path, image: &Path, verbose: bool) -> Result<i32> {
    let quiet = if verbose { "" } else { " quiet loglevel=1" };
    let mut qemu = Command::new("qemu-system-x86_64")
        .args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            "1536",
            "-nographic",
            "-no-reboot",
        ])
        .args(["-nic", "none", "-kernel"])
        .arg(kernel)
        .arg("-initrd")
        .arg(image)
        .args(["-append", &format!("console=ttyS0 panic=-1{quiet}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("could not start qemu-system-x86_64")?;
    let console = qemu.stdout.take().context("the console is piped")?;
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
        }
    });
    let until = Instant::now() + LIMIT;
    let mut code = None;
    loop {
        match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if let Some((_, number)) = line.split_once(RESULT) {
                    code = number.trim().parse().ok();
                } else {
                    println!("  {line}");
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                qemu.kill().ok();
                qemu.wait().ok();
                bail!("the guest did not end within {LIMIT:?}");
            }
        }
    }
    qemu.wait()?;
    code.context("the guest ended without a result: it crashed or did not boot (try --verbose)")
}

/// The path of a program on `PATH` or in the system folders.
fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(name)).find(|p| p.is_file())
}
