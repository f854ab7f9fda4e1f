//! Istio's standard metrics of connections (`istio.stats` before `tcp_proxy`).

use std::borrow::Cow;
use std::sync::Arc;

use super::istio_labels::{Ends, Metrics, connection_dimension, peer_labels};
use crate::cluster::{ClusterState, Host};
use crate::model::http_filter::{Dimension, IstioStats};
use crate::telemetry::peer::LocalPeer;
use crate::telemetry::stats::Counter;
use crate::telemetry::stream_info::StreamInfo;

/// The counters of one connection; `None` where configuration drops one.
#[derive(Debug)]
pub struct Series {
    pub received: Option<Arc<Counter>>,
    pub sent: Option<Arc<Counter>>,
    closed: Option<Arc<Counter>>,
}

impl Series {
    /// Counts a connection whose ends are known as opened.
    pub fn open(
        config: &IstioStats,
        local: &LocalPeer,
        info: &StreamInfo,
        target: Option<&(Arc<ClusterState>, Arc<Host>)>,
    ) -> Self {
        let ends = Ends {
            local,
            peer: info.peer.as_deref(),
            endpoint: target.and_then(|(_, host)| host.endpoint.as_ref()?.peer.as_deref()),
            connection: &info.connection,
            upstream: &info.upstream,
            cluster: target.map(|(cluster, _)| &*cluster.config),
            service_name: None,
            authority: None,
        };
        let (mut labels, security) = peer_labels(config.reporter, &ends);
        labels.push((Cow::Borrowed("request_protocol"), "tcp".to_owned()));
        labels.push((Cow::Borrowed("response_flags"), info.flags.short()));
        labels.push((Cow::Borrowed("connection_security_policy"), security.to_owned()));
        let value = |dimension: &Dimension| connection_dimension(dimension, info);
        let metrics = Metrics { config, local, value: &value };
        if let Some(opened) = metrics.counter("tcp_connections_opened_total", &labels) {
            opened.inc();
        }
        Self {
            received: metrics.counter("tcp_received_bytes_total", &labels),
            sent: metrics.counter("tcp_sent_bytes_total", &labels),
            closed: metrics.counter("tcp_connections_closed_total", &labels),
        }
    }
}

impl Drop for Series {
    fn drop(&mut self) {
        if let Some(closed) = &self.closed {
            closed.inc();
        }
    }
}
