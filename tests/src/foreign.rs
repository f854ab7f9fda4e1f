//! Other people's BPF programs, for the promise that they keep running beside ours: programs of a few
//! instructions that count their runs and let everything pass, on the hooks that the mesh uses.
//!
//! They are made of raw instructions, so that this needs neither a compiler nor the loader under test.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::netns::Netns;
use crate::{process, run, sys};

// linux/bpf.h: commands, program types, attach types, helper.
const MAP_CREATE: i32 = 0;
const MAP_LOOKUP_ELEM: i32 = 1;
const PROG_LOAD: i32 = 5;
const OBJ_PIN: i32 = 6;
const LINK_CREATE: i32 = 28;
const MAP_TYPE_ARRAY: u32 = 2;
const PROG_SCHED_CLS: u32 = 3;
const PROG_SOCK_OPS: u32 = 13;
const PROG_SOCK_ADDR: u32 = 18;
const PROG_SK_LOOKUP: u32 = 30;
const ATTACH_SOCK_OPS: u32 = 3;
const ATTACH_INET4_CONNECT: u32 = 10;
const ATTACH_SK_LOOKUP: u32 = 36;
const HELPER_MAP_LOOKUP: i32 = 1;

/// What a foreign program's verdict means "go on" on its hook.
const TC_ACT_UNSPEC: i32 = -1;
const PASS: i32 = 1;

/// An attached program of somebody else, gone when dropped.
pub struct Foreign {
    counter: OwnedFd,
    _program: OwnedFd,
    _link: Option<OwnedFd>,
    filter: Option<Filter>,
}

/// A classic TC filter, by netlink.
struct Filter {
    netns: File,
    device: String,
    parent: &'static str,
    priority: u16,
    pin: PathBuf,
}

impl Foreign {
    /// Counts connects over IPv4 of a control group and those below it.
    pub fn connect4(cgroup: &Path) -> Result<Foreign> {
        Foreign::link(PROG_SOCK_ADDR, ATTACH_INET4_CONNECT, &File::open(cgroup)?)
    }

    /// Counts socket events of a control group and those below it.
    pub fn sock_ops(cgroup: &Path) -> Result<Foreign> {
        Foreign::link(PROG_SOCK_OPS, ATTACH_SOCK_OPS, &File::open(cgroup)?)
    }

    /// Counts socket look-ups of a network namespace.
    pub fn sk_lookup(netns: &Netns) -> Result<Foreign> {
        Foreign::link(PROG_SK_LOOKUP, ATTACH_SK_LOOKUP, netns.file())
    }

    /// Counts packets that enter (`ingress`) or leave an interface, by a classic filter.
    pub fn tc(netns: &Netns, device: &str, parent: &'static str, priority: u16) -> Result<Foreign> {
        let (program, counter) = program(PROG_SCHED_CLS, 0, TC_ACT_UNSPEC)?;
        let pin = sys::bpffs_root()?.join(run::unique("foreign"));
        pin_program(&program, &pin)?;
        let filter =
            Filter { netns: netns.file().try_clone()?, device: device.to_owned(), parent, priority, pin };
        // The qdisc may be there already; then this fails and the filter goes into it.
        filter.tc(&["qdisc", "add", "dev", device, "clsact"]).ok();
        let foreign = Foreign { counter, _program: program, _link: None, filter: Some(filter) };
        if let Some(filter) = &foreign.filter {
            let (priority, pin) = (filter.priority.to_string(), filter.pin.display().to_string());
            filter.tc(&[
                "filter",
                "add",
                "dev",
                device,
                parent,
                "pref",
                &priority,
                "bpf",
                "da",
                "object-pinned",
                &pin,
            ])?;
        }
        Ok(foreign)
    }

    fn link(program_type: u32, attach_type: u32, target: &File) -> Result<Foreign> {
        let (program, counter) = program(program_type, attach_type, PASS)?;
        let attributes = [program.as_raw_fd() as u32, target.as_raw_fd() as u32, attach_type, 0, 0, 0, 0, 0];
        let link = owned(bpf(LINK_CREATE, &attributes)).context("attaching the foreign program")?;
        Ok(Foreign { counter, _program: program, _link: Some(link), filter: None })
    }

    /// How often the program has run.
    pub fn runs(&self) -> Result<u64> {
        let (key, value) = (0u32, 0u64);
        let attributes = Words::default()
            .u32(self.counter.as_raw_fd() as u32)
            .u32(0)
            .pointer(&key)
            .pointer(&value)
            .u32(0)
            .u32(0);
        bpf(MAP_LOOKUP_ELEM, &attributes.0).context("reading the foreign program's counter")?;
        // SAFETY: `value` is a live u64; the kernel wrote it through the pointer above.
        Ok(unsafe { std::ptr::read_volatile(&value) })
    }
}

