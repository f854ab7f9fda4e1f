//! Tries: chooses a host, sends the request, and again where the retry policy says so (Envoy: `RetryStateImpl`).

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Response};
use http_body::Body as _;
use smallvec::SmallVec;

use super::super::local_reply::LocalReply;
use super::super::request::Request;
use super::super::request_body::{Observed, Replayable};
use super::super::reset::ResetReason;
use super::super::stream::Stream;
use super::super::trace;
use super::limits::{TryLimit, TryLimits};
use super::{ATTEMPT_COUNT, EXPECTED_TIMEOUT, Forwarding, local, tunnel};
use crate::cluster::{Host, LbContext, Outcome, Report, RetryGuard, Spread};
use crate::http::body::Body;
use crate::model::cluster::{Discovery, UpstreamProtocol};
use crate::model::hash;
use crate::model::http_filter::AlpnList;
use crate::model::listener::Direction;
use crate::model::metadata;
use crate::model::route::{HashCookie, HostRewrite, RetryPolicy};
use crate::router::{self, RetryPlan, back_off};
use crate::telemetry::stream_info::ResponseFlags;
use crate::turn;
use crate::upstream::{ErrorKind, Exchange, Target, UpstreamError, UpstreamPath, implied_alpn};

/// A response header by which a host asks for no more requests.
const IMMEDIATE_FAIL: &str = "x-envoy-immediate-health-check-fail";

/// Where the bodies of tries come from.
pub(super) enum Source {
    Empty,
    Once(Option<Observed>),
    Again(Replayable),
}

/// How a try ended without a response.
pub(super) enum Failure {
    Reset(UpstreamError),
    TimedOut(TryLimit),
}

/// What the retry state says of a finished try.
pub(super) enum Verdict {
    Again(Duration),
    /// Another try is not asked for.
    Stands,
    /// It would be, and may not be.
    Spent,
}

/// The tries of one request.
pub(super) struct Tries {
    pub(super) plan: Option<RetryPlan>,
    policy: Option<Arc<RetryPolicy>>,
    retries: u32,
    /// Held from the decision to retry to the outcome of the retry.
    guard: Option<RetryGuard>,
    pub(super) tried: SmallVec<[SocketAddr; 2]>,
    spread: Option<Spread>,
}

impl Source {
    pub(super) fn body(&mut self) -> Body {
        match self {
            Self::Empty => Body::Empty,
            Self::Once(body) => body.take().map_or(Body::Empty, Body::boxed),
            Self::Again(body) => Body::boxed(body.attempt()),
        }
    }

    fn can_be_sent_again(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Once(_) => false,
            Self::Again(body) => body.can_replay(),
        }
    }
}

