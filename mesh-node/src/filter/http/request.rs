//! A request inside the connection manager, in one form whatever protocol it came by: path in the URI, authority
//! in `host` and beside it, scheme apart.

use bytes::Bytes;
use http::header::HOST;
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderName, HeaderValue, Method, Uri};

use crate::http::body::Body;
use crate::model::headers::HeaderTarget;
use crate::router::RequestHead;

/// A request on its way through the filters.
#[derive(Debug)]
pub struct Request {
    /// The URI is in origin form, but for CONNECT and `*`.
    pub parts: Parts,
    /// The value of `host`, or the target of CONNECT.
    pub authority: HeaderValue,
    /// `http` or `https`; empty until the connection manager has decided.
    pub scheme: &'static str,
    pub body: Body,
}

impl Request {
    /// Brings a request of either protocol into form; `None` when it has no authority.
    pub fn new(request: http::Request<Body>) -> Result<Self, Box<Self>> {
        let (mut parts, body) = request.into_parts();
        // RFC 9112 section 3.2.2: the authority of an absolute target replaces `host`.
        let authority = match parts.uri.authority() {
            Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
            None => parts.headers.get(HOST).cloned(),
        };
        if parts.uri.authority().is_some() && parts.method != Method::CONNECT {
            let path = std::mem::take(&mut parts.uri).into_parts().path_and_query;
            parts.uri = Uri::from(path.unwrap_or(PathAndQuery::from_static("/")));
            if let Some(authority) = &authority {
                parts.headers.insert(HOST, authority.clone());
            }
        }
        let found = authority.is_some();
        let request =
            Self { parts, authority: authority.unwrap_or(HeaderValue::from_static("")), scheme: "", body };
        if found { Ok(request) } else { Err(Box::new(request)) }
    }

    /// What routing reads.
    pub fn head(&self) -> RequestHead<'_> {
        RequestHead {
            method: &self.parts.method,
            scheme: self.scheme,
            authority: self.authority(),
            path: self.path(),
            headers: &self.parts.headers,
        }
    }

    pub fn authority(&self) -> &str {
        self.authority.to_str().unwrap_or_default()
    }

    /// Path and query; empty for CONNECT.
    pub fn path(&self) -> &str {
        self.parts.uri.path_and_query().map_or("", PathAndQuery::as_str)
    }

    /// A path that is no path (a rewrite can make anything) leaves the request as it is.
    pub fn set_path(&mut self, path: String) {
        if let Ok(path) = PathAndQuery::from_maybe_shared(Bytes::from(path)) {
            self.parts.uri = Uri::from(path);
        }
    }

    pub fn set_authority(&mut self, authority: &str) {
        if let Ok(value) = HeaderValue::from_str(authority) {
            if self.parts.method == Method::CONNECT
                && let Ok(target) = authority.parse::<Authority>()
            {
                self.parts.uri = Uri::from(target);
            }
            self.parts.headers.insert(HOST, value.clone());
            self.authority = value;
        }
    }

    /// Sets what a header change names that is not a header.
    pub fn set_pseudo(&mut self, target: &HeaderTarget, value: &str) {
        match target {
            HeaderTarget::Authority => self.set_authority(value),
            HeaderTarget::Path => self.set_path(value.to_owned()),
            HeaderTarget::Method => {
                if let Ok(method) = Method::from_bytes(value.as_bytes()) {
                    self.parts.method = method;
                }
            }
            HeaderTarget::Scheme => self.scheme = if value == "https" { "https" } else { "http" },
            HeaderTarget::Status | HeaderTarget::Name(_) => {}
        }
    }

    /// Sets a header to a text that came from the request itself.
    pub fn set_header(&mut self, name: HeaderName, value: &str) {
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            self.parts.headers.insert(name, value);
        }
    }
}
