//! Sends spans to their collector. A stream leaves its spans with the reporter of its worker; a task of that worker
//! sends them, many at a time, by way of the configured cluster. Never waits for anybody: what finds no room is
//! counted and dropped.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, TE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version};
use http_body_util::BodyExt as _;
use tokio::sync::Notify;

use crate::cluster::{ClusterManager, LbContext, RoutingPriority};
use crate::http::body::Body;
use crate::model::tracing::{Provider, ProviderKind};
use crate::model::workload::Workload;
use crate::telemetry::trace::{Process, Span, otlp, zipkin};
use crate::upstream::{Target, UpstreamPath, Upstreams, implied_alpn};

/// So many spans are sent at once, as in Envoy (`tracing.….min_flush_spans`).
const ENOUGH: usize = 5;
/// Fewer wait so long at most (`tracing.….flush_interval_ms`).
const INTERVAL: Duration = Duration::from_secs(5);
/// Spans that wait while a report is under way.
const MAX_WAITING: usize = 1024;
/// Where the configuration sets no limit: the next report waits for the one before.
const TIMEOUT: Duration = Duration::from_secs(10);
const GRPC_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("OTel-OTLP-Exporter-mesh-node/", env!("CARGO_PKG_VERSION")));

/// The reporters of one worker: one for each provider of each configuration and workload that uses it.
#[derive(Debug, Default)]
pub struct Reporters(RefCell<HashMap<Key, Rc<Reporter>, ahash::RandomState>>);

/// Addresses of provider, clusters and workload, which the reporter keeps alive.
type Key = [usize; 3];

/// Spans for one collector.
#[derive(Debug)]
pub struct Reporter {
    of: Of,
    waiting: RefCell<Vec<Span>>,
    pushed: Notify,
}

/// Whose spans a reporter sends, and by what.
#[derive(Debug, Clone)]
pub struct Of {
    pub provider: Arc<Provider>,
    pub clusters: Arc<ClusterManager>,
    pub upstreams: Upstreams,
    pub workload: Option<Arc<Workload>>,
    pub process: Process,
}

impl Of {
    fn key(&self) -> Key {
        [
            Arc::as_ptr(&self.provider) as usize,
            Arc::as_ptr(&self.clusters) as usize,
            self.workload.as_ref().map_or(0, |workload| Arc::as_ptr(workload) as usize),
        ]
    }
}

impl Reporters {
    /// The reporter of these; its task runs from now on, until it has nothing to do.
    pub fn of(self: &Rc<Self>, of: Of) -> Rc<Reporter> {
        let key = of.key();
        if let Some(reporter) = self.0.borrow().get(&key) {
            return reporter.clone();
        }
        let reporter = Rc::new(Reporter { of, waiting: RefCell::default(), pushed: Notify::new() });
        self.0.borrow_mut().insert(key, reporter.clone());
        tokio::task::spawn_local(run(Rc::downgrade(self), reporter.clone()));
        reporter
    }
}

/// Sends what waits, as soon as it is enough or has waited long.
async fn run(reporters: Weak<Reporters>, reporter: Rc<Reporter>) {
    loop {
        let tick = tokio::time::sleep(INTERVAL);
        tokio::pin!(tick);
        loop {
            tokio::select! {
                () = reporter.pushed.notified() => {}
                () = &mut tick => break,
            }
            while reporter.waiting.borrow().len() >= ENOUGH {
                reporter.flush().await;
            }
        }
        reporter.count_tick();
        if !reporter.waiting.borrow().is_empty() {
            reporter.flush().await;
        } else if Rc::strong_count(&reporter) == 2 {
            // No stream has it: only the map and this task.
            if let Some(reporters) = reporters.upgrade() {
                reporters.0.borrow_mut().remove(&reporter.of.key());
            }
            return;
        }
    }
}

/// How a report ended.
enum Outcome {
    Answered(StatusCode),
    NoCluster,
    Failed,
}

impl Reporter {
    pub fn provider(&self) -> &Provider {
        &self.of.provider
    }

