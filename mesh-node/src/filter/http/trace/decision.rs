//! Whether a request is traced, and why (Envoy: `ConnectionManagerUtility::mutateTracingRequestHeader`). The decision is
//! written into `x-request-id`, so that all proxies on the way decide alike.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::super::request_headers::X_REQUEST_ID;
use crate::model::tracing::{RequestIds, Sampling};
use crate::runtime::Fraction;
use crate::telemetry::stats::HttpStats;

const CLIENT_TRACE_ID: HeaderName = HeaderName::from_static("x-client-trace-id");
const FORCE_TRACE: HeaderName = HeaderName::from_static("x-envoy-force-trace");
/// The version digit of a UUID in text.
const REASON_AT: usize = 14;
const UUID_LENGTH: usize = 36;

/// Why a request is traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    NotTraceable,
    ServiceForced,
    ClientForced,
    Sampling,
}

impl Reason {
    pub fn traced(self) -> bool {
        self != Self::NotTraceable
    }

    /// `http.PREFIX.tracing.*`
    pub fn count(self, stats: &HttpStats) {
        match self {
            Self::NotTraceable => stats.tracing_not_traceable.inc(),
            Self::ServiceForced => stats.tracing_service_forced.inc(),
            Self::ClientForced => stats.tracing_client_enabled.inc(),
            Self::Sampling => stats.tracing_random_sampling.inc(),
        }
    }

    fn digit(self) -> u8 {
        match self {
            Self::NotTraceable => b'4',
            Self::Sampling => b'9',
            Self::ServiceForced => b'a',
            Self::ClientForced => b'b',
        }
    }

    /// What another proxy wrote into the id.
    fn of_id(id: &[u8]) -> Self {
        match id.get(REASON_AT).filter(|_| id.len() == UUID_LENGTH) {
            Some(b'9') => Self::Sampling,
            Some(b'a') => Self::ServiceForced,
            Some(b'b') => Self::ClientForced,
            _ => Self::NotTraceable,
        }
    }
}

/// Decides, and says so in the request's id.
pub fn decide(headers: &mut HeaderMap, ids: RequestIds, sampling: &Sampling) -> Reason {
    if !ids.sample_by_id {
        return Reason::Sampling;
    }
    let Some(id) = headers.get(X_REQUEST_ID) else { return Reason::NotTraceable };
    let Some(number) = number_of(id.as_bytes()) else { return Reason::NotTraceable };
    let number = number % 10_000;
    let told = Reason::of_id(id.as_bytes());
    let mut reason = told;
    if reason == Reason::NotTraceable {
        if headers.contains_key(CLIENT_TRACE_ID) && drawn(sampling.client, fastrand::u64(..)) {
            reason = Reason::ClientForced;
        } else if headers.contains_key(FORCE_TRACE) {
            reason = Reason::ServiceForced;
        } else if drawn(sampling.random, number) {
            reason = Reason::Sampling;
        }
    }
    if reason.traced() && !drawn(sampling.overall, number) {
        reason = Reason::NotTraceable;
    }
    if reason != told && ids.pack_trace_reason {
        pack(headers, reason);
    }
    reason
}

/// Takes what a client from outside says of tracing out of its id.
pub fn forget(headers: &mut HeaderMap) {
    if headers.get(X_REQUEST_ID).is_some_and(|id| Reason::of_id(id.as_bytes()).traced()) {
        pack(headers, Reason::NotTraceable);
    }
}

fn pack(headers: &mut HeaderMap, reason: Reason) {
    let Some(id) = headers.get(X_REQUEST_ID).filter(|id| id.len() == UUID_LENGTH) else { return };
    let mut text = id.as_bytes().to_vec();
    text[REASON_AT] = reason.digit();
    if let Ok(id) = HeaderValue::from_bytes(&text) {
        headers.insert(X_REQUEST_ID, id);
    }
}

/// The same number for every proxy that sees the id.
fn number_of(id: &[u8]) -> Option<u64> {
    let first = std::str::from_utf8(id.get(..8)?).ok()?;
    if !first.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(first, 16).ok()
}

fn drawn((numerator, denominator): Fraction, number: u64) -> bool {
    number % u64::from(denominator.max(1)) < u64::from(numerator)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Fraction = (100, 100);
    const NONE: Fraction = (0, 100);

    fn decided(id: &str, random: Fraction, overall: Fraction, more: &[&'static str]) -> (Reason, String) {
        let mut headers = HeaderMap::new();
        headers.insert(X_REQUEST_ID, id.parse().unwrap());
        for name in more {
            headers.insert(*name, HeaderValue::from_static("1"));
        }
        let sampling = Sampling { client: ALL, random, overall };
        let reason = decide(&mut headers, RequestIds::default(), &sampling);
        (reason, headers[X_REQUEST_ID].to_str().unwrap().to_owned())
    }

    #[test]
    fn the_decision_is_written_into_the_id_and_read_by_the_next_proxy() {
        let id = |digit: char| format!("00000001-0000-{digit}000-0000-000000000000");
        assert_eq!(decided(&id('4'), ALL, ALL, &[]), (Reason::Sampling, id('9')));
        assert_eq!(decided(&id('4'), NONE, ALL, &[]), (Reason::NotTraceable, id('4')));
        assert_eq!(decided(&id('9'), NONE, ALL, &[]), (Reason::Sampling, id('9')));
        assert_eq!(decided(&id('4'), NONE, ALL, &["x-client-trace-id"]), (Reason::ClientForced, id('b')));
        assert_eq!(decided(&id('4'), NONE, ALL, &["x-envoy-force-trace"]), (Reason::ServiceForced, id('a')));
        // What another proxy decided falls to the overall share too.
        assert_eq!(decided(&id('9'), ALL, NONE, &[]), (Reason::NotTraceable, id('4')));
        // A digit that says nothing is left as it is.
        assert_eq!(decided(&id('1'), NONE, ALL, &[]), (Reason::NotTraceable, id('1')));
    }

    #[test]
    fn the_id_decides_so_that_every_proxy_samples_the_same_requests() {
        // 0x18f = 399 of 10,000.
        let id = "0000018f-0000-4000-0000-000000000000";
        assert_eq!(decided(id, (400, 10_000), ALL, &[]).0, Reason::Sampling);
        assert_eq!(decided(id, (399, 10_000), ALL, &[]).0, Reason::NotTraceable);
    }

    #[test]
    fn an_id_that_is_no_uuid_is_never_changed() {
        assert_eq!(decided("mine", ALL, ALL, &[]), (Reason::NotTraceable, "mine".to_owned()));
        // Eight digits are enough to sample by.
        assert_eq!(decided("00000001xyz", ALL, ALL, &[]), (Reason::Sampling, "00000001xyz".to_owned()));
    }

    #[test]
    fn the_digit_of_a_stranger_is_forgotten() {
        let mut headers = HeaderMap::new();
        headers.insert(X_REQUEST_ID, HeaderValue::from_static("00000001-0000-9000-0000-000000000000"));
        forget(&mut headers);
        assert_eq!(headers[X_REQUEST_ID], "00000001-0000-4000-0000-000000000000");
    }
}
