//! A named resource with the one that serves and the one that is to follow it; and maps of such resources.
//!
//! A node has these for every cluster of every pod: what many of them have in common (names, versions, what a
//! resource needs) is shared, not copied.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use mesh_xds::client::shared;

use super::compile::Compiled;
use crate::model::Str;
use crate::model::source::Need;

/// One accepted version of a resource.
#[derive(Debug)]
pub(super) struct Item<T> {
    pub(super) value: Arc<T>,
    origin: Origin,
    pub(super) version: Str,
    pub(super) updated: SystemTime,
}

/// Where a resource came from, and with it what it names.
#[derive(Debug)]
enum Origin {
    Dynamic(Arc<Compiled>),
    Static(Box<Names>),
}

/// What a static resource names.
#[derive(Debug)]
struct Names {
    needs: Vec<Need>,
    clusters: Arc<[Str]>,
}

impl<T> Item<T> {
    /// `None` for a static resource.
    pub(super) fn compiled(&self) -> Option<&Arc<Compiled>> {
        match &self.origin {
            Origin::Dynamic(compiled) => Some(compiled),
            Origin::Static(_) => None,
        }
    }

    pub(super) fn needs(&self) -> &[Need] {
        match &self.origin {
            Origin::Dynamic(compiled) => &compiled.needs,
            Origin::Static(names) => &names.needs,
        }
    }

    /// Names of clusters that it sends to.
    pub(super) fn clusters(&self) -> &[Str] {
        match &self.origin {
            Origin::Dynamic(compiled) => &compiled.clusters,
            Origin::Static(names) => &names.clusters,
        }
    }
}

/// What is known under one name.
#[derive(Debug)]
pub(super) struct Slot<T> {
    pub(super) active: Option<Item<T>>,
    /// With the time since when it waits for what it needs.
    warming: Option<Box<(Item<T>, Instant)>>,
    /// From the bootstrap: dynamic resources of the same name are refused.
    pub(super) fixed: bool,
}

impl<T> Slot<T> {
    fn new(fixed: bool) -> Self {
        Self { active: None, warming: None, fixed }
    }

    /// The one that is to follow.
    pub(super) fn warming(&self) -> Option<&Item<T>> {
        self.warming.as_deref().map(|(item, _)| item)
    }

    pub(super) fn items(&self) -> impl Iterator<Item = &Item<T>> {
        self.active.iter().chain(self.warming())
    }

    /// The one that came last.
    fn latest_mut(&mut self) -> Option<&mut Item<T>> {
        self.warming.as_deref_mut().map(|(item, _)| item).or(self.active.as_mut())
    }
}

/// Slots by name.
#[derive(Debug)]
pub(super) struct Slots<T> {
    all: BTreeMap<Str, Slot<T>>,
    /// Names of those in which something waits: there may be thousands of others.
    waiting: BTreeSet<Str>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { all: BTreeMap::new(), waiting: BTreeSet::new() }
    }
}

impl<T> Slots<T> {
    pub(super) fn get(&self, name: &str) -> Option<&Slot<T>> {
        self.all.get(name)
    }

    pub(super) fn contains_key(&self, name: &str) -> bool {
        self.all.contains_key(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Str, &Slot<T>)> {
        self.all.iter()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Slot<T>> {
        self.all.values()
    }

    /// Slots in which something waits, and since when.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (&Slot<T>, &Item<T>, Instant)> {
        self.waiting.iter().filter_map(|name| {
            let slot = self.all.get(name)?;
            let (item, since) = slot.warming.as_deref()?;
            Some((slot, item, *since))
        })
    }

    /// Names of those that wait no longer.
    pub(super) fn due(&self, ready: impl Fn(&Item<T>, Instant) -> bool) -> Vec<Str> {
        let wait = |name: &&Str| {
            let warming = self.all.get(*name).and_then(|slot| slot.warming.as_deref());
            warming.is_some_and(|(item, since)| ready(item, *since))
        };
        self.waiting.iter().filter(wait).cloned().collect()
    }

    /// Puts these into service. False if there are none.
    pub(super) fn promote(&mut self, due: &[Str]) -> bool {
        for name in due {
            self.waiting.remove(name);
            if let Some(slot) = self.all.get_mut(name)
                && let Some(warming) = slot.warming.take()
            {
                slot.active = Some(warming.0);
            }
        }
        !due.is_empty()
    }

    /// Forgets a dynamic resource. False if there is none of that name.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        let there = self.all.get(name).is_some_and(|slot| !slot.fixed);
        if there {
            self.all.remove(name);
            self.waiting.remove(name);
        }
        there
    }

