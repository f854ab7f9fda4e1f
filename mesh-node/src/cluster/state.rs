//! A cluster at run time: its hosts now, what is open, and the choice of the next host.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use super::checks::{self, Probe};
use super::dns::Resolve;
use super::host::{LocalityName, Place};
use super::host_set::{Draw, HostSet, LocalityHosts};
use super::original_dst::OriginalDstHosts;
use super::outlier::Detector;
use super::{
    Breakers, ConnectionGuard, Host, HostCounters, LocalCluster, PendingGuard, Random, RequestGuard,
    RetryGuard, RoutingPriority, Spread, discovery, resilience,
};
use crate::model::Str;
use crate::model::cluster::{Assignment, Cluster, Discovery, Endpoint, EndpointAddress, Locality};
use crate::model::metadata::{Metadata, MetadataValue, find};
use crate::model::tls::Secrets;
use crate::telemetry::stats::ClusterStats;

/// A cluster and its run-time state, shared by all workers.
#[derive(Debug)]
pub struct ClusterState {
    pub config: Arc<Cluster>,
    pub stats: Arc<ClusterStats>,
    pub breakers: Breakers,
    /// The endpoints: the cluster's own, or those that EDS gave.
    assignment: ArcSwap<Assignment>,
    hosts: ArcSwap<HostSet>,
    original_dst: OriginalDstHosts,
    /// Of DNS clusters: what is known of each name. Its lock orders the changes of `hosts`.
    known: Mutex<HashMap<Str, Vec<IpAddr>>>,
    /// Names whose first lookup has not ended yet.
    unanswered: watch::Sender<BTreeSet<Str>>,
    tasks: Mutex<Vec<AbortHandle>>,
    pub(super) detector: Option<Detector>,
    /// What connections to its hosts take their certificates and trust from.
    pub secrets: Arc<Secrets>,
    /// Told when hosts come and go, for whoever checks them.
    pub(super) membership: Arc<Notify>,
    /// True once every host was checked, where hosts are checked.
    pub(super) first_checks: watch::Sender<bool>,
    pub(super) random: Arc<dyn Random>,
    /// The cluster that this proxy belongs to.
    local: Option<Arc<LocalCluster>>,
    workers: usize,
}

/// What a choice of host may depend on.
#[derive(Debug, Clone, Copy, Default)]
pub struct LbContext<'a> {
    /// Where the client wanted to go, before it was steered here.
    pub original_dst: Option<SocketAddr>,
    /// The value of the cluster's `original_dst_lb_config.http_header_name` in the request.
    pub original_dst_header: Option<&'a str>,
    /// Hosts that were tried already (`envoy.retry_host_predicates.previous_hosts`).
    pub exclude: &'a [SocketAddr],
    /// Hosts that retries avoid for what they are (`omit_canary_hosts`, `omit_host_metadata`): any of these.
    pub avoid: &'a [Metadata],
    /// Priorities that were tried (`envoy.retry_priorities.previous_priorities`).
    pub spread: Option<&'a Spread>,
    /// `host_selection_retry_max_attempts`: how often the choice is repeated when it falls on `exclude`.
    /// After that an excluded host is taken all the same.
    pub exclude_attempts: u32,
    /// The request's hash ([`crate::router::hash_key`]), for policies that hash. Without one a random host
    /// serves.
    pub hash: Option<u64>,
    /// The host that the request's session belongs to, and whether no other may serve it. It serves unless its
    /// health is not among `override_host_status`. Retries have none.
    pub override_host: Option<(SocketAddr, bool)>,
    /// What the route asks of hosts' metadata (`metadata_match`), sorted by key, for clusters with subsets.
    pub metadata_match: Option<&'a [(Str, MetadataValue)]>,
}

impl LbContext<'_> {
    /// Should another host be drawn in place of this one?
    fn refuses(&self, host: &Host) -> bool {
        let own = || host.endpoint.as_deref().map_or(&[][..], |endpoint| &endpoint.lb_metadata[..]);
        let is = |wanted: &Metadata| wanted.iter().all(|(key, value)| find(own(), key) == Some(value));
        self.exclude.contains(&host.address) || self.avoid.iter().any(is)
    }
}

