//! Istio's standard metrics of requests (`istio.stats`), reported when a stream ends.
//!
//! Finding the series of 25 labels costs more than a request may; a connection remembers those that it used,
//! by pointers to what the labels were made of.

use std::borrow::Cow;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Response};
use smallvec::SmallVec;

use super::super::request::Request;
use super::super::stream::Stream;
use crate::cluster::Host;
use crate::filter::istio_labels::{Ends, Metrics, peer_labels};
use crate::http::body::Body;
use crate::model::Str;
use crate::model::http_filter::{Dimension, HttpFilterKind, IstioStats};
use crate::telemetry::istio_metrics::Labels;
use crate::telemetry::peer::Peer;
use crate::telemetry::stats::{Counter, Histogram};
use crate::telemetry::stream_info::StreamInfo;

/// What computed dimensions read of a request that is gone when they are computed.
#[derive(Debug)]
pub(super) struct Kept {
    method: http::Method,
    scheme: &'static str,
    path: String,
    headers: HeaderMap,
    response: HeaderMap,
}

pub(super) fn decode(stream: &Rc<Stream>, config: &IstioStats, request: &Request) {
    let parts = &request.parts;
    // "GET /path HTTP/1.1", and the empty line.
    let line = parts.method.as_str().len() + request.path().len() + 14;
    let host = (!config.disable_host_header_fallback).then(|| request.authority.clone());
    *stream.chain.head.borrow_mut() = Some((line as u64 + head_bytes(&parts.headers), host));
    if config.computes_labels() {
        *stream.chain.request_method.borrow_mut() = Some(Kept {
            method: parts.method.clone(),
            scheme: request.scheme,
            path: request.path().to_owned(),
            headers: parts.headers.clone(),
            response: HeaderMap::new(),
        });
    }
}

pub(super) fn encode(stream: &Stream, response: &Response<Body>) {
    if stream.chain.head.borrow().is_none() {
        return;
    }
    // "HTTP/1.1 200 OK", and the empty line.
    let reason = response.status().canonical_reason().unwrap_or_default().len() as u64;
    stream.chain.response_head_bytes.set(17 + reason + head_bytes(response.headers()));
    if let Some(kept) = &mut *stream.chain.request_method.borrow_mut() {
        kept.response = response.headers().clone();
    }
}

/// Names, values and their punctuation.
fn head_bytes(headers: &HeaderMap) -> u64 {
    headers.iter().map(|(name, value)| (name.as_str().len() + value.len() + 4) as u64).sum()
}

/// What the labels of a series are made of. Pointers are of values that the series keeps.
#[derive(PartialEq)]
struct Key {
    config: *const IstioStats,
    peer: *const Peer,
    cluster: *const str,
    host: *const Host,
    status: u16,
    flags: u32,
    grpc: Option<Option<u8>>,
    route: Option<&'static str>,
    authority: Option<HeaderValue>,
}

struct Series {
    requests: Option<Arc<Counter>>,
    duration: Option<Arc<Histogram>>,
    request_bytes: Option<Arc<Histogram>>,
    response_bytes: Option<Arc<Histogram>>,
    request_messages: Option<Arc<Counter>>,
    response_messages: Option<Arc<Counter>>,
    /// Keeps what the key points to from being something else.
    _made_of: (Option<Arc<Peer>>, Option<Str>, Option<Arc<Host>>),
}

/// The series that a connection used.
#[derive(Default)]
pub struct SeriesCache(RefCell<Remembered>);

type Remembered = SmallVec<[(Key, Rc<Series>); 2]>;

impl std::fmt::Debug for SeriesCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SeriesCache({})", self.0.borrow().len())
    }
}

/// A connection whose requests all differ must not remember them all.
const MAX_REMEMBERED: usize = 32;

/// Reports a stream that has ended.
pub fn report(stream: &Stream, info: &StreamInfo) {
    if !stream.chain.begun.get() {
        return;
    }
    for filter in &stream.manager.hcm.http_filters {
        if let HttpFilterKind::IstioStats(config) = &filter.kind {
            one(stream, info, config);
        }
    }
}

