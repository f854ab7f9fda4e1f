//! Copies of requests to other clusters (`request_mirror_policies`). Nobody waits for their answers, and their
//! failures are nobody's.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt as _;

use super::super::request::Request;
use super::Forwarding;
use crate::cluster::{LbContext, RoutingPriority};
use crate::http::body::{Body, BodyError};
use crate::model::route::Mirror;
use crate::router::strip_port;
use crate::runtime::Setting;
use crate::upstream::{Target, UpstreamPath, implied_alpn};

/// What a copy may lag behind its request; one that falls back further is given up.
const MAX_LAG_BYTES: usize = 1 << 20;

/// Sends the copies that the route asks for. The body that is returned in the request feeds them.
pub(super) fn start(forwarding: &Forwarding<'_>, request: &mut Request) {
    let mirrors = forwarding.forward.mirrors.iter().filter(|mirror| drawn(mirror));
    for mirror in mirrors {
        one(forwarding, mirror, request);
    }
}

fn drawn(mirror: &Mirror) -> bool {
    mirror.fraction.as_ref().is_none_or(Setting::drawn)
}

fn one(forwarding: &Forwarding<'_>, mirror: &Mirror, request: &mut Request) {
    let stream = forwarding.stream();
    let ctx = stream.manager.ctx.clone();
    let name = match &mirror.header {
        None => Some(mirror.cluster.to_string()),
        Some(header) => {
            request.parts.headers.get(header).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
        }
    };
    let Some(cluster) = name.and_then(|name| ctx.clusters.get(&name)) else { return };
    let connection = &stream.manager.connection;
    let context = LbContext { original_dst: connection.original_dst, ..LbContext::default() };
    let Ok(host) = cluster.choose(&context) else { return };
    let mut parts = request.parts.clone();
    if request.parts.method != Method::CONNECT {
        let authority = match &mirror.host_rewrite {
            Some(host) => host.to_string(),
            None if mirror.keep_host => request.authority().to_owned(),
            None => shadow_host(request.authority()),
        };
        if let Ok(authority) = HeaderValue::from_str(&authority) {
            parts.headers.insert(http::header::HOST, authority);
        }
    }
    let body = if request.body.is_end_stream() { Body::Empty } else { tap(request) };
    let target = Target {
        client: None,
        workload: connection.workload.clone(),
        implied_alpn: implied_alpn(cluster.config.protocol, stream.version),
        cluster,
        host,
        path: UpstreamPath::Network,
        alpn: None,
    };
    let version = stream.version;
    let limit = forwarding.timeouts.global.unwrap_or(Duration::from_secs(15));
    tokio::task::spawn_local(async move {
        let message = http::Request::from_parts(parts, body);
        let exchange = async {
            let exchange = ctx.upstreams.request(&target, RoutingPriority::Default, version, message).await;
            if let Ok(exchange) = exchange {
                target.cluster.stats.count_response(exchange.response.status().as_u16());
                let mut body = exchange.response.into_body();
                // Read to its end, so that the connection can be used again.
                while let Some(Ok(_)) = body.frame().await {}
            }
        };
        if tokio::time::timeout(limit, exchange).await.is_err() {
            target.cluster.stats.upstream_rq_timeout.inc();
        }
    });
}

/// `host-shadow:port`
fn shadow_host(authority: &str) -> String {
    let host = strip_port(authority, None).unwrap_or(authority);
    format!("{host}-shadow{}", &authority[host.len()..])
}

/// Puts a tap on the request's body; what it gives is the body of a copy.
fn tap(request: &mut Request) -> Body {
    let queue = Rc::new(RefCell::new(Queue::default()));
    let inner = std::mem::take(&mut request.body);
    request.body = Body::boxed(Tapped { inner, queue: Rc::downgrade(&queue) });
    Body::boxed(Copied(queue))
}

/// What a copy has still to send.
#[derive(Default)]
struct Queue {
    frames: VecDeque<Bytes>,
    bytes: usize,
    ended: bool,
    /// The request broke off, or the copy fell too far back.
    broken: bool,
    waker: Option<Waker>,
}

impl Queue {
    fn changed(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// A request body that others hear too.
struct Tapped {
    inner: Body,
    /// Gone, when the copy has ended.
    queue: Weak<RefCell<Queue>>,
}

impl http_body::Body for Tapped {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(queue) = self.queue.upgrade() {
            let mut queue = queue.borrow_mut();
            match &frame {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        queue.bytes += data.len();
                        queue.broken |= queue.bytes > MAX_LAG_BYTES;
                        queue.frames.push_back(data.clone());
                    }
                    queue.ended |= frame.is_trailers() || self.inner.is_end_stream();
                }
                Some(Err(_)) => queue.broken = true,
                None => queue.ended = true,
            }
            queue.changed();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Tapped {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.upgrade() {
            let mut queue = queue.borrow_mut();
            queue.broken |= !queue.ended;
            queue.changed();
        }
    }
}

/// The body of a copy.
struct Copied(Rc<RefCell<Queue>>);

impl http_body::Body for Copied {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut queue = self.0.borrow_mut();
        if queue.broken {
            queue.frames.clear();
            return Poll::Ready(Some(Err(BodyError::Aborted("the request that is mirrored broke off"))));
        }
        match queue.frames.pop_front() {
            Some(data) => {
                queue.bytes -= data.len();
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            None if queue.ended => Poll::Ready(None),
            None => {
                queue.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_says_by_its_host_that_it_is_one() {
        assert_eq!(shadow_host("reviews"), "reviews-shadow");
        assert_eq!(shadow_host("reviews:9080"), "reviews-shadow:9080");
        assert_eq!(shadow_host("[::1]:80"), "[::1]-shadow:80");
    }
}
