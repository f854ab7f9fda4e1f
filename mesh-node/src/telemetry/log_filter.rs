//! Which finished streams an access log writes (`envoy.config.accesslog.v3.AccessLogFilter`).

use http::HeaderMap;

use super::format::Context;
use super::stream_info::{ResponseFlags, StreamInfo};
use super::{cel, grpc_status};
use crate::model::cel::Expr;
use crate::model::header_lines::single_line_in_request;
use crate::model::matcher::{HeaderKey, HeaderMatcher};
use crate::model::rbac::MetadataMatcher;
use crate::runtime::{Fraction, Setting};

/// One filter. A log without one writes all streams.
#[derive(Debug, Clone)]
pub enum LogFilter {
    /// `status_code_filter`; a stream without a response has the status 0.
    StatusCode(Comparison),
    /// `duration_filter`, milliseconds.
    Duration(Comparison),
    /// `not_health_check_filter`
    NotHealthCheck,
    /// `runtime_filter`: a share of all streams.
    Sampled(Setting<Fraction>),
    /// `and_filter`
    All(Vec<LogFilter>),
    /// `or_filter`
    Any(Vec<LogFilter>),
    /// `response_flag_filter`: one of these flags; with none given, any flag.
    Flags(ResponseFlags),
    /// `grpc_status_filter`
    GrpcStatus { codes: Vec<i64>, exclude: bool },
    /// `header_filter`: of the request.
    Header(Box<HeaderMatcher>),
    /// `metadata_filter`; `unless_found`: of streams that have no such value.
    Metadata { matcher: Box<MetadataMatcher>, unless_found: bool },
    /// `extension_filter` with an expression.
    Expression(Box<Expr>),
    /// `log_type_filter`
    LogTypes { types: Vec<i32>, exclude: bool },
}

/// `AccessLogType` of the only logs that are written: at the end of a request or a connection.
fn log_type(info: &StreamInfo) -> i32 {
    const TCP_CONNECTION_END: i32 = 3;
    const DOWNSTREAM_END: i32 = 6;
    if info.protocol.is_some() { DOWNSTREAM_END } else { TCP_CONNECTION_END }
}

/// `ComparisonFilter`
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    pub op: Op,
    pub value: Setting<u64>,
}

/// `ComparisonFilter.Op`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Equal,
    AtLeast,
    AtMost,
    NotEqual,
}

impl Comparison {
    fn holds(&self, value: u64) -> bool {
        let bound = self.value.now();
        match self.op {
            Op::Equal => value == bound,
            Op::AtLeast => value >= bound,
            Op::AtMost => value <= bound,
            Op::NotEqual => value != bound,
        }
    }
}

/// Does the request's header satisfy the matcher?
fn header_matches(matcher: &HeaderMatcher, context: &Context<'_>) -> bool {
    let Some(request) = context.request else { return matcher.matches_value(None) };
    let pseudo = |text: &str| matcher.matches_value(Some(text).filter(|text| !text.is_empty()));
    match &matcher.name {
        HeaderKey::Name(name) => matcher.matches_lines(request.headers, name, single_line_in_request(name)),
        HeaderKey::Method => pseudo(request.method),
        HeaderKey::Authority => pseudo(request.authority),
        HeaderKey::Scheme => pseudo(request.scheme),
        HeaderKey::Path => pseudo(request.path),
        HeaderKey::Status => matcher.matches_value(None),
    }
}

impl LogFilter {
    /// Is the stream to be written?
    pub fn wants(&self, context: &Context<'_>) -> bool {
        let info = context.info;
        match self {
            Self::StatusCode(comparison) => comparison.holds(info.response_code.unwrap_or(0).into()),
            Self::Duration(comparison) => {
                let length = info.end.unwrap_or_else(|| info.start.elapsed());
                comparison.holds(u64::try_from(length.as_millis()).unwrap_or(u64::MAX))
            }
            Self::NotHealthCheck => !info.health_check,
            Self::Sampled(share) => share.drawn(),
            Self::All(filters) => filters.iter().all(|filter| filter.wants(context)),
            Self::Any(filters) => filters.iter().any(|filter| filter.wants(context)),
            Self::Flags(wanted) if wanted.is_empty() => !info.flags.is_empty(),
            Self::Flags(wanted) => info.flags.0 & wanted.0 != 0,
            Self::Header(matcher) => header_matches(matcher, context),
            Self::Metadata { matcher, unless_found } => {
                let metadata = info.metadata.as_deref();
                match matcher.finds(metadata) {
                    true => matcher.matches(metadata),
                    false => *unless_found,
                }
            }
            Self::Expression(expr) => cel::holds(expr, context),
            Self::LogTypes { types, exclude } => types.contains(&log_type(info)) != *exclude,
            Self::GrpcStatus { codes, exclude } => {
                let code = grpc_code(context.response, context.trailers, info.response_code);
                codes.contains(&code) != *exclude
            }
        }
    }
}

