//! One request and its answer: what is known of it, when it must end, and its end (statistics, access log).
//!
//! Shared, on one thread, by the future that answers it and the two bodies that outlive that future. Whoever
//! holds the [`Owner`] decides the end: dropping it unfinished means that the client went away.

use std::cell::{Cell, Ref, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Version};
use http_body::Body as _;

use super::ConnectionManager;
use super::chain;
use super::request::Request;
use super::request_headers::{X_REQUEST_ID, is_upgrade};
use super::router::TryLimit;
use super::routes::KeptRoute;
use super::stream_parts::Limits;
pub use super::stream_parts::{Expired, Upstream};
use super::timer::Timer;
use super::trace::{self, Trace};
use crate::cluster::{ClusterState, Host, Outcome, Report};
use crate::http::body::{Body, BodyError};
use crate::model::Str;
use crate::model::format::Format;
use crate::model::route::Forward;
use crate::telemetry::format::{Context as FormatContext, Missing, RequestHead, RequestView, evaluate};
use crate::telemetry::stream_info::{ResponseFlags, StreamInfo};
use crate::turn;

/// How much of a request that nobody wants is read: Envoy's default buffer of a connection.
const DISCARDED_BYTES: usize = 1 << 20;

/// The state of one stream.
#[derive(Debug)]
pub struct Stream {
    pub manager: Rc<ConnectionManager>,
    pub info: RefCell<StreamInfo>,
    pub start: Instant,
    pub version: Version,
    /// The client waits for gRPC framing of errors.
    pub grpc: bool,
    pub head: bool,
    /// The request switches protocols: its body has no end of its own.
    pub upgrade: bool,
    pub connect: bool,
    last_activity: Cell<Instant>,
    request_complete: Cell<Option<Instant>>,
    request_failed: Cell<bool>,
    response_started: Cell<bool>,
    limits: Cell<Limits>,
    /// Woken when a deadline may have come nearer.
    waker: RefCell<Option<Waker>>,
    logged: RefCell<Logged>,
    upstream: RefCell<Option<Upstream>>,
    request_id: RefCell<Option<HeaderValue>>,
    /// What the response says that the request is called.
    decoration: RefCell<Option<HeaderValue>>,
    route: RefCell<Option<KeptRoute>>,
    trace: RefCell<Option<Box<Trace>>>,
    /// What its filters keep.
    pub chain: chain::State,
    grpc_status: Cell<Option<u8>>,
    /// Something was waited for before the answer.
    waited: Cell<bool>,
    /// A filter reads the body, and what it makes of it goes on: the bytes are counted where it reads.
    pub counted: Cell<bool>,
    /// What nobody has read of a request whose tries are over.
    unread: RefCell<Option<Body>>,
    /// How often a redirect was followed here.
    pub redirects: Cell<u32>,
    /// Names of routes that redirected, and of those that they led to.
    pub led_to: RefCell<Vec<(Str, Str)>>,
}

/// Headers as the access log sees them.
#[derive(Debug, Default)]
struct Logged {
    request: Option<RequestHead>,
    response: Option<HeaderMap>,
    trailers: Option<HeaderMap>,
}

impl Stream {
    /// A stream that begins now.
    pub fn begin(manager: Rc<ConnectionManager>, request: &http::Request<Body>) -> Owner {
        let mut info = StreamInfo::new(manager.connection.clone());
        info.protocol = Some(request.version());
        info.last_downstream_rx = Some(Duration::ZERO);
        let start = info.start;
        let hcm = &manager.hcm;
        let stats = &hcm.stats;
        stats.downstream_rq_total.inc();
        stats.downstream_rq_active.inc();
        match request.version() {
            Version::HTTP_2 => stats.downstream_rq_http2_total.inc(),
            _ => stats.downstream_rq_http1_total.inc(),
        }
        let connect = request.method() == http::Method::CONNECT;
        let upgrade = connect || is_upgrade(request.headers());
        let bodyless = !upgrade && request.body().is_end_stream();
        let limits = Limits {
            idle: hcm.stream_idle_timeout,
            request: hcm.request_timeout,
            max_duration: hcm.max_stream_duration,
            ..Limits::default()
        };
        Owner(Rc::new(Self {
            info: RefCell::new(info),
            start,
            version: request.version(),
            grpc: crate::router::is_grpc(request.headers()),
            head: request.method() == http::Method::HEAD,
            upgrade,
            connect,
            last_activity: Cell::new(start),
            request_complete: Cell::new(bodyless.then_some(start)),
            request_failed: Cell::new(false),
            response_started: Cell::new(false),
            limits: Cell::new(limits),
            waker: RefCell::default(),
            logged: RefCell::default(),
            upstream: RefCell::default(),
            request_id: RefCell::default(),
            decoration: RefCell::default(),
            route: RefCell::default(),
            trace: RefCell::default(),
            chain: chain::State::default(),
            grpc_status: Cell::new(None),
            waited: Cell::new(false),
            counted: Cell::default(),
            unread: RefCell::default(),
            redirects: Cell::default(),
            led_to: RefCell::default(),
            manager,
        }))
    }

