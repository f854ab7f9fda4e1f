//! Finds, loads and pins the kernel programs: those of the node once, and for each pod its own
//! instance of the two that run inside its namespace, where the kernel does not tell them whose it is.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use aya::maps::{MapData, RingBuf};
use aya::programs::{
    CgroupSkb, CgroupSock, CgroupSockAddr, CgroupSockopt, FEntry, FExit, Program, RawTracePoint,
    SchedClassifier, SkLookup, SkMsg, SockOps,
};
use aya::{Btf, Ebpf, EbpfLoader, VerifierLogLevel};
use mesh_common::accel::{Carried, Offsets, Owner, OwnerKey};
use mesh_common::{
    Address, CidrKey, CounterKey, FlowKey, LAYOUT, MAX_PODS, Plain, Pod, PodAddress, PortKey,
    Settings as KernelSettings, SocketTag,
};

use super::bpf::{self, AttachType, Map, Target};
use super::error::CaptureError;
use super::record::Interface;
use super::settings::Settings;

pub(super) const CONNECT4: &str = "mesh_connect4";
pub(super) const CONNECT6: &str = "mesh_connect6";
pub(super) const SOCKOPS: &str = "mesh_sockops";
pub(super) const HOLD: &str = "mesh_hold";
pub(super) const BIND4: &str = "mesh_bind4";
pub(super) const BIND6: &str = "mesh_bind6";
pub(super) const SK_LOOKUP: &str = "mesh_sk_lookup";
pub(super) const TC_STEER: &str = "mesh_tc_steer";
pub(super) const TC_GUARD: &str = "mesh_tc_guard";
const SK_MSG: &str = "mesh_sk_msg";
const SPLICE: &str = "mesh_splice";
const SPLICE_CALL: &str = "mesh_splice_call";
const SPLICE_TRACEPOINT: &str = "tcp_rcv_space_adjust";
const WAITING: &str = "mesh_waiting";
const PROCESS: &str = "mesh_process";
const SETSOCKOPT: &str = "mesh_setsockopt";
const FIONREAD: &str = "mesh_fionread";
/// Who answers `FIONREAD`, by what the caller's own memory is written: the newer function first (Linux 6.5).
const FIONREAD_ANSWERS: [&str; 2] = ["sk_ioctl", "tcp_ioctl"];
const LOG_MAP: &str = "AYA_LOGS";
const NEWS_MAP: &str = "NEWS";

/// A longest-prefix key: the kernel wants the length of the prefix first.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct CidrEntry {
    pub(super) prefix_bits: u32,
    pub(super) key: CidrKey,
}

// SAFETY: `repr(C)`, words only.
unsafe impl Plain for CidrEntry {}

/// All maps that user space reads or writes.
#[derive(Debug)]
pub(super) struct Maps {
    pub(super) settings: Map<u32, KernelSettings>,
    pub(super) heartbeat: Map<u32, u64>,
    pub(super) pods: Map<u32, Pod>,
    pub(super) namespaces: Map<u64, u32>,
    /// Cookies of namespaces that are no enrolled pod's.
    pub(super) strangers: Map<u64, u32>,
    /// When a namespace that nobody knows first connected.
    pub(super) newcomers: Map<u64, u64>,
    pub(super) interfaces: Map<u32, u32>,
    pub(super) pod_addresses: Map<PodAddress, u32>,
    pub(super) address_pods: Map<Address, u32>,
    pub(super) excluded_ports: Map<PortKey, u32>,
    pub(super) excluded_cidrs: Map<CidrEntry, u32>,
    pub(super) listeners: Map<u32, i32>,
    pub(super) worker_listeners: Map<u32, i32>,
    pub(super) flows: Map<FlowKey, u32>,
    pub(super) counters: Map<CounterKey, u64>,
    pub(super) offsets: Map<u32, Offsets>,
    pub(super) owners: Map<OwnerKey, Owner>,
    pub(super) carried: Map<u32, Carried>,
    /// Held while a part of the one entry of `settings` is changed.
    changing: Mutex<()>,
}

