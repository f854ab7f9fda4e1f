//! Redirects of upstreams that are followed here (`internal_redirect_policy`): the request goes through the filters
//! again, with another host and path (Envoy: `convertRequestHeadersForInternalRedirect`).

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION, TRANSFER_ENCODING};
use http::uri::Uri;
use http::{HeaderName, HeaderValue, Method, Response};
use http_body::Body as _;

use super::super::request::Request;
use super::super::stream::Stream;
use super::Forwarding;
use crate::http::body::Body;
use crate::model::route::{InternalRedirect, RedirectPredicate};
use crate::router::{Decision, Routed};
use crate::telemetry::format::RequestHead;

const ORIGINAL_URL: HeaderName = HeaderName::from_static("x-envoy-original-url");

/// A request as it was sent, should it have to go elsewhere. Of one with a body the redirect is the client's.
pub(super) struct Kept<'p> {
    policy: &'p InternalRedirect,
    request: Box<Request>,
}

pub(super) fn keep<'p>(policy: &'p InternalRedirect, stream: &Stream, request: &Request) -> Option<Kept<'p>> {
    if !request.body.is_end_stream() || stream.upgrade {
        return None;
    }
    let request = Box::new(Request {
        parts: request.parts.clone(),
        authority: request.authority.clone(),
        scheme: request.scheme,
        body: Body::Empty,
    });
    Some(Kept { policy, request })
}

/// The request that the response asks for, if it may be made.
pub(super) fn follow(
    forwarding: &Forwarding<'_>,
    kept: Kept<'_>,
    response: &Response<Body>,
) -> Option<Request> {
    let Kept { policy, mut request } = kept;
    if !policy.statuses.contains(&response.status().as_u16()) {
        return None;
    }
    let next = forwarding.redirect(policy, &mut request, response);
    let stats = &forwarding.cluster.stats;
    if next.is_none() {
        stats.upstream_internal_redirect_failed_total.inc();
        return None;
    }
    stats.upstream_internal_redirect_succeeded_total.inc();
    stats.count_response(response.status().as_u16());
    Some(*request)
}

impl Forwarding<'_> {
    fn redirect(
        &self,
        policy: &InternalRedirect,
        request: &mut Request,
        response: &Response<Body>,
    ) -> Option<()> {
        let location = response.headers().get(LOCATION)?.to_str().ok()?;
        let target: Uri = location.parse().ok()?;
        let (host, scheme) = (target.authority()?.as_str().to_owned(), target.scheme_str()?);
        let to_tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let stream = self.stream();
        let from_tls = stream.manager.connection.tls.is_some();
        if to_tls != from_tls && !policy.cross_scheme {
            return None;
        }
        if stream.redirects.get() >= policy.most {
            return None;
        }
        let before = format!(
            "{}://{}{}",
            if from_tls { "https" } else { "http" },
            request.authority(),
            request.path()
        );
        for name in &policy.headers_to_copy {
            request.parts.headers.remove(name);
            for value in response.headers().get_all(name) {
                request.parts.headers.append(name, value.clone());
            }
        }
        request.set_authority(&host);
        request.set_path(target.path_and_query().map_or("/", |path| path.as_str()).to_owned());
        let random = self.routing.random;
        let decision = super::super::route(stream, self.routing.table, request, random);
        self.note_target(&decision, request);
        let Decision::Route(routed) = &decision else { return None };
        if !policy.predicates.iter().all(|predicate| self.accepts(predicate, routed, (from_tls, to_tls))) {
            return None;
        }
        // RFC 9110 section 15.4.4
        if response.status() == http::StatusCode::SEE_OTHER
            && ![Method::GET, Method::HEAD].contains(&request.parts.method)
        {
            request.parts.method = Method::GET;
            for name in [CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING] {
                request.parts.headers.remove(name);
            }
        }
        if let Ok(before) = HeaderValue::from_str(&before) {
            request.parts.headers.insert(ORIGINAL_URL, before);
        }
        stream.redirects.set(stream.redirects.get() + 1);
        stream.info.borrow_mut().upstream.attempts = 0;
        log(stream, request, response.status());
        Some(())
    }

    /// Access logs name the route and cluster that the redirect leads to, or none, whether it is followed or not.
    fn note_target(&self, decision: &Decision<'_>, request: &Request) {
        let stream = self.stream();
        let routed = match decision {
            Decision::Route(routed) => Some(routed),
            Decision::NotFound(_) | Decision::TlsRedirect(_) => None,
        };
        let cluster = routed
            .and_then(|routed| routed.cluster(&request.head()))
            .and_then(|name| stream.manager.ctx.clusters.get(&name));
        let mut info = stream.info.borrow_mut();
        let name = routed.map(|routed| routed.route.name.clone());
        info.route_name = name.filter(|name| !name.is_empty());
        info.upstream.cluster = cluster.map(|cluster| cluster.name().clone());
    }

    fn accepts(
        &self,
        predicate: &RedirectPredicate,
        routed: &Routed<'_>,
        (from_tls, to_tls): (bool, bool),
    ) -> bool {
        match predicate {
            RedirectPredicate::SafeCrossScheme => from_tls || !to_tls,
            RedirectPredicate::AllowListedRoutes(names) => {
                names.iter().any(|name| **name == *routed.route.name)
            }
            RedirectPredicate::PreviousRoutes => {
                let mut led_to = self.stream().led_to.borrow_mut();
                // Envoy remembers names, of each route apart.
                let pair = (self.routing.routed.route.name.clone(), routed.route.name.clone());
                let new = !led_to.contains(&pair);
                led_to.push(pair);
                new
            }
        }
    }
}

/// To access logs it is a stream that ends with the redirect, at the place where it leads.
fn log(stream: &Stream, request: &Request, status: http::StatusCode) {
    let head = RequestHead {
        method: request.parts.method.clone(),
        scheme: request.scheme.into(),
        authority: request.authority().to_owned(),
        path: request.path().to_owned(),
        headers: request.parts.headers.clone(),
    };
    let mut info = stream.info.borrow_mut();
    info.response_code = Some(status.as_u16());
    info.response_code_details = Some("internal_redirect".into());
    info.end = Some(crate::turn::since(stream.start));
    for log in &stream.manager.hcm.access_log {
        log.log(&info, Some(&head), None, None, None);
    }
    (info.response_code, info.response_code_details, info.end) = (None, None, None);
}
