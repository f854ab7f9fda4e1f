//! HTTP connection manager (`envoy.extensions.filters.network.http_connection_manager.v3`): serves the streams of
//! one client connection.
//!
//! A request passes, in this order: the codec (`crate::http`), [`request`] (one form), [`path`] (normalisation),
//! [`request_headers`] (sanitising, addresses, ids), the route (`crate::router`), the HTTP filters, of which
//! [`router`] is the last, and back through [`response_headers`]. [`stream`] holds what is known of it and when it
//! must end. Nothing here spawns a task per request.

mod chain;
mod date;
mod header_list;
mod local_reply;
mod path;
mod request;
mod request_body;
mod request_headers;
mod reset;
mod response_body;
mod response_headers;
mod router;
mod routes;
mod serve;
mod stream;
mod stream_parts;
#[cfg(test)]
mod tests;
mod timer;
mod trace;
mod xfcc;

use std::cell::Cell;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};

use self::local_reply::LocalReply;
use self::request::Request;
use self::response_body::ResponseBody;
use self::router::{Answer, Passed};
use self::routes::{KeptRoute, Routes};
use self::stream::{Expired, Owner, Stream};
use self::timer::Timer;
use self::xfcc::Xfcc;
use super::WorkerContext;
use crate::http::body::Body;
use crate::http::service::{HttpService, Refusal, Reset};
use crate::model::http_filter::HttpFilterKind;
use crate::model::network::{HttpConnectionManager, UnderscoresAction};
use crate::model::route::{Action, RouteTable};
use crate::router::{Decision, Known, Routed, tls_redirect_location};
use crate::telemetry::peer::LocalPeer;
use crate::telemetry::stream_info::{ConnectionInfo, ResponseFlags, StreamInfo};

pub(super) use self::chain::put;
pub use self::chain::{Machines, Peers};
pub use self::date::DateCache;
pub use self::serve::serve;
pub use self::timer::Timers;
pub use self::trace::Reporters;

/// The connection manager of one client connection.
#[derive(Debug)]
pub struct ConnectionManager {
    pub hcm: Arc<HttpConnectionManager>,
    pub connection: Arc<ConnectionInfo>,
    pub ctx: Rc<WorkerContext>,
    routes: Routes,
    /// Series of metrics that its streams used.
    series: chain::SeriesCache,
    xfcc: Xfcc,
    /// Appended to `x-forwarded-for` in place of a loopback peer.
    local_address: IpAddr,
    server_name: HeaderValue,
    /// Streams begun on this connection.
    streams: Cell<u32>,
    /// A stream that is logged already waits for its refusal.
    refusing: Cell<bool>,
    /// The connection ends after the responses that are under way.
    closing: Cell<bool>,
    /// The client reset the stream that ends next.
    reset: Cell<bool>,
}

impl ConnectionManager {
    pub fn new(
        hcm: Arc<HttpConnectionManager>,
        connection: Arc<ConnectionInfo>,
        ctx: Rc<WorkerContext>,
    ) -> Self {
        let routes = Routes::of(&hcm.routes, &ctx);
        let xfcc = Xfcc::new(&hcm, connection.tls.as_deref());
        let own = connection.workload.as_ref().and_then(|w| w.ips.first().copied());
        let local_address = own.unwrap_or(ctx.address);
        let server_name =
            HeaderValue::from_str(&hcm.server_name).unwrap_or(HeaderValue::from_static("envoy"));
        Self {
            hcm,
            connection,
            ctx,
            routes,
            series: chain::SeriesCache::default(),
            xfcc,
            local_address,
            server_name,
            streams: Cell::new(0),
            refusing: Cell::new(false),
            closing: Cell::new(false),
            reset: Cell::new(false),
        }
    }

    /// Who this end is, as it tells others.
    fn local_peer(&self) -> &LocalPeer {
        self.connection.workload.as_ref().map_or(&self.ctx.node, |workload| &workload.peer)
    }

    /// Must the connection end soon?
    fn is_closing(&self) -> bool {
        if !self.closing.get() && self.connection.drain.started() {
            self.hcm.stats.downstream_cx_drain_close.inc();
            self.closing.set(true);
        }
        self.closing.get()
    }

