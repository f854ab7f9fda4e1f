//! Answers that the proxy gives itself. Texts, statuses, flags and details are Envoy's: clients, dashboards and
//! retry policies of other hops depend on them.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use crate::http::body::Body;
use crate::telemetry::grpc_status;
use crate::telemetry::stream_info::ResponseFlags;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// gRPC's `DEADLINE_EXCEEDED`.
pub const DEADLINE_EXCEEDED: u8 = 4;

/// An answer of the proxy's own.
#[derive(Debug)]
pub struct LocalReply {
    pub status: StatusCode,
    pub body: Cow<'static, str>,
    /// Replaces `body` (a direct response may be binary).
    pub bytes: Option<Bytes>,
    /// Response code details.
    pub details: Cow<'static, str>,
    pub flags: ResponseFlags,
    /// The gRPC status, where it does not follow from `status`.
    pub grpc_status: Option<u8>,
    /// Sent before the headers of the body.
    pub headers: HeaderMap,
}

impl LocalReply {
    pub fn new(
        status: StatusCode,
        body: impl Into<Cow<'static, str>>,
        details: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            body: body.into(),
            bytes: None,
            details: details.into(),
            flags: ResponseFlags::default(),
            grpc_status: None,
            headers: HeaderMap::new(),
        }
    }

    pub fn flag(mut self, flag: ResponseFlags) -> Self {
        self.flags.set(flag);
        self
    }

    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// The response, in the form that the request asks for: a gRPC client gets a status in headers (a
    /// "trailers-only" answer), a HEAD request no body.
    pub fn into_response(self, grpc: bool, head: bool) -> Response<Body> {
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        let headers = response.headers_mut();
        if grpc {
            let status = self.grpc_status.unwrap_or_else(|| grpc_status::of_http(self.status.as_u16()));
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(status)));
            let text = self.bytes.as_deref().unwrap_or(self.body.as_bytes());
            if !text.is_empty()
                && let Ok(message) = HeaderValue::try_from(percent_encoded(text))
            {
                headers.insert(GRPC_MESSAGE, message);
            }
            *response.status_mut() = StatusCode::OK;
            return response;
        }
        let body = self.bytes.unwrap_or_else(|| match self.body {
            Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
            Cow::Owned(text) => Bytes::from(text),
        });
        if body.is_empty() {
            return response;
        }
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("text/plain"));
        if !head {
            *response.body_mut() = Body::from_bytes(body);
        }
        response
    }
}

/// gRPC's encoding of `grpc-message`: printable ASCII but `%` stands for itself.
fn percent_encoded(text: &[u8]) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for &byte in text {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_client_gets_a_status_it_understands() {
        let reply =
            LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "no healthy 100%\n", "no_healthy_upstream");
        let response = reply.into_response(true, false);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["grpc-message"], "no healthy 100%25%0A");
        assert_eq!(response.headers()["content-type"], "application/grpc");
        assert!(!response.headers().contains_key("content-length"));
    }

    #[test]
    fn a_head_request_learns_the_length_without_the_body() {
        let response = LocalReply::new(StatusCode::OK, "hello", "direct_response").into_response(false, true);
        assert_eq!(response.headers()["content-length"], "5");
        assert!(matches!(response.body(), Body::Empty));
    }

    #[test]
    fn an_empty_answer_has_no_content_type() {
        let response =
            LocalReply::new(StatusCode::NOT_FOUND, "", "route_not_found").into_response(false, false);
        assert!(response.headers().is_empty());
    }
}
