//! What the kernel programs counted, by pod, hook and reason.

use std::collections::BTreeMap;

use mesh_common::{hook, reason};

use super::manager::Roster;
use super::programs::Maps;

/// One counter of one enrolled pod since its enrolment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    /// `namespace/name` of the pod.
    pub pod: String,
    /// `connect`, `sk_lookup`, `sockops`, `tc_steer` or `tc_guard`.
    pub hook: &'static str,
    /// As `steered_outbound`; see `mesh_common::reason`.
    pub reason: &'static str,
    /// Connections; in `tc_guard`, packets.
    pub value: u64,
}

/// Reads all counters, in a stable order.
pub(super) fn read(maps: &Maps, roster: &Roster) -> std::io::Result<Vec<Counter>> {
    let pods = roster
        .pods()
        .iter()
        .map(|(slot, workload)| (*slot, format!("{}/{}", workload.namespace, workload.name)))
        .collect();
    read_of(maps, &pods)
}

/// The same for pods given by slot and name.
pub(super) fn read_of(maps: &Maps, pods: &BTreeMap<u32, String>) -> std::io::Result<Vec<Counter>> {
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
    let mut counters = Vec::new();
    for key in maps.counters.keys()? {
        let (Some(pod), Some(hook), Some(reason)) = (
            pods.get(&key.slot),
            hook::NAMES.get(usize::from(key.hook)),
            reason::NAMES.get(usize::from(key.reason)),
        ) else {
            continue;
        };
        let value = maps.counters.sum(&key, cpus)?;
        counters.push(Counter { pod: pod.clone(), hook, reason, value });
    }
    counters.sort_by(|a, b| (&a.pod, a.hook, a.reason).cmp(&(&b.pod, b.hook, b.reason)));
    counters.dedup_by(|a, b| (&a.pod, a.hook, a.reason) == (&b.pod, b.hook, b.reason));
    Ok(counters)
}
