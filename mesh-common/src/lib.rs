//! Map keys, values and constants shared by the kernel programs and user space.
//!
//! Both sides read the same bytes, so everything here is `#[repr(C)]`, without padding, and fixed
//! in width. It must not depend on anything, nor hold logic beyond conversions both sides need.
#![no_std]

pub mod accel;
pub mod hand_off;

/// Changes whenever a type below does. User space compares it with what a pinned map holds, and
/// replaces maps of another layout instead of reading them.
pub const LAYOUT: u32 = 6;

/// Pods of one node that can be enrolled at a time; slots are `1..MAX_PODS`.
pub const MAX_PODS: u32 = 1024;

/// Network namespaces of one node that are remembered without being an enrolled pod's.
pub const MAX_NAMESPACES: u32 = 4096;

/// Entries of the map of noted flows, the oldest of which make room for new ones.
pub const MAX_FLOWS: u32 = 131_072;

/// A type whose bytes may be written to and read from a map.
///
/// # Safety
/// Implementors are `#[repr(C)]`, have no padding, and accept every bit pattern.
pub unsafe trait Plain: Copy + 'static {}

/// An IPv6 address, or an IPv4 address in its mapped form, as four words in network byte order:
/// the words of the kernel's contexts and packets, unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Address(pub [u32; 4]);

impl Address {
    const MAPPED: u32 = 0xffff_u32.to_be();

    /// `word` in network byte order, as in a packet.
    #[inline(always)]
    pub const fn from_v4(word: u32) -> Self {
        Self([0, 0, Self::MAPPED, word])
    }

    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        let mut words = [0; 4];
        let mut i = 0;
        while i < 4 {
            words[i] =
                u32::from_ne_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]);
            i += 1;
        }
        Self(words)
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == Self::MAPPED
    }

    /// 127.0.0.0/8, ::1, and the unspecified addresses, which `connect` takes for loopback.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            let host = u32::from_be(self.0[3]);
            host == 0 || host >> 24 == 127
        } else {
            self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && u32::from_be(self.0[3]) <= 1
        }
    }

    /// fe80::/10: valid on one interface only, so never a destination of a service.
    #[inline(always)]
    pub const fn is_link_local_v6(&self) -> bool {
        u32::from_be(self.0[0]) & 0xffc0_0000 == 0xfe80_0000
    }
}

/// A TCP flow of one pod, seen from the pod: `local` is the pod's end. Ports in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FlowKey {
    pub slot: u32,
    pub local: Address,
    pub remote: Address,
    pub local_port: u16,
    pub remote_port: u16,
}

impl FlowKey {
    /// The same flow as the pod in `slot` sees it that is its other end.
    #[inline(always)]
    pub const fn seen_by(&self, slot: u32) -> Self {
        Self {
            slot,
            local: self.remote,
            remote: self.local,
            local_port: self.remote_port,
            remote_port: self.local_port,
        }
    }
}

/// What is known about a socket or a noted flow: values of [`SocketTag::kind`], and what [`kind::of`] says of
/// a value of the flow map.
pub mod kind {
    /// The kind of a noted flow, see [`SocketTag::noted`](super::SocketTag::noted).
    #[inline(always)]
    pub const fn of(noted: u32) -> u16 {
        noted as u16
    }

    /// The worker behind a noted flow, counted from 1; 0: not known.
    #[inline(always)]
    pub const fn worker(noted: u32) -> u16 {
        (noted >> 16) as u16
    }

    /// From the proxy to the network, on behalf of the pod.
    pub const NETWORK: u16 = 1;
    /// From the proxy to the pod's own application; the key's `local` is the application's end.
    pub const APPLICATION: u16 = 2;
    /// Accepted by the pod's inbound listener, or the listener itself.
    pub const INBOUND: u16 = 3;
    /// Accepted by the pod's outbound listener, or the listener itself.
    pub const OUTBOUND: u16 = 4;
    /// From the host itself (kubelet) to the pod.
    pub const HOST: u16 = 5;
    /// A socket that asks the connect hook for its network namespace's cookie.
    pub const LEARN: u16 = 6;
    /// The connecting end of a flow of the self-test: accelerated without asking.
    pub const TEST: u16 = 7;
    /// Of a pod that is not known yet: its SYN is held.
    pub const HELD: u16 = 8;
    /// Was held.
    pub const LET_GO: u16 = 9;
}

