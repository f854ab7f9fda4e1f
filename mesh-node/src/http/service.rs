//! What a server codec (`h1`, `h2`) asks of the stage above it: one method per event, statically dispatched,
//! everything on one thread.
//!
//! Conventions of the messages that cross this boundary:
//! - A request keeps its headers as they came, hop-by-hop ones included; the stage above removes them. The URI is
//!   as on the wire: origin form (`/a?b`), absolute form, authority form (CONNECT) or `*`. HTTP/2 requests have
//!   scheme and authority in the URI and no `host`.
//! - `Upgrade` survives only beside `Connection: upgrade`. The body of an upgrade (or CONNECT) request is raw
//!   bytes; the response with status 101 (or 2xx) has a raw body too.
//! - A response says `connection: close` when the connection must end after it. Framing headers
//!   (`transfer-encoding`, a missing `content-length: 0`) are the codec's.

use std::future::Future;
use std::rc::Rc;

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};

use super::body::{Body, BodyError};

/// Serves the streams of one downstream connection.
pub trait HttpService: 'static {
    /// The body of a response. An error from it resets the stream (HTTP/2) or closes the connection (HTTP/1).
    type Body: http_body::Body<Data = Bytes, Error = BodyError> + 'static;

    /// Answers one request. The future, and later the body, is dropped when the peer goes away or resets first.
    fn call(
        self: &Rc<Self>,
        request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Self::Body>, Reset>>;

    /// The answer to a request that the codec refuses; the connection closes after it (HTTP/1).
    fn refuse(&self, refusal: &Refusal) -> Response<Self::Body>;

    /// The stream whose future or body is dropped next was cut off: reset by the client, or with its connection.
    fn on_cut(&self, reset: bool);

    /// Bytes read from the connection.
    fn on_read(&self, bytes: usize);

    /// Bytes written to the connection.
    fn on_written(&self, bytes: usize);
}

/// The stream ends without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reset;

/// A request that never became one.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// 400, 408, 426 or 431.
    pub status: StatusCode,
    /// Envoy's response code details, such as `http1.codec_error` or `request_header_timeout`.
    pub details: &'static str,
    /// The text of the answer: the status's reason, or `request header timeout`.
    pub body: &'static str,
    pub version: Version,
}