impl Forwarding<'_> {
    /// Sends the request to one host after the other until one answers for good.
    pub(super) async fn try_hosts(&self, request: &mut Request) -> Result<Response<Body>, LocalReply> {
        let stream = self.stream();
        let mut source = self.source(std::mem::take(&mut request.body));
        let mut tries = Tries::of(self);
        if self.hedges && !stream.upgrade {
            return Box::pin(self.hedged(request, source, tries)).await;
        }
        loop {
            let Some((host, message)) = self.begin_try(request, &mut source, &mut tries) else {
                return Err(local::no_healthy_upstream(stream));
            };
            let outcome = self.send(host, message).await;
            let verdict = match &outcome {
                Ok(response) => tries.judge(self, &source, |plan| {
                    plan.retries_response(response.status(), response.headers())
                }),
                Err(failure) => tries.judge(self, &source, |plan| failure.asks(plan)),
            };
            match &outcome {
                Ok(response) if matches!(verdict, Verdict::Again(_)) => {
                    trace::end_try(stream, trace::Ended::Response(response.status().as_u16()));
                }
                Ok(_) => {}
                Err(failure) => trace::end_try(stream, failure.ended()),
            }
            match (verdict, outcome) {
                (Verdict::Again(pause), outcome) => {
                    // A response that is not wanted is reset before the pause, not after.
                    drop(outcome);
                    Box::pin(tokio::time::sleep(pause)).await;
                }
                (_, Ok(response)) => return Ok(response),
                (_, Err(failure)) => return Err(failure.reply(stream)),
            }
        }
    }

    /// Chooses the host of the next try and makes its message. `None`: there is no host.
    pub(super) fn begin_try(
        &self,
        request: &mut Request,
        source: &mut Source,
        tries: &mut Tries,
    ) -> Option<(Arc<Host>, http::Request<Body>)> {
        let stream = self.stream();
        stream.info.borrow_mut().upstream.attempts += 1;
        let host = self.choose(request, tries)?;
        tries.tried.push(host.address);
        stream.set_host(&host);
        let message = self.message(request, &host, tries, source.body());
        Some((host, message))
    }

    fn source(&self, body: Body) -> Source {
        let stream = self.stream();
        if body.is_end_stream() && !stream.upgrade {
            return Source::Empty;
        }
        let observed = Observed::new(body, stream.clone());
        match self.plan {
            Some(_) if !stream.upgrade => {
                let limit = self.cluster.config.per_connection_buffer_limit_bytes as usize;
                Source::Again(Replayable::new(observed, limit))
            }
            _ => Source::Once(Some(observed)),
        }
    }

    fn choose(&self, request: &Request, tries: &Tries) -> Option<Arc<Host>> {
        let policy = tries.policy.as_deref().filter(|_| !tries.tried.is_empty());
        let header = match &self.cluster.config.discovery {
            Discovery::OriginalDst { http_header: Some(name), .. } => {
                request.parts.headers.get(name).and_then(|v| v.to_str().ok())
            }
            _ => None,
        };
        let of_route = match self.routing.routed.weighted {
            Some(weighted) => weighted.metadata_match.as_ref(),
            None => self.forward.metadata_match.as_ref(),
        };
        // What filters found out of the request comes before what the route asks for.
        let info = self.stream().info.borrow();
        let of_request = info.metadata.as_ref().and_then(|metadata| metadata.get("envoy.lb"));
        let of_request = of_request.map(|fields| metadata::over(fields, of_route));
        drop(info);
        let context = LbContext {
            original_dst: match self.cluster.config.discovery {
                Discovery::ForwardProxy(_) => self.stream().chain.forward_to(),
                _ => self.stream().manager.connection.original_dst,
            },
            original_dst_header: header,
            exclude: if policy.is_some_and(|policy| policy.previous_hosts) { &tries.tried } else { &[] },
            spread: tries.spread.as_ref(),
            avoid: policy.map_or(&[], |policy| &policy.avoid),
            exclude_attempts: policy.map_or(0, |policy| policy.host_selection_retry_max_attempts),
            metadata_match: of_request.as_ref().or(of_route).map(|criteria| &criteria[..]),
            override_host: self.stream().chain.session_host().filter(|_| tries.tried.is_empty()),
            hash: self.cluster.config.lb.hashes().then(|| self.hash(request)).flatten(),
        };
        self.cluster.choose(&context).ok()
    }

    /// The hash of the request, by the cluster's own policies or the route's.
    fn hash(&self, request: &Request) -> Option<u64> {
        let own = &self.cluster.config.balancing.hashing.policies;
        let policies = if own.is_empty() { &self.forward.hash_policy } else { own };
        let client = self.stream().info.borrow().remote.ip();
        router::hash_key(policies, &request.head(), client, |cookie| self.new_cookie(cookie))
    }

    /// The value of a cookie that the client is to get: the same for all requests of its connection, so that
    /// those under way at the same time come to one host.
    fn new_cookie(&self, cookie: &HashCookie) -> String {
        let connection = &self.stream().manager.connection;
        let value = hash::xxhash64(format!("{}{}", connection.remote, connection.local).as_bytes(), 0);
        let value = format!("{value:016x}");
        let mut cookies = self.new_cookies.borrow_mut();
        // Once, however often the request is tried.
        if let Some(line) = router::set_cookie(cookie, &value).filter(|line| !cookies.contains(line)) {
            cookies.push(line);
        }
        value
    }

    /// The message of one try. Only a request that may be tried again is copied.
    fn message(&self, request: &mut Request, host: &Host, tries: &Tries, body: Body) -> http::Request<Body> {
        let attempts = self.stream().info.borrow().upstream.attempts;
        if attempts > 1 {
            self.tell_retry(request, attempts);
        }
        if matches!(self.forward.host_rewrite, HostRewrite::Auto) {
            self.rewrite_host(request, host.hostname.as_deref());
        }
        trace::begin_try(self.stream(), &mut request.parts.headers, host.address, attempts);
        let parts = match &tries.plan {
            Some(plan) if plan.remaining > tries.retries => request.parts.clone(),
            _ => {
                let (empty, ()) = http::Request::new(()).into_parts();
                std::mem::replace(&mut request.parts, empty)
            }
        };
        http::Request::from_parts(parts, body)
    }

    /// A retry says which one it is, and has less time.
    fn tell_retry(&self, request: &mut Request, attempts: u32) {
        let headers = &mut request.parts.headers;
        if self.routing.routed.virtual_host.include_request_attempt_count {
            headers.insert(ATTEMPT_COUNT, HeaderValue::from(attempts));
        }
        if self.timeouts.per_try.is_none()
            && let (Some(global), Some(since)) = (self.timeouts.global, self.stream().request_complete())
            && headers.contains_key(EXPECTED_TIMEOUT)
        {
            let left = global.saturating_sub(turn::since(since)).as_millis();
            headers
                .insert(EXPECTED_TIMEOUT, HeaderValue::from(u64::try_from(left.max(1)).unwrap_or(u64::MAX)));
        }
    }

    /// The status of a response as outlier detection sees it: of gRPC its own, if that came with the head.
    fn status(&self, response: &Response<Body>) -> u16 {
        if let Some(errors) = &self.cluster.config.error_matcher {
            let error = router::response_predicate(errors, response.status(), response.headers());
            return if error { 500 } else { 200 };
        }
        let grpc = response.headers().get("grpc-status").filter(|_| self.stream().grpc);
        match grpc.and_then(|status| status.to_str().ok()?.parse().ok()) {
            Some(status) => grpc_to_http(status),
            None => response.status().as_u16(),
        }
    }

    /// What is offered to a host that is spoken to by TLS (`istio.alpn`).
    fn alpn(&self, host: &Host) -> Option<AlpnList> {
        let cluster = &self.cluster.config;
        if cluster.istio.keep_alpn || !host.transport.is_tls() {
            return None;
        }
        let http2 = match cluster.protocol {
            UpstreamProtocol::Http1 => false,
            UpstreamProtocol::Http2 | UpstreamProtocol::Auto => true,
            UpstreamProtocol::Downstream => self.stream().version == http::Version::HTTP_2,
        };
        self.stream().chain.alpn(http2)
    }

    /// Where a try goes.
    pub(super) fn target(&self, host: Arc<Host>) -> Target {
        let stream = self.stream();
        let connection = &stream.manager.connection;
        Target {
            client: None,
            workload: connection.workload.clone(),
            cluster: self.cluster.clone(),
            alpn: self.alpn(&host),
            implied_alpn: implied_alpn(self.cluster.config.protocol, stream.version),
            host,
            path: match connection.direction {
                Direction::Inbound if connection.workload.is_some() => {
                    UpstreamPath::Application { source: connection.peer }
                }
                _ => UpstreamPath::Network,
            },
        }
    }

    async fn send(&self, host: Arc<Host>, message: http::Request<Body>) -> Result<Response<Body>, Failure> {
        let stream = self.stream();
        let target = self.target(host);
        if stream.connect && self.forward.terminates_connect {
            return Box::pin(self.terminate(&target, message)).await;
        }
        let upstreams = &stream.manager.ctx.upstreams;
        let mut exchange = pin!(upstreams.request(&target, self.priority, stream.version, message));
        let limits = TryLimits::new(&self.timeouts, &self.cluster);
        let answered = match &limits {
            None => exchange.as_mut().await,
            Some(limits) => match limits.within(stream, exchange.as_mut()).await {
                Ok(answered) => answered,
                Err(limit) => {
                    limit.count(&self.cluster);
                    target.host.counters.finish(Outcome::Timeout);
                    self.cluster.report(&target.host, Report::Timeout);
                    return Err(Failure::TimedOut(limit));
                }
            },
        };
        match answered {
            Ok(exchange) => {
                self.report(&target.host, &exchange.response);
                if let Some(limits) = &limits {
                    limits.bound_body(stream);
                }
                Ok(self.take(exchange))
            }
            Err(error) => Err(self.failed(&target.host, error)),
        }
    }

    /// Tells outlier detection of a response.
    pub(super) fn report(&self, host: &Arc<Host>, response: &Response<Body>) {
        self.cluster.report(host, Report::Response(self.status(response)));
        if response.headers().contains_key(IMMEDIATE_FAIL) {
            self.cluster.fail_at_once(host);
        }
    }

    /// The response of a try becomes the stream's, if it is not retried.
    pub(super) fn take(&self, exchange: Exchange) -> Response<Body> {
        let stream = self.stream();
        let mut info = stream.info.borrow_mut();
        info.upstream.connection = Some(exchange.connection);
        info.upstream.protocol = Some(exchange.protocol);
        info.upstream.transport_failure = None;
        let begun = exchange.begun.saturating_duration_since(stream.start);
        info.first_upstream_tx = Some(begun);
        // A body's end is later; whoever reads it says when.
        let sent = info.last_upstream_tx.map_or(begun, |sent| sent.max(begun));
        info.last_upstream_tx = Some(sent);
        info.first_upstream_rx = Some(turn::since(stream.start));
        exchange.response
    }

    /// A CONNECT that ends here: a connection to the host, and the bytes of both ways as bodies.
    async fn terminate(
        &self,
        target: &Target,
        message: http::Request<Body>,
    ) -> Result<Response<Body>, Failure> {
        let stream = self.stream();
        match stream.manager.ctx.upstreams.connect(target, self.priority).await {
            Ok(connection) => {
                self.cluster.report(&target.host, Report::ConnectedForGood);
                let mut info = stream.info.borrow_mut();
                info.upstream.connection = Some(connection.facts.clone());
                info.upstream.transport_failure = None;
                info.first_upstream_tx = Some(turn::since(stream.start));
                info.first_upstream_rx = info.first_upstream_tx;
                Ok(tunnel::response(connection, message.into_body()))
            }
            Err(error) => Err(self.failed(&target.host, error)),
        }
    }

    /// Notes a try that ended without a response.
    pub(super) fn failed(&self, host: &Arc<Host>, error: UpstreamError) -> Failure {
        tracing::debug!(cluster = %self.cluster.name(), host = %host.address, %error, "try failed");
        let upstream = &mut self.stream().info.borrow_mut().upstream;
        if error.kind == ErrorKind::Overflow {
            // Envoy: the pool of the host was never asked.
            upstream.host = None;
        } else {
            self.cluster.report(host, Report::ConnectFailed);
            upstream.transport_failure = error.details.as_ref().map(|text| text.replace(' ', "_"));
        }
        Failure::Reset(error)
    }
}