    /// Leaves a span that has ended.
    pub fn push(&self, span: Span) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= MAX_WAITING {
            return self.count_dropped(1);
        }
        waiting.push(span);
        if waiting.len() >= ENOUGH {
            self.pushed.notify_one();
        }
    }

    async fn flush(&self) {
        let spans = std::mem::take(&mut *self.waiting.borrow_mut());
        let limit = self.of.provider.collector.timeout.unwrap_or(TIMEOUT);
        let outcome = match tokio::time::timeout(limit, self.send(&spans)).await {
            Ok(outcome) => outcome,
            Err(_) => Outcome::Failed,
        };
        self.count(spans.len(), &outcome);
    }

    async fn send(&self, spans: &[Span]) -> Outcome {
        let Of { provider, clusters, upstreams, workload, process } = &self.of;
        let collector = &provider.collector;
        let Some(cluster) = clusters.get(&collector.cluster) else { return Outcome::NoCluster };
        let Ok(host) = cluster.choose(&LbContext::default()) else { return Outcome::Failed };
        let version = if collector.grpc { Version::HTTP_2 } else { Version::HTTP_11 };
        let target = Target {
            client: None,
            workload: workload.clone(),
            implied_alpn: implied_alpn(cluster.config.protocol, version),
            cluster,
            host,
            path: UpstreamPath::Network,
            alpn: None,
        };
        let (body, kind) = match &provider.kind {
            ProviderKind::OpenTelemetry { resource, .. } => {
                (otlp::request(resource, spans), "application/x-protobuf")
            }
            ProviderKind::Zipkin(zipkin) => {
                (zipkin::request(process, zipkin.shared_span_context, spans), "application/json")
            }
        };
        let mut headers = HeaderMap::new();
        headers.insert(HOST, collector.authority.clone());
        if matches!(provider.kind, ProviderKind::OpenTelemetry { .. }) {
            headers.insert(USER_AGENT, AGENT);
        }
        let (path, body) = if collector.grpc {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(TE, HeaderValue::from_static("trailers"));
            (GRPC_PATH, framed(&body))
        } else {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            (collector.path.as_str(), Bytes::from(body))
        };
        for (name, value) in &collector.headers {
            headers.insert(name.clone(), value.clone());
        }
        let Ok(mut message) = Request::builder().method(Method::POST).uri(path).body(Body::from_bytes(body))
        else {
            return Outcome::Failed;
        };
        *message.headers_mut() = headers;
        let exchange = upstreams.request(&target, RoutingPriority::Default, version, message).await;
        let Ok(exchange) = exchange else { return Outcome::Failed };
        let mut status = exchange.response.status();
        target.cluster.stats.count_response(status.as_u16());
        let mut refused = collector.grpc && is_refused(exchange.response.headers());
        let mut body = exchange.response.into_body();
        // Read to its end, so that the connection can be used again.
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => refused |= collector.grpc && frame.trailers_ref().is_some_and(is_refused),
                Err(_) => return Outcome::Failed,
            }
        }
        if refused {
            status = StatusCode::BAD_GATEWAY;
        }
        Outcome::Answered(status)
    }

    fn count(&self, spans: usize, outcome: &Outcome) {
        let count = spans as u64;
        match &self.of.provider.kind {
            ProviderKind::OpenTelemetry { stats, .. } => {
                stats.spans_sent.add(count);
                if !matches!(outcome, Outcome::Answered(status) if status.is_success()) {
                    stats.spans_dropped.add(count);
                }
            }
            ProviderKind::Zipkin(zipkin) => {
                let stats = &zipkin.stats;
                stats.spans_sent.add(count);
                match outcome {
                    Outcome::Answered(StatusCode::ACCEPTED) => stats.reports_sent.inc(),
                    Outcome::Answered(_) => stats.reports_dropped.inc(),
                    Outcome::NoCluster => stats.reports_skipped_no_cluster.inc(),
                    Outcome::Failed => stats.reports_failed.inc(),
                }
            }
        }
    }

    fn count_dropped(&self, spans: u64) {
        match &self.of.provider.kind {
            ProviderKind::OpenTelemetry { stats, .. } => stats.spans_dropped.add(spans),
            // Envoy's Zipkin has no counter of spans.
            ProviderKind::Zipkin(zipkin) => zipkin.stats.reports_dropped.inc(),
        }
    }

    fn count_tick(&self) {
        match &self.of.provider.kind {
            ProviderKind::OpenTelemetry { stats, .. } => stats.timer_flushed.inc(),
            ProviderKind::Zipkin(zipkin) => zipkin.stats.timer_flushed.inc(),
        }
    }
}

/// A message of gRPC: no compression, then its length.
fn framed(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(message.len() + 5);
    out.put_u8(0);
    out.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    out.put_slice(message);
    out.freeze()
}

fn is_refused(headers: &HeaderMap) -> bool {
    headers.get("grpc-status").is_some_and(|status| status != "0")
}