    /// Counts a stream against `max_requests_per_connection`.
    fn count_stream(&self) {
        let streams = self.streams.get() + 1;
        self.streams.set(streams);
        if streams == self.hcm.max_requests_per_connection {
            self.hcm.stats.downstream_cx_max_requests_reached.inc();
            self.closing.set(true);
        }
    }

    /// From the head of a request to its answer.
    async fn answer(&self, stream: &Rc<Stream>, request: http::Request<Body>) -> Answer {
        let mut request = request;
        let host = self.hcm.http1.default_host_for_http_10.as_deref();
        if let Some(host) = host.and_then(|host| HeaderValue::from_str(host).ok())
            && request.version() == http::Version::HTTP_10
            && request.uri().authority().is_none()
        {
            request.headers_mut().entry(http::header::HOST).or_insert(host);
        }
        let mut request = match Request::new(request) {
            Ok(request) => request,
            Err(request) => {
                stream.log_request(&request);
                return Answer::Local(LocalReply::new(StatusCode::BAD_REQUEST, "", "missing_host_header"));
            }
        };
        if let Some(refused) = self.refuse_overload() {
            stream.log_request(&request);
            return Answer::Local(refused);
        }
        if let Some(refused) = self.prepare(stream, &mut request) {
            if !refused.flags.contains(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR) {
                stream.log_request(&request);
            }
            return Answer::Local(refused);
        }
        // One number for all routing of the request, so that it keeps its share and its weighted cluster.
        let random = fastrand::u64(..);
        loop {
            match self.pass(stream, &mut request, random).await {
                Passed::Answered(answer) => return answer,
                Passed::Redirected(next) => request = next,
            }
        }
    }

    /// Takes a request through the filters and the router. What is left of it is of no use then.
    async fn pass(&self, stream: &Rc<Stream>, request: &mut Request, random: u64) -> Passed {
        let table = self.routes.now(&request.parts.headers);
        let table: &Arc<RouteTable> = &table;
        let mut from = 0;
        let decision = loop {
            let decision = route(stream, table, request, random);
            let routed = match &decision {
                Decision::Route(routed) => Some(routed),
                Decision::NotFound(_) | Decision::TlsRedirect(_) => None,
            };
            let first = from == 0 && stream.redirects.get() == 0;
            let route = routed.map(|routed| routed.route);
            let traced = first.then(|| {
                let headers = &mut request.parts.headers;
                trace::decide(self, stream, headers, route.map(|route| &**route))
            });
            if let Some(routed) = routed {
                note_route(stream, routed);
                stream.keep_route(KeptRoute::of(table, routed), request);
                if from == 0
                    && let Some(refused) = self.refuse_upgrade(stream, request, routed)
                {
                    self.note_cluster(stream, request, routed);
                    stream.log_request(request);
                    return Passed::Answered(Answer::Local(refused));
                }
            }
            if let Some(traced) = traced {
                trace::begin(self, stream, request, route, traced);
            }
            match chain::decode(stream, request, table, routed, from).await {
                chain::Decoded::Through => break decision,
                // A filter wants the route to be chosen anew for those after it.
                chain::Decoded::Reroute(next) => from = next,
                chain::Decoded::Answered(reply) => {
                    if let Some(routed) = routed {
                        self.note_cluster(stream, request, routed);
                    }
                    stream.log_request(request);
                    return Passed::Answered(Answer::Local(*reply));
                }
            }
        };
        let answer = match decision {
            Decision::Route(routed) => return self.follow(stream, request, (table, random), &routed).await,
            Decision::NotFound(virtual_host) => {
                stream.info.borrow_mut().virtual_host = virtual_host.map(|v| v.name.clone());
                stream.log_request(request);
                self.hcm.stats.rq_total.inc();
                self.hcm.stats.no_route.inc();
                let reply = LocalReply::new(StatusCode::NOT_FOUND, "", "route_not_found");
                Answer::Local(reply.flag(ResponseFlags::NO_ROUTE_FOUND))
            }
            Decision::TlsRedirect(virtual_host) => {
                stream.info.borrow_mut().virtual_host = Some(virtual_host.name.clone());
                stream.log_request(request);
                self.hcm.stats.rq_total.inc();
                self.hcm.stats.rq_direct_response.inc();
                let location = tls_redirect_location(&request.head());
                Answer::Local(router::redirect_to(StatusCode::MOVED_PERMANENTLY, &location))
            }
        };
        Passed::Answered(answer)
    }