impl Failure {
    /// Does the plan ask for another try after it?
    pub(super) fn asks(&self, plan: &RetryPlan) -> bool {
        plan.retries_reset(match self {
            Self::TimedOut(limit) => limit.for_retry(),
            Self::Reset(error) => for_retry(error.kind),
        })
    }

    /// How the span of the try ends.
    pub(super) fn ended(&self) -> trace::Ended {
        match self {
            Self::TimedOut(_) => trace::Ended::TimedOut,
            Self::Reset(error) => trace::Ended::Reset(ResetReason::from(error.kind)),
        }
    }

    /// The answer, if it was the last try.
    pub(super) fn reply(self, stream: &Stream) -> LocalReply {
        match self {
            Self::TimedOut(limit) => limit.reply(stream),
            Self::Reset(error) => {
                let reason = ResetReason::from(error.kind);
                let connect = matches!(error.kind, ErrorKind::ConnectFailure | ErrorKind::TlsFailure);
                let transport_failure = error.details.as_deref().filter(|_| connect);
                local::reset_before_headers(stream, reason, transport_failure)
            }
        }
    }
}

impl Tries {
    fn of(forwarding: &Forwarding<'_>) -> Self {
        Self {
            plan: forwarding.plan.clone(),
            policy: forwarding.policy.cloned(),
            retries: 0,
            guard: None,
            tried: SmallVec::new(),
            spread: forwarding.policy.and_then(|policy| policy.other_priorities).map(Spread::new),
        }
    }

