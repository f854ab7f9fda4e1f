//! `mesh-node status`: how things stand with an instance, from what it has pinned and recorded, so that it can
//! be asked whether or not its process runs. Changes nothing.

use mesh_common::settings_flags;

use super::accel::{self, Traffic};
use super::counters::{self, Counter};
use super::error::CaptureError;
use super::programs::Maps;
use super::record;
use super::settings::Settings;

/// One instance.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// New connections are accelerated.
    pub accelerates: bool,
    /// Connections between two applications of this node are handed off.
    pub hands_off: bool,
    /// By name.
    pub pods: Vec<PodStatus>,
}

/// One pod that is enrolled, or whose connections have not all ended.
#[derive(Clone, Debug, Default)]
pub struct PodStatus {
    /// `namespace/name`.
    pub name: String,
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
    let flags = maps.settings.get(&0).map_err(unreadable)?.map_or(0, |settings| settings.flags);
    let mut status = Status {
        accelerates: flags & settings_flags::ACCELERATE != 0,
        hands_off: flags & settings_flags::HAND_OFF != 0,
        pods: Vec::new(),
    };
    for (slot, name) in names {
        let traffic = accel::traffic(&maps, slot, &mut known).map_err(unreadable)?;
        let counters = counters.iter().filter(|counter| counter.pod == name).cloned().collect();
        status.pods.push(PodStatus { name, counters, traffic });
    }
    status.pods.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(status)
}