    /// The router filter, which ends every chain.
    async fn follow(
        &self,
        stream: &Rc<Stream>,
        request: &mut Request,
        (table, random): (&RouteTable, u64),
        routed: &Routed<'_>,
    ) -> Passed {
        match self.hcm.http_filters.last().map(|filter| &filter.kind) {
            Some(HttpFilterKind::Router(filter)) => {
                router::answer(filter, stream, request, (table, random), routed).await
            }
            _ => {
                stream.log_request(request);
                // The converter refuses a filter list that does not end with the router.
                let reply = LocalReply::new(StatusCode::NOT_FOUND, "", "filter_chain_not_found");
                Passed::Answered(Answer::Local(reply))
            }
        }
    }

    /// At the workload's limit of buffered bytes nothing new is begun (Envoy: `stop_accepting_requests`).
    fn refuse_overload(&self) -> Option<LocalReply> {
        let budget = &self.connection.workload.as_ref()?.limits.buffers;
        if !budget.is_full() {
            return None;
        }
        budget.refusals().requests.fetch_add(1, Ordering::Relaxed);
        self.hcm.stats.downstream_rq_overload_close.inc();
        let reply = LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "envoy overloaded", "overload");
        Some(reply.flag(ResponseFlags::OVERLOAD_MANAGER))
    }

    /// Checks and sanitises a request before it is routed. `Some` is the answer to one that is refused.
    fn prepare(&self, stream: &Stream, request: &mut Request) -> Option<LocalReply> {
        let headers = &mut request.parts.headers;
        // HTTP/1 heads are bounded by their codec.
        if headers.len() > self.hcm.max_headers_count as usize {
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            return Some(LocalReply::new(
                status,
                "Request Header Fields Too Large",
                "http2.too_many_headers",
            ));
        }
        if let Some(refused) = refuse_underscores(self.hcm.underscores, headers) {
            return Some(refused);
        }
        let connect = request.parts.method == Method::CONNECT;
        if !connect {
            let path = request.path();
            if !path.starts_with('/') {
                return Some(LocalReply::new(StatusCode::NOT_FOUND, "", "absolute_path_rejected"));
            }
            match path::normalize(path, &self.hcm) {
                path::Normalized::Forward(std::borrow::Cow::Borrowed(_)) => {}
                path::Normalized::Forward(std::borrow::Cow::Owned(path)) => request.set_path(path),
                path::Normalized::Reject => {
                    return Some(LocalReply::new(StatusCode::BAD_REQUEST, "", "path_normalization_failed"));
                }
                path::Normalized::Redirect(location) => {
                    let mut reply = router::redirect_to(StatusCode::TEMPORARY_REDIRECT, &location);
                    reply.details = "path_normalization_failed".into();
                    return Some(reply);
                }
            }
        }
        let routes = self.routes.now(&request.parts.headers);
        let port = self.connection.local.port();
        if let Some(host) = path::stripped_host(request.authority(), &self.hcm, port).map(str::to_owned) {
            request.set_authority(&host);
        }
        let facts = request_headers::mutate(
            &mut request.parts,
            &request_headers::Mutation {
                hcm: &self.hcm,
                connection: &self.connection,
                local_address: self.local_address,
                xfcc: &self.xfcc,
                internal_only_headers: &routes.internal_only_headers,
            },
        );
        request.scheme = request_headers::scheme(&request.parts, &self.connection);
        stream.info.borrow_mut().remote = facts.remote;
        stream.keep_request_id(&request.parts.headers);
        None
    }

    /// Upgrades must be allowed, by the route or else by the connection manager (`upgrade_configs`).
    fn refuse_upgrade(&self, stream: &Stream, request: &Request, routed: &Routed<'_>) -> Option<LocalReply> {
        if !stream.upgrade {
            return None;
        }
        let kind = if request.parts.method == Method::CONNECT {
            "connect"
        } else {
            request.parts.headers.get(http::header::UPGRADE).and_then(|v| v.to_str().ok()).unwrap_or_default()
        };
        let of_route = match &routed.route.action {
            Action::Forward(forward) => &forward.upgrades[..],
            _ => &[],
        };
        let find = |configs: &[(crate::model::Str, bool)]| {
            configs.iter().find(|(name, _)| name.eq_ignore_ascii_case(kind)).map(|(_, enabled)| *enabled)
        };
        if find(of_route).or_else(|| find(&self.hcm.upgrades)).unwrap_or(false) {
            self.hcm.stats.downstream_cx_upgrades_total.inc();
            return None;
        }
        Some(LocalReply::new(StatusCode::FORBIDDEN, "", "upgrade_failed"))
    }

    /// Access logs name the route's cluster even where a request never gets to it.
    fn note_cluster(&self, stream: &Stream, request: &Request, routed: &Routed<'_>) {
        let cluster = routed.cluster(&request.head()).and_then(|name| self.ctx.clusters.get(&name));
        stream.info.borrow_mut().upstream.cluster = cluster.map(|cluster| cluster.name().clone());
    }

    /// The answer to a stream that reached a limit before its response began.
    fn expired(&self, stream: &Stream, expired: Expired) -> LocalReply {
        let stats = &self.hcm.stats;
        match expired {
            Expired::Idle => {
                stats.downstream_rq_idle_timeout.inc();
                let status = match stream.request_complete() {
                    Some(_) => StatusCode::GATEWAY_TIMEOUT,
                    None => StatusCode::REQUEST_TIMEOUT,
                };
                LocalReply::new(status, "stream timeout", "stream_idle_timeout")
                    .flag(ResponseFlags::STREAM_IDLE_TIMEOUT)
            }
            Expired::Request => {
                stats.downstream_rq_timeout.inc();
                LocalReply::new(StatusCode::REQUEST_TIMEOUT, "request timeout", "request_overall_timeout")
            }
            Expired::MaxDuration => {
                stats.downstream_rq_max_duration_reached.inc();
                let status = match stream.request_complete() {
                    Some(_) => StatusCode::GATEWAY_TIMEOUT,
                    None => StatusCode::REQUEST_TIMEOUT,
                };
                let mut reply =
                    LocalReply::new(status, "downstream duration timeout", "max_duration_timeout");
                reply.grpc_status = Some(local_reply::DEADLINE_EXCEEDED);
                reply
            }
            Expired::Response => router::timed_out(stream),
            Expired::Try(limit) => limit.reply(stream),
        }
    }

    /// Makes the response that is sent of an answer, and notes it.
    async fn finish(&self, owner: Owner, mut timer: Timer, answer: Answer) -> Response<ResponseBody> {
        let (mut response, from_upstream) = match answer {
            Answer::Upstream(response) => (response, true),
            Answer::Local(mut reply) => {
                let mut info = owner.info.borrow_mut();
                info.flags.set(reply.flags);
                info.response_code_details = Some(reply.details.clone());
                drop(info);
                if let Some(kept) = &*owner.kept_route() {
                    router::finalize(&owner, kept, &mut reply);
                }
                if let Some(replies) = &self.hcm.local_replies {
                    reply.rewrite(&owner, replies);
                }
                (reply.into_response(owner.grpc, owner.head), false)
            }
        };
        while let Some(script) = chain::encode(&owner, &mut response) {
            let outcome = {
                let mut running = Box::pin(script.encode(&owner, &mut response));
                owner.within(&mut timer, running.as_mut()).await
            };
            let reply = outcome.unwrap_or_else(|expired| Some(self.expired(&owner, expired)));
            if let Some(reply) = reply {
                let mut info = owner.info.borrow_mut();
                info.flags.set(reply.flags);
                info.response_code_details = Some(reply.details.clone());
                drop(info);
                response = reply.into_response(owner.grpc, owner.head);
            }
        }
        response_headers::mutate(self, &owner, &mut response, from_upstream);
        trace::response(self, &owner, response.headers_mut());
        chain::sent(&owner, &response);
        owner.start_response(&response);
        let (parts, body) = response.into_parts();
        Response::from_parts(parts, ResponseBody::new(body, owner, timer, from_upstream))
    }
}