/// The values that a loader may borrow for the constant `SLOT`.
static SLOTS: [u32; MAX_PODS as usize] = {
    let mut slots = [0; MAX_PODS as usize];
    let mut slot = 0;
    while slot < slots.len() {
        slots[slot] = slot as u32;
        slot += 1;
    }
    slots
};

/// The loaded programs of this node.
pub(super) struct Programs {
    object: Vec<u8>,
    folder: PathBuf,
    /// Kept, because making one reads all type information of the running kernel.
    loader: EbpfLoader<'static>,
    node: Ebpf,
    /// Why sockops does nothing for acceleration.
    not_accelerated: Option<String>,
    /// Where sockops is attached.
    cgroup: Option<std::fs::File>,
}

impl Programs {
    /// Loads the programs and opens the maps pinned in `settings.pins()`, making those that are not
    /// there. Maps of another layout are replaced: nothing can be read from them.
    pub(super) fn load(settings: &Settings) -> Result<(Self, Maps), CaptureError> {
        let (path, object) = read_object(settings.bpf_object.as_deref())?;
        check_capabilities()?;
        let folder = settings.pins();
        make_folder(&settings.bpffs, &folder)?;
        discard_other_layout(&folder);
        raise_memory_limit();

        let mut loader = loader(&folder);
        let invalid = |error: aya::EbpfError| CaptureError::ObjectInvalid {
            path: path.clone(),
            reason: one_line(&error),
        };
        // `sk_lookup` sees the interface since Linux 5.17; without it, addresses decide.
        loader.override_global("HAS_INGRESS_IFINDEX", &SLOTS[1], true);
        let mut node = loader.load(&object).map_err(invalid)?;
        if load_program(&mut node, SK_LOOKUP).is_err() {
            loader.override_global("HAS_INGRESS_IFINDEX", &SLOTS[0], true);
            node = loader.load(&object).map_err(invalid)?;
            load_program(&mut node, SK_LOOKUP)
                .map_err(|reason| CaptureError::Program { program: "sk_lookup", reason })?;
        }
        let maps = Maps::open(&folder)?;
        Ok((Self { object, folder, loader, node, not_accelerated: None, cgroup: None }, maps))
    }

    /// The ring buffer of log lines, for aya-log.
    pub(super) fn node(&mut self) -> &mut Ebpf {
        &mut self.node
    }

    /// Where links of the whole node are pinned.
    fn link(&self, name: &str) -> PathBuf {
        self.folder.join("links").join(name)
    }

    /// Where links of one pod are pinned.
    pub(super) fn pod_folder(&self, slot: u32) -> PathBuf {
        self.folder.join("pods").join(slot.to_string())
    }

    /// Attaches sockops, without its part of acceleration where the kernel refuses that.
    ///
    /// # Errors
    /// With the reason, if the kernel refuses the rest too.
    pub(super) fn attach_sockops(&mut self, cgroup: &std::fs::File) -> Result<(), String> {
        self.cgroup = cgroup.try_clone().ok();
        let Err(reason) = self.attach_cgroup(SOCKOPS, AttachType::SockOps, cgroup) else { return Ok(()) };
        self.loader.override_global("ACCELERATES", &SLOTS[0], true);
        self.node = self.loader.load(&self.object).map_err(|error| one_line(&error))?;
        self.attach_cgroup(SOCKOPS, AttachType::SockOps, cgroup)?;
        self.not_accelerated = Some(format!("this kernel refuses sockops with acceleration: {reason}"));
        Ok(())
    }

    /// Attaches one of the cgroup programs, in place of an older one of this instance.
    ///
    /// # Errors
    /// With the reason, if the kernel refuses to load or to attach it.
    pub(super) fn attach_cgroup(
        &mut self,
        name: &'static str,
        kind: AttachType,
        cgroup: &std::fs::File,
    ) -> Result<(), String> {
        load_program(&mut self.node, name)?;
        let pin = self.link(name);
        attach(&mut self.node, name, &pin, &Target::Fd(cgroup.as_fd()), kind)
    }

    /// Detaches one of the cgroup programs that an earlier process may have attached.
    pub(super) fn detach_cgroup(&self, name: &str) {
        // Usually there is none.
        let _ = std::fs::remove_file(self.link(name));
    }

