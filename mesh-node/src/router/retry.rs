//! Is a failed try worth another one? (`RetryPolicy`, and the request headers that add to it.)
//!
//! Only decides. Circuit breakers and timers are the caller's.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::RequestHead;
use super::matching::{header_matches, response_header_matches};
use crate::model::matcher::{HeaderKey, HeaderMatchKind, HeaderMatcher};
use crate::model::route::{Forward, RetryOn, RetryPolicy, VirtualHost};

/// Why a try ended without a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetReason {
    /// No connection came about, TLS included.
    ConnectFailure,
    /// The upstream refused the stream (HTTP/2 `REFUSED_STREAM`): it did not process it.
    RefusedStream,
    /// A circuit breaker is open: never retried.
    Overflow,
    /// The try's own timeout passed.
    PerTryTimeout,
    /// The connection or stream ended before a response. `request_started`: a part of the request had been
    /// sent.
    Reset { request_started: bool },
    /// The upstream broke the protocol. As a reset of a started request.
    ProtocolError,
}

/// The retry rules of one request: policy and headers put together.
#[derive(Debug, Clone)]
pub struct RetryPlan {
    /// `None`: only headers ask for retries.
    policy: Option<Arc<RetryPolicy>>,
    on: RetryOn,
    /// How many retries are left.
    pub remaining: u32,
    /// From `x-envoy-retriable-status-codes`.
    more_codes: Vec<u16>,
    /// From `x-envoy-retriable-header-names`.
    more_headers: Vec<HeaderMatcher>,
}

/// Request headers that change retries; removed once read.
const RETRY_HEADERS: [&str; 6] = [
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-max-retries",
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    HEDGE,
];
const HEDGE: &str = "x-envoy-hedge-on-per-try-timeout";

/// Which kinds of headers that steer this proxy a request has. One pass over the names is cheaper than looking
/// for each of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Steering {
    /// Of retries.
    pub retries: bool,
    /// Of timeouts.
    pub timeouts: bool,
}

impl Steering {
    pub fn of(headers: &HeaderMap) -> Self {
        let mut steering = Self::default();
        for name in headers.keys().map(HeaderName::as_str).filter(|name| name.starts_with("x-envoy-")) {
            steering.retries |= RETRY_HEADERS.contains(&name);
            steering.timeouts |= super::timeout::HEADERS.contains(&name);
        }
        steering
    }
}

/// Does the request get another try beside one that takes long (`hedge_on_per_try_timeout`)? By its own header, the
/// route, or its virtual host. Read before [`RetryPlan::remove_headers`].
pub fn hedges(host: &VirtualHost, forward: &Forward, headers: &HeaderMap, steering: Steering) -> bool {
    let asked = if steering.retries { headers.get(HEDGE) } else { None };
    match asked.map(HeaderValue::as_bytes) {
        Some(b"true") => true,
        Some(b"false") => false,
        _ => forward.hedge.or(host.hedge).unwrap_or(false),
    }
}

impl RetryPlan {
    /// The policy that counts: the route's, else its virtual host's.
    pub fn policy<'a>(virtual_host: &'a VirtualHost, forward: &'a Forward) -> Option<&'a Arc<RetryPolicy>> {
        forward.retry.as_ref().or(virtual_host.retry.as_ref())
    }

