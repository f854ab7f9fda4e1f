//! Tracing of one request (Envoy: `ActiveStream::traceRequest`, `HttpTracerUtility`): whether it is traced
//! ([`decision`]), what its span is called and belongs to, what upstreams are told of that, and what is said of it at
//! its end ([`tags`]). A connection manager without `tracing` costs one comparison; a request that is not sampled, an
//! identity and a header.

mod decision;
mod report;
mod tags;
mod tries;

use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use self::decision::Reason;
pub use self::decision::forget;
pub use self::report::Reporters;
use self::report::{Of, Reporter};
use self::tries::Try;
pub use self::tries::{Ended, begin_try, end_try, end_try_of};
use super::ConnectionManager;
use super::request::Request;
use super::stream::Stream;
use crate::model::listener::Direction;
use crate::model::route::Route;
use crate::model::tracing::{Provider, ProviderKind, SpanRules, Tracing};
use crate::telemetry::format::Context;
use crate::telemetry::trace::{Form, Malformed, Process, Span, SpanContext};

const OPERATION: HeaderName = HeaderName::from_static("x-envoy-decorator-operation");

/// The span of a stream.
#[derive(Debug)]
pub struct Trace {
    context: SpanContext,
    name: String,
    client: bool,
    /// Has tracing rules of its own.
    route: Option<Arc<Route>>,
    tries: Vec<Try>,
    /// Of one that is sampled.
    reporter: Option<Rc<Reporter>>,
}

impl Trace {
    /// Something is to be told of the stream.
    pub fn is_sampled(&self) -> bool {
        self.reporter.is_some()
    }
}

/// Decides whether a request is traced, as soon as its route is known.
pub fn decide(
    manager: &ConnectionManager,
    stream: &Stream,
    headers: &mut HeaderMap,
    route: Option<&Route>,
) -> bool {
    let Some(tracing) = &manager.hcm.tracing else { return false };
    let sampling =
        route.and_then(|route| route.tracing.as_ref()).map_or(tracing.sampling, |own| own.sampling);
    let reason = decision::decide(headers, manager.hcm.request_ids, &sampling);
    stream.keep_request_id(headers);
    reason.count(&manager.hcm.stats);
    reason != Reason::NotTraceable
}

/// Begins the span of a request, before the filters see it.
pub fn begin(
    manager: &ConnectionManager,
    stream: &Stream,
    request: &mut Request,
    route: Option<&Arc<Route>>,
    traced: bool,
) {
    let Some(tracing) = &manager.hcm.tracing else { return };
    let outbound = manager.connection.direction == Direction::Outbound;
    let own = route.and_then(|route| route.tracing.as_ref()).map(|own| &own.spans);
    let operation = own.and_then(|own| own.operation.as_ref()).or(tracing.spans.operation.as_ref());
    let decorator = route.and_then(|route| route.decorator.as_ref()).filter(|_| operation.is_none());
    let headers = &mut request.parts.headers;
    let mut name = decorator.map(|decorator| decorator.operation.clone());
    let told = decorator.filter(|decorator| decorator.propagate).map(|decorator| decorator.operation.clone());
    if outbound {
        if let Some(operation) = told {
            headers.insert(OPERATION, operation);
        }
    } else {
        // What the client's half calls the request counts for both.
        let theirs = headers.remove(OPERATION).filter(|theirs| !theirs.is_empty() && operation.is_none());
        stream.decorate(told.filter(|_| theirs.is_none()));
        name = theirs.or(name);
    }
    let Some(provider) = &tracing.provider else { return };
    let client = outbound && !tracing.spawn_upstream_span;
    let Ok(context) = context_of(provider, headers, client, traced) else { return };
    stream.info.borrow_mut().trace = Some(Box::new(context.clone()));
    let name = match (operation, name) {
        (Some(operation), _) => {
            let mut text = String::new();
            stream.evaluate(operation, Some((request, &request.parts.headers)), None, &mut text);
            text
        }
        (None, Some(name)) => String::from_utf8_lossy(name.as_bytes()).into_owned(),
        (None, None) => default_name(provider, request.authority(), outbound),
    };
    let reporter = context.sampled.then(|| reporter(manager, provider));
    let route = route.filter(|route| route.tracing.is_some()).cloned();
    stream.trace(Trace { context, name, client, route, tries: Vec::new(), reporter });
}