    /// Where pods that nobody knows are told. Once.
    ///
    /// # Errors
    /// With the reason, if it cannot be read.
    pub(super) fn news(&mut self) -> Result<RingBuf<MapData>, String> {
        let map = self.node.take_map(NEWS_MAP).ok_or_else(|| format!("{NEWS_MAP} is not in the object"))?;
        RingBuf::try_from(map).map_err(|error| one_line(&error))
    }

    /// The pin of a map.
    pub(super) fn pin(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Loads what acceleration needs beside sockops.
    ///
    /// # Errors
    /// With the name of the program that the kernel refuses, and its reason.
    pub(super) fn load_acceleration(&mut self) -> Result<AccelerationPrograms, String> {
        if let Some(reason) = &self.not_accelerated {
            return Err(reason.clone());
        }
        for name in [SK_MSG, WAITING, PROCESS] {
            load_program(&mut self.node, name).map_err(|reason| format!("{name}: {reason}"))?;
        }
        let sockets =
            bpf::open_pin(&self.pin("ACCELERATED")).map_err(|error| format!("ACCELERATED map: {error}"))?;
        let cgroup = self.cgroup.as_ref().map(std::fs::File::try_clone);
        let options_guarded = match cgroup {
            Some(Ok(cgroup)) => self.attach_cgroup(SETSOCKOPT, AttachType::SetSockOpt, &cgroup),
            _ => Err("there is no cgroup to attach it to".to_owned()),
        };
        let splice_watched = self.watch_splice().or_else(|reason| {
            let other = self.watch_splice_calls();
            other.map_err(|other| format!("{SPLICE}: {reason}; {SPLICE_CALL}: {other}"))
        });
        let fd = |object: &Ebpf, name: &str| {
            let program = object.program(name).ok_or_else(|| format!("{name} is not in the object"))?;
            let fd = program.fd().map_err(|e| one_line(&e))?;
            fd.as_fd().try_clone_to_owned().map_err(|e| e.to_string())
        };
        Ok(AccelerationPrograms {
            message: fd(&self.node, SK_MSG)?,
            waiting: fd(&self.node, WAITING)?,
            process: fd(&self.node, PROCESS)?,
            sockets,
            splice_watched,
            options_guarded,
        })
    }

    /// For as long as this process lives: without it nothing new is accelerated.
    fn watch_splice(&mut self) -> Result<(), String> {
        load_program(&mut self.node, SPLICE)?;
        let program =
            self.node.program_mut(SPLICE).ok_or_else(|| format!("{SPLICE} is not in the object"))?;
        let program: &mut FEntry =
            program.try_into().map_err(|e: aya::programs::ProgramError| one_line(&e))?;
        program.attach().map(drop).map_err(|e| one_line(&e))
    }

    /// The same where no program can be attached to a function.
    fn watch_splice_calls(&mut self) -> Result<(), String> {
        load_program(&mut self.node, SPLICE_CALL)?;
        let program = self.node.program_mut(SPLICE_CALL);
        let program = program.ok_or_else(|| format!("{SPLICE_CALL} is not in the object"))?;
        let program: &mut RawTracePoint =
            program.try_into().map_err(|e: aya::programs::ProgramError| one_line(&e))?;
        program.attach(SPLICE_TRACEPOINT).map(drop).map_err(|e| one_line(&e))
    }

    /// Lets `FIONREAD` count what came past TCP where the kernel leaves it out, for as long as this process lives.
    ///
    /// # Errors
    /// With the reason, if the kernel does not let a program do that.
    pub(super) fn mend_fionread(&mut self) -> Result<(), String> {
        let types = Btf::from_sys_fs().map_err(|e| one_line(&e))?;
        let program =
            self.node.program_mut(FIONREAD).ok_or_else(|| format!("{FIONREAD} is not in the object"))?;
        let program: &mut FExit = program.try_into().map_err(|e| one_line(&e))?;
        let mut refused = String::new();
        for function in FIONREAD_ANSWERS {
            match program.load(function, &types) {
                Ok(()) => return program.attach().map(drop).map_err(|e| one_line(&e)),
                Err(error) => refused = refusal(FIONREAD, &error),
            }
        }
        Err(refused)
    }

    /// Loads the guard, so that it can be attached to interfaces.
    pub(super) fn load_guard(&mut self) -> Result<(), String> {
        load_program(&mut self.node, TC_GUARD)
    }

    /// A pod's own instance of the programs inside its namespace.
    pub(super) fn for_pod(&mut self, slot: u32) -> Result<PodPrograms, String> {
        let folder = self.pod_folder(slot);
        std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let number = SLOTS.get(slot as usize).ok_or_else(|| format!("there is no slot {slot}"))?;
        let object =
            self.loader.override_global("SLOT", number, true).load(&self.object).map_err(|e| one_line(&e))?;
        Ok(PodPrograms { object, folder })
    }

    /// Attaches the guard to an interface of the host, and notes there what it became.
    pub(super) fn attach_guard(&mut self, slot: u32, interface: &mut Interface) -> Result<(), String> {
        let pin = self.pod_folder(slot).join(format!("guard-{}", interface.index));
        attach_tc(&mut self.node, TC_GUARD, &pin, interface, AttachType::TcxIngress)
    }
}

/// The programs of acceleration, loaded.
pub(super) struct AccelerationPrograms {
    pub(super) message: OwnedFd,
    pub(super) waiting: OwnedFd,
    pub(super) process: OwnedFd,
    /// The map of the sockets whose messages are judged.
    pub(super) sockets: OwnedFd,
    /// Or why pods that splice cannot be told.
    pub(super) splice_watched: Result<(), String>,
    /// Or why an accelerated socket can be made one that must not be.
    pub(super) options_guarded: Result<(), String>,
}

/// One pod's own instances.
pub(super) struct PodPrograms {
    object: Ebpf,
    folder: PathBuf,
}

impl PodPrograms {
    pub(super) fn attach_sk_lookup(&mut self, namespace: std::os::fd::BorrowedFd<'_>) -> Result<(), String> {
        load_program(&mut self.object, SK_LOOKUP)?;
        let pin = self.folder.join("sk_lookup");
        attach(&mut self.object, SK_LOOKUP, &pin, &Target::Fd(namespace), AttachType::SkLookup)
    }

