//! Spans of tries (`spawn_upstream_span`): each begins before its request is sent, and ends with its response or the
//! reason why there is none (Envoy: `finalizeUpstreamSpan`).

use std::net::SocketAddr;
use std::time::Duration;

use http::HeaderMap;

use super::super::reset::ResetReason;
use super::super::stream::Stream;
use super::report::Reporter;
use super::{Trace, rules, tags, write};
use crate::model::tracing::Tracing;
use crate::telemetry::format::Context;
use crate::telemetry::protocol;
use crate::telemetry::stream_info::ResponseFlags;
use crate::telemetry::trace::{Span, SpanContext};

/// One try.
#[derive(Debug)]
pub(super) struct Try {
    context: SpanContext,
    name: String,
    host: SocketAddr,
    attempt: u32,
    /// Since the stream began.
    start: Duration,
    /// With what it ended, if that is not the response of the stream.
    end: Option<(Duration, Ended)>,
}

/// How a try ended.
#[derive(Debug, Clone, Copy)]
pub enum Ended {
    Response(u16),
    Reset(ResetReason),
    TimedOut,
}

/// Begins the span of a try and tells its upstream of it.
pub fn begin_try(stream: &Stream, headers: &mut HeaderMap, host: SocketAddr, attempt: u32) {
    let Some(tracing) = &stream.manager.hcm.tracing else { return };
    if !tracing.spawn_upstream_span {
        return;
    }
    let Some(provider) = &tracing.provider else { return };
    let name = {
        let traced = stream.traced();
        let Some(trace) = &*traced else { return };
        let (own, all) = rules(tracing, trace);
        let format = own.and_then(|own| own.upstream_operation.as_ref()).or(all.upstream_operation.as_ref());
        match format.filter(|_| trace.is_sampled()) {
            Some(format) => {
                let mut text = String::new();
                stream.evaluate(format, None, None, &mut text);
                text
            }
            None => format!("router {} egress", stream.stat_name().as_deref().unwrap_or_default()),
        }
    };
    stream.change_trace(|trace| {
        let context = trace.context.child(false);
        if tracing.propagate {
            write(provider, &context, headers);
        }
        if trace.is_sampled() {
            let start = crate::turn::since(stream.start);
            trace.tries.push(Try { context, name, host, attempt, start, end: None });
        }
    });
}

/// The last try that was begun has ended, and its response is not the stream's.
pub fn end_try(stream: &Stream, ended: Ended) {
    let at = crate::turn::since(stream.start);
    stream.change_trace(|trace| {
        if let Some(last) = trace.tries.last_mut() {
            last.end = Some((at, ended));
        }
    });
}

/// The same of the try of this number, of several that are under way; counts from 1.
pub fn end_try_of(stream: &Stream, attempt: u32, ended: Ended) {
    let at = stream.start.elapsed();
    stream.change_trace(|trace| {
        if let Some(one) = trace.tries.iter_mut().find(|one| one.attempt == attempt) {
            one.end = Some((at, ended));
        }
    });
}

/// Leaves the spans of all tries with the reporter.
pub(super) fn finish(
    stream: &Stream,
    tracing: &Tracing,
    trace: &mut Trace,
    reporter: &Reporter,
    context: &Context<'_>,
) {
    let info = context.info;
    for one in std::mem::take(&mut trace.tries) {
        let last = one.end.is_none();
        let whole = info.last_upstream_rx.or(info.end).unwrap_or_default();
        let (end, ended) = one.end.unwrap_or((whole, Ended::Response(info.response_code.unwrap_or(0))));
        let (code, flags, reason) = match ended {
            Ended::Response(code) if last => (code, info.flags, None),
            Ended::Response(code) => (code, ResponseFlags::default(), None),
            Ended::Reset(reason) => (0, reason.response_flag(), Some(reason.text())),
            Ended::TimedOut => (0, ResponseFlags::UPSTREAM_REQUEST_TIMEOUT, Some("local reset")),
        };
        let mut of = Vec::new();
        let mut tag = |name: &str, value: String| of.push((name.to_owned(), value));
        if let Some(reason) = reason {
            tag("error", "true".to_owned());
            tag("error.reason", reason.to_owned());
        }
        if one.attempt > 1 {
            tag("retry.count", (one.attempt - 1).to_string());
        }
        let spoken = info.upstream.protocol.filter(|_| reason.is_none()).map_or("-", protocol);
        tag("http.protocol", spoken.to_owned());
        tag("upstream_address", one.host.to_string());
        tag("peer.address", one.host.to_string());
        tag("component", "proxy".to_owned());
        if let Some(cluster) = &info.upstream.cluster {
            tag("upstream_cluster", cluster.to_string());
            tag(
                "upstream_cluster.name",
                stream.stat_name().map_or_else(|| cluster.to_string(), |n| n.to_string()),
            );
        }
        tag("http.status_code", code.to_string());
        tag("response_flags", flags.short());
        if code >= 500 {
            tag("error", "true".to_owned());
        }
        tags::custom(tracing, trace, context, &mut of);
        reporter.push(Span {
            context: one.context,
            name: one.name,
            client: true,
            start: info.start_wall + one.start,
            duration: end.saturating_sub(one.start),
            tags: of,
            events: if tracing.verbose && last { tags::events(info, true) } else { Vec::new() },
            failed: code >= 400,
        });
    }
}