/// Storage of one socket. Only a holder of the map can write it, so a pod cannot imitate it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SocketTag {
    pub netns: u64,
    pub slot: u32,
    pub kind: u16,
    /// The worker that connects, counted from 1; 0: not known.
    pub worker: u16,
}

impl SocketTag {
    /// What the flow map says of this socket's flow.
    #[inline(always)]
    pub const fn noted(&self) -> u32 {
        self.kind as u32 | (self.worker as u32) << 16
    }
}

/// One enrolled pod, in the array of pods at its slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pod {
    /// Bits of [`pod_flags`]; 0 is a slot without a pod.
    pub flags: u32,
}

pub mod pod_flags {
    /// New outbound connections are steered.
    pub const OUTBOUND: u32 = 1;
    /// New inbound connections are steered.
    pub const INBOUND: u32 = 1 << 1;
    /// Packets that leave the pod are judged by the guard.
    pub const GUARD: u32 = 1 << 2;
    /// The pod has excluded ports.
    pub const PORTS: u32 = 1 << 3;
    /// The pod has excluded CIDRs.
    pub const CIDRS: u32 = 1 << 4;
    /// New flows between the pod's applications and the proxy are accelerated.
    pub const ACCELERATE: u32 = 1 << 5;
    /// New flows of the pod may be handed off.
    pub const HAND_OFF: u32 = 1 << 6;
}

/// An address of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PodAddress {
    pub slot: u32,
    pub address: Address,
}

/// Which way an exclusion goes.
pub mod direction {
    pub const OUTBOUND: u16 = 0;
    pub const INBOUND: u16 = 1;
}

/// An excluded port: the destination's of an outbound connection, the pod's of an inbound one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PortKey {
    pub slot: u32,
    pub direction: u16,
    pub port: u16,
}

/// An excluded CIDR of peers, as the data of a longest-prefix key. The prefix length counts the
/// bits before the address too: [`CidrKey::PREFIX_BITS`] plus those of the address (96 more if v4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CidrKey {
    pub slot: u32,
    pub direction: u32,
    pub address: Address,
}

impl CidrKey {
    pub const PREFIX_BITS: u32 = 64;
}

/// Slot of a pod's listener in the map of listeners.
#[inline(always)]
pub const fn listener_index(slot: u32, direction: u16) -> u32 {
    slot * 2 + direction as u32
}

/// Workers that connections of the same node can be kept at; those of more go to any worker.
pub const MAX_WORKERS: u32 = 32;

/// Slot of a worker's own inbound listener of a pod in the map of workers' listeners; `worker` counts from 1.
#[inline(always)]
pub const fn worker_listener_index(slot: u32, worker: u16) -> u32 {
    slot * MAX_WORKERS + worker as u32 - 1
}

/// Node-wide settings, the one entry of their map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// Cookie of the network namespace that mesh-node itself is in; 0: unknown.
    pub host_netns: u64,
    /// The proxy is away when its last heartbeat is older than this.
    pub heartbeat_timeout_ns: u64,
    /// Id of the cgroup all pods are below; 0: there is none.
    pub kubepods: u64,
    /// How long a pod that is not known is held at most; 0: not at all.
    pub hold_ms: u32,
    pub layout: u32,
    /// Bits of [`settings_flags`].
    pub flags: u32,
    /// Mark of steered sockets, and of the proxy's towards applications.
    pub mark: u32,
    pub application_mark: u32,
    /// The bits of a mark that are ours; others' stay.
    pub mark_mask: u32,
    /// One of [`action`] for new flows that leave a pod without being the proxy's.
    pub unsteered: u32,
    /// One of [`action`] for flows whose beginning was not seen.
    pub older: u32,
}

pub mod settings_flags {
    /// With the proxy away, connections pass unsteered; otherwise they are refused.
    pub const FAIL_OPEN: u32 = 1;
    /// Write log lines.
    pub const LOG: u32 = 1 << 1;
    /// sockops is attached and notes flows; otherwise TC does.
    pub const SOCKOPS: u32 = 1 << 2;
    /// The connect hook steers; otherwise it only tells the host's sockets.
    pub const CONNECT: u32 = 1 << 3;
    /// New flows are accelerated, in pods that have it on.
    pub const ACCELERATE: u32 = 1 << 4;
    /// What was handed off goes straight; without it, through the proxy.
    pub const HAND_OFF: u32 = 1 << 5;
    /// Applications' sockets too; without it only flows between two of the proxy's own are accelerated.
    pub const APPLICATIONS: u32 = 1 << 6;
    /// When the proxy was last heard of, no pod of the node and no namespace of the cluster asked for the mesh.
    pub const UNASKED: u32 = 1 << 7;
}

