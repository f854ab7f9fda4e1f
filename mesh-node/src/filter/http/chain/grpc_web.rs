//! gRPC-Web to gRPC and back (`envoy.filters.http.grpc_web`): browsers see no trailers, so trailers become the
//! last frame of the body; text clients get all of it in base64.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body::{Body as _, Frame};

use super::super::request::Request;
use super::super::stream::Stream;
use super::Step;
use crate::http::body::{Body, BodyError};
use crate::telemetry::base64;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
/// Marks the frame of trailers.
const TRAILERS: u8 = 0x80;

/// What the client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Binary,
    Text,
}

impl Encoding {
    fn of(value: Option<&HeaderValue>) -> Option<Self> {
        match value?.to_str().ok()? {
            "application/grpc-web" | "application/grpc-web+proto" => Some(Self::Binary),
            "application/grpc-web-text" | "application/grpc-web-text+proto" => Some(Self::Text),
            _ => None,
        }
    }
}

pub(super) fn decode(stream: &Rc<Stream>, request: &mut Request) {
    let headers = &mut request.parts.headers;
    let Some(encoding) = Encoding::of(headers.get(CONTENT_TYPE)) else { return };
    let accepts = match Encoding::of(headers.get(ACCEPT)) {
        Some(Encoding::Text) => Encoding::Text,
        _ => Encoding::Binary,
    };
    headers.insert(CONTENT_TYPE, GRPC);
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.remove(CONTENT_LENGTH);
    if encoding == Encoding::Text && !request.body.is_end_stream() {
        let inner = std::mem::take(&mut request.body);
        request.body = Body::boxed(FromText { inner, rest: BytesMut::new() });
    }
    stream.chain.push(Step::GrpcWeb(accepts));
}

pub(super) fn encode(stream: &Stream, encoding: Encoding, response: &mut Response<Body>) {
    let grpc = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if !grpc {
        return;
    }
    let kind = match encoding {
        Encoding::Binary => "application/grpc-web+proto",
        Encoding::Text => "application/grpc-web-text+proto",
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.remove(CONTENT_LENGTH);
    if !response.body().is_end_stream() && !stream.head {
        let inner = std::mem::take(response.body_mut());
        *response.body_mut() = Body::boxed(WithTrailerFrame { inner, text: encoding == Encoding::Text });
    }
}

/// Decodes base64 as it comes.
struct FromText {
    inner: Body,
    /// Letters that wait for the rest of their group of four.
    rest: BytesMut,
}

impl http_body::Body for FromText {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            let frame = match std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                None if !this.rest.is_empty() => {
                    return Poll::Ready(Some(Err(BodyError::Malformed("base64 of a gRPC-Web request"))));
                }
                other => return Poll::Ready(other),
            };
            let data = match frame.into_data() {
                Ok(data) => data,
                Err(frame) => return Poll::Ready(Some(Ok(frame))),
            };
            this.rest.extend_from_slice(&data);
            let whole = this.rest.len() / 4 * 4;
            let letters = this.rest.split_to(whole);
            if letters.is_empty() {
                continue;
            }
            let mut decoded = Vec::with_capacity(whole);
            for group in letters.chunks(4) {
                match base64::decode(group) {
                    Some(bytes) => decoded.extend_from_slice(&bytes),
                    None => {
                        return Poll::Ready(Some(Err(BodyError::Malformed("base64 of a gRPC-Web request"))));
                    }
                }
            }
            return Poll::Ready(Some(Ok(Frame::data(decoded.into()))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }
}

/// Makes trailers a frame of the body.
struct WithTrailerFrame {
    inner: Body,
    text: bool,
}

impl http_body::Body for WithTrailerFrame {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = match std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            other => return Poll::Ready(other),
        };
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => trailer_frame(frame.trailers_ref()),
        };
        let data = if self.text { base64::encode(&data).into() } else { data };
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
}

fn trailer_frame(trailers: Option<&HeaderMap>) -> Bytes {
    let mut lines = Vec::new();
    for (name, value) in trailers.into_iter().flatten() {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.push(b':');
        lines.extend_from_slice(value.as_bytes());
        lines.extend_from_slice(b"\r\n");
    }
    let mut frame = vec![TRAILERS];
    frame.extend_from_slice(&(lines.len() as u32).to_be_bytes());
    frame.extend_from_slice(&lines);
    frame.into()
}
