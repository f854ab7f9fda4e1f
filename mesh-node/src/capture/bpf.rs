//! The few `bpf(2)` commands that aya does not offer in the form needed: links of any target that
//! are adopted by their pin, and maps shared by all worker threads.
//!
//! A leaf with `unsafe` in it: it knows nothing of pods or steering.

use std::ffi::CString;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use mesh_common::Plain;

const MAP_LOOKUP_ELEM: i64 = 1;
const MAP_UPDATE_ELEM: i64 = 2;
const MAP_DELETE_ELEM: i64 = 3;
const MAP_GET_NEXT_KEY: i64 = 4;
const OBJ_PIN: i64 = 6;
const OBJ_GET: i64 = 7;
const PROG_ATTACH: i64 = 8;
const PROG_TEST_RUN: i64 = 10;
const PROG_QUERY: i64 = 16;
const LINK_CREATE: i64 = 28;
const LINK_UPDATE: i64 = 29;

/// `bpf_attach_type` of the hooks used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum AttachType {
    CgroupEgress = 1,
    SockOps = 3,
    SkMsgVerdict = 7,
    Connect4 = 10,
    Connect6 = 11,
    PostBind4 = 12,
    PostBind6 = 13,
    SetSockOpt = 22,
    SkLookup = 36,
    TcxIngress = 46,
    TcxEgress = 47,
}

/// What a link attaches a program to.
pub(super) enum Target<'a> {
    /// A cgroup's folder or a network namespace.
    Fd(BorrowedFd<'a>),
    /// An interface of the current network namespace, before all other programs there.
    Interface(u32),
}

/// The kernel's `bpf_attr`, as far as the commands here fill it; the rest is zero.
#[repr(C, align(8))]
struct Attr([u8; 64]);

impl Attr {
    fn new() -> Self {
        Self([0; 64])
    }