pub mod action {
    /// A reset is sent to the pod.
    pub const REFUSE: u32 = 0;
    pub const PASS: u32 = 1;
}

/// Which program counted.
pub mod hook {
    pub const CONNECT: u16 = 0;
    pub const SK_LOOKUP: u16 = 1;
    pub const SOCKOPS: u16 = 2;
    pub const TC_STEER: u16 = 3;
    pub const TC_GUARD: u16 = 4;
    /// Acceleration, whichever program saw it.
    pub const ACCEL: u16 = 5;
    pub const NAMES: [&str; 6] = ["connect", "sk_lookup", "sockops", "tc_steer", "tc_guard", "accel"];
}

/// Why a connection (or, in the guard, a packet) was counted.
pub mod reason {
    /// Steered to the outbound listener.
    pub const STEERED_OUTBOUND: u16 = 0;
    /// Steered to the inbound listener.
    pub const STEERED_INBOUND: u16 = 1;
    /// Passed: excluded by port or CIDR.
    pub const PASSED_EXCLUDED: u16 = 2;
    /// Passed: loopback, link-local, or the pod's own address.
    pub const PASSED_LOCAL: u16 = 3;
    /// Passed: one of the proxy's own.
    pub const PASSED_OWN: u16 = 4;
    /// Passed: from the host itself.
    pub const PASSED_HOST: u16 = 5;
    /// Passed: the proxy is away and the mode is open.
    pub const PASSED_PROXY_AWAY: u16 = 6;
    /// Refused: the proxy is away and the mode is closed.
    pub const REFUSED_PROXY_AWAY: u16 = 7;
    /// Refused: a new flow that was not steered.
    pub const REFUSED_UNSTEERED: u16 = 8;
    /// Passed although not steered, as configured.
    pub const PASSED_UNSTEERED: u16 = 9;
    /// Refused: a flow older than the pod's enrolment.
    pub const REFUSED_OLDER: u16 = 10;
    /// Passed although older than the pod's enrolment, as configured.
    pub const PASSED_OLDER: u16 = 11;
    /// Dropped: the source address is not the pod's.
    pub const SPOOFED: u16 = 12;
    /// Dropped: TCP with IP options.
    pub const IP_OPTIONS: u16 = 13;
    /// Dropped: TCP, or what may be TCP, in fragments.
    pub const FRAGMENT: u16 = 14;
    /// Dropped: headers that cannot be followed to TCP or to something else.
    pub const HEADERS: u16 = 15;
    /// The kernel refused something a program needed.
    pub const FAILED: u16 = 16;
    /// A flow that is accelerated.
    pub const ACCELERATED: u16 = 17;
    /// A flow on TCP: its owner's sockets are being learned.
    pub const TCP_LEARNING: u16 = 18;
    /// A flow on TCP: its owner was seen with blocking sockets.
    pub const TCP_BLOCKING: u16 = 19;
    /// A flow on TCP: its owner puts a protocol on its sockets (kTLS, MPTCP).
    pub const TCP_PROTOCOL: u16 = 20;
    /// A flow on TCP: its owner sends without copying and waits for completions.
    pub const TCP_ZEROCOPY: u16 = 21;
    /// A flow on TCP: its owner sets the low-water mark of reading.
    pub const TCP_LOW_WATERMARK: u16 = 22;
    /// A flow on TCP: its pod splices from sockets.
    pub const TCP_SPLICE: u16 = 23;
    /// A direction that was accelerated and went to TCP: more waited at its reader than may.
    pub const LEFT_STREAM: u16 = 24;
    /// The same: the other end was not there to take it.
    pub const LEFT_NO_PEER: u16 = 25;
    /// The same: the reader has become what is never accelerated.
    pub const LEFT_READER: u16 = 26;
    /// A direction that was never accelerated: bytes were on TCP before both ends were known.
    pub const LEFT_UNCLEAN: u16 = 27;
    /// A flow of an application whose bytes go straight to the other application.
    pub const HANDED_OFF: u16 = 28;
    /// One half of a connection that the proxy carries: its application's flow is not accelerated.
    pub const KEPT_APPLICATION: u16 = 29;
    /// The same: its other end is no other half of this proxy, or the way there is not accelerated.
    pub const KEPT_PEER: u16 = 30;
    /// The same: TLS is added or taken away.
    pub const KEPT_TLS: u16 = 31;
    /// The same: as many as can be are handed off.
    pub const KEPT_FULL: u16 = 32;
    /// Steered to the inbound listener of the worker that connects, from another pod of the node.
    pub const STEERED_SIBLING: u16 = 33;
    /// A flow on TCP: the kernel does not show who splices, and its application might.
    pub const TCP_SPLICE_UNSEEN: u16 = 34;
    pub const NAMES: [&str; 35] = [
        "steered_outbound",
        "steered_inbound",
        "passed_excluded",
        "passed_local",
        "passed_own",
        "passed_host",
        "passed_proxy_away",
        "refused_proxy_away",
        "refused_unsteered",
        "passed_unsteered",
        "refused_older",
        "passed_older",
        "spoofed",
        "ip_options",
        "fragment",
        "headers",
        "failed",
        "accelerated",
        "tcp_learning",
        "tcp_blocking",
        "tcp_protocol",
        "tcp_zerocopy",
        "tcp_low_watermark",
        "tcp_splice",
        "left_stream",
        "left_no_peer",
        "left_reader",
        "left_unclean",
        "handed_off",
        "kept_application",
        "kept_peer",
        "kept_tls",
        "kept_full",
        "steered_sibling",
        "tcp_splice_unseen",
    ];
}

