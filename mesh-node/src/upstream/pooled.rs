//! A connection as pools keep it: with its share of the circuit breaker, counting what goes over it.

use std::sync::Arc;
use std::time::Instant;

use super::connect::Connection;
use super::pool::{Lease, Slot};
use super::stream::UpstreamStream;
use crate::cluster::ConnectionGuard;
use crate::http::h1;
use crate::http::metered::{Meter, Metered};
use crate::telemetry::stats::ClusterStats;
use crate::telemetry::stream_info::UpstreamConnection;

/// A pooled HTTP/1 connection.
pub(super) type PooledH1 = h1::Connection<Pooled, Lease>;

/// The transport of a pooled connection.
pub(super) type Pooled = Metered<UpstreamStream, Share>;

/// What a pooled connection holds of its cluster until it ends.
pub(super) struct Share {
    pub(super) facts: Arc<UpstreamConnection>,
    pub(super) guard: ConnectionGuard,
    _slot: Slot,
    begin: Instant,
}

/// Makes a new connection one of a pool.
pub(super) fn pooled(connection: Connection, slot: Slot) -> Pooled {
    let Connection { stream, facts, guard, .. } = connection;
    Metered::new(stream, Share { facts, guard, _slot: slot, begin: Instant::now() })
}

impl Share {
    fn stats(&self) -> &ClusterStats {
        &self.guard.cluster().stats
    }

    pub(super) fn received(&self, bytes: usize) {
        self.stats().upstream_cx_rx_bytes_total.add(bytes as u64);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.stats().upstream_cx_tx_bytes_total.add(bytes as u64);
    }
}

impl Meter for Share {
    fn on_read(&self, bytes: &[u8]) {
        self.received(bytes.len());
    }

    fn on_written(&self, bytes: usize) {
        self.sent(bytes);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.stats().upstream_cx_length_ms.record_ms(self.begin.elapsed());
    }
}
