//! The resources of one virtual sidecar, and what of them serves: without I/O.
//!
//! A cluster serves when its endpoints and secrets have come, a listener when its routes and secrets have and
//! its clusters serve; a route table waits for clusters that are on their way. Nothing waits for ever, and what
//! served before serves until then. What cannot be honoured is rejected by name; everything else of the same
//! push is taken.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use mesh_xds::client::{Received, Rejected, ResourceType, Wanted, shared};

use super::compile::{Compiled, Compiler, Value};
use super::error_state::{ErrorState, ErrorStates};
use super::extensions::Template;
use super::late::Late;
use super::scopes::ScopeSet;
use super::slot::{Item, Named, Slot, Slots, put_named};
use super::virtual_hosts::{VirtualHosts, need_of};
use crate::model::cluster::{Assignment, Cluster};
use crate::model::listener::Listener;
use crate::model::route::RouteTable;
use crate::model::scopes::{ScopeHandle, ScopeTable};
use crate::model::source::{Dynamic, GrpcTarget, Need, NeedKind, Source};
use crate::model::tls::Secret;
use crate::model::{RouteHandle, Str};
use crate::runtime::Values;
use crate::telemetry::stats::ClusterStats;

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
    /// This is the layer of the runtime of that name now; `None`: there is none.
    Runtime(Str, Option<Values>),
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
    /// As it came, where virtual hosts come apart from it.
    pub(super) base: Option<Arc<Compiled>>,
    pub(super) active: Option<Named>,
    pub(super) pending: Option<(Named, Instant)>,
}

/// A subscription of the whole of a type: clusters or listeners.
#[derive(Debug, Default)]
pub(super) struct Whole {
    /// When it was first asked for.
    pub(super) asked: Option<Instant>,
    pub(super) answered: bool,
    version: String,
}

/// See the module.
#[derive(Debug)]
pub struct Assembly {
    compiler: Arc<Compiler>,
    pub(super) dynamic: Dynamic,
    pub(super) clusters: Slots<Cluster>,
    pub(super) listeners: Slots<Listener>,
    pub(super) endpoints: BTreeMap<Str, Named>,
    pub(super) secrets: BTreeMap<Str, Named>,
    pub(super) routes: BTreeMap<Str, Routes>,
    pub(super) virtual_hosts: VirtualHosts,
    /// Listeners as they came, of those with filters that come apart from them.
    pub(super) templates: BTreeMap<Str, Template>,
    pub(super) extensions: BTreeMap<Str, Named>,
    pub(super) name_table: Option<Named>,
    pub(super) runtime: BTreeMap<Str, Named>,
    pub(super) scopes: ScopeSet,
    pub(super) errors: ErrorStates,
    pub(super) whole_clusters: Whole,
    pub(super) whole_listeners: Whole,
    /// Clusters are there for the first time: listeners may be asked for.
    begun: bool,
    /// Layers of the runtime are asked for since then.
    runtime_asked: Option<Instant>,
    /// Other things are to be subscribed to, perhaps.
    wants_changed: bool,
    /// What [`Self::settle`] has to look at.
    pub(super) changed: Changed,
    /// What has not come in time.
    pub(super) late: Late,
    /// Steps that do not wait for anything.
    ready: Vec<Step>,
}

#[derive(Debug, Default)]
pub(super) struct Changed {
    /// Something that serves was removed.
    pub(super) removed: bool,
    /// What is named may have changed.
    pub(super) needs: bool,
}

impl Assembly {
    pub fn new(compiler: Arc<Compiler>, dynamic: Dynamic, statics: Statics, now: Instant) -> Self {
        let mut assembly = Self {
            compiler,
            dynamic,
            clusters: Slots::default(),
            listeners: Slots::default(),
            endpoints: BTreeMap::new(),
            secrets: BTreeMap::new(),
            routes: BTreeMap::new(),
            virtual_hosts: VirtualHosts::default(),
            templates: BTreeMap::new(),
            extensions: BTreeMap::new(),
            name_table: None,
            runtime: BTreeMap::new(),
            late: Late::default(),
            scopes: ScopeSet::default(),
            errors: ErrorStates::new(),
            whole_clusters: Whole::default(),
            whole_listeners: Whole::default(),
            begun: false,
            runtime_asked: None,
            wants_changed: true,
            changed: Changed { removed: true, needs: true },
            ready: Vec::new(),
        };
        assembly.set_statics(statics, now);
        assembly
    }

