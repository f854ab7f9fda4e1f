//! All maps, and the few constants that user space sets before loading.
//!
//! Every map is pinned by its name in the instance's folder, so that programs of a new process
//! go on with what the old one knew.

use aya_ebpf::{
    Global,
    bindings::{
        BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE,
        bpf_map_type::BPF_MAP_TYPE_SK_STORAGE, bpf_sock,
    },
    helpers::generated::{bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_sk_release, bpf_sk_storage_get},
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf, SockHash, SockMap},
};
use mesh_common::{
    Address, CidrKey, CounterKey, FlowKey, MAX_FLOWS, MAX_NAMESPACES, MAX_PODS, MAX_WORKERS, Pod, PodAddress,
    PortKey, Settings, SocketTag,
    accel::{Carried, End, MAX_ENDS, MAX_OWNERS, Offsets, Owner, OwnerKey, Pair, PairKey},
    direction,
    hand_off::{Direction, MAX_DIRECTIONS},
    listener_index,
};

/// The pod that a per-namespace program instance belongs to. Those hooks cannot ask the kernel
/// which namespace they run in, and an address would let one pod speak for another.
#[unsafe(no_mangle)]
pub static SLOT: Global<u32> = Global::new(0);

/// Whether `sk_lookup` can see the interface a packet came in on (Linux 5.17); the verifier drops
/// the code that reads it where it cannot.
#[unsafe(no_mangle)]
pub static HAS_INGRESS_IFINDEX: Global<u32> = Global::new(0);

/// Whether sockops does its part of acceleration; the verifier drops the code where it does not.
#[unsafe(no_mangle)]
pub static ACCELERATES: Global<u32> = Global::new(1);

#[map]
pub static SETTINGS: Array<Settings> = Array::pinned(1, 0);

/// Monotonic time in nanoseconds of the proxy's last sign of life.
#[map]
pub static HEARTBEAT: Array<u64> = Array::pinned(1, 0);

/// Enrolled pods by slot.
#[map]
pub static PODS: Array<Pod> = Array::pinned(MAX_PODS, 0);

/// Slot of the pod that owns a network namespace, by the namespace's cookie.
#[map]
pub static NAMESPACES: HashMap<u64, u32> = HashMap::pinned(MAX_PODS, 0);

/// Slot of the pod behind a host interface.
#[map]
pub static INTERFACES: HashMap<u32, u32> = HashMap::pinned(MAX_PODS * 2, 0);

/// The addresses of each pod.
#[map]
pub static POD_ADDRESSES: HashMap<PodAddress, u32> = HashMap::pinned(MAX_PODS * 4, 0);

/// Slot of the pod that has an address; only for what the host sends.
#[map]
pub static ADDRESS_PODS: HashMap<Address, u32> = HashMap::pinned(MAX_PODS * 4, 0);

#[map]
pub static EXCLUDED_PORTS: HashMap<PortKey, u32> = HashMap::pinned(MAX_PODS * 16, BPF_F_NO_PREALLOC);

#[map]
pub static EXCLUDED_CIDRS: LpmTrie<CidrKey, u32> = LpmTrie::pinned(MAX_PODS * 16, BPF_F_NO_PREALLOC);

/// Two listeners per pod, see `mesh_common::listener_index`.
#[map]
pub static LISTENERS: SockMap = SockMap::pinned(MAX_PODS * 2, 0);

/// The inbound listener of each worker of each pod, see `mesh_common::worker_listener_index`.
#[map]
pub static WORKER_LISTENERS: SockMap = SockMap::pinned(MAX_PODS * MAX_WORKERS, 0);

/// Flows that may cross the guard or must not be captured again, by what they are.
#[map]
pub static FLOWS: LruHashMap<FlowKey, u32> = LruHashMap::pinned(MAX_FLOWS, 0);

/// Flows that TC brought to the proxy, by the sequence number they began with: their later segments follow.
#[map]
pub static STEERED: LruHashMap<FlowKey, u32> = LruHashMap::pinned(MAX_FLOWS / 8, 0);

#[map]
pub static COUNTERS: PerCpuHashMap<CounterKey, u64> = PerCpuHashMap::pinned(MAX_PODS * 8, BPF_F_NO_PREALLOC);

/// Network namespaces that are known to be no enrolled pod's, by their cookie.
#[map]
pub static STRANGERS: LruHashMap<u64, u32> = LruHashMap::pinned(MAX_NAMESPACES, 0);

/// When a network namespace that nobody knows first connected, by its cookie.
#[map]
pub static NEWCOMERS: LruHashMap<u64, u64> = LruHashMap::pinned(MAX_NAMESPACES, 0);

/// Tells user space of them, by the cookie.
#[map]
pub static NEWS: RingBuf = RingBuf::pinned(64 * 1024, 0);

#[btf_map]
pub static SOCKETS: SocketStorage<SocketTag, INHERITED> = SocketStorage::new();

/// Both ends of accelerated flows, and applications' sockets that are being learned.
#[btf_map]
pub static ENDS: SocketStorage<End, OWN> = SocketStorage::new();

/// The sockets that messages can be given to. An entry goes with its socket.
#[map]
pub static ACCELERATED: SockHash<u64> = SockHash::pinned(MAX_ENDS, 0);

/// Connections whose accepting end is not known yet.
#[map]
pub static PAIRS: LruHashMap<PairKey, Pair> = LruHashMap::pinned(MAX_FLOWS / 8, 0);