    /// Takes the one that serves out of service.
    pub(super) fn take_active(&mut self, name: &str) -> Option<Item<T>> {
        self.all.get_mut(name)?.active.take()
    }

    /// Takes a cluster or listener. True if it is another one than before.
    pub(super) fn put(
        &mut self,
        name: &str,
        value: Arc<T>,
        compiled: &Arc<Compiled>,
        version: &str,
        now: Instant,
    ) -> Result<bool, String> {
        let name = shared(name);
        let slot = self.all.entry(name.clone()).or_insert_with(|| Slot::new(false));
        if slot.fixed {
            return Err("is a static resource of the bootstrap; use another name".to_owned());
        }
        let (version, updated) = (shared(version), SystemTime::now());
        let same = |item: &Item<T>| item.compiled().is_some_and(|held| Arc::ptr_eq(held, compiled));
        if let Some(item) = slot.latest_mut().filter(|item| same(item)) {
            // Servers send again what has not changed.
            (item.version, item.updated) = (version, updated);
            return Ok(false);
        }
        if slot.active.as_ref().is_some_and(same) {
            // Back to what serves, before the other one did.
            slot.warming = None;
            self.waiting.remove(&name);
            return Ok(true);
        }
        let item = Item { value, origin: Origin::Dynamic(compiled.clone()), version, updated };
        slot.warming = Some(Box::new((item, now)));
        self.waiting.insert(name);
        Ok(true)
    }

    /// These are the resources of the bootstrap now.
    pub(super) fn set_fixed(
        &mut self,
        statics: Vec<(Arc<T>, Vec<Need>)>,
        name: impl Fn(&T) -> &Str,
        hash: impl Fn(&T) -> u64,
        clusters: &dyn Fn(&T) -> Arc<[Str]>,
        now: Instant,
    ) {
        let names: BTreeSet<Str> = statics.iter().map(|(value, _)| name(value).clone()).collect();
        self.all.retain(|name, slot| !slot.fixed || names.contains(name));
        self.waiting.retain(|name| self.all.contains_key(name));
        for (value, needs) in statics {
            let name = name(&value).clone();
            let slot = self.all.entry(name.clone()).or_insert_with(|| Slot::new(true));
            slot.fixed = true;
            if slot.latest_mut().is_some_and(|item| hash(&item.value) == hash(&value)) {
                continue;
            }
            let origin = Origin::Static(Box::new(Names { needs, clusters: clusters(&value) }));
            let item = Item { value, origin, version: Str::default(), updated: SystemTime::now() };
            slot.warming = Some(Box::new((item, now)));
            self.waiting.insert(name);
        }
    }
}

/// A resource that others name.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) compiled: Arc<Compiled>,
    pub(super) version: Str,
    pub(super) updated: SystemTime,
}

impl Named {
    pub(super) fn new(compiled: Arc<Compiled>, version: &str) -> Self {
        Self { compiled, version: shared(version), updated: SystemTime::now() }
    }
}

/// Takes a resource that others name. True if it is another one than before.
pub(super) fn put_named(
    named: &mut BTreeMap<Str, Named>,
    name: &Str,
    compiled: Arc<Compiled>,
    version: &str,
) -> bool {
    let other = named.get(name).is_none_or(|held| !Arc::ptr_eq(&held.compiled, &compiled));
    named.insert(name.clone(), Named::new(compiled, version));
    other
}
