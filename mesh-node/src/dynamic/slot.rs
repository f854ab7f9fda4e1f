//! A named resource with the one that serves and the one that is to follow it; and maps of such resources.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::compile::Compiled;
use crate::model::Str;
use crate::model::source::Need;

/// One accepted version of a resource.
#[derive(Debug)]
pub(super) struct Item<T> {
    pub(super) value: Arc<T>,
    /// `None` for a static resource.
    pub(super) compiled: Option<Arc<Compiled>>,
    pub(super) needs: Arc<[Need]>,
    /// Names of clusters that it sends to.
    pub(super) clusters: Arc<[Str]>,
    pub(super) version: String,
    pub(super) updated: SystemTime,
}

/// What is known under one name.
#[derive(Debug)]
pub(super) struct Slot<T> {
    pub(super) active: Option<Item<T>>,
    /// With the time since when it waits for what it needs.
    pub(super) warming: Option<(Item<T>, Instant)>,
    /// From the bootstrap: dynamic resources of the same name are refused.
    pub(super) fixed: bool,
}

impl<T> Slot<T> {
    pub(super) fn new(fixed: bool) -> Self {
        Self { active: None, warming: None, fixed }
    }

    pub(super) fn items(&self) -> impl Iterator<Item = &Item<T>> {
        self.active.iter().chain(self.warming.iter().map(|(item, _)| item))
    }

    /// The one that came last.
    pub(super) fn latest_mut(&mut self) -> Option<&mut Item<T>> {
        self.warming.as_mut().map(|(item, _)| item).or(self.active.as_mut())
    }

    /// Takes an item that is to serve when it has what it needs.
    pub(super) fn warm(&mut self, item: Item<T>, now: Instant) {
        self.warming = Some((item, now));
    }

    /// Puts the warming item into service.
    pub(super) fn promote(&mut self) {
        if let Some((item, _)) = self.warming.take() {
            self.active = Some(item);
        }
    }
}

/// A resource that others name.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) compiled: Arc<Compiled>,
    pub(super) version: String,
    pub(super) updated: SystemTime,
}

/// Names of those that wait no longer.
pub(super) fn due<T>(slots: &BTreeMap<Str, Slot<T>>, ready: impl Fn(&Item<T>, Instant) -> bool) -> Vec<Str> {
    let waiting = slots.iter().filter_map(|(name, slot)| Some((name, slot.warming.as_ref()?)));
    waiting.filter(|(_, (item, since))| ready(item, *since)).map(|(name, _)| name.clone()).collect()
}

/// Puts these into service. False if there are none.
pub(super) fn promote<T>(slots: &mut BTreeMap<Str, Slot<T>>, due: &[Str]) -> bool {
    for name in due {
        if let Some(slot) = slots.get_mut(name) {
            slot.promote();
        }
    }
    !due.is_empty()
}

/// Takes a cluster or listener. True if it is another one than before.
pub(super) fn put<T>(
    slots: &mut BTreeMap<Str, Slot<T>>,
    name: &str,
    value: Arc<T>,
    compiled: &Arc<Compiled>,
    version: &str,
    now: Instant,
) -> Result<bool, String> {
    let slot = slots.entry(name.into()).or_insert_with(|| Slot::new(false));
    if slot.fixed {
        return Err("is a static resource of the bootstrap; use another name".to_owned());
    }
    let (version, updated) = (version.to_owned(), SystemTime::now());
    let same = |item: &Item<T>| item.compiled.as_ref().is_some_and(|held| Arc::ptr_eq(held, compiled));
    if let Some(item) = slot.latest_mut().filter(|item| same(item)) {
        // Servers send again what has not changed.
        (item.version, item.updated) = (version, updated);
        return Ok(false);
    }
    if slot.active.as_ref().is_some_and(same) {
        // Back to what serves, before the other one did.
        slot.warming = None;
        return Ok(true);
    }
    let (needs, clusters) = (compiled.needs.clone(), compiled.clusters.clone());
    slot.warm(Item { value, compiled: Some(compiled.clone()), needs, clusters, version, updated }, now);
    Ok(true)
}

/// Takes a resource that others name. True if it is another one than before.
pub(super) fn put_named(
    named: &mut BTreeMap<Str, Named>,
    name: &Str,
    compiled: Arc<Compiled>,
    version: &str,
) -> bool {
    let other = named.get(name).is_none_or(|held| !Arc::ptr_eq(&held.compiled, &compiled));
    let new = Named { compiled, version: version.to_owned(), updated: SystemTime::now() };
    named.insert(name.clone(), new);
    other
}

pub(super) fn set_fixed<T>(
    slots: &mut BTreeMap<Str, Slot<T>>,
    statics: Vec<(Arc<T>, Vec<Need>)>,
    name: impl Fn(&T) -> &Str,
    hash: impl Fn(&T) -> u64,
    clusters: &dyn Fn(&T) -> Arc<[Str]>,
    now: Instant,
) {
    let names: BTreeSet<Str> = statics.iter().map(|(value, _)| name(value).clone()).collect();
    slots.retain(|name, slot| !slot.fixed || names.contains(name));
    for (value, needs) in statics {
        let slot = slots.entry(name(&value).clone()).or_insert_with(|| Slot::new(true));
        slot.fixed = true;
        if slot.latest_mut().is_some_and(|item| hash(&item.value) == hash(&value)) {
            continue;
        }
        let (clusters, updated) = (clusters(&value), SystemTime::now());
        let item =
            Item { value, compiled: None, needs: needs.into(), clusters, version: String::new(), updated };
        slot.warm(item, now);
    }
}