    /// Replaces the connection manager's idle limit by the route's, where it has its own.
    pub fn limit_by_route(&self, forward: &Forward) {
        if let Some(idle) = forward.idle_timeout {
            let idle = (!idle.is_zero()).then_some(idle);
            self.limits.set(Limits { idle, ..self.limits.get() });
        }
    }

    /// Bounds the response from the end of the request on, and the whole stream where the route does.
    pub fn limit_response(&self, response: Option<Duration>, max_duration: Option<Option<Duration>>) {
        let limits = self.limits.get();
        let max_duration = max_duration.unwrap_or(limits.max_duration);
        self.limits.set(Limits { response, max_duration, ..limits });
    }

    /// Bounds what is left of the try that has begun to answer.
    pub fn limit_try(&self, try_idle: Option<Duration>, try_end: Option<Instant>) {
        self.limits.set(Limits { try_idle, try_end, ..self.limits.get() });
    }

    /// When something moved last, in either direction.
    pub fn last_activity(&self) -> Instant {
        self.last_activity.get()
    }

    /// Something moved in either direction.
    pub fn touch(&self) {
        self.last_activity.set(turn::now());
    }

    /// When the request was received whole.
    pub fn request_complete(&self) -> Option<Instant> {
        self.request_complete.get()
    }

