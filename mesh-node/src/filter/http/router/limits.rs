//! How long one try may take: the route's limits per try and the cluster's on its streams.

use std::pin::Pin;
use std::time::{Duration, Instant};

use http::StatusCode;

use super::super::local_reply::LocalReply;
use super::super::stream::Stream;
use super::local;
use crate::cluster::ClusterState;
use crate::router::{ResetReason, Timeouts};
use crate::telemetry::stream_info::ResponseFlags;

/// Why a try was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TryLimit {
    /// `RetryPolicy.per_try_timeout`
    Total,
    /// `RetryPolicy.per_try_idle_timeout`
    Idle,
    /// The cluster's `max_stream_duration`
    MaxDuration,
}

/// The limits of one try. Most routes have none.
#[derive(Debug, Clone, Copy)]
pub(super) struct TryLimits {
    begun: Instant,
    total: Option<Duration>,
    idle: Option<Duration>,
    max_duration: Option<Duration>,
}

impl TryLimits {
    /// `None` where nothing bounds the try.
    pub(super) fn new(timeouts: &Timeouts, cluster: &ClusterState) -> Option<Self> {
        let (total, idle) = (timeouts.per_try, timeouts.per_try_idle);
        let max_duration = cluster.config.max_stream_duration;
        (total.is_some() || idle.is_some() || max_duration.is_some()).then(|| Self {
            begun: Instant::now(),
            total,
            idle,
            max_duration,
        })
    }

    /// The output of `exchange`, or the limit that was reached first.
    pub(super) async fn within<F: Future>(
        &self,
        stream: &Stream,
        mut exchange: Pin<&mut F>,
    ) -> Result<F::Output, TryLimit> {
        loop {
            let Some((at, what)) = self.next(stream) else { return Ok(exchange.await) };
            tokio::select! {
                biased;
                output = &mut exchange => return Ok(output),
                () = tokio::time::sleep_until(at.into()) => {}
            }
            // Unless it moved meanwhile.
            if self.next(stream) == Some((at, what)) {
                return Err(what);
            }
        }
    }

    fn next(&self, stream: &Stream) -> Option<(Instant, TryLimit)> {
        let idle_since = stream.last_activity().max(self.begun);
        let total = self.total.map(|limit| (self.begun + limit, TryLimit::Total));
        let idle = self.idle.map(|limit| (idle_since + limit, TryLimit::Idle));
        let max = self.max_duration.map(|limit| (self.begun + limit, TryLimit::MaxDuration));
        [total, idle, max].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// The next limit of a try that goes on when its time is over: that counts once, from the end of the request on.
    pub(super) fn of_hedged(&self, stream: &Stream, late: bool) -> Option<(Instant, TryLimit)> {
        let max = self.max_duration.map(|limit| (self.begun + limit, TryLimit::MaxDuration));
        let complete = stream.request_complete().filter(|_| !late).map(|at| at.max(self.begun));
        let total = self.total.zip(complete).map(|(limit, from)| (from + limit, TryLimit::Total));
        let idle = self.idle.zip(complete).map(|(limit, from)| {
            let since = stream.last_activity().max(from);
            (since + limit, TryLimit::Idle)
        });
        [total, idle, max].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Lets what outlives the head of the response bound its body.
    pub(super) fn bound_body(&self, stream: &Stream) {
        stream.limit_try(self.idle, self.max_duration.map(|limit| self.begun + limit));
    }
}

impl TryLimit {
    /// Counts the limit against the cluster.
    pub fn count(self, cluster: &ClusterState) {
        let stats = &cluster.stats;
        match self {
            Self::Total => stats.upstream_rq_per_try_timeout.inc(),
            Self::Idle => stats.upstream_rq_per_try_idle_timeout.inc(),
            Self::MaxDuration => stats.upstream_rq_max_duration_reached.inc(),
        }
    }

    /// What retry policies make of it.
    pub(super) fn for_retry(self) -> ResetReason {
        match self {
            Self::Total | Self::Idle => ResetReason::PerTryTimeout,
            Self::MaxDuration => ResetReason::Reset { request_started: true },
        }
    }

    /// Envoy's flag and response code details.
    pub fn explanation(self) -> (ResponseFlags, &'static str) {
        match self {
            Self::Total => (ResponseFlags::UPSTREAM_REQUEST_TIMEOUT, "upstream_per_try_timeout"),
            Self::Idle => (ResponseFlags::UPSTREAM_REQUEST_TIMEOUT, "upstream_per_try_idle_timeout"),
            Self::MaxDuration => {
                (ResponseFlags::UPSTREAM_MAX_STREAM_DURATION_REACHED, "upstream_max_stream_duration_reached")
            }
        }
    }

    /// The answer when the last try was given up.
    pub fn reply(self, stream: &Stream) -> LocalReply {
        let (status, text) = match self {
            Self::Total | Self::Idle => (StatusCode::GATEWAY_TIMEOUT, "upstream request timeout"),
            Self::MaxDuration => {
                let complete = stream.request_complete().is_some();
                let status = if complete { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::REQUEST_TIMEOUT };
                (status, "upstream max stream duration reached")
            }
        };
        let (flag, details) = self.explanation();
        local::aborted(stream, LocalReply::new(status, text, details).flag(flag))
    }
}
