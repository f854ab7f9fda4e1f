//! Injected faults (`envoy.filters.http.fault`): delays, aborts and slow responses.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};

use super::super::local_reply::LocalReply;
use super::super::request::Request;
use super::{Decoding, Step};
use crate::model::http_filter::{AbortWith, Fault, FaultStats};
use crate::router::header_matches;
use crate::runtime::{Fraction, Setting};
use crate::telemetry::stream_info::ResponseFlags;

/// One active fault, of those that `max_active_faults` bounds.
#[derive(Debug)]
pub(super) struct Active(Arc<FaultStats>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active_faults.dec();
    }
}

/// A request, and the fault that may befall it.
pub(super) struct Faulting<'f, 'd> {
    decoding: &'f Decoding<'d>,
    fault: &'f Fault,
    stats: &'f Arc<FaultStats>,
    applies: bool,
}

impl<'f, 'd> Faulting<'f, 'd> {
    pub(super) fn of(
        decoding: &'f Decoding<'d>,
        fault: &'f Fault,
        stats: &'f Arc<FaultStats>,
        request: &Request,
    ) -> Self {
        let mut faulting = Self { decoding, fault, stats, applies: false };
        if fault.delay.is_none() && fault.abort.is_none() && fault.rate_limit.is_none() {
            return faulting;
        }
        faulting.applies = faulting.concerns(request);
        if faulting.applies {
            faulting.limit_response(&request.parts.headers);
        }
        faulting
    }

    fn concerns(&self, request: &Request) -> bool {
        let headers = &request.parts.headers;
        let cluster = self.fault.upstream_cluster.as_ref().is_none_or(|wanted| {
            let routed = self.decoding.routed.and_then(|routed| routed.cluster(&request.head()));
            routed.is_some_and(|name| *name == **wanted)
        });
        let nodes = &self.fault.downstream_nodes;
        let node = nodes.is_empty()
            || headers
                .get("x-envoy-downstream-service-node")
                .is_some_and(|node| nodes.iter().any(|wanted| wanted.as_bytes() == node.as_bytes()));
        cluster && node && self.fault.headers.iter().all(|m| header_matches(m, &request.head()))
    }

    /// How long the request is to wait, if at all.
    pub(super) fn delay(&mut self, request: &Request) -> Option<Duration> {
        let delay = self.fault.delay.as_ref().filter(|_| self.applies)?;
        let headers = &request.parts.headers;
        let (duration, share) = match &delay.fixed {
            Some(fixed) => (Duration::from_millis(fixed.now()), delay.share.now()),
            None => {
                let ms = number(headers, "x-envoy-fault-delay-request")?;
                let share = share_of(headers, "x-envoy-fault-delay-request-percentage", &delay.share);
                (Duration::from_millis(ms), share)
            }
        };
        if duration.is_zero() || !drawn(share) || !self.activate() {
            return None;
        }
        self.stats.delays_injected.inc();
        self.decoding.stream.info.borrow_mut().flags.set(ResponseFlags::DELAY_INJECTED);
        Some(duration)
    }

    /// The answer to a request that is not to get any further.
    pub(super) fn abort(&mut self, request: &Request) -> Option<LocalReply> {
        let abort = self.fault.abort.as_ref().filter(|_| self.applies)?;
        let headers = &request.parts.headers;
        // As in Envoy, a gRPC status is answered also to a request that is not gRPC.
        let (status, grpc_status, share) = match &abort.with {
            AbortWith::Http(status) => (status.now(), None, abort.share.now()),
            AbortWith::Grpc(status) => (200, Some(status.now()), abort.share.now()),
            AbortWith::Header => {
                let http = number(headers, "x-envoy-fault-abort-request");
                let grpc = number(headers, "x-envoy-fault-abort-grpc-request").filter(|n| *n <= 255);
                let share = share_of(headers, "x-envoy-fault-abort-request-percentage", &abort.share);
                match (http.filter(|status| (200..600).contains(status)), grpc) {
                    (Some(status), _) => (status, None, share),
                    (None, Some(grpc)) => (200, Some(grpc), share),
                    (None, None) => return None,
                }
            }
        };
        if !drawn(share) || !self.activate() {
            return None;
        }
        self.stats.aborts_injected.inc();
        let status = u16::try_from(status).ok().and_then(|status| StatusCode::from_u16(status).ok());
        let status = status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        let mut reply = LocalReply::new(status, "fault filter abort", "fault_filter_abort");
        reply.grpc_status = grpc_status.and_then(|status| u8::try_from(status).ok());
        Some(reply.flag(ResponseFlags::FAULT_INJECTED))
    }

    fn limit_response(&self, headers: &HeaderMap) {
        let Some(limit) = &self.fault.rate_limit else { return };
        let (kib, share) = match limit.kib_per_second {
            Some(kib) => (Some(kib), limit.share.now()),
            None => (
                number(headers, "x-envoy-fault-throughput-response").filter(|&kib| kib > 0),
                share_of(headers, "x-envoy-fault-throughput-response-percentage", &limit.share),
            ),
        };
        if let Some(kib) = kib
            && drawn(share)
            && self.activate()
        {
            self.stats.response_rl_injected.inc();
            self.decoding.stream.chain.push(Step::Throttle(kib));
        }
    }

    /// Counts the stream as one with a fault, once, if the limit allows another.
    fn activate(&self) -> bool {
        let mut held = self.decoding.stream.chain.fault.borrow_mut();
        if held.is_some() {
            return true;
        }
        let active = &self.stats.active_faults;
        if active.get() >= self.fault.max_active.now() {
            self.stats.faults_overflow.inc();
            return false;
        }
        active.inc();
        *held = Some(Active(self.stats.clone()));
        true
    }
}

fn drawn(share: Fraction) -> bool {
    Setting::fixed(share).drawn()
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// The share that a header asks for, but no more than is configured.
fn share_of(headers: &HeaderMap, name: &str, configured: &Setting<Fraction>) -> Fraction {
    let configured = configured.now();
    match number(headers, name).and_then(|n| u32::try_from(n).ok()) {
        Some(asked) => (asked.min(configured.0), configured.1),
        None => configured,
    }
}