/// Why no host could be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoHost {
    /// 503 `no healthy upstream`, flag `UH`. A retry may find one.
    #[error("no healthy upstream")]
    NoHealthyHost,
    /// The connection was not steered and nothing else says where to go. Also `UH`.
    #[error("no original destination")]
    NoOriginalDst,
}

/// A circuit breaker is open: flag `UO`. Not worth a retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("circuit breaker open: {0}")]
pub struct Overflow(pub &'static str);

impl ClusterState {
    /// State for `config` with the endpoints of `assignment`. Hosts keep the counters and the health that
    /// `previous` has for their address, and names the addresses it knows: a changed cluster serves before its
    /// names are looked up again.
    pub(crate) fn new(
        config: Arc<Cluster>,
        assignment: Arc<Assignment>,
        previous: Option<&ClusterState>,
        secrets: Arc<Secrets>,
        random: Arc<dyn Random>,
        (local, workers): (Option<Arc<LocalCluster>>, usize),
    ) -> Self {
        let names = discovery::names(&config);
        let mut known = previous.map(|p| lock(&p.known).clone()).unwrap_or_default();
        known.retain(|name, _| names.contains(name));
        let unanswered = names.into_iter().filter(|name| !known.contains_key(name)).collect();
        let empty = HostSet::new(&config, Vec::new(), 0, None, (workers, &*random));
        let state = Self {
            stats: config.stats.clone(),
            breakers: Breakers::new(&config),
            assignment: ArcSwap::new(assignment),
            hosts: ArcSwap::from_pointee(empty),
            original_dst: OriginalDstHosts::default(),
            known: Mutex::new(known),
            unanswered: watch::Sender::new(unanswered),
            tasks: Mutex::default(),
            detector: config.outlier_detection.clone().map(Detector::new),
            membership: Arc::default(),
            first_checks: watch::Sender::new(config.health_check.is_none()),
            config,
            secrets,
            random,
            local,
            workers,
        };
        state.rebuild(&lock(&state.known), previous);
        state
    }

    /// Begins to keep the hosts up to date, on the current runtime.
    pub(crate) fn start(self: &Arc<Self>, resolver: &Arc<dyn Resolve>, prober: &Arc<dyn Probe>) {
        let mut tasks = discovery::start(self, resolver, &self.random);
        tasks.extend(resilience::start_judging(self));
        tasks.extend(checks::start(self, prober));
        lock(&self.tasks).extend(tasks);
    }

    /// Returns when every name has been looked up and every host checked once, with or without success.
    pub async fn warmed(&self) {
        // The senders are ours: they cannot be gone.
        let _ = self.unanswered.subscribe().wait_for(BTreeSet::is_empty).await;
        let _ = self.first_checks.subscribe().wait_for(|done| *done).await;
    }

    /// Has every name been looked up?
    pub(super) fn answered(&self) -> bool {
        self.unanswered.borrow().is_empty()
    }

    /// A lookup has ended: with these addresses, or without an answer.
    pub(crate) fn resolved(&self, name: &Str, addresses: Option<Vec<IpAddr>>) {
        if let Some(addresses) = addresses {
            if addresses.is_empty() {
                self.stats.update_empty.inc();
            }
            let mut known = lock(&self.known);
            if known.get(name).is_some_and(|old| same_set(old, &addresses)) {
                self.stats.update_no_rebuild.inc();
            } else {
                known.insert(name.clone(), addresses);
                self.rebuild(&known, Some(self));
            }
        }
        self.unanswered.send_if_modified(|names| names.remove(name));
        self.membership.notify_one();
    }

    /// EDS has given other endpoints. Hosts that are the same stay, with their connections.
    pub(crate) fn set_assignment(&self, assignment: Arc<Assignment>) {
        let known = lock(&self.known);
        if Arc::ptr_eq(&assignment, &self.assignment.load()) {
            return;
        }
        if *assignment == **self.assignment.load() {
            self.stats.update_no_rebuild.inc();
            return;
        }
        self.assignment.store(assignment);
        self.rebuild(&known, Some(self));
    }

    /// The health of some hosts is another now: they are arranged anew.
    pub(crate) fn health_changed(&self) {
        if self.config.close_connections_on_host_health_failure {
            self.hosts.load().hosts().for_each(|host| host.close_if_failing());
        }
        self.rebuild(&lock(&self.known), Some(self));
    }

    /// Makes the hosts of what is configured and known. The hosts of `previous` are kept where nothing
    /// changed, and their counters where the address stays.
    fn rebuild(&self, known: &HashMap<Str, Vec<IpAddr>>, previous: Option<&ClusterState>) {
        let old = previous.map(|p| p.hosts.load());
        let logical = matches!(self.config.discovery, Discovery::LogicalDns(_));
        let counters = |address: &SocketAddr| -> Arc<HostCounters> {
            let Some(old) = &old else { return Arc::default() };
            // A logical host stays the same host when its address changes.
            let host = old.by_address(address).or_else(|| old.hosts().next().filter(|_| logical));
            host.map(|host| host.counters.clone()).unwrap_or_default()
        };
        let own = previous.is_some_and(|p| std::ptr::eq(p, self));
        let host = |locality: &Locality, name: &Arc<LocalityName>, endpoint: &Arc<Endpoint>, address| {
            let former = old.as_ref().filter(|_| own).and_then(|old| old.by_address(&address));
            let same = |host: &&Arc<Host>| {
                !host.removed.started()
                    && host.priority == locality.priority
                    && host.locality == *name
                    && host.endpoint.as_ref().is_some_and(|e| Arc::ptr_eq(e, endpoint) || e == endpoint)
            };
            former.filter(same).cloned().unwrap_or_else(|| {
                let place = Place { locality: name.clone(), priority: locality.priority, address };
                let host = Host::of_endpoint(&self.config, endpoint.clone(), place, counters(&address));
                host.note_start(&self.config);
                Arc::new(host.succeeding(former.map(|former| &**former)))
            })
        };
        let assignment = self.assignment.load();
        let localities = assignment.localities.iter().map(|locality| {
            let name = Arc::new(LocalityName::from(locality));
            let hosts = locality.endpoints.iter().flat_map(|endpoint| {
                let addresses = addresses(&endpoint.address, known, logical);
                addresses
                    .into_iter()
                    .map(|address| host(locality, &name, endpoint, address))
                    .collect::<Vec<_>>()
            });
            LocalityHosts { priority: locality.priority, weight: locality.weight, hosts: hosts.collect() }
        });
        self.publish(localities.collect(), assignment.overprovisioning_factor_percent);
    }

    /// Replaces the hosts. Those that are gone are told so, save for logical ones: their connections are as
    /// good as before.
    fn publish(&self, localities: Vec<LocalityHosts>, overprovisioning: u32) {
        let local = self.local.as_ref();
        if let Some(local) = local.filter(|local| local.name == self.config.name) {
            local.set(&localities);
        }
        let chance = (self.workers, &*self.random);
        let new = Arc::new(HostSet::new(&self.config, localities, overprovisioning, local, chance));
        let counts = new.counts();
        let old = self.hosts.swap(new.clone());
        let goes_on = |host: &Arc<Host>| {
            new.by_address(&host.address).is_some_and(|new| Arc::ptr_eq(&new.removed, &host.removed))
        };
        let mut changed = old.counts().all != counts.all;
        for gone in old.hosts().filter(|host| !goes_on(host)) {
            changed = true;
            if !matches!(self.config.discovery, Discovery::LogicalDns(_)) {
                gone.removed.start();
            }
        }
        if let Some(detector) = &self.detector {
            detector.hosts_changed(new.hosts());
        }
        if changed {
            self.stats.membership_change.inc();
        }
        self.membership.notify_one();
        if let Some((subsets, config)) = new.subsets().zip(self.config.balancing.subsets.as_ref()) {
            let before = old.subsets();
            let created = before.map_or(subsets.len() as u64, |before| subsets.missing_in(before));
            config.stats.lb_subsets_created.add(created);
            config.stats.lb_subsets_removed.add(before.map_or(0, |before| before.missing_in(subsets)));
            config.stats.lb_subsets_active.set(subsets.len() as u64);
        }
        self.stats.membership_total.set(counts.all as u64);
        self.stats.membership_healthy.set(counts.healthy as u64);
        self.stats.membership_degraded.set(counts.degraded as u64);
        self.stats.membership_excluded.set(counts.excluded as u64);
    }

    pub(crate) fn host_count(&self) -> usize {
        match self.config.discovery {
            Discovery::OriginalDst { .. } | Discovery::ForwardProxy(_) => self.original_dst.len(),
            _ => self.hosts.load().counts().all,
        }
    }

    /// All hosts now, in order of priority.
    pub fn hosts(&self) -> Vec<Arc<Host>> {
        match self.config.discovery {
            Discovery::OriginalDst { .. } | Discovery::ForwardProxy(_) => self.original_dst.all(),
            _ => self.hosts.load().hosts().cloned().collect(),
        }
    }

    /// The cluster's name.
    pub fn name(&self) -> &Str {
        &self.config.name
    }

    /// The host for the next connection or request.
    pub fn choose(&self, context: &LbContext<'_>) -> Result<Arc<Host>, NoHost> {
        let chosen = match &self.config.discovery {
            Discovery::ForwardProxy(_) => self.choose_original_dst(false, None, context),
            Discovery::OriginalDst { http_header, port_override, .. } => {
                self.choose_original_dst(http_header.is_some(), *port_override, context)
            }
            _ => self.choose_balanced(context).ok_or(NoHost::NoHealthyHost),
        };
        if chosen.is_err() {
            self.stats.upstream_cx_none_healthy.inc();
        }
        chosen
    }

    fn choose_balanced(&self, context: &LbContext<'_>) -> Option<Arc<Host>> {
        let hosts = self.hosts.load();
        if let Some((address, strict)) = context.override_host {
            let allowed = self.config.balancing.override_statuses;
            match hosts.by_address(&address).filter(|host| allowed.has(host.health())) {
                Some(host) => return Some(host.clone()),
                None if strict => return None,
                None => {}
            }
        }
        let nothing = context.exclude.is_empty() && context.avoid.is_empty();
        let attempts = if nothing { 0 } else { context.exclude_attempts };
        let hashes = self.config.lb.hashes();
        let mut draw = Draw { hash: self.draw(context), attempt: 0 };
        loop {
            let (host, panic) = self.pick(&hosts, context, draw);
            if panic {
                self.stats.lb_healthy_panic.inc();
            }
            let host = host?;
            if draw.attempt == attempts || !context.refuses(host) {
                if let (Some(spread), Some(priority)) = (context.spread, hosts.priority_of(host)) {
                    spread.note(priority);
                }
                return Some(host.clone());
            }
            draw.attempt += 1;
            if !hashes {
                draw.hash = self.random.next();
            }
        }
    }

    /// Chooses among all hosts, or those that the request's metadata asks for.
    fn pick<'h>(
        &self,
        hosts: &'h HostSet,
        context: &LbContext<'_>,
        draw: Draw,
    ) -> (Option<&'h Arc<Host>>, bool) {
        let among = |hosts: &'h HostSet| hosts.choose(&self.config, &*self.random, draw, context.spread);
        match (hosts.subsets(), &self.config.balancing.subsets) {
            (Some(table), Some(config)) => table.choose(config, hosts, context.metadata_match, &among),
            _ => among(hosts),
        }
    }

    fn draw(&self, context: &LbContext<'_>) -> u64 {
        context.hash.filter(|_| self.config.lb.hashes()).unwrap_or_else(|| self.random.next())
    }

    fn choose_original_dst(
        &self,
        use_header: bool,
        port_override: Option<u16>,
        context: &LbContext<'_>,
    ) -> Result<Arc<Host>, NoHost> {
        let from_header = context.original_dst_header.filter(|_| use_header).and_then(|header| {
            let address = header.parse().ok();
            if address.is_none() {
                // As good as none: the original destination counts.
                self.stats.original_dst_host_invalid.inc();
            }
            address
        });
        let mut address: SocketAddr = from_header.or(context.original_dst).ok_or(NoHost::NoOriginalDst)?;
        if let Some(port) = port_override {
            address.set_port(port);
        }
        let (host, added) = self.original_dst.get_or_add(&self.config, address);
        if added {
            self.set_original_dst_membership();
        }
        Ok(host)
    }

    /// Forgets original destinations that are not in use any more. Called every `cleanup_interval`.
    pub(crate) fn sweep(&self) {
        if self.original_dst.sweep() > 0 {
            self.set_original_dst_membership();
        }
    }

    fn set_original_dst_membership(&self) {
        let hosts = self.original_dst.len() as u64;
        self.stats.membership_total.set(hosts);
        self.stats.membership_healthy.set(hosts);
    }

    /// The cluster is replaced or removed: resolution stops, its hosts' pooled connections end.
    pub(crate) fn retire(&self) {
        for task in lock(&self.tasks).drain(..) {
            task.abort();
        }
        // Nobody waits for answers that will not come.
        self.unanswered.send_replace(BTreeSet::new());
        self.first_checks.send_replace(true);
        for host in self.hosts() {
            host.removed.start();
        }
    }

    /// Begins a connection to `host`, if `max_connections` allows one more.
    pub fn connection(
        self: &Arc<Self>,
        host: &Arc<Host>,
        priority: RoutingPriority,
    ) -> Result<ConnectionGuard, Overflow> {
        let breakers = self.breakers.of(priority);
        let of_host = host.counters.cx_active.load(Ordering::Relaxed);
        if breakers.thresholds.max_connections_per_host.is_some_and(|limit| of_host >= u64::from(limit)) {
            self.stats.upstream_cx_overflow.inc();
            return Err(Overflow("max_connections of the host"));
        }
        if !breakers.connections.take(breakers.thresholds.max_connections) {
            self.stats.upstream_cx_overflow.inc();
            return Err(Overflow("max_connections"));
        }
        Ok(ConnectionGuard::begin(self.clone(), host.clone(), priority))
    }

    /// Begins a connection whatever the limit: a pool that has none for a host always opens one, or its
    /// requests could never be served (Envoy: `ConnPoolImplBase::tryCreateNewConnection`).
    pub fn connection_over_limit(
        self: &Arc<Self>,
        host: &Arc<Host>,
        priority: RoutingPriority,
    ) -> ConnectionGuard {
        self.breakers.of(priority).connections.take_over_limit();
        ConnectionGuard::begin(self.clone(), host.clone(), priority)
    }

    /// Begins a request on a connection to `host`, if `max_requests` allows one more.
    pub fn request(
        self: &Arc<Self>,
        host: &Arc<Host>,
        priority: RoutingPriority,
    ) -> Result<RequestGuard, Overflow> {
        let breakers = self.breakers.of(priority);
        if !breakers.take_request() {
            self.stats.upstream_rq_pending_overflow.inc();
            return Err(Overflow("max_requests"));
        }
        Ok(RequestGuard::begin(self.clone(), host.clone(), priority))
    }

    /// Begins to wait for a connection, if `max_pending_requests` allows one more.
    pub fn pending(self: &Arc<Self>, priority: RoutingPriority) -> Result<PendingGuard, Overflow> {
        let breakers = self.breakers.of(priority);
        if !breakers.pending.take(breakers.thresholds.max_pending_requests) {
            self.stats.upstream_rq_pending_overflow.inc();
            return Err(Overflow("max_pending_requests"));
        }
        Ok(PendingGuard::begin(self.clone(), priority))
    }

    /// Begins a retry, if `max_retries` or the retry budget allows one more.
    pub fn retry(self: &Arc<Self>, priority: RoutingPriority) -> Result<RetryGuard, Overflow> {
        let breakers = self.breakers.of(priority);
        if !breakers.retries.take(breakers.max_retries()) {
            self.stats.upstream_rq_retry_overflow.inc();
            return Err(Overflow("max_retries"));
        }
        self.stats.upstream_rq_retry.inc();
        Ok(RetryGuard::begin(self.clone(), priority))
    }
}

impl Drop for ClusterState {
    fn drop(&mut self) {
        // Whoever waits for changes learns that there will be none.
        self.membership.notify_one();
    }
}

/// Where an endpoint is now. Of a logical DNS cluster only the first address counts.
fn addresses(address: &EndpointAddress, known: &HashMap<Str, Vec<IpAddr>>, logical: bool) -> Vec<SocketAddr> {
    match address {
        EndpointAddress::Socket(address) => vec![*address],
        EndpointAddress::Host(name, port) => {
            let ips = known.get(name).map_or(&[][..], Vec::as_slice);
            let count = if logical { 1 } else { ips.len() };
            ips.iter().take(count).map(|ip| SocketAddr::new(*ip, *port)).collect()
        }
    }
}

/// Servers give their answers in changing order.
fn same_set(a: &[IpAddr], b: &[IpAddr]) -> bool {
    a.len() == b.len() && a.iter().all(|ip| b.contains(ip))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
