//! Spans: what identifies them, what is known of one that has ended, and what they look like to a collector
//! ([`otlp`], [`zipkin`]). How identity passes from proxy to proxy in headers is [`context`]. Nothing here is sent.

pub mod context;
pub mod otlp;
pub mod zipkin;

use std::time::{Duration, SystemTime};

pub use context::{Form, Malformed, SpanContext};

/// A span that has ended.
#[derive(Debug, Clone)]
pub struct Span {
    pub context: SpanContext,
    pub name: String,
    /// The proxy is the client of what it calls, else the server of its caller.
    pub client: bool,
    pub start: SystemTime,
    pub duration: Duration,
    /// Names are given once.
    pub tags: Vec<(String, String)>,
    pub events: Vec<(SystemTime, &'static str)>,
    pub failed: bool,
}

/// Which process spans are of.
#[derive(Debug, Clone, Default)]
pub struct Process {
    /// `node.cluster`
    pub service: String,
    pub address: Option<std::net::IpAddr>,
}

fn nanos_since_epoch(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn span() -> Span {
        Span {
            context: SpanContext {
                trace_high: Some(0x0af7_6519_16cd_43dd),
                trace_low: 0x8448_eb21_1c80_319c,
                id: 0xb7ad_6b71_6920_3331,
                parent: Some(1),
                sampled: true,
                state: "a=b".to_owned(),
                remote_parent: true,
                form: Form::W3c,
            },
            name: "op".to_owned(),
            client: true,
            start: SystemTime::UNIX_EPOCH + Duration::from_micros(1_000_001),
            duration: Duration::from_micros(250),
            tags: vec![("component".to_owned(), "proxy".to_owned()), ("zone".to_owned(), String::new())],
            events: vec![(SystemTime::UNIX_EPOCH + Duration::from_secs(1), "first_upstream_tx_byte_sent")],
            failed: true,
        }
    }
}
