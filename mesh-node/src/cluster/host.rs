//! One endpoint at one address, with what is counted of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::clock;
use super::health::{HealthFlag, HostHealth};
use crate::drain::Signal;
use crate::model::Str;
use crate::model::cluster::{Cluster, Endpoint, EndpointAddress, HealthStatus, Locality, Transport};
use crate::model::resilience::HealthCheck;

/// An address that connections can go to.
#[derive(Debug)]
pub struct Host {
    pub address: SocketAddr,
    /// `Endpoint.hostname`, or the name that was resolved.
    pub hostname: Option<Str>,
    /// `None` for a host of an original destination cluster.
    pub endpoint: Option<Arc<Endpoint>>,
    pub priority: u32,
    pub locality: Arc<LocalityName>,
    /// The first transport socket match of the cluster that fits the endpoint, else the cluster's own.
    pub transport: Transport,
    /// Name of the transport socket match; `None` for the cluster's own transport socket.
    pub transport_name: Option<Str>,
    /// Carried over when the cluster's configuration changes and the address stays.
    pub counters: Arc<HostCounters>,
    /// Started when the host leaves its cluster, or the cluster is replaced: pooled connections end. A host
    /// whose weight, health or place changes becomes another `Host` with the same signal, and keeps them.
    pub removed: Arc<Signal>,
    /// Chosen since the last sweep (original destination clusters).
    touched: AtomicBool,
}

/// `core.v3.Locality`.
#[derive(Debug, Default, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalityName {
    pub region: Str,
    pub zone: Str,
    pub sub_zone: Str,
}

/// Where a host is.
pub(crate) struct Place {
    pub(crate) locality: Arc<LocalityName>,
    pub(crate) priority: u32,
    pub(crate) address: SocketAddr,
}

impl From<&Locality> for LocalityName {
    fn from(l: &Locality) -> Self {
        Self { region: l.region.clone(), zone: l.zone.clone(), sub_zone: l.sub_zone.clone() }
    }
}

/// What is counted and learned of a host.
#[derive(Debug, Default)]
pub struct HostCounters {
    pub health: HostHealth,
    pub cx_active: AtomicU64,
    pub cx_connect_fail: AtomicU64,
    pub cx_total: AtomicU64,
    pub rq_active: AtomicU64,
    pub rq_error: AtomicU64,
    pub rq_success: AtomicU64,
    pub rq_timeout: AtomicU64,
    pub rq_total: AtomicU64,
}

/// How a request to a host ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A response that is not a server error.
    Success,
    /// A 5xx response, or a reset before one.
    Error,
    /// No response in time; counts as an error too.
    Timeout,
}

impl HostCounters {
    /// Counts the end of a request.
    pub fn finish(&self, outcome: Outcome) {
        match outcome {
            Outcome::Success => &self.rq_success,
            Outcome::Error => &self.rq_error,
            Outcome::Timeout => {
                self.rq_timeout.fetch_add(1, Ordering::Relaxed);
                &self.rq_error
            }
        }
        .fetch_add(1, Ordering::Relaxed);
    }
}

impl Host {
    /// The host of a configured endpoint.
    pub(crate) fn of_endpoint(
        cluster: &Cluster,
        endpoint: Arc<Endpoint>,
        place: Place,
        counters: Arc<HostCounters>,
    ) -> Self {
        let (transport, transport_name) = transport_of(cluster, &endpoint.transport_match);
        let resolved = match &endpoint.address {
            EndpointAddress::Host(name, _) => Some(name.clone()),
            EndpointAddress::Socket(_) => None,
        };
        Self {
            address: place.address,
            hostname: endpoint.hostname.clone().or(resolved),
            endpoint: Some(endpoint),
            priority: place.priority,
            locality: place.locality,
            transport,
            transport_name,
            counters,
            removed: Arc::default(),
            touched: AtomicBool::new(false),
        }
    }

    /// The host of an original destination.
    pub(crate) fn of_original_dst(
        cluster: &Cluster,
        address: SocketAddr,
        counters: Arc<HostCounters>,
    ) -> Self {
        // Envoy gives such hosts no metadata: only a match without criteria can fit.
        let (transport, transport_name) = transport_of(cluster, &[]);
        Self {
            address,
            hostname: None,
            endpoint: None,
            priority: 0,
            locality: Arc::default(),
            transport,
            transport_name,
            counters,
            removed: Arc::default(),
            touched: AtomicBool::new(true),
        }
    }

    /// At least 1.
    pub fn weight(&self) -> u32 {
        self.endpoint.as_ref().map_or(1, |e| e.weight.max(1))
    }

    /// What the endpoint's configuration says of its health.
    pub fn configured_health(&self) -> HealthStatus {
        self.endpoint.as_ref().map_or(HealthStatus::Healthy, |e| e.health)
    }

