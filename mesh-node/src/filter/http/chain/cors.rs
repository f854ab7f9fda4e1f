//! Cross-origin resource sharing (`envoy.filters.http.cors`): preflights are answered here, responses to allowed
//! origins are marked.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::super::local_reply::LocalReply;
use super::super::request::Request;
use super::{Decoding, Step};
use crate::model::http_filter::{CorsPolicy, CorsStats, HttpFilter, Override};
use crate::model::route::Action;
use crate::runtime::Setting;

const REQUEST_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");
const TRUE: HeaderValue = HeaderValue::from_static("true");

/// What a response to an allowed origin says.
#[derive(Debug)]
pub(super) struct Answer {
    origin: HeaderValue,
    credentials: bool,
    expose: Option<HeaderValue>,
}

impl Answer {
    pub(super) fn encode(self, headers: &mut HeaderMap) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, self.origin);
        if self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        if let Some(expose) = self.expose {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, expose);
        }
    }
}

/// The policies of a request, the most specific first: what one does not say, the next may.
struct Policies<'p>(Vec<&'p CorsPolicy>);

impl<'p> Policies<'p> {
    fn text(&self, of: impl Fn(&'p CorsPolicy) -> &'p String) -> Option<HeaderValue> {
        let text = self.0.iter().map(|p| of(p)).find(|text| !text.is_empty())?;
        HeaderValue::from_str(text).ok()
    }

    fn flag(&self, of: impl Fn(&CorsPolicy) -> Option<bool>) -> Option<bool> {
        self.0.iter().find_map(|p| of(p))
    }

    fn allows(&self, origin: &str) -> bool {
        let origins = self.0.iter().map(|p| &p.allow_origins).find(|origins| !origins.is_empty());
        origins.into_iter().flatten().any(|allowed| allowed.matches("*") || allowed.matches(origin))
    }
}

pub(super) fn decode(
    decoding: &Decoding<'_>,
    filter: &HttpFilter,
    stats: &CorsStats,
    request: &Request,
) -> Option<LocalReply> {
    // A direct response or a redirect has no policy, as in Envoy.
    decoding.routed.filter(|routed| matches!(routed.route.action, Action::Forward(_)))?;
    let headers = &request.parts.headers;
    let origin = headers.get(ORIGIN).filter(|origin| !origin.is_empty())?;
    let policies = Policies(
        decoding
            .overrides_of(filter)
            .filter_map(|said| if let Override::Cors(policy) = said { Some(&**policy) } else { None })
            .collect(),
    );
    let first = policies.0.first()?;
    let enabled = first.enabled.as_ref().is_none_or(Setting::drawn);
    let shadow = first.shadow_enabled.as_ref().is_some_and(Setting::drawn);
    if !enabled && !shadow {
        return None;
    }
    let allowed = policies.allows(origin.to_str().unwrap_or_default());
    if allowed { &stats.origin_valid } else { &stats.origin_invalid }.inc();
    if !enabled {
        return None;
    }
    let answer = allowed.then(|| Answer {
        origin: origin.clone(),
        credentials: policies.flag(|p| p.allow_credentials).unwrap_or(false),
        expose: policies.text(|p| &p.expose_headers),
    });
    let preflight = request.parts.method == Method::OPTIONS
        && headers.get(ACCESS_CONTROL_REQUEST_METHOD).is_some_and(|method| !method.is_empty());
    let forward = !allowed && policies.flag(|p| p.forward_not_matching_preflights).unwrap_or(true);
    let mut reply = (preflight && !forward).then(|| LocalReply::new(StatusCode::OK, "", "cors_response"));
    if let Some(reply) = &mut reply {
        // A preflight of a foreign origin hears everything but that it is allowed.
        if !allowed && policies.flag(|p| p.allow_credentials).unwrap_or(false) {
            reply.headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        let mut tell = |name: HeaderName, value: Option<HeaderValue>| {
            if let Some(value) = value {
                reply.headers.insert(name, value);
            }
        };
        tell(ACCESS_CONTROL_ALLOW_METHODS, policies.text(|p| &p.allow_methods));
        tell(ACCESS_CONTROL_ALLOW_HEADERS, policies.text(|p| &p.allow_headers));
        let private = headers.get(REQUEST_PRIVATE_NETWORK) == Some(&TRUE)
            && policies.flag(|p| p.allow_private_network).unwrap_or(false);
        tell(ALLOW_PRIVATE_NETWORK, private.then_some(TRUE));
        tell(ACCESS_CONTROL_MAX_AGE, policies.text(|p| &p.max_age));
    }
    if let Some(answer) = answer {
        decoding.stream.chain.push(Step::Cors(answer));
    }
    reply
}