    /// Attaches TC steering to the pod's end of an interface, and notes there what it became; the
    /// calling thread is in its namespace.
    pub(super) fn attach_steer(&mut self, interface: &mut Interface) -> Result<(), String> {
        let pin = self.folder.join(format!("steer-{}", interface.index));
        attach_tc(&mut self.object, TC_STEER, &pin, interface, AttachType::TcxEgress)
    }

    pub(super) fn load_steer(&mut self) -> Result<(), String> {
        load_program(&mut self.object, TC_STEER)
    }
}

fn attach(
    object: &mut Ebpf,
    name: &str,
    pin: &Path,
    target: &Target<'_>,
    kind: AttachType,
) -> Result<(), String> {
    let program = object.program(name).ok_or_else(|| format!("{name} is not in the object"))?;
    let fd = program.fd().map_err(|e| one_line(&e))?;
    bpf::attach_pinned(pin, fd.as_fd(), target, kind).map_err(|e| e.to_string())
}

/// By TCX where the kernel has it (6.6), else by a netlink filter, which outlives the process too.
fn attach_tc(
    object: &mut Ebpf,
    name: &str,
    pin: &Path,
    interface: &mut Interface,
    kind: AttachType,
) -> Result<(), String> {
    use aya::programs::tc::{
        NlOptions, TcAttachOptions, TcAttachType, qdisc_add_clsact, qdisc_detach_program,
    };
    let link = attach(object, name, pin, &Target::Interface(interface.index), kind);
    if link.is_ok() {
        return Ok(());
    }
    let side = if kind == AttachType::TcxEgress { TcAttachType::Egress } else { TcAttachType::Ingress };
    // One that is there already is as good, and is left at the end.
    interface.qdisc_added |= qdisc_add_clsact(&interface.name).is_ok();
    let _ = qdisc_detach_program(&interface.name, side, name);
    let program = object.program_mut(name).ok_or_else(|| format!("{name} is not in the object"))?;
    let program: &mut SchedClassifier = program.try_into().map_err(|e| one_line(&e))?;
    let options = TcAttachOptions::Netlink(NlOptions { priority: 1, ..NlOptions::default() });
    let id = program.attach_with_options(&interface.name, side, options).map_err(|e| one_line(&e))?;
    let link = program.take_link(id).map_err(|e| one_line(&e))?;
    // Dropped, it would be detached, and from an interface of whichever namespace that happens in.
    std::mem::forget(link);
    interface.filter = true;
    Ok(())
}

impl Maps {
    pub(super) fn open(folder: &Path) -> Result<Self, CaptureError> {
        fn open<K: Plain, V: Plain>(folder: &Path, name: &'static str) -> Result<Map<K, V>, CaptureError> {
            Map::open(&folder.join(name)).map_err(|source| CaptureError::Map { name, source })
        }
        Ok(Self {
            settings: open(folder, "SETTINGS")?,
            heartbeat: open(folder, "HEARTBEAT")?,
            pods: open(folder, "PODS")?,
            namespaces: open(folder, "NAMESPACES")?,
            strangers: open(folder, "STRANGERS")?,
            newcomers: open(folder, "NEWCOMERS")?,
            interfaces: open(folder, "INTERFACES")?,
            pod_addresses: open(folder, "POD_ADDRESSES")?,
            address_pods: open(folder, "ADDRESS_PODS")?,
            excluded_ports: open(folder, "EXCLUDED_PORTS")?,
            excluded_cidrs: open(folder, "EXCLUDED_CIDRS")?,
            listeners: open(folder, "LISTENERS")?,
            worker_listeners: open(folder, "WORKER_LISTENERS")?,
            flows: open(folder, "FLOWS")?,
            counters: open(folder, "COUNTERS")?,
            offsets: open(folder, "OFFSETS")?,
            owners: open(folder, "OWNERS")?,
            carried: open(folder, "CARRIED")?,
            changing: Mutex::new(()),
        })
    }

