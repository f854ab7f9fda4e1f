//! How long a request may take.

use std::time::Duration;

use http::HeaderMap;

use super::support::{forward, headers, policy};
use crate::model::route::{Forward, RetryPolicy};
use crate::router::{Steering, Timeouts, grpc_timeout, grpc_timeout_value};

const GRPC: (&str, &str) = ("content-type", "application/grpc");

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn resolve(forward: &Forward, per_try: Option<Duration>, lines: &[(&str, &str)]) -> (Timeouts, HeaderMap) {
    let retry = per_try.map(|t| RetryPolicy { per_try_timeout: Some(t), ..(*policy("5xx")).clone() });
    let mut headers = headers(lines);
    let steering = Steering::of(&headers);
    let timeouts = Timeouts::resolve(forward, retry.as_ref(), &mut headers, steering, true);
    (timeouts, headers)
}

fn routes() -> Vec<(&'static str, Forward, Option<Duration>)> {
    let three = || Forward { timeout: Some(s(3)), ..forward() };
    vec![
        ("none", Forward { timeout: None, ..forward() }, None),
        ("def", forward(), None),
        ("msd", Forward { max_stream_duration: Some(Some(s(7))), ..three() }, None),
        ("grpcmax", Forward { grpc_timeout_header_max: Some(Some(s(2))), ..three() }, None),
        ("mg", Forward { max_grpc_timeout: Some(Some(s(2))), ..three() }, None),
        ("mg0", Forward { max_grpc_timeout: Some(None), ..three() }, None),
        (
            "mgo",
            Forward {
                max_grpc_timeout: Some(None),
                grpc_timeout_offset: Some(Duration::from_millis(500)),
                ..three()
            },
            None,
        ),
        ("pt", three(), Some(s(1))),
        ("ptbig", three(), Some(s(9))),
    ]
}

/// Route, request headers, and what the upstream sees of `x-envoy-expected-rq-timeout-ms` and `grpc-timeout`.
type Case = (&'static str, &'static [(&'static str, &'static str)], &'static str, &'static str);

const CASES: &[Case] = &[
    ("none", &[], "-", "-"),
    ("none", &[GRPC, ("grpc-timeout", "10S")], "-", "10S"),
    ("none", &[("x-envoy-upstream-rq-timeout-ms", "1234")], "1234", "-"),
    ("none", &[("x-envoy-upstream-rq-per-try-timeout-ms", "77")], "77", "-"),
    ("none", &[("x-envoy-upstream-rq-timeout-ms", "0")], "-", "-"),
    ("def", &[], "15000", "-"),
    ("def", &[GRPC, ("grpc-timeout", "10S")], "15000", "10S"),
    ("def", &[("x-envoy-upstream-rq-timeout-ms", "abc")], "15000", "-"),
    ("def", &[("x-envoy-upstream-rq-timeout-ms", "0")], "-", "-"),
    ("msd", &[], "-", "-"),
    ("msd", &[GRPC, ("grpc-timeout", "10S")], "-", "7000m"),
    ("msd", &[GRPC], "-", "7000m"),
    ("msd", &[GRPC, ("grpc-timeout", "500m")], "-", "7000m"),
    ("msd", &[("grpc-timeout", "10S")], "-", "10S"),
    ("msd", &[("x-envoy-upstream-rq-timeout-ms", "1234")], "1234", "-"),
    ("grpcmax", &[], "-", "-"),
    ("grpcmax", &[GRPC, ("grpc-timeout", "10S")], "-", "2000m"),
    ("grpcmax", &[GRPC], "-", "-"),
    ("grpcmax", &[GRPC, ("grpc-timeout", "500m")], "-", "500m"),
    ("grpcmax", &[("grpc-timeout", "10S")], "-", "10S"),
    ("mg", &[], "3000", "-"),
    ("mg", &[GRPC, ("grpc-timeout", "10S")], "2000", "2000m"),
    ("mg", &[GRPC], "2000", "2000m"),
    ("mg", &[GRPC, ("grpc-timeout", "500m")], "500", "500m"),
    ("mg", &[("grpc-timeout", "10S")], "3000", "10S"),
    ("mg0", &[GRPC, ("grpc-timeout", "10S")], "10000", "10000m"),
    ("mg0", &[GRPC], "-", "-"),
    ("mgo", &[GRPC, ("grpc-timeout", "10S")], "9500", "9500m"),
    // The offset would leave nothing: not applied.
    ("mgo", &[GRPC, ("grpc-timeout", "500m")], "500", "500m"),
    ("pt", &[], "1000", "-"),
    ("pt", &[("x-envoy-upstream-rq-timeout-ms", "1234")], "1000", "-"),
    ("pt", &[("x-envoy-upstream-rq-per-try-timeout-ms", "77")], "77", "-"),
    ("ptbig", &[], "3000", "-"),
    ("ptbig", &[("x-envoy-upstream-rq-timeout-ms", "0")], "9000", "-"),
    ("ptbig", &[("x-envoy-upstream-rq-timeout-ms", "1234")], "1234", "-"),
];

