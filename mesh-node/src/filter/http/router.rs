//! The router filter (`envoy.extensions.filters.http.router.v3.Router`): from a matched route to a response.
//! Prepares the request for the upstream, tries hosts, and words what the client is told.

mod attempt;
mod hedge;
mod limits;
mod local;
mod mirror;
mod redirected;
mod tunnel;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONTENT_LENGTH, SET_COOKIE, UPGRADE};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use super::local_reply::LocalReply;
use super::request::Request;
use super::stream::Stream;
use super::trace;
use crate::cluster::{ClusterState, RoutingPriority};
use crate::http::body::Body;
use crate::model::Str;
use crate::model::header_lines::{join_lines, single_line_in_response};
use crate::model::matcher::HeaderMatcher;
use crate::model::network::RouterFilter;
use crate::model::route::{Action, Forward, RetryPolicy, RouteTable, VirtualHost};
use crate::router::{
    RequestHead, RetryPlan, Routed, Steering, Timeouts, apply_request, apply_response, header_matches,
    hedges, rewrite_host, rewrite_path,
};
use crate::telemetry::stream_info::ResponseFlags;
use crate::turn;

pub use limits::TryLimit;
pub use local::{finalize, redirect_to, timed_out};

const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
const EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// How a request was answered.
#[derive(Debug)]
pub enum Answer {
    Upstream(Response<Body>),
    Local(LocalReply),
}

/// What became of a request.
#[derive(Debug)]
pub enum Passed {
    Answered(Answer),
    /// It goes through filters and router again, elsewhere (`internal_redirect_policy`).
    Redirected(Request),
}

/// What the router works on: one request and its route.
#[derive(Clone, Copy)]
struct Routing<'r> {
    filter: &'r RouterFilter,
    stream: &'r Rc<Stream>,
    table: &'r RouteTable,
    /// By which routes are drawn.
    random: u64,
    routed: &'r Routed<'r>,
}

/// A request that goes to a cluster.
struct Forwarding<'r> {
    routing: Routing<'r>,
    forward: &'r Forward,
    cluster: Arc<ClusterState>,
    priority: RoutingPriority,
    timeouts: Timeouts,
    policy: Option<&'r Arc<RetryPolicy>>,
    plan: Option<RetryPlan>,
    /// A try that takes long goes on while another one begins.
    hedges: bool,
    /// Cookies that the client gets because it lacked what a hash policy hashes.
    new_cookies: RefCell<Vec<HeaderValue>>,
}

/// Answers a request by its route.
pub async fn answer(
    filter: &RouterFilter,
    stream: &Rc<Stream>,
    request: &mut Request,
    (table, random): (&RouteTable, u64),
    routed: &Routed<'_>,
) -> Passed {
    let routing = Routing { filter, stream, table, random, routed };
    let stats = &stream.manager.hcm.stats;
    stats.rq_total.inc();
    let answer = match &routed.route.action {
        Action::Direct(direct) => {
            stats.rq_direct_response.inc();
            Answer::Local(local::direct(&routing, direct, request))
        }
        Action::Redirect(redirect) => {
            // Envoy 1.40 counts redirects of routes here too, and leaves its `rq_redirect` at 0.
            stats.rq_direct_response.inc();
            Answer::Local(local::redirect(&routing, redirect, request))
        }
        Action::Forward(forward) => return to_cluster(routing, forward, request).await,
    };
    Passed::Answered(answer)
}

