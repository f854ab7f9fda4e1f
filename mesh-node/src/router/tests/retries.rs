//! When a failed try is worth another one.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};
use proptest::prelude::*;

use super::support::{forward, get, header, headers, policy, virtual_host};
use crate::model::matcher::HeaderMatchKind;
use crate::model::route::{Forward, RetryPolicy, VirtualHost};
use crate::router::{ResetReason, RetryPlan, Steering, back_off};

fn plan(policy: Option<&Arc<RetryPolicy>>, request: &[(&str, &str)]) -> Option<RetryPlan> {
    RetryPlan::new(policy, &get("h", "/", request).head(), Steering::of(&headers(request)))
}

/// How many retries the request would get for this response; `None` where it does not ask for any.
fn retries(
    on: Option<&str>,
    request: &[(&str, &str)],
    status: u16,
    response: &[(&str, &str)],
) -> Option<u32> {
    let policy = on.map(policy);
    let plan = plan(policy.as_ref(), request)?;
    plan.retries_response(StatusCode::from_u16(status).unwrap(), &headers(response)).then_some(plan.remaining)
}

#[test]
fn responses_are_retried_as_the_policy_says() {
    let grpc = |code| [("grpc-status", code)];
    for (on, status, response, want) in [
        ("5xx", 500, &[][..], true),
        ("5xx", 404, &[], false),
        ("gateway-error", 500, &[], false),
        ("gateway-error", 502, &[], true),
        ("gateway-error", 504, &[], true),
        ("gateway-error", 505, &[], false),
        ("retriable-4xx", 409, &[], true),
        ("retriable-4xx", 404, &[], false),
        ("retriable-status-codes", 418, &[], true),
        ("retriable-status-codes", 500, &[], false),
        ("retriable-headers", 200, &[("x-again", "1")], true),
        ("retriable-headers", 200, &[], false),
        ("unavailable", 200, &grpc("14"), true),
        ("unavailable", 200, &grpc("13"), false),
        ("cancelled", 200, &grpc("1"), true),
        ("deadline-exceeded", 200, &grpc("4"), true),
        ("internal", 200, &grpc("13"), true),
        ("resource-exhausted", 200, &grpc("8"), true),
        ("5xx,envoy-ratelimited", 503, &[("x-envoy-ratelimited", "true")], true),
        ("5xx", 503, &[("x-envoy-ratelimited", "true")], false),
        ("connect-failure,reset,refused-stream", 503, &[], false),
    ] {
        assert_eq!(retries(Some(on), &[], status, response).is_some(), want, "{on} {status} {response:?}");
    }
}

#[test]
fn request_headers_add_conditions_and_set_the_number() {
    for (on, request, status, want) in [
        (None, &[][..], 500, None),
        (None, &[("x-envoy-retry-on", "5xx")], 500, Some(1)),
        (None, &[("x-envoy-max-retries", "3")], 500, None),
        (None, &[("x-envoy-retry-on", "bogus, 5xx"), ("x-envoy-max-retries", "3")], 500, Some(3)),
        (Some("5xx"), &[("x-envoy-max-retries", "0")], 500, Some(0)),
        (Some("5xx"), &[("x-envoy-max-retries", "5")], 500, Some(5)),
        (Some("5xx"), &[("x-envoy-max-retries", "abc")], 500, Some(2)),
        (
            None,
            &[("x-envoy-retry-on", "retriable-status-codes"), ("x-envoy-retriable-status-codes", "498,499")],
            499,
            Some(1),
        ),
        (Some("retriable-status-codes"), &[("x-envoy-retriable-status-codes", "499")], 499, Some(2)),
        (
            Some("5xx"),
            &[("x-envoy-retry-on", "retriable-status-codes"), ("x-envoy-retriable-status-codes", "420")],
            420,
            Some(2),
        ),
    ] {
        assert_eq!(retries(on, request, status, &[]), want, "{on:?} {request:?}");
    }
}

#[test]
fn grpc_conditions_have_a_header_of_their_own() {
    let exhausted = &[("grpc-status", "8")];
    let by = |name| retries(None, &[(name, "resource-exhausted")], 200, exhausted);
    assert_eq!(by("x-envoy-retry-grpc-on"), Some(1));
    assert_eq!(by("x-envoy-retry-on"), None);
    let named =
        [("x-envoy-retry-on", "retriable-headers"), ("x-envoy-retriable-header-names", "x-foo, x-bar")];
    assert_eq!(retries(None, &named, 200, &[("x-bar", "")]), Some(1));
    assert_eq!(retries(None, &named, 200, &[]), None);
}