    /// Other static resources are in force.
    pub fn set_statics(&mut self, statics: Statics, now: Instant) {
        self.clusters.set_fixed(statics.clusters, |c| &c.name, |c| c.content_hash, &|_| [].into(), now);
        let of_listener = |listener: &Listener| {
            let mut clusters = Vec::new();
            listener.for_each_cluster(&mut |name| clusters.push(name.clone()));
            clusters.into()
        };
        self.listeners.set_fixed(statics.listeners, |l| &l.name, |l| l.content_hash, &of_listener, now);
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
            ResourceType::VirtualHost => {
                self.virtual_hosts.answered = true;
                return rejected;
            }
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
                self.changed.needs |= self.clusters.put(name, value, &compiled, version, now)?;
            }
            Value::Listener(listener) => {
                // Its drain is this sidecar's alone.
                let value = Arc::new(Listener { drain: Arc::default(), ..(**listener).clone() });
                self.templates.remove(name);
                self.changed.needs |= self.listeners.put(name, value, &compiled, version, now)?;
            }
            Value::Endpoints(assignment) => {
                let (name, assignment) = (shared(name), assignment.clone());
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
            Value::Routes(_) => return self.take_routes(name, compiled, version, now),
            Value::VirtualHost => {
                let held = &mut self.virtual_hosts;
                held.changed |= put_named(&mut held.named, &shared(name), compiled, version);
            }
            Value::Template(..) => return self.take_template(name, compiled, version, now),
            Value::Extension(_) => return self.take_extension(name, compiled, version, now),
            Value::Runtime(values) => {
                let (name, values) = (Str::from(name), values.clone());
                if put_named(&mut self.runtime, &name, compiled, version) {
                    self.ready.push(Step::Runtime(name, Some(values)));
                }
            }
            Value::NameTable(_) => {
                self.name_table = Some(Named::new(compiled, version));
            }
        }
        Ok(())
    }

    /// The server says that a resource is gone, or its time has run out.
    pub fn remove(&mut self, kind: ResourceType, name: &str) {
        self.errors.remove(&(kind, name.to_owned()));
        match kind {
            ResourceType::Cluster => {
                if self.clusters.remove(name) {
                    self.changed = Changed { removed: true, needs: true };
                }
            }
            ResourceType::Listener => {
                if self.templates.remove(name).is_some() {
                    self.changed.needs = true;
                }
                if self.listeners.remove(name) {
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
            ResourceType::ScopedRoute | ResourceType::Route => {}
            ResourceType::VirtualHost => {
                self.virtual_hosts.changed |= self.virtual_hosts.named.remove(name).is_some();
            }
            ResourceType::ExtensionConfig => self.remove_extension(name, Instant::now()),
            ResourceType::NameTable => self.name_table = None,
            ResourceType::Runtime => {
                if let Some((name, _)) = self.runtime.remove_entry(name) {
                    self.ready.push(Step::Runtime(name, None));
                }
            }
        }
    }

    /// The outlet could not put this listener into service: what served before is all that is left of it.
    pub fn refuse_listener(&mut self, name: &str, reason: &str) {
        if !self.listeners.contains_key(name) {
            return;
        }
        let item = self.listeners.take_active(name);
        let version = item.as_ref().map(|item| item.version.to_string()).unwrap_or_default();
        let failed = item.as_ref().and_then(Item::compiled).map(|c| c.body.clone()).unwrap_or_default();
        let error = ErrorState { failed, at: SystemTime::now(), details: reason.to_owned(), version };
        self.errors.insert((ResourceType::Listener, name.to_owned()), error);
        self.changed.removed = true;
    }

    /// Puts into service what has all it needs. Says what is to be done.
    pub fn settle(&mut self, now: Instant) -> Vec<Step> {
        self.join_virtual_hosts(now);
        self.fill_late(now);
        self.note_late(now);
        let mut steps = std::mem::take(&mut self.ready);
        if self.changed.needs || self.changed.removed || self.scopes.changed.is_some() {
            self.set_scope_needs();
        }
        let mut publish = std::mem::take(&mut self.changed.removed);
        let ready = self.clusters.due(|item, since| self.has_needs(item, since, now));
        publish |= self.clusters.promote(&ready);
        self.begin(now);
        // Tables of names that are new go in before their listeners, the others after the clusters.
        let mut swaps = Vec::new();
        let mut routes = std::mem::take(&mut self.routes);
        for table in routes.values_mut() {
            let Some((named, since)) = &table.pending else { continue };
            let has_hosts = need_of(&named.compiled)
                .is_none_or(|need| self.has(need) || is_over(need.patience, *since, now));
            if has_hosts && self.are_there(&named.compiled.clusters, *since, now) {
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
        let ready = self.listeners.due(|item, since| {
            self.has_needs(item, since, now) && self.are_there(item.clusters(), since, now)
        });
        publish |= self.listeners.promote(&ready);
        if publish {
            steps.push(Step::Publish(self.assembled()));
        }
        steps.append(&mut swaps);
        if std::mem::take(&mut self.changed.needs) || publish {
            self.set_scope_needs();
            self.wants_changed = true;
            steps.extend(self.forget());
        }
        steps
    }

    /// Has the item what it names, or waited long enough?
    fn has_needs<T>(&self, item: &Item<T>, since: Instant, now: Instant) -> bool {
        item.needs().iter().all(|need| self.has(need) || is_over(need.patience, since, now))
    }

    pub(super) fn has(&self, need: &Need) -> bool {
        // Where nobody can be asked, waiting is of no use.
        if !self.can_be_asked(&need.source) {
            return true;
        }
        match need.kind {
            NeedKind::Endpoints => self.endpoints.contains_key(&need.name),
            NeedKind::Routes => self.routes.get(&need.name).is_some_and(|routes| routes.active.is_some()),
            NeedKind::Secret => self.secrets.contains_key(&need.name),
            NeedKind::Extension => self.extensions.contains_key(&need.name),
            NeedKind::Scopes => self.scopes.serves,
            NeedKind::Runtime => self.runtime.contains_key(&need.name),
            NeedKind::VirtualHosts => self.virtual_hosts.answered,
        }
    }

    /// What listeners that take scopes say of them.
    fn set_scope_needs(&mut self) {
        let items = self.listeners.values().flat_map(Slot::items);
        self.scopes.set_needs(items.flat_map(Item::needs));
    }

    /// Is there anybody behind this source? Istio's pods name a cluster of their own agent, which there is not here.
    fn can_be_asked(&self, source: &Source) -> bool {
        match source {
            Source::Ads => self.dynamic.ads.is_some(),
            Source::Grpc(source) => source.servers.iter().any(|server| match &server.target {
                GrpcTarget::Cluster(name) => self.clusters.contains_key(name),
                GrpcTarget::Address { .. } => true,
            }),
            Source::File { .. } => true,
        }
    }

    /// Is none of these clusters still on its way? Those that nobody knows are not waited for.
    fn are_there(&self, clusters: &[Str], since: Instant, now: Instant) -> bool {
        is_over(Some(WAIT_FOR_CLUSTERS), since, now)
            || !clusters.iter().any(|name| {
                self.clusters.get(name).is_some_and(|slot| slot.active.is_none() && slot.warming().is_some())
            })
    }

    /// Listeners are asked for once clusters are there, and what the runtime says of them.
    fn begin(&mut self, now: Instant) {
        let runtime_since = *self.runtime_asked.get_or_insert(now);
        let waits = |need: &Need| !self.has(need) && !is_over(need.patience, runtime_since, now);
        if self.dynamic.runtime.iter().any(waits) {
            return;
        }
        if let Some((_, patience)) = &self.dynamic.clusters {
            let since = *self.whole_clusters.asked.get_or_insert(now);
            if !self.whole_clusters.answered && !is_over(*patience, since, now) {
                return;
            }
        }
        if !self.begun && self.clusters.waiting().all(|(slot, ..)| slot.active.is_some()) {
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
        answered
            && !self.awaits_extensions()
            && self.listeners.waiting().all(|(slot, ..)| slot.active.is_some())
    }

    /// When [`Self::settle`] should look again, though nothing comes.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        fn of_slots<T>(slots: &Slots<T>) -> impl Iterator<Item = Instant> {
            slots.waiting().flat_map(|(_, item, since)| {
                let patience = item.needs().iter().filter_map(|need| need.patience);
                patience.chain([WAIT_FOR_CLUSTERS]).map(move |patience| since + patience)
            })
        }
        let of_whole = |whole: &Whole, source: &Option<(Source, Option<std::time::Duration>)>| {
            let patience = source.as_ref().and_then(|(_, patience)| *patience);
            whole.asked.filter(|_| !whole.answered).zip(patience).map(|(asked, patience)| asked + patience)
        };
        of_slots(&self.clusters)
            .chain(of_slots(&self.listeners))
            .chain(self.routes.values().filter_map(|r| Some(r.pending.as_ref()?.1 + WAIT_FOR_CLUSTERS)))
            .chain(self.routes.values().filter_map(|r| {
                let (named, since) = r.pending.as_ref()?;
                Some(*since + need_of(&named.compiled)?.patience?)
            }))
            .chain(self.templates.values().flat_map(Template::deadlines))
            .chain(self.scopes.deadlines())
            .chain(self.dynamic.runtime.iter().filter_map(|need| Some(self.runtime_asked? + need.patience?)))
            .chain(of_whole(&self.whole_clusters, &self.dynamic.clusters))
            .chain(of_whole(&self.whole_listeners, &self.dynamic.listeners))
            .filter(|at| *at > now)
            .min()
    }

    /// What is to be subscribed to, if that may be other than when it was last asked.
    pub fn newly_wanted(&mut self) -> Option<BTreeMap<(Source, ResourceType), Wanted>> {
        std::mem::take(&mut self.wants_changed).then(|| self.wanted())
    }

    /// What is to be subscribed to, by source and type.
    pub fn wanted(&self) -> BTreeMap<(Source, ResourceType), Wanted> {
        let mut names: BTreeMap<_, BTreeSet<Str>> = BTreeMap::new();
        let mut wanted = BTreeMap::new();
        if let Some((source, _)) = &self.dynamic.clusters {
            wanted.insert((source.clone(), ResourceType::Cluster), Wanted::All);
        }
        if let Some((source, _)) = self.dynamic.listeners.as_ref().filter(|_| self.begun) {
            wanted.insert((source.clone(), ResourceType::Listener), Wanted::All);
        }
        if self.dynamic.name_table && self.dynamic.ads.is_some() && self.begun {
            wanted.insert((Source::Ads, ResourceType::NameTable), Wanted::All);
        }
        for need in self.needs() {
            if !self.can_be_asked(&need.source) {
                continue;
            }
            let kind = type_of(need.kind);
            if matches!(need.kind, NeedKind::Scopes | NeedKind::VirtualHosts) {
                wanted.insert((need.source.clone(), kind), Wanted::All);
            } else {
                names.entry((&need.source, kind)).or_default().insert(need.name.clone());
            }
        }
        wanted.extend(
            names
                .into_iter()
                .map(|((source, kind), names)| ((source.clone(), kind), Wanted::Names(Arc::new(names)))),
        );
        wanted
    }

    pub(super) fn needs(&self) -> impl Iterator<Item = &Need> {
        let of_clusters = self.clusters.values().flat_map(Slot::items).flat_map(Item::needs);
        let of_listeners = self.listeners.values().flat_map(Slot::items).flat_map(Item::needs);
        let of_templates = self.templates.values().flat_map(Template::needs);
        of_clusters
            .chain(of_listeners)
            .chain(of_templates)
            .chain(&self.scopes.needs)
            .chain(&self.dynamic.runtime)
            .chain(self.routes.values().filter_map(|routes| need_of(routes.base.as_deref()?)))
    }

    /// Drops what nothing names any more.
    fn forget(&mut self) -> Vec<Step> {
        let named = |kind| -> BTreeSet<Str> {
            self.needs().filter(|need| need.kind == kind).map(|need| need.name.clone()).collect()
        };
        let (endpoints, routes) = (named(NeedKind::Endpoints), named(NeedKind::Routes));
        let (secrets, extensions) = (named(NeedKind::Secret), named(NeedKind::Extension));
        // Servers do not say that a filter is gone.
        self.extensions.retain(|name, _| extensions.contains(name));
        let mut steps = Vec::new();
        self.endpoints.retain(|name, _| {
            let keep = endpoints.contains(name);
            if !keep {
                steps.push(Step::Forget(name.clone()));
            }
            keep
        });
        self.routes.retain(|name, _| routes.contains(name));
        let of_table = |name: &Str| self.routes.keys().any(|table| name.starts_with(&**table));
        self.virtual_hosts.named.retain(|name, _| of_table(name));
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
            for need in item.needs().iter().filter(|need| need.kind == NeedKind::Routes) {
                // Also of a table that has not come: it may yet.
                let table = self.routes.entry(need.name.clone()).or_default();
                routes.insert(need.name.clone(), table.handle.clone());
            }
        }
        Assembled { listeners, clusters, routes, scopes: self.scopes.handle.clone() }
    }

    /// Names of the dynamic resources of a type that is had whole, those that were refused among them.
    pub(super) fn names(&self, kind: ResourceType) -> BTreeSet<String> {
        fn of<T>(slots: &Slots<T>) -> BTreeSet<String> {
            slots.iter().filter(|(_, slot)| !slot.fixed).map(|(name, _)| name.to_string()).collect()
        }
        let mut names = match kind {
            ResourceType::Cluster => of(&self.clusters),
            ResourceType::Listener => of(&self.listeners),
            ResourceType::ScopedRoute => self.scopes.named.keys().map(ToString::to_string).collect(),
            _ => BTreeSet::new(),
        };
        names.extend(self.errors.keys().filter(|(of, _)| *of == kind).map(|(_, name)| name.clone()));
        names
    }

    /// Versions of the last clusters and listeners that were taken whole.
    pub(super) fn versions(&self) -> (&str, &str) {
        (&self.whole_clusters.version, &self.whole_listeners.version)
    }

    /// Of the cluster whose endpoints have that name.
    pub(super) fn cluster_stats(&self, endpoints: &str) -> Option<&Arc<ClusterStats>> {
        self.clusters.get(endpoints)?.items().last().map(|item| &item.value.stats)
    }

    pub(super) fn compiler(&self) -> &Arc<Compiler> {
        &self.compiler
    }
}

/// How long listeners and routes wait for clusters on their way. Those have their own time limits, which are
/// shorter as a rule.
const WAIT_FOR_CLUSTERS: std::time::Duration = std::time::Duration::from_secs(15);

pub(super) fn is_over(patience: Option<std::time::Duration>, since: Instant, now: Instant) -> bool {
    patience.is_some_and(|patience| now.saturating_duration_since(since) >= patience)
}

pub(super) fn type_of(kind: NeedKind) -> ResourceType {
    match kind {
        NeedKind::Endpoints => ResourceType::Endpoint,
        NeedKind::Routes => ResourceType::Route,
        NeedKind::Secret => ResourceType::Secret,
        NeedKind::Extension => ResourceType::ExtensionConfig,
        NeedKind::Scopes => ResourceType::ScopedRoute,
        NeedKind::Runtime => ResourceType::Runtime,
        NeedKind::VirtualHosts => ResourceType::VirtualHost,
    }
}
