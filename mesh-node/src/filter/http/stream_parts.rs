//! What a stream is made of: who serves it, and how long it may take.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::router::TryLimit;
use crate::cluster::{ClusterState, Host};
use crate::telemetry::format::UpstreamView;

/// The cluster that serves a stream.
#[derive(Debug)]
pub struct Upstream {
    pub cluster: Arc<ClusterState>,
    pub host: Option<Arc<Host>>,
    /// The response says how many tries it took.
    pub tell_attempts: bool,
}

impl Upstream {
    /// What configuration says of it.
    pub(super) fn view(&self) -> UpstreamView<'_> {
        let endpoint = self.host.as_ref().and_then(|host| host.endpoint.as_deref());
        UpstreamView {
            cluster_metadata: &self.cluster.config.metadata,
            endpoint_metadata: endpoint.map_or(&[][..], |endpoint| &endpoint.metadata[..]),
            endpoint_lb: endpoint.map_or(&[][..], |endpoint| &endpoint.lb_metadata[..]),
            host_name: self.host.as_ref().and_then(|host| host.hostname.as_deref()),
        }
    }
}

/// Bounds on the time of a stream; `None` is no limit.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Limits {
    /// Since the last byte in either direction.
    pub(super) idle: Option<Duration>,
    /// To the end of the request.
    pub(super) request: Option<Duration>,
    /// Of the whole stream.
    pub(super) max_duration: Option<Duration>,
    /// From the end of the request to the end of the response.
    pub(super) response: Option<Duration>,
    /// Since the last byte in either direction, once the response has begun.
    pub(super) try_idle: Option<Duration>,
    /// When the upstream's stream must have ended.
    pub(super) try_end: Option<Instant>,
}

/// Which limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    Idle,
    Request,
    MaxDuration,
    Response,
    Try(TryLimit),
}