#[test]
fn a_policy_can_be_for_some_requests_only() {
    let only = RetryPolicy {
        retriable_request_headers: vec![header("x-ok", HeaderMatchKind::Present(true))],
        ..(*policy("5xx")).clone()
    };
    let only = Some(Arc::new(only));
    assert!(plan(only.as_ref(), &[]).is_none());
    assert!(plan(only.as_ref(), &[("x-ok", "1")]).is_some());
}

#[test]
fn retry_headers_do_not_reach_the_upstream() {
    let mut all = headers(&[("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "1"), ("x-other", "1")]);
    let steering = Steering::of(&all);
    RetryPlan::remove_headers(&mut all, steering);
    assert_eq!(all.keys().collect::<Vec<_>>(), ["x-other"]);
}

#[test]
fn resets_are_retried_as_the_policy_says() {
    use ResetReason::{ConnectFailure, Overflow, PerTryTimeout, ProtocolError, RefusedStream, Reset};
    let sent = Reset { request_started: true };
    let unsent = Reset { request_started: false };
    for (on, yes, no) in [
        ("connect-failure", &[ConnectFailure][..], &[RefusedStream, sent, unsent, PerTryTimeout][..]),
        ("refused-stream", &[RefusedStream], &[ConnectFailure, sent, unsent, PerTryTimeout]),
        ("reset", &[ConnectFailure, RefusedStream, sent, unsent, PerTryTimeout, ProtocolError], &[]),
        ("5xx", &[ConnectFailure, RefusedStream, sent, PerTryTimeout, ProtocolError], &[]),
        ("gateway-error", &[ConnectFailure, sent, PerTryTimeout], &[]),
        ("reset-before-request", &[ConnectFailure, unsent], &[sent, PerTryTimeout, RefusedStream]),
        ("retriable-4xx,unavailable", &[], &[ConnectFailure, sent, RefusedStream]),
    ] {
        let plan = plan(Some(&policy(on)), &[]).unwrap();
        yes.iter().for_each(|reason| assert!(plan.retries_reset(*reason), "{on} {reason:?}"));
        no.iter().for_each(|reason| assert!(!plan.retries_reset(*reason), "{on} {reason:?}"));
        assert!(!plan.retries_reset(Overflow), "{on}: an open circuit breaker is never retried");
    }
}

#[test]
fn the_routes_policy_counts_before_the_virtual_hosts() {
    let host = VirtualHost { retry: Some(policy("5xx")), ..virtual_host("v", &["*"], Vec::new()) };
    let own = Forward { retry: Some(policy("reset")), ..forward() };
    assert!(RetryPlan::policy(&host, &own).unwrap().on.reset);
    assert!(RetryPlan::policy(&host, &forward()).unwrap().on.server_error);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn pauses_grow_to_the_maximum_and_never_beyond(retry in 0u32..80, random in any::<u64>()) {
        let pause = back_off(Some(&policy("5xx")), retry, random);
        let limit = (25u64 << retry.min(10)).min(250);
        prop_assert!(pause < Duration::from_millis(limit), "{pause:?}");
    }
}

#[test]
fn a_request_says_whether_it_hedges_then_its_route_then_its_virtual_host() {
    let host = |hedge| VirtualHost { hedge, ..virtual_host("v", &["*"], Vec::new()) };
    let route = |hedge| Forward { hedge, ..forward() };
    let asks = |value: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert("x-envoy-hedge-on-per-try-timeout", HeaderValue::from_static(value));
        headers
    };
    let hedges = |host: &VirtualHost, forward: &Forward, headers: &HeaderMap| {
        crate::router::hedges(host, forward, headers, Steering::of(headers))
    };
    let none = HeaderMap::new();
    assert!(!hedges(&host(None), &route(None), &none));
    assert!(hedges(&host(Some(true)), &route(None), &none));
    assert!(!hedges(&host(Some(true)), &route(Some(false)), &none));
    assert!(hedges(&host(None), &route(Some(true)), &none));
    assert!(hedges(&host(None), &route(None), &asks("true")));
    assert!(!hedges(&host(None), &route(Some(true)), &asks("false")));
    assert!(hedges(&host(None), &route(Some(true)), &asks("perhaps")));
}