    /// Puts policy and headers together; `None` where nothing asks for retries. The connection manager has
    /// removed the headers of requests that may not use them. Call [`RetryPlan::remove_headers`] after it.
    pub fn new(
        policy: Option<&Arc<RetryPolicy>>,
        head: &RequestHead<'_>,
        steering: Steering,
    ) -> Option<Self> {
        let text = |name: &str| {
            let value = if steering.retries { head.headers.get(name) } else { None };
            value.and_then(|value| value.to_str().ok())
        };
        let asked = text("x-envoy-retry-on").is_some() || text("x-envoy-retry-grpc-on").is_some();
        let mut on = policy.map(|p| p.on).unwrap_or_default();
        if !asked && on == RetryOn::default() {
            return None;
        }
        // Unknown conditions of a client are ignored.
        let list = |name| text(name).into_iter().flat_map(|v| v.split(',')).map(str::trim);
        list("x-envoy-retry-on").for_each(|c| _ = on.add(c));
        list("x-envoy-retry-grpc-on").for_each(|c| _ = on.add_grpc(c));
        let only = policy.map_or(&[][..], |p| &p.retriable_request_headers);
        if !only.is_empty() && !only.iter().any(|m| header_matches(m, head)) {
            return None;
        }
        let present = |name: &str| {
            Some(HeaderMatcher {
                name: HeaderKey::Name(name.parse().ok()?),
                kind: HeaderMatchKind::Present(true),
                invert: false,
                treat_missing_as_empty: false,
            })
        };
        Some(Self {
            on,
            remaining: text("x-envoy-max-retries")
                .and_then(|v| v.trim().parse().ok())
                .unwrap_or_else(|| policy.map_or(1, |p| p.num_retries)),
            more_codes: list("x-envoy-retriable-status-codes").filter_map(|c| c.parse().ok()).collect(),
            more_headers: list("x-envoy-retriable-header-names").filter_map(present).collect(),
            policy: policy.cloned(),
        })
    }

    /// Removes the headers that are for this proxy only.
    pub fn remove_headers(headers: &mut HeaderMap, steering: Steering) {
        if !steering.retries {
            return;
        }
        for name in RETRY_HEADERS {
            headers.remove(name);
        }
    }

    /// Does the head of this response ask for a retry?
    pub fn retries_response(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        if headers.contains_key("x-envoy-ratelimited") {
            return self.on.envoy_ratelimited;
        }
        let code = status.as_u16();
        let policy_codes = self.policy.iter().flat_map(|p| &p.retriable_status_codes);
        let policy_headers = self.policy.iter().flat_map(|p| &p.retriable_headers);
        (self.on.server_error && (500..600).contains(&code))
            || (self.on.gateway_error && (502..=504).contains(&code))
            || (self.on.retriable_4xx && code == 409)
            || (self.on.retriable_status_codes && policy_codes.chain(&self.more_codes).any(|c| *c == code))
            || (self.on.retriable_headers
                && policy_headers
                    .chain(&self.more_headers)
                    .any(|m| response_header_matches(m, status, headers)))
            || self.retries_grpc(headers)
    }

    /// A gRPC status in the head of a response (a "trailers-only" response).
    fn retries_grpc(&self, headers: &HeaderMap) -> bool {
        match headers.get("grpc-status").map_or(&b""[..], |status| status.as_bytes()) {
            b"1" => self.on.grpc_cancelled,
            b"4" => self.on.grpc_deadline_exceeded,
            b"8" => self.on.grpc_resource_exhausted,
            b"13" => self.on.grpc_internal,
            b"14" => self.on.grpc_unavailable,
            _ => false,
        }
    }

    /// Does the end of a try without a response ask for a retry?
    pub fn retries_reset(&self, reason: ResetReason) -> bool {
        let on = &self.on;
        let any = on.server_error || on.gateway_error || on.reset;
        match reason {
            ResetReason::Overflow => false,
            // Of the request nothing has been sent.
            ResetReason::ConnectFailure => any || on.connect_failure || on.reset_before_request,
            ResetReason::RefusedStream => any || on.refused_stream,
            ResetReason::Reset { request_started } => any || (on.reset_before_request && !request_started),
            ResetReason::PerTryTimeout | ResetReason::ProtocolError => any,
        }
    }
}

/// How long to wait before a retry: random, below an interval that doubles from the policy's base to its
/// maximum. `retry` counts from 0.
pub fn back_off(policy: Option<&RetryPolicy>, retry: u32, random: u64) -> Duration {
    const DEFAULT: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(250));
    let (base, max) = policy.map_or(DEFAULT, |p| p.back_off);
    let interval = base.saturating_mul(1u32.checked_shl(retry).unwrap_or(u32::MAX)).min(max);
    Duration::from_millis(random % (interval.as_millis() as u64).max(1))
}