    /// Sets or clears one of `mesh_common::settings_flags`.
    pub(super) fn set_flag(&self, flag: u32, on: bool) -> std::io::Result<()> {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut settings) = self.settings.get(&0)? else { return Ok(()) };
        settings.flags = settings.flags & !flag | if on { flag } else { 0 };
        self.settings.insert(&0, &settings)
    }
}

/// The map of socket storage, by which sockets are told from a pod's own.
pub(super) fn open_tags(folder: &Path) -> Result<Map<i32, SocketTag>, CaptureError> {
    Map::open(&folder.join("SOCKETS")).map_err(|source| CaptureError::Map { name: "SOCKETS", source })
}

fn loader(folder: &Path) -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    loader
        .btf(None)
        .verifier_log_level(VerifierLogLevel::DEBUG)
        .default_map_pin_directory(folder)
        .map_pin_path(LOG_MAP, folder.join(LOG_MAP))
        .override_global("SLOT", &SLOTS[0], true);
    loader
}

/// Loads one program into the kernel, once.
fn load_program(object: &mut Ebpf, name: &str) -> Result<(), String> {
    let program = object.program_mut(name).ok_or_else(|| format!("{name} is not in the object"))?;
    if program.fd().is_ok() {
        return Ok(());
    }
    let loaded = match program {
        Program::CgroupSockAddr(p) => CgroupSockAddr::load(p),
        Program::CgroupSock(p) => CgroupSock::load(p),
        Program::CgroupSockopt(p) => CgroupSockopt::load(p),
        Program::CgroupSkb(p) => CgroupSkb::load(p),
        Program::SockOps(p) => SockOps::load(p),
        Program::SkLookup(p) => SkLookup::load(p),
        Program::SchedClassifier(p) => SchedClassifier::load(p),
        Program::SkMsg(p) => SkMsg::load(p),
        Program::RawTracePoint(p) => RawTracePoint::load(p),
        Program::FEntry(p) => Btf::from_sys_fs()
            .map_err(aya::programs::ProgramError::from)
            .and_then(|types| FEntry::load(p, "tcp_splice_read", &types)),
        other => return Err(format!("{name} is of an unexpected type, {:?}", other.prog_type())),
    };
    loaded.map_err(|error| refusal(name, &error))
}

