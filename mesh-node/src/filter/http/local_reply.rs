//! Answers that the proxy gives itself. Texts, statuses, flags and details are Envoy's: clients, dashboards and
//! retry policies of other hops depend on them.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::chain::put;
use super::stream::Stream;
use crate::http::body::Body;
use crate::model::headers::HeaderTarget;
use crate::model::network::{LocalReplies, ReplyMapper};
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
    /// It is what the route says: the route's changes come after its own headers, not before.
    pub of_route: bool,
    /// Of a body that is not what it was.
    pub content_type: Option<HeaderValue>,
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
            of_route: false,
            content_type: None,
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

    /// `local_reply_config`: another status, body and headers, where the configuration wants them.
    pub fn rewrite(&mut self, stream: &Stream, replies: &LocalReplies) {
        let status = |stream: &Stream, status: StatusCode| {
            stream.info.borrow_mut().response_code = Some(status.as_u16());
        };
        status(stream, self.status);
        let wants = |mapper: &&ReplyMapper| {
            stream.with_context(&self.headers, None, |context| mapper.filter.wants(context))
        };
        let mapper = replies.mappers.iter().find(wants);
        let own = self.bytes.take().unwrap_or_else(|| match std::mem::take(&mut self.body) {
            Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
            Cow::Owned(text) => Bytes::from(text),
        });
        let mut body = own.clone();
        if let Some(mapper) = mapper {
            if let Some(text) = &mapper.body {
                body = Bytes::copy_from_slice(text.as_bytes());
            }
            for add in &mapper.headers {
                let mut value = String::new();
                stream.evaluate(&add.value, None, Some(&self.headers), &mut value);
                if let HeaderTarget::Name(_) = &add.name {
                    put(add, value, &mut self.headers);
                }
            }
            if let Some(code) = mapper.status.and_then(|code| StatusCode::from_u16(code).ok()) {
                self.status = code;
                status(stream, code);
            }
        }
        if let Some(of) = mapper.and_then(|m| m.body_format.as_ref()).or(replies.body_format.as_ref()) {
            let mut text = String::new();
            let told = String::from_utf8_lossy(&body);
            stream.with_context(&self.headers, Some(&told), |context| of.format.write(context, &mut text));
            body = Bytes::from(text);
            self.content_type = Some(of.content_type.clone());
        }
        if body != own && self.content_type.is_none() {
            self.content_type = Some(HeaderValue::from_static("text/plain"));
        }
        self.bytes = Some(body);
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
            let json = self.content_type.as_ref().is_some_and(|kind| kind == "application/json");
            let text = if json { text.strip_suffix(b"\n").unwrap_or(text) } else { text };
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
        if let Some(content_type) = self.content_type {
            headers.insert(CONTENT_TYPE, content_type);
        }
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
