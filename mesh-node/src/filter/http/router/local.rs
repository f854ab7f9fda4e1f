//! The answers that the router gives itself.

use http::header::LOCATION;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::super::local_reply::LocalReply;
use super::super::request::Request;
use super::super::reset::{self, ResetReason};
use super::super::routes::KeptRoute;
use super::super::stream::Stream;
use super::{ATTEMPT_COUNT, Routing};
use crate::model::route::{DirectResponse, Redirect};
use crate::router::redirect_location;
use crate::telemetry::stream_info::ResponseFlags;

const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

/// A redirect to `location`.
pub fn redirect_to(status: StatusCode, location: &str) -> LocalReply {
    let reply = LocalReply::new(status, "", "direct_response");
    match HeaderValue::from_bytes(location.as_bytes()) {
        Ok(location) => reply.header(LOCATION, location),
        Err(_) => reply,
    }
}

/// A route's redirect.
pub(super) fn redirect(routing: &Routing<'_>, redirect: &Redirect, request: &Request) -> LocalReply {
    routing.stream.log_request(request);
    let location = redirect_location(routing.routed.route, redirect, &request.head());
    let status = StatusCode::from_u16(redirect.status).unwrap_or(StatusCode::MOVED_PERMANENTLY);
    LocalReply { of_route: true, ..redirect_to(status, &location) }
}

/// A route's direct response. Envoy adds a location to 201 and 3xx.
pub(super) fn direct(routing: &Routing<'_>, direct: &DirectResponse, request: &Request) -> LocalReply {
    routing.stream.log_request(request);
    let status = StatusCode::from_u16(direct.status).unwrap_or(StatusCode::OK);
    let mut reply = if status == StatusCode::CREATED || status.is_redirection() {
        let head = request.head();
        redirect_to(status, &format!("{}://{}{}", head.scheme, head.authority, head.path))
    } else {
        LocalReply::new(status, "", "direct_response")
    };
    reply.bytes = Some(match &direct.body_format {
        None => direct.body.clone(),
        Some(of) => {
            routing.stream.keep_request(request);
            let told = String::from_utf8_lossy(&direct.body);
            let mut text = String::new();
            routing
                .stream
                .with_context(&reply.headers, Some(&told), |context| of.format.write(context, &mut text));
            reply.content_type = Some(of.content_type.clone());
            text.into()
        }
    });
    reply.of_route = true;
    reply
}

/// What the route and its parents say of response headers, on an answer of the proxy's own (Envoy: once it is
/// made, before whoever answers adds what is its own).
pub fn finalize(stream: &Stream, kept: &KeptRoute, reply: &mut LocalReply) {
    let own = std::mem::take(&mut reply.headers);
    let (before, after) = if reply.of_route { (own, HeaderMap::new()) } else { (HeaderMap::new(), own) };
    let mut response = Response::new(());
    *response.status_mut() = reply.status;
    *response.headers_mut() = before;
    super::mutate_response(stream, kept.table(), &kept.routed(), &mut response);
    let (parts, ()) = response.into_parts();
    reply.status = parts.status;
    reply.headers = parts.headers;
    for (name, value) in &after {
        reply.headers.append(name, value.clone());
    }
}

/// No host can be chosen.
pub(super) fn no_healthy_upstream(stream: &Stream) -> LocalReply {
    let reply =
        LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream", "no_healthy_upstream");
    aborted(stream, reply.flag(ResponseFlags::NO_HEALTHY_UPSTREAM))
}

/// The last try ended without a response.
pub(super) fn reset_before_headers(
    stream: &Stream,
    reason: ResetReason,
    transport_failure: Option<&str>,
) -> LocalReply {
    let status = match reason {
        ResetReason::ProtocolError => StatusCode::BAD_GATEWAY,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let retried = if stream.info.borrow().upstream.attempts > 1 { "retried and the latest " } else { "" };
    let text = format!(
        "upstream connect error or disconnect/reset before headers. {retried}reset reason: {}",
        reason.text()
    );
    let details = reset::details("before", reason, transport_failure);
    let mut reply = LocalReply::new(status, text, details).flag(reason.response_flag());
    if reason == ResetReason::Overflow {
        reply = reply.header(OVERLOADED, HeaderValue::from_static("true"));
    }
    aborted(stream, reply)
}

/// The route's timeout passed before the response began.
pub fn timed_out(stream: &Stream) -> LocalReply {
    stream.upstream_timed_out();
    let text = "upstream request timeout";
    let reply = LocalReply::new(StatusCode::GATEWAY_TIMEOUT, text, "response_timeout");
    aborted(stream, reply.flag(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT))
}

/// Counts a failure against the cluster as the response that the client gets, and tells how often was tried.
pub(super) fn aborted(stream: &Stream, reply: LocalReply) -> LocalReply {
    let upstream = stream.upstream();
    let Some(upstream) = &*upstream else { return reply };
    upstream.cluster.stats.count_response(reply.status.as_u16());
    if !upstream.tell_attempts {
        return reply;
    }
    let attempts = stream.info.borrow().upstream.attempts;
    reply.header(ATTEMPT_COUNT, HeaderValue::from(attempts))
}