    /// Is there to be another try? Takes its share of what there may be.
    pub(super) fn judge(
        &mut self,
        forwarding: &Forwarding<'_>,
        source: &Source,
        retries: impl FnOnce(&RetryPlan) -> bool,
    ) -> Verdict {
        let Some(plan) = &self.plan else { return Verdict::Stands };
        let stats = &forwarding.cluster.stats;
        let retried = self.guard.take().is_some();
        if !source.can_be_sent_again() || !retries(plan) {
            if retried {
                stats.upstream_rq_retry_success.inc();
            }
            return Verdict::Stands;
        }
        let info = &forwarding.stream().info;
        if self.retries >= plan.remaining {
            stats.upstream_rq_retry_limit_exceeded.inc();
            info.borrow_mut().flags.set(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
            return Verdict::Spent;
        }
        let Ok(guard) = forwarding.cluster.retry(forwarding.priority) else {
            info.borrow_mut().flags.set(ResponseFlags::UPSTREAM_OVERFLOW);
            return Verdict::Spent;
        };
        self.guard = Some(guard);
        let pause = back_off(self.policy.as_deref(), self.retries, fastrand::u64(..));
        self.retries += 1;
        Verdict::Again(pause)
    }
}

/// The HTTP status that a gRPC status is closest to (Envoy: `Grpc::Utility::grpcToHttpStatus`).
fn grpc_to_http(status: u32) -> u16 {
    match status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// The failure as retry policies see it.
fn for_retry(kind: ErrorKind) -> router::ResetReason {
    match kind {
        ErrorKind::ConnectFailure | ErrorKind::ConnectTimeout | ErrorKind::TlsFailure => {
            router::ResetReason::ConnectFailure
        }
        ErrorKind::Reset { request_started, .. } => router::ResetReason::Reset { request_started },
        ErrorKind::RefusedStream => router::ResetReason::RefusedStream,
        ErrorKind::RemoteReset => router::ResetReason::Reset { request_started: true },
        ErrorKind::Overflow => router::ResetReason::Overflow,
        ErrorKind::ProtocolError => router::ResetReason::ProtocolError,
    }
}
