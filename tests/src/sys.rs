//! The few system calls of the harness: entering a namespace on a thread of its own, starting a process
//! in a namespace and a control group, and where the control groups are. Besides this, `packet` and `foreign` are the files with `unsafe`.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

/// Why a test that needs root cannot run here, or `None` if it can.
pub fn missing_privilege() -> Option<&'static str> {
    // SAFETY: geteuid has no preconditions and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return Some("not root: network namespaces and control groups cannot be made");
    }
    None
}

/// Runs `work` on a thread inside the network namespace `netns`, and returns what it returns.
/// Sockets and `/proc/sys/net` that `work` opens belong to that namespace; the control group stays
/// the caller's.
pub fn in_netns<T: Send>(netns: &File, work: impl FnOnce() -> T + Send) -> Result<T> {
    let fd = netns.as_raw_fd();
    std::thread::scope(|scope| {
        let entered = scope.spawn(move || {
            enter(fd).context("entering the network namespace")?;
            Ok(work())
        });
        match entered.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn enter(netns: RawFd) -> std::io::Result<()> {
    // SAFETY: the descriptor is open for the whole call; only the calling thread changes namespace.
    if unsafe { libc::setns(netns, libc::CLONE_NEWNET) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

/// Lets `command` start in the network namespace `netns` and in the control group `cgroup` (a folder
/// of cgroup2). The file must stay open until the command has been spawned.
pub fn place(command: &mut Command, netns: &File, cgroup: Option<&Path>) -> Result<()> {
    let fd = netns.as_raw_fd();
    let procs = match cgroup {
        Some(folder) => Some(CString::new(folder.join("cgroup.procs").as_os_str().as_bytes())?),
        None => None,
    };
    let before_exec = move || {
        if let Some(path) = &procs {
            // SAFETY: a valid C string; open, write and close may be called after fork.
            unsafe {
                let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                if file < 0 || libc::write(file, b"0".as_ptr().cast(), 1) != 1 {
                    return Err(std::io::Error::last_os_error());
                }
                libc::close(file);
            }
        }
        enter(fd)
    };
    // SAFETY: the closure only makes system calls that are safe between fork and exec and allocates
    // nothing on its good path.
    unsafe { command.pre_exec(before_exec) };
    Ok(())
}

/// The cgroup2 hierarchy: where it is mounted, or a mount made for this run if there is none (a
/// minimal root without systemd).
pub fn cgroup2_root() -> Result<PathBuf> {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    if let Some(root) = ROOT.get() {
        return Ok(root.clone());
    }
    let root = match mounted("cgroup2")? {
        Some(path) => path,
        None => {
            let path = PathBuf::from("/run/mesh-tests/cgroup2");
            mount("cgroup2", &path)?;
            path
        }
    };
    Ok(ROOT.get_or_init(|| root).clone())
}

/// A mounted bpffs; mounted at `/sys/fs/bpf`, its usual place, if there is none.
pub fn bpffs_root() -> Result<PathBuf> {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    if let Some(root) = ROOT.get() {
        return Ok(root.clone());
    }
    let usual = PathBuf::from("/sys/fs/bpf");
    if mounted("bpf")?.as_deref() != Some(&usual) {
        mount("bpf", &usual)?;
    }
    Ok(ROOT.get_or_init(|| usual).clone())
}

fn mounted(kind: &str) -> Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    Ok(mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, fs_type) = (fields.next()?, fields.next()?, fields.next()?);
        (fs_type == kind).then(|| PathBuf::from(path))
    }))
}

fn mount(kind: &str, path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
    nix::mount::mount(Some(kind), path, Some(kind), nix::mount::MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mounting {kind} at {}", path.display()))
}

/// Ends every process of a control group and of the groups below it, waits until they are gone and
/// removes the groups. A group that does not exist is fine.
pub fn remove_cgroup(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    if fs::write(folder.join("cgroup.kill"), "1").is_err() {
        kill_members(folder)?; // cgroup.kill is Linux 5.14
    }
    wait_empty(folder)?;
    remove_folders(folder)
}

/// Ends every process of a control group at once and waits until they are gone; the group stays.
pub fn kill_cgroup(folder: &Path) -> Result<()> {
    if fs::write(folder.join("cgroup.kill"), "1").is_err() {
        kill_members(folder)?;
    }
    wait_empty(folder)
}

fn kill_members(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            kill_members(&entry.path())?;
        }
    }
    for pid in fs::read_to_string(folder.join("cgroup.procs"))?.lines() {
        // SAFETY: plain system call; the pid is a member of a group that this harness made.
        unsafe { libc::kill(pid.parse()?, libc::SIGKILL) };
    }
    Ok(())
}

/// `cgroup.events` reports a change as POLLPRI, so the end of the last process is an event.
fn wait_empty(folder: &Path) -> Result<()> {
    use std::io::{Read, Seek};
    let path = folder.join("cgroup.events");
    let mut events = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    for _ in 0..20 {
        let mut text = String::new();
        events.rewind()?;
        events.read_to_string(&mut text)?;
        if text.contains("populated 0") {
            return Ok(());
        }
        let mut poll = libc::pollfd { fd: events.as_raw_fd(), events: libc::POLLPRI, revents: 0 };
        // SAFETY: one valid pollfd, for the duration of the call.
        unsafe { libc::poll(&mut poll, 1, 500) };
    }
    bail!("processes of {} do not end", folder.display())
}

fn remove_folders(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_folders(&entry.path())?;
        }
    }
    fs::remove_dir(folder).with_context(|| format!("removing {}", folder.display()))
}

/// Whether a process with this id exists.
pub fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Sends a signal to one process.
pub fn signal(pid: u32, signal: i32) -> std::io::Result<()> {
    // SAFETY: plain system call; the caller holds the child, so the pid is not reused.
    if unsafe { libc::kill(pid as i32, signal) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

/// Accepts a connection whose socket never was a blocking one, as event loops do.
pub fn accept_non_blocking(listener: &std::net::TcpListener) -> std::io::Result<std::net::TcpStream> {
    use std::os::fd::{AsRawFd as _, FromRawFd as _};

    use nix::sys::socket::{SockFlag, accept4};
    let socket = accept4(listener.as_raw_fd(), SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: a socket that the kernel has just made for us alone.
    Ok(unsafe { std::net::TcpStream::from_raw_fd(socket) })
}