fn reporter(manager: &ConnectionManager, provider: &Arc<Provider>) -> Rc<Reporter> {
    let (ctx, workload) = (&manager.ctx, &manager.connection.workload);
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let process = Process {
        service: text(&manager.local_peer().service_cluster),
        address: Some(workload.as_ref().and_then(|w| w.ips.first().copied()).unwrap_or(ctx.address)),
    };
    ctx.spans.of(Of {
        provider: provider.clone(),
        clusters: ctx.clusters.clone(),
        upstreams: ctx.upstreams.clone(),
        workload: workload.clone(),
        process,
    })
}

/// Zipkin's spans are called after the host.
fn default_name(provider: &Provider, host: &str, outbound: bool) -> String {
    match (&provider.kind, outbound) {
        (ProviderKind::Zipkin(_), _) => host.to_owned(),
        (ProviderKind::OpenTelemetry { .. }, true) => format!("egress {host}"),
        (ProviderKind::OpenTelemetry { .. }, false) => "ingress".to_owned(),
    }
}

/// Which span of which trace: one that the request names, or a new one. A name that cannot be read is not guessed.
fn context_of(
    provider: &Provider,
    headers: &HeaderMap,
    client: bool,
    traced: bool,
) -> Result<SpanContext, Malformed> {
    let zipkin = match &provider.kind {
        ProviderKind::OpenTelemetry { .. } => {
            let parent = SpanContext::from_w3c(headers)?;
            return Ok(match parent {
                Some(parent) => parent.child(true),
                None => SpanContext::root(true, Form::W3c, traced),
            });
        }
        ProviderKind::Zipkin(zipkin) => zipkin,
    };
    let b3 = SpanContext::from_b3(headers, traced)?;
    let parent = match b3.context {
        None if zipkin.w3c && !b3.single => {
            let parent = SpanContext::from_w3c(headers)?;
            let sampled = |parent: &SpanContext| b3.sampled.unwrap_or(parent.sampled);
            parent.map(|parent| SpanContext { sampled: sampled(&parent), form: Form::B3, ..parent })
        }
        context => context,
    };
    Ok(match parent {
        // The span of a server is the one that its client began.
        Some(parent) if !client && zipkin.shared_span_context => parent,
        Some(parent) => parent.child(true),
        None => {
            let form = if b3.single { Form::B3Single } else { Form::B3 };
            SpanContext::root(zipkin.trace_id_128bit, form, b3.sampled.unwrap_or(traced))
        }
    })
}

/// Tells an upstream which span its own belongs to.
fn write(provider: &Provider, context: &SpanContext, headers: &mut HeaderMap) {
    match &provider.kind {
        ProviderKind::OpenTelemetry { .. } => context.write_w3c(headers),
        ProviderKind::Zipkin(zipkin) => {
            context.write_b3(headers);
            if zipkin.w3c {
                context.write_traceparent(headers);
            }
        }
    }
}

/// Tells the upstream of a stream whose tries are no spans of their own.
pub fn inject(stream: &Stream, headers: &mut HeaderMap) {
    let Some(tracing) = &stream.manager.hcm.tracing else { return };
    if let (Some(provider), Some(trace)) = (&tracing.provider, &*stream.traced())
        && tracing.propagate
        && !tracing.spawn_upstream_span
    {
        write(provider, &trace.context, headers);
    }
}

/// After everything else is done to the response: what the request is called, told to the client's half.
pub fn response(manager: &ConnectionManager, stream: &Stream, headers: &mut HeaderMap) {
    if manager.hcm.tracing.is_none() {
        return;
    }
    if manager.connection.direction == Direction::Outbound {
        headers.remove(OPERATION);
    } else if let Some(operation) = stream.decoration() {
        headers.insert(OPERATION, operation);
    }
}

/// The rules for spans, the route's before the connection manager's.
fn rules<'a>(tracing: &'a Tracing, trace: &'a Trace) -> (Option<&'a SpanRules>, &'a SpanRules) {
    let own = trace.route.as_ref().and_then(|route| route.tracing.as_ref()).map(|own| &own.spans);
    (own, &tracing.spans)
}

/// Leaves the spans of a stream that has ended with their reporter.
pub fn finish(stream: &Stream, context: &Context<'_>) {
    let Some(tracing) = &stream.manager.hcm.tracing else { return };
    let Some(mut trace) = stream.take_trace() else { return };
    let Some(reporter) = trace.reporter.take() else { return };
    let duration = context.info.end.unwrap_or_default();
    tries::finish(stream, tracing, &mut trace, &reporter, context);
    let (tags, failed) = tags::of_stream(stream, tracing, &trace, context);
    reporter.push(Span {
        events: if tracing.verbose { tags::events(context.info, false) } else { Vec::new() },
        name: trace.name,
        client: trace.client,
        start: context.info.start_wall,
        duration,
        tags,
        failed,
        context: trace.context,
    });
}