    /// The last byte of the request was received.
    pub fn complete_request(&self) {
        if self.request_complete.get().is_none() {
            let now = turn::now();
            self.request_complete.set(Some(now));
            self.info.borrow_mut().last_downstream_rx = Some(now - self.start);
            // The response's time begins now.
            if let Some(waker) = self.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// The last byte of the request goes to the upstream.
    pub fn note_request_sent(&self) {
        self.info.borrow_mut().last_upstream_tx = Some(turn::since(self.start));
    }

    /// Keeps what a try has not read of its request.
    pub fn leave_unread(&self, body: Body) {
        *self.unread.borrow_mut() = Some(body);
    }

    /// Reads what is already here of a request that is answered without it, so that its connection can go on.
    /// Envoy's codec has read that much while the answer was awaited; an answer at once leaves it.
    pub async fn discard_unread(&self) {
        let Some(mut body) = self.unread.take().filter(|_| self.waited.get()) else { return };
        let mut left = DISCARDED_BYTES;
        poll_fn(|cx| {
            while left > 0
                && let Poll::Ready(frame) = Pin::new(&mut body).poll_frame(cx)
            {
                match frame {
                    Some(Ok(frame)) => {
                        let length = frame.data_ref().map_or(0, bytes::Bytes::len);
                        self.info.borrow_mut().bytes_received += length as u64;
                        left = left.saturating_sub(length.max(1));
                    }
                    Some(Err(_)) => break,
                    None => {
                        self.complete_request();
                        break;
                    }
                }
            }
            Poll::Ready(())
        })
        .await;
    }

    /// The request broke off: its client went away, or broke the protocol.
    pub fn fail_request(&self, error: &BodyError) {
        self.request_failed.set(true);
        if let BodyError::Malformed(_) = error {
            self.fail(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, "http1.codec_error");
            if !self.response_started.get() {
                // The codec asks for the refusal once the stream is gone; it is this stream's.
                self.manager.refusing.set(true);
                let mut info = self.info.borrow_mut();
                info.response_code = Some(400);
                info.bytes_sent = "Bad Request".len() as u64;
                self.manager.hcm.stats.count_response(400);
            }
        }
    }

    /// Nobody waits for the answer.
    pub fn client_is_gone(&self) -> bool {
        self.request_failed.get()
    }

    pub fn response_started(&self) -> bool {
        self.response_started.get()
    }

    /// Notes the head of the response that goes downstream.
    pub fn start_response(&self, response: &http::Response<Body>) {
        self.response_started.set(true);
        self.touch();
        self.note_grpc_status(response.headers());
        let status = response.status();
        let stats = &self.manager.hcm.stats;
        stats.count_response(status.as_u16());
        let mut info = self.info.borrow_mut();
        info.response_code = Some(status.as_u16());
        info.first_downstream_tx = Some(turn::since(self.start));
        if !self.manager.hcm.access_log.is_empty() || self.is_sampled() {
            info.response_headers_bytes = header_bytes(response.headers());
            self.logged.borrow_mut().response = Some(response.headers().clone());
        }
    }

    /// Keeps the request's head, as it is sent upstream, for the access log, if there is one.
    pub fn log_request(&self, request: &Request) {
        let hcm = &self.manager.hcm;
        if !hcm.access_log.is_empty() || hcm.local_replies.is_some() || self.is_sampled() {
            self.keep_request(request);
        }
    }

    /// Keeps the request's head for formats.
    pub fn keep_request(&self, request: &Request) {
        self.info.borrow_mut().request_headers_bytes = header_bytes(&request.parts.headers);
        self.logged.borrow_mut().request = Some(RequestHead {
            method: request.parts.method.clone(),
            scheme: request.scheme.into(),
            authority: request.authority().to_owned(),
            path: request.path().to_owned(),
            headers: request.parts.headers.clone(),
        });
    }

    /// Keeps the route that changes response headers, with the request that their formats may speak of.
    pub fn keep_route(&self, route: Option<KeptRoute>, request: &Request) {
        if route.is_some() {
            self.keep_request(request);
        }
        *self.route.borrow_mut() = route;
    }

    pub fn kept_route(&self) -> Ref<'_, Option<KeptRoute>> {
        self.route.borrow()
    }

    /// Will the route change response headers?
    pub fn changes_response(&self) -> bool {
        self.route.borrow().is_some()
    }

    /// Keeps the request's id for the response, if that is to tell it.
    pub fn keep_request_id(&self, headers: &HeaderMap) {
        if self.manager.hcm.always_set_request_id_in_response {
            *self.request_id.borrow_mut() = headers.get(X_REQUEST_ID).cloned();
        }
    }

    pub fn request_id(&self) -> Option<HeaderValue> {
        self.request_id.borrow().clone()
    }

    /// The response is to say that the request is called so.
    pub fn decorate(&self, operation: Option<HeaderValue>) {
        *self.decoration.borrow_mut() = operation;
    }

    pub fn decoration(&self) -> Option<HeaderValue> {
        self.decoration.borrow().clone()
    }

    /// The stream is this span.
    pub fn trace(&self, trace: Trace) {
        *self.trace.borrow_mut() = Some(Box::new(trace));
    }

    pub fn traced(&self) -> Ref<'_, Option<Box<Trace>>> {
        self.trace.borrow()
    }

    pub fn change_trace(&self, change: impl FnOnce(&mut Trace)) {
        if let Some(trace) = &mut *self.trace.borrow_mut() {
            change(trace);
        }
    }

    pub fn take_trace(&self) -> Option<Trace> {
        self.trace.borrow_mut().take().map(|trace| *trace)
    }

    fn is_sampled(&self) -> bool {
        self.trace.borrow().as_ref().is_some_and(|trace| trace.is_sampled())
    }

    /// What statistics call the cluster that serves the stream.
    pub fn stat_name(&self) -> Option<Str> {
        self.upstream.borrow().as_ref().map(|upstream| upstream.cluster.config.stat_name.clone())
    }

