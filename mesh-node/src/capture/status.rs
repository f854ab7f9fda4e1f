//! `mesh-node status`: how things stand with an instance, from what it has pinned and recorded, so that it can
//! be asked whether or not its process runs. Changes nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use mesh_common::settings_flags;

use super::accel::{self, Report, Traffic};
use super::counters::{self, Counter};
use super::error::CaptureError;
use super::programs::Maps;
use super::record;
use super::settings::Settings;

/// One instance.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Since the proxy last showed life; `None` if it never did.
    pub silent: Option<Duration>,
    /// The proxy counts as away after this.
    pub silent_limit: Duration,
    /// How acceleration stands, or stood when the proxy was last there.
    pub acceleration: Report,
    /// By name.
    pub pods: Vec<PodStatus>,
}

/// One pod that is enrolled, or whose connections have not all ended.
#[derive(Clone, Debug, Default)]
pub struct PodStatus {
    /// `namespace/name`.
    pub name: String,
    /// New connections are steered; else only those are served that it had open when it was released.
    pub enrolled: bool,
    pub counters: Vec<Counter>,
    pub traffic: Traffic,
}

/// Reads what the instance of `settings` has left to read.
///
/// # Errors
/// If its maps cannot be opened: nothing of the instance is on this host then.
pub fn status(settings: &Settings) -> Result<Status, CaptureError> {
    let maps = Maps::open(&settings.pins())?;
    let unreadable = |source| CaptureError::Map { name: "of the instance", source };
    let records = record::read_all(&settings.records());
    let names = records.iter().map(|record| (record.slot, record.pod.clone())).collect();
    let counters = counters::read_of(&maps, &names).map_err(unreadable)?;
    let mut known = accel::known(&maps).map_err(unreadable)?;
    let mut acceleration = record::read_acceleration(&settings.records()).unwrap_or_default();
    let kernel = maps.settings.get(&0).map_err(unreadable)?;
    acceleration.on = kernel.is_some_and(|kernel| kernel.flags & settings_flags::ACCELERATE != 0);
    acceleration.hand_off = kernel.is_some_and(|kernel| kernel.flags & settings_flags::HAND_OFF != 0);
    let beat = maps.heartbeat.get(&0).map_err(unreadable)?.filter(|beat| *beat != 0);
    let mut status = Status {
        silent: beat.map(|beat| super::manager::monotonic().saturating_sub(Duration::from_nanos(beat))),
        silent_limit: Duration::from_nanos(kernel.map_or(0, |kernel| kernel.heartbeat_timeout_ns)),
        acceleration,
        pods: Vec::new(),
    };
    let keys = maps.namespaces.keys().map_err(unreadable)?;
    let steered: BTreeSet<u32> = keys.iter().filter_map(|key| maps.namespaces.get(key).ok()?).collect();
    for (slot, name) in names {
        let traffic = accel::traffic(&maps, slot, &mut known).map_err(unreadable)?;
        let counters = counters.iter().filter(|counter| counter.pod == name).cloned().collect();
        let enrolled = steered.contains(&slot);
        status.pods.push(PodStatus { name, enrolled, counters, traffic });
    }
    status.pods.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(status)
}