/// Why the kernel does not take a program; the verifier's log goes to debug.
fn refusal(name: &str, error: &aya::programs::ProgramError) -> String {
    let aya::programs::ProgramError::LoadError { verifier_log, .. } = error else { return one_line(error) };
    let log = verifier_log.to_string();
    tracing::debug!("{name}: {log}");
    match last_word(&log) {
        Some(word) => format!("{}; the verifier says: {word}", one_line(error)),
        None => one_line(error),
    }
}

/// What the verifier objects to, at the end of its log before its figures.
fn last_word(log: &str) -> Option<&str> {
    log.lines().rev().map(str::trim).find(|line| !line.is_empty() && !line.starts_with("processed "))
}

/// An error and its causes, without the verifier's log.
fn one_line(error: &dyn std::error::Error) -> String {
    let whole = error.to_string();
    let first = whole.lines().next().unwrap_or_default();
    let mut text = first.split(" Verifier output:").next().unwrap_or_default().to_owned();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        let line = cause_text.lines().next().unwrap_or_default();
        if !text.contains(line) {
            text = format!("{text}: {line}");
        }
        source = cause.source();
    }
    text
}

fn read_object(configured: Option<&Path>) -> Result<(PathBuf, Vec<u8>), CaptureError> {
    let mut candidates = Vec::new();
    if let Some(path) = configured {
        candidates.push(path.to_owned());
    } else {
        let binary = std::env::current_exe().ok();
        for folder in binary.iter().flat_map(|path| path.ancestors().skip(1).take(3)) {
            // Beside the binary; target/bpf for one in target/debug or target/debug/deps.
            candidates.push(folder.join("mesh-ebpf.o"));
            candidates.push(folder.join("bpf/mesh-ebpf.o"));
        }
        candidates.push(PathBuf::from("target/bpf/mesh-ebpf.o"));
    }
    for path in &candidates {
        match std::fs::read(path) {
            Ok(object) => return Ok((path.clone(), object)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(CaptureError::ObjectUnreadable { path: path.clone(), source }),
        }
    }
    Err(CaptureError::ObjectMissing(candidates))
}

/// Without these, every later step would fail with a less telling message.
pub(super) fn check_capabilities() -> Result<(), CaptureError> {
    // CAP_SYS_ADMIN, needed to enter pods, has CAP_BPF and CAP_PERFMON in it.
    const NEEDED: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(effective) = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) else {
        return Ok(());
    };
    let has = |bit: u32| effective & 1 << bit != 0;
    if NEEDED.iter().all(|(bit, _)| has(*bit)) {
        return Ok(());
    }
    Err(CaptureError::Capability("CAP_NET_ADMIN and CAP_SYS_ADMIN"))
}

fn make_folder(bpffs: &Path, folder: &Path) -> Result<(), CaptureError> {
    let is_bpffs = nix::sys::statfs::statfs(bpffs)
        .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC);
    if !is_bpffs {
        return Err(CaptureError::NoBpffs(bpffs.to_owned()));
    }
    for part in ["links", "pods"] {
        let path = folder.join(part);
        std::fs::create_dir_all(&path).map_err(|source| CaptureError::File {
            action: "creating",
            path,
            source,
        })?;
    }
    Ok(())
}

/// Removes pinned maps whose layout is not this program's.
fn discard_other_layout(folder: &Path) {
    let settings: Result<Map<u32, KernelSettings>, _> = Map::open(&folder.join("SETTINGS"));
    let Ok(settings) = settings else { return };
    if matches!(settings.get(&0), Ok(Some(s)) if s.layout == LAYOUT || s.layout == 0) {
        return;
    }
    tracing::info!("replacing kernel maps of another version");
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|t| t.is_dir()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Before Linux 5.11, maps count against the limit of locked memory.
fn raise_memory_limit() {
    use nix::sys::resource::{Resource, setrlimit};
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, u64::MAX, u64::MAX) {
        tracing::debug!("the limit of locked memory stays: {error}");
    }
}
