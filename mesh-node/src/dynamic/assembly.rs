//! The resources of one virtual sidecar, and what of them serves: without I/O.
//!
//! A cluster serves when its endpoints and secrets have come, a listener when its routes and secrets have and
//! its clusters serve; a route table waits for clusters that are on their way. Nothing waits for ever, and what
//! served before serves until then. What cannot be honoured is rejected by name; everything else of the same
//! push is taken.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use mesh_xds::client::{Received, Rejected, ResourceType, Wanted};

use super::compile::{Compiled, Compiler, Value};
use super::error_state::{ErrorState, ErrorStates};
use super::scopes::ScopeSet;
use super::slot::{Item, Slot, due, promote};
use crate::model::cluster::{Assignment, Cluster};
use crate::model::listener::Listener;
use crate::model::route::RouteTable;
use crate::model::scopes::{ScopeHandle, ScopeTable};
use crate::model::source::{Dynamic, Need, NeedKind, Source};
use crate::model::tls::Secret;
use crate::model::{RouteHandle, Str};

/// The resources of the bootstrap, each with what it needs.
#[derive(Debug, Default, Clone)]
pub struct Statics {
    pub clusters: Vec<(Arc<Cluster>, Vec<Need>)>,
    pub listeners: Vec<(Arc<Listener>, Vec<Need>)>,
}

/// What is to be done, in this order: so that nothing is missed that is in use.
#[derive(Debug)]
pub enum Step {
    /// These are the endpoints of that name now.
    Endpoints(Str, Arc<Assignment>),
    /// This is the secret of that name now; without one it is gone.
    Secret(Str, Option<Arc<Secret>>),
    /// Listeners and clusters have changed.
    Publish(Assembled),
    /// The table has changed; its clusters serve.
    Routes(RouteHandle, Arc<RouteTable>),
    /// The scopes have changed; their route tables are there.
    Scopes(ScopeHandle, Arc<ScopeTable>),
    /// Nothing uses endpoints of that name any more.
    Forget(Str),
}

/// Everything that serves.
#[derive(Debug)]
pub struct Assembled {
    pub listeners: Vec<Arc<Listener>>,
    pub clusters: Vec<Arc<Cluster>>,
    pub routes: HashMap<Str, RouteHandle, ahash::RandomState>,
    pub scopes: ScopeHandle,
}

/// A route table by name.
#[derive(Debug, Default)]
pub(super) struct Routes {
    pub(super) handle: RouteHandle,
    pub(super) active: Option<Named>,
    pub(super) pending: Option<(Named, Instant)>,
}

/// A resource that others name.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) compiled: Arc<Compiled>,
    pub(super) version: String,
    pub(super) updated: SystemTime,
}

/// A subscription of the whole of a type: clusters or listeners.
#[derive(Debug, Default)]
struct Whole {
    /// When it was first asked for.
    asked: Option<Instant>,
    answered: bool,
    version: String,
}

/// See the module.
#[derive(Debug)]
pub struct Assembly {
    compiler: Arc<Compiler>,
    dynamic: Dynamic,
    pub(super) clusters: BTreeMap<Str, Slot<Cluster>>,
    pub(super) listeners: BTreeMap<Str, Slot<Listener>>,
    pub(super) endpoints: BTreeMap<Str, Named>,
    pub(super) secrets: BTreeMap<Str, Named>,
    pub(super) routes: BTreeMap<Str, Routes>,
    pub(super) scopes: ScopeSet,
    pub(super) errors: ErrorStates,
    whole_clusters: Whole,
    whole_listeners: Whole,
    /// Clusters are there for the first time: listeners may be asked for.
    begun: bool,
    /// What [`Self::settle`] has to look at.
    changed: Changed,
    /// Steps that do not wait for anything.
    ready: Vec<Step>,
}

#[derive(Debug, Default)]
struct Changed {
    /// Something that serves was removed.
    removed: bool,
    /// What is named may have changed.
    needs: bool,
}

impl Assembly {
    pub fn new(compiler: Arc<Compiler>, dynamic: Dynamic, statics: Statics, now: Instant) -> Self {
        let mut assembly = Self {
            compiler,
            dynamic,
            clusters: BTreeMap::new(),
            listeners: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            secrets: BTreeMap::new(),
            routes: BTreeMap::new(),
            scopes: ScopeSet::default(),
            errors: ErrorStates::new(),
            whole_clusters: Whole::default(),
            whole_listeners: Whole::default(),
            begun: false,
            changed: Changed { removed: true, needs: true },
            ready: Vec::new(),
        };
        assembly.set_statics(statics, now);
        assembly
    }

