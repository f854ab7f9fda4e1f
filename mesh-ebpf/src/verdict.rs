//! Which connections are steered: the one place that `connect`, TC and the guard ask, so that
//! they never disagree.

use aya_ebpf::maps::lpm_trie::Key;
use mesh_common::{Address, CidrKey, Pod, PodAddress, PortKey, direction, pod_flags, reason};

use crate::maps::{EXCLUDED_CIDRS, EXCLUDED_PORTS, POD_ADDRESSES};

/// Whether a connection from the pod to `remote` is left alone, and why.
#[inline(always)]
pub fn outbound_passes(slot: u32, pod: &Pod, remote: &Address, port: u16) -> Option<u16> {
    if remote.is_loopback() || remote.is_link_local_v6() || is_address_of(slot, remote) {
        return Some(reason::PASSED_LOCAL);
    }
    if pod.flags & pod_flags::OUTBOUND == 0 || excluded(slot, pod, direction::OUTBOUND, remote, port) {
        return Some(reason::PASSED_EXCLUDED);
    }
    None
}

/// Whether a connection from `remote` to the pod's `port` is left alone.
#[inline(always)]
pub fn inbound_excluded(slot: u32, pod: &Pod, remote: &Address, port: u16) -> bool {
    pod.flags & pod_flags::INBOUND == 0 || excluded(slot, pod, direction::INBOUND, remote, port)
}

#[inline(always)]
pub fn is_address_of(slot: u32, address: &Address) -> bool {
    // SAFETY: only presence is looked at.
    unsafe { POD_ADDRESSES.get(&PodAddress { slot, address: *address }) }.is_some()
}

#[inline(always)]
fn excluded(slot: u32, pod: &Pod, direction: u16, remote: &Address, port: u16) -> bool {
    if pod.flags & pod_flags::PORTS != 0 {
        // SAFETY: only presence is looked at.
        if unsafe { EXCLUDED_PORTS.get(&PortKey { slot, direction, port }) }.is_some() {
            return true;
        }
    }
    if pod.flags & pod_flags::CIDRS != 0 {
        let data = CidrKey { slot, direction: direction.into(), address: *remote };
        if EXCLUDED_CIDRS.get(&Key::new(CidrKey::PREFIX_BITS + 128, data)).is_some() {
            return true;
        }
    }
    false
}
