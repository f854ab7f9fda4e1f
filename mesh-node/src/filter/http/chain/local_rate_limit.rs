//! Local rate limits of requests (`envoy.filters.http.local_ratelimit`).

use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use smallvec::SmallVec;

use super::super::local_reply::LocalReply;
use super::super::request::Request;
use super::{Decoding, Step, header_mutation};
use crate::model::headers::HeaderTarget;
use crate::model::http_filter::{HttpFilter, Override};
use crate::model::matcher::HeaderKey;
use crate::model::rate_limit::{DescriptorAction, LocalRateLimit, TokenBucket};
use crate::router::{Routed, header_matches, query_matches};
use crate::telemetry::stream_info::ResponseFlags;

/// gRPC's `RESOURCE_EXHAUSTED`.
const RESOURCE_EXHAUSTED: u8 = 8;

/// `x-ratelimit-*` of a response.
#[derive(Debug)]
pub(super) struct Headers {
    limit: u64,
    remaining: u64,
    reset_s: u64,
}

impl Headers {
    fn of(bucket: &TokenBucket, now: Instant) -> Self {
        let reset_s = bucket.until_fill(now).as_secs();
        Self { limit: bucket.max(), remaining: bucket.remaining(now), reset_s }
    }

    pub(super) fn encode(self, headers: &mut HeaderMap) {
        for (name, value) in [
            ("x-ratelimit-limit", self.limit),
            ("x-ratelimit-remaining", self.remaining),
            ("x-ratelimit-reset", self.reset_s),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from(value));
        }
    }
}

pub(super) fn decode(
    decoding: &Decoding<'_>,
    filter: &HttpFilter,
    own: &LocalRateLimit,
    request: &mut Request,
) -> Option<LocalReply> {
    let limit = match decoding.override_of(filter) {
        Some(Override::LocalRateLimit(of_route)) => of_route,
        _ => own,
    };
    if limit.bucket.is_none() || !limit.enabled.drawn() {
        return None;
    }
    limit.stats.enabled.inc();
    let now = Instant::now();
    let (allowed, bucket) = take(decoding, limit, request, now);
    if let Some(bucket) = bucket.filter(|_| limit.rate_limit_headers) {
        decoding.stream.chain.push(Step::RateLimited(Headers::of(bucket, now)));
    }
    if allowed {
        limit.stats.ok.inc();
        return None;
    }
    limit.stats.rate_limited.inc();
    if !limit.enforced.drawn() {
        for add in &limit.request_headers_when_not_enforced {
            let mut value = String::new();
            let headers = &request.parts.headers;
            decoding.stream.evaluate(&add.value, Some((request, headers)), None, &mut value);
            header_mutation::put(add, value, &mut request.parts.headers);
        }
        return None;
    }
    limit.stats.enforced.inc();
    let status = StatusCode::from_u16(limit.status).unwrap_or(StatusCode::TOO_MANY_REQUESTS);
    let mut reply = LocalReply::new(status, "local_rate_limited", "local_rate_limited");
    if limit.resource_exhausted {
        reply.grpc_status = Some(RESOURCE_EXHAUSTED);
    }
    for add in &limit.response_headers {
        let mut value = String::new();
        let headers = &request.parts.headers;
        decoding.stream.evaluate(&add.value, Some((request, headers)), None, &mut value);
        if let HeaderTarget::Name(_) = &add.name {
            header_mutation::put(add, value, &mut reply.headers);
        }
    }
    Some(reply.flag(ResponseFlags::RATE_LIMITED))
}

/// Takes tokens from every bucket that a descriptor of the request has, or else from the default one. The
/// bucket that decided, for headers.
fn take<'l>(
    decoding: &Decoding<'_>,
    limit: &'l LocalRateLimit,
    request: &Request,
    now: Instant,
) -> (bool, Option<&'l TokenBucket>) {
    let mut matched = SmallVec::<[&TokenBucket; 4]>::new();
    if !limit.descriptors.is_empty() {
        for actions in limits_of(decoding.routed, limit) {
            let Some(entries) = describe(decoding, actions, request) else { continue };
            let of = limit.descriptors.iter().find(|of| of.entries == entries);
            matched.extend(of.map(|of| &of.bucket));
        }
        // What fills slowest is asked first, and told of where all have tokens.
        matched.sort_by(|a, b| a.fill_rate().total_cmp(&b.fill_rate()));
    }
    if let Some(empty) = matched.iter().copied().find(|bucket| !bucket.take(now)) {
        return (false, Some(empty));
    }
    let first = matched.first().copied();
    match &limit.bucket {
        Some(bucket) if first.is_none() || limit.always_consume_default => match bucket.take(now) {
            true => (true, first.or(Some(bucket))),
            false => (false, Some(bucket)),
        },
        _ => (true, first),
    }
}

/// How requests are described: the filter's own way, else the route's, with or else the virtual host's.
fn limits_of<'l>(
    routed: Option<&'l Routed<'_>>,
    limit: &'l LocalRateLimit,
) -> impl Iterator<Item = &'l [DescriptorAction]> {
    let routed = routed.filter(|_| limit.rate_limits.is_empty());
    let of_route = routed.map_or(&[][..], |routed| &routed.route.rate_limits);
    let with_host = routed.is_some_and(|routed| routed.route.with_rate_limits_of_host || of_route.is_empty());
    let of_host = routed.filter(|_| with_host).map_or(&[][..], |routed| &routed.virtual_host.rate_limits);
    let of_stage = of_route.iter().chain(of_host).filter(|of| of.stage == limit.stage);
    limit.rate_limits.iter().map(Vec::as_slice).chain(of_stage.map(|of| of.actions.as_slice()))
}

/// The descriptor of a request; `None` when an action finds nothing to say.
fn describe(
    decoding: &Decoding<'_>,
    actions: &[DescriptorAction],
    request: &Request,
) -> Option<Vec<(String, String)>> {
    let head = request.head();
    let mut entries = Vec::with_capacity(actions.len());
    for action in actions {
        let entry = match action {
            DescriptorAction::GenericKey { key, value } => (key.clone(), value.clone()),
            DescriptorAction::RequestHeader { name, key, skip_if_absent } => {
                let value = match name {
                    HeaderKey::Method => Some(head.method.as_str().to_owned()),
                    HeaderKey::Authority => Some(head.authority.to_owned()),
                    HeaderKey::Scheme => Some(head.scheme.to_owned()),
                    HeaderKey::Path => Some(head.path.to_owned()),
                    HeaderKey::Status => None,
                    HeaderKey::Name(name) => {
                        head.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned)
                    }
                };
                match value {
                    Some(value) => (key.clone(), value),
                    None if *skip_if_absent => continue,
                    None => return None,
                }
            }
            DescriptorAction::RemoteAddress => {
                ("remote_address".to_owned(), decoding.stream.info.borrow().remote.ip().to_string())
            }
            DescriptorAction::DestinationCluster => {
                let cluster = decoding.routed.and_then(|routed| routed.cluster(&head))?;
                ("destination_cluster".to_owned(), cluster.into_owned())
            }
            DescriptorAction::HeaderValueMatch { key, value, expect, headers } => {
                if headers.iter().all(|m| header_matches(m, &head)) != *expect {
                    return None;
                }
                (key.clone(), value.clone())
            }
            DescriptorAction::QueryParameterValueMatch { key, value, expect, parameters } => {
                if parameters.iter().all(|m| query_matches(m, head.path)) != *expect {
                    return None;
                }
                (key.clone(), value.clone())
            }
        };
        entries.push(entry);
    }
    Some(entries)
}