    /// Other static resources are in force.
    pub fn set_statics(&mut self, statics: Statics, now: Instant) {
        set_fixed(&mut self.clusters, statics.clusters, |c| &c.name, |c| c.content_hash, &|_| [].into(), now);
        let of_listener = |listener: &Listener| {
            let mut clusters = Vec::new();
            listener.for_each_cluster(&mut |name| clusters.push(name.clone()));
            clusters.into()
        };
        set_fixed(&mut self.listeners, statics.listeners, |l| &l.name, |l| l.content_hash, &of_listener, now);
        self.changed = Changed { removed: true, needs: true };
    }

    /// Takes what a response or file holds; what is not taken is returned with the reason.
    pub fn receive(&mut self, received: &Received, now: Instant) -> Vec<Rejected> {
        let mut rejected = received.unreadable.clone();
        if received.kind == ResourceType::ScopedRoute {
            // First, so that the key of a scope can go to another one in one response.
            received.removed.iter().for_each(|name| self.scopes.remove(name, now));
            self.scopes.answered(now);
            self.changed.needs = true;
        }
        for resource in &received.resources {
            let compiled = self.compiler.compile(received.kind, &resource.body);
            let version = if resource.version.is_empty() { &received.version } else { &resource.version };
            let taken = compiled.and_then(|compiled| self.take(&resource.name, compiled, version, now));
            let key = (received.kind, resource.name.clone());
            match taken {
                Ok(()) => drop(self.errors.remove(&key)),
                Err(reason) => {
                    let (failed, at) = (resource.body.as_slice().into(), SystemTime::now());
                    let version = received.version.clone();
                    self.errors.insert(key, ErrorState { failed, at, details: reason.clone(), version });
                    rejected.push(Rejected { name: resource.name.clone(), reason });
                }
            }
        }
        for name in &received.removed {
            self.remove(received.kind, name);
        }
        let whole = match received.kind {
            ResourceType::Cluster => &mut self.whole_clusters,
            ResourceType::Listener => &mut self.whole_listeners,
            _ => return rejected,
        };
        whole.answered = true;
        if rejected.is_empty() {
            whole.version.clone_from(&received.version);
        }
        rejected
    }

    fn take(
        &mut self,
        name: &str,
        compiled: Arc<Compiled>,
        version: &str,
        now: Instant,
    ) -> Result<(), String> {
        match &compiled.value {
            Value::Cluster(cluster) => {
                let value = cluster.clone();
                self.changed.needs |= put(&mut self.clusters, name, value, &compiled, version, now)?;
            }
            Value::Listener(listener) => {
                // Its drain is this sidecar's alone.
                let value = Arc::new(Listener { drain: Arc::default(), ..(**listener).clone() });
                self.changed.needs |= put(&mut self.listeners, name, value, &compiled, version, now)?;
            }
            Value::Endpoints(assignment) => {
                let (name, assignment) = (Str::from(name), assignment.clone());
                if put_named(&mut self.endpoints, &name, compiled, version) {
                    self.ready.push(Step::Endpoints(name, assignment));
                }
            }
            Value::Secret(secret) => {
                let (name, secret) = (Str::from(name), secret.clone());
                if put_named(&mut self.secrets, &name, compiled, version) {
                    self.ready.push(Step::Secret(name, Some(secret)));
                }
            }
            Value::Scope(_) => self.scopes.put(name, compiled, version, now)?,
            Value::Routes(_) => {
                let routes = self.routes.entry(name.into()).or_default();
                let named = Named { compiled, version: version.to_owned(), updated: SystemTime::now() };
                match &mut routes.active {
                    Some(active) if Arc::ptr_eq(&active.compiled, &named.compiled) => {
                        *active = named;
                        routes.pending = None;
                    }
                    _ => routes.pending = Some((named, now)),
                }
            }
        }
        Ok(())
    }