    /// The health that counts: as configured and as found out (Envoy: `coarseHealth`).
    pub fn health(&self) -> HealthStatus {
        let health = &self.counters.health;
        match self.configured_health() {
            _ if health.has(HealthFlag::FailedActiveCheck) => HealthStatus::Unhealthy,
            _ if health.has(HealthFlag::FailedOutlierCheck) => HealthStatus::Unhealthy,
            HealthStatus::Healthy if health.has(HealthFlag::DegradedActiveCheck) => HealthStatus::Degraded,
            configured => configured,
        }
    }

    /// Left out when the share of healthy hosts is counted: hosts that are to leave or were never checked
    /// (Envoy: `excludeBasedOnHealthFlag`).
    pub(crate) fn excluded(&self) -> bool {
        let health = &self.counters.health;
        self.configured_health() == HealthStatus::Draining
            || health.has(HealthFlag::PendingActiveCheck)
            || health.has(HealthFlag::ExcludedByImmediateFail)
    }

    /// Requests in flight now, all workers.
    pub fn active_requests(&self) -> u64 {
        self.counters.rq_active.load(Ordering::Relaxed)
    }

    /// Notes that the host was chosen, so that the next sweep keeps it.
    pub(crate) fn touch(&self) {
        if !self.touched.load(Ordering::Relaxed) {
            self.touched.store(true, Ordering::Relaxed);
        }
    }

    /// Chosen since this was asked last?
    pub(crate) fn take_touched(&self) -> bool {
        self.touched.swap(false, Ordering::Relaxed)
    }
}

impl Host {
    /// Ends the pooled connections of a host that was found to fail, once for each time it does.
    pub(crate) fn close_if_failing(&self) {
        let health = &self.counters.health;
        let failing = health.has(HealthFlag::FailedActiveCheck) || health.has(HealthFlag::FailedOutlierCheck);
        if !failing {
            health.clear(HealthFlag::ConnectionsClosed);
        } else if health.set(HealthFlag::ConnectionsClosed) {
            self.removed.start();
        }
    }

    /// Are active checks to be made of the host?
    pub(crate) fn is_checked(&self) -> bool {
        !self.endpoint.as_ref().and_then(|e| e.check.as_ref()).is_some_and(|check| check.disabled)
    }

    /// A host that is checked serves once a check succeeded; others begin their slow start now, if they did not
    /// before. What was found out of the host's address before holds.
    pub(crate) fn note_start(&self, cluster: &Cluster) {
        let health = &self.counters.health;
        if cluster.outlier_detection.is_none() {
            health.clear(HealthFlag::FailedOutlierCheck);
        }
        match &cluster.health_check {
            Some(check) if self.is_checked() => {
                if !health.has(HealthFlag::Checked) {
                    health.set(HealthFlag::FailedActiveCheck);
                    if check.ignore_new_hosts {
                        health.set(HealthFlag::PendingActiveCheck);
                    }
                }
            }
            _ => health.forget_checks(),
        }
        if cluster.balancing.slow_start.is_some()
            && health.healthy_since().is_none()
            && self.health() == HealthStatus::Healthy
        {
            health.healthy_from(clock::now_ms());
        }
    }

    /// The host as active checks see it: their own address and transport, where configured.
    pub(crate) fn for_checks(&self, cluster: &Cluster, check: &HealthCheck) -> Self {
        let own = self.endpoint.as_ref().and_then(|e| e.check.as_deref());
        let mut address = own.and_then(|own| own.address).unwrap_or(self.address);
        if let Some(port) = own.and_then(|own| own.port) {
            address.set_port(port);
        }
        let (transport, transport_name) = match &check.transport_match {
            Some(criteria) => transport_of(cluster, criteria),
            None => (self.transport.clone(), self.transport_name.clone()),
        };
        Self {
            address,
            hostname: own.and_then(|own| own.hostname.clone()),
            endpoint: self.endpoint.clone(),
            priority: self.priority,
            locality: self.locality.clone(),
            transport,
            transport_name,
            counters: self.counters.clone(),
            removed: self.removed.clone(),
            touched: AtomicBool::new(false),
        }
    }

    /// Takes over the connections of a former self, if they are as good for this one.
    pub(crate) fn succeeding(mut self, former: Option<&Host>) -> Self {
        let same = |former: &&Host| {
            former.transport_name == self.transport_name
                && former.hostname == self.hostname
                && !former.removed.started()
        };
        if let Some(former) = former.filter(same) {
            self.removed = former.removed.clone();
        }
        self
    }
}

/// The transport for an endpoint with this `envoy.transport_socket_match` metadata.
fn transport_of(cluster: &Cluster, metadata: &[(String, String)]) -> (Transport, Option<Str>) {
    let mut matches = cluster.transport_socket_matches.iter();
    match matches.find(|m| m.matches.iter().all(|pair| metadata.contains(pair))) {
        Some(m) => (m.transport.clone(), Some(m.name.clone())),
        None => (cluster.transport_socket.clone(), None),
    }
}