/// `headers_with_underscores_action`.
fn refuse_underscores(action: UnderscoresAction, headers: &mut HeaderMap) -> Option<LocalReply> {
    if action == UnderscoresAction::Allow || !headers.keys().any(|name| name.as_str().contains('_')) {
        return None;
    }
    if action == UnderscoresAction::RejectRequest {
        let reply = LocalReply::new(StatusCode::BAD_REQUEST, "Bad Request", "http1.unexpected_underscore");
        return Some(reply.flag(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR));
    }
    let dropped: Vec<_> = headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
    for name in dropped {
        headers.remove(name);
    }
    None
}

impl ConnectionManager {
    /// The log line of a request that never became a stream.
    fn log_refusal(&self, refusal: &Refusal, body_bytes: u64, headers: &HeaderMap) {
        let mut info = StreamInfo::new(self.connection.clone());
        info.protocol = Some(refusal.version);
        info.response_code = Some(refusal.status.as_u16());
        info.response_code_details = Some(refusal.details.into());
        info.bytes_sent = body_bytes;
        info.end = Some(crate::turn::since(info.start));
        // What Envoy refuses above its codec, or for its slowness, has no flag.
        let above = ["missing_host_header", "path_normalization_failed", "request_header_timeout"];
        if !above.contains(&refusal.details) {
            info.flags.set(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR);
        }
        for log in &self.hcm.access_log {
            log.log(&info, None, Some(headers), None, None);
        }
    }
}