    /// The server says that a resource is gone, or its time has run out.
    pub fn remove(&mut self, kind: ResourceType, name: &str) {
        self.errors.remove(&(kind, name.to_owned()));
        match kind {
            ResourceType::Cluster => {
                if self.clusters.get(name).is_some_and(|slot| !slot.fixed) {
                    self.clusters.remove(name);
                    self.changed = Changed { removed: true, needs: true };
                }
            }
            ResourceType::Listener => {
                if self.listeners.get(name).is_some_and(|slot| !slot.fixed) {
                    self.listeners.remove(name);
                    self.changed = Changed { removed: true, needs: true };
                }
            }
            ResourceType::Secret => {
                if let Some((name, _)) = self.secrets.remove_entry(name) {
                    self.ready.push(Step::Secret(name, None));
                }
            }
            ResourceType::Endpoint => {
                if let Some((name, _)) = self.endpoints.remove_entry(name) {
                    self.ready.push(Step::Endpoints(name, Arc::default()));
                }
            }
            // A table stays for as long as a listener names it, as in Envoy.
            // Scopes are removed before others are taken.
            ResourceType::ScopedRoute
            | ResourceType::Route
            | ResourceType::ExtensionConfig
            | ResourceType::NameTable => {}
        }
    }

    /// The outlet could not put this listener into service: what served before is all that is left of it.
    pub fn refuse_listener(&mut self, name: &str, reason: &str) {
        let Some(slot) = self.listeners.get_mut(name) else { return };
        let version = slot.active.as_ref().map(|item| item.version.clone()).unwrap_or_default();
        let item = slot.active.take();
        let failed = item.and_then(|item| item.compiled).map(|c| c.body.clone()).unwrap_or_default();
        let error = ErrorState { failed, at: SystemTime::now(), details: reason.to_owned(), version };
        self.errors.insert((ResourceType::Listener, name.to_owned()), error);
        self.changed.removed = true;
    }

    /// Puts into service what has all it needs. Says what is to be done.
    pub fn settle(&mut self, now: Instant) -> Vec<Step> {
        let mut steps = std::mem::take(&mut self.ready);
        if self.changed.needs || self.changed.removed || self.scopes.changed.is_some() {
            self.set_scope_needs();
        }
        let mut publish = std::mem::take(&mut self.changed.removed);
        let ready = due(&self.clusters, |item, since| self.has_needs(item, since, now));
        publish |= promote(&mut self.clusters, &ready);
        self.begin(now);
        // Tables of names that are new go in before their listeners, the others after the clusters.
        let mut swaps = Vec::new();
        let mut routes = std::mem::take(&mut self.routes);
        for table in routes.values_mut() {
            let Some((named, since)) = &table.pending else { continue };
            if self.are_there(&named.compiled.clusters, *since, now) {
                let Value::Routes(new) = &named.compiled.value else { continue };
                if table.active.is_none() {
                    table.handle.store(new.clone());
                } else {
                    swaps.push(Step::Routes(table.handle.clone(), new.clone()));
                }
                table.active = table.pending.take().map(|(named, _)| named);
            }
        }
        self.routes = routes;
        let over = |need: &Need, since| is_over(need.patience, since, now);
        let served = self.scopes.serves;
        if let Some(table) = self.scopes.settle(&mut self.routes, over) {
            if served {
                swaps.push(Step::Scopes(self.scopes.handle.clone(), table));
            } else {
                self.scopes.handle.store(table);
            }
            // The tables of those that served before.
            self.changed.needs = true;
        }
        let ready = due(&self.listeners, |item, since| {
            self.has_needs(item, since, now) && self.are_there(&item.clusters, since, now)
        });
        publish |= promote(&mut self.listeners, &ready);
        if publish {
            steps.push(Step::Publish(self.assembled()));
        }
        steps.append(&mut swaps);
        if std::mem::take(&mut self.changed.needs) || publish {
            self.set_scope_needs();
            steps.extend(self.forget());
        }
        steps
    }

    /// Has the item what it names, or waited long enough?
    fn has_needs<T>(&self, item: &Item<T>, since: Instant, now: Instant) -> bool {
        item.needs.iter().all(|need| self.has(need) || is_over(need.patience, since, now))
    }

    fn has(&self, need: &Need) -> bool {
        // Where nobody can be asked, waiting is of no use.
        if !self.can_be_asked(&need.source) {
            return true;
        }
        match need.kind {
            NeedKind::Endpoints => self.endpoints.contains_key(&need.name),
            NeedKind::Routes => self.routes.get(&need.name).is_some_and(|routes| routes.active.is_some()),
            NeedKind::Secret => self.secrets.contains_key(&need.name),
            NeedKind::Scopes => self.scopes.serves,
        }
    }

