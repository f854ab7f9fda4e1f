//! One pod: everything that is undone when it leaves (`enrol.rs` has done it).
//!
//! The order is what matters here, which the callers keep: nothing new is steered before what is already steered
//! loses its way. Nothing here stops at a failure: what cannot be undone is said, and the rest is undone.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mesh_common::{MAX_WORKERS, Pod, direction, listener_index, pod_flags, worker_listener_index};

use super::accel;
use super::enrol::clear_exclusions;
use super::netlink::Netlink;
use super::netns::{Namespace, address};
use super::programs::{Maps, Programs};
use super::record::Record;
use super::sysctl;

/// First step of release: nothing new is marked or judged, and the host's connections are no longer
/// told apart. What is marked already still finds its listener.
pub(super) fn stop_steering(maps: &Maps, slot: u32, cookie: Option<u64>, ips: &[IpAddr]) {
    if let Ok(Some(pod)) = maps.pods.get(&slot) {
        // Before the connect hook lets connections pass, the guard must.
        let _ = maps.pods.insert(&slot, &Pod { flags: pod.flags & !pod_flags::GUARD });
    }
    let of_slot = |key: &u64| maps.namespaces.get(key).ok().flatten() == Some(slot);
    let cookies = match cookie {
        Some(cookie) => vec![cookie],
        None => maps.namespaces.keys().unwrap_or_default().into_iter().filter(of_slot).collect(),
    };
    for cookie in cookies {
        // It is known, so that nothing of it is held.
        let _ = maps.strangers.insert(&cookie, &1);
        let _ = maps.namespaces.remove(&cookie);
    }
    for ip in ips {
        if maps.address_pods.get(&address(*ip)).ok().flatten() == Some(slot) {
            let _ = maps.address_pods.remove(&address(*ip));
        }
    }
}

/// Second step: new connections inside the pod meet the application itself.
pub(super) fn stop_lookup(programs: &Programs, maps: &Maps, slot: u32) {
    let _ = maps.pods.insert(&slot, &Pod::default());
    let _ = std::fs::remove_file(programs.pod_folder(slot).join("sk_lookup"));
}

/// Last step, when no connection of the pod is left: the programs forget the pod.
pub(super) fn undo_inside_maps(programs: &Programs, maps: &Maps, record: &Record) {
    let _ = maps.pods.insert(&record.slot, &Pod::default());
    forget_pod(maps, record);
    remove_folder(&programs.pod_folder(record.slot));
}

/// The namespace, if it is still the one of the record, is made as it was. Needs no map, for cleanup.
pub(super) fn undo_outside_maps(host: &Namespace, record: &Record) {
    for interface in record.host_interfaces.iter().filter(|i| i.filter) {
        super::cleanup::remove_filter(interface, true);
    }
    let Some(namespace) = Namespace::find(&record.netns, record.netns_id) else { return };
    let result = host.enter(&namespace, || -> Result<(), (String, std::io::Error)> {
        for interface in record.pod_interfaces.iter().filter(|i| i.filter) {
            super::cleanup::remove_filter(interface, false);
        }
        let named = |error| ("rule and route".to_owned(), error);
        let mut netlink = Netlink::open().map_err(named)?;
        for (present, v6) in [(record.v4, false), (record.v6, true)] {
            if present {
                netlink.remove_steering(&record.steering, v6).map_err(named)?;
            }
        }
        sysctl::restore(&record.sysctls)
    });
    match result {
        Ok(Ok(())) => {}
        Ok(Err((name, error))) => tracing::warn!("pod {}: {name} could not be put back: {error}", record.pod),
        Err(error) => {
            tracing::warn!("pod {}: its network namespace could not be entered: {error}", record.pod)
        }
    }
}

fn forget_pod(maps: &Maps, record: &Record) {
    let slot = record.slot;
    clear_exclusions(maps, slot);
    for key in maps.pod_addresses.keys().unwrap_or_default() {
        if key.slot == slot {
            let _ = maps.pod_addresses.remove(&key);
        }
    }
    accel::forget(maps, slot);
    for interface in &record.host_interfaces {
        if maps.interfaces.get(&interface.index).ok().flatten() == Some(slot) {
            let _ = maps.interfaces.remove(&interface.index);
        }
    }
    for key in maps.counters.keys().unwrap_or_default() {
        if key.slot == slot {
            let _ = maps.counters.remove(&key);
        }
    }
    let stale: BTreeSet<_> =
        [direction::OUTBOUND, direction::INBOUND].map(|d| listener_index(slot, d)).into();
    for index in stale {
        // Gone by itself once the listeners are closed.
        let _ = maps.listeners.remove(&index);
    }
    for worker in 1..=MAX_WORKERS as u16 {
        let _ = maps.worker_listeners.remove(&worker_listener_index(slot, worker));
    }
}

/// Removes a folder of pins and what is in it; a link whose pin goes is detached.
pub(super) fn remove_folder(folder: &std::path::Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_folder(&entry.path());
        } else {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    let _ = std::fs::remove_dir(folder);
}
