//! Asks hosts whether they serve (active health checks): HTTP, gRPC, or what a TCP server sends.
//!
//! Each check has a connection of its own, opened as those of requests are but counted in no statistics of the
//! cluster and against none of its limits.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, TE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::connect::establish;
use super::stream::UpstreamStream;
use super::{Target, UpstreamPath};
use crate::cluster::{ClusterState, Finding, Host, Probe, Probing};
use crate::model::resilience::{CheckKind, HealthCheck, HttpCheck};
use crate::model::workload::Workload;

/// Bytes of a TCP server's answer that are kept at most: more is no health check.
const ANSWER_LIMIT_BYTES: usize = 64 << 10;

/// The workload of a pod as it is now: another one after an edit of the pod, none once it is gone.
pub type Current = Arc<Mutex<Weak<Workload>>>;

/// Asks on behalf of one workload, from its network namespace, or of the process. It does not keep a pod that is
/// gone.
#[derive(Debug, Default)]
pub struct Prober {
    pub workload: Option<Current>,
}

impl Prober {
    /// On whose behalf: `Some(None)` is the process, `None` a pod that is gone.
    fn workload(&self) -> Option<Option<Arc<Workload>>> {
        let Some(current) = &self.workload else { return Some(None) };
        current.lock().unwrap_or_else(PoisonError::into_inner).upgrade().map(Some)
    }
}

impl Probe for Prober {
    fn probe<'a>(
        &'a self,
        cluster: &'a Arc<ClusterState>,
        host: &'a Arc<Host>,
        check: &'a HealthCheck,
    ) -> Probing<'a> {
        Box::pin(async move {
            let Some(workload) = self.workload() else { return Finding::Unreachable };
            let target = Target {
                client: None,
                workload,
                cluster: cluster.clone(),
                host: host.clone(),
                path: UpstreamPath::Network,
                alpn: None,
                implied_alpn: &[],
            };
            let stream = match establish(&target, None).await {
                Ok(established) => established.stream,
                Err(error) => {
                    tracing::debug!(cluster = %cluster.name(), host = %host.address, %error, "health check");
                    return Finding::Unreachable;
                }
            };
            let found = match &check.kind {
                CheckKind::Http(http) => self::http(&target, http, stream).await,
                CheckKind::Tcp { send, receive } => tcp(stream, send, receive).await,
                CheckKind::Grpc { service, authority, metadata } => {
                    let authority = name(&target, authority.as_deref());
                    grpc(&target, service, authority, metadata, stream).await
                }
            };
            found.unwrap_or(Finding::Unreachable)
        })
    }
}

/// The authority of checks: the endpoint's, the check's, or the cluster's name (Envoy: `getHostname`).
fn name<'a>(target: &'a Target, of_check: Option<&'a str>) -> &'a str {
    target.host.hostname.as_deref().or(of_check).unwrap_or(target.cluster.name())
}

async fn tcp(mut stream: UpstreamStream, send: &[u8], receive: &[Vec<u8>]) -> Option<Finding> {
    if !send.is_empty() {
        stream.write_all(send).await.ok()?;
        stream.flush().await.ok()?;
    }
    let mut answer = Vec::new();
    while !has_in_order(&answer, receive) {
        if answer.len() > ANSWER_LIMIT_BYTES || stream.read_buf(&mut answer).await.ok()? == 0 {
            return None;
        }
    }
    Some(Finding::Healthy)
}

/// Are all parts in the answer, one after the other, with anything between?
fn has_in_order(mut answer: &[u8], parts: &[Vec<u8>]) -> bool {
    parts.iter().all(|part| match memchr::memmem::find(answer, part) {
        Some(at) => {
            answer = &answer[at + part.len()..];
            true
        }
        None => false,
    })
}

async fn http(target: &Target, check: &HttpCheck, stream: UpstreamStream) -> Option<Finding> {
    let authority = name(target, check.host.as_deref());
    let body = Full::new(Bytes::copy_from_slice(&check.body));
    let mut request = Request::new(body);
    *request.method_mut() = check.method.clone();
    *request.uri_mut() = if check.http2 {
        absolute(target, authority, &check.path)?
    } else {
        request.headers_mut().insert(HOST, HeaderValue::from_str(authority).ok()?);
        check.path.parse().ok()?
    };
    let headers = request.headers_mut();
    headers.insert(USER_AGENT, HeaderValue::from_static("Envoy/HC"));
    for (name, value) in &check.add {
        headers.append(name, value.clone());
    }
    for name in &check.remove {
        headers.remove(name);
    }
    let response = if check.http2 { over_http2(stream, request) } else { over_http1(stream, request) };
    let Exchanged { status, headers, body, .. } = response.await?;
    let among = |ranges: &[(u16, u16)]| ranges.iter().any(|(start, end)| (*start..*end).contains(&status));
    if !among(&check.expected) {
        if headers.contains_key("x-envoy-immediate-health-check-fail") {
            return Some(Finding::Excluded);
        }
        return Some(Finding::Failed { retriable: among(&check.retriable) });
    }
    if !check.receive.is_empty() {
        let seen = match check.response_buffer_bytes {
            0 => &body[..],
            limit => &body[..limit.min(body.len())],
        };
        if !has_in_order(seen, &check.receive) {
            return Some(Finding::Failed { retriable: false });
        }
    }
    if let Some(matcher) = &check.service_name {
        let cluster = headers.get("x-envoy-upstream-healthchecked-cluster").map(|v| v.to_str());
        if !matcher.matches(cluster.and_then(Result::ok).unwrap_or_default()) {
            return Some(Finding::Failed { retriable: false });
        }
    }
    let degraded = headers.contains_key("x-envoy-degraded");
    Some(if degraded { Finding::Degraded } else { Finding::Healthy })
}