    /// What listeners that take scopes say of them.
    fn set_scope_needs(&mut self) {
        let items = self.listeners.values().flat_map(Slot::items);
        self.scopes.set_needs(items.flat_map(|item| &*item.needs));
    }

    /// Is there anybody behind this source? Istio's pods name a cluster of their own agent, which there is not here.
    fn can_be_asked(&self, source: &Source) -> bool {
        match source {
            Source::Ads => self.dynamic.ads.is_some(),
            Source::Grpc(source) => source.servers.iter().any(|s| self.clusters.contains_key(&s.cluster)),
            Source::File { .. } => true,
        }
    }

    /// Is none of these clusters still on its way? Those that nobody knows are not waited for.
    fn are_there(&self, clusters: &[Str], since: Instant, now: Instant) -> bool {
        is_over(Some(WAIT_FOR_CLUSTERS), since, now)
            || !clusters.iter().any(|name| {
                self.clusters.get(name).is_some_and(|slot| slot.active.is_none() && slot.warming.is_some())
            })
    }

    /// Listeners are asked for once clusters are there.
    fn begin(&mut self, now: Instant) {
        if let Some((_, patience)) = &self.dynamic.clusters {
            let since = *self.whole_clusters.asked.get_or_insert(now);
            if !self.whole_clusters.answered && !is_over(*patience, since, now) {
                return;
            }
        }
        let warm = |slot: &Slot<Cluster>| slot.active.is_some();
        if !self.begun && self.clusters.values().all(warm) {
            self.begun = true;
            self.whole_listeners.asked = Some(now);
            self.changed.needs = true;
        }
    }

    /// Has everything that the start waits for come, or not come in time?
    pub fn has_started(&self, now: Instant) -> bool {
        let Some(asked) = self.whole_listeners.asked else { return false };
        let answered = self.whole_listeners.answered
            || self.dynamic.listeners.as_ref().is_none_or(|(_, patience)| is_over(*patience, asked, now));
        answered && self.listeners.values().all(|slot| slot.active.is_some() || slot.warming.is_none())
    }

