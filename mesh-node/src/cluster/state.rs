//! A cluster at run time: its hosts now, what is open, and the choice of the next host.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::breakers::{take, take_over_limit};
use super::host::LocalityName;
use super::host_set::{HostSet, LocalityHosts};
use super::original_dst::OriginalDstHosts;
use super::{
    Breakers, ConnectionGuard, Host, HostCounters, PendingGuard, Random, RequestGuard, RetryGuard,
    RoutingPriority,
};
use crate::model::Str;
use crate::model::cluster::{Cluster, Discovery, EndpointAddress};
use crate::telemetry::stats::ClusterStats;

/// A cluster and its run-time state, shared by all workers.
#[derive(Debug)]
pub struct ClusterState {
    pub config: Arc<Cluster>,
    pub stats: Arc<ClusterStats>,
    pub breakers: Breakers,
    hosts: ArcSwap<HostSet>,
    original_dst: OriginalDstHosts,
    random: Arc<dyn Random>,
    workers: usize,
}

/// What a choice of host may depend on.
#[derive(Debug, Clone, Copy, Default)]
pub struct LbContext<'a> {
    /// Where the client wanted to go, before it was steered here.
    pub original_dst: Option<SocketAddr>,
    /// The value of the cluster's `original_dst_lb_config.http_header_name` in the request.
    pub original_dst_header: Option<&'a str>,
    /// From the route's or TCP proxy's hash policy.
    pub hash: Option<u64>,
    /// Hosts that were tried already (`envoy.retry_host_predicates.previous_hosts`).
    pub exclude: &'a [SocketAddr],
    /// `host_selection_retry_max_attempts`: how often the choice is repeated when it falls on `exclude`.
    /// After that an excluded host is taken all the same.
    pub exclude_attempts: u32,
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
    /// State for `config`. Hosts keep the counters that `previous` has for their address.
    pub(crate) fn new(
        config: Arc<Cluster>,
        previous: Option<&ClusterState>,
        random: Arc<dyn Random>,
        workers: usize,
    ) -> Self {
        let empty = HostSet::new(&config, Vec::new(), workers, &*random);
        let state = Self {
            stats: config.stats.clone(),
            breakers: Breakers::new(config.circuit_breakers),
            hosts: ArcSwap::from_pointee(empty),
            original_dst: OriginalDstHosts::default(),
            config,
            random,
            workers,
        };
        if let Discovery::Static = state.config.discovery {
            state.publish(state.static_hosts(previous));
        }
        state
    }

    fn static_hosts(&self, previous: Option<&ClusterState>) -> Vec<LocalityHosts> {
        self.config
            .load_assignment
            .iter()
            .map(|locality| {
                let name = Arc::new(LocalityName::from(locality));
                let hosts = locality.endpoints.iter().filter_map(|endpoint| {
                    // A name in a static cluster is an error that the converter reports.
                    let EndpointAddress::Socket(address) = endpoint.address else { return None };
                    Some(Arc::new(Host::of_endpoint(
                        &self.config,
                        name.clone(),
                        locality.priority,
                        endpoint.clone(),
                        endpoint.hostname.clone(),
                        address,
                        previous.and_then(|p| p.counters(&address)).unwrap_or_default(),
                    )))
                });
                LocalityHosts { priority: locality.priority, weight: locality.weight, hosts: hosts.collect() }
            })
            .collect()
    }

    /// Replaces the hosts. Those that are gone are told so.
    pub(crate) fn publish(&self, localities: Vec<LocalityHosts>) {
        let new = Arc::new(HostSet::new(&self.config, localities, self.workers, &*self.random));
        let counts = new.counts();
        let old = self.hosts.swap(new.clone());
        for host in old.hosts() {
            if !new.by_address(&host.address).is_some_and(|kept| Arc::ptr_eq(kept, host)) {
                host.removed.start();
            }
        }
        self.stats.membership_total.set(counts.all as u64);
        self.stats.membership_healthy.set(counts.healthy as u64);
    }

    fn counters(&self, address: &SocketAddr) -> Option<Arc<HostCounters>> {
        self.hosts.load().by_address(address).map(|host| host.counters.clone())
    }

    /// All hosts now, in order of priority.
    pub fn hosts(&self) -> Vec<Arc<Host>> {
        match self.config.discovery {
            Discovery::OriginalDst { .. } => self.original_dst.all(),
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
        let attempts = if context.exclude.is_empty() { 0 } else { context.exclude_attempts };
        let mut attempt = 0;
        loop {
            let (host, panic) = hosts.choose(&self.config, &*self.random)?;
            if panic {
                self.stats.lb_healthy_panic.inc();
            }
            if attempt == attempts || !context.exclude.contains(&host.address) {
                return Some(host.clone());
            }
            attempt += 1;
        }
    }

    fn choose_original_dst(
        &self,
        use_header: bool,
        port_override: Option<u16>,
        context: &LbContext<'_>,
    ) -> Result<Arc<Host>, NoHost> {
        // A header that is no address is as good as none (Envoy counts original_dst_host_invalid).
        let from_header = context.original_dst_header.filter(|_| use_header).and_then(|h| h.parse().ok());
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

    /// The cluster is replaced or removed: its hosts' pooled connections end.
    pub(crate) fn retire(&self) {
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
        if !take(&breakers.connections, breakers.thresholds.max_connections) {
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
        take_over_limit(&self.breakers.of(priority).connections);
        ConnectionGuard::begin(self.clone(), host.clone(), priority)
    }

    /// Begins a request on a connection to `host`, if `max_requests` allows one more.
    pub fn request(
        self: &Arc<Self>,
        host: &Arc<Host>,
        priority: RoutingPriority,
    ) -> Result<RequestGuard, Overflow> {
        let breakers = self.breakers.of(priority);
        if !take(&breakers.requests, breakers.thresholds.max_requests) {
            self.stats.upstream_rq_pending_overflow.inc();
            return Err(Overflow("max_requests"));
        }
        Ok(RequestGuard::begin(self.clone(), host.clone(), priority))
    }

    /// Begins to wait for a connection, if `max_pending_requests` allows one more.
    pub fn pending(self: &Arc<Self>, priority: RoutingPriority) -> Result<PendingGuard, Overflow> {
        let breakers = self.breakers.of(priority);
        if !take(&breakers.pending, breakers.thresholds.max_pending_requests) {
            self.stats.upstream_rq_pending_overflow.inc();
            return Err(Overflow("max_pending_requests"));
        }
        Ok(PendingGuard::begin(self.clone(), priority))
    }

    /// Begins a retry, if `max_retries` or the retry budget allows one more.
    pub fn retry(self: &Arc<Self>, priority: RoutingPriority) -> Result<RetryGuard, Overflow> {
        let breakers = self.breakers.of(priority);
        if !take(&breakers.retries, breakers.max_retries()) {
            self.stats.upstream_rq_retry_overflow.inc();
            return Err(Overflow("max_retries"));
        }
        self.stats.upstream_rq_retry.inc();
        Ok(RetryGuard::begin(self.clone(), priority))
    }
}
