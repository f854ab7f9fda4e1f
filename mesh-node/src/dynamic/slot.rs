//! A named resource with the one that serves and the one that is to follow it.

use std::collections::BTreeMap;
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