    /// Shows what is known of the stream, with the response that is being made and its body.
    pub fn with_context<T>(
        &self,
        response: &HeaderMap,
        local_reply: Option<&str>,
        f: impl FnOnce(&FormatContext<'_>) -> T,
    ) -> T {
        let logged = self.logged.borrow();
        let info = self.info.borrow();
        let upstream = self.upstream.borrow();
        f(&FormatContext {
            request: logged.request.as_ref().map(Into::into),
            response: Some(response),
            upstream: upstream.as_ref().map(Upstream::view),
            local_reply,
            ..FormatContext::of(&info)
        })
    }

    /// Appends the value of a header's format. Without `request` the kept one counts.
    pub fn evaluate(
        &self,
        format: &Format,
        request: Option<(&Request, &HeaderMap)>,
        response: Option<&HeaderMap>,
        out: &mut String,
    ) {
        let logged = self.logged.borrow();
        let info = self.info.borrow();
        let view = request.map(|(request, headers)| RequestView {
            method: request.parts.method.as_str(),
            scheme: request.scheme,
            authority: request.authority(),
            path: request.path(),
            headers,
        });
        let request = view.or_else(|| logged.request.as_ref().map(Into::into));
        let upstream = self.upstream.borrow();
        let upstream = upstream.as_ref().map(Upstream::view);
        let context = FormatContext { request, response, upstream, ..FormatContext::of(&info) };
        evaluate(format, &context, Missing::Empty, out);
    }

    /// Notes the cluster that serves the stream.
    pub fn set_upstream(&self, cluster: &Arc<ClusterState>, tell_attempts: bool) {
        self.info.borrow_mut().upstream.cluster = Some(cluster.name().clone());
        *self.upstream.borrow_mut() = Some(Upstream { cluster: cluster.clone(), host: None, tell_attempts });
    }

    /// Notes the host of the next try.
    pub fn set_host(&self, host: &Arc<Host>) {
        let info = &mut self.info.borrow_mut().upstream;
        info.earlier.extend(info.host.replace(host.address));
        if let Some(upstream) = &mut *self.upstream.borrow_mut() {
            upstream.host = Some(host.clone());
        }
    }

    /// Notes that it is this host, of those that were tried, that answers.
    pub fn return_to(&self, host: &Arc<Host>) {
        let info = &mut self.info.borrow_mut().upstream;
        if info.host != Some(host.address) {
            info.earlier.retain(|earlier| *earlier != host.address);
            info.earlier.extend(info.host.replace(host.address));
        }
        if let Some(upstream) = &mut *self.upstream.borrow_mut() {
            upstream.host = Some(host.clone());
        }
    }

    pub fn upstream(&self) -> Ref<'_, Option<Upstream>> {
        self.upstream.borrow()
    }

    /// The route's timeout passed.
    pub fn upstream_timed_out(&self) {
        if let Some(upstream) = &*self.upstream.borrow() {
            upstream.cluster.stats.upstream_rq_timeout.inc();
            if let Some(host) = &upstream.host {
                host.counters.finish(Outcome::Timeout);
                if !self.response_started.get() {
                    upstream.cluster.report(host, Report::Timeout);
                }
            }
        }
    }

    /// The upstream's response is complete.
    pub fn complete_upstream(&self) {
        self.info.borrow_mut().last_upstream_rx = Some(turn::since(self.start));
        let since = self.request_complete.get().unwrap_or(self.start);
        if let Some(upstream) = &*self.upstream.borrow() {
            upstream.cluster.stats.upstream_rq_time.record_ms(turn::since(since));
        }
    }

    /// The status that a gRPC stream ended with.
    pub fn grpc_status(&self) -> Option<u8> {
        self.grpc_status.get()
    }

    fn note_grpc_status(&self, headers: &HeaderMap) {
        if self.grpc
            && let Some(status) =
                headers.get("grpc-status").and_then(|v| v.to_str().ok()?.trim().parse().ok())
        {
            self.grpc_status.set(Some(status));
        }
    }

    pub fn log_trailers(&self, trailers: &HeaderMap) {
        self.note_grpc_status(trailers);
        if !self.manager.hcm.access_log.is_empty() || self.is_sampled() {
            self.logged.borrow_mut().trailers = Some(trailers.clone());
        }
    }