impl Filter {
    fn tc(&self, args: &[&str]) -> Result<()> {
        let mut command = Command::new("tc");
        command.args(args);
        // Not `tc -n`: that mounts another /sys, in which the pin is not.
        sys::place(&mut command, &self.netns, None)?;
        process::output_of(&mut command, None).map(drop)
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        let priority = self.priority.to_string();
        self.tc(&["filter", "del", "dev", &self.device, self.parent, "pref", &priority]).ok();
        std::fs::remove_file(&self.pin).ok();
    }
}

/// Little-endian words of a `bpf_attr`.
#[derive(Default)]
struct Words(Vec<u32>);

impl Words {
    fn u32(mut self, value: u32) -> Words {
        self.0.push(value);
        self
    }

    fn pointer<T>(self, value: &T) -> Words {
        let address = std::ptr::from_ref(value) as u64;
        self.u32(address as u32).u32((address >> 32) as u32)
    }
}

/// Loads a program that adds one to its counter and returns `verdict`; the counter is an array map
/// of one `u64`.
fn program(program_type: u32, attach_type: u32, verdict: i32) -> Result<(OwnedFd, OwnedFd)> {
    let map = [MAP_TYPE_ARRAY, 4, 8, 1, 0];
    let counter = owned(bpf(MAP_CREATE, &map)).context("creating the foreign program's map")?;
    let instructions = counting(counter.as_raw_fd(), verdict);
    let license = *b"GPL\0";
    let attributes = Words::default()
        .u32(program_type)
        .u32(instructions.len() as u32)
        .pointer(&instructions[0])
        .pointer(&license)
        .u32(0) // log level
        .u32(0) // log size
        .u32(0)
        .u32(0) // log buffer
        .u32(0) // kernel version
        .u32(0) // flags
        .u32(0)
        .u32(0)
        .u32(0)
        .u32(0) // name
        .u32(0) // interface
        .u32(attach_type);
    let program = owned(bpf(PROG_LOAD, &attributes.0)).context("loading the foreign program")?;
    Ok((program, counter))
}

/// One BPF instruction: operation, registers (source in the high half), offset, immediate.
fn instruction(operation: u8, registers: u8, offset: i16, immediate: i32) -> u64 {
    let [o0, o1] = offset.to_le_bytes();
    let [i0, i1, i2, i3] = immediate.to_le_bytes();
    u64::from_le_bytes([operation, registers, o0, o1, i0, i1, i2, i3])
}

fn counting(map: RawFd, verdict: i32) -> Vec<u64> {
    vec![
        instruction(0x62, 10, -4, 0),               // *(u32 *)(r10 - 4) = 0
        instruction(0xbf, 2 | (10 << 4), 0, 0),     // r2 = r10
        instruction(0x07, 2, 0, -4),                // r2 += -4
        instruction(0x18, 1 | (1 << 4), 0, map),    // r1 = map
        instruction(0, 0, 0, 0),                    //   (second half of the above)
        instruction(0x85, 0, 0, HELPER_MAP_LOOKUP), // r0 = lookup(r1, r2)
        instruction(0x15, 0, 2, 0),                 // if r0 == 0 skip two
        instruction(0xb7, 1, 0, 1),                 // r1 = 1
        instruction(0xdb, 1 << 4, 0, 0),            // lock *(u64 *)r0 += r1
        instruction(0xb7, 0, 0, verdict),           // r0 = verdict
        instruction(0x95, 0, 0, 0),                 // exit
    ]
}

fn pin_program(program: &OwnedFd, path: &Path) -> Result<()> {
    let mut name = path.display().to_string().into_bytes();
    name.push(0);
    let attributes = Words::default().pointer(&name[0]).u32(program.as_raw_fd() as u32).u32(0);
    bpf(OBJ_PIN, &attributes.0).with_context(|| format!("pinning at {}", path.display()))?;
    Ok(())
}

fn bpf(command: i32, attributes: &[u32]) -> io::Result<i32> {
    // SAFETY: the attributes are valid for the length given; pointers within them were made from
    // live values of the callers above.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn owned(fd: io::Result<i32>) -> io::Result<OwnedFd> {
    // SAFETY: the kernel just made the descriptor for this process and nobody else has it.
    fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}