/// What is known of the owners of applications' sockets.
#[map]
pub static OWNERS: LruHashMap<OwnerKey, Owner> = LruHashMap::pinned(MAX_OWNERS, 0);

#[map]
pub static OFFSETS: Array<Offsets> = Array::pinned(1, 0);

/// The key of the end whose direction last went to TCP while something still waited at its reader; the proxy has it
/// in its own memory. Every key comes once, so whoever saw one and finds it again knows that none came since;
/// of times, an older one that was written late would hide a newer one.
#[map]
pub static SWITCHED: Array<u64> = Array::pinned(1, BPF_F_MMAPABLE);

/// What went past TCP, by the slot of the pod.
#[map]
pub static CARRIED: PerCpuArray<Carried> = PerCpuArray::pinned(MAX_PODS, 0);

/// The directions that are handed off, in memory that the proxy has too.
#[map]
pub static DIRECTIONS: Array<Direction> = Array::pinned(MAX_DIRECTIONS, BPF_F_MMAPABLE);

/// The number of the direction that begins at an application's socket, by the socket's key.
#[map]
pub static HANDED_OFF: HashMap<u64, u32> = HashMap::pinned(MAX_DIRECTIONS, BPF_F_NO_PREALLOC);

const OWN: usize = BPF_F_NO_PREALLOC as usize;
const INHERITED: usize = OWN | 1 << 9/* BPF_F_CLONE: accepted sockets inherit */;
const PIN_BY_NAME: usize = 1;

/// Storage of sockets, declared by BTF because the kernel asks for it. Written out here because
/// aya's own type has neither the clone flag nor an accessor for other hooks than `connect`.
#[repr(C)]
pub struct SocketStorage<T, const FLAGS: usize> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
    pinning: *const [i32; PIN_BY_NAME],
}

// SAFETY: the fields are never read; the loader replaces the symbol by the map's descriptor.
unsafe impl<T, const FLAGS: usize> Sync for SocketStorage<T, FLAGS> {}

impl<T: Copy, const FLAGS: usize> SocketStorage<T, FLAGS> {
    const fn new() -> Self {
        use core::ptr::null;
        Self {
            r#type: null(),
            key: null(),
            value: null(),
            max_entries: null(),
            map_flags: null(),
            pinning: null(),
        }
    }

    /// The value of `sk`, if user space or another program gave it one.
    ///
    /// # Safety
    /// `sk` is a full socket from the program's context, checked for null where it can be.
    #[inline(always)]
    pub unsafe fn get<'a>(&self, sk: *mut bpf_sock) -> Option<&'a mut T> {
        let map = core::ptr::from_ref(self).cast_mut().cast();
        // SAFETY: the storage lives as long as the socket, which outlives the program's run.
        unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0).cast::<T>().as_mut() }
    }

    /// Gives `sk` the value, or overwrites its own.
    ///
    /// # Safety
    /// As for [`Self::get`].
    #[inline(always)]
    pub unsafe fn set(&self, sk: *mut bpf_sock, mut value: T) {
        let map = core::ptr::from_ref(self).cast_mut().cast();
        let initial = core::ptr::from_mut(&mut value).cast();
        // SAFETY: as above; `initial` is a value of the map's type.
        let stored = unsafe {
            bpf_sk_storage_get(map, sk.cast(), initial, BPF_SK_STORAGE_GET_F_CREATE.into())
                .cast::<T>()
                .as_mut()
        };
        if let Some(stored) = stored {
            *stored = value;
        }
    }
}

#[inline(always)]
pub fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// The pod in `slot`, if one is enrolled there.
#[inline(always)]
pub fn pod(slot: u32) -> Option<&'static Pod> {
    PODS.get(slot).filter(|pod| pod.flags != 0)
}

/// Whether the proxy has shown life recently.
#[inline(always)]
pub fn proxy_alive(settings: &Settings) -> bool {
    let Some(beat) = HEARTBEAT.get(0) else { return false };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    now.wrapping_sub(*beat) < settings.heartbeat_timeout_ns
}

/// Whether the proxy takes new connections of the pod: it is alive, and its outbound listener
/// exists, which is gone at once when the proxy dies, long before the heartbeat is old.
#[inline(always)]
pub fn proxy_serves(settings: &Settings, slot: u32) -> bool {
    if !proxy_alive(settings) {
        return false;
    }
    let index = listener_index(slot, direction::OUTBOUND);
    let map = core::ptr::from_ref(&LISTENERS).cast_mut().cast();
    // SAFETY: a lookup in a map of sockets takes a reference, which is given back.
    unsafe {
        let sk = bpf_map_lookup_elem(map, core::ptr::from_ref(&index).cast());
        if sk.is_null() {
            return false;
        }
        bpf_sk_release(sk);
    }
    true
}

/// Adds one to a counter.
#[inline(always)]
pub fn count(slot: u32, hook: u16, reason: u16) {
    let key = CounterKey { slot, hook, reason };
    if let Some(counter) = COUNTERS.get_ptr_mut(&key) {
        // SAFETY: this CPU's own value; programs of one CPU do not interrupt each other here in a
        // way that could do worse than lose one increment.
        unsafe { *counter += 1 };
    } else {
        // Losing the race against another CPU loses one count; a full map loses this key's.
        let _ = COUNTERS.insert(&key, &1, 0);
    }
}