/// Key of a per-CPU counter (`u64`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct CounterKey {
    pub slot: u32,
    pub hook: u16,
    pub reason: u16,
}

macro_rules! plain {
    ($($name:ty),*) => {
        // SAFETY: each is `#[repr(C)]` of integers only, ordered so that no padding arises.
        $(unsafe impl Plain for $name {})*
    };
}
plain!(u32, i32, u64, Address, FlowKey, SocketTag, Pod, PodAddress, PortKey, CidrKey, Settings, CounterKey);
plain!(
    accel::OwnerKey,
    accel::Owner,
    accel::PairKey,
    accel::Pair,
    accel::End,
    accel::Carried,
    accel::Offsets
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_unspecified_stay_in_the_pod_and_mapped_addresses_are_ipv4() {
        let v4 = |a: [u8; 4]| Address::from_v4(u32::from_ne_bytes(a));
        assert!(v4([127, 9, 9, 9]).is_loopback());
        assert!(v4([0, 0, 0, 0]).is_loopback());
        assert!(!v4([128, 0, 0, 1]).is_loopback());
        let mut bytes = [0; 16];
        assert!(Address::from_bytes(bytes).is_loopback());
        bytes[15] = 1;
        assert!(Address::from_bytes(bytes).is_loopback());
        bytes[0] = 0xfd;
        assert!(!Address::from_bytes(bytes).is_loopback());
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
        assert_eq!(Address::from_bytes(mapped), v4([10, 0, 0, 1]));
        assert!(Address::from_bytes(mapped).is_v4());
    }

    #[test]
    fn map_types_have_no_padding_for_the_kernel_to_compare() {
        assert_eq!(size_of::<FlowKey>(), 40);
        assert_eq!(size_of::<SocketTag>(), 16);
        assert_eq!(size_of::<PodAddress>(), 20);
        assert_eq!(size_of::<PortKey>(), 8);
        assert_eq!(size_of::<CidrKey>(), 24);
        assert_eq!(size_of::<Settings>(), 24 + 8 * 4);
        assert_eq!(size_of::<CounterKey>(), 8);
        assert_eq!(size_of::<accel::OwnerKey>(), 16);
        assert_eq!(size_of::<accel::PairKey>(), 44);
        assert_eq!(size_of::<accel::Pair>(), 48);
        assert_eq!(size_of::<accel::End>(), 112);
        assert_eq!(size_of::<hand_off::Direction>(), 8 * hand_off::word::COUNT);
        assert_eq!(size_of::<accel::Offsets>(), 29 * 4);
        assert_eq!(hook::NAMES.len(), hook::ACCEL as usize + 1);
        assert_eq!(reason::NAMES.len(), reason::TCP_SPLICE_UNSEEN as usize + 1);
    }
}