#[test]
fn the_upstream_is_told_the_time_it_has_as_envoy_tells_it() {
    let routes = routes();
    for (name, lines, expected, grpc) in CASES {
        let (_, forward, per_try) = routes.iter().find(|(n, _, _)| n == name).unwrap();
        let (_, headers) = resolve(forward, *per_try, lines);
        let get = |name: &str| headers.get(name).map_or("-", |v| v.to_str().unwrap());
        assert_eq!(get("x-envoy-expected-rq-timeout-ms"), *expected, "{name} {lines:?}");
        assert_eq!(get("grpc-timeout"), *grpc, "{name} {lines:?}");
        assert_eq!(get("x-envoy-upstream-rq-timeout-ms"), "-", "{name} {lines:?}");
    }
}

#[test]
fn a_stream_may_last_as_long_as_the_route_or_its_grpc_timeout_says() {
    let capped = Forward { grpc_timeout_header_max: Some(Some(s(2))), ..forward() };
    let (timeouts, _) = resolve(&capped, None, &[("grpc-timeout", "10S")]);
    assert_eq!((timeouts.max_stream_duration, timeouts.global), (Some(Some(s(2))), None));
    let (timeouts, _) = resolve(&capped, None, &[]);
    assert_eq!(timeouts.max_stream_duration, None, "the connection manager's");
    let off = Forward { max_stream_duration: Some(None), ..forward() };
    assert_eq!(resolve(&off, None, &[]).0.max_stream_duration, Some(None));
}

#[test]
fn a_try_that_may_take_as_long_as_all_has_no_limit_of_its_own() {
    let three = Forward { timeout: Some(s(3)), ..forward() };
    assert_eq!(resolve(&three, Some(s(1)), &[]).0.per_try, Some(s(1)));
    assert_eq!(resolve(&three, Some(s(3)), &[]).0.per_try, None);
    assert_eq!(resolve(&three, Some(s(3)), &[]).0.global, Some(s(3)));
}

#[test]
fn envoy_headers_are_suppressed_on_request() {
    let mut headers = HeaderMap::new();
    Timeouts::resolve(&forward(), None, &mut headers, Steering::default(), false);
    assert!(headers.is_empty());
}

#[test]
fn grpc_timeouts_are_read_and_written_by_their_grammar() {
    for (text, ms) in [
        ("1H", Some(3_600_000)),
        ("2M", Some(120_000)),
        ("3S", Some(3_000)),
        ("4m", Some(4)),
        ("1u", Some(1)),
        ("1001u", Some(2)),
        ("1n", Some(1)),
        ("0m", Some(0)),
        ("99999999H", Some(99_999_999 * 3_600_000)),
        ("123456789m", None),
        ("m", None),
        ("", None),
        ("-1m", None),
        ("+1m", None),
        ("1x", None),
        ("1", None),
    ] {
        let read = grpc_timeout(&headers(&[("grpc-timeout", text)]));
        assert_eq!(read, ms.map(Duration::from_millis), "{text:?}");
    }
    assert_eq!(grpc_timeout_value(Duration::from_millis(1500)), "1500m");
    assert_eq!(grpc_timeout_value(s(99_999)), "99999000m");
    assert_eq!(grpc_timeout_value(s(100_000)), "100000S");
    assert_eq!(grpc_timeout_value(s(100_000_000)), "1666666M");
    assert_eq!(grpc_timeout_value(Duration::MAX), "99999999H");
}
