//! Tracing of requests (`HttpConnectionManager.Tracing`): which are traced, what their spans say, and where spans go.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::Str;
use super::format::{Format, MetadataOf};
use crate::runtime::Fraction;
use crate::telemetry::stats::Counter;

/// `HttpConnectionManager.Tracing`.
#[derive(Debug)]
pub struct Tracing {
    pub sampling: Sampling,
    pub spans: SpanRules,
    /// `verbose`: spans tell when each part of the stream passed.
    pub verbose: bool,
    /// `max_path_tag_length`; default 256.
    pub max_path_bytes: usize,
    /// Each try is a span of its own.
    pub spawn_upstream_span: bool,
    /// `no_context_propagation` is false.
    pub propagate: bool,
    /// Without one requests are sampled and named, but nothing is told.
    pub provider: Option<Arc<Provider>>,
}

/// What spans are called and say, of a connection manager or a route.
#[derive(Debug, Default)]
pub struct SpanRules {
    pub tags: Vec<CustomTag>,
    pub operation: Option<Format>,
    pub upstream_operation: Option<Format>,
}

/// `route.v3.Tracing`.
#[derive(Debug)]
pub struct RouteTracing {
    pub sampling: Sampling,
    pub spans: SpanRules,
}

/// `route.v3.Decorator`.
#[derive(Debug, Clone)]
pub struct Decorator {
    pub operation: HeaderValue,
    /// Other proxies are told.
    pub propagate: bool,
}

/// Shares of requests, as (numerator, denominator).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling {
    /// Of those whose client asks for it (`x-client-trace-id`).
    pub client: Fraction,
    pub random: Fraction,
    /// Of those that would be traced.
    pub overall: Fraction,
}

/// `UuidRequestIdConfig`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestIds {
    /// The fifteenth character of `x-request-id` says whether and why the request is traced.
    pub pack_trace_reason: bool,
    /// The id decides on sampling; else every request is traced.
    pub sample_by_id: bool,
}

impl Default for RequestIds {
    fn default() -> Self {
        Self { pack_trace_reason: true, sample_by_id: true }
    }
}

/// `type.tracing.v3.CustomTag`.
#[derive(Debug, Clone)]
pub struct CustomTag {
    pub name: Str,
    pub value: TagValue,
}

/// Where the value of a tag comes from. An empty one is left out.
#[derive(Debug, Clone)]
pub enum TagValue {
    /// Also from the environment of this process, which does not change.
    Literal(String),
    Header {
        name: HeaderName,
        default: String,
    },
    Metadata {
        of: MetadataOf,
        namespace: String,
        path: Vec<String>,
        default: String,
    },
    Format(Format),
}

/// A tracer (`config.trace.v3.Tracing.Http`).
#[derive(Debug)]
pub struct Provider {
    pub kind: ProviderKind,
    pub collector: Collector,
}

/// What spans look like, and how their context passes from proxy to proxy.
#[derive(Debug)]
pub enum ProviderKind {
    OpenTelemetry {
        /// Attributes of what the spans are of, such as `service.name`.
        resource: Vec<(String, String)>,
        stats: OpenTelemetryStats,
    },
    Zipkin(Zipkin),
}

/// `config.trace.v3.ZipkinConfig`.
#[derive(Debug)]
pub struct Zipkin {
    pub trace_id_128bit: bool,
    /// A server's span has the id of its client's.
    pub shared_span_context: bool,
    /// `USE_B3_WITH_W3C_PROPAGATION`
    pub w3c: bool,
    pub stats: ZipkinStats,
}

/// Where spans are sent, by way of a cluster.
#[derive(Debug)]
pub struct Collector {
    pub cluster: Str,
    pub authority: HeaderValue,
    pub path: String,
    /// What replaces a header of that name, and what is added.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// `None`: as long as it takes.
    pub timeout: Option<Duration>,
    /// gRPC (`opentelemetry.proto.collector.trace.v1.TraceService`), else a POST.
    pub grpc: bool,
}

/// `tracing.opentelemetry.*`
#[derive(Debug)]
pub struct OpenTelemetryStats {
    pub spans_sent: Arc<Counter>,
    /// For want of room, or because their report failed.
    pub spans_dropped: Arc<Counter>,
    pub timer_flushed: Arc<Counter>,
}

/// `tracing.zipkin.*`
#[derive(Debug)]
pub struct ZipkinStats {
    pub spans_sent: Arc<Counter>,
    pub timer_flushed: Arc<Counter>,
    pub reports_skipped_no_cluster: Arc<Counter>,
    /// Answered with 202.
    pub reports_sent: Arc<Counter>,
    /// Answered otherwise.
    pub reports_dropped: Arc<Counter>,
    pub reports_failed: Arc<Counter>,
}