    /// When [`Self::settle`] should look again, though nothing comes.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        fn of_slots<T>(slots: &BTreeMap<Str, Slot<T>>) -> impl Iterator<Item = Instant> {
            slots.values().filter_map(|slot| slot.warming.as_ref()).flat_map(|(item, since)| {
                let patience = item.needs.iter().filter_map(|need| need.patience);
                patience.chain([WAIT_FOR_CLUSTERS]).map(|patience| *since + patience)
            })
        }
        let of_whole = |whole: &Whole, source: &Option<(Source, Option<std::time::Duration>)>| {
            let patience = source.as_ref().and_then(|(_, patience)| *patience);
            whole.asked.filter(|_| !whole.answered).zip(patience).map(|(asked, patience)| asked + patience)
        };
        of_slots(&self.clusters)
            .chain(of_slots(&self.listeners))
            .chain(self.routes.values().filter_map(|r| Some(r.pending.as_ref()?.1 + WAIT_FOR_CLUSTERS)))
            .chain(self.scopes.deadlines())
            .chain(of_whole(&self.whole_clusters, &self.dynamic.clusters))
            .chain(of_whole(&self.whole_listeners, &self.dynamic.listeners))
            .filter(|at| *at > now)
            .min()
    }

    /// What is to be subscribed to, by source and type.
    pub fn wanted(&self) -> BTreeMap<(Source, ResourceType), Wanted> {
        let mut wanted = BTreeMap::new();
        if let Some((source, _)) = &self.dynamic.clusters {
            wanted.insert((source.clone(), ResourceType::Cluster), Wanted::All);
        }
        if let Some((source, _)) = self.dynamic.listeners.as_ref().filter(|_| self.begun) {
            wanted.insert((source.clone(), ResourceType::Listener), Wanted::All);
        }
        for need in self.needs() {
            if !self.can_be_asked(&need.source) {
                continue;
            }
            let key = (need.source.clone(), type_of(need.kind));
            if need.kind == NeedKind::Scopes {
                wanted.insert(key, Wanted::All);
            } else if let Wanted::Names(names) = wanted.entry(key).or_default() {
                names.insert(need.name.to_string());
            }
        }
        wanted
    }

    fn needs(&self) -> impl Iterator<Item = &Need> {
        let of_clusters = self.clusters.values().flat_map(Slot::items).flat_map(|item| &*item.needs);
        let of_listeners = self.listeners.values().flat_map(Slot::items).flat_map(|item| &*item.needs);
        of_clusters.chain(of_listeners).chain(&self.scopes.needs)
    }

    /// Drops what nothing names any more.
    fn forget(&mut self) -> Vec<Step> {
        let named = |kind| -> BTreeSet<Str> {
            self.needs().filter(|need| need.kind == kind).map(|need| need.name.clone()).collect()
        };
        let (endpoints, routes) = (named(NeedKind::Endpoints), named(NeedKind::Routes));
        let secrets = named(NeedKind::Secret);
        let mut steps = Vec::new();
        self.endpoints.retain(|name, _| {
            let keep = endpoints.contains(name);
            if !keep {
                steps.push(Step::Forget(name.clone()));
            }
            keep
        });
        self.routes.retain(|name, _| routes.contains(name));
        self.secrets.retain(|name, _| {
            let keep = secrets.contains(name);
            if !keep {
                steps.push(Step::Secret(name.clone(), None));
            }
            keep
        });
        steps
    }

    /// What serves now.
    pub fn assembled(&mut self) -> Assembled {
        let clusters = self.clusters.values().filter_map(|slot| Some(slot.active.as_ref()?.value.clone()));
        let clusters = clusters.collect();
        let mut routes = HashMap::default();
        let mut listeners = Vec::new();
        for item in self.listeners.values().filter_map(|slot| slot.active.as_ref()) {
            listeners.push(item.value.clone());
            for need in item.needs.iter().filter(|need| need.kind == NeedKind::Routes) {
                // Also of a table that has not come: it may yet.
                let table = self.routes.entry(need.name.clone()).or_default();
                routes.insert(need.name.clone(), table.handle.clone());
            }
        }
        Assembled { listeners, clusters, routes, scopes: self.scopes.handle.clone() }
    }

    /// Names of the dynamic resources of a type that is had whole.
    pub(super) fn names(&self, kind: ResourceType) -> Vec<String> {
        fn of<T>(slots: &BTreeMap<Str, Slot<T>>) -> Vec<String> {
            slots.iter().filter(|(_, slot)| !slot.fixed).map(|(name, _)| name.to_string()).collect()
        }
        match kind {
            ResourceType::Cluster => of(&self.clusters),
            ResourceType::Listener => of(&self.listeners),
            ResourceType::ScopedRoute => self.scopes.named.keys().map(ToString::to_string).collect(),
            _ => Vec::new(),
        }
    }

    /// Versions of the last clusters and listeners that were taken whole.
    pub(super) fn versions(&self) -> (&str, &str) {
        (&self.whole_clusters.version, &self.whole_listeners.version)
    }

    pub(super) fn compiler(&self) -> &Arc<Compiler> {
        &self.compiler
    }
}

/// How long listeners and routes wait for clusters on their way. Those have their own time limits, which are
/// shorter as a rule.
const WAIT_FOR_CLUSTERS: std::time::Duration = std::time::Duration::from_secs(15);

fn is_over(patience: Option<std::time::Duration>, since: Instant, now: Instant) -> bool {
    patience.is_some_and(|patience| now.saturating_duration_since(since) >= patience)
}

fn type_of(kind: NeedKind) -> ResourceType {
    match kind {
        NeedKind::Endpoints => ResourceType::Endpoint,
        NeedKind::Routes => ResourceType::Route,
        NeedKind::Secret => ResourceType::Secret,
        NeedKind::Scopes => ResourceType::ScopedRoute,
    }
}

/// Takes a cluster or listener. True if it is another one than before.
fn put<T>(
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
fn put_named(named: &mut BTreeMap<Str, Named>, name: &Str, compiled: Arc<Compiled>, version: &str) -> bool {
    let other = named.get(name).is_none_or(|held| !Arc::ptr_eq(&held.compiled, &compiled));
    let new = Named { compiled, version: version.to_owned(), updated: SystemTime::now() };
    named.insert(name.clone(), new);
    other
}

fn set_fixed<T>(
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