/// The route of a request, by what is known of it now.
fn route<'t>(stream: &Stream, table: &'t RouteTable, request: &Request, random: u64) -> Decision<'t> {
    let info = stream.info.borrow();
    let tls = stream.manager.connection.tls.as_deref();
    let known = Known {
        metadata: info.metadata.as_deref(),
        filter_state: info.filter_state.as_deref(),
        certificate: tls.map_or((false, false), |tls| (!tls.peer_chain.is_empty(), tls.peer_validated)),
    };
    crate::router::route_knowing(table, &request.head(), known, random)
}

fn note_route(stream: &Stream, routed: &Routed<'_>) {
    let mut info = stream.info.borrow_mut();
    info.virtual_host = Some(routed.virtual_host.name.clone());
    if !routed.route.name.is_empty() {
        info.route_name = Some(routed.route.name.clone());
    }
    drop(info);
    if let Action::Forward(forward) = &routed.route.action {
        stream.limit_by_route(forward);
    }
}

impl HttpService for ConnectionManager {
    type Body = ResponseBody;

    async fn call(self: &Rc<Self>, request: http::Request<Body>) -> Result<Response<ResponseBody>, Reset> {
        self.count_stream();
        let owner = Stream::begin(self.clone(), &request);
        let mut timer = self.ctx.timers.timer();
        let answer = {
            let answer = pin!(self.answer(&owner, request));
            owner.within(&mut timer, answer).await
        };
        if owner.client_is_gone() {
            return Err(Reset);
        }
        if !matches!(answer, Ok(Answer::Upstream(_))) {
            owner.discard_unread().await;
        }
        let answer = answer.unwrap_or_else(|expired| Answer::Local(self.expired(&owner, expired)));
        Ok(self.finish(owner, timer, answer).await)
    }

    fn refuse(&self, refusal: &Refusal) -> Response<ResponseBody> {
        let stats = &self.hcm.stats;
        if refusal.details == "request_header_timeout" {
            stats.downstream_rq_header_timeout.inc();
        } else {
            stats.downstream_cx_protocol_error.inc();
        }
        let reply = LocalReply::new(refusal.status, refusal.body, refusal.details);
        let body_bytes = reply.body.len() as u64;
        let mut response = reply.into_response(false, false);
        response_headers::base(self, &mut response, crate::turn::now());
        response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        if !self.refusing.take() {
            stats.downstream_rq_total.inc();
            stats.count_response(refusal.status.as_u16());
            self.log_refusal(refusal, body_bytes, response.headers());
        }
        response.map(|body| ResponseBody::untracked(body, self.ctx.timers.timer()))
    }

    fn on_cut(&self, reset: bool) {
        self.reset.set(reset);
    }

    fn on_read(&self, bytes: usize) {
        self.hcm.stats.downstream_cx_rx_bytes_total.add(bytes as u64);
    }

    fn on_written(&self, bytes: usize) {
        self.hcm.stats.downstream_cx_tx_bytes_total.add(bytes as u64);
    }
}