    fn u32(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(mut self, at: usize, value: u64) -> Self {
        self.0[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn pointer<T: ?Sized>(self, at: usize, value: *const T) -> Self {
        self.u64(at, value.cast::<u8>() as u64)
    }

    /// # Safety
    /// Pointers in the attributes are valid for what `command` reads and writes.
    unsafe fn call(&self, command: i64) -> io::Result<i64> {
        // SAFETY: the attributes are readable for their size; their pointers are the caller's word.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_ptr(), self.0.len()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }

    /// # Safety
    /// As [`Self::call`]; the command returns a descriptor.
    unsafe fn call_fd(&self, command: i64) -> io::Result<OwnedFd> {
        // SAFETY: by the caller; a descriptor just returned is ours alone.
        unsafe { Ok(OwnedFd::from_raw_fd(self.call(command)? as RawFd)) }
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Opens what is pinned at `path`.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: the path outlives the call.
    unsafe { Attr::new().pointer(0, path.as_ptr()).call_fd(OBJ_GET) }
}

fn pin(path: &Path, object: BorrowedFd<'_>) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: the path outlives the call.
    unsafe { Attr::new().pointer(0, path.as_ptr()).u32(8, object.as_raw_fd() as u32).call(OBJ_PIN).map(drop) }
}

/// Attaches `program` by a link pinned at `path`. A link already pinned there gets the new program
/// in one step, keeping its place among other programs; one whose target is gone is replaced.
pub(super) fn attach_pinned(
    path: &Path,
    program: BorrowedFd<'_>,
    target: &Target<'_>,
    kind: AttachType,
) -> io::Result<()> {
    let program = program.as_raw_fd() as u32;
    if let Ok(link) = open_pin(path) {
        let attr = Attr::new().u32(0, link.as_raw_fd() as u32).u32(4, program);
        // SAFETY: no pointers.
        if unsafe { attr.call(LINK_UPDATE) }.is_ok() {
            return Ok(());
        }
        std::fs::remove_file(path)?;
    }
    let attr = match target {
        Target::Fd(fd) => Attr::new().u32(4, fd.as_raw_fd() as u32),
        Target::Interface(index) => {
            // BPF_F_BEFORE without saying before which: before all.
            Attr::new().u32(4, *index).u32(12, 1 << 3)
        }
    };
    // SAFETY: no pointers.
    let link = unsafe { attr.u32(0, program).u32(8, kind as u32).call_fd(LINK_CREATE)? };
    pin(path, link.as_fd())
}

/// Makes `program` judge what the sockets of the map `sockets` send, those that come from now on.
pub(super) fn attach_to_map(program: BorrowedFd<'_>, sockets: BorrowedFd<'_>) -> io::Result<()> {
    let attr = Attr::new()
        .u32(0, sockets.as_raw_fd() as u32)
        .u32(4, program.as_raw_fd() as u32)
        .u32(8, AttachType::SkMsgVerdict as u32);
    // SAFETY: no pointers.
    unsafe { attr.call(PROG_ATTACH).map(drop) }
}

/// Runs a raw tracepoint program here and now, and returns what it returns.
pub(super) fn run(program: BorrowedFd<'_>, arguments: &[u64; 2]) -> io::Result<u32> {
    let mut attr = Attr::new()
        .u32(0, program.as_raw_fd() as u32)
        .u32(40, size_of_val(arguments) as u32)
        .pointer(48, arguments.as_ptr());
    // SAFETY: the kernel reads the arguments, and writes the result into the attributes, all of which are ours.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_TEST_RUN, attr.0.as_mut_ptr(), attr.0.len()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u32::from_ne_bytes([attr.0[4], attr.0[5], attr.0[6], attr.0[7]]))
}

/// The first eight bytes of an array map that was made to be mapped, as this process's memory.
#[derive(Debug)]
pub(super) struct Mapped {
    word: *const AtomicU64,
    bytes: usize,
}

// SAFETY: memory that is only read, atomically.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps the array pinned at `path`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let map = open_pin(path)?;
        // SAFETY: no pointers; a page is what the smallest array takes.
        let (bytes, address) = unsafe {
            let bytes = libc::sysconf(libc::_SC_PAGESIZE).max(4096) as usize;
            let address = libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            );
            (bytes, address)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { word: address.cast::<AtomicU64>().cast_const(), bytes })
    }

    pub(super) fn load(&self) -> u64 {
        // SAFETY: mapped for as long as `self` lives, and aligned to a page.
        unsafe { (*self.word).load(Ordering::Acquire) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: what `open` mapped.
        unsafe { libc::munmap(self.word.cast_mut().cast(), self.bytes) };
    }
}

/// An array map that was made to be mapped, as this process's memory: words that programs read and write too.
#[derive(Debug)]
pub(super) struct SharedWords {
    first: *const AtomicU64,
    words: usize,
}

// SAFETY: words that are only accessed atomically.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps the array pinned at `path`, whose entries have `words` words together.
    pub(super) fn open(path: &Path, words: usize) -> io::Result<Self> {
        let map = open_pin(path)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: no pointers; the kernel refuses more bytes than the array has.
        let address = unsafe {
            libc::mmap(std::ptr::null_mut(), words * 8, protection, libc::MAP_SHARED, map.as_raw_fd(), 0)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { first: address.cast::<AtomicU64>().cast_const(), words })
    }

    /// The word with this number; the array has so many.
    pub(super) fn word(&self, number: usize) -> &AtomicU64 {
        assert!(number < self.words, "word {number} of {}", self.words);
        // SAFETY: mapped for as long as `self` lives, aligned to a page, and within its length.
        unsafe { &*self.first.add(number) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: what `open` mapped.
        unsafe { libc::munmap(self.first.cast_mut().cast(), self.words * 8) };
    }
}

/// How many programs are attached to a hook of the cgroup itself (not of those above it).
pub(super) fn count_programs(cgroup: BorrowedFd<'_>, kind: AttachType) -> io::Result<u32> {
    let mut attr = Attr::new().u32(0, cgroup.as_raw_fd() as u32).u32(4, kind as u32);
    // SAFETY: no pointers; the kernel writes the number into the attributes, all of which are ours.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_QUERY, attr.0.as_mut_ptr(), attr.0.len()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u32::from_ne_bytes([attr.0[24], attr.0[25], attr.0[26], attr.0[27]]))
}

/// A map by its descriptor: safe to use from any thread, as the kernel synchronizes each call.
#[derive(Debug)]
pub(super) struct Map<K, V> {
    fd: OwnedFd,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Plain, V: Plain> Map<K, V> {
    /// Opens the map pinned at `path`. Its key and value are `K` and `V`: the kernel reads and
    /// writes as many bytes as the map was made with.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { fd: open_pin(path)?, types: PhantomData })
    }

    fn attr(&self, key: &K) -> Attr {
        Attr::new().u32(0, self.fd.as_raw_fd() as u32).pointer(8, key)
    }

    pub(super) fn insert(&self, key: &K, value: &V) -> io::Result<()> {
        // SAFETY: key and value are plain and of the map's sizes.
        unsafe { self.attr(key).pointer(16, value).call(MAP_UPDATE_ELEM).map(drop) }
    }

    pub(super) fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::zeroed();
        // SAFETY: the kernel writes one value of the map's size.
        match unsafe { self.attr(key).pointer(16, value.as_mut_ptr()).call(MAP_LOOKUP_ELEM) } {
            // SAFETY: every bit pattern is a value.
            Ok(_) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes an entry; one that is not there is no error.
    pub(super) fn remove(&self, key: &K) -> io::Result<()> {
        // SAFETY: the key is plain and of the map's size.
        match unsafe { self.attr(key).call(MAP_DELETE_ELEM) } {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Err(error),
            _ => Ok(()),
        }
    }

    /// All keys. Entries that come and go meanwhile may be missed or, in a hash map, seen twice.
    pub(super) fn keys(&self) -> io::Result<Vec<K>> {
        let mut keys = Vec::new();
        let mut last: Option<K> = None;
        loop {
            let mut next = MaybeUninit::<K>::zeroed();
            let attr = Attr::new()
                .u32(0, self.fd.as_raw_fd() as u32)
                .pointer(8, last.as_ref().map_or(std::ptr::null(), std::ptr::from_ref))
                .pointer(16, next.as_mut_ptr());
            // SAFETY: the kernel reads at most one key and writes one.
            match unsafe { attr.call(MAP_GET_NEXT_KEY) } {
                Ok(_) => {
                    // SAFETY: every bit pattern is a key.
                    let key = unsafe { next.assume_init() };
                    keys.push(key);
                    last = Some(key);
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(keys),
                Err(error) => return Err(error),
            }
        }
    }
}

impl<K: Plain, V: Plain + Default> Map<K, V> {
    /// Each CPU's value of a per-CPU map whose values are multiples of eight bytes.
    pub(super) fn per_cpu(&self, key: &K, possible_cpus: usize) -> io::Result<Vec<V>> {
        const { assert!(size_of::<V>().is_multiple_of(8)) };
        let mut values = vec![V::default(); possible_cpus];
        // SAFETY: the kernel writes one value, rounded up to eight bytes, per possible CPU.
        unsafe { self.attr(key).pointer(16, values.as_mut_ptr()).call(MAP_LOOKUP_ELEM)? };
        Ok(values)
    }

    /// Sets every CPU's value to zero.
    pub(super) fn clear_per_cpu(&self, key: &K, possible_cpus: usize) -> io::Result<()> {
        const { assert!(size_of::<V>().is_multiple_of(8)) };
        let values = vec![V::default(); possible_cpus];
        // SAFETY: the kernel reads as many values.
        unsafe { self.attr(key).pointer(16, values.as_ptr()).call(MAP_UPDATE_ELEM).map(drop) }
    }
}

impl<K: Plain> Map<K, u64> {
    /// Adds one to a per-CPU counter that only one thread of one process counts.
    pub(super) fn count(&self, key: &K, possible_cpus: usize) -> io::Result<()> {
        let mut values = vec![0_u64; possible_cpus];
        // SAFETY: the kernel writes and reads eight bytes per possible CPU.
        unsafe {
            match self.attr(key).pointer(16, values.as_mut_ptr()).call(MAP_LOOKUP_ELEM) {
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
                _ => {}
            }
            values[0] += 1;
            self.attr(key).pointer(16, values.as_ptr()).call(MAP_UPDATE_ELEM).map(drop)
        }
    }

    /// The sum over all CPUs of a per-CPU value.
    pub(super) fn sum(&self, key: &K, possible_cpus: usize) -> io::Result<u64> {
        let mut values = vec![0_u64; possible_cpus];
        // SAFETY: the kernel writes eight bytes per possible CPU.
        unsafe { self.attr(key).pointer(16, values.as_mut_ptr()).call(MAP_LOOKUP_ELEM)? };
        Ok(values.iter().sum())
    }
}

impl<V: Plain> Map<i32, V> {
    /// Sets the storage of `socket`, in a map of socket storage.
    pub(super) fn tag(&self, socket: BorrowedFd<'_>, value: &V) -> io::Result<()> {
        self.insert(&socket.as_raw_fd(), value)
    }
}

impl Map<u32, i32> {
    /// Puts a listening socket into a map of sockets.
    pub(super) fn set_socket(&self, index: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.insert(&index, &socket.as_raw_fd())
    }
}