async fn to_cluster(routing: Routing<'_>, forward: &Forward, request: &mut Request) -> Passed {
    let stream = routing.stream;
    let manager = &stream.manager;
    let cluster = routing.routed.cluster(&request.head());
    let Some(cluster) = cluster.and_then(|name| manager.ctx.clusters.get(&name)) else {
        manager.hcm.stats.no_cluster.inc();
        stream.log_request(request);
        let status =
            StatusCode::from_u16(forward.cluster_not_found_status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        let reply = LocalReply::new(status, "", "cluster_not_found");
        return Passed::Answered(Answer::Local(reply.flag(ResponseFlags::NO_CLUSTER_FOUND)));
    };
    let policy = RetryPlan::policy(routing.routed.virtual_host, forward);
    let steering = Steering::of(&request.parts.headers);
    let plan = RetryPlan::new(policy, &request.head(), steering);
    if !routing.routed.virtual_host.virtual_clusters.is_empty() {
        let name = virtual_cluster(routing.routed.virtual_host, &request.head());
        stream.info.borrow_mut().virtual_cluster = name;
    }
    let hedges = hedges(routing.routed.virtual_host, forward, &request.parts.headers, steering);
    RetryPlan::remove_headers(&mut request.parts.headers, steering);
    let suppress = routing.filter.suppress_envoy_headers;
    let headers = &mut request.parts.headers;
    let timeouts = Timeouts::resolve(forward, policy.map(|p| &**p), headers, steering, !suppress);
    stream.limit_response(timeouts.global, timeouts.max_stream_duration);
    if stream.changes_response() {
        stream.keep_request(request);
    }
    stream.set_upstream(&cluster, routing.routed.virtual_host.include_attempt_count_in_response);
    let forwarding = Forwarding {
        routing,
        forward,
        priority: if forward.priority_high { RoutingPriority::High } else { RoutingPriority::Default },
        cluster,
        timeouts,
        policy,
        plan,
        hedges,
        new_cookies: RefCell::default(),
    };
    forwarding.rewrite(request);
    trace::inject(stream, &mut request.parts.headers);
    stream.log_request(request);
    if !forward.mirrors.is_empty() {
        mirror::start(&forwarding, request);
    }
    let kept =
        forward.internal_redirect.as_ref().and_then(|policy| redirected::keep(policy, stream, request));
    Passed::Answered(match forwarding.try_hosts(request).await {
        Ok(response) => {
            if let Some(kept) = kept
                && let Some(next) = redirected::follow(&forwarding, kept, &response)
            {
                return Passed::Redirected(next);
            }
            Answer::Upstream(forwarding.finish(response))
        }
        Err(reply) => Answer::Local(reply),
    })
}

/// The name of the kind of request that the virtual host finds this one to be.
fn virtual_cluster(host: &VirtualHost, head: &RequestHead<'_>) -> Option<Str> {
    let all = |matchers: &[HeaderMatcher]| matchers.iter().all(|m| header_matches(m, head));
    host.virtual_clusters.iter().find(|(_, matchers)| all(matchers)).map(|(name, _)| name.clone())
}

impl Forwarding<'_> {
    fn stream(&self) -> &Rc<Stream> {
        self.routing.stream
    }

    fn suppress(&self) -> bool {
        self.routing.filter.suppress_envoy_headers
    }

    /// What the route asks to change in the request (Envoy: `finalizeRequestHeaders`).
    fn rewrite(&self, request: &mut Request) {
        let Routing { table, routed, stream, .. } = self.routing;
        if routed.virtual_host.include_request_attempt_count {
            request.parts.headers.insert(ATTEMPT_COUNT, HeaderValue::from_static("1"));
        }
        let mut pseudo = smallvec::SmallVec::<[_; 2]>::new();
        let mut headers = std::mem::take(&mut request.parts.headers);
        apply_request(
            table,
            routed,
            &mut headers,
            |format, headers, out| stream.evaluate(format, Some((request, headers)), None, out),
            |target, value| pseudo.push((target.clone(), value.to_owned())),
        );
        request.parts.headers = headers;
        for (target, value) in pseudo {
            request.set_pseudo(&target, &value);
        }
        self.rewrite_host(request, None);
        if let Some(path) = rewrite_path(routed.route, self.forward, request.path()) {
            if !self.suppress() {
                let original = request.path().to_owned();
                request.set_header(ORIGINAL_PATH, &original);
            }
            request.set_path(path);
        }
    }

    /// Rewrites the host; `endpoint` is the chosen endpoint's name, known once a host is chosen.
    fn rewrite_host(&self, request: &mut Request, endpoint: Option<&str>) {
        let head = request.head();
        let Some(new) = rewrite_host(self.forward, self.routing.routed.weighted, &head, endpoint) else {
            return;
        };
        let (host, original) = (new.authority.into_owned(), new.original.map(str::to_owned));
        if let Some(original) = original {
            if !self.suppress() {
                request.set_header(ORIGINAL_HOST, &original);
            }
            if self.forward.append_x_forwarded_host {
                append_forwarded_host(&mut request.parts.headers, &original);
            }
        }
        request.set_authority(&host);
    }

    /// What the route asks to change in the response, and Envoy's own headers.
    fn finish(&self, mut response: Response<Body>) -> Response<Body> {
        let Routing { table, routed, stream, .. } = self.routing;
        let status = response.status();
        self.cluster.stats.count_response(status.as_u16());
        stream.info.borrow_mut().response_code_details.get_or_insert("via_upstream".into());
        // Refusals pass as they are (Envoy: `websocket_allow_4xx_5xx_through_filter_chain`).
        if stream.upgrade
            && !stream.connect
            && status != StatusCode::SWITCHING_PROTOCOLS
            && !(status.is_client_error() || status.is_server_error())
        {
            return refused_handshake(stream, response);
        }
        if !self.suppress()
            && let Some(since) = stream.request_complete()
        {
            let ms = u64::try_from(turn::since(since).as_millis()).unwrap_or(u64::MAX);
            response.headers_mut().insert(SERVICE_TIME, HeaderValue::from(ms));
        }
        if routed.virtual_host.include_attempt_count_in_response {
            let attempts = stream.info.borrow().upstream.attempts;
            response.headers_mut().insert(ATTEMPT_COUNT, HeaderValue::from(attempts));
        }
        for cookie in self.new_cookies.take() {
            response.headers_mut().append(SET_COOKIE, cookie);
        }
        join_lines(response.headers_mut(), single_line_in_response);
        // Known to formats here, and not yet in answers of the proxy's own (as in Envoy).
        stream.info.borrow_mut().response_code = Some(status.as_u16());
        mutate_response(stream, table, routed, &mut response);
        response
    }
}

/// Appends to `x-forwarded-host`, unless the host is the last one there already: a hop before did it.
fn append_forwarded_host(headers: &mut http::HeaderMap, host: &str) {
    let last = headers.get(FORWARDED_HOST).and_then(|v| v.to_str().ok()?.rsplit(',').next());
    if last != Some(host) {
        super::header_list::append(headers, FORWARDED_HOST, host, ",");
    }
}

/// Applies the response header changes of the route and its parents.
fn mutate_response<B>(stream: &Stream, table: &RouteTable, routed: &Routed<'_>, response: &mut Response<B>) {
    let mut status = None;
    apply_response(
        table,
        routed,
        response.headers_mut(),
        |format, headers, out| stream.evaluate(format, None, Some(headers), out),
        |_, value| status = value.parse::<u16>().ok().and_then(|code| StatusCode::from_u16(code).ok()),
    );
    if let Some(status) = status {
        *response.status_mut() = status;
    }
}

/// An upstream that does not switch protocols: the client gets its status alone.
fn refused_handshake(stream: &Stream, mut response: Response<Body>) -> Response<Body> {
    stream.info.borrow_mut().response_code_details = Some("websocket_handshake_unsuccessful".into());
    response.headers_mut().remove(CONTENT_LENGTH);
    response.headers_mut().remove(UPGRADE);
    *response.body_mut() = Body::Empty;
    response
}