    /// Adds a flag and says why.
    pub fn fail(&self, flag: ResponseFlags, details: impl Into<std::borrow::Cow<'static, str>>) {
        let mut info = self.info.borrow_mut();
        info.flags.set(flag);
        info.response_code_details = Some(details.into());
    }

    /// The next deadline, and what it is.
    fn deadline(&self) -> Option<(Instant, Expired)> {
        let limits = self.limits.get();
        let complete = self.request_complete.get();
        let idle = limits.idle.map(|d| (self.last_activity.get() + d, Expired::Idle));
        let request =
            limits.request.filter(|_| complete.is_none()).map(|d| (self.start + d, Expired::Request));
        let max = limits.max_duration.map(|d| (self.start + d, Expired::MaxDuration));
        let response = limits.response.zip(complete).map(|(d, from)| (from + d, Expired::Response));
        let activity = self.last_activity.get();
        let try_idle = limits.try_idle.map(|d| (activity + d, Expired::Try(TryLimit::Idle)));
        let try_end = limits.try_end.map(|at| (at, Expired::Try(TryLimit::MaxDuration)));
        [idle, request, max, response, try_idle, try_end].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Ready when a limit is reached.
    pub fn poll_expired(&self, cx: &mut Context<'_>, timer: &mut Timer) -> Poll<Expired> {
        if self.request_complete.get().is_none() {
            *self.waker.borrow_mut() = Some(cx.waker().clone());
        }
        while let Some((at, what)) = self.deadline() {
            match timer.poll(cx, at) {
                Poll::Pending => return Poll::Pending,
                // Unless it moved meanwhile.
                Poll::Ready(()) if self.deadline() == Some((at, what)) => return Poll::Ready(what),
                Poll::Ready(()) => {}
            }
        }
        Poll::Pending
    }

    /// The output of `future`, or the limit that was reached first.
    pub async fn within<F: Future>(
        &self,
        timer: &mut Timer,
        mut future: Pin<&mut F>,
    ) -> Result<F::Output, Expired> {
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => {
                self.waited.set(true);
                self.poll_expired(cx, timer).map(Err)
            }
        })
        .await
    }
}

fn header_bytes(headers: &HeaderMap) -> u64 {
    headers.iter().map(|(name, value)| (name.as_str().len() + value.len()) as u64).sum()
}

/// The right to end a stream.
#[derive(Debug)]
pub struct Owner(Rc<Stream>);

impl std::ops::Deref for Owner {
    type Target = Rc<Stream>;
    fn deref(&self) -> &Rc<Stream> {
        &self.0
    }
}

impl Owner {
    /// The client has the whole answer, or the reason why not is in `info`.
    pub fn finish(self) {
        let mut info = self.0.info.borrow_mut();
        info.ended = true;
        info.last_downstream_tx = Some(turn::since(self.0.start));
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let stream = &self.0;
        let mut info = stream.info.borrow_mut();
        let stats = &stream.manager.hcm.stats;
        stats.downstream_rq_active.dec();
        let end = turn::since(stream.start);
        info.end = Some(end);
        if !info.ended {
            stats.downstream_rq_rx_reset.inc();
        }
        if !info.ended && !info.flags.contains(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR) {
            let (flag, details) = match stream.manager.reset.take() {
                true => (ResponseFlags::DOWNSTREAM_REMOTE_RESET, "http2.remote_reset"),
                false => (ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION, "downstream_remote_disconnect"),
            };
            info.flags.set(flag);
            info.response_code_details = Some(details.into());
        }
        stats.downstream_rq_time.record_ms(end);
        chain::report(stream, &info);
        let logged = stream.logged.borrow();
        let upstream = stream.upstream.borrow();
        let upstream = upstream.as_ref().map(Upstream::view);
        if stream.is_sampled() {
            trace::finish(
                stream,
                &FormatContext {
                    info: &info,
                    request: logged.request.as_ref().map(Into::into),
                    response: logged.response.as_ref(),
                    trailers: logged.trailers.as_ref(),
                    upstream,
                    local_reply: None,
                },
            );
        }
        for log in &stream.manager.hcm.access_log {
            let (request, response) = (logged.request.as_ref(), logged.response.as_ref());
            log.log(&info, request, response, logged.trailers.as_ref(), upstream);
        }
    }
}
