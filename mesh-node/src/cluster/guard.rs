//! Guards: what is in use for as long as the guard lives. Dropping one gives its share of the circuit
//! breaker back and lowers the gauges, on every way out.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{ClusterState, Host, Outcome, Report, RoutingPriority};

/// One connection to a host, from the attempt to the close.
#[derive(Debug)]
pub struct ConnectionGuard {
    cluster: Arc<ClusterState>,
    host: Arc<Host>,
    priority: RoutingPriority,
    start: Instant,
}

impl ConnectionGuard {
    /// Counts a connection whose share of the breaker is already taken.
    pub(crate) fn begin(cluster: Arc<ClusterState>, host: Arc<Host>, priority: RoutingPriority) -> Self {
        cluster.stats.upstream_cx_total.inc();
        cluster.stats.upstream_cx_active.inc();
        host.counters.cx_total.fetch_add(1, Ordering::Relaxed);
        host.counters.cx_active.fetch_add(1, Ordering::Relaxed);
        Self { cluster, host, priority, start: Instant::now() }
    }

    /// The connection (TLS included) stands.
    pub fn connected(&self) {
        self.cluster.stats.upstream_cx_connect_ms.record_ms(self.start.elapsed());
    }

    /// The attempt failed before the connection (TLS included) stood.
    pub fn connect_failed(&self) {
        self.cluster.stats.upstream_cx_connect_fail.inc();
        self.host.counters.cx_connect_fail.fetch_add(1, Ordering::Relaxed);
    }

    /// The attempt failed because `connect_timeout` passed: a failure of its own kind.
    pub fn connect_timed_out(&self) {
        self.cluster.stats.upstream_cx_connect_timeout.inc();
        self.connect_failed();
    }

    pub fn cluster(&self) -> &Arc<ClusterState> {
        &self.cluster
    }

    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let breakers = self.cluster.breakers.of(self.priority);
        breakers.connections.give_back(breakers.thresholds.max_connections);
        self.cluster.stats.upstream_cx_active.dec();
        self.cluster.stats.upstream_cx_destroy.inc();
        self.cluster.stats.upstream_cx_length_ms.record_ms(self.start.elapsed());
        self.host.counters.cx_active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One request, from the choice of its host to the end of its response.
#[derive(Debug)]
pub struct RequestGuard {
    cluster: Arc<ClusterState>,
    host: Arc<Host>,
    priority: RoutingPriority,
    attached: Cell<bool>,
}

impl RequestGuard {
    /// For a request whose share of the breaker is already taken.
    pub(crate) fn begin(cluster: Arc<ClusterState>, host: Arc<Host>, priority: RoutingPriority) -> Self {
        Self { cluster, host, priority, attached: Cell::new(false) }
    }

    /// The request has a connection and goes out: counted as active from now on. One that never gets a
    /// connection is none of the host's requests.
    pub fn attached(&self) {
        if self.attached.replace(true) {
            return;
        }
        self.cluster.stats.upstream_rq_total.inc();
        self.cluster.stats.upstream_rq_active.inc();
        self.host.counters.rq_total.fetch_add(1, Ordering::Relaxed);
        self.host.counters.rq_active.fetch_add(1, Ordering::Relaxed);
        self.cluster.report(&self.host, Report::Connected);
    }

    /// Counts how the request ended, for `/clusters`. At most once per request.
    pub fn finish(&self, outcome: Outcome) {
        self.host.counters.finish(outcome);
    }

    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let breakers = self.cluster.breakers.of(self.priority);
        breakers.requests.give_back(breakers.thresholds.max_requests);
        if self.attached.get() {
            self.cluster.stats.upstream_rq_active.dec();
            self.host.counters.rq_active.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// One request that waits for a connection.
#[derive(Debug)]
pub struct PendingGuard {
    cluster: Arc<ClusterState>,
    priority: RoutingPriority,
}

impl PendingGuard {
    pub(crate) fn begin(cluster: Arc<ClusterState>, priority: RoutingPriority) -> Self {
        cluster.stats.upstream_rq_pending_total.inc();
        cluster.stats.upstream_rq_pending_active.inc();
        Self { cluster, priority }
    }
}

impl Drop for PendingGuard {
    fn drop(&mut self) {
        self.cluster.stats.upstream_rq_pending_active.dec();
        let breakers = self.cluster.breakers.of(self.priority);
        breakers.pending.give_back(breakers.thresholds.max_pending_requests);
    }
}

/// One retry, from the decision to the end of the retried request.
#[derive(Debug)]
pub struct RetryGuard {
    cluster: Arc<ClusterState>,
    priority: RoutingPriority,
}

impl RetryGuard {
    pub(crate) fn begin(cluster: Arc<ClusterState>, priority: RoutingPriority) -> Self {
        Self { cluster, priority }
    }
}

impl Drop for RetryGuard {
    fn drop(&mut self) {
        let breakers = self.cluster.breakers.of(self.priority);
        breakers.retries.give_back(breakers.max_retries());
    }
}