/// `grpc.health.v1.Health/Check`.
async fn grpc(
    target: &Target,
    service: &str,
    authority: &str,
    metadata: &HeaderMap,
    stream: UpstreamStream,
) -> Option<Finding> {
    let mut request = Request::new(Full::new(health_request(service)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = absolute(target, authority, "/grpc.health.v1.Health/Check")?;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(USER_AGENT, HeaderValue::from_static("Envoy/HC"));
    for (name, value) in metadata {
        headers.append(name, value.clone());
    }
    let Exchanged { status, headers, body, trailers } = over_http2(stream, request).await?;
    let ok = |headers: &HeaderMap| headers.get("grpc-status").is_some_and(|status| status == "0");
    let serves = status == StatusCode::OK.as_u16() && (ok(&trailers) || ok(&headers)) && is_serving(&body);
    Some(if serves { Finding::Healthy } else { Finding::Failed { retriable: false } })
}

/// A framed `HealthCheckRequest`; its only field, the service, is number 1.
fn health_request(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut left = service.len();
        while left > 0x7f {
            message.push(left as u8 | 0x80);
            left >>= 7;
        }
        message.push(left as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend(message);
    framed.into()
}

/// Does a framed `HealthCheckResponse` say SERVING (field 1 is 1)?
fn is_serving(body: &[u8]) -> bool {
    body.first() == Some(&0) && body.get(5..).is_some_and(|message| message.starts_with(&[0x08, 0x01]))
}

fn absolute(target: &Target, authority: &str, path: &str) -> Option<Uri> {
    let scheme = if target.host.transport.is_tls() { "https" } else { "http" };
    Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build().ok()
}

/// A whole response.
struct Exchanged {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
    trailers: HeaderMap,
}

type Exchanging = std::pin::Pin<Box<dyn Future<Output = Option<Exchanged>> + Send>>;

fn over_http1(stream: UpstreamStream, request: Request<Full<Bytes>>) -> Exchanging {
    Box::pin(async move {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        let exchange = async move { whole(sender.send_request(request).await).await };
        drive(exchange, connection).await
    })
}

fn over_http2(stream: UpstreamStream, request: Request<Full<Bytes>>) -> Exchanging {
    Box::pin(async move {
        let io = TokioIo::new(stream);
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.ok()?;
        let exchange = async move { whole(sender.send_request(request).await).await };
        drive(exchange, connection).await
    })
}

/// Runs an exchange together with its connection, which must be polled for it.
async fn drive<T>(
    exchange: impl Future<Output = Option<T>>,
    connection: impl Future<Output = Result<(), hyper::Error>>,
) -> Option<T> {
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        outcome = &mut exchange => outcome,
        // The connection may end with the response.
        _ = connection => exchange.await,
    }
}

async fn whole(response: Result<Response<Incoming>, hyper::Error>) -> Option<Exchanged> {
    let (parts, body) = response.ok()?.into_parts();
    let body = body.collect().await.ok()?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    Some(Exchanged { status: parts.status.as_u16(), headers: parts.headers, body: body.to_bytes(), trailers })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_an_answer_must_come_in_order() {
        let parts = [b"+PO".to_vec(), b"NG".to_vec()];
        assert!(has_in_order(b"x+PO..NG", &parts));
        assert!(!has_in_order(b"NG+PO", &parts));
        assert!(has_in_order(b"", &[]));
    }

    #[test]
    fn grpc_messages_are_framed_and_read_as_their_definition_says() {
        assert_eq!(&health_request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&health_request("svc")[..], [0, 0, 0, 0, 5, 0x0a, 3, b's', b'v', b'c']);
        let long = health_request(&"s".repeat(200));
        assert_eq!(&long[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 0x01]);
        assert!(is_serving(&[0, 0, 0, 0, 2, 0x08, 1]));
        assert!(!is_serving(&[0, 0, 0, 0, 2, 0x08, 2]));
        assert!(!is_serving(&[0, 0, 0, 0, 0]));
    }
}