fn one(stream: &Stream, info: &StreamInfo, config: &Arc<IstioStats>) {
    let head = stream.chain.head.borrow();
    let Some((request_head, authority)) = &*head else { return };
    let upstream = stream.upstream();
    let upstream = upstream.as_ref();
    let cluster = upstream.map(|upstream| &upstream.cluster);
    let host = upstream.and_then(|upstream| upstream.host.as_ref());
    let named = cluster.is_some_and(|cluster| cluster.config.istio.service.is_some());
    let key = Key {
        config: Arc::as_ptr(config),
        peer: info.peer.as_ref().map_or(std::ptr::null(), Arc::as_ptr),
        cluster: cluster.map_or(std::ptr::from_ref(""), |cluster| Arc::as_ptr(cluster.name())),
        host: host.map_or(std::ptr::null(), Arc::as_ptr),
        status: info.response_code.unwrap_or(0),
        flags: info.flags.0,
        grpc: stream.grpc.then(|| stream.grpc_status()),
        route: passthrough_route(info),
        authority: authority.clone().filter(|_| !named),
    };
    let remembered = &stream.manager.series.0;
    let known = match config.computes_labels() {
        true => None,
        false => remembered.borrow().iter().find(|(of, _)| *of == key).map(|(_, series)| series.clone()),
    };
    let series = known.unwrap_or_else(|| {
        let ends = Ends {
            local: stream.manager.local_peer(),
            peer: info.peer.as_deref(),
            endpoint: host.and_then(|host| host.endpoint.as_ref()?.peer.as_deref()),
            connection: &info.connection,
            upstream: &info.upstream,
            cluster: cluster.map(|cluster| &*cluster.config),
            service_name: key.route,
            authority: authority.as_ref().and_then(|host| host.to_str().ok()),
        };
        let made_of = (info.peer.clone(), cluster.map(|cluster| cluster.name().clone()), host.cloned());
        let kept = stream.chain.request_method.borrow();
        let series = Rc::new(find(stream, info, config, &ends, kept.as_ref(), &key, made_of));
        if !config.computes_labels() {
            let mut remembered = remembered.borrow_mut();
            if remembered.len() >= MAX_REMEMBERED {
                remembered.clear();
            }
            remembered.push((key, series.clone()));
        }
        series
    });
    if let Some(counter) = &series.requests {
        counter.inc();
    }
    if let (Some(histogram), Some(end)) = (&series.duration, info.end) {
        histogram.record_ms(end);
    }
    if let Some(histogram) = &series.request_bytes {
        histogram.record(request_head + info.bytes_received);
    }
    if let Some(histogram) = &series.response_bytes {
        histogram.record(stream.chain.response_head_bytes.get() + info.bytes_sent);
    }
    if let Some(messages) = &*stream.chain.messages.borrow() {
        if let Some(counter) = &series.request_messages {
            counter.add(messages.request.get());
        }
        if let Some(counter) = &series.response_messages {
            counter.add(messages.response.get());
        }
    }
}

/// Istio's routes to where no service is known.
fn passthrough_route(info: &StreamInfo) -> Option<&'static str> {
    match info.route_name.as_deref()? {
        "block_all" => Some("BlackHoleCluster"),
        "allow_any" => Some("PassthroughCluster"),
        _ => None,
    }
}

fn find(
    stream: &Stream,
    info: &StreamInfo,
    config: &IstioStats,
    ends: &Ends<'_>,
    kept: Option<&Kept>,
    key: &Key,
    made_of: (Option<Arc<Peer>>, Option<Str>, Option<Arc<Host>>),
) -> Series {
    let (peers, mutual_tls) = peer_labels(config.reporter, ends);
    let mut all: Labels = peers.clone();
    let mut label = |name: &'static str, value: String| all.push((Cow::Borrowed(name), value));
    label("request_protocol", if key.grpc.is_some() { "grpc" } else { "http" }.to_owned());
    label("response_code", key.status.to_string());
    label("grpc_response_status", key.grpc.flatten().map(|status| status.to_string()).unwrap_or_default());
    label("response_flags", info.flags.short());
    label("connection_security_policy", mutual_tls.to_owned());
    let value = |dimension: &Dimension| dimension_value(dimension, stream, info, kept);
    let metrics = Metrics { config, local: stream.manager.local_peer(), value: &value };
    let grpc = key.grpc.is_some();
    Series {
        requests: metrics.counter("requests_total", &all),
        duration: metrics.histogram("request_duration_milliseconds", &all),
        request_bytes: metrics.histogram("request_bytes", &all),
        response_bytes: metrics.histogram("response_bytes", &all),
        request_messages: if grpc { metrics.counter("request_messages_total", &peers) } else { None },
        response_messages: if grpc { metrics.counter("response_messages_total", &peers) } else { None },
        _made_of: made_of,
    }
}

fn dimension_value(
    dimension: &Dimension,
    stream: &Stream,
    info: &StreamInfo,
    kept: Option<&Kept>,
) -> Option<String> {
    let text = |value: Option<&HeaderValue>| value.and_then(|v| v.to_str().ok()).map(str::to_owned);
    match dimension {
        Dimension::Literal(text) => Some(text.clone()),
        Dimension::RequestHost => kept.and_then(|kept| text(kept.headers.get(http::header::HOST))),
        Dimension::RequestMethod => kept.map(|kept| kept.method.as_str().to_owned()),
        Dimension::RequestPath => kept.map(|kept| kept.path.clone()),
        Dimension::RequestUrlPath => {
            kept.map(|kept| kept.path.split('?').next().unwrap_or_default().to_owned())
        }
        Dimension::RequestScheme => kept.map(|kept| kept.scheme.to_owned()),
        Dimension::RequestProtocol => Some(
            match stream.version {
                http::Version::HTTP_2 => "HTTP/2",
                http::Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            }
            .to_owned(),
        ),
        Dimension::RequestHeader(name) => kept.and_then(|kept| text(kept.headers.get(name))),
        Dimension::ResponseCode => Some(info.response_code.unwrap_or(0).to_string()),
        Dimension::ResponseHeader(name) => kept.and_then(|kept| text(kept.response.get(name))),
        other => crate::filter::istio_labels::connection_dimension(other, info),
    }
}
