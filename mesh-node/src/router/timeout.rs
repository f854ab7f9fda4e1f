//! How long a request may take: the route's timeouts, and what the request's own headers make of them.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};

use super::retry::Steering;
use crate::model::route::{Forward, RetryPolicy};

/// Request headers that change the timeouts: of all tries together, and of each.
pub(super) const HEADERS: [&str; 2] =
    ["x-envoy-upstream-rq-timeout-ms", "x-envoy-upstream-rq-per-try-timeout-ms"];

/// The timeouts of one request; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timeouts {
    /// From the end of the request to the end of the response, all tries together.
    pub global: Option<Duration>,
    pub per_try: Option<Duration>,
    pub per_try_idle: Option<Duration>,
    /// Of the whole stream; `None` leaves it to the connection manager's `max_stream_duration`.
    pub max_stream_duration: Option<Option<Duration>>,
}

impl Timeouts {
    /// Resolves the timeouts. `headers` are the request's: `x-envoy-upstream-rq-timeout-ms` and
    /// `x-envoy-upstream-rq-per-try-timeout-ms` are honoured and removed (the connection manager has removed
    /// them from requests that may not use them), `x-envoy-expected-rq-timeout-ms` is set if
    /// `insert_expected`, and `grpc-timeout` is set to what is left of it where the route caps it.
    pub fn resolve(
        forward: &Forward,
        retry: Option<&RetryPolicy>,
        headers: &mut HeaderMap,
        steering: Steering,
        insert_expected: bool,
    ) -> Self {
        let grpc = is_grpc(headers);
        let by_stream_duration =
            forward.max_stream_duration.is_some() || forward.grpc_timeout_header_max.is_some();
        let mut global = match forward.max_grpc_timeout {
            // Envoy: `usingNewTimeouts`.
            _ if by_stream_duration => None,
            Some(max) if grpc => capped_grpc_timeout(max, forward.grpc_timeout_offset, headers),
            _ => forward.timeout,
        };
        let [of_all, of_try] = HEADERS;
        if steering.timeouts
            && let Some(ms) = take_milliseconds(headers, of_all)
        {
            global = nonzero(Duration::from_millis(ms));
        }
        let mut per_try = retry.and_then(|r| r.per_try_timeout).and_then(nonzero);
        if steering.timeouts
            && let Some(ms) = take_milliseconds(headers, of_try)
        {
            per_try = nonzero(Duration::from_millis(ms));
        }
        // A try that may take as long as all tries needs no limit of its own.
        if per_try.zip(global).is_some_and(|(per_try, global)| per_try >= global) {
            per_try = None;
        }
        let max_stream_duration = max_stream_duration(forward, headers);
        if let (true, Some(Some(duration))) = (grpc && by_stream_duration, max_stream_duration) {
            headers.insert("grpc-timeout", grpc_timeout_value(duration));
        }
        if let Some(expected) = per_try.or(global) {
            if insert_expected {
                let ms = expected.as_millis() as u64;
                headers.insert("x-envoy-expected-rq-timeout-ms", HeaderValue::from(ms));
            }
            if grpc && !by_stream_duration && forward.max_grpc_timeout.is_some() {
                headers.insert("grpc-timeout", grpc_timeout_value(expected));
            }
        }
        Self {
            global,
            per_try,
            per_try_idle: retry.and_then(|r| r.per_try_idle_timeout).and_then(nonzero),
            max_stream_duration,
        }
    }
}

fn capped_grpc_timeout(
    max: Option<Duration>,
    offset: Option<Duration>,
    headers: &HeaderMap,
) -> Option<Duration> {
    let mut asked = grpc_timeout(headers).and_then(nonzero);
    // An offset that would leave nothing is not applied: nothing would mean no limit.
    if let (Some(timeout), Some(offset)) = (asked, offset)
        && offset < timeout
    {
        asked = Some(timeout - offset);
    }
    match (asked, max.and_then(nonzero)) {
        (Some(asked), Some(max)) => Some(asked.min(max)),
        (asked, max) => asked.or(max),
    }
}

fn max_stream_duration(forward: &Forward, headers: &HeaderMap) -> Option<Option<Duration>> {
    match (forward.grpc_timeout_header_max, grpc_timeout(headers)) {
        (Some(max), Some(asked)) => Some(Some(max.and_then(nonzero).map_or(asked, |max| asked.min(max)))),
        _ => forward.max_stream_duration.map(|d| d.and_then(nonzero)),
    }
}

fn nonzero(duration: Duration) -> Option<Duration> {
    (!duration.is_zero()).then_some(duration)
}

fn take_milliseconds(headers: &mut HeaderMap, name: &str) -> Option<u64> {
    headers.remove(name)?.to_str().ok()?.trim().parse().ok()
}

/// Is this a gRPC request or response, by its content type?
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else { return false };
    match value.as_bytes().strip_prefix(b"application/grpc") {
        Some(rest) => rest.is_empty() || rest[0] == b'+',
        None => false,
    }
}

/// The value of `grpc-timeout` (gRPC over HTTP/2, "Timeout"), rounded up to milliseconds; `None` where it is
/// missing or malformed.
pub fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    let ms = match unit {
        "H" => n * 3_600_000,
        "M" => n * 60_000,
        "S" => n * 1_000,
        "m" => n,
        "u" => n.div_ceil(1_000),
        "n" => n.div_ceil(1_000_000),
        _ => return None,
    };
    Some(Duration::from_millis(ms))
}

/// A `grpc-timeout` value for the duration: at most eight digits, in the finest unit that can hold it.
pub fn grpc_timeout_value(duration: Duration) -> HeaderValue {
    const MAX: u128 = 99_999_999;
    let ms = duration.as_millis();
    let text = match ms {
        ms if ms <= MAX => format!("{ms}m"),
        ms if ms / 1_000 <= MAX => format!("{}S", ms / 1_000),
        ms if ms / 60_000 <= MAX => format!("{}M", ms / 60_000),
        ms => format!("{}H", (ms / 3_600_000).min(MAX)),
    };
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("99999999H"))
}