/// Envoy takes any stream for a gRPC call here; one without status has that of its HTTP status.
fn grpc_code(response: Option<&HeaderMap>, trailers: Option<&HeaderMap>, http_status: Option<u16>) -> i64 {
    let told = [trailers, response].into_iter().flatten().find_map(|headers| headers.get("grpc-status"));
    match (told, http_status) {
        (Some(told), _) => told.to_str().ok().and_then(|code| code.parse().ok()).unwrap_or(-1),
        (None, Some(status)) => grpc_status::of_http(status).into(),
        (None, None) => grpc_status::of_http(0).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::format::tests::stream;
    use super::*;

    fn wants(filter: &LogFilter, change: impl FnOnce(&mut StreamInfo)) -> bool {
        let mut info = stream();
        change(&mut info);
        filter.wants(&Context::of(&info))
    }

    #[test]
    fn only_streams_with_the_flags_asked_for_are_logged() {
        let no_route = LogFilter::Flags(ResponseFlags::NO_ROUTE_FOUND);
        assert!(wants(&no_route, |info| info.flags.set(ResponseFlags::NO_ROUTE_FOUND)));
        assert!(!wants(&no_route, |info| info.flags.set(ResponseFlags::UPSTREAM_OVERFLOW)));
        assert!(!wants(&no_route, |_| {}));
        let any = LogFilter::Flags(ResponseFlags::default());
        assert!(wants(&any, |info| info.flags.set(ResponseFlags::UPSTREAM_OVERFLOW)));
        assert!(!wants(&any, |_| {}));
    }

    #[test]
    fn statuses_and_durations_are_compared() {
        let status = |op, value| LogFilter::StatusCode(Comparison { op, value: Setting::fixed(value) });
        for (filter, code, expected) in [
            (status(Op::AtLeast, 400), Some(404), true),
            (status(Op::AtLeast, 400), Some(200), false),
            (status(Op::Equal, 0), None, true),
            (status(Op::AtMost, 299), Some(299), true),
            (status(Op::NotEqual, 200), Some(200), false),
        ] {
            assert_eq!(wants(&filter, |info| info.response_code = code), expected, "{filter:?} {code:?}");
        }
        let slow = LogFilter::Duration(Comparison { op: Op::AtLeast, value: Setting::fixed(100) });
        assert!(wants(&slow, |info| info.end = Some(Duration::from_millis(100))));
        assert!(!wants(&slow, |info| info.end = Some(Duration::from_millis(99))));
    }

    #[test]
    fn filters_combine() {
        let (yes, no) =
            (LogFilter::Sampled(Setting::fixed((1, 1))), LogFilter::Sampled(Setting::fixed((0, 100))));
        for (filter, expected) in [
            (LogFilter::All(vec![yes.clone(), yes.clone()]), true),
            (LogFilter::All(vec![yes.clone(), no.clone()]), false),
            (LogFilter::Any(vec![no.clone(), yes]), true),
            (LogFilter::Any(vec![no.clone(), no]), false),
        ] {
            assert_eq!(wants(&filter, |_| {}), expected, "{filter:?}");
        }
    }

    #[test]
    fn health_checks_are_left_out() {
        assert!(wants(&LogFilter::NotHealthCheck, |_| {}));
        assert!(!wants(&LogFilter::NotHealthCheck, |info| info.health_check = true));
    }

    #[test]
    fn calls_are_told_apart_by_status() {
        let unavailable = LogFilter::GrpcStatus { codes: vec![14], exclude: false };
        let mut info = stream();
        info.response_code = Some(200);
        let headers = HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-status"),
            http::HeaderValue::from_static("14"),
        )]);
        let context = |response| Context { response, ..Context::of(&info) };
        assert!(unavailable.wants(&context(Some(&headers))));
        assert!(!unavailable.wants(&context(None)));
        assert!(wants(&unavailable, |info| info.response_code = Some(503)));
        let other = LogFilter::GrpcStatus { codes: vec![14], exclude: true };
        assert!(!other.wants(&context(Some(&headers))));
    }
}
